// Asks the server for jobs, one at a time: how far it is, a way to stop it, what went wrong.
import { Cancelled, Job } from "./api";
import { button, h, notice } from "./dom";

export type Heard = Record<string, (data: never) => void>;

export class Desk {
  busy = false;
  readonly cancel = button("Cancel", () => this.stop(), { disabled: true });
  readonly status = h("output", { className: "soft status", "aria-live": "polite" });
  readonly meter = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "How much is done" });
  private running: Job<unknown> | null = null;
  private stopping = false;

  /** `gone` says that the page was left; `changed` is called when `busy` has changed, `settled` when all is done. */
  constructor(private readonly gone: AbortSignal, private readonly changed: () => void, private readonly settled: () => void) {}

  told(error: unknown): void {
    if (!(error instanceof Cancelled) && !this.gone.aborted) notice((error as Error).message);
  }

  say(text: string, share: number | null = null): void {
    if (this.status.value !== text) this.status.value = text;
    this.meter.hidden = share === null;
    if (share !== null) this.meter.value = share;
  }

  /** The page is left: what was asked for is given up at once, so that what it was to change is as it will stay. */
  leave(): void {
    this.stopping = true;
    this.running?.leave();
  }

  stop(): void {
    if (!this.busy) return;
    this.stopping = true;
    this.running?.cancel();
    this.say("Stopping…");
  }

  /** Rejects what was cancelled while something else than a job was waited for. */
  check(): void {
    if (this.stopping || this.gone.aborted) throw new Cancelled();
  }

  /** Does something that asks the server for jobs. */
  async working(act: () => Promise<void>): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    this.stopping = false;
    this.changed();
    try {
      await act();
    } catch (error) {
      this.told(error);
    }
    this.running = null;
    this.busy = false;
    this.say("");
    this.changed();
    this.settled();
  }

  async asked<T>(kind: string, args: unknown, what: string, heard: Heard = {}): Promise<T> {
    if (this.stopping) throw new Cancelled();
    const job = new Job<T>(kind, args, {
      waiting: (before: number) => this.say(before ? `Waiting: ${before === 1 ? "one job is" : `${before} jobs are`} before yours` : "Next in the queue"),
      lost: () => this.say("The studio does not answer: trying again"),
      begun: () => this.say(`${what}: reading the model`),
      progress: ({ done, of }: { done: number; of: number }) => this.say(`${what}: ${Math.floor((10 * done) / of) * 10} %`, done / of),
      ...heard,
    } as Heard);
    this.running = job;
    this.say(`${what}: asking`);
    return job.result;
  }
}
