// Engraved by the server; pictures, so that nothing in them can run. The bar that is played is marked upon them.
import { post } from "../api";
import { h } from "../dom";
import { BAR, type Grid } from "./piece";

/** A bar's place on a page, in shares of the page. */
interface Place {
  page: HTMLElement;
  left: number;
  top: number;
  width: number;
  height: number;
}

export class Score {
  readonly root = h("div", { className: "score", tabIndex: 0, role: "region", "aria-label": "Engraved score" });
  private shown: Grid | null = null; // or asked for
  private engraved: Grid | null = null;
  private urls: string[] = [];
  private bars: Place[] = [];
  private bar = -1;
  private readonly mark = h("div", { className: "score-bar", "aria-hidden": "true" });

  /** `seek` is given the first step of a bar that was clicked on. */
  constructor(seek: (step: number) => void) {
    this.root.addEventListener("click", (event) => {
      const page = (event.target as HTMLElement).closest<HTMLElement>(".score-page");
      if (!page) return;
      const box = page.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      const bar = this.bars.findIndex((one) => one.page === page && x >= one.left && x < one.left + one.width && y >= one.top && y < one.top + one.height);
      if (bar >= 0) seek(bar * BAR);
    });
  }

  /** Engraves a piece, unless it is the one that is shown. */
  async show(grid: Grid, tempo: number): Promise<void> {
    if (grid === this.shown) return;
    this.shown = grid;
    this.root.setAttribute("aria-busy", "true");
    let text: string;
    try {
      text = await (await post("/api/music/convert", { grid, tempo, format: "svg", title: "" })).text();
    } catch (error) {
      if (this.shown === grid) this.clear(); // what was engraved before is not this piece, and it may be tried again
      throw error;
    } finally {
      this.root.removeAttribute("aria-busy");
    }
    if (this.shown !== grid) return; // another came meanwhile
    this.clear();
    this.shown = this.engraved = grid;
    // Pages follow each other; only an outermost svg says its version.
    for (const page of text.split(/(?=<svg [^>]*version=)/)) {
      const url = URL.createObjectURL(new Blob([page], { type: "image/svg+xml" }));
      this.urls.push(url);
      const image = h("img", { src: url, alt: `Page ${this.urls.length} of the engraved score` });
      const place = h("div", { className: "score-page" }, image);
      this.bars.push(...barsOf(page, place));
      this.root.append(place);
    }
  }

  /** Marks the bar of a step that is played, and keeps it in sight; null marks none. Another piece's is not marked. */
  at(step: number | null, grid: Grid): void {
    const bar = step === null || grid !== this.engraved ? -1 : Math.floor(step / BAR);
    if (bar === this.bar) return;
    this.bar = bar;
    const place = this.bars[bar];
    if (!place) return this.mark.remove();
    Object.assign(this.mark.style, { left: percent(place.left), top: percent(place.top), width: percent(place.width), height: percent(place.height) });
    place.page.append(this.mark);
    const box = this.mark.getBoundingClientRect(), sheet = this.root.getBoundingClientRect();
    if (box.top < sheet.top || box.bottom > sheet.bottom) this.root.scrollTop += box.top - sheet.top - 12;
    if (box.left < sheet.left || box.right > sheet.right) this.root.scrollLeft += box.left - sheet.left - 12;
  }

  clear(): void {
    this.shown = this.engraved = null;
    this.bars = [];
    this.bar = -1;
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls = [];
    this.root.replaceChildren();
  }
}

const percent = (share: number) => `${(100 * share).toFixed(3)}%`;

/** Where the bars of an engraved page are: its staff lines say so. The page is read, never put into this one. */
function barsOf(svg: string, page: HTMLElement): Place[] {
  const sheet = new DOMParser().parseFromString(svg, "image/svg+xml");
  const numbers = (text: string | null | undefined) => (text?.match(/-?[\d.]+/g) ?? []).map(Number);
  const [, , width, height] = numbers(sheet.querySelector("svg.definition-scale")?.getAttribute("viewBox"));
  const [right = 0, down = 0] = numbers(sheet.querySelector("g.page-margin")?.getAttribute("transform"));
  if (!width || !height) return [];
  return [...sheet.querySelectorAll("g.measure")].map((measure) => {
    const lines = [...measure.querySelectorAll(":scope > g.staff > path")].map((path) => numbers(path.getAttribute("d")));
    const left = Math.min(...lines.map(([x]) => x)), end = Math.max(...lines.map(([, , x]) => x));
    const top = Math.min(...lines.map(([, y]) => y)), bottom = Math.max(...lines.map(([, y]) => y));
    return { page, left: (left + right) / width, top: (top + down) / height, width: (end - left) / width, height: (bottom - top) / height };
  });
}
