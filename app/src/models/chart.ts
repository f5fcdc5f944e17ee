// Lines over steps or positions, as SVG: values by pointer and by keyboard, and as a table.
import { h } from "../dom";

export interface Line { group: string; label: string; colour: string; x: number[]; y: number[]; faint?: boolean; dots?: boolean }
export interface Rule { label: string; value: number }
export interface Drawn {
  x: string; y: string; lines: Line[]; rules?: Rule[];
  /** "learned" cuts what is more than four times the lowest value, as the report's figure does. */
  scale?: "learned" | "whole" | "log";
  doubling?: boolean; digits?: number;
}
const LEFT = 52, RIGHT = 22, TOP = 10, BOTTOM = 40, MOST_ROWS = 200;

function s(name: string, attributes: Record<string, string | number>, ...children: (Node | string)[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

/** Round numbers from low to high. */
function ticks(low: number, high: number, about: number): number[] {
  const raw = (high - low) / Math.max(1, about), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw) ?? raw;
  const found: number[] = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9 && found.length < 50; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}

function powers(low: number, high: number, base: number, most: number): number[] {
  const first = Math.ceil(Math.log(low) / Math.log(base) - 1e-9), last = Math.floor(Math.log(high) / Math.log(base) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / most));
  const found: number[] = [];
  for (let n = first; n <= last; n += every) found.push(base ** n);
  return found.length > 1 ? found : ticks(low, high, most);
}

const short = (value: number): string => (Math.abs(value) >= 10_000 ? `${Number((value / 1000).toPrecision(6))}k` : String(Number(value.toPrecision(6))));

/** The point of a sorted list that is nearest. */
function nearest(list: number[], value: number): number {
  let low = 0, high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - list[low - 1] < list[low] - value ? low - 1 : low;
}

export class Chart {
  readonly element: HTMLElement;
  private drawn: Drawn = { x: "", y: "", lines: [] };
  private readonly plot: HTMLElement;
  private readonly told = h("output", { className: "told" });
  private readonly legend = h("ul", { className: "legend" });
  private readonly table = h("details", { className: "values" }, h("summary", {}, "Values as a table"));
  private readonly watch = new ResizeObserver(() => this.draw());
  private at: { line: number; point: number } | null = null;
  private place: { x: (value: number) => number; y: (value: number) => number; bottom: number } | null = null;
  private cursor: SVGElement | null = null;

  constructor(title: string) {
    this.plot = h("div", {
      className: "plot", tabindex: "0", role: "application", "aria-roledescription": "chart",
      "aria-label": `${title}. Left and right arrows go along a line, up and down to another line.`,
    });
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.go(null));
    this.plot.addEventListener("blur", () => this.go(null));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.told.setAttribute("aria-live", "polite");
    this.element = h("figure", { className: "chart" }, h("figcaption", {}, title), this.legend, this.plot, this.told, this.table);
    this.watch.observe(this.plot);
  }

  show(drawn: Drawn): void {
    this.drawn = drawn;
    if (this.at && !(this.at.point < (drawn.lines[this.at.line]?.x.length ?? 0))) this.at = null;
    this.draw();
    this.fillTable();
  }

  close(): void {
    this.watch.disconnect();
  }

  private draw(): void {
    const { lines, rules = [], scale = "whole", doubling } = this.drawn;
    const width = Math.max(240, this.plot.clientWidth || 600), height = Math.round(Math.min(420, Math.max(240, width * 0.5)));
    const full = lines.filter((line) => line.x.length > 0);
    this.fillLegend(full);
    this.place = null;
    if (!full.length) {
      this.plot.replaceChildren(h("p", { className: "soft" }, "Nothing to draw yet."));
      this.tell();
      return;
    }
    const xs = full.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const ys = full.flatMap((line) => line.y);
    let low = ys.reduce((a, b) => Math.min(a, b)), high = ys.reduce((a, b) => Math.max(a, b));
    const logarithmic = scale === "log" && low > 0;
    if (scale === "learned" && low > 0) high = Math.min(high, low * 4);
    if (!logarithmic) [low, high] = [low - 0.06 * (high - low), high + 0.04 * (high - low)];
    if (!(high > low)) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
    let first = Math.min(...xs), last = Math.max(...xs);
    if (doubling) first = Math.max(1, first);
    if (last <= first) last = first + 1;
    const across = doubling ? Math.log : (value: number) => value;
    const up = logarithmic ? Math.log : (value: number) => value;
    const right = width - RIGHT, bottom = height - BOTTOM;
    const x = (value: number) => LEFT + ((across(Math.max(value, first)) - across(first)) / (across(last) - across(first))) * (right - LEFT);
    const y = (value: number) => bottom - ((up(value) - up(low)) / (up(high) - up(low))) * (bottom - TOP);
    this.place = { x, y, bottom };
    const clip = `clip-${Math.random().toString(36).slice(2)}`;
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    svg.append(s("clipPath", { id: clip }, s("rect", { x: LEFT, y: TOP, width: right - LEFT, height: bottom - TOP })));
    for (const value of logarithmic ? powers(low, high, 2, 6) : ticks(low, high, 5)) {
      svg.append(
        s("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
        s("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)),
      );
    }
    for (const value of doubling ? powers(first, last, 2, width / 60) : ticks(first, last, width / 110)) {
      svg.append(
        s("line", { class: "tick", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }),
        s("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, short(value)),
      );
    }
    svg.append(
      s("line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom }),
      s("text", { x: (LEFT + right) / 2, y: height - 5, "text-anchor": "middle", class: "name" }, this.drawn.x),
      s("text", { x: 12, y: (TOP + bottom) / 2, "text-anchor": "middle", class: "name", transform: `rotate(-90 12 ${(TOP + bottom) / 2})` }, this.drawn.y),
    );
    let free = Infinity;
    for (const rule of rules.filter((one) => one.value > low && one.value < high).sort((a, b) => a.value - b.value)) {
      const level = y(rule.value);
      svg.append(s("line", { class: "rule", x1: LEFT, x2: right, y1: level, y2: level }));
      if (free - level < 13) continue; // names upon each other: the table of means has them all
      svg.append(s("text", { x: right - 2, y: level - 3, "text-anchor": "end", class: "rule" }, rule.label));
      free = level;
    }
    const body = s("g", { "clip-path": `url(#${clip})` });
    for (const line of [...full].sort((a, b) => Number(b.faint ?? false) - Number(a.faint ?? false))) {
      const path = line.x.map((step, i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(line.y[i]).toFixed(1)}`).join("");
      body.append(s("path", { d: path, class: line.faint ? "faint" : "line", style: `stroke:${line.colour}` }));
      if (line.dots && line.x.length <= 60) {
        for (const [i, step] of line.x.entries()) body.append(s("circle", { cx: x(step), cy: y(line.y[i]), r: 2.5, style: `fill:${line.colour}` }));
      }
    }
    this.cursor = s("g", { class: "cursor" });
    svg.append(body, this.cursor);
    this.plot.replaceChildren(svg);
    this.tell();
  }

  private fillLegend(lines: Line[]): void {
    const groups = new Map<string, Line & { number: number }>();
    for (const line of lines) {
      const known = groups.get(line.group);
      if (known) known.number++;
      else groups.set(line.group, { ...line, number: 1 });
    }
    this.legend.replaceChildren(
      ...[...groups.values()].map((line) =>
        h("li", {}, h("span", { className: line.faint ? "mark faint" : line.dots ? "mark dots" : "mark", style: `color:${line.colour}` }), `${line.group}, ${line.number} ${line.number > 1 ? "seeds" : "seed"}`),
      ),
    );
  }

  private go(at: { line: number; point: number } | null): void {
    this.at = at;
    this.tell();
  }

  private tell(): void {
    const line = this.at && this.drawn.lines[this.at.line];
    this.cursor?.replaceChildren();
    if (!this.at || !line || !this.place) {
      this.told.textContent = "Point at a line, or use the arrow keys in the chart.";
      this.told.classList.add("soft");
      return;
    }
    const [step, value] = [line.x[this.at.point], line.y[this.at.point]];
    const x = this.place.x(step), y = Math.max(TOP, this.place.y(value));
    this.cursor?.append(
      s("line", { x1: x, x2: x, y1: TOP, y2: this.place.bottom }),
      s("circle", { cx: x, cy: y, r: 5, style: `fill:${line.colour}` }),
    );
    this.told.classList.remove("soft");
    this.told.textContent = `${line.label}: ${value.toFixed(this.drawn.digits ?? 4)} ${this.drawn.y} at ${this.drawn.x.split(" (")[0]} ${Math.round(step).toLocaleString("en-US")}`;
  }

  private key(event: KeyboardEvent): void {
    const lines = this.drawn.lines, filled = [...lines.keys()].filter((i) => lines[i].x.length);
    if (!filled.length) return;
    const at = this.at ?? { line: filled[0], point: -1 };
    const length = lines[at.line].x.length;
    const along: Record<string, number> = { ArrowLeft: at.point - 1, ArrowRight: at.point + 1, PageUp: at.point - 10, PageDown: at.point + 10, Home: 0, End: length - 1 };
    if (event.key in along) this.go({ line: at.line, point: Math.min(length - 1, Math.max(0, along[event.key])) });
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const next = filled[(filled.indexOf(at.line) + (event.key === "ArrowUp" ? filled.length - 1 : 1)) % filled.length];
      this.go({ line: next, point: nearest(lines[next].x, lines[at.line].x[Math.max(0, at.point)]) });
    } else if (event.key === "Escape") this.go(null);
    else return;
    event.preventDefault();
  }

  private point(event: PointerEvent): void {
    if (!this.place) return;
    const box = this.plot.getBoundingClientRect(), mouse = [event.clientX - box.left, event.clientY - box.top];
    let best: { line: number; point: number } | null = null, distance = 40 ** 2;
    for (const [number, line] of this.drawn.lines.entries()) {
      for (let i = 0; i < line.x.length; i++) {
        const apart = (this.place.x(line.x[i]) - mouse[0]) ** 2 + (this.place.y(line.y[i]) - mouse[1]) ** 2;
        if (apart < distance) [best, distance] = [{ line: number, point: i }, apart];
      }
    }
    this.go(best);
  }

  private fillTable(): void {
    for (const old of [...this.table.children].slice(1)) old.remove();
    if (!this.table.open) return;
    const { lines, digits = 4 } = this.drawn;
    let steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const all = steps.length;
    if (all > MOST_ROWS) steps = Array.from({ length: MOST_ROWS }, (_, i) => steps[Math.round((i * (all - 1)) / (MOST_ROWS - 1))]);
    const maps = lines.map((line) => new Map(line.x.map((step, i) => [step, line.y[i]])));
    const scroll = h("div", { className: "scroll tall", tabindex: "0", role: "region", "aria-label": "Values" },
      h("table", {},
        h("thead", {}, h("tr", {}, h("th", { className: "number", scope: "col" }, this.drawn.x), ...lines.map((line) => h("th", { className: "number", scope: "col" }, line.label)))),
        h("tbody", {}, ...steps.map((step) => h("tr", {}, h("th", { className: "number", scope: "row" }, Math.round(step).toLocaleString("en-US")), ...maps.map((map) => h("td", { className: "number" }, map.has(step) ? map.get(step)!.toFixed(digits) : ""))))),
      ));
    this.table.append(...(all > MOST_ROWS ? [h("p", { className: "soft" }, `${MOST_ROWS} of ${all.toLocaleString("en-US")} rows, evenly spread; in ${this.drawn.y}.`)] : [h("p", { className: "soft" }, `In ${this.drawn.y}.`)]), scroll);
  }
}
