// A piece as the page holds it: four pitches a sixteenth, what each cost the model, and what it was before.
import type { Model } from "../api";

export const VOICES = ["soprano", "alto", "tenor", "bass"] as const;
export const BAR = 16;
export const BEAT = 4;
export const SILENCE = -1;
export const LOWEST = 21;
export const HIGHEST = 108;

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

const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];

export function pitchName(pitch: number): string {
  return pitch < 0 ? "rest" : `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
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

/** Who wrote a piece, and from which seed; null where it was drawn or uploaded. */
export interface Origin {
  model: Model | null;
  seed: number | null;
  /** What of it the model did not write. */
  note?: string;
}

interface Version {
  grid: Grid;
  nats: Nats;
  origin: Origin;
}

const MOST_VERSIONS = 100;

export class Piece {
  grid: Grid = [];
  nats: Nats = [];
  origin: Origin = { model: null, seed: null };
  /** False while steps are still to come. */
  whole = true;
  private past: Version[] = [];
  private future: Version[] = [];

  constructor(private readonly changed: () => void) {}

  /** Rows are never changed in place, so that a version is a copy of the list alone. */
  remember(): void {
    this.past.push({ grid: [...this.grid], nats: [...this.nats], origin: this.origin });
    if (this.past.length > MOST_VERSIONS) this.past.shift();
    this.future = [];
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

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  undo(): void {
    this.step(this.past, this.future);
  }

  redo(): void {
    this.step(this.future, this.past);
  }

  /** What was remembered last is there again, and what came instead is not kept. */
  takeBack(): void {
    this.undo();
    this.future.pop();
    this.changed();
  }

  private step(source: Version[], target: Version[]): void {
    const version = source.pop();
    if (!version) return;
    target.push({ grid: this.grid, nats: this.nats, origin: this.origin });
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

  /** Mean nats of the tokens that are known, and how many they are. */
  get mean(): { nats: number; tokens: number } | null {
    const known = this.nats.flat().filter((value) => value !== null);
    return known.length ? { nats: known.reduce((sum, value) => sum + value, 0) / known.length, tokens: known.length } : null;
  }

  get scored(): boolean {
    return this.grid.length > 0 && this.nats.every((row) => row.every((value) => value !== null));
  }
}
