"""What Markov models reach on a prepared genome, and how much of its test split the training sequences hold.

    python benchmarks/genome_references.py --data data/genome --split test

Every scored base once, by stratum, in bits/base and nats/token; seconds and memory. Result: genome-references.json
and .md in --out. What `seqpope evaluate` has measured of the store already is measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path

import numpy as np

from seqpope.domains.genome.references import NOT_SEEN, complement, measure_anew
from seqpope.domains.genome.store import GenomeStore
from seqpope.files import write_text
from seqpope.progress import Progress
from seqpope.provenance import provenance


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a prepared genome")
    parser.add_argument("--split", default="test")
    parser.add_argument("--without", default="", help="a stratum outside of which the unseen are shown")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    store = GenomeStore(given.data)
    began = time.monotonic()
    found = measure_anew(store, given.split, Progress("measuring", "kb"))
    seconds = time.monotonic() - began
    split, k = store.split(given.split), store.reading.k
    strata = {"all": np.ones(len(split.tokens), bool)}
    strata |= {
        name: (split.flags & (2 << bit)).astype(bool) for bit, name in enumerate(store.manifest.strata)
    } | found.strata
    if given.without:
        both = strata[complement(given.without)] & strata[NOT_SEEN]
        strata |= {f"{complement(given.without)}, {NOT_SEEN}": both}
    rows = {
        stratum: {
            "tokens": int(mask.sum()),
            **{name: float(nats[mask].mean(dtype=np.float64)) for name, nats in found.nats.items()},
        }
        for stratum, mask in strata.items()
        if stratum == "all" or (mask.any() and not mask.all())
    }
    sizes = {
        name: int((known[:, 2] - known[:, 1]).sum()) for name in store.intervals for known in [store.known(name)]
    }
    result = {
        "strata": rows,
        "text": found.text,
        "bases": sizes,
        "seconds": seconds,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        **provenance(),
    }
    lines = [
        "# Markov models on a genome, and what of its test split was in training",
        "",
        f"Known bases: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}. {' '.join(found.text)}",
        "",
        f"| stratum | bases | {' | '.join(f'{name}, bits/base (nats/token)' for name in found.nats)} |",
        "|---" * (2 + len(found.nats)) + "|",
    ]
    for stratum, row in rows.items():
        cells = [f"{row[name] / k / math.log(2):.3f} ({row[name]:.3f})" for name in found.nats]
        lines.append(f"| {stratum} | {k * row['tokens']:,} | {' | '.join(cells)} |")
    lines += ["", f"{seconds:.0f} s and {result['memory_gb']:.1f} GB on {result['device']}."]
    write_text(given.out / "genome-references.json", json.dumps(result, indent=1) + "\n")
    write_text(given.out / "genome-references.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
