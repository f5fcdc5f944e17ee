// Plays a piece that may still be growing: notes are handed to the audio clock a little ahead of their time.
import { SILENCE, type Grid } from "./piece";
import { type Instrument, type Sounding, Synth } from "./synth";

const AHEAD_SECONDS = 0.25;
const AHEAD_HIDDEN = 1.6; // timers of a tab in the background run once a second
const CUSHION = 8; // steps that must be there before playing goes on behind what has been written

export interface Source {
  grid: Grid;
  /** Whether nothing more is to come. */
  whole: boolean;
}

interface Scheduled {
  step: number;
  when: number;
  seconds: number;
}

export class Player {
  tempo = 80;
  instrument: Instrument = "organ";
  /** Steps that are played again and again, if `loops`; null for all. */
  region: [number, number] | null = null;
  loops = false;
  playing = false;
  /** Whether it waits for steps to come. */
  starved = false;
  source: Source = { grid: [], whole: true };
  private rest = 0; // the step it stands at while it does not play
  private next = 0;
  private when = 0;
  private queue: Scheduled[] = [];
  private sounding: (Sounding | null)[] = [null, null, null, null];
  private pitches = [SILENCE, SILENCE, SILENCE, SILENCE];
  private timer = 0;
  private ending = Infinity;
  private context?: AudioContext;
  private synth?: Synth;
  private volume?: GainNode;
  private analyser?: AnalyserNode;
  private loudness = 0.8;

  constructor(private readonly changed: () => void) {}

  /** Builds the instruments, which takes a third of a second on a slow machine: better before than in a click. */
  prepare(): AudioContext {
    if (!this.context) {
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.volume = this.context.createGain();
      this.volume.gain.value = this.loudness;
      this.analyser = this.context.createAnalyser();
      this.analyser.fftSize = 2048;
      this.volume.connect(this.analyser).connect(this.context.destination);
      this.synth = new Synth(this.context, this.volume);
    }
    return this.context;
  }

  /** Has sound run. Browsers allow it only in answer to a click or a key. */
  wake(): AudioContext {
    const context = this.prepare();
    if (context.state !== "running") void context.resume();
    return context;
  }

  setVolume(share: number): void {
    this.loudness = share;
    if (this.volume && this.context) this.volume.gain.setTargetAtTime(share, this.context.currentTime, 0.02);
  }

  /** Root mean square of what is heard now. */
  level(): number {
    if (!this.analyser) return 0;
    const wave = new Float32Array(this.analyser.fftSize);
    this.analyser.getFloatTimeDomainData(wave);
    return Math.sqrt(wave.reduce((sum, value) => sum + value * value, 0) / wave.length);
  }

  play(from = this.rest): void {
    const context = this.wake();
    this.cut();
    const { grid, whole } = this.source;
    this.next = whole && from >= grid.length ? 0 : Math.floor(from);
    this.when = context.currentTime + 0.06;
    this.queue = [];
    this.ending = Infinity;
    this.playing = true;
    this.starved = !whole && grid.length - this.next < CUSHION;
    clearInterval(this.timer);
    this.timer = window.setInterval(() => this.tick(), 25);
    this.tick();
    this.changed();
  }

  stop(at = this.position()): void {
    clearInterval(this.timer);
    this.cut();
    this.playing = this.starved = false;
    this.rest = at;
    this.changed();
  }

  seek(step: number): void {
    if (this.playing) this.play(step);
    else {
      this.rest = step;
      this.changed();
    }
  }

  /** Where it is, in steps. */
  position(): number {
    if (!this.playing || !this.context) return this.rest;
    const now = this.context.currentTime - (this.context.outputLatency || 0);
    while (this.queue.length > 1 && this.queue[1].when <= now) this.queue.shift();
    const current = this.queue[0];
    if (!current) return this.next;
    return current.step + Math.min(1, Math.max(0, (now - current.when) / current.seconds));
  }

  /** A note by itself, such as one just drawn. */
  sample(pitch: number, voice: number): void {
    if (this.playing) return;
    const now = this.wake().currentTime;
    this.synth?.start(this.instrument, pitch, voice, now + 0.01).stop(now + 0.3);
  }

  close(): void {
    this.stop();
    void this.context?.close();
    this.context = undefined;
  }

  private cut(): void {
    this.synth?.silence();
    this.sounding.fill(null);
    this.pitches.fill(SILENCE);
  }

  private silence(when: number): void {
    this.sounding.forEach((sound) => sound?.stop(when));
    this.sounding.fill(null);
    this.pitches.fill(SILENCE);
  }

  private tick(): void {
    const { context, synth } = this;
    if (!context || !synth) return;
    const now = context.currentTime;
    if (now >= this.ending) {
      this.stop(0);
      return;
    }
    const horizon = now + (document.hidden ? AHEAD_HIDDEN : AHEAD_SECONDS);
    while (this.ending === Infinity) {
      const { grid, whole } = this.source;
      const end = this.loops && this.region ? Math.min(this.region[1], grid.length) : grid.length;
      if (this.next >= end && (whole || (this.loops && this.region && end === this.region[1]))) {
        if (!this.loops || !end) {
          this.silence(this.when);
          this.ending = this.when;
          return;
        }
        this.silence(this.when); // or a note across the border would not be struck anew
        this.next = this.region?.[0] ?? 0;
      }
      if (this.next >= grid.length && !this.starved) {
        this.silence(this.when);
        this.starved = true;
        this.changed();
      }
      if (this.starved) {
        if (!whole && grid.length - this.next < CUSHION) return;
        this.starved = false;
        this.changed();
        continue;
      }
      if (this.when < now) this.when = now + 0.03; // a timer came late, or steps did
      if (this.when >= horizon) return;
      const seconds = 15 / this.tempo;
      grid[this.next].forEach((pitch, voice) => {
        if (pitch === this.pitches[voice]) return;
        this.sounding[voice]?.stop(this.when);
        this.sounding[voice] = pitch < 0 ? null : synth.start(this.instrument, pitch, voice, this.when);
        this.pitches[voice] = pitch;
      });
      this.queue.push({ step: this.next, when: this.when, seconds });
      this.next++;
      this.when += seconds;
    }
  }
}
