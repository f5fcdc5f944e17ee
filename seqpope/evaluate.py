"""The verb `evaluate`: a trained run scored on a split, every token once, written as JSON.

The result says everything that a reviewer asks of a number: split, tokens scored, window and stride, how the
first token is treated, precision, seed, step, data and tokenizer fingerprints, device, versions, commit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seqpope.checkpoint import BEST, CheckpointError, check_fingerprint, load_checkpoint
from seqpope.data.shards import SCORED, Split, TokenStore
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.nll import score_split
from seqpope.provenance import choose_device, provenance
from seqpope.results import READS, RESULT


def summarize(
    nats: np.ndarray, split: Split, strata: list[str], units: dict[str, float], window: int
) -> dict[str, Any]:
    """Sums and means of a split's token NLLs.

    Args:
        nats: (N,) nats of every token, each scored once.
        strata: names of flag bits 1, 2, ...
        units: units per token; those of `split.units`, counted for each document, come beside.
        window: tokens of a document that the paper's protocol reads.

    Returns:
        nats_per_token, tokens_scored, per unit and per stratum, the paper's protocol (the first token of a
        document and those past the window not scored), per document, and by position in the document.
    """
    scored = (split.flags & SCORED).astype(bool)
    if not scored.any():
        raise SeqpopeError("the split has no token to score: prepare the data again")
    if np.isnan(nats[scored]).any():
        raise ValueError("a scored token has no NLL: the window plan is wrong")
    place = np.arange(len(nats)) - np.repeat(split.starts[:-1], np.diff(split.starts))

    def mean(chosen: np.ndarray) -> dict[str, Any]:
        count = int(chosen.sum())
        total = float(nats[chosen].sum(dtype=np.float64))
        return {"tokens": count, "nats_per_token": total / count if count else None}

    total = float(nats[scored].sum(dtype=np.float64))
    count = int(scored.sum())
    edges = [
        0,
        *(2**k for k in range(2, 40) if 2**k < place.max(initial=0) + 1),
        int(place.max(initial=0)) + 1,
    ]
    documents = [
        {
            "name": split.names[d],
            "tokens": int(scored[a:b].sum()),
            "nats": float(nats[a:b][scored[a:b]].sum(dtype=np.float64)),
            **({"units": {name: float(counts[d]) for name, counts in split.units.items()}} if split.units else {}),
        }
        for d, (a, b) in enumerate(zip(split.starts[:-1], split.starts[1:], strict=True))
    ]
    counted = {name: count * per for name, per in units.items()}
    counted |= {name: float(counts.sum()) for name, counts in split.units.items()}
    return {
        "nats_per_token": total / count,
        "tokens_scored": count,
        "units": {
            name: {"nats": total / number if number else None, "count": number} for name, number in counted.items()
        },
        "strata": {
            name: mean(scored & (split.flags & (2 << bit)).astype(bool)) for bit, name in enumerate(strata)
        },
        "paper_protocol": {
            **mean(scored & (place > 0) & (place < window)),
            "definition": f"first token of each document and tokens past {window} not scored",
        },
        "by_position": [
            {"from": int(low), "to": int(high), **mean(scored & (place >= low) & (place < high))}
            for low, high in itertools.pairwise(edges)
        ],
        "documents": documents,
    }


def evaluate_run(
    run: Path,
    data_folder: Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    length: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a run's best weights on a split and write the result beside them.

    The test split's result is result.json, which makes a run finished; other splits or windows get names of
    their own. Every read of the test split is logged in test_reads.jsonl.

    Args:
        run: folder of one run.
        data_folder: folder of prepared data; the run's own if None.
        length: tokens in a window; the run's eval_length if None.
        stride: tokens scored by each window after a document's first; the run's eval_stride if None.

    Raises:
        SeqpopeError: the run has no weights, or the data is not what it was trained on.
    """
    config_file = run / "config.yaml"
    if not (run / BEST).is_file() or not config_file.is_file():
        raise CheckpointError(
            f"{run} is not the folder of a trained run: expected {BEST} and config.yaml in it "
            "(an experiment's runs are the folders inside it)"
        )
    config = yaml.safe_load(config_file.read_text())
    device = choose_device(device)
    model, info = load_checkpoint(run, device)
    store = TokenStore((data_folder or Path(config["data_folder"])) / info.dataset)
    manifest = store.manifest
    check_fingerprint(info, manifest.fingerprint, f"the data set in {store.folder}")
    if info.trained.get("data") != manifest.content:
        raise SeqpopeError(
            f"the data in {store.folder} ({manifest.content[:12]}) is not what {run} was trained on "
            f"({str(info.trained.get('data'))[:12]}): its splits may differ, so its test pieces may have been "
            "trained on; prepare the same version again"
        )
    default = length is None and stride is None
    length = config["eval_length"] if length is None else length
    stride = min(config["eval_stride"] if stride is None else stride, length)
    if stride < 1:
        raise SeqpopeError(f"length and stride must be at least 1, they are {length} and {stride}")
    part = store.split(split)
    made = provenance(device)
    if split == "test":
        line = {"date": made["date"], "commit": made["commit"], "length": length, "stride": stride}
        with open(run / READS, "a") as log:
            log.write(json.dumps(line) + "\n")
    nats = score_split(
        model, part, manifest.padding_id, length=length, stride=stride, device=device, progress=progress
    )
    result = {
        "run": run.name,
        "position": info.position,
        "domain": info.domain,
        "dataset": info.dataset,
        "split": split,
        **summarize(nats, part, manifest.strata, manifest.units, length),
        "baselines": {name: values.get(split) for name, values in manifest.baselines.items()},
        "protocol": {
            "window": length,
            "stride": stride,
            "first_token": "scored, predicted from padding at the input",
            "precision": "fp32",
            "selection": "best validation step",
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": info.trained,
        "fingerprint": manifest.fingerprint,
        "content": manifest.content,
        "config": config,
        **made,
    }
    name = RESULT if split == "test" and default else f"result-{split}-{length}-{stride}.json"
    write_text(run / name, json.dumps(result, indent=1) + "\n")
    return result
