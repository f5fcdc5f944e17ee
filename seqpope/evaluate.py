"""The verb `evaluate`: a trained run scored on a split, every token once, written as JSON.

`evaluate_run` gives the number that a run is judged by; `evaluate_lengths` reads windows beyond the training's.

The result says everything that a reviewer asks of a number: split, tokens scored, window and stride, how the
first token is treated, precision, seed, step, data and tokenizer fingerprints, device, versions, commit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from seqpope.checkpoint import BEST, CheckpointError, CheckpointInfo, check_fingerprint, load_checkpoint
from seqpope.data.baselines import References
from seqpope.data.shards import SCORED, Split, Store, find_store
from seqpope.data.windows import plan_windows
from seqpope.domains.base import find_references, open_store
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.model.positions import find_position
from seqpope.model.transformer import Transformer, with_yarn
from seqpope.nll import score_split
from seqpope.progress import Progress
from seqpope.provenance import choose_device, provenance
from seqpope.results import IN_BITS, READS, RESULT, WITH_YARN


def summarize(
    nats: np.ndarray,
    split: Split,
    strata: list[str],
    units: dict[str, float],
    window: int,
    references: References | None = None,
) -> dict[str, Any]:
    """Sums and means of a split's token NLLs.

    Args:
        nats: (N,) nats of every token, each scored once.
        strata: names of flag bits 1, 2, ...
        units: units per token; those of `split.units`, counted for each document, come beside.
        window: tokens of a document that the paper's protocol reads.
        references: baselines measured on these tokens, and strata beside those of the flags.

    Returns:
        nats_per_token, tokens_scored, per unit and per stratum, the paper's protocol (the first token of a
        document and those past the window not scored), per document, and by position in the document; of each
        reference nats_per_token, per stratum, per document, and the strata of each document.
    """
    scored = (split.flags & SCORED).astype(bool)
    if not scored.any():
        raise SeqpopeError("the split has no token to score: prepare the data again")
    if np.isnan(nats[scored]).any():
        raise ValueError("a scored token has no NLL: the window plan is wrong")
    place = np.arange(len(nats)) - np.repeat(split.starts[:-1], np.diff(split.starts))
    chosen_by = {name: scored & (split.flags & (2 << bit)).astype(bool) for bit, name in enumerate(strata)} | {
        name: scored & mask for name, mask in (references.strata if references else {}).items()
    }

    def mean(chosen: np.ndarray, values: np.ndarray = nats) -> dict[str, Any]:
        count = int(chosen.sum())
        total = float(values[chosen].sum(dtype=np.float64))
        return {"tokens": count, "nats_per_token": total / count if count else None}

    def by_document(chosen: np.ndarray, values: np.ndarray) -> list[float]:
        sums = np.append(0, np.cumsum(np.where(chosen, values, 0), dtype=np.float64))
        return [float(x) for x in np.diff(sums[split.starts])]

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
        "strata": {name: mean(chosen) for name, chosen in chosen_by.items()},
        "paper_protocol": {
            **mean(scored & (place > 0) & (place < window)),
            "definition": f"first token of each document and tokens past {window} not scored",
        },
        "by_position": [
            {"from": int(low), "to": int(high), **mean(scored & (place >= low) & (place < high))}
            for low, high in itertools.pairwise(edges)
        ],
        "documents": documents,
        "references": {
            "text": references.text,
            # Of each document in each stratum, for intervals: what the model and what each baseline needed.
            "tokens": {name: by_document(chosen, np.ones(len(nats))) for name, chosen in chosen_by.items()},
            "nats": {name: by_document(chosen, nats) for name, chosen in chosen_by.items()},
            "baselines": {
                name: {
                    **mean(scored, values),
                    "documents": by_document(scored, values),
                    "strata": {
                        stratum: {**mean(chosen, values), "documents": by_document(chosen, values)}
                        for stratum, chosen in chosen_by.items()
                    },
                }
                for name, values in references.nats.items()
            },
        }
        if references
        else None,
    }


def _open_run(
    run: Path, data_folder: Path | None, device: str
) -> tuple[dict[str, Any], Transformer, CheckpointInfo, Store, str]:
    """A run's configuration, best weights and header, the data it was trained on, and where to compute."""
    config_file = run / "config.yaml"
    if not (run / BEST).is_file() or not config_file.is_file():
        raise CheckpointError(
            f"{run} is not the folder of a trained run: expected {BEST} and config.yaml in it "
            "(an experiment's runs are the folders inside it)"
        )
    config = yaml.safe_load(config_file.read_text())
    device = choose_device(device)
    model, info = load_checkpoint(run, device)
    store = open_store(find_store(data_folder or Path(config["data_folder"]), info.dataset))
    manifest = store.manifest
    check_fingerprint(info, manifest.fingerprint, f"the data set in {store.folder}")
    if info.trained.get("data") != manifest.content:
        raise SeqpopeError(
            f"the data in {store.folder} ({manifest.content[:12]}) is not what {run} was trained on "
            f"({str(info.trained.get('data'))[:12]}): its splits may differ, so its test pieces may have been "
            "trained on; prepare the same version again"
        )
    return config, model, info, store, device


def _log_read(run: Path, made: dict[str, Any], protocol: dict[str, Any]) -> None:
    line = {"date": made["date"], "commit": made["commit"], **protocol}
    with open(run / READS, "a") as log:
        log.write(json.dumps(line) + "\n")


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
    config, model, info, store, device = _open_run(run, data_folder, device)
    manifest = store.manifest
    default = length is None and stride is None
    length = config["eval_length"] if length is None else length
    stride = min(config["eval_stride"], length) if stride is None else stride
    if not 1 <= stride <= length:
        raise SeqpopeError(
            "length and stride must be at least 1, and the stride at most the length, they are "
            f"{length} and {stride}"
        )
    part = store.split(split)
    made = provenance(device)
    if split == "test":
        _log_read(run, made, {"length": length, "stride": stride})
    right = np.zeros(len(part.tokens), bool)
    nats = score_split(
        model,
        part,
        manifest.padding_id,
        length=length,
        stride=stride,
        device=device,
        progress=progress,
        right=right,
    )
    measure = find_references(info.domain)
    beside = Progress(f"{info.dataset} {split}  baselines", "kb") if progress is not None else None
    references = measure(store, split, beside) if measure is not None else None
    summary = summarize(nats, part, manifest.strata, manifest.units, length, references)
    measured = (summary["references"] or {"baselines": {}})["baselines"]
    result = {
        "run": run.name,
        "position": info.position,
        "domain": info.domain,
        "dataset": info.dataset,
        "split": split,
        **summary,
        "accuracy": float(right[(part.flags & SCORED).astype(bool)].mean()),
        "baselines": {name: values.get(split) for name, values in manifest.baselines.items()}
        | {name: value["nats_per_token"] for name, value in measured.items()},
        "protocol": {
            "window": length,
            "stride": stride,
            **{
                f"{what}_in_{plural}": value * manifest.units[unit]
                for unit, plural in IN_BITS.items()
                if unit in manifest.units
                for what, value in (("window", length), ("stride", stride), ("least_context", length - stride))
            },
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


BINS_PER_OCTAVE = 4  # of positions: 57 bins up to 20,480


@dataclass(frozen=True)
class LengthPlan:
    """How a split is read in windows of one length, token by token (`plan_lengths` makes it).

    place: (N,) place of a token in the window that scores it, from 0; -1 if none does. The model has then
        read place + 1 tokens: the one before the window (padding before a document's first), and the window
        up to it.
    whole: (N,) whether that window is `length` tokens long and not cut by the document's end.
    """

    length: int
    stride: int
    documents: list[int]
    windows: int
    place: np.ndarray
    whole: np.ndarray


def plan_lengths(split: Split, strides: Mapping[int, int]) -> list[LengthPlan]:
    """The windows of each length, in documents that are as long.

    Args:
        strides: tokens that each window after a document's first one scores, by length.

    Raises:
        SeqpopeError: no document is as long as the longest window, or a stride is not between 1 and its length.
    """
    sizes = np.diff(split.starts)
    plans = []
    for length, stride in sorted(strides.items()):
        if not 1 <= stride <= length:
            raise SeqpopeError(
                "expected lengths of at least 1 and strides from 1 to the length, got a stride of "
                f"{stride} for windows of {length}"
            )
        documents = np.flatnonzero(sizes >= length).tolist()
        if not documents:
            raise SeqpopeError(
                f"no document of the split holds a window of {length} tokens, the longest has "
                f"{int(sizes.max(initial=0))}: leave out the lengths beyond it"
            )
        place, whole, count, kept = (
            np.full(len(split.tokens), -1),
            np.zeros(len(split.tokens), bool),
            0,
            set(documents),
        )
        for window in plan_windows(split, length, stride):
            if window.document in kept:
                place[window.score : window.end] = np.arange(window.score, window.end) - window.start
                whole[window.score : window.end] = window.end - window.start == length
                count += window.end - window.start == length
        plans.append(LengthPlan(length, stride, documents, count, place, whole))
    return plans


def position_edges(end: int) -> list[int]:
    """Edges of bins of positions 0..end-1, evenly on a logarithmic axis, powers of two among them."""
    octaves = max(1, end).bit_length()
    edges = {0, 1, end, *(round(2 ** (k / BINS_PER_OCTAVE)) for k in range(octaves * BINS_PER_OCTAVE))}
    return sorted(edge for edge in edges if edge <= end)


def summarize_lengths(
    split: Split, plans: Sequence[LengthPlan], nats: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Sums and means of token NLLs by length of the window and by position in it.

    Two sets of targets. *Own*: all that whole windows of a length score. Longer windows fit into fewer and
    longer documents, so these numbers mix what is read with what it is read for; they are those of the usual
    table (with stride = length: windows side by side in a document, the rest at its end left out). *Same*: the
    targets of the longest length, which every length scores too, in a window cut by the document's end if need
    be (the model is causal: what lies behind a token does not matter). Lengths are compared on these.

    The second half of a window is where `length` shows: its targets have at least length / 2 tokens before
    them. On the same targets it holds those that lie in the second half of a window of every length; with
    stride = length / 2 that is nearly all of them, and this is the number to compare lengths by.

    Args:
        plans: of rising length.
        nats: for each encoding and plan (N,) nats of every token; nan where the plan scores none.

    Returns:
        "targets": what is in the sets; "scores": for each encoding a record for each length. Positions count
        from 0; bins hold count and mean, None if empty.
    """
    scored = (split.flags & SCORED).astype(bool)
    longest = plans[-1]
    document = np.repeat(np.arange(len(split)), np.diff(split.starts))
    position = np.arange(len(scored)) - split.starts[document]
    same = scored & longest.whole
    deep = same.copy()
    for plan in plans:
        deep &= 2 * plan.place >= plan.length
    sharing = np.unique(document[same])
    bounds = position_edges(int(position[same].max(initial=0)) + 1)

    def record(plan: LengthPlan, values: np.ndarray) -> dict[str, Any]:
        if np.isnan(values[scored & (plan.place >= 0)]).any():
            raise ValueError("a scored token has no NLL: the window plan is wrong")

        def mean(chosen: np.ndarray) -> dict[str, Any]:
            count, total = int(chosen.sum()), float(values[chosen].sum(dtype=np.float64))
            return {"tokens": count, "nats_per_token": total / count if count else None}

        def binned(chosen: np.ndarray, where: np.ndarray, edges: list[int]) -> list[dict[str, Any]]:
            index = np.searchsorted(edges, where[chosen], side="right") - 1
            counts = np.bincount(index, minlength=len(edges) - 1)
            totals = np.bincount(index, values[chosen], minlength=len(edges) - 1)
            return [
                {"from": low, "to": high, "tokens": int(n), "nats_per_token": float(total / n) if n else None}
                for (low, high), n, total in zip(itertools.pairwise(edges), counts, totals, strict=True)
            ]

        own = scored & plan.whole
        sums = np.bincount(document[same], values[same], minlength=len(split))
        return {
            "length": plan.length,
            "stride": plan.stride,
            "documents": len(plan.documents),
            "windows": plan.windows,
            "whole": mean(own),
            "second_half": mean(own & (2 * plan.place >= plan.length)),
            "by_position": binned(own, plan.place, position_edges(plan.length)),
            "same_targets": {
                "whole": mean(same),
                "second_half": mean(deep),
                "by_document_position": binned(same, position, bounds),
                "document_nats": [float(sums[d]) for d in sharing],
            },
        }

    return {
        "targets": {
            "split_documents": len(split),
            "split_tokens": int(scored.sum()),
            "same_documents": [split.names[d] for d in sharing],
            "same_document_tokens": np.bincount(document[same], minlength=len(split))[sharing].tolist(),
            "same_tokens": int(same.sum()),
            "same_tokens_second_half": int(deep.sum()),
        },
        "scores": {
            name: [record(plan, values) for plan, values in zip(plans, each, strict=True)]
            for name, each in nats.items()
        },
    }


def evaluate_lengths(
    run: Path,
    lengths: Sequence[int],
    data_folder: Path | None = None,
    *,
    split: str = "test",
    device: str = "auto",
    stride: int | None = None,
    stride_share: float = 1.0,
    yarn: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_tokens: int = 32768,
    progress: Callable[[str, int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a run's best weights in windows of several lengths, within and beyond the training's, and write it.

    A split is read once for each length; `summarize_lengths` says what is counted. The result is written whole
    at the end, beside the run's own result (`lengths_file` names it: another protocol, another file). A read of
    the test split is logged. On a GPU no path of RoPE, YaRN, NoPE and PoPE writes out L x L.

    Args:
        run: folder of one run.
        lengths: tokens in a window; each document at least so long is read.
        data_folder: folder of prepared data; the run's own if None.
        split: which split.
        device: where to compute.
        stride: tokens that each window after a document's first one scores, the same for all lengths.
        stride_share: the same as a share of each length, if stride is None; 1 lays windows side by side (half
            the cost of 0.5), 0.5 gives each target past the first window at least length / 2 tokens of context.
        yarn: score a RoPE or PoPE run a second time through YaRN without fine-tuning, its factor for each length
            being length / training length (dynamic scaling), at least 1. Encodings that YaRN does not extend are
            scored as they are, and the result says so.
        precision: fp32, or bf16 by autocast; logits and sums are fp32 and fp64 in both.
        batch_tokens: about as many tokens are read at once, at least one window.
        progress: called with encoding, length, tokens done and tokens in all.

    Raises:
        SeqpopeError: the run has no weights, the data is not what it was trained on, or lengths and strides do
            not fit each other or the documents.
    """
    config, model, info, store, device = _open_run(run, data_folder, device)
    if precision not in ("fp32", "bf16"):
        raise SeqpopeError(f"precision must be fp32 or bf16, it is {precision!r}")
    if not lengths:
        raise SeqpopeError("no length is given: expected some, such as 2048,4096,8192")
    if stride is None and not 0 < stride_share <= 1:
        raise SeqpopeError(f"the stride's share of a length must be in (0, 1], it is {stride_share}")
    strides = {
        length: max(1, round(stride_share * length)) if stride is None else stride for length in set(lengths)
    }
    part, manifest = store.split(split, at_least=max(lengths)), store.manifest
    plans = plan_lengths(part, strides)
    made = provenance(device)
    protocol = {
        "lengths": [plan.length for plan in plans],
        "strides": [plan.stride for plan in plans],
        "precision": precision,
    }
    if split == "test":
        _log_read(run, made, protocol)

    def scored(name: str, plan: LengthPlan, reader: Transformer) -> np.ndarray:
        def forward(ids: Tensor) -> Tensor:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
                return reader(ids)

        return score_split(
            forward,
            part,
            manifest.padding_id,
            length=plan.length,
            stride=plan.stride,
            device=device,
            batch_tokens=batch_tokens,
            documents=set(plan.documents),
            progress=None if progress is None else lambda done, total: progress(name, plan.length, done, total),
        )

    nats = {info.position: [scored(info.position, plan, model) for plan in plans]}
    longer = find_position(info.position).longer
    factors = [max(1.0, plan.length / info.length) for plan in plans]
    if yarn and longer is not None:
        name = info.position + WITH_YARN
        nats[name] = [
            # With a factor of 1 it is the model itself.
            plain if factor == 1 else scored(name, plan, with_yarn(model, factor, info.length))
            for plan, factor, plain in zip(plans, factors, nats[info.position], strict=True)
        ]
    result = {
        "run": run.name,
        "position": info.position,
        "domain": info.domain,
        "dataset": info.dataset,
        "split": split,
        "trained_length": info.length,
        **summarize_lengths(part, plans, nats),
        "protocol": {
            **protocol,
            "windows": "within a document; documents shorter than the length are not read at it",
            "positions": "counted from 0; at position p the model has read p + 1 tokens",
            "first_token": "scored, predicted from padding at the input",
            "yarn_factors": factors if yarn and longer is not None else None,
            "fine_tuning": "none",
            "selection": "best validation step",
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": info.trained,
        "fingerprint": manifest.fingerprint,
        "content": manifest.content,
        "config": config,
        **made,
    }
    name = lengths_file(
        split, lengths, stride=stride, stride_share=stride_share, precision=precision, yarn=len(nats) > 1
    )
    write_text(run / name, json.dumps(result, indent=1) + "\n")
    return result


NAMED_LENGTHS = 8  # more would make names that no one reads, and in the end none that a disk takes


def lengths_file(
    split: str,
    lengths: Sequence[int],
    *,
    stride: int | None = None,
    stride_share: float = 1.0,
    precision: str = "fp32",
    yarn: bool = False,
) -> str:
    """Name of the file that `evaluate_lengths` writes, such as lengths-test-2048-4096-bf16-yarn.json.

    Windows side by side and fp32 are not named. `yarn` comes last: such a file holds all that the one without it
    does, and what is before it says which files may be compared (`results.load_lengths`).
    """
    read = sorted(set(lengths))
    numbers = [str(length) for length in read]
    if len(read) > NAMED_LENGTHS:
        numbers = [numbers[0], "to", numbers[-1], hashlib.sha256(repr(read).encode()).hexdigest()[:8]]
    parts = ["lengths", split, *numbers]
    if stride is not None:
        parts.append(f"stride{stride}")
    elif stride_share != 1:
        parts.append(f"share{stride_share:g}")
    if precision != "fp32":
        parts.append(precision)
    return "-".join([*parts, "yarn"] if yarn else parts) + ".json"
