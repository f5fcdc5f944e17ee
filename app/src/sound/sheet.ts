// What piano rolls are drawn on: a canvas that stays in sight while a wider box scrolls, a playhead, a tip, a readout.
import { h } from "../dom";

export class Sheet {
  readonly root: HTMLElement;
  readonly canvas: HTMLCanvasElement;
  private readonly scroller: HTMLElement;
  private readonly wide: HTMLElement;
  private readonly head: HTMLElement;
  private readonly tip: HTMLElement;
  private readonly readout: HTMLOutputElement;
  private readonly probe = h("span", { hidden: true });
  private readonly watching: ResizeObserver;
  private readonly dark = matchMedia("(prefers-color-scheme: dark)");
  private readonly colours = new Map<string, string>();
  private frame = 0;

  /** `gutter` are the pixels at the left that do not scroll; `draw` is called at the next frame after `redraw`. */
  constructor(label: string, readonly gutter: number, private readonly draw: () => void) {
    this.canvas = h("canvas", { tabIndex: 0, role: "application", "aria-label": `Piano roll, ${label}`, "aria-describedby": "roll-help" });
    this.head = h("div", { className: "playhead", "aria-hidden": "true" });
    this.wide = h("div", { className: "roll-wide" }, this.canvas, this.head);
    this.scroller = h("div", { className: "roll-scroll", onscroll: () => this.redraw() }, this.wide);
    this.tip = h("div", { className: "roll-tip", hidden: true, "aria-hidden": "true" });
    this.readout = h("output", { className: "roll-readout soft", "aria-live": "polite" });
    this.root = h("div", { className: "roll" }, this.scroller, this.tip, this.readout, this.probe);
    this.watching = new ResizeObserver(() => this.redraw());
    this.watching.observe(this.scroller);
    this.dark.addEventListener("change", this.recolour);
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("blur", this.redraw);
  }

  close(): void {
    this.watching.disconnect();
    this.dark.removeEventListener("change", this.recolour);
    cancelAnimationFrame(this.frame);
  }

  /** Draws at the next frame, however often it is asked to. */
  readonly redraw = (): void => {
    if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.draw();
      });
    }
  };

  private readonly recolour = (): void => {
    this.colours.clear();
    this.redraw();
  };

  get left(): number {
    return this.scroller.scrollLeft;
  }

  set left(pixels: number) {
    this.scroller.scrollLeft = pixels;
  }

  /** Of what is in sight, the gutter too. */
  get width(): number {
    return this.scroller.clientWidth;
  }

  /** A clean canvas for a picture so wide, of which a part is in sight, and so high. */
  ready(width: number, height: number): CanvasRenderingContext2D {
    const seen = this.width;
    this.wide.style.width = `${Math.max(seen, this.gutter + width)}px`;
    this.head.style.height = `${height}px`;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(seen * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(seen * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = `${seen}px`;
      this.canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d") as CanvasRenderingContext2D;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, seen, height);
    context.textBaseline = "middle";
    return context;
  }

  /** Lets nothing be drawn into the gutter until the context is restored. */
  clip(context: CanvasRenderingContext2D, height: number): void {
    context.save();
    context.beginPath();
    context.rect(this.gutter, 0, this.width - this.gutter, height);
    context.clip();
  }

  /** Words where there is nothing to draw. */
  hint(context: CanvasRenderingContext2D, lines: string[]): void {
    context.textAlign = "center";
    context.font = "15px system-ui, sans-serif";
    context.fillStyle = this.colour("soft");
    lines.forEach((line, index) => context.fillText(line, this.width / 2, 120 + 24 * index));
    context.textAlign = "start";
  }

  /** A colour of the style sheet's; asked once, since every question has the browser compute styles. */
  colour(name: string): string {
    let colour = this.colours.get(name);
    if (!colour) {
      this.probe.style.color = `var(--${name})`;
      colour = getComputedStyle(this.probe).color;
      this.colours.set(name, colour);
    }
    return colour;
  }

  /** Shows where playing is, so many pixels behind the gutter; `follow` keeps it in sight, none hides it. */
  at(pixels: number | null, follow: boolean): void {
    this.head.hidden = pixels === null;
    if (pixels === null) return;
    const x = this.gutter + pixels;
    this.head.style.transform = `translateX(${x}px)`;
    if (follow && (x > this.left + this.width - 20 || x < this.left + this.gutter)) this.left = x - this.gutter - 40;
  }

  /** Has a place in sight, so many pixels behind the gutter. */
  reveal(pixels: number): void {
    const x = this.gutter + pixels;
    if (x < this.left + this.gutter || x > this.left + this.width - 30) this.left = x - this.width / 2;
  }

  /** Words beside the pointer; none hides them. */
  showTip(text: string | null, event: PointerEvent): void {
    this.tip.hidden = !text;
    if (!text) return;
    this.tip.textContent = text;
    const box = this.root.getBoundingClientRect();
    const x = Math.min(event.clientX - box.left + 14, Math.max(0, box.width - this.tip.offsetWidth - 4));
    this.tip.style.transform = `translate(${x}px, ${event.clientY - box.top + 18}px)`;
  }

  /** Says what is under the cursor, to those who listen and to those who look. */
  say(text: string): void {
    this.readout.value = text;
  }

  /** Where a pointer is: pixels behind the gutter, from the start of the picture, and from its top. */
  place(event: PointerEvent): { x: number; y: number } {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left - this.gutter + this.left, y: event.clientY - box.top };
  }

  /** Follows a pointer that was pressed until it is let go of; `moved` from the first four pixels on. */
  drag(event: PointerEvent, move: (next: PointerEvent) => void, end: (last: PointerEvent, moved: boolean) => void): void {
    let moved = false;
    this.canvas.setPointerCapture(event.pointerId);
    const moving = (next: PointerEvent) => {
      if (next.pointerId !== event.pointerId) return;
      moved ||= Math.abs(next.clientX - event.clientX) + Math.abs(next.clientY - event.clientY) > 4;
      if (moved) move(next);
    };
    const ending = (last: PointerEvent) => {
      if (last.pointerId !== event.pointerId) return;
      this.canvas.removeEventListener("pointermove", moving);
      this.canvas.removeEventListener("pointerup", ending);
      this.canvas.removeEventListener("pointercancel", ending);
      end(last, moved);
    };
    this.canvas.addEventListener("pointermove", moving);
    this.canvas.addEventListener("pointerup", ending);
    this.canvas.addEventListener("pointercancel", ending);
  }
}

export function sentence(text: string): string {
  return text[0].toUpperCase() + text.slice(1);
}
