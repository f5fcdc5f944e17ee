// A model's version of a piece: the piece, its roll, and a line that says whose it is. Two of them stand side by side.
import type { Model } from "../api";
import { h } from "../dom";
import { Piece } from "./piece";
import { Roll, type Told, type View } from "./roll";

export class Take {
  readonly piece: Piece;
  readonly roll: Roll;
  readonly root: HTMLElement;
  readonly listen: HTMLButtonElement;
  /** Who said what surprised, where no model wrote it. */
  judge: Model | null = null;
  private readonly title = h("h3");
  private readonly cost = h("span", { className: "soft take-cost" });

  constructor(readonly name: string, view: View, told: Told, chosen: () => void, changed: () => void) {
    this.piece = new Piece(() => {
      this.roll?.update();
      changed();
    });
    this.roll = new Roll(this.piece, view, told, name);
    this.listen = h("button", { type: "button", onclick: chosen }, "Listen to this");
    this.root = h("section", { className: "take", "aria-label": name }, h("div", { className: "row take-head" }, this.title, this.cost, this.listen), this.roll.root);
    this.caption();
  }

  caption(): void {
    const { piece, judge } = this;
    const { model, seed, note = "" } = piece.origin;
    const mean = piece.mean;
    const origin = [model ? `${positionName(model.position)}, ${model.label}` : "", seed === null ? "" : `seed ${seed}`, note];
    this.title.textContent = origin.filter(Boolean).join(" · ") || (piece.grid.length ? "Your piece" : `The ${this.name}: nothing yet`);
    this.title.className = model?.position === "rope" ? "rope" : model?.position === "pope" ? "pope" : "";
    const by = !model && judge ? `, by ${positionName(judge.position)}, ${judge.label}` : "";
    this.cost.textContent = mean ? `${mean.nats.toFixed(3)} nats a token (${mean.tokens} tokens${by})` : "";
  }
}

export function positionName(position: string): string {
  return { pope: "PoPE", rope: "RoPE" }[position] ?? position;
}
