// Plays tones as they are asked for.
import { room } from "./room";
import { envelope, type Instrument, loudness, type Tone, tone } from "./tones";

const MOST_AT_ONCE = 56; // tones: more are not told apart, and two cores have other things to do
const CUT = 0.02; // time constant of what is to end at once

export interface Sounding {
  /** Let go of the key; of two times the earlier one counts. */
  stop(when: number): void;
}

interface Alive {
  begins: number;
  ends: number;
  cut(): void;
}

export class Synth {
  private readonly input: AudioNode;
  private readonly places = new Map<number, StereoPannerNode>();
  private readonly buffers = new Map<Float32Array, AudioBuffer>();
  private readonly alive = new Set<Alive>();

  constructor(private readonly context: BaseAudioContext, output: AudioNode) {
    this.input = room(context, output);
  }

  start(instrument: Instrument, pitch: number, velocity: number, pan: number, when: number): Sounding {
    const { context } = this;
    this.makeRoom(when);
    const { attack, release } = envelope(instrument);
    const made = tone(instrument, pitch, velocity);
    const gain = context.createGain();
    gain.gain.setValueAtTime(0, when);
    gain.gain.linearRampToValueAtTime(loudness(instrument, pitch, velocity), when + attack);
    gain.connect(this.place(pan));
    const source = context.createBufferSource();
    source.buffer = this.buffer(made);
    source.loop = made.loops;
    source.loopEnd = (made.samples.length - 1) / made.rate;
    source.playbackRate.value = made.speed;
    source.connect(gain);
    source.start(when);
    const mine: Alive = {
      begins: when,
      ends: Infinity,
      cut: () => {
        const now = context.currentTime;
        gain.gain.cancelScheduledValues(Math.max(now, when));
        gain.gain.setTargetAtTime(0, now, CUT);
        source.stop(Math.max(now, when) + 8 * CUT);
        this.alive.delete(mine);
      },
    };
    this.alive.add(mine);
    source.onended = () => {
      this.alive.delete(mine);
      gain.disconnect();
    };
    return {
      stop: (end) => {
        const last = Math.max(end, when + attack);
        gain.gain.cancelScheduledValues(last + 1e-6);
        gain.gain.setTargetAtTime(0, last + 2e-6, release / 3);
        source.stop(last + release * 2.5);
        mine.ends = last;
      },
    };
  }

  /** Ends all at once, what is yet to begin too. */
  silence(): void {
    this.alive.forEach((each) => each.cut());
  }

  /** Where too many sound, the one that was let go of first makes way; else the oldest. */
  private makeRoom(when: number): void {
    if (this.alive.size < MOST_AT_ONCE) return;
    const rank = ({ begins, ends }: Alive) => (ends < when ? ends - 1e6 : begins);
    let first: Alive | null = null;
    for (const each of this.alive) if (!first || rank(each) < rank(first)) first = each;
    first?.cut();
  }

  private place(pan: number): AudioNode {
    let panner = this.places.get(pan);
    if (!panner) {
      panner = this.context.createStereoPanner();
      panner.pan.value = pan;
      panner.connect(this.input);
      this.places.set(pan, panner);
    }
    return panner;
  }

  private buffer({ samples, rate }: Tone): AudioBuffer {
    let buffer = this.buffers.get(samples);
    if (!buffer) {
      buffer = this.context.createBuffer(1, samples.length, rate);
      buffer.copyToChannel(samples, 0);
      this.buffers.set(samples, buffer);
    }
    return buffer;
  }
}
