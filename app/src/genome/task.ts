// A button that has a job done: its place in the queue, how far it is, and a button to stop it.
import { Cancelled, Job } from "../api";
import { h, notice } from "../dom";
import { duration, whole } from "./numbers";

export class Task {
  readonly root: HTMLElement;
  readonly button: HTMLButtonElement;
  private readonly stop = h("button", { type: "button", hidden: true, onclick: () => this.cancel() }, "Cancel");
  private readonly bar = h("progress", { hidden: true, "aria-label": "Progress" });
  private readonly told = h("output", { className: "soft" });
  private job: Job<unknown> | null = null;

  constructor(label: string, private readonly unit: string) {
    this.button = h("button", { type: "submit", className: "primary" }, label);
    this.root = h("div", { className: "row task" }, this.button, this.stop, this.bar, this.told);
  }

  say(text: string): void {
    this.told.textContent = text;
  }

  cancel(): void {
    this.job?.cancel();
    if (this.job) this.say("stopping …");
  }

  /** What the job answers; undefined if it was cancelled or failed, which is told. */
  async run<T>(kind: string, args: unknown, step?: (data: never) => void): Promise<T | undefined> {
    if (this.job) return undefined;
    let began = 0;
    this.busy(true);
    this.say("sent");
    const job = new Job<T>(kind, args, {
      waiting: (before: number) => this.say(before ? `waiting: ${before} ${before === 1 ? "job" : "jobs"} before this one` : "waiting"),
      lost: () => this.say("the studio does not answer: trying again"),
      begun: () => {
        began = performance.now();
        this.say("working");
      },
      progress: ({ done, of }: { done: number; of: number }) => {
        this.bar.max = of;
        this.bar.value = done;
        const left = ((performance.now() - began) / 1000 / done) * (of - done);
        this.say(`${whole.format(done)} of ${whole.format(of)} ${this.unit}${done < of ? `, about ${duration(left)} left` : ""}`);
      },
      ...(step ? { step } : {}),
    } as Record<string, (data: never) => void>);
    this.job = job;
    try {
      const answer = await job.result;
      this.say("");
      return answer;
    } catch (error) {
      this.say(error instanceof Cancelled ? "cancelled" : "");
      if (!(error instanceof Cancelled)) notice((error as Error).message);
      return undefined;
    } finally {
      this.job = null;
      this.busy(false);
    }
  }

  private busy(is: boolean): void {
    const held = document.activeElement === (is ? this.button : this.stop);
    this.button.disabled = is;
    this.stop.hidden = this.bar.hidden = !is;
    this.bar.removeAttribute("value");
    if (held) (is ? this.stop : this.button).focus(); // a keyboard's place is not lost
  }
}
