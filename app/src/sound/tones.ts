// What the instruments sound like, as samples. Each tone is computed once, so that a note costs little to play, many at
// a time too, and a file is made of the very tones that the loudspeaker has.

export const INSTRUMENTS = { organ: "Organ", piano: "Piano", strings: "Strings" } as const;
export type Instrument = keyof typeof INSTRUMENTS;

export interface Tone {
  sound: AudioBuffer;
  /** It goes on as long as it is held, and its last sample is the first again; else it fades by itself. */
  loops: boolean;
  /** How much faster than it was made it is to be played. */
  speed: number;
}

export interface Envelope {
  attack: number;
  release: number;
}

export const RATE = 44100;
export const USUAL_VELOCITY = 80; // of music that says none

interface Timbre extends Envelope {
  loudness: number;
}

interface Held extends Timbre {
  /** Amplitudes of the harmonics, fundamental first. */
  harmonics: number[];
  /** Cents that two of them lie apart: pipes and strings are never quite in tune. */
  spread: number;
  /** Above it they are dulled. */
  cutoff(frequency: number): number;
}

const falling = (count: number, power: number) => Array.from({ length: count }, (_, index) => (index + 1) ** -power);

const HELD: Record<Exclude<Instrument, "piano">, Held> = {
  // A principal with its octave, twelfth and superoctave.
  organ: { harmonics: [1, 0.7, 0.42, 0.38, 0.1, 0.2, 0.05, 0.16, 0.02, 0.04, 0, 0.05], spread: 5, attack: 0.03, release: 0.14, loudness: 0.065, cutoff: (frequency) => frequency * 8 + 1500 },
  strings: { harmonics: falling(24, 1.05), spread: 12, attack: 0.09, release: 0.22, loudness: 0.06, cutoff: (frequency) => frequency * 4 + 900 },
};
const PIANO: Timbre = { attack: 0.002, release: 0.2, loudness: 0.18 };
const CYCLE = 4096;
const CLASSES = 5; // of velocity: within one only the loudness differs
const SEMITONES = 3; // from one struck tone to the next: those between are played faster or slower
const LONGEST = 6; // seconds of a struck tone
const AFTER = 0.18; // of a struck string's amplitude lasts longer
const BESIDE = 1.0006; // of its frequency: strings of a key are never quite in tune
const FAINT = 3e-4; // an amplitude that is not heard

const frequencyOf = (pitch: number) => 440 * 2 ** ((pitch - 69) / 12);
const kept = new Map<string, Tone>();

export function envelope(instrument: Instrument): Envelope {
  return instrument === "piano" ? PIANO : HELD[instrument];
}

/** Ears hear high tones as louder, and many harmonics of low ones. */
export function loudness(instrument: Instrument, pitch: number, velocity: number): number {
  const timbre = instrument === "piano" ? PIANO : HELD[instrument];
  return timbre.loudness * 2 ** ((60 - pitch) / 48) * (velocity / USUAL_VELOCITY) ** 1.6;
}

export function tone(instrument: Instrument, pitch: number, velocity: number): Tone {
  if (instrument !== "piano") return found(`${instrument} ${pitch}`, () => held(HELD[instrument], frequencyOf(pitch)));
  const strike = Math.min(CLASSES - 1, Math.floor((velocity * CLASSES) / 128));
  const nearest = SEMITONES * Math.round(pitch / SEMITONES);
  const made = found(`piano ${nearest} ${strike}`, () => struck(nearest, (strike + 0.5) / CLASSES));
  return { ...made, speed: 2 ** ((pitch - nearest) / 12) };
}

function found(name: string, make: () => Tone): Tone {
  let made = kept.get(name);
  if (!made) kept.set(name, (made = make()));
  return made;
}

/** Makes the tones that are likely to be asked for, one by one between other things; what it returns stops it. */
export function prepareTones(instrument: Instrument): () => void {
  const likely: [number, number][] = [];
  for (const velocity of instrument === "piano" ? [64, 90, 40] : [USUAL_VELOCITY]) {
    for (let pitch = 36; pitch <= 84; pitch += instrument === "piano" ? SEMITONES : 1) likely.push([pitch, velocity]);
  }
  const timer = setInterval(() => {
    const next = likely.shift();
    if (next) tone(instrument, ...next);
    else clearInterval(timer);
  }, 40);
  return () => clearInterval(timer);
}

/** Two of a kind, so far apart that one has a cycle more when both begin anew: the loop has no seam. */
function held({ harmonics, spread, cutoff }: Held, frequency: number): Tone {
  const cycles = Math.round(1 / (2 ** (spread / 1200) - 1));
  const low = frequency * 2 ** (-spread / 2400);
  const length = Math.round((cycles / low) * RATE);
  const sound = new AudioBuffer({ length: length + 1, sampleRate: RATE });
  const samples = sound.getChannelData(0);
  const cycle = oneCycle(harmonics, frequency, Math.min(cutoff(frequency), 16000));
  for (const turns of [cycles, cycles + 1]) {
    for (let index = 0; index < samples.length; index++) {
      const place = ((index * turns) / length % 1) * CYCLE;
      const before = Math.floor(place);
      samples[index] += cycle[before] + (cycle[before + 1] - cycle[before]) * (place - before);
    }
  }
  return { sound, loops: true, speed: 1 };
}

/** A cycle and its first value again. As loud as it is before it is dulled: its highest value is then 1. */
function oneCycle(harmonics: number[], frequency: number, cutoff: number): Float32Array {
  const heard = harmonics.filter((_, index) => (index + 1) * frequency < 0.45 * RATE);
  const sum = (amplitudes: number[]) =>
    Float32Array.from({ length: CYCLE + 1 }, (_, place) => amplitudes.reduce((total, amplitude, index) => total + amplitude * Math.sin((2 * Math.PI * (index + 1) * place) / CYCLE), 0));
  const peak = sum(heard).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const dulled = heard.map((amplitude, index) => {
    const above = ((index + 1) * frequency) / cutoff;
    return amplitude / peak / Math.hypot(1 - above ** 2, above / 1.12); // a lowpass of the second order
  });
  return sum(dulled);
}

/** A struck string: each partial fades, high ones first, the first of it quickly and a rest slowly. */
function struck(pitch: number, strength: number): Tone {
  const frequency = frequencyOf(pitch);
  const rate = pitch < 78 ? RATE / 2 : RATE; // low strings have nothing to say up there
  const fading = 0.4 + Math.max(0, 96 - pitch) / 50; // seconds
  const sound = new AudioBuffer({ length: Math.round(Math.min(LONGEST, 10 * fading) * rate), sampleRate: rate });
  const samples = sound.getChannelData(0);
  const stiffness = 0.0003 * 2 ** ((pitch - 60) / 12);
  const steepness = 2.5 - 1.35 * strength; // soft hammers excite few partials
  for (let partial = 1; partial <= 32; partial++) {
    const heard = partial * frequency * Math.sqrt(1 + stiffness * partial * partial);
    if (heard > 0.44 * rate) break;
    const amplitude = partial ** -steepness * (0.25 + 0.75 * Math.abs(Math.sin((Math.PI * partial) / 8)));
    const first = fading / (1 + 0.22 * (partial - 1)) / (1 + 0.25 * strength);
    ring(samples, rate, heard, amplitude, first);
  }
  knock(samples, rate, strength);
  settle(samples, rate);
  return { sound, loops: false, speed: 1 };
}

/**
 * Adds a sine that fades, and one beside it that fades more slowly: what resonators of two delays say to a knock, far
 * cheaper than a sine a sample; two at a time, since neither waits for the other.
 */
function ring(samples: Float32Array, rate: number, frequency: number, amplitude: number, fading: number): void {
  const first = new Resonator((1 - AFTER) * amplitude, frequency / rate, fading * rate);
  const second = new Resonator(AFTER * amplitude, (frequency * BESIDE) / rate, 3 * fading * rate);
  let [x, before, nearer, farther] = [first.now, 0, first.nearer, first.farther];
  let [y, earlier] = [second.now, 0];
  const until = Math.min(samples.length, first.until);
  for (let index = 1; index < until; index++) {
    samples[index] += x + y;
    const next = nearer * x + farther * before;
    before = x;
    x = next;
    const after = second.nearer * y + second.farther * earlier;
    earlier = y;
    y = after;
  }
  const end = Math.min(samples.length, second.until);
  for (let index = until; index < end; index++) {
    samples[index] += y;
    const after = second.nearer * y + second.farther * earlier;
    earlier = y;
    y = after;
  }
}

class Resonator {
  readonly nearer: number;
  readonly farther: number;
  readonly now: number;
  /** When nothing is heard of it. */
  readonly until: number;

  /** `turns` a sample; `fading` in samples. */
  constructor(amplitude: number, turns: number, fading: number) {
    const decay = Math.exp(-1 / fading);
    this.nearer = 2 * decay * Math.cos(2 * Math.PI * turns);
    this.farther = -decay * decay;
    this.now = amplitude * decay * Math.sin(2 * Math.PI * turns);
    this.until = Math.ceil(fading * Math.max(0, Math.log(amplitude / FAINT)));
  }
}

/** The hammer on the strings: a little dull noise; always the same, so that files are. */
function knock(samples: Float32Array, rate: number, strength: number): void {
  const count = Math.min(samples.length, Math.round(0.04 * rate));
  let seed = 7;
  let smooth = 0;
  for (let index = 0; index < count; index++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
    smooth += 0.12 * (seed / 2 ** 31 - smooth);
    samples[index] += 0.35 * strength * smooth * Math.exp((-5 * index) / count);
  }
}

/** All as loud at first, and silent at the end. */
function settle(samples: Float32Array, rate: number): void {
  const first = Math.round(0.15 * rate);
  let power = 0;
  for (let index = 0; index < first; index++) power += samples[index] ** 2;
  const scale = 0.5 / Math.sqrt(power / first);
  const last = Math.round(0.8 * samples.length);
  for (let index = 0; index < samples.length; index++) {
    samples[index] *= index < last ? scale : (scale * (samples.length - index)) / (samples.length - last);
  }
}
