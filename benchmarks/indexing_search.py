"""What decides how fast Indirect Indexing is learned: models side by side, each with its own rate and delta.

    python benchmarks/indexing_search.py --position pope --steps 30000 uniform:5e-5 uniform:2e-4 zero:5e-5
    python benchmarks/indexing_search.py --position rope --batch-size 256 none:2e-4
    python benchmarks/indexing_search.py --optimizer muon --steps 12000 uniform:1e-4 uniform:3e-4 uniform:1e-3
    python benchmarks/indexing_search.py --take runs/muon runs/muon-rope
    python benchmarks/indexing_search.py --table

--take records the losses that runs of `seqpope train --config indexing-paper` logged, finished or not.
A model is START:RATE. The rate is constant after 1,000 steps of warm-up; all else is configs/indexing-paper.yaml.
Curves of the training loss (examples are seen once an epoch, of which 100,000 steps are 6.4) go to
benchmarks/results/indexing-search.json, beside those of earlier calls; --table writes the .md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from seqpope import stack
from seqpope.config import TrainConfig
from seqpope.data.shards import find_store
from seqpope.domains.base import open_store
from seqpope.files import write_text
from seqpope.model.transformer import Transformer
from seqpope.presets import find_config
from seqpope.provenance import choose_device, provenance

RESULTS = Path(__file__).parent / "results" / "indexing-search.json"
EVERY = 250  # steps that a point of a curve is the mean of
SHOWN = (2000, 6000, 10000, 20000, 30000, 40000)


def main() -> None:
    """Run one search, or write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="START:RATE, START a delta_init, or none for RoPE")
    parser.add_argument("--position", default="pope", choices=("pope", "rope"))
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument("--beta2", type=float, default=0.99)
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    parser.add_argument("--take", nargs="*", type=Path, default=[], help="folders of experiments")
    parser.add_argument("--table", action="store_true", help="only write the table of what is recorded")
    asked = parser.parse_args()
    if not asked.table:
        found = [taken(folder) for folder in asked.take] or [search(asked)]
        recorded = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        write_text(RESULTS, json.dumps([*recorded, *found]) + "\n")
    write_text(RESULTS.with_suffix(".md"), table(json.loads(RESULTS.read_text())))


def search(asked: argparse.Namespace) -> dict[str, object]:
    """Train the models side by side; their curves and what made them."""
    starts, rates = zip(*((word.split(":")[0], float(word.split(":")[1])) for word in asked.models), strict=True)
    raw = yaml.safe_load(find_config("indexing-paper").read_text())
    raw |= {"position": asked.position, "baseline": "none", "seeds": len(rates), "data_folder": asked.data_folder}
    raw["data"]["batch_size"] = asked.batch_size
    raw["optimizer"] |= {
        "name": asked.optimizer,
        "learning_rate": max(rates),
        "min_learning_rate": max(rates),
        "warmup_steps": 1000,
        "steps": asked.steps,
        "beta2": asked.beta2,
    }
    config = TrainConfig.from_dict(raw)
    store = open_store(find_store(config.data_folder, config.dataset))
    device = choose_device(config.device)
    with tempfile.TemporaryDirectory() as place:
        training = stack.StackTraining(config, store, Path(place), device)
    made = []
    for seed, start in enumerate(starts):
        torch.manual_seed(seed)
        model = config.model if asked.position == "rope" else replace(config.model, delta_init=start)
        made.append(Transformer(store.manifest.vocabulary_size, asked.position, model))
    training.model.load_state_dict(stack.StackedTransformer(made).state_dict())
    training.model.train()
    share = torch.tensor(rates, device=device) / max(rates)
    parameters = list(training.model.parameters())
    shares = [
        share.repeat_interleave(len(p) // len(rates)).view(-1, *[1] * (p.dim() - 1)).expand_as(p)
        for p in parameters
    ]
    batches = training.batches()
    training.compile()
    total, curve, began = torch.zeros(len(rates), device=device), [], time.perf_counter()
    for batch in batches:
        found = training.read(batch)
        total += found.detach()
        before = [p.detach().clone() for p in parameters]
        training.update(found)
        with torch.no_grad():  # both optimisers' steps are proportional to the rate, their decay too
            for parameter, old, part in zip(parameters, before, shares, strict=True):
                parameter.copy_(torch.lerp(old, parameter, part))
        if training.step % EVERY == 0:
            curve.append([round(x / EVERY, 4) for x in total.tolist()])
            total.zero_()
            seconds = (time.perf_counter() - began) / training.step
            print(training.step, f"{seconds * 1e3:.1f} ms", *zip(asked.models, curve[-1], strict=True), flush=True)
    return {
        "position": asked.position,
        "models": asked.models,
        "batch_size": asked.batch_size,
        "optimizer": asked.optimizer,
        "beta2": asked.beta2,
        "every": EVERY,
        "curve": curve,
        **provenance(device),
    }


def taken(folder: Path) -> dict[str, object]:
    """What an experiment's runs of one encoding logged, as `search` has it; a point is of the logged batches."""
    curves = []
    runs = sorted(path.parent for path in folder.glob("*-seed*/config.yaml"))
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    for run in runs:
        spans: dict[int, list[float]] = {}
        with open(run / "logs" / "version_0" / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                if row["train_nats_per_token"]:
                    spans.setdefault((int(row["step"]) - 1) // EVERY, []).append(
                        float(row["train_nats_per_token"])
                    )
        logged = len(spans[0])
        curves.append([round(sum(span) / logged, 4) for _, span in sorted(spans.items()) if len(span) == logged])
    settings = config["optimizer"]
    start = config["model"]["delta_init"] if config["position"] == "pope" else "none"
    return {
        "position": config["position"],
        "models": [f"{start}:{settings['learning_rate']:g}"] * len(runs),
        "batch_size": config["data"]["batch_size"],
        "optimizer": settings["name"],
        "beta2": settings["beta2"],
        "every": EVERY,
        "cosine_until": settings["steps"],
        "batches_a_point": logged,
        "curve": [list(point) for point in zip(*curves, strict=False)],  # as far as all were logged
        **json.loads((runs[0] / "versions.json").read_text()),
    }


def table(recorded: list[dict]) -> str:
    """Markdown: a row a model, the loss at steps that several reached."""
    lines = [
        "# What decides how fast Indirect Indexing is learned",
        "",
        f"Training loss on the target in nats, mean over {EVERY} steps, at steps; constant rate after 1,000 steps "
        "of warm-up unless said, all else the paper's recipe (`benchmarks/indexing_search.py`). ln 52 = 3.95 "
        "knows letters alone; ln 30 = 3.40 which letters the string has; a solved task costs nearly 0.",
        "",
        "| optimizer | encoding | delta from | rate | batch | beta2 | "
        + " | ".join(f"{s:,}" for s in SHOWN)
        + " | last |",
        "|" + "---|" * (7 + len(SHOWN)),
    ]
    rows = []
    for one in recorded:
        for number, word in enumerate(one["models"]):
            start, rate = word.split(":")
            values = [row[number] for row in one["curve"]]
            cells = [
                f"{values[step // one['every'] - 1]:.3f}" if step <= len(values) * one["every"] else ""
                for step in SHOWN
            ]
            last = f"{values[-1]:.3f} at {len(values) * one['every']:,}"
            name = "PoPE" if one["position"] == "pope" else "RoPE"
            start = start if one["position"] == "pope" else ""
            optimizer = {"adamw": "AdamW", "muon": "Muon"}[one.get("optimizer", "adamw")]
            if "cosine_until" in one:
                last += f"; cosine to a tenth at {one['cosine_until']:,}, {one['batches_a_point']} batches a point"
            rows.append((optimizer, name, one["batch_size"], one["beta2"], float(rate), start, cells, last))
    for optimizer, name, batch, beta2, rate, start, cells, last in sorted(rows, key=lambda row: row[:6]):
        settings = f"| {optimizer} | {name} | {start} | {rate:g} | {batch} | {beta2} | "
        lines.append(settings + " | ".join(cells) + f" | {last} |")
    devices = sorted({f"{one['device']}, torch {one['versions']['torch']}" for one in recorded})
    commits = sorted({one["commit"] or "unknown" for one in recorded})
    dates = sorted({one["date"][:10] for one in recorded})
    lines += ["", f"{'; '.join(devices)}; bf16-mixed; commit {', '.join(commits)}; {', '.join(dates)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "inductor"))
    main()
