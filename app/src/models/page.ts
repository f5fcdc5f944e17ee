// Runs with their curves, tables and figures; live while a run trains.
import "./page.css";
import { getJson, type State } from "../api";
import { field, h } from "../dom";
import type { Page } from "../main";
import { Detail, named } from "./detail";
import { type Card, colourOf, count, type Experiment, fixed, nameOf, type Summary, standing } from "./told";

const OFTEN = 3000, SELDOM = 15_000; // milliseconds between two looks: while something trains, and else
type Versioned<T> = T & { version: string; unchanged?: true };

/** Shipped models as cards: what the list names first where nobody has trained anything yet. */
function cards(list: Card[], state: State): HTMLElement {
  const code = (text: string) => text.split(/`([^`]*)`/).map((part, i) => (i % 2 ? h("code", {}, part) : part));
  return h("section", { className: "card shipped" }, h("h2", {}, "Models that come with seqpope"), ...list.map((card) => {
    const model = state.models.find((one) => one.id === card.id);
    return h("details", {}, h("summary", {}, named(model?.position ?? null), ` ${card.title}`, h("small", { className: "soft" }, model ? ` ${model.dataset}, windows of ${count(model.length)} tokens, validation ${fixed(model.validation_nats_per_token)} nats/token` : "")),
      ...card.text.map((text) => h("p", {}, ...code(text))),
      h("dl", {}, ...card.rows.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, ...code(text))])));
  }));
}

export const models: Page = (root, state) => {
  let overview: Versioned<{ experiments: Summary[]; problems: string[] }> | null = null;
  let chosen = location.hash.split("/")[1] ?? "";
  let version = "", timer = 0, asked = 0, left = false;
  let detail: Detail | null = null;
  const filter = h("input", { type: "search", oninput: () => list(), autocomplete: "off" });
  const entries = h("ul", { className: "entries" });
  const words = h("p", { className: "soft", role: "status" });
  const side = h("section", { className: "card runs" }, h("h2", {}, "Experiments"), field("Filter by name, data set or encoding", filter), words, entries);
  const place = h("div", { className: "place" });
  const shipped = h("div");
  root.append(h("div", { className: "models" }, side, place), shipped);

  const matches = (one: Summary): boolean => {
    const text = [one.label, one.dataset, ...one.runs.flatMap((run) => [run.position, nameOf(run.position), run.state])].join(" ").toLowerCase();
    return filter.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  };

  function entry(one: Summary): HTMLElement {
    const training = one.runs.find((run) => run.state === "training");
    const done = one.runs.filter((run) => run.state === "finished").length, all = Math.max(one.expected ?? 0, one.runs.length);
    const means = Object.entries(one.means).map(([name, value]) => {
      const dna = value.base !== undefined;
      return h("span", { style: `color:${colourOf(name)}` }, `${nameOf(name)} ${fixed(dna ? value.base / Math.LN2 : value.token)}${dna ? " bits/base" : ""}`);
    });
    return h("li", {}, h("a", {
      href: `#models/${one.id}`, "aria-current": one.id === chosen ? "true" : undefined, "data-id": one.id,
      onclick: (event: MouseEvent) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return;
        event.preventDefault();
        choose(one.id);
      },
    }, h("strong", {}, one.label), h("small", {}, one.dataset ?? "data set unknown"),
    h("small", {}, training ? standing(training) : `${done} of ${all} run${all === 1 ? "" : "s"} finished`),
    means.length ? h("small", { className: "means" }, ...means) : null,
    one.problems.length || one.runs.some((run) => run.problems.length) ? h("small", { className: "warn" }, "some files could not be read") : null));
  }

  function list(): void {
    if (!overview) return;
    const found = overview.experiments.filter(matches);
    const focused = (document.activeElement as HTMLElement | null)?.dataset?.id;
    entries.replaceChildren(...found.map(entry));
    if (focused) entries.querySelector<HTMLElement>(`[data-id="${focused}"]`)?.focus();
    words.textContent = [
      overview.experiments.length === 0 ? "No runs in the folder that the studio was started with. Train twins with seqpope train, or start the studio with --runs FOLDER; they appear here as soon as they begin." : `${found.length} of ${overview.experiments.length}`,
      ...overview.problems,
    ].join(". ");
  }

  function choose(id: string): void {
    history.pushState(null, "", `#models/${id}`);
    open(id);
    void look().then(() => detail?.heading.focus());
  }

  function open(id: string): void {
    chosen = id;
    version = "";
    detail?.close();
    detail = null;
    place.replaceChildren(h("p", { className: "soft" }, "Loading…"));
    list();
  }

  function tell(error: unknown): void {
    const text = (error as Error).message;
    if (detail) words.textContent = text;
    else place.replaceChildren(h("p", { className: "card warn", role: "alert" }, text));
  }

  /** Asks for what is new; again after a while, as long as somebody sees it. */
  async function look(): Promise<void> {
    clearTimeout(timer);
    const mine = ++asked;
    try {
      const fresh = await getJson<Versioned<{ experiments: Summary[]; problems: string[] }>>(`/api/runs?since=${overview?.version ?? ""}`);
      if (left || mine !== asked) return;
      if (!fresh.unchanged) {
        overview = fresh;
        if (!chosen && fresh.experiments.length) chosen = fresh.experiments[0].id;
        list();
      } else if (overview?.experiments.some((one) => one.runs.some((run) => run.state !== "finished"))) list();
      if (chosen) {
        const wanted = chosen;
        const told = await getJson<Versioned<Experiment>>(`/api/runs/${wanted}?since=${version}`);
        if (left || mine !== asked || wanted !== chosen) return;
        if (!told.unchanged) {
          version = told.version;
          if (!detail) {
            detail = new Detail();
            place.replaceChildren(detail.element);
          }
          detail.update(told);
        }
      } else place.replaceChildren();
    } catch (error) {
      if (left || mine !== asked) return;
      tell(error);
    }
    const live = overview?.experiments.some((one) => one.runs.some((run) => run.state === "training" || run.reading));
    if (!document.hidden) timer = window.setTimeout(() => void look(), live ? OFTEN : SELDOM);
  }

  const seen = () => (document.hidden ? clearTimeout(timer) : void look());
  document.addEventListener("visibilitychange", seen);
  void look();
  getJson<Card[]>("/api/cards").then((found) => left || shipped.replaceChildren(cards(found, state)), tell);
  return () => {
    left = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
    detail?.close();
  };
};
