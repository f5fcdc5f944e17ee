// Plays tones as they are asked for.
import { room } from "./room";
import { envelope, type Instrument, loudness, tone } from "./tones";

const MOST_AT_ONCE = 56; // tones: more are not told apart, and two cores have other things to do
const CUT = 0.02; // time constant of what is to end at once
const SOON = 0.01; // seconds by which the audio clock may be ahead of what it says

export interface Sounding {
  /** Let go of the key; of two times the earlier one counts. */
  stop(when: number): void;
}

interface Alive {
  begins: number;
  /** When its key is let go of. */
  ends: number;
  /** When nothing is heard of it any more. */
  over: number;
  cut(at: number): void;
}

export class Synth {
  private readonly input: AudioNode;
  private readonly places = new Map<number, StereoPannerNode>();
  private readonly alive = new Set<Alive>();

  constructor(private readonly context: BaseAudioContext, output: AudioNode) {
    this.input = room(context, output);
  }

  start(instrument: Instrument, pitch: number, velocity: number, pan: number, when: number): Sounding {
    const { context } = this;
    this.makeRoom(when);
    const { attack, release } = envelope(instrument);
    const { sound, loops, speed } = tone(instrument, pitch, velocity);
    const loud = loudness(instrument, pitch, velocity);
    const gain = context.createGain();
    gain.gain.setValueAtTime(0, when);
    gain.gain.linearRampToValueAtTime(loud, when + attack);
    gain.connect(this.place(pan));
    const source = context.createBufferSource();
    source.buffer = sound;
    source.loop = loops;
    source.loopEnd = (sound.length - 1) / sound.sampleRate;
    source.playbackRate.value = speed;
    source.connect(gain);
    source.start(when);
    let cut = Infinity;
    const mine: Alive = {
      begins: when,
      ends: Infinity,
      over: loops ? Infinity : when + sound.duration / speed,
      cut: (at) => {
        if (at >= cut) return;
        cut = at;
        // A rise that is cancelled in its midst falls back to where it began, which clicks: it is asked for anew, so far.
        const risen = Math.max(0, (at - when) / attack);
        const fallen = Math.exp((-3 * Math.max(0, at - mine.ends)) / release);
        gain.gain.cancelScheduledValues(at);
        if (risen > 0 && risen < 1) gain.gain.linearRampToValueAtTime(loud * risen, at);
        else gain.gain.setValueAtTime(risen ? loud * fallen : 0, at);
        gain.gain.setTargetAtTime(0, at, CUT);
        source.stop(Math.max(at, when) + 8 * CUT);
        mine.ends = Math.min(mine.ends, at);
        mine.over = Math.min(mine.over, at);
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
        if (last >= Math.min(mine.ends, cut)) return;
        gain.gain.cancelScheduledValues(last + 1e-6);
        gain.gain.setTargetAtTime(0, last + 2e-6, release / 3);
        source.stop(last + release * 2.5);
        mine.ends = last;
        mine.over = Math.min(mine.over, last + release * 2.5);
      },
    };
  }

  /** Ends all at once, what is yet to begin too. */
  silence(): void {
    const soon = this.context.currentTime + SOON;
    this.alive.forEach((each) => each.cut(soon));
  }

  /** Where too many sound by then, the one that was let go of first makes way; else the oldest. */
  private makeRoom(when: number): void {
    if (this.alive.size < MOST_AT_ONCE) return;
    const rank = ({ begins, ends }: Alive) => (ends < when ? ends - 1e6 : begins);
    let count = 0;
    let first: Alive | null = null;
    for (const each of this.alive) {
      if (each.over <= when) continue;
      count++;
      if (!first || rank(each) < rank(first)) first = each;
    }
    if (count >= MOST_AT_ONCE) first?.cut(when);
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
}
