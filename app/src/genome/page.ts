// Genomes: a region scored base by base, what is above a threshold, what mutations would change, what could follow.
import "./page.css";
import { getJson, type State } from "../api";
import { field, h, notice, save } from "../dom";
import type { Page } from "../main";
import { continuation } from "./continuation";
import { HeatMap, type Column } from "./heatmap";
import { bed, bedGraph, duration, fasta, fileName, placeName, quantile, runsAbove, whole, type Run, type Scored } from "./numbers";
import { Task } from "./task";
import { Tracks, type Feature } from "./tracks";

interface About {
  contigs: { name: string; length: number }[];
  more: number;
  example: string;
  genes: number;
  limits: { scored: number; mutated: number; drawn: number };
}

interface Place {
  contig: string;
  start: number;
  end: number;
  region: string;
  gene: string;
  known: number;
}

interface Mutated extends Omit<Scored, "sequence" | "nats"> {
  window: number;
  columns: Column[];
}

const ROWS = 200; // of the table of runs
const DRAWN = 6000; // bases, where no genome tells the limit
const speed = { score: 800, mutate: 1600 }; // tokens a second on a core, until this machine's is measured

const plain = (name: string, text: string) => save(name, new Blob([text], { type: "text/plain" }));

export const genome: Page = (main, state) => {
  const root = h("div", { className: "genome" });
  main.append(root);
  const models = state.models.filter((model) => model.kind === "dna");
  if (!models.length) {
    root.append(h("section", { className: "card" }, h("h2", {}, "Genome"), h("p", {}, "There is no model of DNA here: train one with ", h("code", {}, "seqpope train --domain genome"), ".")));
    return;
  }
  const model = h("select", {}, ...models.map(({ id, label, position }) => h("option", { value: id }, `${label} (${position})`)));
  if (!state.genomes.length) {
    const drawing = continuation(() => ({ model: model.value, region: "" }), false, DRAWN);
    root.append(h("section", { className: "card" }, h("h2", {}, "No genome is prepared"),
      h("p", {}, "To score regions, make one of any FASTA file, in the folder in which the studio was started, and load this page again:"),
      h("pre", {}, "seqpope prepare genome --source genome.fa.gz"),
      h("p", { className: "soft" }, "It is written to data/genome; the studio looks in the folder that --data-folder names. To find genes by name, start the studio with --genes genes.bed. Typed bases can be continued without one."),
      h("div", { className: "row" }, field("Model", model))), drawing.root);
    return drawing.leave;
  }
  return prepared(root, state, model);
};

function prepared(root: HTMLElement, state: State, model: HTMLSelectElement): () => void {
  let about: About | undefined;
  let place: Place | undefined; // what the region's field means
  let scored: Scored | undefined;
  let tracks: Tracks | undefined;
  let runs: Run[] = [];
  let gone = false;

  // The region.
  const chosen = h("select", {}, ...state.genomes.map(({ id, label }) => h("option", { value: id }, label)));
  const suggested = h("datalist", { id: "genes" });
  const region = h("input", { type: "text", spellcheck: false, autocomplete: "off", size: 34, required: true, placeholder: "chr17:43,044,295-43,050,000" });
  region.setAttribute("list", "genes"); // the property is read-only
  const strand = h("select", {}, h("option", { value: "+" }, "forward"), h("option", { value: "-" }, "reverse"), h("option", { value: "both" }, "both"));
  const phases = h("select", {}, ...[1, 2, 3, 6].map((count) => h("option", { value: count }, count === 1 ? "1, quick" : count === 6 ? "6, all" : count)));
  const means = h("output", { className: "soft means" });
  const scoring = new Task("Score", "bases, strands and phases counted");
  const passes = () => (strand.value === "both" ? 2 : 1) * +phases.value;
  const cost = (bases: number) => (passes() * 2 * bases) / 6; // tokens: half a window is read anew for each half that is scored
  const settings = () => ({ model: model.value, genome: chosen.value, strand: strand.value, phases: +phases.value });

  function expect(): void {
    const most = about?.limits.scored ?? 0;
    if (!place) return;
    const size = place.end - place.start;
    const unknown = size - place.known;
    const cut = size > most ? ` more than ${whole.format(most)} at once: its first ${whole.format(most)} are scored;` : ` up to ${whole.format(most)} at once;`;
    means.textContent = `${place.gene ? `${place.gene}, ` : ""}${place.region}: ${whole.format(size)} bases${unknown ? `, ${whole.format(unknown)} of them N` : ""};${cut} ` +
      `about ${duration(cost(Math.min(size, most)) / speed.score)}`;
    expectMutations();
  }

  async function find(): Promise<Place | undefined> {
    const asked = region.value.trim();
    if (!asked) return undefined;
    try {
      const found = await getJson<Place>(`/api/genome/place?genome=${chosen.value}&text=${encodeURIComponent(asked)}`);
      if (region.value.trim() !== asked) return place;
      place = found;
      region.setCustomValidity("");
      expect();
      return found;
    } catch (error) {
      if (region.value.trim() === asked) {
        place = undefined;
        means.textContent = (error as Error).message;
      }
      return undefined;
    }
  }

  let typing = 0;
  region.oninput = () => {
    clearTimeout(typing);
    typing = window.setTimeout(() => {
      void suggest();
      void find();
    }, 200);
  };
  async function suggest(): Promise<void> {
    const prefix = region.value.trim();
    if (!about?.genes || !prefix || prefix.includes(":")) return;
    try {
      const found = await getJson<{ name: string; place: string }[]>(`/api/genome/genes?prefix=${encodeURIComponent(prefix)}`);
      suggested.replaceChildren(...found.map(({ name, place }) => h("option", { value: name }, place)));
    } catch {
      // no suggestions, then
    }
  }

  /** The next or the last stretch of the same size. */
  function step(direction: number): void {
    if (!place || !about) return;
    const length = about.contigs.find(({ name }) => name === place?.contig)?.length ?? Infinity;
    const size = Math.min(place.end - place.start, about.limits.scored);
    const start = Math.max(0, Math.min(length - size, place.start + direction * size));
    region.value = placeName(place.contig, start, start + size);
    void find();
  }

  async function learn(): Promise<void> {
    const asked = chosen.value;
    try {
      const found = await getJson<About>(`/api/genome/about?genome=${asked}`);
      if (gone || chosen.value !== asked) return;
      about = found;
    } catch (error) {
      notice((error as Error).message);
      return;
    }
    if (!region.value.trim()) region.value = about.example; // else somebody was quicker
    const names = about.contigs.map(({ name, length }) => `${name} (${whole.format(length)})`).join(", ");
    contigs.textContent = `Contigs and their bases: ${names}${about.more ? ` and ${about.more} more` : ""}. Other names of them (17, NC_000017.11) do too. ` +
      (about.genes ? `${whole.format(about.genes)} genes are found by name.` : "To find genes by name, start the studio with --genes genes.bed.");
    await find();
  }

  async function score(): Promise<void> {
    const found = await find();
    if (!found || !about) {
      notice(means.textContent || "name a region or a gene");
      region.focus();
      return;
    }
    const end = Math.min(found.end, found.start + about.limits.scored);
    const asked = { ...settings(), region: placeName(found.contig, found.start, end) };
    const answer = await scoring.run<Scored>("genome.score", asked);
    if (!answer || gone) return;
    speed.score = cost(answer.known) / Math.max(0.05, answer.seconds);
    expect();
    await show(answer, asked.genome);
  }

  // The tracks.
  const holder = h("div", { className: "tracks", tabindex: 0, role: "group", "aria-label": "Tracks. Arrow keys move, plus and minus zoom, Home shows the whole region." });
  const view = h("output", { className: "soft" });
  const summary = h("p", {});
  const keys: Record<string, string> = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", Home: "all" };
  holder.addEventListener("keydown", (event) => {
    const typing = (event.composedPath()[0] as HTMLElement).tagName === "INPUT";
    if (!(event.key in keys) || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    tracks?.move(keys[event.key]);
  });
  const moves: [string, string, string][] = [["left", "◀", "Left"], ["right", "▶", "Right"], ["out", "−", "Zoom out"], ["in", "+", "Zoom in"], ["all", "All", "Whole region"]];
  const buttons = moves.map(([how, sign, name]) => h("button", { type: "button", "aria-label": name, title: name, onclick: () => tracks?.move(how) }, sign));
  const named = (from: Scored) => `${fileName(from.contig, from.start, from.end)}_${from.position}_${from.strand === "both" ? "both" : from.strand === "+" ? "forward" : "reverse"}_${from.phases}`;
  const tracksCard = h("section", { className: "card", hidden: true, "aria-labelledby": "track" },
    h("h2", { id: "track" }, "Negative log-likelihood per base"), summary,
    h("div", { className: "row" }, ...buttons, view), holder,
    h("p", { className: "soft" }, "High: the model did not expect the base. Zoomed in, the sequence's letters show. Click a bar or a feature for its numbers."),
    h("div", { className: "row" },
      h("button", { type: "button", onclick: () => scored && plain(`${named(scored)}.bedgraph`, bedGraph(scored)) }, "bedGraph"),
      h("button", { type: "button", onclick: () => scored && plain(`${fileName(scored.contig, scored.start, scored.end)}.fa`, fasta(scored.region.replace(/,/g, ""), "", scored.sequence)) }, "FASTA of the region")));

  async function show(answer: Scored, from: string): Promise<void> {
    scored = answer;
    tracksCard.hidden = runsCard.hidden = false;
    const how = `${answer.strand === "both" ? "both strands" : answer.strand === "+" ? "forward strand" : "reverse strand"}, ${answer.phases} ${answer.phases > 1 ? "phases" : "phase"}`;
    summary.textContent = `${answer.region}: ${answer.mean.toFixed(4)} nats per base over ${whole.format(answer.known)} bases (${how}, ${answer.position}; ${duration(answer.seconds)})`;
    threshold.value = quantile(answer.nats, 0.95).toFixed(1);
    const middle = Math.floor((answer.start + answer.end) / 2);
    const wide = Math.min(30, answer.end - answer.start);
    mutated.value = placeName(answer.contig, middle - Math.floor(wide / 2), middle - Math.floor(wide / 2) + wide);
    expectMutations();
    try {
      const genes = await getJson<Feature[]>(`/api/genome/features?genome=${from}&region=${encodeURIComponent(answer.region)}`);
      if (gone) return;
      tracks?.close();
      tracks = await Tracks.open(holder, answer, genes, (start, end) => (view.textContent = `${placeName(answer.contig, start, end)}, ${whole.format(end - start)} bases in view`));
      if (gone) tracks.close();
    } catch (error) {
      notice((error as Error).message);
    }
    mark();
  }

  // What is above the threshold.
  const threshold = h("input", { type: "number", step: 0.1, value: 2 });
  const smooth = h("input", { type: "number", min: 1, max: 1001, value: 1 });
  const least = h("input", { type: "number", min: 1, max: 10000, value: 3 });
  const order = h("select", {}, h("option", { value: "start" }, "position"), h("option", { value: "length" }, "length"), h("option", { value: "mean" }, "mean"));
  const counted = h("output", {});
  const body = h("tbody", {});
  const runsCard = h("section", { className: "card", hidden: true, "aria-labelledby": "above" },
    h("h2", { id: "above" }, "Above a threshold"),
    h("div", { className: "row" },
      field("Nats per base above", threshold), field("Mean over … bases", smooth, "1: each by itself"), field("At least … bases", least), field("Sorted by", order)),
    counted,
    h("div", { className: "scroll runs", tabindex: 0, role: "group", "aria-label": "Runs above the threshold" },
      h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "Place"), ...["Bases", "Mean", "Highest"].map((name) => h("th", { className: "number" }, name)))), body)),
    h("div", { className: "row" },
      h("button", { type: "button", onclick: () => scored && plain(`${named(scored)}_above_${threshold.value}.bed`, bed(scored.contig, runs)) }, "BED"),
      h("small", { className: "soft" }, "Name: mean nats; score: hundreds of a nat")));
  function mark(): void {
    if (!scored || threshold.value === "") return;
    const { contig } = scored;
    runs = runsAbove(scored, +threshold.value, Math.max(1, +least.value), Math.max(1, +smooth.value));
    const by: Record<string, (a: Run, b: Run) => number> = {
      start: (a, b) => a.start - b.start,
      length: (a, b) => b.end - b.start - (a.end - a.start),
      mean: (a, b) => b.mean - a.mean,
    };
    const bases = runs.reduce((sum, run) => sum + run.end - run.start, 0);
    counted.textContent = `${whole.format(runs.length)} runs, ${whole.format(bases)} bases, ${((100 * bases) / scored.known).toFixed(1)} % of the region` +
      (runs.length > ROWS ? `; the first ${ROWS} are listed, the file has all` : "");
    body.replaceChildren(...[...runs].sort(by[order.value]).slice(0, ROWS).map((run) =>
      h("tr", {},
        h("td", {}, h("button", { type: "button", className: "link", onclick: () => visit(run) }, placeName(contig, run.start, run.end))),
        ...[String(run.end - run.start), run.mean.toFixed(3), run.most.toFixed(3)].map((value) => h("td", { className: "number" }, value)))));
    tracks?.mark(runs, +threshold.value);
  }
  function visit(run: Run): void {
    const around = Math.max(40, run.end - run.start);
    tracks?.go(run.start - around, run.end + around);
    tracksCard.scrollIntoView({ block: "nearest" });
  }
  let marking = 0;
  for (const control of [threshold, smooth, least, order]) {
    control.oninput = () => {
      clearTimeout(marking);
      marking = window.setTimeout(mark, 150);
    };
  }

  // Mutations.
  const mutated = h("input", { type: "text", size: 34, spellcheck: false, required: true, placeholder: "chr17:43,044,295-43,044,324" });
  const length = () => state.models.find(({ id }) => id === model.value)?.length ?? 1000;
  const reads = h("select", {});
  const mutating = new Task("Mutate", "bases");
  const expected = h("output", { className: "soft" });
  const map = h("div", {});
  let heat: HeatMap | undefined;
  const mutationTokens = (bases: number) => bases * 4 * +reads.value * passes();
  function expectMutations(): void {
    const span = /:([\d,]+)-([\d,]+)\s*$/.exec(mutated.value)?.slice(1).map((text) => +text.replace(/,/g, ""));
    const bases = span ? span[1] - span[0] + 1 : 0;
    expected.textContent = bases > 0 ? `${whole.format(bases)} bases, about ${duration(mutationTokens(bases) / speed.mutate)}; strand and phases as above` : "";
  }
  mutated.oninput = reads.onchange = expectMutations;
  function offerWindows(): void {
    const most = length();
    const sizes = [...new Set([250, 500, most].map((size) => Math.min(size, most)))];
    reads.replaceChildren(...sizes.map((size) => h("option", { value: size }, `${size} tokens${size === most ? ", as trained" : ""}`)));
    expectMutations();
  }
  async function mutate(): Promise<void> {
    try {
      const found = await getJson<Place>(`/api/genome/place?genome=${chosen.value}&text=${encodeURIComponent(mutated.value.trim())}`);
      const most = about?.limits.mutated ?? 60;
      if (found.end - found.start > most) throw new Error(`${found.region} has ${whole.format(found.end - found.start)} bases: at most ${most} are mutated at once, name fewer`);
      if (mutating.button.disabled) return; // asked twice at once
      const drawn = new HeatMap(found.contig, found.start, found.end - found.start);
      map.replaceChildren(drawn.root);
      download.hidden = true;
      const asked = { ...settings(), region: found.region, window: +reads.value };
      const answer = await mutating.run<Mutated>("genome.mutate", asked, ((column: Column) => drawn.add(column)) as (data: never) => void);
      if (!answer) return;
      heat = drawn;
      speed.mutate = mutationTokens(answer.columns.length) / Math.max(0.05, answer.seconds);
      download.hidden = false;
      download.onclick = () =>
        plain(`${fileName(answer.contig, answer.start, answer.end)}_mutations.tsv`, heat?.tsv(
          `delta: log P(alt) - log P(ref), nats; model ${answer.position}, strand ${answer.strand}, phases ${answer.phases}, window ${answer.window} tokens`) ?? "");
    } catch (error) {
      notice((error as Error).message);
    }
  }
  const download = h("button", { type: "button", hidden: true }, "TSV");
  const mutationCard = h("section", { className: "card", "aria-labelledby": "mutations" },
    h("h2", { id: "mutations" }, "In-silico mutagenesis"),
    h("p", { className: "soft" }, "Each base of a window becomes each other one; what that changes of the log-likelihood from there on, as seqpope score --vcf has it."),
    h("form", { className: "fields", onsubmit: (event: Event) => {
      event.preventDefault();
      void mutate();
    } },
      h("div", { className: "row" }, field("Window", mutated),
        h("button", { type: "button", onclick: () => {
          if (!tracks || !scored) return notice("score a region first");
          const [start, end] = tracks.view;
          const wide = Math.min(about?.limits.mutated ?? 60, end - start);
          const from = Math.floor((start + end - wide) / 2);
          mutated.value = placeName(scored.contig, from, from + wide);
          expectMutations();
        } }, "Middle of the view"),
        field("Read around it", reads)),
      mutating.root, expected),
    map, h("div", { className: "row" }, download));

  const contigs = h("p", { className: "soft" });
  const regionCard = h("section", { className: "card", "aria-labelledby": "region" },
    h("h2", { id: "region" }, "Region"),
    h("form", { className: "fields", onsubmit: (event: Event) => {
      event.preventDefault();
      void score();
    } },
      h("div", { className: "row" }, field("Genome", chosen), field("Model", model),
        field("Region or gene", region),
        h("button", { type: "button", "aria-label": "The stretch before", title: "The stretch before", onclick: () => step(-1) }, "◀"),
        h("button", { type: "button", "aria-label": "The stretch behind", title: "The stretch behind", onclick: () => step(1) }, "▶"),
        field("Strand", strand), field("Phases", phases)),
      means, scoring.root),
    suggested, h("details", {}, h("summary", {}, "What is in this genome"), contigs));
  const drawing = continuation(() => ({ model: model.value, genome: chosen.value, region: place?.region ?? "" }), true, DRAWN);

  chosen.onchange = () => {
    region.value = "";
    void learn();
  };
  strand.onchange = phases.onchange = expect;
  model.onchange = () => {
    offerWindows();
    expect();
  };
  offerWindows();
  root.append(regionCard, tracksCard, runsCard, mutationCard, drawing.root);
  void learn();
  return () => {
    gone = true;
    scoring.cancel();
    mutating.cancel();
    drawing.leave();
    tracks?.close();
  };
}
