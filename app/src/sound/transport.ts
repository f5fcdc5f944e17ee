// Plays, stops, seeks: what stands above the rolls of a page, with the keys that go with it.
import { button, check, field, h, slider } from "../dom";
import { Player } from "./player";
import { type Instrument, prepareTones } from "./tones";

declare global {
  interface Window {
    /** For those who look from outside, such as tests: how loud it is now. */
    seqpopeStudio?: { level(): number };
  }
}

/** As loud as it was when a page was left. */
let loudness = 0.8;

interface Follower {
  /** Something is there to be played, or will be. */
  ready(): boolean;
  /** Playing is at this place, or has stopped there. */
  at(place: number): void;
  /** How a place is read out. */
  name(place: number): string;
  undo(): void;
  redo(): void;
}

export class Transport {
  readonly player = new Player(() => this.changed());
  readonly play = button("▶ Play", () => this.toggle(), { className: "primary play" });
  readonly volume = slider(loudness, 0, 1, 0.01, (value) => this.player.setVolume((loudness = value)));
  private readonly seek: HTMLInputElement;
  private readonly loop = check("Loop (what is marked, or all)", false, () => (this.player.loops = this.loop.input.checked));
  private frame = 0;
  private named = NaN; // the place that the slider reads out
  private readonly preparing: number;
  private unprepare = () => {};

  /** `step` is how far a key moves the position. */
  constructor(private readonly follower: Follower, private readonly step: number, instrument: Instrument, gone: AbortSignal) {
    this.player.instrument = instrument;
    this.player.setVolume(loudness);
    this.seek = slider(0, 0, 0, step, (value) => this.player.seek(value));
    this.preparing = window.setTimeout(() => {
      this.player.prepare();
      this.unprepare = prepareTones(this.player.instrument);
    }, 200);
    document.addEventListener("keydown", (event) => this.key(event), { signal: gone });
    document.addEventListener("visibilitychange", () => this.player.attend(), { signal: gone });
    window.seqpopeStudio = { level: () => this.player.level() };
  }

  row(...more: HTMLElement[]): HTMLElement {
    return h("div", { className: "row transport" }, this.play, field("Position", this.seek), ...more, field("Volume", this.volume), this.loop.root);
  }

  /** How far it can be sought. */
  set length(places: number) {
    this.seek.max = String(places);
    this.named = NaN; // it may have been less far than it is
  }

  toggle(): void {
    if (this.player.playing) this.player.stop();
    else if (this.follower.ready()) this.player.play();
  }

  changed(): void {
    this.play.textContent = this.player.playing ? "■ Stop" : "▶ Play";
    this.play.classList.toggle("waiting", this.player.starved);
    if (!this.frame) this.frame = requestAnimationFrame(this.follow);
  }

  close(): void {
    clearTimeout(this.preparing);
    this.unprepare();
    this.player.close();
    cancelAnimationFrame(this.frame);
    delete window.seqpopeStudio;
  }

  private readonly follow = (): void => {
    this.frame = 0;
    const at = this.player.position();
    this.follower.at(at);
    const shown = Math.floor(at / this.step) * this.step;
    if (this.named !== shown) {
      this.named = shown;
      this.seek.value = String(shown);
      this.seek.setAttribute("aria-valuetext", this.follower.name(shown));
    }
    if (this.player.playing) this.frame = requestAnimationFrame(this.follow);
  };

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    const typing = target.matches("input:not([type=range]), textarea, select");
    if (event.key === " " && !typing && !target.matches("button, summary, a")) {
      event.preventDefault();
      if (!event.repeat) this.toggle();
    } else if ((event.ctrlKey || event.metaKey) && !typing && "zy".includes(event.key.toLowerCase())) {
      event.preventDefault();
      if (event.key.toLowerCase() === "y" || event.shiftKey) this.follower.redo();
      else this.follower.undo();
    }
  }
}
