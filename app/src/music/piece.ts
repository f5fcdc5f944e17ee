// A piece as the page holds it: four pitches a sixteenth, what each cost the model, and what it was before.
import { Undoable } from "../sound/history";
import type { Sound, Source } from "../sound/source";
import type { Origin } from "../sound/take";
import { USUAL_VELOCITY } from "../sound/tones";

export const VOICES = ["soprano", "alto", "tenor", "bass"] as const;
export const BAR = 16;
export const BEAT = 4;
export const SILENCE = -1;
export const PLACES = [-0.35, 0.3, -0.15, 0.15]; // of the voices, left to right
const CUSHION = 8; // steps that must be there before playing goes on behind what has been written

/** Steps of a sixteenth, each with four pitches, soprano first. */
export type Grid = number[][];
/** Nats of each of them; null where no model was asked. */
export type Nats = (number | null)[][];

export interface Note {
  voice: number;
  pitch: number;
  from: number;
  /** The first step behind it. */
  to: number;
}

export function placeName(step: number): string {
  const within = step % BAR;
  const part = within % BEAT;
  return `bar ${Math.floor(step / BAR) + 1}, beat ${Math.floor(within / BEAT) + 1}${part ? ` and ${part}/4` : ""}`;
}

export function silentBars(bars: number): Grid {
  return Array.from({ length: bars * BAR }, () => [SILENCE, SILENCE, SILENCE, SILENCE]);
}

/** Where no model was asked. */
export function unknown(steps: number): Nats {
  return Array.from({ length: steps }, () => [null, null, null, null]);
}

/** The note or rest of a voice that a step belongs to: equal pitches side by side are one. */
export function noteAt(grid: Grid, step: number, voice: number): Note {
  const pitch = grid[step][voice];
  let from = step;
  let to = step + 1;
  while (from > 0 && grid[from - 1][voice] === pitch) from--;
  while (to < grid.length && grid[to][voice] === pitch) to++;
  return { voice, pitch, from, to };
}

export function notesOf(grid: Grid): Note[] {
  const found: Note[] = [];
  for (let voice = 0; voice < VOICES.length; voice++) {
    for (let step = 0; step < grid.length; ) {
      let to = step + 1;
      const pitch = grid[step][voice];
      while (to < grid.length && grid[to][voice] === pitch) to++;
      if (pitch >= 0) found.push({ voice, pitch, from: step, to });
      step = to;
    }
  }
  return found;
}

interface Version {
  grid: Grid;
  nats: Nats;
  origin: Origin;
}

export class Piece extends Undoable<Version> implements Source {
  grid: Grid = [];
  nats: Nats = [];
  origin: Origin = { model: null, seed: null };
  /** False while steps are still to come. */
  whole = true;
  readonly grain = 1;
  readonly cushion = CUSHION;

  get length(): number {
    return this.grid.length;
  }

  get empty(): boolean {
    return this.grid.length === 0;
  }

  begin(place: number): number {
    return Math.floor(place);
  }

  /** Equal pitches side by side are one note, so that only another pitch than a voice has now is struck. */
  sounds(from: number, to: number, sounding: (key: number) => number): Sound[] {
    const found: Sound[] = [];
    const pitches = VOICES.map((_, voice) => sounding(voice));
    for (let step = from; step < to; step++) {
      this.grid[step].forEach((pitch, voice) => {
        if (pitch === pitches[voice]) return;
        pitches[voice] = pitch;
        found.push({ at: step, key: voice, pitch, velocity: USUAL_VELOCITY, pan: PLACES[voice] });
      });
    }
    return found;
  }

  /** Rows are never changed in place, so that a version is a copy of the list alone. */
  protected get version(): Version {
    return { grid: [...this.grid], nats: [...this.nats], origin: this.origin };
  }

  replace(grid: Grid, nats: Nats = unknown(grid.length)): void {
    this.grid = grid;
    this.nats = nats;
    this.changed();
  }

  add(step: number[], nats: number[]): void {
    this.grid.push(step);
    this.nats.push(nats);
    this.changed();
  }

  /** One voice's pitch in some steps. All nats are void then: each is given all that was before it. */
  paint(from: number, to: number, voice: number, pitch: number): void {
    const grid = [...this.grid];
    for (let step = Math.max(0, from); step < Math.min(to, grid.length); step++) {
      grid[step] = grid[step].map((old, other) => (other === voice ? pitch : old));
    }
    if (this.origin.model) this.origin = { ...this.origin, note: "changed by hand" };
    this.replace(grid);
  }

  protected show(version: Version): void {
    this.origin = version.origin;
    this.replace(version.grid, version.nats);
  }

  /** Nats of a whole note; null where one of its steps is not known. */
  cost({ voice, from, to }: Note): number | null {
    let sum = 0;
    for (let step = from; step < to; step++) {
      const value = this.nats[step]?.[voice] ?? null;
      if (value === null) return null;
      sum += value;
    }
    return sum;
  }

  get mean(): { nats: number; tokens: number } | null {
    const known = this.nats.flat().filter((value) => value !== null);
    return known.length ? { nats: known.reduce((sum, value) => sum + value, 0) / known.length, tokens: known.length } : null;
  }

  get scored(): boolean {
    return this.grid.length > 0 && this.nats.every((row) => row.every((value) => value !== null));
  }
}
