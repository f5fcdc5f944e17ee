// What the page asks of the server. Errors are told in the server's words.

export interface Model {
  id: string;
  label: string;
  kind: string;
  position: string;
  dataset: string;
  length: number;
  validation_nats_per_token: number | null;
  seed: number | null;
}

export interface State {
  version: string;
  models: Model[];
  genomes: { id: string; label: string }[];
  limits: { steps: number; upload: number };
}

async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  let text = `${response.status} ${response.statusText}`;
  try {
    text = (await response.json()).error ?? text;
  } catch {
    // no JSON: the status says it
  }
  throw new Error(text);
}

async function reached(path: string, init?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new Error("the studio does not answer: is it still running in its terminal?");
  }
  return answered(response);
}

export async function getJson<T>(path: string): Promise<T> {
  return (await reached(path)).json();
}

export async function post(path: string, body: unknown): Promise<Response> {
  return reached(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
}

export async function upload<T>(path: string, file: File, limit: number): Promise<T> {
  if (file.size > limit) throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB; up to ${limit / 2 ** 20} MiB are read`);
  return (await reached(`${path}?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
}

const unfinished = new Set<{ cancel(): void }>();
// A page that is closed or loaded again lets go of what it asked for: else whoever comes next would wait for it.
addEventListener("pagehide", () => unfinished.forEach((job) => job.cancel()));

/** A job of the server's; `result` settles when it is done. `lost` is heard when the connection broke and is tried again. */
export class Job<T> {
  readonly result: Promise<T>;
  private id = "";
  private stopped = false;
  private left = false;
  private source?: EventSource;
  private abandon = () => {};

  constructor(kind: string, args: unknown, heard: Record<string, (data: never) => void> = {}) {
    unfinished.add(this);
    const abandoned = new Promise<never>((_, reject) => (this.abandon = () => reject(new Cancelled())));
    this.result = Promise.race([this.run(kind, args, heard), abandoned]).finally(() => {
      this.source?.close();
      unfinished.delete(this);
    });
  }

  /** Stops it; the result is then rejected with Cancelled. */
  cancel(): void {
    this.stopped = true;
    // A studio that is gone will never say that the job has stopped.
    if (this.id) fetch(`/api/jobs/${this.id}`, { method: "DELETE", keepalive: true }).catch(() => this.abandon());
  }

  /** Stops it and hears no more of it: the result is rejected at once. */
  leave(): void {
    this.left = true;
    this.cancel();
    this.abandon();
  }

  private async run(kind: string, args: unknown, heard: Record<string, (data: never) => void>): Promise<T> {
    this.id = (await (await post("/api/jobs", { kind, arguments: args })).json()).id;
    if (this.stopped) this.cancel();
    if (this.left) throw new Cancelled();
    return new Promise<T>((resolve, reject) => {
      const source = (this.source = new EventSource(`/api/jobs/${this.id}/events`));
      const end = (act: () => void) => {
        source.close();
        act();
      };
      for (const [name, tell] of Object.entries(heard)) {
        source.addEventListener(name, (event) => this.stopped || tell(JSON.parse((event as MessageEvent).data) as never));
      }
      source.addEventListener("result", (event) => end(() => resolve(JSON.parse(event.data))));
      source.addEventListener("cancelled", () => end(() => reject(new Cancelled())));
      source.addEventListener("error", (event) => {
        // The server's own "error" event has data; without, the connection broke, and the browser tries again.
        const data = (event as MessageEvent).data;
        if (data !== undefined) end(() => reject(new Error(JSON.parse(data))));
        else if (source.readyState === EventSource.CLOSED) {
          this.cancel(); // a page that is loaded again loses its connections before it is told that it ends
          end(() => reject(new Error("the connection to the studio broke")));
        } else if (!this.stopped) heard.lost?.(undefined as never);
      });
    });
  }
}

export class Cancelled extends Error {
  constructor() {
    super("cancelled");
  }
}
