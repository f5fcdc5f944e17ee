"""Rows of documents (STUDY.json) made on another day or machine, or of another study that trained the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.reproduce.merging import OF_ALL, differs, each_seed, measured_on
from seqpope.reproduce.studies import SOLVED, Arm, Study, arm_config

# What reading a file of another shape than expected comes to.
NOT_WHOLE = (
    OSError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    ArithmeticError,
)
_LEAST = (("optimizer", "steps"), ("optimizer", "learning_rate"), ("model", "width"))  # of a recipe
_WORD = re.compile(r"[^<>|`]{1,200}")  # of a GPU, a commit, a date
LARGEST = 1e6  # of what is measured of a seed; what is beyond cannot be


def is_document(path: Path) -> bool:
    """Whether a file is what `write_study` writes, whole or not."""
    try:
        return Path(path).suffix == ".json" and "rows" in json.loads(Path(path).read_text())
    except NOT_WHOLE:
        return False


def standing_for(study: Study, path: Path, share: float = 1.0) -> list[str]:
    """Labels of a study's arms for which a document has a row.

    One of the study itself by its labels; one of another study where that trained just what the arm is.

    Raises:
        SeqpopeError: it is no document, or has nothing of the study.
    """
    try:
        document = json.loads(Path(path).read_text())
        labels = [arm.label for arm in study.arms if _rows_in(document, study, arm, share)]
        own = document["study"] == study.name
        strange = [str(row["label"]) for row in document["rows"] if own and row["label"] not in labels]
        told = [str(row["label"]) for row in document["rows"]]
    except NOT_WHOLE as error:
        raise SeqpopeError(
            f"{path} is no document of a study ({error!r}): expected STUDY.json of `seqpope reproduce`, or "
            "LABEL=FOLDER for runs"
        ) from error
    if strange:
        known = "; ".join(arm.label for arm in study.arms)
        raise SeqpopeError(f"{path} has {', '.join(strange)}: {study.name} has no such arm, but {known}")
    if not labels:
        there = f"{path} of {document['study']} has {', '.join(told) or 'no rows'}"
        why = ""
        of_steps = document.get("share", share)
        if of_steps != share:
            why = f": it has {of_steps!r} of the recipes' steps, {share!r} are asked for (--share)"
        elif (read := document.get("lengths_split", "test")) != study.lengths_split:
            why = f": it was read on the {read} split, {study.name} is on {study.lengths_split}"
        raise SeqpopeError(f"{there}; {study.name} trains none of it{why}")
    return labels


def _rows_in(document: Mapping[str, Any], study: Study, arm: Arm, share: float) -> list[dict[str, Any]]:
    """A document's rows that are of an arm."""
    if document["study"] == study.name:
        return [row for row in document["rows"] if row["label"] == arm.label]
    if document["measure"] != study.measure or not math.isclose(document["share"], share):
        return []
    if arm.lengths and document.get("lengths_split", "test") != study.lengths_split:
        return []
    dataset = arm_config(arm).dataset
    return [
        row
        for row in document["rows"]
        if row["encoding"] == arm.position and row["dataset"] == dataset
        if not differs(arm, row["recipe"], share) and ("lengths" in row or not arm.lengths)
    ]


def row_of_document(study: Study, arm: Arm, path: Path, share: float) -> dict[str, Any]:
    """An arm's row as a document has it, held against the arm as it is now.

    Raises:
        SeqpopeError: the document is not of the arm or the share, or lacks what a row must tell.
    """
    try:
        document = json.loads(Path(path).read_text())
        found = _rows_in(document, study, arm, share)
        if document["measure"] != study.measure or len(found) != 1:
            raise SeqpopeError(
                f"{path} is of {document['study']}, in {document['measure']}, and has "
                f"{', '.join(str(row['label']) for row in document['rows'])}: expected {study.name}, in "
                f"{study.measure}, with {arm.label} once, or a study that trained the same"
            )
        if not math.isclose(document["share"], share):
            raise SeqpopeError(
                f"{path} has {document['share']!r} of the recipes' steps, {share!r} are asked for: take runs of "
                f"as many, or give --share {document['share']!r}"
            )
        row = {**found[0], "label": arm.label, "published": arm.published}
        if not arm.lengths:
            row = {name: value for name, value in row.items() if name not in _OF_LENGTHS}
        _check_row(study, arm, row, document.get("lengths_split", "test"), path)
        row["differs_from_preset"] = differs(arm, row["recipe"], share)
        if study.measure == "accuracy":
            row["solved"] = sum(value > SOLVED for value in row["values"])
    except NOT_WHOLE as error:
        raise SeqpopeError(f"{path} is no whole document of a study ({error!r}): take runs' folders") from error
    if study.inspect:
        raise SeqpopeError(f"{arm.label}: {study.name} reads the models themselves: give the runs' folders")
    return row


_OF_LENGTHS = ("lengths", "length_targets", "positions")


def _check_row(study: Study, arm: Arm, row: Mapping[str, Any], split: str, path: Path) -> None:
    if row["encoding"] != arm.position:
        raise SeqpopeError(f"{path}: {arm.label} is of {row['encoding']} there, expected {arm.position}")
    seeds = row["seeds"]
    if len(set(seeds)) < len(seeds) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds are {str(seeds)[:200]}")
    lists = each_seed(row)
    if study.measure == "accuracy":
        lists["solved_at",] = row["solved_at"]
    if arm.lengths:
        if split != study.lengths_split:
            raise SeqpopeError(
                f"{path} was read in several lengths on the {split} split, {study.name} is on "
                f"{study.lengths_split}: take the runs' folders"
            )
        row["lengths"][arm.position], row["positions"]["nats_per_token"][arm.position]
        for by_length in row["lengths"].values():
            if [int(length) for length in by_length] != sorted(set(arm.lengths)):
                raise SeqpopeError(
                    f"{path} was read at {', '.join(by_length)} tokens, {arm.label} is at "
                    f"{', '.join(map(str, arm.lengths))}: take the runs' folders"
                )
            for parts in by_length.values():
                parts["same"], parts["second_half"]
    for name, each in lists.items():
        if not isinstance(each, list) or len(each) != len(seeds):
            raise ValueError(f"{'.'.join(name)}: not every list has a number for each of {len(seeds)} seeds")
        most = 100 if study.measure == "accuracy" and name == ("values",) else LARGEST
        numbers = [value for value in each if value is not None and name != ("seeds",)]
        if name == ("values",) and len(numbers) < len(seeds):
            raise ValueError("values: a seed has none")
        if not all(type(value) in (int, float) and 0 <= value <= most for value in numbers):
            raise ValueError(f"{'.'.join(name)}: not every number is one of what is measured")
    if not all(isinstance(row[name], list) for name in OF_ALL):
        raise ValueError(f"expected lists of {', '.join(OF_ALL)}")
    told = {"data": [row["data"]], "baselines": list(row["baselines"]), "dates": row["dates"]}
    told |= {name: row[name] or [None] for name in ("device", "commits", "precision")}
    told["protocol"] = [word for word in row["protocol"].values() if type(word) not in (int, float)]
    for what, words in told.items():  # into Markdown as they are
        if not all(isinstance(word, str) and word.isprintable() and _WORD.fullmatch(word) for word in words):
            raise ValueError(f"{what}: expected names, found {str(words)[:200]}")
    if len(row["dates"]) != 2 or not row["steps"] or not all(type(steps) is int for steps in row["steps"]):
        raise ValueError(f"dates are {str(row['dates'])[:200]}, steps {str(row['steps'])[:200]}")
    if type(row["parameters"]) is not int or row["parameters"] < 1:
        raise ValueError(f"parameters are {row['parameters']!r}")
    if not all(name in row["recipe"][part] for part, name in _LEAST):
        raise ValueError("its recipe is not whole")
    measured_on(row)
