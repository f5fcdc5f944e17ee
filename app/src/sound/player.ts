// Plays a source that may still be growing: sounds are handed to the audio clock a little ahead of their time.
import { NOTHING, type Source } from "./source";
import { type Sounding, Synth } from "./synth";
import { type Instrument, USUAL_VELOCITY } from "./tones";

const AHEAD_SECONDS = 0.25;
const AHEAD_HIDDEN = 1.6; // timers of a tab in the background run once a second

interface Scheduled {
  place: number;
  units: number;
  when: number;
  seconds: number;
}

export class Player {
  /** Seconds that a unit of the source takes. */
  pace = 1;
  instrument: Instrument = "piano";
  /** What is played again and again, if `loops`; null for all. */
  region: [number, number] | null = null;
  loops = false;
  playing = false;
  /** Whether it waits for more to come. */
  starved = false;
  source: Source = NOTHING;
  private rest = 0; // the place it stands at while it does not play
  private next = 0;
  private when = 0;
  private queue: Scheduled[] = [];
  private readonly sounding = new Map<number, { pitch: number; sound: Sounding }>();
  private timer = 0;
  private ending = Infinity;
  private context?: AudioContext;
  private synth?: Synth;
  private volume?: GainNode;
  private analyser?: AnalyserNode;
  private loudness = 0.8;

  constructor(private readonly changed: () => void) {}

  /** Builds the room, which takes a third of a second on a slow machine: better before than in a click. */
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
    const { source } = this;
    this.next = source.whole && from >= source.length ? 0 : source.begin(from);
    this.when = context.currentTime + 0.06;
    this.queue = [];
    this.ending = Infinity;
    this.playing = true;
    this.starved = this.lacking;
    clearInterval(this.timer);
    this.timer = window.setInterval(() => this.tick(), 25);
    this.tick();
    this.changed();
  }

  stop(at = this.position()): void {
    this.cut();
    this.halt(at);
  }

  private halt(at: number): void {
    clearInterval(this.timer);
    this.playing = this.starved = false;
    this.rest = at;
    this.changed();
  }

  /** To be called when the page is hidden or shown: timers run seldom from now on, or the browser has stopped sound. */
  attend(): void {
    if (!this.playing) return;
    this.wake();
    this.tick();
  }

  seek(place: number): void {
    if (this.playing) this.play(place);
    else {
      this.rest = place;
      this.changed();
    }
  }

  /** Where it is, in the source's units. */
  position(): number {
    if (!this.playing || !this.context) return this.rest;
    const now = this.context.currentTime - (this.context.outputLatency || 0);
    while (this.queue.length > 1 && this.queue[1].when <= now) this.queue.shift();
    const current = this.queue[0];
    if (!current) return this.next;
    return current.place + current.units * Math.min(1, Math.max(0, (now - current.when) / current.seconds));
  }

  /** A note by itself, such as one just drawn. */
  sample(pitch: number, pan = 0, velocity = USUAL_VELOCITY): void {
    if (this.playing) return;
    const now = this.wake().currentTime;
    this.synth?.start(this.instrument, pitch, velocity, pan, now + 0.01).stop(now + 0.3);
  }

  close(): void {
    this.stop();
    void this.context?.close();
    this.context = undefined;
  }

  /** Too little is there to go on. */
  private get lacking(): boolean {
    return !this.source.whole && this.source.length - this.next < this.source.cushion;
  }

  /** What is played again and again; shorter than what is handed over at once it would only rattle. */
  private get lap(): [number, number] | null {
    if (!this.loops) return null;
    const [from, to] = this.region ?? [0, Infinity];
    const end = Math.min(to, this.source.length);
    return end - from >= this.source.grain ? [from, to] : null;
  }

  private cut(): void {
    this.synth?.silence();
    this.sounding.clear();
  }

  private silence(when: number): void {
    this.sounding.forEach(({ sound }) => sound.stop(when));
    this.sounding.clear();
  }

  private tick(): void {
    const { context, synth } = this;
    if (!context || !synth) return;
    const now = context.currentTime;
    if (now >= this.ending) {
      this.halt(0); // the last tones die away by themselves
      return;
    }
    const horizon = now + (document.hidden ? AHEAD_HIDDEN : AHEAD_SECONDS);
    while (this.ending === Infinity) {
      const { source, lap } = this;
      const end = Math.min(lap?.[1] ?? Infinity, source.length);
      if (this.next >= end && (source.whole || end === lap?.[1])) {
        this.silence(this.when); // or a note across the border would not be struck anew
        if (!lap) {
          this.ending = this.when;
          return;
        }
        this.next = source.begin(lap[0]);
      }
      if (this.next >= source.length && !this.starved) {
        this.silence(this.when);
        this.starved = true;
        this.changed();
      }
      if (this.starved) {
        if (this.lacking) return;
        this.starved = false;
        this.changed();
        continue;
      }
      if (this.when < now) this.when = now + 0.03; // a timer came late, or what is played did
      if (this.when >= horizon) return;
      const units = Math.min(source.grain, end - this.next);
      for (const { at, key, pitch, velocity, pan, end } of source.sounds(this.next, this.next + units, this.pitchOf)) {
        const when = this.when + (at - this.next) * this.pace;
        this.sounding.get(key)?.sound.stop(when);
        this.sounding.delete(key);
        if (pitch < 0) continue;
        const sound = synth.start(this.instrument, pitch, velocity, pan, when);
        if (end !== undefined) sound.stop(when + (end - at) * this.pace);
        this.sounding.set(key, { pitch, sound });
      }
      this.queue.push({ place: this.next, units, when: this.when, seconds: units * this.pace });
      this.next += units;
      this.when += units * this.pace;
    }
  }

  private readonly pitchOf = (key: number): number => this.sounding.get(key)?.pitch ?? -1;
}
