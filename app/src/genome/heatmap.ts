// What each other base would change: 4 rows of bases, a column for each place of a window.
import { h } from "../dom";
import { whole } from "./numbers";

export interface Column {
  at: number; // from the window's start
  ref: string;
  delta: (number | null)[]; // nats, of A C G T; 0 of the base itself
  sd: (number | null)[];
}

const BASES = "ACGT";
const [WIDE, HIGH, LEFT, TOP] = [16, 22, 20, 22];

function svg(name: string, attributes: Record<string, string | number>, ...children: (Node | string)[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

export class HeatMap {
  readonly root: HTMLElement;
  private readonly columns: Column[] = [];
  private readonly cells: SVGElement[][] = [];
  private readonly drawing: SVGElement;
  private readonly told = h("output", { className: "told" }, "Point at a cell, or move with the arrow keys, for its numbers.");
  private readonly least = h("span", {}, "0");
  private readonly most = h("span", {}, "0");
  private place: [number, number] = [0, 0];

  constructor(private readonly contig: string, private readonly start: number, size: number) {
    this.drawing = svg("svg", {
      role: "group", "aria-label": `Change of log-likelihood for each base of ${contig} from ${whole.format(start + 1)} on`,
      width: LEFT + size * WIDE + 4, height: TOP + 4 * HIGH + 18, class: "heat",
    });
    [...BASES].forEach((base, row) => this.drawing.append(svg("text", { x: 4, y: TOP + row * HIGH + 16 }, base)));
    for (let at = 0; at < size; at += 10) {
      this.drawing.append(svg("text", { x: LEFT + at * WIDE + 2, y: TOP + 4 * HIGH + 14, class: "tick" }, whole.format(start + at + 1)));
    }
    this.drawing.addEventListener("keydown", (event) => this.key(event as KeyboardEvent));
    const legend = h("p", { className: "legend soft" },
      this.least, h("i", { className: "scale", role: "img", "aria-label": "Orange: less likely than the genome's base. Blue: likelier." }), this.most,
      " nats: log P(changed) − log P(genome); orange is less likely, blue likelier, ○ the genome's base");
    this.root = h("div", { className: "mutations" }, h("div", { className: "scroll" }, this.drawing as unknown as HTMLElement), this.told, legend);
  }

  add(column: Column): void {
    const number = this.columns.push(column) - 1;
    const x = LEFT + column.at * WIDE;
    this.drawing.append(svg("text", { x: x + 3, y: 15, class: "ref" }, column.ref));
    this.cells.push(
      [...BASES].map((base, row) => {
        const y = TOP + row * HIGH;
        const cell = svg("g", { role: "img", tabindex: number === 0 && row === 0 ? 0 : -1, "aria-label": this.words(column, row) },
          svg("rect", { x, y, width: WIDE - 1, height: HIGH - 1 }));
        if (base === column.ref) cell.append(svg("circle", { cx: x + (WIDE - 1) / 2, cy: y + (HIGH - 1) / 2, r: 3 }));
        const tell = () => (this.told.textContent = this.words(column, row));
        cell.addEventListener("pointerenter", tell);
        cell.addEventListener("focus", () => {
          this.place = [number, row];
          tell();
        });
        this.drawing.append(cell);
        return cell;
      }),
    );
    this.colour();
  }

  /** Columns as a table with tabs between, a row a change. */
  tsv(said: string): string {
    const lines = [`#${said}\n`, "contig\tposition\tref\talt\tdelta\tsd\n"];
    for (const { at, ref, delta, sd } of this.columns) {
      delta.forEach((value, row) => {
        if (BASES[row] !== ref && value !== null) {
          lines.push([this.contig, this.start + at + 1, ref, BASES[row], value, sd[row] ?? "NA"].join("\t") + "\n");
        }
      });
    }
    return lines.join("");
  }

  private colour(): void {
    const all = this.columns.flatMap(({ delta }) => delta).map((value) => Math.abs(value ?? 0));
    const most = Math.max(...all, 1e-9);
    this.least.textContent = `−${most.toFixed(2)} `;
    this.most.textContent = ` +${most.toFixed(2)}`;
    this.columns.forEach(({ delta }, number) =>
      delta.forEach((value, row) => {
        const box = this.cells[number][row].firstElementChild as SVGElement;
        box.setAttribute("class", value === null ? "unknown" : value < 0 ? "less" : "more");
        box.setAttribute("fill-opacity", value === null ? "1" : (Math.abs(value) / most).toFixed(3));
      }),
    );
  }

  private words({ at, ref, delta, sd }: Column, row: number): string {
    const where = `${this.contig}:${whole.format(this.start + at + 1)} ${ref}`;
    const value = delta[row];
    if (value === null) return `${where}: not known in this genome`;
    if (BASES[row] === ref) return `${where}: the genome's base`;
    const spread = sd[row] === null ? "" : ` (standard deviation ${(sd[row] as number).toFixed(3)})`;
    return `${where}>${BASES[row]}: ${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)} nats${spread}`;
  }

  private key(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (!step && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const [column, row] = this.place;
    const last = this.columns.length - 1;
    const to = step ? Math.max(0, Math.min(last, column + step[0])) : event.key === "Home" ? 0 : last;
    const cell = this.cells[to][Math.max(0, Math.min(3, row + (step?.[1] ?? 0)))];
    this.cells[column][row].setAttribute("tabindex", "-1");
    cell.setAttribute("tabindex", "0");
    (cell as SVGGElement).focus();
  }
}
