// What can be undone: what a piece was before, and what was taken back.

const MOST_VERSIONS = 100;

/** A piece with its history; a version `V` is all that is to be there again. */
export abstract class Undoable<V> {
  private readonly past: V[] = [];
  private future: V[] = [];

  /** `changed` is called when it has; a page that shows it says what that is. */
  constructor(public changed: () => void = () => {}) {}

  /** As it is now, never changed in place. */
  protected abstract get version(): V;
  protected abstract show(version: V): void;

  /** To be called before a change that can be undone. */
  remember(): void {
    this.past.push(this.version);
    if (this.past.length > MOST_VERSIONS) this.past.shift();
    this.future = [];
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  undo(): void {
    this.step(this.past, this.future);
  }

  redo(): void {
    this.step(this.future, this.past);
  }

  /** What was remembered last is there again, and what came instead is not kept. */
  takeBack(): void {
    this.undo();
    this.future.pop();
    this.changed();
  }

  private step(source: V[], target: V[]): void {
    const version = source.pop();
    if (version === undefined) return;
    target.push(this.version);
    this.show(version);
  }
}
