// DNA that the model writes behind a region, or behind typed bases.
import { field, h, notice, save } from "../dom";
import { fasta } from "./numbers";
import { Task } from "./task";

export interface Continued {
  prompt: string;
  region: string;
  drawn: string;
  tokens: number[]; // bases each stands for
  nats: number[]; // of each token
  gc: number | null;
  gc_drawn: number | null;
  nats_per_base: number;
  constraint_nats_per_base: number;
  beyond_training_length: boolean;
  seed: number;
  header: string;
}

const HOT = 2; // nats a base that are shown in full colour
const SHOWN = 60; // bases of the prompt

/** The card; `where` says which model and genome are chosen and which region is meant. */
export function continuation(where: () => { model: string; genome?: string; region: string }, hasGenome: boolean, most: number): { root: HTMLElement; leave: () => void } {
  const number = (value: number | "", min: number, max: number, step: number | "any" = 1) => h("input", { type: "number", value, min, max, step });
  const typed = h("textarea", { rows: 3, spellcheck: false, maxLength: most, placeholder: "ACGT…", name: "prompt" });
  const before = number(1200, 0, most);
  const source = h("select", {}, h("option", { value: "region" }, "the region's end"), h("option", { value: "typed" }, "typed bases"));
  if (!hasGenome) source.replaceChildren(h("option", { value: "typed" }, "typed bases"));
  const bases = number(300, 1, most);
  const seed = number(0, 0, 2 ** 32 - 1);
  const temperature = number(1, 0, 5, 0.05);
  const low = number("", 0, 100, "any");
  const high = number("", 0, 100, "any");
  const window = number("", 6, 1000);
  const sites = h("input", { type: "text", placeholder: "EcoRI, GGTCTC", spellcheck: false });
  const frame = h("select", {},
    h("option", { value: "" }, "anywhere"), ...[0, 1, 2].map((at) => h("option", { value: at }, `not in frame ${at + 1}`)), h("option", { value: "no" }, "in no frame"));
  const judged = h("input", { type: "checkbox" });
  const task = new Task("Continue", "bases");
  const text = h("pre", { className: "dna", tabindex: 0, "aria-label": "Sequence" });
  const numbers = h("output", {});
  const whole = h("input", { type: "checkbox", checked: true });
  let answer: Continued | undefined;
  const download = h("button", { type: "button", onclick: () => {
    if (!answer) return;
    const sequence = (whole.checked ? answer.prompt : "") + answer.drawn;
    const behind = whole.checked || !answer.prompt ? "" : " prompt left out";
    save(`continuation_seed${answer.seed}.fa`, new Blob([fasta(`dna-${String(answer.seed).padStart(4, "0")}`, answer.header + behind, sequence)], { type: "text/plain" }));
  } }, "FASTA");
  const result = h("div", { hidden: true, className: "result" }, numbers, text,
    h("p", { className: "legend soft" }, "0 ", h("i", { className: "scale surprise", role: "img", "aria-label": "the stronger the colour, the less expected" }), ` ${HOT} nats per base, of each six-mer drawn; before it the end of what was given`),
    h("div", { className: "row" }, download, h("label", { className: "check" }, whole, " with what was given")));
  const fromRegion = field("Bases read before", before, "that end where the region ends");
  const fromTyped = field("Bases to continue", typed, "A, C, G, T or N; none begins anew");
  const choose = () => {
    fromRegion.hidden = source.value !== "region";
    fromTyped.hidden = source.value === "region";
  };
  source.onchange = choose;
  choose();

  const piece = (bases: string, nats: number): HTMLElement => {
    const share = Math.max(0, Math.min(1, nats / Math.max(1, bases.length) / HOT));
    return h("span", { style: `--share: ${Math.round(100 * share)}%`, title: `${nats.toFixed(2)} nats` }, bases);
  };
  const percent = (share: number | null) => (share === null ? "no bases" : `${(100 * share).toFixed(1)} %`);

  async function draw(): Promise<void> {
    const { model, genome, region } = where();
    const band = low.value !== "" || high.value !== "" ? [(low.value === "" ? 0 : +low.value) / 100, (high.value === "" ? 100 : +high.value) / 100] : null;
    if (source.value === "region" && !region) {
      notice("name a region first: what is drawn goes on where it ends");
      return;
    }
    const given = source.value === "region" ? { genome, region, before: +before.value } : { prompt: typed.value.replace(/\s/g, "") };
    text.replaceChildren();
    numbers.textContent = "";
    result.hidden = true;
    const found = await task.run<Continued>("genome.continue_dna", {
      model, ...given, bases: +bases.value, seed: +seed.value, sampling: { temperature: +temperature.value },
      rules: {
        gc: band, gc_window: window.value === "" ? null : +window.value,
        forbid: sites.value.split(",").map((word) => word.trim()).filter(Boolean),
        open_frame: frame.value === "" || frame.value === "no" ? null : +frame.value, no_stop: frame.value === "no", judge_prompt: judged.checked,
      },
    }, (({ bases, nats }: { bases: string; nats: number }) => {
      result.hidden = false;
      download.disabled = true;
      text.append(piece(bases, nats));
    }) as (data: never) => void);
    if (!found) return;
    answer = found;
    result.hidden = download.disabled = false;
    const end = found.prompt.slice(-SHOWN);
    let at = 0;
    const parts = found.tokens.map((size, token) => piece(found.drawn.slice(at, (at += size)), found.nats[token]));
    text.replaceChildren(h("span", { className: "given" }, (found.prompt.length > SHOWN ? "…" : "") + end), ...parts);
    const rules = found.constraint_nats_per_base >= 5e-4 ? `, of which the rules cost ${found.constraint_nats_per_base.toFixed(3)}` : "";
    numbers.textContent = `${found.drawn.length} bases drawn behind ${found.prompt.length}${found.region ? ` (${found.region})` : ""}: GC ${percent(found.gc_drawn)}, ` +
      `${found.nats_per_base.toFixed(3)} nats per base${rules}${found.beyond_training_length ? "; longer than the model was trained on" : ""}`;
  }

  const form = h("form", { className: "fields", onsubmit: (event: Event) => {
    event.preventDefault();
    void draw();
  } },
    h("div", { className: "row" }, field("Begin with", source), fromRegion, fromTyped),
    h("div", { className: "row" }, field("Bases to draw", bases, `up to ${most}`), field("Seed", seed), field("Temperature", temperature, "0 takes the likeliest")),
    h("fieldset", {}, h("legend", {}, "Rules"),
      h("div", { className: "row" },
        field("GC at least, %", low), field("GC at most, %", high), field("GC in every … bases", window, "empty: over all"),
        field("Forbidden sites", sites, "enzymes or IUPAC, with commas"), field("Stop codons", frame, "of the forward strand"),
        h("label", { className: "check" }, judged, " rules hold for what is given too"))),
    task.root);
  return {
    root: h("section", { className: "card", "aria-labelledby": "continue" }, h("h2", { id: "continue" }, "Continuation"), form, result),
    leave: () => task.cancel(),
  };
}
