// The piano roll: pitches over time, a lane for each voice below it, a cursor, marks, a pencil.
import { chance, heatColour, inkOn } from "../sound/heat";
import { HIGHEST, isBlack, LOWEST, pitchName } from "../sound/pitch";
import { sentence, Sheet } from "../sound/sheet";
import { BAR, BEAT, noteAt, notesOf, type Note, type Piece, placeName, SILENCE, VOICES } from "./piece";

export type Mode = "look" | "mark" | "draw";

/** What all rolls of the page share. */
export interface View {
  mode: Mode;
  voice: number;
  /** Steps of a note that is drawn. */
  length: number;
  zoom: number;
  heat: boolean;
  /** No drawing: what is written now will take the piece's place. */
  locked: boolean;
}

export interface Told {
  seek(step: number): void;
  sample(pitch: number, voice: number): void;
  /** It got the focus or a pointer. */
  active(): void;
  marked(): void;
  view(): void;
}

export const MOST_NATS = 6; // a note, where the colours end
export const ZOOMS = [2, 3, 5, 8, 12, 18, 28]; // pixels a step
const GUTTER = 38;
const RULER = 20;
const LANE = 15;
const LANES = LANE * VOICES.length + 6;
const USUAL = [38, 79]; // pitches that are always shown

type Part = "ruler" | "pitches" | "lanes";

interface Place {
  part: Part;
  step: number;
  voice: number;
  pitch: number;
}

export class Roll {
  readonly sheet: Sheet;
  /** Which cells are marked, four a step. */
  marks = new Uint8Array(0);
  cursor = { step: 0, pitch: 67 };
  private notes: Note[] = [];
  private range = USUAL;
  private anchor: { step: number; voice: number } | null = null; // of marks made by keys

  constructor(private readonly piece: Piece, private readonly view: View, private readonly told: Told, label: string) {
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
    const cells = this.piece.grid.length * VOICES.length;
    if (this.marks.length !== cells) {
      const marks = new Uint8Array(cells);
      marks.set(this.marks.subarray(0, cells));
      this.marks = marks;
    }
    this.redraw();
  }

  redraw(): void {
    this.sheet.redraw();
  }

  /** Shows where playing is; `follow` keeps it in sight. */
  at(step: number, follow: boolean): void {
    this.sheet.at(this.piece.empty ? null : step * this.view.zoom, follow);
  }

  /** Steps from the first to behind the last marked one. */
  get markedSteps(): [number, number] | null {
    const first = this.marks.indexOf(1);
    return first < 0 ? null : [Math.floor(first / VOICES.length), Math.floor(this.marks.lastIndexOf(1) / VOICES.length) + 1];
  }

  /** The piece with what is marked left to the model. */
  get given(): (number | null)[][] {
    return this.piece.grid.map((row, step) => row.map((pitch, voice) => (this.marks[step * VOICES.length + voice] ? null : pitch)));
  }

  mark(from: number, to: number, low: number, high: number, adding = false): void {
    if (!adding) this.marks.fill(0);
    const end = Math.min(Math.ceil(to / BEAT) * BEAT, this.piece.grid.length);
    for (let step = Math.floor(from / BEAT) * BEAT; step < end; step++) {
      for (let voice = low; voice <= high; voice++) this.marks[step * VOICES.length + voice] = 1;
    }
    this.told.marked();
    this.redraw();
  }

  clearMarks(): void {
    this.marks.fill(0);
    this.anchor = null;
    this.told.marked();
    this.redraw();
  }

  invertMarks(): void {
    this.marks = this.marks.map((mark) => 1 - mark);
    this.told.marked();
    this.redraw();
  }

  /** Says what is under the cursor, to those who listen and to those who look. */
  describe(note = ""): void {
    this.sheet.say(note || this.words(this.cursor.step, this.view.voice));
  }

  private words(step: number, voice: number): string {
    const { grid } = this.piece;
    if (!grid.length) return "Nothing is written yet.";
    if (step >= grid.length) return placeName(step);
    const note = noteAt(grid, step, voice);
    const cost = this.piece.cost(note);
    const beats = (note.to - note.from) / BEAT;
    const surprise = cost === null ? "" : `; ${cost.toFixed(2)} nats${note.pitch < 0 ? "" : `, a chance of 1 in ${chance(cost)}`}`;
    const marked = this.marks[step * VOICES.length + voice] ? "; marked" : "";
    const drawing = this.view.mode === "draw" ? `; the pencil is at ${pitchName(this.cursor.pitch)}` : "";
    return `${sentence(placeName(step))}: ${VOICES[voice]} ${pitchName(note.pitch)}, ${beats} ${beats === 1 ? "beat" : "beats"}${surprise}${marked}${drawing}`;
  }

  // Drawing -----------------------------------------------------------------------------------------------------

  private get row(): number {
    return this.view.zoom >= 18 ? 14 : this.view.zoom >= 12 ? 11 : 9;
  }

  private get lanesTop(): number {
    return RULER + (this.range[1] - this.range[0] + 1) * this.row + 6;
  }

  private y(pitch: number): number {
    return RULER + (this.range[1] - pitch) * this.row;
  }

  private colour(name: string): string {
    return this.sheet.colour(name);
  }

  private draw(): void {
    const { piece, view } = this;
    this.notes = notesOf(piece.grid);
    let [low, high] = USUAL;
    for (const { pitch } of this.notes) {
      low = Math.min(low, pitch - 1);
      high = Math.max(high, pitch + 1);
    }
    this.range = [low, high];
    const { width, left } = this.sheet;
    const height = this.lanesTop + LANES;
    const context = this.sheet.ready(piece.grid.length * view.zoom + 12, height);
    this.canvas.style.touchAction = view.mode === "look" ? "pan-x pan-y" : "none";
    this.canvas.style.cursor = view.mode === "draw" ? "crosshair" : "default";
    const first = Math.max(0, Math.floor((left - 4) / view.zoom));
    const last = Math.min(piece.grid.length, Math.ceil((left + width - GUTTER) / view.zoom));
    const x = (step: number) => GUTTER + step * view.zoom - left;
    this.sheet.clip(context, height);
    this.drawGround(context, x, first, last, width);
    this.drawMarks(context, x, first, last);
    for (const note of this.notes) if (note.to > first && note.from < last) this.drawNote(context, note, x);
    this.outlineMarks(context, x, first, last);
    this.drawCursor(context, x);
    context.restore();
    if (piece.empty) this.sheet.hint(context, ["Nothing is written yet.", "Generate, open a file,", "or draw on empty bars."]);
    this.drawGutter(context);
  }

  private drawGround(context: CanvasRenderingContext2D, x: (step: number) => number, first: number, last: number, width: number): void {
    const bottom = this.lanesTop - 6;
    context.fillStyle = this.colour("paper");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (isBlack(pitch)) context.fillRect(GUTTER, this.y(pitch), width, this.row);
    }
    context.fillStyle = this.colour("line");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (pitch % 12 === 0) context.fillRect(GUTTER, this.y(pitch) + this.row - 1, width, 1);
    }
    context.font = "12px system-ui, sans-serif";
    const everyBar = [1, 2, 4, 8].find((bars) => bars * BAR * this.view.zoom > 30) ?? 16;
    for (let step = Math.floor(first / BEAT) * BEAT; step <= last; step += BEAT) {
      const bar = step % BAR === 0;
      if (!bar && this.view.zoom < 5) continue;
      context.fillStyle = this.colour(bar ? "soft" : "line");
      context.globalAlpha = bar ? 0.55 : 0.7;
      context.fillRect(Math.round(x(step)), bar ? 4 : RULER, 1, bottom + LANES);
      context.globalAlpha = 1;
      if (bar && (step / BAR) % everyBar === 0 && step < this.piece.grid.length) {
        context.fillStyle = this.colour("soft");
        context.fillText(String(step / BAR + 1), x(step) + 4, RULER / 2);
      }
    }
  }

  private drawMarks(context: CanvasRenderingContext2D, x: (step: number) => number, first: number, last: number): void {
    context.fillStyle = this.colour("accent");
    for (let step = first; step < last; step++) {
      let count = 0;
      for (let voice = 0; voice < VOICES.length; voice++) {
        if (!this.marks[step * VOICES.length + voice]) continue;
        count++;
        context.globalAlpha = 0.4;
        context.fillRect(x(step), this.lanesTop + voice * LANE, this.view.zoom, LANE);
      }
      context.globalAlpha = 0.05 * count;
      if (count) context.fillRect(x(step), RULER, this.view.zoom, this.lanesTop - 6 - RULER);
    }
    context.globalAlpha = 1;
  }

  private outlineMarks(context: CanvasRenderingContext2D, x: (step: number) => number, first: number, last: number): void {
    context.strokeStyle = this.colour("ink");
    context.setLineDash([4, 2]);
    for (let voice = 0; voice < VOICES.length; voice++) {
      for (let step = first; step < last; step++) {
        const from = step;
        while (step < last && this.marks[step * VOICES.length + voice]) step++;
        if (step > from) context.strokeRect(x(from) + 0.5, this.lanesTop + voice * LANE + 1.5, (step - from) * this.view.zoom - 1, LANE - 3);
      }
    }
    context.setLineDash([]);
  }

  private drawNote(context: CanvasRenderingContext2D, note: Note, x: (step: number) => number): void {
    const { row } = this;
    const left = x(note.from);
    const width = Math.max(1, x(note.to) - left - (this.view.zoom > 3 ? 1 : 0));
    const top = this.y(note.pitch);
    const voice = this.colour(VOICES[note.voice]);
    const cost = this.view.heat ? this.piece.cost(note) : null;
    const lane = this.lanesTop + note.voice * LANE;
    context.fillStyle = cost === null ? voice : heatColour(cost, MOST_NATS);
    context.globalAlpha = this.view.heat && cost === null ? 0.25 : 1;
    context.fillRect(left, top, width, row - 1);
    context.fillRect(left, lane + 3, width, LANE - 6);
    context.globalAlpha = 1;
    if (this.view.heat) {
      context.fillStyle = voice; // whose note it is, at its beginning
      context.fillRect(left, top, Math.min(3, width), row - 1);
      context.fillRect(left, lane + 3, Math.min(3, width), LANE - 6);
    }
    if (this.marks[note.from * VOICES.length + note.voice]) {
      context.strokeStyle = this.colour("ink");
      context.strokeRect(left + 0.5, top + 0.5, Math.max(1, width - 1), row - 2);
    }
    if (row > 9 && width > 2 * row) {
      context.font = `bold ${row - 3}px system-ui, sans-serif`;
      context.fillStyle = cost === null ? this.colour("on-accent") : inkOn(cost, MOST_NATS);
      context.fillText(cost === null ? VOICES[note.voice][0].toUpperCase() : cost.toFixed(1), left + 5, top + row / 2);
    }
  }

  private drawCursor(context: CanvasRenderingContext2D, x: (step: number) => number): void {
    const { step, pitch } = this.cursor;
    if (document.activeElement !== this.canvas || step >= this.piece.grid.length) return;
    context.strokeStyle = this.colour("ink");
    context.lineWidth = 2;
    context.strokeRect(x(step), this.lanesTop + this.view.voice * LANE + 1, this.view.zoom, LANE - 2);
    const sung = this.piece.grid[step][this.view.voice];
    const shown = this.view.mode === "draw" ? pitch : sung;
    const steps = this.view.mode === "draw" ? this.view.length : 1;
    if (shown >= 0) context.strokeRect(x(step), this.y(shown) - 1, this.view.zoom * steps, this.row + 1);
    context.lineWidth = 1;
  }

  private drawGutter(context: CanvasRenderingContext2D): void {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = this.colour("soft");
    for (let pitch = this.range[0]; pitch <= this.range[1]; pitch++) {
      if (pitch % 12 === 0) context.fillText(pitchName(pitch), 6, this.y(pitch) + this.row / 2);
    }
    VOICES.forEach((name, voice) => {
      context.font = voice === this.view.voice ? "bold 11px system-ui, sans-serif" : "11px system-ui, sans-serif";
      context.fillStyle = this.colour(name);
      context.fillText(`${voice === this.view.voice ? "▸" : " "}${name[0].toUpperCase()}`, 8, this.lanesTop + voice * LANE + LANE / 2);
    });
  }

  // Pointer -----------------------------------------------------------------------------------------------------

  private place(event: PointerEvent): Place {
    const { x, y } = this.sheet.place(event);
    const step = Math.floor(x / this.view.zoom);
    const voice = Math.min(VOICES.length - 1, Math.max(0, Math.floor((y - this.lanesTop) / LANE)));
    const pitch = this.range[1] - Math.floor((y - RULER) / this.row);
    return {
      part: y < RULER ? "ruler" : y < this.lanesTop - 3 ? "pitches" : "lanes",
      step: Math.min(Math.max(0, step), Math.max(0, this.piece.grid.length - 1)),
      voice,
      pitch: Math.min(HIGHEST, Math.max(LOWEST, pitch)),
    };
  }

  /** The voice that sounds nearest to a place, within three semitones. */
  private nearest({ step, pitch }: Place): number | null {
    let best: number | null = null;
    let distance = 4;
    this.piece.grid[step]?.forEach((sung, voice) => {
      if (sung >= 0 && Math.abs(sung - pitch) < distance) {
        distance = Math.abs(sung - pitch);
        best = voice;
      }
    });
    return best;
  }

  private hover(event: PointerEvent): void {
    const place = this.place(event);
    const voice = place.part === "lanes" ? place.voice : place.part === "pitches" ? this.nearest(place) : null;
    const told = voice !== null && this.piece.grid.length && event.buttons === 0;
    this.sheet.showTip(told ? this.words(place.step, voice) : null, event);
  }

  private press(event: PointerEvent): void {
    if (event.button !== 0 || !event.isPrimary || !this.piece.grid.length) return; // one finger draws
    const { mode, locked } = this.view;
    const start = this.place(event);
    if (mode === "draw" && start.part === "pitches" && locked) return;
    const touch = event.pointerType === "touch";
    let moved = false;
    const act = (place: Place) => {
      if (start.part === "ruler") this.told.seek(place.step);
      else if (mode === "draw" && start.part === "pitches") this.pencil(place, start);
      else if ((mode === "mark" || !touch) && moved) {
        const lanes = start.part === "lanes";
        const [from, to] = [Math.min(start.step, place.step), Math.max(start.step, place.step) + 1];
        const low = lanes ? Math.min(start.voice, place.voice) : 0;
        const high = lanes ? Math.max(start.voice, place.voice) : VOICES.length - 1;
        this.mark(from, to, low, high, adding);
      }
    };
    const adding = event.ctrlKey || event.shiftKey || event.metaKey;
    this.told.active();
    this.canvas.focus({ preventScroll: true });
    if (mode === "draw" && start.part === "pitches") {
      this.piece.remember();
      this.erasing = this.piece.grid[start.step][this.view.voice] === start.pitch;
    }
    if (start.part === "ruler" || mode === "draw") act(start);
    const end = () => {
      if (!moved && start.part !== "ruler" && mode !== "draw") {
        if (mode === "mark") this.mark(start.step, start.step + 1, start.part === "lanes" ? start.voice : 0, start.part === "lanes" ? start.voice : 3, adding);
        this.view.voice = start.part === "lanes" ? start.voice : (this.nearest(start) ?? this.view.voice);
        this.told.view();
      }
      this.cursor = { step: start.step, pitch: start.pitch };
      this.describe();
      this.redraw();
    };
    const move = (next: PointerEvent) => {
      moved = true;
      act(this.place(next));
    };
    this.sheet.drag(event, move, end);
  }

  private erasing = false;

  private pencil(place: Place, start: Place): void {
    const { length, voice, locked } = this.view;
    if (locked) return; // a model began to write under the pointer
    const from = Math.floor(place.step / length) * length;
    const pitch = this.erasing ? SILENCE : place.pitch;
    if (this.piece.grid[place.step][voice] === pitch) return;
    if (this.erasing && this.piece.grid[place.step][voice] !== start.pitch) return;
    this.piece.paint(from, from + length, voice, pitch);
    if (pitch >= 0) this.told.sample(pitch, voice);
  }

  // Keys --------------------------------------------------------------------------------------------------------

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view, piece, cursor } = this;
    const drawing = view.mode === "draw";
    const stride = drawing ? view.length : view.zoom < 5 ? BEAT : 1;
    const sideways = event.key === "ArrowLeft" ? -1 : event.key === "ArrowRight" ? 1 : 0;
    const upwards = event.key === "ArrowUp" ? 1 : event.key === "ArrowDown" ? -1 : 0;
    const before = { step: cursor.step, voice: view.voice };
    if (sideways) this.go(cursor.step + sideways * (event.shiftKey ? BEAT : stride));
    else if (event.key === "PageDown") this.go(cursor.step + BAR);
    else if (event.key === "PageUp") this.go(cursor.step - BAR);
    else if (event.key === "Home") this.go(0);
    else if (event.key === "End") this.go(piece.grid.length - 1);
    else if (upwards && drawing && !event.shiftKey) {
      cursor.pitch = Math.min(HIGHEST, Math.max(LOWEST, cursor.pitch + upwards));
      this.told.sample(cursor.pitch, view.voice);
    } else if (upwards) view.voice = Math.min(VOICES.length - 1, Math.max(0, view.voice - upwards));
    else if ("1234".includes(event.key)) view.voice = Number(event.key) - 1;
    else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 1 : -1);
    else if (event.key.toLowerCase() === "d") view.mode = drawing ? "look" : "draw";
    else if (event.key === "Escape") this.clearMarks();
    else if (event.key === "Enter" && !drawing) this.told.seek(cursor.step);
    else if (drawing && piece.grid.length && !view.locked && ["Enter", "Delete", "Backspace"].includes(event.key)) {
      const pitch = event.key === "Enter" ? cursor.pitch : SILENCE;
      piece.remember();
      piece.paint(cursor.step, cursor.step + view.length, view.voice, pitch);
      if (pitch >= 0) this.told.sample(pitch, view.voice);
      this.go(cursor.step + view.length);
    } else return;
    event.preventDefault();
    if (event.shiftKey && (sideways || upwards)) {
      this.anchor ??= before;
      const { step, voice } = this.anchor;
      const low = Math.min(voice, view.voice);
      const to = Math.max(step, cursor.step) + (step === cursor.step ? 1 : 0);
      this.mark(Math.min(step, cursor.step), to, low, Math.max(voice, view.voice));
    } else if (sideways || upwards) this.anchor = null;
    this.told.view();
    this.describe();
    this.redraw();
  }

  private go(step: number): void {
    this.cursor.step = Math.min(Math.max(0, step), Math.max(0, this.piece.grid.length - 1));
    this.sheet.reveal(this.cursor.step * this.view.zoom);
  }

  /** As close as so many steps allow, within what is comfortable. */
  fit(steps: number): void {
    const width = this.sheet.width - GUTTER - 12;
    this.view.zoom = [18, 12].find((zoom) => zoom * steps <= width) ?? 8;
    this.redraw();
  }

  /** Closer or farther, around the middle of what is in sight. */
  zoom(by: number): void {
    const place = ZOOMS.indexOf(this.view.zoom);
    const next = ZOOMS[Math.min(ZOOMS.length - 1, Math.max(0, place + by))];
    const middle = (this.sheet.left + this.sheet.width / 2 - GUTTER) / this.view.zoom;
    this.view.zoom = next;
    this.draw();
    this.sheet.left = middle * next + GUTTER - this.sheet.width / 2;
  }
}
