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
from seqpope.reproduce.documents import NOT_WHOLE, is_document, row_of_document
from seqpope.reproduce.lengths import lengths_of
from seqpope.reproduce.merging import check_seeds, differs, merge_rows
from seqpope.reproduce.studies import SOLVED, Arm, Study
from seqpope.results import FIELDS, load_results, precision_of, recipe, seed_of

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
    documents = [path for path in dict.fromkeys(paths) if is_document(path)]
    others = [path for path in paths if path not in documents]
    parts = [(str(path), row_of_document(study, arm, path, share)) for path in documents]
    try:
        if others or not parts:
            parts.append((", ".join(map(str, others)), _of_runs(study, arm, others, share)))
        return merge_rows(arm.label, parts)
    except NOT_WHOLE as error:
        raise SeqpopeError(
            f"{arm.label}: what is taken is not whole ({error!r}), {', '.join(map(str, paths))}: score the runs "
            "again with `seqpope evaluate` and take their folders"
        ) from error


def _of_runs(study: Study, arm: Arm, paths: Sequence[Path], share: float) -> dict[str, Any]:
    """A row of runs' folders and reports."""
    reports = [path for path in paths if Path(path).suffix == ".json"]
    missing = [path for path in reports if not Path(path).is_file()]
    if missing:
        raise SeqpopeError(
            f"{arm.label}: there is no {missing[0]}: expected a document of a study, or report.json"
        )
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
        "differs_from_preset": differs(arm, recipe(results[0]["config"]), share),
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
