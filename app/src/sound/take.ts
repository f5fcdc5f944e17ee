// A model's version of a piece: the piece, its roll, and a line that says whose it is. Two of them stand side by side.
import type { Model } from "../api";
import { button, h } from "../dom";

/** Who wrote a piece, and from which seed; null where it was drawn or uploaded. */
export interface Origin {
  model: Model | null;
  seed: number | null;
  /** What of it the model did not write. */
  note?: string;
  /** Who said what surprised, where no model wrote it. */
  judge?: Model;
}

interface Written {
  origin: Origin;
  readonly empty: boolean;
  /** Mean nats of the tokens that are known, and how many they are. */
  readonly mean: { nats: number; tokens: number } | null;
}

export class Take<P extends Written, R extends { root: HTMLElement }> {
  readonly root: HTMLElement;
  readonly listen: HTMLButtonElement;
  private several = false;
  private readonly title = h("h3");
  private readonly cost = h("span", { className: "soft take-cost" });

  constructor(readonly name: string, readonly piece: P, readonly roll: R, chosen: () => void) {
    this.listen = button("Listen to this", chosen);
    this.root = h("section", { className: "take", "aria-label": name }, h("div", { className: "row take-head" }, this.title, this.cost, this.listen), roll.root);
    this.caption();
  }

  caption(): void {
    const { piece } = this;
    const { model, seed, note = "", judge } = piece.origin;
    const mean = piece.mean;
    const origin = [model ? namedModel(model) : "", seed === null ? "" : `seed ${seed}`, note];
    this.title.textContent = origin.filter(Boolean).join(" · ") || (!piece.empty ? "Your piece" : this.several ? `The ${this.name}: nothing yet` : "Nothing yet");
    this.title.className = model?.position === "rope" ? "rope" : model?.position === "pope" ? "pope" : "";
    const by = !model && judge ? `, by ${namedModel(judge)}` : "";
    this.cost.textContent = mean ? `${mean.nats.toFixed(3)} nats a token (${mean.tokens} tokens${by})` : "";
  }

  /** How it stands beside others: `shown` are those in sight. */
  arrange(shown: boolean, several: boolean, active: boolean): void {
    this.several = several;
    this.root.hidden = !shown;
    this.root.classList.toggle("active", several && active);
    this.listen.hidden = !several;
    this.listen.disabled = active;
    this.listen.textContent = active ? "Listening" : "Listen to this";
  }
}

const namedModel = ({ position, label }: Model) => `${positionName(position)}, ${label}`;

export function positionName(position: string): string {
  return { pope: "PoPE", rope: "RoPE" }[position] ?? position;
}
