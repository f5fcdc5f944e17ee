"""Train a JSB preset over several seeds, side by side on one GPU, and record the result.

    python benchmarks/jsb.py jsb-paper --seeds 3
    python benchmarks/jsb.py jsb-augmented --seeds 3

Each encoding and seed is a `seqpope train` process of its own (they are too small to fill a GPU alone); finished
runs are kept, so an interrupted benchmark goes on where it was. `--record-only` writes the JSON from runs that
are finished. The result lands in benchmarks/results/PRESET/: report.json with every run's NLL, recipe, GPU,
versions, commit and date, report.md and the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from seqpope.files import write_text
from seqpope.report import compare

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Read the options, train what is not finished, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="jsb-paper or jsb-augmented")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of experiments")
    parser.add_argument("--data-folder", type=Path, default=Path("data"))
    parser.add_argument("--record-only", action="store_true")
    options = parser.parse_args()
    names = {(p, s): f"{options.preset}-{p}-{s}" for s in range(options.seeds) for p in ("pope", "rope")}
    if not options.record_only:
        processes = []
        for (position, seed), name in names.items():
            words = ["--resume", options.out / name]
            if not (options.out / name / "config.yaml").is_file():
                words = ["--config", options.preset, "--position", position, "--baseline", "none"]
                words += [
                    "--seed",
                    seed,
                    "--name",
                    name,
                    "--out",
                    options.out,
                    "--data-folder",
                    options.data_folder,
                ]
            command = [sys.executable, "-m", "seqpope", "train", *map(str, words)]
            processes.append(subprocess.Popen(command))
        if any([process.wait() for process in processes]):
            raise SystemExit("a run failed: mend the cause and start again, finished runs are kept")
    folder = RESULTS / options.preset
    report = compare([options.out / name for name in names.values()], folder)
    record = {"command": f"python benchmarks/jsb.py {options.preset} --seeds {options.seeds}"}
    record |= json.loads((folder / "report.json").read_text())
    write_text(folder / "report.json", json.dumps(record, indent=1) + "\n")
    print(report["markdown"])


if __name__ == "__main__":
    main()
