"""How fast training batches of a genome are made: tokens a second on one core, windows drawn and tokenized.

    python benchmarks/genome_input.py --data data/grch38 --out benchmarks/results/genome-input.json

Without --data a genome of random bases is made in a temporary folder. Each setting is the median of several
rounds; CPU seconds stand beside: they say what a core does where others work beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.genome import prepare
from seqpope.config import DataConfig
from seqpope.data.datamodule import DrawnBatches
from seqpope.domains.genome.store import GenomeStore
from seqpope.files import write_text
from seqpope.provenance import provenance

SETTINGS = {
    "six-mers": ("genome", {}),
    "six-mers, one strand": ("genome", {"reverse_complement": False}),
    "six-mers, soft-masked by half": ("genome", {"soft_mask_weight": 0.5}),
    "single bases": ("genome-bases", {}),
}


def make(folder: Path, megabases: int) -> Path:
    """A FASTA of random bases, half of them soft-masked, and stores of it in the same folder."""
    random = np.random.default_rng(0)
    lines = np.full((megabases * 1_000_000 // 80, 81), ord("\n"), np.uint8)
    lines[:, :80] = np.frombuffer(b"ACGT", np.uint8)[random.integers(0, 4, (len(lines), 80))]
    lines[:, :80] |= (random.random(len(lines)) < 0.5).astype(np.uint8)[:, None] << 5
    with open(folder / "random.fa", "wb") as file:
        file.write(b">random\n")
        file.write(lines.tobytes())
    for name in ("genome", "genome-bases"):
        prepare(folder / name, source=folder / "random.fa", dataset=name)
    return folder


def measure(
    store: GenomeStore, batch: int, length: int, steps: int, rounds: int, **options: Any
) -> dict[str, Any]:
    """Tokens a second of whole batches as tensors, by the clock and by this process's CPU time."""
    batches = DrawnBatches(store, DataConfig(batch_size=batch, length=length, **options), seed=0)
    for step in range(steps):  # pages come into memory, tables into the cache
        batches[step]
    wall, cpu = [], []
    for round_ in range(1, rounds + 1):
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for step in range(round_ * steps, (round_ + 1) * steps):
            batches[step]
        wall.append(time.perf_counter() - began)
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    tokens = steps * batch * length
    return {
        "tokens_per_second": tokens / statistics.median(wall),
        "tokens_per_cpu_second": tokens / statistics.median(cpu),
        "tokens_per_cpu_second_at_best": tokens / min(cpu),
        "milliseconds_a_batch": 1000 * statistics.median(wall) / steps,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the prepared data sets genome and genome-bases")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/genome-input.json"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabases", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or make(Path(temporary), options.megabases)
        sizes = (options.batch, options.length, options.steps, options.rounds)
        results = {
            name: measure(GenomeStore(folder / dataset), *sizes, **settings)
            for name, (dataset, settings) in SETTINGS.items()
        }
        source = "random" if options.data is None else GenomeStore(folder / "genome").manifest.provenance["source"]
    for name, figures in results.items():
        print(
            f"{name}: {figures['tokens_per_second'] / 1e6:.1f} M tokens/s, "
            f"{figures['tokens_per_cpu_second'] / 1e6:.1f} M tokens a CPU second "
            f"({figures['tokens_per_cpu_second_at_best'] / 1e6:.1f} in the best round), "
            f"{figures['milliseconds_a_batch']:.2f} ms a batch"
        )
    made = {"batch": options.batch, "length": options.length, "source": source, "load": os.getloadavg()[0]}
    write_text(options.out, json.dumps({**made, "results": results, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
