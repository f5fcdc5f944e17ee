"""What decides whether Indirect Indexing is learned, in minutes on a CPU: a small model of a smaller task.

    python benchmarks/indexing_small.py --seeds 3 --jobs 2        # goes on with what is recorded
    python benchmarks/indexing_small.py --arms "RoPE, Muon" --steps 8000
    python benchmarks/indexing_small.py --table

The task is `seqpope.domains.indexing.task`'s with 6 to 8 of 12 letters, shifts from -3 to 3 and no spaces.
Examples are drawn without end: none comes twice but by chance, and nothing can be overfitted. The model is 64
wide, with 3 layers of 4 heads; batches of 64, a constant rate after 200 steps of warm-up. A run ends once 90% of
the targets of 250 steps are the likeliest token. Curves go to benchmarks/results/indexing-small.json; the
table beside it is written anew each time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqpope.config import OptimizerConfig
from seqpope.domains.indexing.task import draw_parts
from seqpope.files import write_text
from seqpope.markdown import table
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.provenance import provenance
from seqpope.stack import StackedTransformer
from seqpope.training import make_optimizer

RESULTS = Path(__file__).parent / "results" / "indexing-small.json"
LETTERS, SHORTEST, LONGEST, LARGEST_SHIFT = 12, 6, 8, 3
MINUS, COMMA = 1 + LETTERS + 10, 2 + LETTERS + 10  # after padding, letters and digits
VOCABULARY = COMMA + 1
WIDTH, LAYERS, HEADS, BATCH, WARMUP = 64, 3, 4, 64, 200
EVERY, DONE, SOLVED = 250, 0.9, 0.5


@dataclass(frozen=True)
class Arm:
    """An encoding, what of its model is set, and how it is trained."""

    position: str
    optimizer: Literal["adamw", "muon"]
    rate: float
    model: dict[str, Any] = field(default_factory=dict)
    delta_rate: float = 1.0


ARMS = {
    "PoPE, Muon": Arm("pope", "muon", 2e-3),
    "RoPE, Muon": Arm("rope", "muon", 2e-3),
    "PoPE, AdamW": Arm("pope", "adamw", 1e-3),
    "RoPE, AdamW": Arm("rope", "adamw", 1e-3),
    "PoPE, Muon, delta from 0": Arm("pope", "muon", 2e-3, {"delta_init": "zero"}),
    "PoPE, Muon, delta from 0 and clamped": Arm(
        "pope", "muon", 2e-3, {"delta_init": "zero", "delta_bound": "clamp"}
    ),
    "PoPE, Muon, delta clamped": Arm("pope", "muon", 2e-3, {"delta_bound": "clamp"}),
    "PoPE, Muon, no delta": Arm("pope", "muon", 2e-3, {"delta_init": "zero", "delta_learned": False}),
    "PoPE, Muon, delta learned at ten times the rate": Arm("pope", "muon", 2e-3, delta_rate=10.0),
    "PoPE, Muon, no softplus": Arm("pope", "muon", 2e-3, {"magnitude": "none"}),
    "PoPE, Muon, a quarter of the rate": Arm("pope", "muon", 5e-4),
    "RoPE, Muon, a quarter of the rate": Arm("rope", "muon", 5e-4),
    "PoPE, AdamW, a third of the rate": Arm("pope", "adamw", 3e-4),
    "RoPE, AdamW, a third of the rate": Arm("rope", "adamw", 3e-4),
    "PoPE, AdamW, three times the rate": Arm("pope", "adamw", 3e-3),
    "RoPE, AdamW, three times the rate": Arm("rope", "adamw", 3e-3),
    "PoPE, AdamW, delta from 0": Arm("pope", "adamw", 1e-3, {"delta_init": "zero"}),
}


def draw(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Examples up to their target: ids (B, L) after padding, where the target is due (B, 1), the target (B,)."""
    chosen, length, place, shift = draw_parts(
        random, count, letters=LETTERS, shortest=SHORTEST, longest=LONGEST, largest_shift=LARGEST_SHIFT
    )
    letters = chosen + 1
    ids = np.zeros((count, 1 + LONGEST + 6), np.int64)
    at = np.zeros((count, 1), np.int64)
    for row in range(count):
        sign = [MINUS] if shift[row] < 0 else []
        digit = 1 + LETTERS + abs(int(shift[row]))
        text = [*letters[row, : length[row]], COMMA, letters[row, place[row]], COMMA, *sign, digit, COMMA]
        ids[row, 1 : len(text) + 1] = text
        at[row] = len(text)
    targets = letters[np.arange(count), place + shift]
    return torch.from_numpy(ids), torch.from_numpy(at), torch.from_numpy(targets)


def run(name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one seed of an arm; its curve as [step, loss, accuracy] of every 250 steps."""
    torch.set_num_threads(1)
    arm = ARMS[name]
    settings = {"delta_init": "uniform", **arm.model} if arm.position == "pope" else arm.model
    config = ModelConfig(width=WIDTH, layers=LAYERS, heads=HEADS, dropout=0.0, attention_dropout=0.0, **settings)
    torch.manual_seed(seed)
    # A stack of one: torch's own Muon multiplies in bf16, which takes a CPU fifteen times as long.
    model = StackedTransformer([Transformer(VOCABULARY, arm.position, config)])
    settings_of = OptimizerConfig(name=arm.optimizer, learning_rate=arm.rate, delta_rate=arm.delta_rate)
    optimizer = make_optimizer(model, settings_of, models=True, precision=torch.float32)
    rates = [group["lr"] for group in optimizer.param_groups]
    random = np.random.default_rng([seed, 7])
    curve, loss_sum, right, began = [], 0.0, 0, time.perf_counter()
    for step in range(1, steps + 1):
        ids, at, targets = draw(random, BATCH)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, step / WARMUP)
        logits = model(ids, at=at)[:, 0]
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        model.clip_gradients(1.0)
        optimizer.step()
        loss_sum += loss.item()
        right += int((logits.argmax(1) == targets).sum())
        if step % EVERY == 0:
            curve.append([step, round(loss_sum / EVERY, 4), round(right / (EVERY * BATCH), 4)])
            loss_sum, right = 0.0, 0
            if curve[-1][2] >= DONE:
                break
    seconds = round(time.perf_counter() - began, 1)
    return {"arm": name, "seed": seed, "steps": steps, "curve": curve, "seconds": seconds, **provenance("cpu")}


def report(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row an arm."""
    rows = []
    for name in ARMS:
        mine = sorted((r for r in runs if r["arm"] == name), key=lambda r: r["seed"])
        if not mine:
            continue
        rows.append(
            [
                name,
                str(len(mine)),
                f"{sum(_first(r, SOLVED) is not None for r in mine)} of {len(mine)}",
                ", ".join(_told(_first(r, SOLVED), r) for r in mine),
                ", ".join(_told(_first(r, DONE), r) for r in mine),
                ", ".join(f"{r['curve'][-1][1]:.2f}" for r in mine),
                f"{statistics.median(r['seconds'] / r['curve'][-1][0] for r in mine) * 1e3:.0f}",
            ]
        )
    head = ["", "seeds", "solved", "over 50% at step", "over 90% at step", "last loss, nats", "ms a step"]
    dates = sorted({r["date"][:10] for r in runs})
    devices = sorted({f"{r['device']}, torch {r['versions']['torch']}" for r in runs})
    commits = sorted({r["commit"] or "unknown" for r in runs})
    return "\n".join(
        [
            "# What decides whether Indirect Indexing is learned: a small model of a smaller task",
            "",
            f"{SHORTEST} to {LONGEST} of {LETTERS} letters, shifts to {LARGEST_SHIFT} either way, {WIDTH} wide, "
            f"{LAYERS} layers, batches of {BATCH}, fp32 (`benchmarks/indexing_small.py`). Accuracy and loss are "
            f"means over {EVERY} steps of examples not seen before; a run ends at {DONE:.0%}. Delta starts "
            "uniform and is not clamped unless said. Rates: Muon 2e-3, AdamW 1e-3.",
            "",
            table(head, rows),
            "",
            "; ".join(devices) + "; commit " + ", ".join(commits) + "; " + ", ".join(dates) + ".",
            "",
        ]
    )


def _first(one: dict[str, Any], share: float) -> int | None:
    return next((step for step, _, right in one["curve"] if right >= share), None)


def _told(step: int | None, one: dict[str, Any]) -> str:
    return f"not by {one['curve'][-1][0]:,}" if step is None else f"{step:,}"


def main() -> None:
    """Run what is not recorded yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000, help="of a run that does not solve the task before")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the table of what is recorded")
    asked = parser.parse_args()
    runs = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    if asked.steps < EVERY:
        parser.error(f"--steps is {asked.steps}, and a point of a curve takes {EVERY}")
    # A run that ended unsolved before so many steps is made again.
    known = {(r["arm"], r["seed"]) for r in runs if r["steps"] >= asked.steps or _first(r, DONE)}
    wanted = [(name, seed) for seed in range(asked.seeds) for name in asked.arms if (name, seed) not in known]
    if wanted and not asked.table:
        with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
            for future in as_completed([pool.submit(run, name, seed, asked.steps) for name, seed in wanted]):
                new = future.result()
                runs = [r for r in runs if (r["arm"], r["seed"]) != (new["arm"], new["seed"])] + [new]
                write_text(RESULTS, json.dumps(runs) + "\n")
                print(new["arm"], new["seed"], new["curve"][-1], f"{new['seconds']:.0f} s", flush=True)
    if not runs:
        parser.error(f"{RESULTS} does not exist: run the script without --table first")
    write_text(RESULTS.with_suffix(".md"), report(runs))


if __name__ == "__main__":
    main()
