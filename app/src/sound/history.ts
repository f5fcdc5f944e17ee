// What was there before, and what was taken back.

const MOST_VERSIONS = 100;

export class History<V> {
  private readonly past: V[] = [];
  private future: V[] = [];

  remember(version: V): void {
    this.past.push(version);
    if (this.past.length > MOST_VERSIONS) this.past.shift();
    this.future = [];
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  /** The version before `now`, if there is one. */
  undo(now: V): V | undefined {
    const version = this.past.pop();
    if (version) this.future.push(now);
    return version;
  }

  redo(now: V): V | undefined {
    const version = this.future.pop();
    if (version) this.past.push(now);
    return version;
  }

  /** What was taken back last cannot be had again. */
  forget(): void {
    this.future.pop();
  }
}
