// Engraved by the server; pictures, so that nothing in them can run.
import { post } from "../api";
import { h } from "../dom";
import type { Grid } from "./piece";

export class Score {
  readonly root = h("div", { className: "score", tabIndex: 0, role: "region", "aria-label": "Engraved score" });
  private shown: Grid | null = null;
  private urls: string[] = [];

  /** Engraves a piece, unless it is the one that is shown. */
  async show(grid: Grid, tempo: number): Promise<void> {
    if (grid === this.shown) return;
    this.shown = grid;
    this.root.setAttribute("aria-busy", "true");
    let text: string;
    try {
      text = await (await post("/api/music/convert", { grid, tempo, format: "svg", title: "" })).text();
    } finally {
      this.root.removeAttribute("aria-busy");
    }
    if (this.shown !== grid) return; // another came meanwhile
    this.clear();
    this.shown = grid;
    // Pages follow each other; only an outermost svg says its version.
    for (const page of text.split(/(?=<svg [^>]*version=)/)) {
      const url = URL.createObjectURL(new Blob([page], { type: "image/svg+xml" }));
      this.urls.push(url);
      this.root.append(h("img", { src: url, alt: `Page ${this.urls.length} of the engraved score` }));
    }
  }

  clear(): void {
    this.shown = null;
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.urls = [];
    this.root.replaceChildren();
  }
}
