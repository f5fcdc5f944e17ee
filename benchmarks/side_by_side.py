"""Time a training step of several seeds side by side, of PoPE and of its RoPE twin.

    seqpope prepare indexing && python benchmarks/side_by_side.py
    python benchmarks/side_by_side.py --config jsb-augmented --seeds 3 --optimizer adamw --data-folder data

A step is that of `seqpope train --config ... --side-by-side true --seeds N`, batches and their way to the GPU
included, validation apart. The first, which compiles, shows whether the models' losses are those that each has
alone; then come --warm-up steps and --rounds times --steps that are timed. The encodings follow each other in one
process. Results: side-by-side.json and side-by-side.md in --out, written anew after every row; earlier rows of the
same configuration, optimiser and seeds are replaced.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from seqpope.config import TrainConfig
from seqpope.data.datamodule import Batch
from seqpope.data.shards import find_store
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.markdown import table
from seqpope.nll import batch_nats
from seqpope.presets import find_config
from seqpope.provenance import choose_device, provenance
from seqpope.stack import StackTraining

RESULTS = Path(__file__).resolve().parent / "results"
ENCODINGS = ("pope", "rope")
KEY = ("config", "optimizer", "seeds", "position", "device")


def main(words: list[str] | None = None) -> None:
    """Read the options, measure row by row, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="indexing-paper", help="a preset or a file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 8], metavar="N")
    parser.add_argument("--optimizer", nargs="+", choices=("adamw", "muon"), default=["adamw", "muon"])
    parser.add_argument("--steps", type=int, default=100, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=10, help="steps before the first round")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    asked = parser.parse_args(words)
    for name in ("steps", "rounds", "warm_up"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, it is {getattr(asked, name)}")
    device = choose_device(asked.device)
    file = asked.out / "side-by-side.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    for optimizer, seeds, position in itertools.product(asked.optimizer, asked.seeds, ENCODINGS):
        config = TrainConfig.from_dict(yaml.safe_load(find_config(asked.config).read_text()))
        config = replace(config, position=position, seeds=seeds, side_by_side=True, data_folder=asked.data_folder)
        config.optimizer.name = optimizer
        row = {
            "config": asked.config,
            "optimizer": optimizer,
            "seeds": seeds,
            "position": position,
            **measure(config, device, asked.warm_up, asked.steps, asked.rounds),
            **provenance(device),
        }
        gc.collect()  # before the next one asks for as much
        if device == "cuda":
            torch.cuda.empty_cache()
        rows = [old for old in rows if any(old[name] != row[name] for name in KEY)] + [row]
        write_text(file, json.dumps(rows, indent=1) + "\n")
        write_text(file.with_suffix(".md"), report(rows))
        print(optimizer, seeds, position, row["ms"], "ms a step", flush=True)


def measure(config: TrainConfig, device: str, warm_up: int, steps: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a step, round by round; seconds of the warm-up; peak memory.

    Raises:
        SeqpopeError: the data set has not been prepared, or the models' losses are not those that they have alone.
    """

    def seconds(count: int) -> float:
        began = time.perf_counter()
        for batch in itertools.islice(batches, count):
            training.update(training.read(batch))
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    recipe_steps = config.optimizer.steps
    config.optimizer.steps = max(recipe_steps, 1 + warm_up + steps * rounds)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    store = open_store(find_store(config.data_folder, config.dataset))
    with tempfile.TemporaryDirectory() as place:
        training = StackTraining(config, store, Path(place), device)
    batches = iter(training.batches())
    training.compile()
    apart = losses_apart(training, next(batches))
    training.model.train()
    warm = seconds(warm_up)
    return {
        "ms": [round(1e3 * seconds(steps) / steps, 3) for _ in range(rounds)],
        "warm_up_seconds": round(warm, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None,
        "losses_apart": apart,
        "compiled": training.compiled,
        "precision": training.precision,
        "recipe_steps": recipe_steps,
    }


def losses_apart(training: StackTraining, batch: Batch) -> float:
    """Take a step; how far the models' losses in it lie from those that each has alone, a share of them.

    Raises:
        SeqpopeError: it is more than their precision explains: what would be timed is wrong.
    """
    dropout = training.config.model.dropout or training.config.model.attention_dropout
    training.model.train(not dropout)
    together = training.read(batch)
    half = training.precision != "32-true"
    alone = []
    for number, rows in enumerate(zip(*(x.chunk(training.model.models) for x in batch), strict=True)):
        model = training.model.take_out(number, training.alone)
        # Autocast of its own for each: one would keep the first model's weights in bf16 and use them for all.
        with torch.no_grad(), torch.autocast(training.device, torch.bfloat16, enabled=half):
            alone.append(batch_nats(model, [x.to(training.device) for x in rows], one_target=training.one_target))
    share = float((together.detach() / torch.stack(alone).view(-1) - 1).abs().max())
    allowed = 1e-4 if training.precision == "32-true" else 1e-2
    if not share <= allowed:
        raise SeqpopeError(
            f"side by side the losses are off by {share:.1e} of what each model has alone, expected at most "
            f"{allowed:.0e}: a step that computes something else is not timed"
        )
    training.update(together)  # CUDA graphs want a backward pass behind each forward pass
    return share


def each(found: dict[str, dict[str, Any]], told: Callable[[dict[str, Any]], str]) -> list[str]:
    """A cell for each encoding, empty where it was not measured."""
    return [told(found[position]) if position in found else "" for position in ENCODINGS]


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a configuration, optimiser and number of seeds, both encodings beside each other."""
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        place = (row["config"], row["optimizer"], row["seeds"], row["device"])
        lines.setdefault(place, {})[row["position"]] = row
    cells = []
    for (config, optimizer, seeds, device), found in sorted(lines.items()):
        middle = {position: statistics.median(row["ms"]) for position, row in found.items()}
        some = next(iter(found.values()))
        cells.append(
            [
                config,
                {"adamw": "AdamW", "muon": "Muon"}[optimizer],
                str(seeds),
                *each(found, lambda row: f"{statistics.median(row['ms']):.1f}"),
                f"{middle['pope'] / middle['rope']:.3f}" if len(found) == 2 else "",
                *each(found, lambda row: f"{statistics.median(row['ms']) * row['recipe_steps'] / 6e4:.1f}"),
                *each(found, lambda row: f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""),
                f"{device}, {'compiled, ' if some['compiled'] else ''}{some['precision']}",
            ]
        )
    head = [
        "recipe",
        "optimiser",
        "seeds",
        "PoPE, ms",
        "RoPE, ms",
        "PoPE / RoPE",
        "PoPE, minutes",
        "RoPE, minutes",
    ]
    made = sorted({f"commit {row['commit'] or 'unknown'}, torch {row['versions']['torch']}" for row in rows})
    return "\n".join(
        [
            "# A training step of several seeds side by side",
            "",
            "Median of rounds, milliseconds of a step of all the seeds together, its batches included "
            "(`benchmarks/side_by_side.py`); minutes are those of the recipe's steps at that rate, compiling and "
            "validation apart.",
            "",
            table([*head, "PoPE, GiB", "RoPE, GiB", "on"], cells),
            "",
            "; ".join(made) + ".",
            "",
        ]
    )


if __name__ == "__main__":
    main()
