// Paired differences as the report has them: each seed, and intervals over seeds and over pieces, against 0.
import { h } from "../dom";
import { colourOf, type Difference, nameOf, signed } from "./told";

function bar(low: number, high: number, place: (value: number) => number): HTMLElement {
  return h("span", { className: "bar", style: `left:${place(low)}%;width:${Math.max(0.4, place(high) - place(low))}%` });
}

export function forest(difference: Difference, scale: number, unit: string): HTMLElement {
  const { a, b, over_seeds: seeds, over_pieces: pieces, paired } = difference;
  const heading = h("h3", {}, `${nameOf(a)} − ${nameOf(b)}`);
  if (!seeds || !pieces) return h("div", { className: "forest" }, heading, h("p", {}, difference.verdict));
  const values = [0, ...paired, seeds.mean, seeds.low ?? seeds.mean, seeds.high ?? seeds.mean, pieces.low, pieces.high];
  const reach = Math.max(...values.map(Math.abs)) * 1.1 || 1;
  const place = (value: number) => Math.min(100, Math.max(0, 50 + (50 * value) / reach));
  const dot = (value: number, label: string) => h("span", { className: "dot", style: `left:${place(value)}%`, title: label });
  const told = (value: number) => signed(value * scale);
  const interval = (low: number, high: number) => `${told(low)} to ${told(high)}`;
  const row = (name: string, text: string, ...marks: HTMLElement[]) =>
    h("div", { className: "line" }, h("span", {}, name), h("span", { className: "track", "aria-hidden": "true" }, h("span", { className: "zero" }), ...marks), h("span", { className: "number" }, text));
  return h("div", { className: "forest" }, heading,
    h("p", { className: "sides soft", "aria-hidden": "true" }, h("span", { style: `color:${colourOf(a)}` }, `← ${nameOf(a)} better`), h("span", { style: `color:${colourOf(b)}` }, `${nameOf(b)} better →`)),
    row(`Each of ${paired.length} seed${paired.length > 1 ? "s" : ""}`, paired.map(told).join(", "), ...paired.map((value, i) => dot(value, `seed ${difference.seeds[i]}: ${told(value)}`))),
    row("Mean, 95% t interval over seeds", seeds.low === null || seeds.high === null ? `${told(seeds.mean)} (one seed has no spread)` : `${told(seeds.mean)} (${interval(seeds.low, seeds.high)})`,
      ...(seeds.low === null || seeds.high === null ? [] : [bar(seeds.low, seeds.high, place)]), dot(seeds.mean, "mean")),
    row(`95% bootstrap over ${pieces.pieces ?? "the"} pieces`, interval(pieces.low, pieces.high), bar(pieces.low, pieces.high, place)),
    h("p", { className: "soft" }, `In ${unit}; below 0 ${nameOf(a)} is better.`
      + (difference.detectable === null ? "" : ` Smallest difference that so many seeds find four times in five: ${(difference.detectable * scale).toFixed(4)}.`)
      + (difference.seeds_without_twin.length ? ` Not in it, having no twin: seed ${difference.seeds_without_twin.join(", ")}.` : "")),
    h("p", { className: "verdict" }, difference.verdict));
}
