"""How well a model's scores of variants tell ClinVar's pathogenic from its benign ones.

    seqpope score --fasta genome.fa.gz --vcf clinvar.vcf --out scored.tsv
    python benchmarks/clinvar.py scored.tsv --vcf clinvar.vcf --name "the shipped model"

Pathogenic and likely pathogenic against benign and likely benign, by CLNSIG in the VCF; what is uncertain or
conflicting is left out. AUROC: how often a pathogenic variant lowers the likelihood more than a benign one (ties
count half); the interval is that of 10,000 bootstrap samples of either class. To benchmarks/results/clinvar.json,
an entry a model, and .md.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from seqpope.domains.genome.vcf import VcfFile
from seqpope.files import write_text
from seqpope.markdown import table

SAMPLES = 10_000


def class_of(significance: str) -> int | None:
    """1 pathogenic, 0 benign, None neither."""
    words = significance.lower()
    if "conflicting" in words or "uncertain" in words:
        return None
    return 1 if "pathogenic" in words else 0 if "benign" in words else None


def auroc(pathogenic: np.ndarray, benign: np.ndarray) -> float:
    """The chance that one of the first is lower than one of the second."""
    ranks = rankdata(np.concatenate([-pathogenic, -benign]))
    n, m = len(pathogenic), len(benign)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def measured(pathogenic: np.ndarray, benign: np.ndarray) -> dict[str, Any]:
    """AUROC with its interval."""
    random = np.random.default_rng(0)
    again = [
        auroc(random.choice(pathogenic, len(pathogenic)), random.choice(benign, len(benign)))
        for _ in range(SAMPLES)
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    return {
        "pathogenic": len(pathogenic),
        "benign": len(benign),
        "auroc": auroc(pathogenic, benign),
        "low": float(low),
        "high": float(high),
    }


def main() -> None:
    """Measure one table of scores; write the results of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path, help="a .tsv that `seqpope score --vcf` has written")
    parser.add_argument("--vcf", type=Path, required=True, help="what was scored, with CLNSIG")
    parser.add_argument("--name", required=True, help="of the model, in the table")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "clinvar.json")
    given = parser.parse_args()
    classes = {}
    for record in VcfFile(given.vcf):
        fields = dict(word.partition("=")[::2] for word in record.text.split("\t")[7].split(";"))
        for alt in record.alts:
            classes[record.contig, str(record.position + 1), record.ref, alt] = class_of(fields.get("CLNSIG", ""))
    found: dict[str, list[list[float]]] = {"all": [[], []], "of one base": [[], []]}
    with open(given.scores, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            which = classes.get((row["contig"], row["position"], row["ref"], row["alt"]))
            if which is None or not row["delta"]:
                continue
            found["all"][which].append(float(row["delta"]))
            if len(row["ref"]) == len(row["alt"]) == 1:
                found["of one base"][which].append(float(row["delta"]))
    made = json.loads(given.scores.with_name(given.scores.name + ".json").read_text())
    entry = {
        "model": given.name,
        "sha256": made["model"]["sha256"],
        "genome": made["genome"]["identity"],
        **{name: made[name] for name in ("settings", "versions", "commit", "device", "date")},
        "variants": {name: measured(*map(np.array, reversed(values))) for name, values in found.items()},
    }
    every = json.loads(given.out.read_text()) if given.out.is_file() else []
    every = [other for other in every if other["model"] != given.name] + [entry]
    write_text(given.out, json.dumps(every, indent=1) + "\n")
    rows = [
        [
            each["model"],
            name,
            str(one["pathogenic"]),
            str(one["benign"]),
            f"{one['auroc']:.3f} ({one['low']:.3f} to {one['high']:.3f})",
        ]
        for each in every
        for name, one in each["variants"].items()
    ]
    text = table(["model", "variants", "pathogenic", "benign", "AUROC (95% bootstrap interval)"], rows)
    write_text(
        given.out.with_suffix(".md"), f"# ClinVar's pathogenic variants against its benign ones\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    main()
