// What the server tells of runs (seqpope/studio/runs.py), and how numbers are written.

export interface Curve { steps: number[]; values: number[]; of: number }
export interface Run {
  id: string; label: string; position: string | null; dataset: string | null; domain: string; seed: number | null;
  parameters: number | null; steps: number | null; step: number | null; best_step: number | null;
  validation: number | null; seconds: number | null; precision: string | null; test: number | null; split: string | null;
  tokens: number | null; units: Record<string, [number | null, number]>; baselines: Record<string, number>;
  window: number | null; device: string | null; date: string | null;
  state: "finished" | "training" | "trained" | "stopped"; left: number | null; changed: number | null;
  reading: boolean; problems: string[];
  curves?: { train: Curve; validation: Curve }; figures?: string[]; by_position?: [number, number, number | null][];
}
export interface Estimate { mean: number; n: number; sd: number | null; low: number | null; high: number | null }
export interface Interval { mean: number; low: number; high: number; pieces: number | null }
export interface Difference {
  a: string; b: string; seeds: number[]; seeds_without_twin: number[]; paired: number[]; over_seeds: Estimate | null;
  over_pieces: Interval | null; detectable: number | null; verdict: string;
}
export interface Encoding {
  seeds: number[]; nats_per_token: Estimate; units: Record<string, Estimate>; strata: Record<string, Estimate>;
  paper_protocol: Estimate | null; accuracy: Estimate | null;
}
export interface Reference {
  encoding: string; stratum: string; tokens: number; documents: number; nats_per_token: number; best: string;
  baselines: Record<string, number>; difference: Interval; verdict: string;
}
export interface Report {
  encodings: Record<string, Encoding>; differences: Difference[]; baselines: Record<string, number | null>;
  references: Reference[]; recipes_differ_in: Record<string, unknown>;
}
export interface Summary {
  id: string; label: string; dataset: string | null; runs: Run[]; problems: string[]; expected: number | null;
  changed: number; means: Record<string, Record<string, number>>;
}
export interface Experiment extends Summary { report: Report | null; text: string | null; figures: string[] }
export interface Card { id: string; title: string; rows: [string, string][]; text: string[] }

const NAMES: Record<string, string> = { pope: "PoPE", rope: "RoPE", yarn: "YaRN", "rope+yarn": "RoPE with YaRN", alibi: "ALiBi", nope: "no positions" };
const COLOURS: Record<string, string> = { pope: "var(--pope)", rope: "var(--rope)", "rope+yarn": "var(--tenor)", alibi: "var(--alto)", nope: "var(--soft)" };

export const nameOf = (position: string | null): string => (position === null ? "unknown" : NAMES[position] ?? position);
export const colourOf = (position: string | null): string => COLOURS[position ?? ""] ?? "var(--bass)";
export const count = (value: number | null): string => (value === null ? "–" : value.toLocaleString("en-US"));
export const fixed = (value: number | null | undefined, digits = 4): string => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const signed = (value: number, digits = 4): string => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

/** Seconds in words, such as "4 min". */
export function span(seconds: number): string {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86_400)} days`;
}

/** How a run stands, in words. */
export function standing(run: Run): string {
  const of = run.steps === null ? "" : ` of ${count(run.steps)}`;
  const silent = run.changed ? Date.now() / 1000 - run.changed : 0;
  if (run.state === "finished") return "finished";
  if (run.state === "training") {
    const left = run.left === null ? "" : `, about ${span(run.left)} of training left`;
    return `training: step ${count(run.step ?? 0)}${of}${left}`;
  }
  if (run.state === "trained") return `all ${count(run.steps)} steps trained, not tested yet`;
  return run.changed ? `nothing new for ${span(silent)}: stopped at step ${count(run.step ?? 0)}${of}, or slow` : "no result";
}

/** What a model's nats a token are times, to be bits a base; null where tokens are no bases. */
export function bitsPerBase(runs: Run[]): number | null {
  const one = runs.find((run) => run.units.base && run.tokens);
  return one ? one.tokens! / one.units.base[1] / Math.LN2 : null;
}
