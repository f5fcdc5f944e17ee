// The roll of a performance: keys over seconds, the pedal below, a cursor, a marked stretch, a pencil.
import { chance, heatColour, inkOn } from "../sound/heat";
import { HIGHEST, isBlack, LOWEST, pitchName } from "../sound/pitch";
import { Sheet } from "../sound/sheet";
import { KINDS, MOST_NOTES, MOST_SECONDS, type Note, type Performance, timeName } from "./performance";

export type Mode = "look" | "mark" | "draw";
/** Which nats are shown as colours: of the whole note, or of one of KINDS. */
export type Heat = "all" | 0 | 1 | 2 | 3;

/** What all rolls of the page share. */
export interface View {
  mode: Mode;
  /** Pixels a second. */
  zoom: number;
  heat: Heat | null;
  /** Of a note that is drawn: how hard, and how many seconds unless the pencil is dragged. */
  velocity: number;
  length: number;
  /** No drawing: what is written now will take the piece's place. */
  locked: boolean;
}

export interface Told {
  seek(seconds: number): void;
  sample(pitch: number, velocity: number): void;
  /** It got the focus or a pointer. */
  active(): void;
  marked(): void;
  view(): void;
  full(): void;
}

/** Nats where the colours end. */
export const mostNats = (heat: Heat) => (heat === "all" ? 15 : 6);
export const ZOOMS = [0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320]; // pixels a second
const GUTTER = 38;
const RULER = 20;
const LANE = 16;
const ROOM = 4; // seconds behind the end, to draw in
const LEAST_KEYS = 30;
const MARGIN = 4; // keys beside those that are used
const HEIGHT = 480; // that the keys take, about
const TICKS = [0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]; // seconds
const SHORTEST = 0.05; // a note that is drawn

interface Place {
  part: "ruler" | "keys" | "pedal";
  time: number;
  pitch: number;
}

export class Roll {
  readonly sheet: Sheet;
  /** The stretch that is marked, in seconds. */
  marked: [number, number] | null = null;
  cursor = { time: 0, pitch: 60, note: -1 };
  private range = [48, 84];
  private anchor: number | null = null; // of a stretch that is marked by keys
  private pencilled: Note | null = null; // what the pointer is drawing

  constructor(private readonly piece: Performance, private readonly view: View, private readonly told: Told, label: string) {
    this.sheet = new Sheet(label, GUTTER, () => this.draw());
    this.canvas.addEventListener("pointerdown", (event) => this.press(event));
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => {
      told.active();
      this.redraw();
      this.describe();
    });
  }

  get root(): HTMLElement {
    return this.sheet.root;
  }

  get canvas(): HTMLCanvasElement {
    return this.sheet.canvas;
  }

  close(): void {
    this.sheet.close();
  }

  /** To be called when the piece has changed. */
  update(): void {
    const { notes } = this.piece;
    const chosen = notes[this.cursor.note];
    if (chosen?.[0] !== this.cursor.time || chosen[2] !== this.cursor.pitch) this.cursor.note = -1;
    let [low, high] = [HIGHEST, LOWEST];
    for (const [, , pitch] of notes) {
      low = Math.min(low, pitch);
      high = Math.max(high, pitch);
    }
    if (!notes.length) [low, high] = [48 + MARGIN, 84 - MARGIN];
    const drawing = this.view.mode === "draw"; // under a pencil no key moves away
    const beside = drawing ? MARGIN : Math.max(MARGIN, (LEAST_KEYS - (high - low)) >> 1);
    [low, high] = [Math.max(LOWEST, low - beside), Math.min(HIGHEST, high + beside)];
    this.range = drawing ? [Math.min(low, this.range[0]), Math.max(high, this.range[1])] : [low, high];
    if (this.marked && this.piece.whole && this.marked[0] >= this.end) this.clearMarks();
    this.redraw();
  }

  redraw(): void {
    this.sheet.redraw();
  }

  /** Shows where playing is; `follow` keeps it in sight. */
  at(seconds: number, follow: boolean): void {
    this.sheet.at(this.piece.empty ? null : seconds * this.view.zoom, follow);
  }

  mark(from: number, to: number): void {
    const [low, high] = [Math.min(from, to), Math.max(from, to)];
    this.marked = high > low ? [Math.max(0, low), Math.min(high, this.end)] : null;
    if (this.marked && this.marked[1] <= this.marked[0]) this.marked = null;
    this.told.marked();
    this.redraw();
  }

  clearMarks(): void {
    this.marked = null;
    this.anchor = null;
    this.sheet.say("");
    this.told.marked();
    this.redraw();
  }

  /** Says what is under the cursor, to those who listen and to those who look. */
  describe(note = ""): void {
    this.sheet.say(note || this.words(this.cursor.note, this.cursor.time));
  }

  private words(number: number, time: number): string {
    const { piece, view, marked } = this;
    const drawing = view.mode === "draw" ? `; the pencil is at ${pitchName(this.cursor.pitch)}` : "";
    const within = marked && time >= marked[0] && time < marked[1] ? "; marked" : "";
    if (number < 0) return piece.empty && !drawing ? "Nothing is written yet." : `${timeName(time, 2)}${within}${drawing}`;
    const [onset, duration, pitch, velocity] = piece.notes[number];
    const nats = piece.nats[number];
    const sum = nats?.reduce((total, value) => total + value, 0) ?? 0;
    const parts = nats?.map((value, kind) => `${KINDS[kind]} ${value.toFixed(2)}`).join(", ");
    const surprise = nats ? `; ${sum.toFixed(2)} nats (${parts}), a chance of 1 in ${chance(sum)}` : "";
    return `${timeName(onset, 2)}: ${pitchName(pitch)}, velocity ${velocity}, held ${duration.toFixed(2)} s${surprise}${within}${drawing}`;
  }

  private markedWords(): string {
    return this.marked ? `Marked from ${timeName(this.marked[0], 2)} to ${timeName(this.marked[1], 2)}, ${(this.marked[1] - this.marked[0]).toFixed(2)} s` : "Nothing is marked";
  }

  // Drawing -----------------------------------------------------------------------------------------------------

  /** Behind it there is nothing; longer than what is there while more is written. */
  private get end(): number {
    return Math.max(this.piece.seconds, this.piece.length);
  }

  private get row(): number {
    return Math.min(11, Math.max(5, Math.floor(HEIGHT / (this.range[1] - this.range[0] + 1))));
  }

  private get bottom(): number {
    return RULER + (this.range[1] - this.range[0] + 1) * this.row;
  }

  private y(pitch: number): number {
    return RULER + (this.range[1] - pitch) * this.row;
  }

  private draw(): void {
    const { piece, view, sheet } = this;
    if (view.mode === "draw") this.range = [Math.min(this.range[0], this.cursor.pitch), Math.max(this.range[1], this.cursor.pitch)];
    const height = this.bottom + 4 + LANE + 2;
    const context = sheet.ready((this.end + ROOM) * view.zoom, height);
    const { width, left } = sheet;
    this.canvas.style.touchAction = view.mode === "look" ? "pan-x pan-y" : "none";
    this.canvas.style.cursor = view.mode === "draw" ? "crosshair" : "default";
    const x = (seconds: number) => GUTTER + seconds * view.zoom - left;
    const from = Math.max(0, (left - 4) / view.zoom);
    const to = (left + width - GUTTER) / view.zoom;
    sheet.clip(context, height);
    this.drawGround(context, x, from, to);
    this.drawMarked(context, x);
    this.drawNotes(context, x, from, to);
    this.drawPedal(context, x, from, to);
    this.drawCursor(context, x);
    context.restore();
    if (piece.empty && view.mode !== "draw" && piece.whole) sheet.hint(context, ["Nothing is written yet.", "Generate, open a MIDI file,", "or choose Draw."]);
    this.drawGutter(context);
  }

  private drawGround(context: CanvasRenderingContext2D, x: (seconds: number) => number, from: number, to: number): void {
    const { sheet, row, bottom, view } = this;
    context.fillStyle = sheet.colour("paper");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (isBlack(pitch)) context.fillRect(GUTTER, this.y(pitch), sheet.width, row);
    }
    context.fillStyle = sheet.colour("line");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (pitch % 12 === 0) context.fillRect(GUTTER, this.y(pitch) + row - 1, sheet.width, 1);
    }
    context.font = "12px system-ui, sans-serif";
    const tick = TICKS.find((seconds) => seconds * view.zoom > 50) ?? 600;
    for (let number = Math.floor(from / tick); number * tick <= to; number++) {
      const place = Math.round(x(number * tick));
      context.fillStyle = sheet.colour("soft");
      context.globalAlpha = 0.35;
      context.fillRect(place, 4, 1, bottom + LANE);
      context.globalAlpha = 1;
      context.fillText(timeName(number * tick, tick < 1 ? 1 : 0), place + 4, RULER / 2);
    }
  }

  private drawMarked(context: CanvasRenderingContext2D, x: (seconds: number) => number): void {
    if (!this.marked) return;
    const [left, right] = this.marked.map(x);
    context.fillStyle = this.sheet.colour("accent");
    context.globalAlpha = 0.16;
    context.fillRect(left, RULER, right - left, this.bottom - RULER + LANE + 4);
    context.globalAlpha = 1;
    context.strokeStyle = this.sheet.colour("ink");
    context.setLineDash([4, 2]);
    context.strokeRect(left + 0.5, RULER + 0.5, right - left, this.bottom - RULER + LANE + 3);
    context.setLineDash([]);
  }

  private drawNotes(context: CanvasRenderingContext2D, x: (seconds: number) => number, from: number, to: number): void {
    const { piece, view, row, sheet } = this;
    const [first, last] = piece.between(from, to);
    const plain = sheet.colour("accent");
    const most = view.heat === null ? 0 : mostNats(view.heat);
    context.font = `bold ${row - 2}px system-ui, sans-serif`;
    for (let index = first; index < last; index++) {
      const [onset, duration, pitch, velocity] = piece.notes[index];
      const left = x(onset);
      const width = Math.max(1.5, duration * view.zoom - (view.zoom > 20 ? 1 : 0));
      if (left + width < GUTTER) continue;
      const nats = view.heat === null ? null : piece.nats[index];
      const cost = nats ? (view.heat === "all" ? nats[0] + nats[1] + nats[2] + nats[3] : nats[view.heat as number]) : null;
      context.fillStyle = cost === null ? plain : heatColour(cost, most);
      context.globalAlpha = cost !== null ? 1 : view.heat !== null ? 0.2 : shade(velocity);
      context.fillRect(left, this.y(pitch), width, row - 1);
      if (cost !== null && row > 9 && width > 26) {
        context.fillStyle = inkOn(cost, most);
        context.fillText(cost.toFixed(1), left + 4, this.y(pitch) + row / 2);
      }
    }
    if (this.pencilled) {
      const [onset, duration, pitch, velocity] = this.pencilled;
      context.fillStyle = plain;
      context.globalAlpha = shade(velocity);
      context.fillRect(x(onset), this.y(pitch), Math.max(2, duration * view.zoom), row - 1);
    }
    context.globalAlpha = 1;
  }

  private drawPedal(context: CanvasRenderingContext2D, x: (seconds: number) => number, from: number, to: number): void {
    const top = this.bottom + 4;
    context.fillStyle = this.sheet.colour("line");
    context.fillRect(GUTTER, top - 2, this.sheet.width, 1);
    context.fillStyle = this.sheet.colour("tenor");
    context.globalAlpha = 0.6;
    for (const [down, up] of this.piece.pedal) {
      if (up > from && down < to) context.fillRect(x(down), top + 3, Math.max(1, (up - down) * this.view.zoom - 1), LANE - 6);
    }
    context.globalAlpha = 1;
  }

  private drawCursor(context: CanvasRenderingContext2D, x: (seconds: number) => number): void {
    if (document.activeElement !== this.canvas) return;
    const { time, pitch, note } = this.cursor;
    const { row, view, piece } = this;
    context.strokeStyle = this.sheet.colour("ink");
    context.lineWidth = 2;
    if (view.mode === "draw") context.strokeRect(x(time), this.y(pitch) - 1, Math.max(3, view.length * view.zoom), row + 1);
    else if (note >= 0) {
      const [onset, duration, key] = piece.notes[note];
      context.strokeRect(x(onset) - 1, this.y(key) - 1, Math.max(3, duration * view.zoom) + 1, row + 1);
    }
    context.lineWidth = 1;
    context.fillStyle = this.sheet.colour("ink");
    context.globalAlpha = 0.5;
    context.fillRect(Math.round(x(time)), RULER, 1, this.bottom - RULER + LANE);
    context.globalAlpha = 1;
  }

  private drawGutter(context: CanvasRenderingContext2D): void {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = this.sheet.colour("soft");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (pitch % 12 === 0) context.fillText(pitchName(pitch), 6, this.y(pitch) + this.row / 2);
    }
    context.fillText("pedal", 4, this.bottom + 4 + LANE / 2);
  }

  // Pointer -----------------------------------------------------------------------------------------------------

  private place(event: PointerEvent): Place {
    const { x, y } = this.sheet.place(event);
    const pitch = this.range[1] - Math.floor((y - RULER) / this.row);
    return {
      part: y < RULER ? "ruler" : y < this.bottom ? "keys" : "pedal",
      time: Math.min(MOST_SECONDS, Math.max(0, x / this.view.zoom)),
      pitch: Math.min(HIGHEST, Math.max(LOWEST, pitch)),
    };
  }

  /** The note at a place; fingers need not be exact, nor a mouse quite. */
  private noteAt({ part, time, pitch }: Place, touch: boolean): number {
    return part === "keys" ? this.piece.nearest(time, pitch, (touch ? 10 : 4) / this.view.zoom, touch ? 1 : 0) : -1;
  }

  private hover(event: PointerEvent): void {
    const place = this.place(event);
    const note = event.buttons ? -1 : this.noteAt(place, false);
    this.sheet.showTip(note < 0 ? null : this.words(note, place.time), event);
  }

  private press(event: PointerEvent): void {
    if (event.button !== 0 || !event.isPrimary) return; // one finger draws
    const { mode } = this.view;
    const start = this.place(event);
    const touch = event.pointerType === "touch";
    const drawing = mode === "draw" && start.part === "keys";
    const hit = this.noteAt(start, touch);
    this.told.active();
    this.canvas.focus({ preventScroll: true });
    const look = (place: Place) => {
      if (start.part === "ruler") this.told.seek(Math.min(place.time, this.end));
      else if (drawing && hit < 0) this.pencil(start, place);
      else if (!drawing && (mode === "mark" || !touch)) this.mark(start.time, place.time);
    };
    if (start.part === "ruler") look(start);
    else if (drawing && hit < 0) this.pencil(start, null);
    const end = (moved: boolean, kept: boolean) => {
      const note = this.pencilled;
      this.pencilled = null;
      this.cursor = { time: start.time, pitch: start.part === "keys" ? start.pitch : this.cursor.pitch, note: -1 };
      if (note && kept) this.write(note);
      else if (drawing && hit >= 0 && !moved && kept) this.erase(hit);
      else if (!moved && start.part === "keys" && hit >= 0) this.choose(hit);
      this.describe(moved && !drawing && this.marked && start.part !== "ruler" ? this.markedWords() : "");
      this.redraw();
    };
    this.sheet.drag(event, (next) => look(this.place(next)), (last, moved) => end(moved, last.type !== "pointercancel"));
  }

  /** A note from where the pointer was pressed to where it is. */
  private pencil(start: Place, place: Place | null): void {
    const { length, velocity, locked } = this.view;
    if (locked) return;
    if (!this.pencilled) this.told.sample(start.pitch, velocity);
    const duration = place ? Math.max(SHORTEST, place.time - start.time) : length;
    this.pencilled = [start.time, duration, start.pitch, velocity];
    this.redraw();
  }

  private write(note: Note): void {
    if (this.view.locked) return; // a model began to write under the pointer
    if (this.piece.notes.length >= MOST_NOTES) {
      this.told.full();
      return;
    }
    this.piece.remember();
    this.cursor.note = this.piece.draw(note.map((value, index) => (index < 2 ? Math.round(value * 1000) / 1000 : value)) as Note);
  }

  private erase(number: number): void {
    if (this.view.locked) return;
    this.piece.remember();
    this.piece.erase(number);
  }

  // Keys --------------------------------------------------------------------------------------------------------

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view, cursor } = this;
    const drawing = view.mode === "draw";
    const sideways = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    const upwards = event.key === "ArrowUp" ? 1 : event.key === "ArrowDown" ? -1 : 0;
    const before = cursor.time;
    const stretch = TICKS.find((seconds) => seconds * view.zoom >= 20) ?? 600;
    const screen = (0.8 * (this.sheet.width - GUTTER)) / view.zoom;
    if (sideways && event.shiftKey) this.go(cursor.time + sideways * stretch);
    else if (sideways && drawing) this.go(cursor.time + sideways * view.length);
    else if (sideways) this.step(sideways);
    else if (upwards && drawing) {
      cursor.pitch = Math.min(HIGHEST, Math.max(LOWEST, cursor.pitch + upwards));
      this.told.sample(cursor.pitch, view.velocity);
      this.go(cursor.time);
    } else if (upwards) this.climb(upwards);
    else if (event.key === "PageDown" || event.key === "PageUp") this.go(cursor.time + (event.key === "PageDown" ? screen : -screen));
    else if (event.key === "Home") this.go(0);
    else if (event.key === "End") this.go(this.end);
    else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 1 : -1);
    else if (event.key.toLowerCase() === "d") view.mode = drawing ? "look" : "draw";
    else if (event.key === "Escape") this.clearMarks();
    else if (event.key === "Enter" && !drawing) this.told.seek(cursor.time);
    else if (drawing && !view.locked && event.key === "Enter") {
      this.write([cursor.time, view.length, cursor.pitch, view.velocity]);
      this.told.sample(cursor.pitch, view.velocity);
      this.go(cursor.time + view.length);
    } else if (drawing && !view.locked && ["Delete", "Backspace"].includes(event.key)) {
      const hit = this.under();
      if (hit >= 0) this.erase(hit);
    } else return;
    event.preventDefault();
    if (sideways && event.shiftKey) {
      this.anchor ??= before;
      this.mark(this.anchor, cursor.time);
    } else if (sideways || upwards) this.anchor = null;
    this.told.view();
    this.describe(event.shiftKey ? this.markedWords() : "");
    this.redraw();
  }

  /** The note under the pencil: of this key, sounding now. */
  private under(): number {
    return this.piece.nearest(this.cursor.time, this.cursor.pitch, 0.01, 0);
  }

  private go(seconds: number): void {
    const { cursor, view } = this;
    const most = view.mode === "draw" ? Math.min(MOST_SECONDS, this.end + ROOM) : this.end;
    cursor.time = Math.round(Math.min(Math.max(0, seconds), most) * 1000) / 1000;
    cursor.note = view.mode === "draw" ? this.under() : this.piece.nearest(cursor.time, cursor.pitch, 0.01, 88);
    this.sheet.reveal(cursor.time * view.zoom);
  }

  private choose(number: number): void {
    const [onset, , pitch] = this.piece.notes[number];
    this.cursor = { time: onset, pitch, note: number };
    this.sheet.reveal(onset * this.view.zoom);
  }

  /** To the next note in time, or the one before. */
  private step(by: number): void {
    const { piece, cursor } = this;
    if (piece.empty) return;
    const from = cursor.note >= 0 ? cursor.note + by : piece.firstFrom(cursor.time) - (by < 0 ? 1 : 0);
    this.choose(Math.min(piece.notes.length - 1, Math.max(0, from)));
  }

  /** To the nearest note above or below that is struck at about the same time. */
  private climb(by: number): void {
    const { piece, cursor } = this;
    let best = -1;
    let least = Infinity;
    for (let index = piece.firstFrom(cursor.time - 1); index < piece.firstFrom(cursor.time + 1); index++) {
      const [onset, , pitch] = piece.notes[index];
      const distance = (pitch - cursor.pitch) * by + 24 * Math.abs(onset - cursor.time);
      if ((pitch - cursor.pitch) * by > 0 && distance < least) [best, least] = [index, distance];
    }
    if (best >= 0) this.choose(best);
  }

  /** As close as so many seconds allow, within what is comfortable. */
  fit(seconds: number): void {
    const width = this.sheet.width - GUTTER;
    this.view.zoom = [80, 40].find((zoom) => zoom * (seconds + ROOM) <= width) ?? 20;
    this.redraw();
  }

  /** Closer or farther, around the middle of what is in sight. */
  zoom(by: number): void {
    const { sheet, view } = this;
    const next = ZOOMS[Math.min(ZOOMS.length - 1, Math.max(0, ZOOMS.indexOf(view.zoom) + by))];
    const middle = (sheet.left + (sheet.width - GUTTER) / 2) / view.zoom;
    view.zoom = next;
    this.draw();
    sheet.left = middle * next - (sheet.width - GUTTER) / 2;
  }
}

const shade = (velocity: number) => 0.3 + (0.7 * velocity) / 127;
