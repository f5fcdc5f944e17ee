"""An arm's row of a study: from finished runs, from their reports, from documents made before, or of all these.

A row holds no place on a machine and all that tables, figures and differences are made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.figures import read_curve
from seqpope.reproduce.lengths import lengths_of
from seqpope.reproduce.merging import OF_EACH_SEED, check_seeds, merge_rows
from seqpope.reproduce.studies import Arm, Study, arm_config, is_read, shortened
from seqpope.results import FIELDS, flat, load_results, precision_of, recipe, seed_of

# What reading a file of another shape than expected comes to.
NOT_WHOLE = (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)
SOLVED = 50.0  # per cent of targets
# Mean nats of the validation targets. A target that is not the likeliest has a probability of 1/2 at most and
# costs ln 2 or more; below half of that more than half of the targets are the likeliest, however the rest stand.
SOLVED_NATS = math.log(2) / 2


def row_of(study: Study, arm: Arm, paths: Sequence[Path], share: float = 1.0) -> dict[str, Any]:
    """An arm's row: of the seeds in folders of runs, in report.json files and in documents of studies.

    Args:
        share: of the recipe's steps that the runs should have.

    Raises:
        SeqpopeError: they are not finished, of another encoding, of different recipes or data, a seed comes
            twice, a report is given where the study needs folders, or a document is of another study or share.
    """
    documents = [path for path in paths if is_document(path)]
    others = [path for path in paths if path not in documents]
    rows = [_of_document(study, arm, path, share) for path in documents]
    if others or not rows:
        rows.append(_of_runs(study, arm, others, share))
    try:
        return merge_rows(arm.label, rows)
    except NOT_WHOLE as error:
        raise SeqpopeError(
            f"{arm.label}: a row of {' or '.join(map(str, documents))} is not whole ({error!r}): take its runs' "
            "folders"
        ) from error


def _of_runs(study: Study, arm: Arm, paths: Sequence[Path], share: float) -> dict[str, Any]:
    """A row of runs' folders and reports."""
    reports = [path for path in paths if Path(path).suffix == ".json"]
    if reports and (arm.lengths or study.inspect):
        raise SeqpopeError(
            f"{arm.label}: {study.name} reads the runs themselves, and {reports[0]} has only their results: "
            "give their folders"
        )
    results = [r for path in reports for r in _of_report(Path(path)) if r["position"] == arm.position]
    folders = [path for path in paths if path not in reports]
    results += load_results(folders) if folders else []
    others = sorted({r["position"] for r in results} - {arm.position})
    if others or not results:
        raise SeqpopeError(
            f"{arm.label}: expected runs of {arm.position}, "
            + (f"some are of {others[0]}" if others else "there are none")
        )
    results.sort(key=seed_of)
    check_seeds(arm.label, results)
    if study.measure == "accuracy":
        if any(not isinstance(r.get("accuracy"), (int, float)) for r in results):
            raise SeqpopeError(
                f"{arm.label}: the results tell no accuracy, they are of an older version: score the runs again "
                "with `seqpope evaluate`"
            )
        values = [100 * r["accuracy"] for r in results]
    else:
        values = [r["nats_per_token"] for r in results]
    row = {
        "label": arm.label,
        "encoding": arm.position,
        "published": arm.published,
        "seeds": [seed_of(r) for r in results],
        "values": values,
        "validation": [r["trained"].get("validation_nats_per_token") for r in results],
        "best_step": [r["trained"].get("step") for r in results],
        "steps": sorted({r["config"]["optimizer"]["steps"] for r in results}),
        "minutes": [r["trained"]["seconds"] / 60 if "seconds" in r["trained"] else None for r in results],
        "units": {u: [r["units"][u]["nats"] for r in results] for u in results[0]["units"]},
        "parameters": results[0]["parameters"],
        "tokens_scored": results[0]["tokens_scored"],
        "dataset": results[0]["dataset"],
        "data": results[0]["content"],
        "protocol": results[0]["protocol"],
        "baselines": results[0]["baselines"],
        "precision": sorted({precision_of(r) for r in results}),
        "device": sorted({r["device"] for r in results}),
        "commits": sorted({r["commit"] or "unknown" for r in results}),
        "dates": [min(r["date"] for r in results), max(r["date"] for r in results)],
        "recipe": recipe(results[0]["config"]),
        "differs_from_preset": _differs(arm, recipe(results[0]["config"]), share),
    }
    if study.measure == "accuracy":
        logged = [read_curve(Path(r["folder"])) if "folder" in r else {} for r in results]
        curves = [each.get("validation_nats_per_token", []) for each in logged]
        # No number is null: JSON has no nan.
        row["curves"] = [
            [[step, nats if math.isfinite(nats) else None] for step, nats in curve] for curve in curves if curve
        ]
        row["solved"] = sum(value > SOLVED for value in values)
        row["solved_at"] = [
            _solved_at(each, step if value > SOLVED else None)
            for each, value, step in zip(logged, values, row["best_step"], strict=True)
        ]
    if arm.lengths and folders:
        row |= lengths_of(folders, arm.lengths, study.lengths_split)
    return row


def _solved_at(logged: Mapping[str, Sequence[tuple[int, float]]], tested: int | None) -> int | None:
    """The first step at which validation or, at `tested`, the test shows that a task was solved."""
    by_accuracy = [s for s, share in logged.get("validation_accuracy", ()) if 100 * share > SOLVED]
    by_nats = [s for s, nats in logged.get("validation_nats_per_token", ()) if nats < SOLVED_NATS]
    found = [*by_accuracy, *by_nats, *([] if tested is None else [tested])]
    return min(found, default=None)


def _differs(arm: Arm, found: dict[str, Any], share: float) -> dict[str, list[Any]]:
    """Settings of a recipe that the arm's, at that share of its steps, has otherwise: [the arm's, found]."""
    wanted = flat(recipe(shortened(arm_config(arm), share).as_dict()))
    return {
        name: [wanted[name], value]
        for name, value in flat(found).items()
        if name in wanted and wanted[name] != value and name not in ("eval_length", "eval_stride", "dataset")
        if is_read(name, arm.position)
    }


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
        asked = f" at share {share!r}" if share < 1 else ""
        raise SeqpopeError(f"{there}: {study.name} trains none of it{asked}")
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
        if not _differs(arm, row["recipe"], share) and ("lengths" in row or not arm.lengths)
    ]


def _of_document(study: Study, arm: Arm, path: Path, share: float) -> dict[str, Any]:
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
        row["differs_from_preset"] = _differs(arm, row["recipe"], share)
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
    if len(set(seeds)) < len(seeds) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"seeds are {seeds}")
    series = [row[name] for name in OF_EACH_SEED]
    series += [row["solved_at"]] if study.measure == "accuracy" else []
    if arm.lengths:
        if split != study.lengths_split:
            raise SeqpopeError(
                f"{path} was read in several lengths on the {split} split, {study.name} is on "
                f"{study.lengths_split}: take the runs' folders"
            )
        row["lengths"][arm.position]
        for by_length in row["lengths"].values():
            if [int(length) for length in by_length] != sorted(set(arm.lengths)):
                raise SeqpopeError(
                    f"{path} was read at {', '.join(by_length)} tokens, {arm.label} is at "
                    f"{', '.join(map(str, arm.lengths))}: take the runs' folders"
                )
            series += [value[which] for value in by_length.values() for which in ("same", "second_half")]
    if any(len(each) != len(seeds) for each in series):
        raise ValueError(f"not every list has a number for each of {len(seeds)} seeds")


def _of_report(path: Path) -> list[dict[str, Any]]:
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text())["results"]
        for result in results:
            wrong = [name for name, kind in _REPORTED.items() if not isinstance(result[name], kind)]
            if wrong:
                raise ValueError(f"{', '.join(wrong)}: of another kind than expected")
            if not math.isfinite(result["nats_per_token"]):
                raise ValueError(f"nats_per_token is {result['nats_per_token']}")
            result["config"]["optimizer"]["steps"], result["protocol"]["window"], result["protocol"]["stride"]
    except NOT_WHOLE as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SeqpopeError(
            f"{path} is no report.json of `seqpope compare` ({what}): make it again, or give the runs' folders"
        ) from error
    return results


_REPORTED = {name: kind for name, kind in FIELDS.items() if name not in ("by_position", "documents")}
