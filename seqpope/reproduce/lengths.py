"""How a study's models read beyond their training: what rows and documents hold of it, and its tables.

Two sets of targets (`evaluate.summarize_lengths`). The *second halves* of all whole windows of a length: each has
half the length before it; at a longer length they lie in fewer documents. The *same* targets at every length:
those of the longest, in the few documents that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.errors import SeqpopeError
from seqpope.markdown import table
from seqpope.results import WITH_YARN, load_lengths
from seqpope.statistics import estimate

MANY = 10  # documents, of which a curve by position wants as many


def lengths_of(folders: Sequence[Path], wanted: Sequence[int], split: str = "test") -> dict[str, Any]:
    """What an arm's row holds of `evaluate --lengths`, from the folders of its runs, seeds in order.

    Args:
        wanted: the arm's lengths; runs may have been read in others too.
        split: the split read.

    Returns:
        "lengths": by encoding and length, "same" and "second_half", nats/token of each seed; "length_targets":
        how many documents and targets those are; "positions": NLL by position in the longest window that many
        documents fill, mean over seeds, by encoding as [from, to, nats/token].

    Raises:
        SeqpopeError: a run was not read in these lengths, or some were read with YaRN and others without.
    """
    read = load_lengths(folders, _protocol(folders, wanted, split))
    lengths, names = read[0]["protocol"]["lengths"], list(read[0]["scores"])
    for other in read[1:]:
        if list(other["scores"]) != names:
            raise SeqpopeError(
                f"{read[0]['folder']} and {other['folder']} cannot stand in one row: they were read as "
                f"{', '.join(names)} and as {', '.join(other['scores'])}; read the one without YaRN again, with "
                f"`seqpope evaluate RUN --lengths {_listed(wanted)} --yarn`, the same --split and --precision"
            )
    records = {name: [[r["scores"][name][n] for r in read] for n in range(len(lengths))] for name in names}
    first = [each[0] for each in records[names[0]]]
    filled = [n for n, record in enumerate(first) if record["documents"] >= MANY]
    shown = filled[-1] if filled else 0
    return {
        "lengths": {
            name: {
                str(length): {
                    "same": [r["same_targets"]["whole"]["nats_per_token"] for r in each],
                    "second_half": [r["second_half"]["nats_per_token"] for r in each],
                }
                for length, each in zip(lengths, records[name], strict=True)
            }
            for name in names
        },
        "length_targets": {
            "precision": read[0]["protocol"]["precision"],
            "same": {
                "documents": len(read[0]["targets"]["same_documents"]),
                "tokens": read[0]["targets"]["same_tokens"],
            },
            "second_half": {
                str(length): {"documents": record["documents"], "tokens": record["second_half"]["tokens"]}
                for length, record in zip(lengths, first, strict=True)
            },
        },
        "positions": {
            "length": lengths[shown],
            "documents": first[shown]["documents"],
            "nats_per_token": {name: _by_position(records[name][shown]) for name in names},
        },
    }


def _protocol(folders: Sequence[Path], wanted: Sequence[int], split: str = "test") -> str:
    """Which of the files that runs hold is of these lengths, side by side: in bf16, as a GPU reads, or in fp32."""
    from seqpope.evaluate import lengths_file

    found: dict[str, list[Path]] = {}  # by a file's name, runs that lack it
    for precision in ("bf16", "fp32"):
        name, with_yarn = (lengths_file(split, wanted, precision=precision, yarn=yarn) for yarn in (False, True))
        found[name] = [
            run for run in map(Path, folders) if not ((run / name).is_file() or (run / with_yarn).is_file())
        ]
    name = min(found, key=lambda name: len(found[name]))
    if found[name]:
        raise SeqpopeError(
            f"{found[name][0]} holds no {name}: read it as the other runs with `seqpope evaluate {found[name][0]} "
            f"--lengths {_listed(wanted)}`"
            + ("" if name == list(found)[-1] else " and --precision bf16")
            + ("" if split == "test" else f" and --split {split}")
        )
    return name


def _listed(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths))


def _by_position(records: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """[from, to, nats/token] of the bins that are not empty."""
    seeds = [record["by_position"] for record in records]
    return [
        [bins[0]["from"], bins[0]["to"], float(np.mean([each["nats_per_token"] for each in bins]))]
        for bins in zip(*seeds, strict=True)
        if bins[0]["tokens"]
    ]


def series_of(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By what it is called in tables, what a row's runs reached in each length: as trained, and with YaRN."""
    return {
        row["label"] + (" with YaRN" if name.endswith(WITH_YARN) else ""): by_length
        for name, by_length in row.get("lengths", {}).items()
    }


def length_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of two rows, a - b paired by seed on the second halves of each length.

    Each as trained, and each with YaRN. Of two encodings a as trained stands against b with YaRN too.
    """
    seeds = sorted(set(a["seeds"]) & set(b["seeds"]))
    ours, theirs = series_of(a), series_of(b)
    if not seeds:
        return []

    def paired(first: Mapping[str, Any], other: Mapping[str, Any], length: str) -> dict[str, Any] | None:
        one, two = (
            dict(zip(row["seeds"], by_length[length]["second_half"], strict=True))
            for row, by_length in ((a, first), (b, other))
        )
        if any(each[seed] is None for each in (one, two) for seed in seeds):
            return None  # nothing is scored there
        return vars(estimate([one[seed] - two[seed] for seed in seeds]))

    return [
        {"a": label, "b": against, "lengths": {length: paired(first, other, length) for length in first}}
        for label, first in ours.items()
        for against, other in theirs.items()
        if other.keys() == first.keys()
        if (label == a["label"]) == (against == b["label"])
        or (label == a["label"] and a["encoding"] != b["encoding"])
    ]


ENOUGH = 3  # seeds, for a claim


def choose(rows: Sequence[Mapping[str, Any]], candidates: Sequence[str], default: str) -> dict[str, Any] | None:
    """Of candidates as trained, those not told from the best at the first length: the best of them at the last.

    Args:
        rows: of a study; seeds that not all candidates have are left out.
        candidates: labels.
        default: label of the candidate that is the default now.

    Returns:
        "near" and "far", the lengths; "best" at near; "alike", labels that a 95% interval of the difference to the
        best does not tell from it; "chosen", the lowest of these at far; "margin" over the default there, as
        `estimate` has it, None where the default is chosen. None where a candidate was not run, or fewer than
        `ENOUGH` seeds are of all, or one scored nothing.
    """
    found = {row["label"]: row for row in rows if row["label"] in candidates}
    own = {label: series_of(row).get(label) for label, row in found.items()}
    if not candidates or set(own) != set(candidates) or not all(own.values()):
        return None
    seeds = sorted(set.intersection(*(set(row["seeds"]) for row in found.values())))
    lengths = sorted(int(length) for length in own[default] or ())
    near, far = lengths[0], lengths[-1]

    def values(label: str, length: int) -> list[float]:
        of_seed = dict(zip(found[label]["seeds"], (own[label] or {})[str(length)]["second_half"], strict=True))
        return [of_seed[seed] for seed in seeds]

    if len(seeds) < ENOUGH or any(None in values(label, length) for label in candidates for length in (near, far)):
        return None

    def apart(label: str, other: str, length: int) -> dict[str, Any]:
        return vars(estimate([a - b for a, b in zip(values(label, length), values(other, length), strict=True)]))

    best = min(candidates, key=lambda label: np.mean(values(label, near)))
    alike = [label for label in candidates if label == best or not apart(label, best, near)["low"] > 0]
    chosen = min(alike, key=lambda label: np.mean(values(label, far)))
    margin = apart(chosen, default, far) if chosen != default else None
    parts = {"best": best, "alike": alike, "chosen": chosen, "default": default, "margin": margin}
    return {"near": near, "far": far, "seeds": len(seeds), **parts}


def choice_text(document: Mapping[str, Any]) -> list[str]:
    """What `choose` found, in words."""
    found = document.get("choice")
    if not found:
        return []
    alike = [label for label in found["alike"] if label != found["best"]]
    text = (
        f"By second halves of windows of the {document['lengths_split']} split, {found['best']} is best at "
        f"{found['near']:,}; {found['seeds']} seeds cannot tell from it: {'; '.join(alike) or 'none'}. Lowest of "
        f"these at {found['far']:,} is {found['chosen']}."
    )
    margin = found["margin"]
    if margin is None:
        return [f"{text} It is the default."]
    text += f" {found['chosen']} minus {found['default']}, the default: {_interval(margin)}."
    return [text + (" **These seeds cannot tell them apart.**" if margin["low"] <= 0 <= margin["high"] else "")]


def lengths_tables(document: Mapping[str, Any]) -> list[str]:
    """Paragraphs and tables of a document whose runs were read in several lengths."""
    rows = [row for row in document["rows"] if row.get("lengths")]
    if not rows:
        return []
    told = rows[0]["length_targets"]
    own, same = told["second_half"], told["same"]

    def by_length(head: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
        return table(["tokens read at once", *head], [[label, *cells] for label, cells in lines.items()])

    def means(which: str) -> dict[str, list[str]]:
        return {
            label: [_spread(values[which]) for values in series.values()]
            for row in rows
            for label, series in series_of(row).items()
        }

    split = document.get("lengths_split", "test")
    parts = [
        f"The second halves of all whole windows of a length, nats/token of the {split} split "
        f"({told['precision']}); within a column "
        "the targets are the same, from column to column they are not:",
        by_length([f"{int(n):,} ({_documents(of['documents'])})" for n, of in own.items()], means("second_half")),
        f"The same {same['tokens']:,} targets, of the {_documents(same['documents'])} that hold the longest "
        "window, at every length"
        + (": so few documents are an example, no measurement:" if same["documents"] < MANY else ":"),
        by_length([f"{int(n):,}" for n in own], means("same")),
    ]
    differences = document.get("length_differences", [])
    if differences:
        lines = {
            f"{found['a']} minus {found['b']}": [_interval(value) for value in found["lengths"].values()]
            for found in differences
        }
        parts += [
            "Differences on the second halves, paired by seed (95% t interval; of each alone):",
            by_length([f"{int(n):,}" for n in own], lines),
        ]
    return parts


def _documents(count: int) -> str:
    return f"{count:,} document" + ("" if count == 1 else "s")


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    found = estimate(known)
    return f"{found.mean:.3f}" + (f" ± {found.sd:.3f}" if found.sd is not None else "")


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    text = f"{found['mean']:+.3f}"
    return text + (f" ({found['low']:+.3f} to {found['high']:+.3f})" if found["low"] is not None else "")
