// A performance as the page holds it: notes and pedal in seconds, what each note cost a model, and what was before.
import { Undoable } from "../sound/history";
import type { Sound, Source } from "../sound/source";
import type { Origin } from "../sound/take";

/** When a key was struck, how long it was held, which one, how hard. */
export type Note = [onset: number, duration: number, pitch: number, velocity: number];
/** Nats by KINDS. */
export type NoteNats = [number, number, number, number];

/** As the server has it. */
export interface Played {
  notes: Note[];
  /** When the sustain pedal went down and up. */
  pedal: [number, number][];
}

/** What of a note can surprise. */
export const KINDS = ["when", "which key", "how loud", "how long"] as const;
export const MOST_NOTES = 6000; // that the server takes
export const MOST_SECONDS = 900;
const CUSHION = 1; // seconds that must be there before playing goes on behind what has been written

export type Mean = { nats: number; tokens: number } | null;

interface Version extends Played {
  nats: (NoteNats | null)[];
  origin: Origin;
  mean: Mean;
  scored: boolean;
}

export function timeName(seconds: number, digits = 0): string {
  const rounded = Number(seconds.toFixed(digits));
  const rest = (rounded % 60).toFixed(digits);
  return `${Math.floor(rounded / 60)}:${rest.padStart(digits ? digits + 3 : 2, "0")}`;
}

/** Until when each note sounds: its key's release, or that of the pedal which is down then. */
export function soundingEnds({ notes, pedal }: Played): number[] {
  return notes.map(([onset, duration]) => {
    const release = onset + duration;
    const after = firstWhere(pedal.length, (index) => pedal[index][0] > release);
    return after ? Math.max(release, pedal[after - 1][1]) : release;
  });
}

/** The first of `count` places for which something holds that holds for all behind it; `count` if there is none. */
function firstWhere(count: number, holds: (index: number) => boolean): number {
  let [low, high] = [0, count];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

export class Performance extends Undoable<Version> implements Source, Version {
  // Never changed in place, so that a version is what was there.
  notes: Note[] = [];
  pedal: [number, number][] = [];
  nats: (NoteNats | null)[] = [];
  origin: Origin = { model: null, seed: null };
  mean: Mean = null;
  /** Whether a model was asked about all of it. */
  scored = false;
  /** False while notes are still to come. */
  whole = true;
  /** When the last note ends. */
  seconds = 0;
  readonly grain = 0.05;
  readonly cushion = CUSHION;
  private until = 0; // all notes before it are there, while others are still to come
  private ends: number[] = [];
  private reach: number[] = []; // the latest end of a note's key and of those before it

  get empty(): boolean {
    return !this.notes.length;
  }

  get length(): number {
    return this.whole ? this.seconds : this.until;
  }


  begin(place: number): number {
    return place;
  }

  sounds(from: number, to: number): Sound[] {
    const found: Sound[] = [];
    for (let index = this.firstFrom(from); index < this.notes.length && this.notes[index][0] < to; index++) {
      const [at, , pitch, velocity] = this.notes[index];
      // As one hears it who plays; in tenths, since each place has a node of its own.
      found.push({ at, key: pitch, pitch, velocity, pan: Math.round((pitch - 64) / 11) / 10, end: this.ends[index] });
    }
    return found;
  }

  /** The number of the first note from a time on. */
  firstFrom(seconds: number): number {
    return firstWhere(this.notes.length, (index) => this.notes[index][0] >= seconds);
  }

  /** Numbers of notes of which something lies between two times, from the first on to before the second. */
  between(from: number, to: number): [number, number] {
    return [firstWhere(this.notes.length, (index) => this.reach[index] > from), this.firstFrom(to)];
  }

  /** The note that is nearest to a place, so many seconds and semitones away at most; -1 if none is. */
  nearest(time: number, pitch: number, seconds: number, semitones: number): number {
    let best = -1;
    let least = Infinity;
    const [first, last] = this.between(time - seconds, time + seconds);
    for (let index = first; index < last; index++) {
      const [onset, duration, key] = this.notes[index];
      const away = Math.max(onset - time, time - onset - duration, 0);
      if (away > seconds || Math.abs(key - pitch) > semitones) continue;
      const distance = away / Math.max(seconds, 1e-6) + Math.abs(key - pitch) * 2 + (time - onset) * 1e-6;
      if (distance < least) [best, least] = [index, distance];
    }
    return best;
  }

  protected get version(): Version {
    const { notes, pedal, nats, origin, mean, scored } = this;
    return { notes, pedal, nats, origin, mean, scored };
  }

  replace({ notes, pedal }: Played, nats: (NoteNats | null)[] = notes.map(() => null), mean: Mean = null, scored = false): void {
    this.notes = notes;
    this.pedal = pedal;
    this.nats = nats;
    this.mean = mean;
    this.scored = scored;
    this.ends = soundingEnds(this);
    this.seconds = this.ends.reduce((most, end) => Math.max(most, end), 0);
    let most = 0;
    this.reach = notes.map(([onset, duration]) => (most = Math.max(most, onset + duration)));
    this.changed();
  }

  /** Opens what is still to be written. */
  open(head: Played, until: number): void {
    this.whole = false;
    this.until = until;
    this.replace(head);
  }

  /** More of it; `shortened` says onset, pitch and what they last now of notes whose keys were struck again. */
  add(notes: Note[], nats: (NoteNats | null)[], until: number, shortened: [number, number, number][] = []): void {
    const both = this.notes.map((note, index): [Note, NoteNats | null] => {
      const shorter = shortened.find(([onset, pitch]) => onset === note[0] && pitch === note[2]);
      return [shorter ? [note[0], shorter[2], note[2], note[3]] : note, this.nats[index]];
    });
    both.push(...notes.map((note, index): [Note, NoteNats | null] => [note, nats[index]]));
    both.sort(([[first]], [[second]]) => first - second);
    this.until = Math.max(this.until, until);
    this.replace({ notes: both.map(([note]) => note), pedal: this.pedal }, both.map(([, cost]) => cost));
  }

  /** All nats are void then: each was given all that was before it. */
  draw(note: Note): number {
    const place = firstWhere(this.notes.length, (index) => this.notes[index][0] > note[0]);
    this.touched();
    this.replace({ notes: [...this.notes.slice(0, place), note, ...this.notes.slice(place)], pedal: this.pedal });
    return place;
  }

  erase(number: number): void {
    this.touched();
    this.replace({ notes: this.notes.filter((_, index) => index !== number), pedal: this.pedal });
  }

  private touched(): void {
    if (this.origin.model) this.origin = { ...this.origin, note: "changed by hand" };
  }

  protected show(version: Version): void {
    this.origin = version.origin;
    this.replace(version, version.nats, version.mean, version.scored);
  }
}

/** What of a performance lies before a time; keys that are held then are let go of. */
export function opening({ notes, pedal }: Played, cut: number): Played {
  return {
    notes: notes.filter(([onset]) => onset < cut).map(([onset, duration, ...rest]) => [onset, Math.min(duration, cut - onset), ...rest]),
    pedal: pedal.filter(([down]) => down < cut).map(([down, up]) => [down, Math.min(up, cut)]),
  };
}
