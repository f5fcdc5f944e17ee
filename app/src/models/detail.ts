// One experiment: how its runs stand, twins compared, means, curves, figures. Parts are made anew only where they changed.
import { field, h } from "../dom";
import { Chart, type Line } from "./chart";
import { forest } from "./forest";
import { bitsPerBase, colourOf, count, type Experiment, fixed, nameOf, type Run, signed, span, standing } from "./told";

const BITS = "bits/base", NATS = "nats/token";
const FIGURES: Record<string, string> = {
  magnitudes: "Mean magnitude of each frequency, by layer: how much attention makes of each wavelength",
  "heads-query": "Magnitudes of queries by head and frequency",
  "heads-key": "Magnitudes of keys by head and frequency",
  delta: "PoPE's learned phases delta, by layer",
  loss: "Training and validation as the report drew them",
  position: "NLL against the position in the piece, as the report drew it",
  lengths: "NLL beyond the training length",
};

class Part {
  readonly element = h("section", { className: "card" });
  private shown = "";

  fill(data: unknown, make: () => (Node | string | null)[]): void {
    const key = JSON.stringify(data);
    if (key === this.shown) return;
    this.shown = key;
    const made = make().filter((one): one is Node | string => one !== null);
    this.element.hidden = made.length === 0;
    this.element.replaceChildren(...made);
  }
}

export function table(label: string, head: string[], rows: (string | Node)[][], numbers: number): HTMLElement {
  return h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, ...head.map((name, i) => h("th", { scope: "col", className: i >= numbers ? "number" : undefined }, name)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell, i) => (i === 0 ? h("th", { scope: "row" }, cell) : h("td", { className: i >= numbers ? "number" : undefined }, cell))))))));
}

export const named = (position: string | null): HTMLElement => h("span", { className: "encoding" }, h("i", { style: `background:${colourOf(position)}`, "aria-hidden": "true" }), nameOf(position));

const choices = (label: string, options: Record<string, string>, changed: () => void): [HTMLElement, HTMLSelectElement] => {
  const select = h("select", { onchange: changed }, ...Object.entries(options).map(([value, text]) => h("option", { value }, text)));
  return [field(label, select), select];
};

export class Detail {
  readonly element = h("div", { className: "detail" });
  readonly heading = h("h2", { tabindex: "-1" });
  private told: Experiment | null = null;
  private readonly state = h("div", { className: "standing" });
  private readonly twins = new Part();
  private readonly means = new Part();
  private readonly references = new Part();
  private readonly runs = new Part();
  private readonly figures = new Part();
  private readonly text = new Part();
  private readonly curves = new Chart("Curves of training and validation");
  private readonly positions = new Chart("NLL by position in the piece");
  private readonly curvesCard: HTMLElement;
  private readonly positionsCard: HTMLElement;
  private readonly shown: HTMLSelectElement;
  private readonly scale: HTMLSelectElement;
  private readonly unit: HTMLSelectElement;
  private readonly unitField: HTMLElement;
  private readonly encodings = h("fieldset", { className: "encodings" }, h("legend", {}, "Encodings"));

  constructor() {
    const redraw = () => this.draw();
    const [shownField, shown] = choices("Curves", { both: "validation and training", validation: "validation", train: "training" }, redraw);
    const [scaleField, scale] = choices("Vertical axis", { learned: "what was learned", whole: "all values", log: "logarithmic" }, redraw);
    const [unitField, unit] = choices("Unit", { bits: BITS, nats: NATS }, () => this.update(this.told!));
    [this.shown, this.scale, this.unit, this.unitField] = [shown, scale, unit, unitField];
    this.curvesCard = h("section", { className: "card" }, h("div", { className: "row" }, shownField, scaleField, this.encodings), this.curves.element);
    this.positionsCard = h("section", { className: "card" }, this.positions.element);
    this.element.append(h("section", { className: "card" }, h("div", { className: "row spread" }, this.heading, unitField), this.state),
      ...[this.twins, this.means].map((part) => part.element), this.curvesCard, this.runs.element, this.positionsCard,
      ...[this.references, this.figures, this.text].map((part) => part.element));
  }

  close(): void {
    this.curves.close();
    this.positions.close();
  }

  update(told: Experiment): void {
    this.told = told;
    this.heading.textContent = told.label;
    this.unitField.hidden = bitsPerBase(told.runs) === null;
    this.fillState(told);
    this.fillEncodings(told);
    const { report, runs } = told, [scale, unit] = this.inUnit();
    this.twins.fill([report?.differences, report?.recipes_differ_in, scale], () => {
      if (!report) return [];
      const differing = Object.keys(report.recipes_differ_in);
      return [h("h2", {}, "Twins compared"),
        differing.length ? h("p", { className: "warn" }, `These recipes differ in ${differing.join(", ")}: this is no comparison of twins.`) : null,
        ...(report.differences.length ? report.differences.map((one) => forest(one, scale, unit)) : [h("p", { className: "soft" }, "One encoding alone: nothing to compare with.")]),
        report.differences.length > 1 ? h("p", { className: "soft" }, `The intervals are not corrected for ${report.differences.length} comparisons.`) : null];
    });
    this.means.fill([report?.encodings, report?.baselines, bitsPerBase(runs)], () => this.meansTable(told));
    this.references.fill([report?.references, scale], () => this.referencesTable(told, scale, unit));
    this.runs.fill(runs.map((run) => ({ ...run, curves: null, by_position: null })), () => this.runsTable(runs));
    this.figures.fill([told.figures, runs.map((run) => run.figures)], () => this.pictures(told));
    this.text.fill(told.text, () => told.text === null ? [] : [h("details", {}, h("summary", {}, "The report as text"), h("pre", { className: "scroll", tabindex: "0" }, told.text))]);
    this.draw();
  }

  private inUnit(): [number, string] {
    const factor = bitsPerBase(this.told?.runs ?? []);
    return factor !== null && this.unit.value === "bits" ? [factor, BITS] : [1, NATS];
  }

  private fillState(told: Experiment): void {
    const problems = [...told.problems, ...told.runs.flatMap((run) => run.problems)];
    const done = told.runs.filter((run) => run.state === "finished").length, all = Math.max(told.expected ?? 0, told.runs.length);
    const working = told.runs.filter((run) => run.state !== "finished");
    this.state.replaceChildren(
      h("p", {}, `${told.dataset ?? "Data set unknown"}. ${done} of ${all} run${all === 1 ? "" : "s"} finished.`),
      ...working.map((run) => h("p", { className: run.state }, h("strong", {}, run.label), ` ${standing(run)}. `,
        run.steps ? h("progress", { max: run.steps, value: Math.min(run.step ?? 0, run.steps), "aria-label": `Steps of ${run.label}` }) : null)),
      ...(told.runs.some((run) => run.reading) ? [h("p", { className: "soft" }, "Large logs are still being read.")] : []),
      ...(problems.length ? [h("ul", { className: "problems", "aria-label": "What could not be read" }, ...problems.map((one) => h("li", {}, one)))] : []),
    );
  }

  private fillEncodings(told: Experiment): void {
    const names = [...new Set(told.runs.map((run) => run.position ?? "unknown"))];
    if (names.join() === this.encodings.dataset.names) return;
    this.encodings.dataset.names = names.join();
    this.encodings.hidden = names.length < 2;
    this.encodings.replaceChildren(h("legend", {}, "Encodings"),
      ...names.map((name) => h("label", {}, h("input", { type: "checkbox", value: name, checked: true, onchange: () => this.draw() }), named(name))));
  }

  private draw(): void {
    if (!this.told) return;
    const [factor, unit] = this.inUnit();
    const off = new Set([...this.encodings.querySelectorAll("input")].filter((box) => !box.checked).map((box) => box.value));
    const runs = this.told.runs.filter((run) => !off.has(run.position ?? "unknown"));
    const lines: Line[] = [];
    for (const [kind, word] of [["validation", "validation"], ["train", "training"]] as const) {
      if (this.shown.value !== "both" && this.shown.value !== kind) continue;
      for (const run of runs) {
        const curve = run.curves?.[kind];
        if (curve?.steps.length) {
          const group = `${nameOf(run.position)}, ${word}`;
          lines.push({ group, label: `${run.label}, ${word}`, colour: colourOf(run.position), x: curve.steps, y: curve.values.map((value) => value * factor), faint: kind === "train", dots: kind === "validation" });
        }
      }
    }
    this.curvesCard.hidden = !this.told.runs.some((run) => run.curves && run.curves.train.of + run.curves.validation.of > 0);
    const baselines = Object.entries(this.told.report?.baselines ?? this.told.runs.find((run) => Object.keys(run.baselines).length)?.baselines ?? {});
    this.curves.show({ x: "step", y: unit, lines, scale: this.scale.value as "learned", rules: baselines.flatMap(([label, value]) => (value === null ? [] : [{ label: `${label} (test)`, value: value * factor }])) });
    const by = runs.filter((run) => run.by_position?.length);
    this.positionsCard.hidden = !this.told.runs.some((run) => run.by_position?.length);
    this.positions.show({
      x: "position (tokens; bins double)", y: unit, doubling: true,
      lines: by.map((run) => {
        const bins = run.by_position!.filter((bin) => bin[2] !== null);
        return { group: nameOf(run.position), label: run.label, colour: colourOf(run.position), dots: true, x: bins.map(([low, high]) => Math.sqrt(Math.max(1, low) * high)), y: bins.map((bin) => bin[2]! * factor) };
      }),
    });
  }

  private meansTable({ report, runs }: Experiment): (Node | string | null)[] {
    const baselines = Object.entries(report?.baselines ?? runs.find((run) => Object.keys(run.baselines).length)?.baselines ?? {});
    const encodings = Object.entries(report?.encodings ?? {});
    if (!encodings.length && !baselines.length) return [];
    const spread = (e: { mean: number; sd: number | null } | null | undefined, scale = 1, digits = 4) =>
      e ? (e.mean * scale).toFixed(digits) + (e.sd === null ? "" : ` ± ${(e.sd * scale).toFixed(digits)}`) : "–";
    const units = [...new Set(encodings.flatMap(([, e]) => Object.keys(e.units)))], strata = [...new Set(encodings.flatMap(([, e]) => Object.keys(e.strata)))];
    const bits = bitsPerBase(runs);
    const scale = (unit: string) => (unit === "base" ? 1 / Math.LN2 : 1);
    const accuracy = encodings.some(([, e]) => e.accuracy);
    const rows: (string | Node)[][] = encodings.map(([name, e]) => [named(name), String(e.seeds.length), spread(e.nats_per_token),
      ...(accuracy ? [spread(e.accuracy, 100, 1)] : []), ...units.map((unit) => spread(e.units[unit], scale(unit))), ...strata.map((stratum) => spread(e.strata[stratum])), spread(e.paper_protocol)]);
    for (const [name, value] of baselines) {
      if (value !== null) rows.push([`baseline: ${name}`, "", fixed(value), ...(accuracy ? [""] : []), ...units.map((unit) => (unit === "base" && bits !== null ? fixed(value * bits) : "")), ...strata.map(() => ""), ""]);
    }
    return [h("h2", {}, "Test"), table("Test NLL of encodings and baselines",
      ["", "seeds", NATS, ...(accuracy ? ["accuracy, %"] : []), ...units.map((unit) => (unit === "base" ? BITS : `nats/${unit}`)), ...strata.map((name) => `${name}, ${NATS}`), "first window only"], rows, 1),
      h("p", { className: "soft" }, `${encodings.length ? "Mean over seeds ± sample standard deviation, from the report. " : "The report is written when all runs are finished. "}Lower is better.`)];
  }

  private referencesTable({ report }: Experiment, scale: number, unit: string): (Node | string | null)[] {
    if (!report?.references.length) return [];
    return [h("h2", {}, "Against measured baselines, by stratum"), table("Encodings against the best baseline of each stratum", ["stratum", "encoding", "best baseline", "tokens", unit, "the baseline's", "difference, 95% bootstrap over pieces", ""],
      report.references.map((one) => [one.stratum, named(one.encoding), one.best, count(one.tokens), fixed(one.nats_per_token * scale), fixed(one.baselines[one.best] === undefined ? null : one.baselines[one.best] * scale),
        `${signed(one.difference.mean * scale)} (${signed(one.difference.low * scale)} to ${signed(one.difference.high * scale)})`, one.verdict]), 3)];
  }

  private runsTable(runs: Run[]): (Node | string | null)[] {
    if (!runs.length) return [h("h2", {}, "Runs"), h("p", { className: "soft" }, "No run has begun here.")];
    const dna = runs.some((run) => run.units.base);
    return [h("h2", {}, "Runs"), table("Runs", ["run", "encoding", "state", "seed", "parameters", "steps", "best step", "validation", "test", ...(dna ? [BITS] : []), "trained for", "precision"],
      runs.map((run) => [run.label, named(run.position), run.state, run.seed === null ? "–" : String(run.seed), count(run.parameters), count(run.steps), count(run.best_step), fixed(run.validation), fixed(run.test),
        ...(dna ? [run.units.base?.[0] == null ? "–" : (run.units.base[0] / Math.LN2).toFixed(4)] : []), run.seconds === null ? "–" : span(run.seconds), run.precision ?? "–"]), 3),
      h("p", { className: "soft" }, `Validation at the best step and test in ${NATS}. “Trained for”: training alone, up to the best step.`)];
  }

  private pictures(told: Experiment): (Node | string | null)[] {
    const all = [{ id: told.id, label: "", figures: told.figures }, ...told.runs.filter((run) => run.id !== told.id)].flatMap((one) => (one.figures ?? []).map((figure) => ({ ...one, figure })));
    if (!all.length) return [];
    const inspected = all.some(({ figure }) => !["loss", "position", "lengths"].includes(figure));
    return [h("h2", {}, "Figures"), h("div", { className: "pictures" }, ...all.map(({ id, label, figure }) => {
      const caption = (label ? `${label}: ` : "") + FIGURES[figure], url = `/api/runs/${id}/figures/${figure}`;
      return h("figure", {}, h("a", { href: url, target: "_blank" }, h("img", { src: url, alt: `${caption} (opens in full size)`, loading: "lazy" })), h("figcaption", {}, caption));
    })), inspected ? null : h("p", { className: "soft" }, "What each frequency is used for: seqpope inspect, with this experiment's folder, draws it and it appears here.")];
  }
}
