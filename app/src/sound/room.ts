// The room that all instruments stand in, for the loudspeaker and for files alike.

const ROOM_SECONDS = 1.7;
const WET = 0.35; // how loud its echo is

/** What each side answers to a click: noise that dies away, its treble first; always the same, so that files are. */
function answers(rate: number): Float32Array<ArrayBuffer>[] {
  const length = Math.floor(ROOM_SECONDS * rate);
  let seed = 1;
  return [0, 1].map(() => {
    const data = new Float32Array(length);
    let smooth = 0;
    for (let index = 0; index < length; index++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
      const age = index / length;
      const kept = 0.25 + 0.7 * age;
      smooth = kept * smooth + (1 - kept) * (seed / 2 ** 31);
      data[index] = smooth * Math.exp(-5.5 * age);
    }
    return data;
  });
}

/** The echo, as loud as it is beside what is heard without it. */
export function echo(rate: number): Float32Array<ArrayBuffer>[] {
  // What a ConvolverNode makes of its buffer: equally loud whatever the buffer is.
  const made = answers(rate);
  const power = made.reduce((sum, side) => sum + side.reduce((most, value) => most + value * value, 0), 0);
  const scale = ((WET * 0.00125) / Math.sqrt(power / (2 * made[0].length))) * (44100 / rate);
  return made.map((side) => side.map((value) => value * scale));
}

/** Forty keys struck as hard as can be stay below what a loudspeaker is given at most; single notes pass as they are. */
export function limiter(context: BaseAudioContext): DynamicsCompressorNode {
  return new DynamicsCompressorNode(context, { threshold: -18, knee: 12, ratio: 12, attack: 0.002, release: 0.2 });
}

/** What sounds into the result is heard at `output` in the room. */
export function room(context: BaseAudioContext, output: AudioNode): AudioNode {
  const dry = context.createGain();
  const reverb = context.createConvolver();
  reverb.normalize = false;
  const sides = echo(context.sampleRate);
  reverb.buffer = context.createBuffer(2, sides[0].length, context.sampleRate);
  sides.forEach((side, index) => reverb.buffer?.copyToChannel(side, index));
  const limit = limiter(context);
  dry.connect(limit);
  dry.connect(reverb).connect(limit);
  limit.connect(output);
  return dry;
}
