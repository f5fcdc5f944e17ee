// A piece as a WAV file, played by the page's own instruments faster than it sounds.
import { notesOf, type Grid } from "./piece";
import { type Instrument, Synth } from "./synth";

const RATE = 44100;
const TAIL_SECONDS = 2; // for the room to die away
const PEAK = 0.89; // -1 dBFS
const AHEAD_SECONDS = 4; // every note that is there costs time at every moment: they are made shortly before they sound

export async function toWav(grid: Grid, tempo: number, instrument: Instrument): Promise<Blob> {
  const step = 15 / tempo;
  const seconds = grid.length * step;
  const context = new OfflineAudioContext(2, Math.ceil((seconds + TAIL_SECONDS) * RATE), RATE);
  const synth = new Synth(context, context.destination);
  const notes = notesOf(grid).sort((a, b) => b.from - a.from);
  const make = (until: number) => {
    while (notes.length && notes[notes.length - 1].from * step < until) {
      const { pitch, voice, from, to } = notes.pop()!;
      synth.start(instrument, pitch, voice, from * step).stop(to * step);
    }
  };
  const pauses = "suspend" in context; // not in every browser
  make(pauses ? 2 * AHEAD_SECONDS : Infinity);
  for (let at = AHEAD_SECONDS; pauses && at < seconds; at += AHEAD_SECONDS) {
    void context.suspend(at).then(() => {
      make(at + 2 * AHEAD_SECONDS);
      return context.resume();
    });
  }
  return encode(await context.startRendering());
}

function encode(sound: AudioBuffer): Blob {
  const channels = [sound.getChannelData(0), sound.getChannelData(1)];
  let peak = 1e-9;
  for (const channel of channels) for (const value of channel) peak = Math.max(peak, Math.abs(value));
  const scale = (PEAK / peak) * 32767;
  const samples = new Int16Array(sound.length * 2);
  for (let index = 0; index < sound.length; index++) {
    samples[2 * index] = channels[0][index] * scale;
    samples[2 * index + 1] = channels[1][index] * scale;
  }
  const head = new DataView(new ArrayBuffer(44));
  const word = (at: number, text: string) => [...text].forEach((letter, index) => head.setUint8(at + index, letter.charCodeAt(0)));
  word(0, "RIFF");
  head.setUint32(4, 36 + samples.byteLength, true);
  word(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 2, true);
  head.setUint32(24, RATE, true);
  head.setUint32(28, RATE * 4, true);
  head.setUint16(32, 4, true);
  head.setUint16(34, 16, true);
  word(36, "data");
  head.setUint32(40, samples.byteLength, true);
  return new Blob([head, samples], { type: "audio/wav" });
}
