// The region in igv.js: NLL a base, what is above the threshold, the sequence, genes. igv.js asks the network for
// nothing: the sequence is given as a data address and all features by objects of this page.
import { h } from "../dom";
import { whole, type Run, type Scored } from "./numbers";

export interface Feature {
  start: number;
  end: number;
  name: string;
  strand: string;
}

type Igv = any; // it comes without types

let library: Promise<Igv> | undefined;

/** igv.js, loaded when it is first needed. */
function igv(): Promise<Igv> {
  library ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/igv.js" });
    script.onload = () => resolve((window as unknown as { igv: Igv }).igv);
    script.onerror = () => {
      library = undefined;
      reject(new Error("igv.js, which draws the tracks, cannot be loaded: is the studio still running?"));
    };
    document.head.append(script);
  });
  return library;
}

/** Hands igv.js a bar a pixel (else seams between bars would show) of the bases that begin in it, or a bar a base. */
class Values {
  windowFunctions = ["mean", "max", "min"];
  constructor(private readonly scored: Scored) {}
  supportsWholeGenome(): boolean {
    return false;
  }
  async getFeatures(asked: { chr: string; start: number; end: number; bpPerPixel?: number; windowFunction?: string }): Promise<object[]> {
    const { contig, start: first, end: last, nats } = this.scored;
    if (asked.chr !== contig) return [];
    const size = Math.max(1, asked.bpPerPixel || 1);
    const start = size === 1 ? Math.floor(asked.start) : asked.start;
    const bars = [];
    for (let bin = Math.max(0, Math.floor((first - start) / size)); ; bin++) {
      const from = start + bin * size;
      const begin = Math.max(Math.ceil(from), first);
      const stop = Math.min(Math.ceil(from + size), last);
      if (from >= asked.end || begin >= last) break;
      const known = nats.slice(begin - first, Math.max(begin, stop) - first).filter((value): value is number => value !== null);
      if (!known.length) continue;
      const how = asked.windowFunction === "max" || asked.windowFunction === "min" ? asked.windowFunction : "mean";
      const value = how === "mean" ? known.reduce((a, b) => a + b, 0) / known.length : Math[how](...known);
      const name = size > 1 ? `${how} of ${known.length} bases from ${whole.format(begin + 1)} on` : undefined;
      bars.push({ chr: contig, start: from, end: from + size, value, name });
    }
    return bars;
  }
}

/** One region's tracks. */
export class Tracks {
  private constructor(
    private readonly browser: Igv,
    private readonly root: HTMLElement,
    readonly scored: Scored,
  ) {}

  private above = ""; // name of the track of runs
  private marked: Promise<void> = Promise.resolve();

  /** Draws them into `root`, in place of what was there. */
  static async open(root: HTMLElement, scored: Scored, genes: Feature[], moved: (start: number, end: number) => void): Promise<Tracks> {
    const drawn = await igv();
    const { contig, start, end } = scored;
    const text = `>${contig}:${start + 1}-${end} @len=${scored.length}\n${scored.sequence}\n`;
    const holder = h("div", { className: "igv" });
    root.replaceChildren(holder);
    const browser = await drawn.createBrowser(holder, {
      reference: { id: contig, name: "", indexed: false, wholeGenomeView: false, fastaURL: `data:text/plain;base64,${btoa(text)}` },
      locus: `${contig}:${start + 1}-${end}`,
      loadDefaultGenomes: false, queryParametersSupported: false, search: false, minimumBases: 20,
      showIdeogram: false, showChromosomeWidget: false, showSVGButton: false, showMultiSelectButton: false,
      showROITableButton: false, showSampleNameButton: false, showTrackDragHandles: false,
      showCenterGuideButton: false, showTrackLabelButton: false, showCursorTrackingGuideButton: true,
      tracks: [
        { type: "wig", name: "NLL, nats per base", color: "#0072b2", height: 110, autoscale: true, summarize: false, order: 1, featureSource: new Values(scored) },
        ...(genes.length
          ? [{ type: "annotation", name: "genes", color: "#5f5f8f", displayMode: "EXPANDED", maxHeight: 150, autoHeight: true, order: 3, features: genes.map((gene) => ({ chr: contig, ...gene })) }]
          : []),
      ],
    });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`.igv-container { color: #000; color-scheme: light }
      .igv-track-label { opacity: 0.85 }
      @media (max-width: 45rem) {
        .igv-logo, .igv-current-genome, .igv-navbar-right-container, .igv-windowsize-panel-container { display: none !important }
      }`);
    browser.navbar.multiTrackSelectButton.setVisibility(false);
    holder.shadowRoot?.adoptedStyleSheets.push(sheet);
    const tracks = new Tracks(browser, root, scored);
    browser.on("locuschange", () => moved(...tracks.view));
    moved(...tracks.view);
    return tracks;
  }

  /** First base in view from 0, and the one behind the last. */
  get view(): [number, number] {
    const frame = this.browser.referenceFrameList[0];
    return [Math.max(this.scored.start, Math.round(frame.start)), Math.min(this.scored.end, Math.round(frame.end))];
  }

  /** Shows bases [start, end), not less than 20 and nothing beyond the region. */
  go(start: number, end: number): void {
    const { contig, start: first, end: last } = this.scored;
    const width = Math.max(20, Math.min(Math.round(end - start), last - first));
    const from = Math.max(first, Math.min(Math.round((start + end - width) / 2), last - width));
    void this.browser.goto(contig, from + 1, from + width);
  }

  move(how: string): void {
    const [a, b] = this.view;
    const size = b - a;
    const to: Record<string, [number, number]> = {
      left: [a - size / 3, b - size / 3],
      right: [a + size / 3, b + size / 3],
      in: [a + size / 4, b - size / 4],
      out: [a - size / 2, b + size / 2],
      all: [this.scored.start, this.scored.end],
    };
    this.go(...to[how]);
  }

  /** Marks runs on a track of their own, and the threshold on the scores. */
  mark(runs: Run[], threshold: number): void {
    // One after the other: a track cannot be taken away while it is still being drawn.
    this.marked = this.marked.then(() => this.draw(runs, threshold)).catch(() => undefined);
  }

  private async draw(runs: Run[], threshold: number): Promise<void> {
    const score = this.browser.trackViews.find((view: Igv) => view.track.name?.startsWith("NLL"));
    if (score) {
      score.track.config.guideLines = [{ color: "#888888", dotted: true, y: threshold }];
      score.repaintViews();
    }
    const before = this.above;
    this.above = `above ${threshold}`;
    if (before) this.browser.removeTrackByName(before);
    if (!runs.length) {
      this.above = "";
      return;
    }
    const features = runs.map(({ start, end, mean }) => ({ chr: this.scored.contig, start, end, mean: `${mean.toFixed(3)} nats` }));
    await this.browser.loadTrack({ type: "annotation", name: this.above, color: "#d55e00", displayMode: "COLLAPSED", maxHeight: 60, autoHeight: true, order: 2, features });
  }

  close(): void {
    void igv().then((drawn) => drawn.removeBrowser(this.browser));
    this.root.replaceChildren();
  }
}
