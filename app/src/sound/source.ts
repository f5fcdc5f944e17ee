// What can be played: music that may still be growing, in units of its own (steps of a sixteenth, or seconds).

export interface Sound {
  /** When it begins. */
  at: number;
  /** What can sound but once: a voice, a string. Its next sound ends this one. */
  key: number;
  /** Below 0: the key falls silent. */
  pitch: number;
  velocity: number;
  /** From -1, left, to 1. */
  pan: number;
  /** When it ends, where its key's next sound does not end it before. */
  end?: number;
}

export interface Source {
  /** How far it goes, so far. */
  readonly length: number;
  /** Whether nothing more is to come. */
  readonly whole: boolean;
  /** How much is handed to the audio clock at once. */
  readonly grain: number;
  /** How much must be there before playing goes on behind what has been written. */
  readonly cushion: number;
  /** Where playing can begin, at a place or before it. */
  begin(place: number): number;
  /** What happens from one place to before another, in order; `sounding` says which pitch a key has now. */
  sounds(from: number, to: number, sounding: (key: number) => number): Sound[];
}

export const NOTHING: Source = { length: 0, whole: true, grain: 1, cushion: 1, begin: () => 0, sounds: () => [] };
