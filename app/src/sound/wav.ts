// Music as a WAV file, of the tones and in the room that the page plays it with, only faster than it sounds.
import { Reverb } from "./reverb";
import { echo, limiter } from "./room";
import type { Sound, Source } from "./source";
import { envelope, type Instrument, loudness, RATE, type Tone, tone } from "./tones";

const TAIL_SECONDS = 2; // for the room to die away
const PEAK = 0.89; // -1 dBFS
const BEFORE = RATE; // samples before a section, for what limits it to be as it is then
const BREATH = 25; // milliseconds of work, then whoever uses the page has a turn

interface Mixed {
  tone: Tone;
  loud: number;
  pan: number;
  from: number;
  /** When its key is let go of. */
  to: number;
}

/** `pace` is how many seconds a unit of the source takes. */
export async function toWav(source: Source, pace: number, instrument: Instrument): Promise<Blob> {
  const { length } = source; // it may be changed meanwhile
  const all = await mixedOf(source.sounds(0, length, () => -1), length, pace, instrument);
  const { attack, release } = envelope(instrument);
  const total = Math.ceil((length * pace + TAIL_SECONDS) * RATE);
  const sections: Section[] = [];
  const pause = breathing();
  const reverb = new Reverb(echo(RATE));
  let before: Float32Array[] = [new Float32Array(0), new Float32Array(0)];
  // Section by section, so that long music needs little memory.
  for (let begin = 0; begin < total; begin += reverb.stride) {
    const sides = [0, 1].map(() => new Float32Array(Math.min(reverb.stride, total - begin)));
    const end = begin + sides[0].length;
    for (const note of all) {
      if (note.from * RATE >= end || (note.to + 2.5 * release) * RATE <= begin) continue;
      mix(sides, note, begin, attack, release);
      await pause();
    }
    reverb.add(sides);
    await pause();
    sections.push(rounded(await limited(before, sides), before[0].length));
    before = sides.map((side) => side.slice(-BEFORE));
    await pause();
  }
  return encoded(sections);
}

/** Both one after the other, as the loudspeaker's limiter has them. */
function limited(before: Float32Array[], sides: Float32Array[]): Promise<AudioBuffer> {
  const context = new OfflineAudioContext(2, before[0].length + sides[0].length, RATE);
  const sound = context.createBuffer(2, context.length, RATE);
  sides.forEach((side, index) => {
    sound.getChannelData(index).set(before[index]);
    sound.getChannelData(index).set(side, before[index].length);
  });
  const player = context.createBufferSource();
  player.buffer = sound;
  player.connect(limiter(context)).connect(context.destination);
  player.start();
  return context.startRendering();
}

/** When and how each sound is to be mixed: an end that is not told is its key's next sound. */
async function mixedOf(sounds: Sound[], length: number, pace: number, instrument: Instrument): Promise<Mixed[]> {
  const all: Mixed[] = [];
  const sounding = new Map<number, Mixed>();
  const pause = breathing();
  for (const { at, key, pitch, velocity, pan, end = length } of sounds) {
    const before = sounding.get(key);
    if (before) before.to = Math.min(before.to, at * pace);
    sounding.delete(key);
    if (pitch < 0) continue;
    const made: Mixed = { tone: tone(instrument, pitch, velocity), loud: loudness(instrument, pitch, velocity), pan, from: at * pace, to: end * pace };
    sounding.set(key, made);
    all.push(made);
    await pause();
  }
  return all;
}

/** Gives the page a turn whenever enough time has gone by. */
function breathing(): () => Promise<void> | void {
  let last = performance.now();
  return () => {
    if (performance.now() - last < BREATH) return;
    return new Promise((resolve) => setTimeout(resolve)).then(() => void (last = performance.now()));
  };
}

function mix(sides: Float32Array[], note: Mixed, first: number, attack: number, release: number): void {
  const { sound, loops, speed } = note.tone;
  const samples = sound.getChannelData(0);
  const begin = Math.round(note.from * RATE);
  const rising = Math.round(attack * RATE);
  const letGo = Math.max(Math.round(note.to * RATE) - begin, rising);
  const step = (sound.sampleRate * speed) / RATE;
  const lasts = loops ? Infinity : Math.floor((samples.length - 2) / step);
  const until = Math.min(letGo + Math.round(2.5 * release * RATE), lasts, first + sides[0].length - begin);
  const toLeft = note.loud * Math.cos(((note.pan + 1) * Math.PI) / 4);
  const toRight = note.loud * Math.sin(((note.pan + 1) * Math.PI) / 4);
  const fading = Math.exp(-3 / (release * RATE));
  const cycle = samples.length - 1;
  let index = Math.max(0, first - begin);
  while (index < until) {
    const wrapped = loops ? index - (index % cycle) + cycle : Infinity;
    const end = Math.min(until, wrapped, index < rising ? rising : index < letGo ? letGo : Infinity);
    const place = (loops ? index % cycle : index) * step;
    const at = begin + index - first;
    if (index >= rising && index < letGo) add(sides, at, end - index, samples, place, step, toLeft, toRight);
    else if (index < rising) fade(sides, at, end - index, samples, place, step, toLeft, toRight, index / rising, 1 / rising, 1);
    else fade(sides, at, end - index, samples, place, step, toLeft, toRight, fading ** (index - letGo), 0, fading);
    index = end;
  }
}

// The inner loops, with nothing in them that is not needed for every sample.

function add([left, right]: Float32Array[], at: number, count: number, samples: Float32Array, place: number, step: number, toLeft: number, toRight: number): void {
  for (const last = at + count; at < last; at++, place += step) {
    const before = place | 0;
    const value = samples[before] + (samples[before + 1] - samples[before]) * (place - before);
    left[at] += toLeft * value;
    right[at] += toRight * value;
  }
}

/** The same while it gets louder or fades. */
function fade([left, right]: Float32Array[], at: number, count: number, samples: Float32Array, place: number, step: number, toLeft: number, toRight: number, level: number, more: number, factor: number): void {
  for (const last = at + count; at < last; at++, place += step) {
    const before = place | 0;
    const value = level * (samples[before] + (samples[before + 1] - samples[before]) * (place - before));
    left[at] += toLeft * value;
    right[at] += toRight * value;
    level = level * factor + more;
  }
}

interface Section {
  samples: Int16Array<ArrayBuffer>;
  /** What the highest of its samples is. */
  peak: number;
}

function rounded(sound: AudioBuffer, from: number): Section {
  const channels = [sound.getChannelData(0).subarray(from), sound.getChannelData(1).subarray(from)];
  let peak = 1e-9;
  for (const channel of channels) for (const value of channel) peak = Math.max(peak, Math.abs(value));
  const samples = new Int16Array(channels[0].length * 2);
  for (let index = 0; index < channels[0].length; index++) {
    samples[2 * index] = Math.round((channels[0][index] / peak) * 32767);
    samples[2 * index + 1] = Math.round((channels[1][index] / peak) * 32767);
  }
  return { samples, peak };
}

function encoded(sections: Section[]): Blob {
  const peak = Math.max(...sections.map((section) => section.peak));
  let size = 0;
  for (const section of sections) {
    const scale = (PEAK * section.peak) / peak;
    for (let index = 0; index < section.samples.length; index++) section.samples[index] = Math.round(section.samples[index] * scale);
    size += section.samples.byteLength;
  }
  const head = new DataView(new ArrayBuffer(44));
  const word = (at: number, text: string) => [...text].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  word(0, "RIFF");
  head.setUint32(4, 36 + size, true);
  word(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 2, true);
  head.setUint32(24, RATE, true);
  head.setUint32(28, RATE * 4, true);
  head.setUint16(32, 4, true);
  head.setUint16(34, 16, true);
  word(36, "data");
  head.setUint32(40, size, true);
  return new Blob([head, ...sections.map((section) => section.samples)], { type: "audio/wav" });
}
