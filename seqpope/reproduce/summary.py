"""A study's runs as one document: a row an arm, differences paired by seed, a table; and RESULTS.md of all.

Documents hold no place on a machine and nothing that a later reader would need a run's folder for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqpope.errors import SeqpopeError
from seqpope.figures import read_curve
from seqpope.files import write_bytes, write_text
from seqpope.provenance import commit
from seqpope.reproduce.figures import draw_study
from seqpope.reproduce.studies import STUDIES, UNRUN, Arm, Study, arm_config
from seqpope.results import flat, load_lengths, load_results, precision_of, recipe, seed_of
from seqpope.statistics import detectable_effect, estimate

SOLVED = 50.0  # per cent of targets
SOLVED_NATS = 1.0  # of the target, on validation: from here on more than half are named, and none is by chance


def summarise(study: Study, runs: Mapping[str, Sequence[Path]], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a study from the finished runs of its arms.

    Args:
        runs: by an arm's label, folders of runs or report.json files.

    Raises:
        SeqpopeError: runs are not finished, or not of the arm.
    """
    rows = [row_of(study, arm, runs[arm.label]) for arm in study.arms if arm.label in runs]
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "measure": study.measure,
        "published": study.published,
        "notes": list(study.notes),
        "share": plan["share"],
        "commit": commit(),
        "rows": rows,
        "differences": [
            found
            for pair in study.pairs
            if (found := _difference({row["label"]: row for row in rows}, *pair)) is not None
        ],
    }


def row_of(study: Study, arm: Arm, paths: Sequence[Path]) -> dict[str, Any]:
    """An arm's row, from folders of runs or report.json files.

    Raises:
        SeqpopeError: they are not finished, or of another encoding.
    """
    reports = [path for path in paths if Path(path).suffix == ".json"]
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
    wanted = flat(recipe(arm_config(arm).as_dict()))
    differs = {
        name: [wanted[name], value]
        for name, value in flat(recipe(results[0]["config"])).items()
        if name in wanted and wanted[name] != value and not name.startswith("eval_") and name != "dataset"
    }
    if study.measure == "accuracy":
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
        "differs_from_preset": differs,
    }
    if study.measure == "accuracy":
        curves = [read_curve(Path(r["folder"]))["validation_nats_per_token"] for r in results if "folder" in r]
        row["curves"] = [[list(point) for point in curve] for curve in curves]
        row["solved"] = sum(value > SOLVED for value in values)
        row["solved_at"] = [next((step for step, nats in curve if nats < SOLVED_NATS), None) for curve in curves]
    if arm.lengths and folders:
        read = load_lengths(folders)
        row["lengths"] = {
            encoding: {
                str(length): [r["scores"][encoding][n]["same_targets"]["whole"]["nats_per_token"] for r in read]
                for n, length in enumerate(read[0]["protocol"]["lengths"])
            }
            for encoding in read[0]["scores"]
        }
    return row


def _of_report(path: Path) -> list[dict[str, Any]]:
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text())["results"]
        assert all("nats_per_token" in result for result in results)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise SeqpopeError(f"{path} is no report.json of `seqpope compare` ({error!r})") from error
    return results


def _difference(rows: Mapping[str, dict[str, Any]], a: str, b: str) -> dict[str, Any] | None:
    if a not in rows or b not in rows:
        return None
    first, second = (dict(zip(rows[n]["seeds"], rows[n]["values"], strict=True)) for n in (a, b))
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    paired = [first[seed] - second[seed] for seed in seeds]
    found = estimate(paired)
    detectable = detectable_effect(found.sd, len(paired)) if found.sd is not None else None
    return {"a": a, "b": b, "seeds": seeds, "paired": paired, **vars(found), "detectable": detectable}


def markdown(document: Mapping[str, Any]) -> str:
    """A study's table and sentences, a section of RESULTS.md."""
    accuracy = document["measure"] == "accuracy"
    digits, unit = (1, "%") if accuracy else (4, "nats/token")
    head = ["", "seeds", f"test {'accuracy, %' if accuracy else unit}", "published", "steps", "minutes to it"]
    head += ["seeds solved", "solved at step"] if accuracy else ["best at step"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in document["rows"]:
        found = estimate(row["values"])
        spread = f" ± {found.sd:.{digits}f}" if found.sd is not None else ""
        minutes = [m for m in row["minutes"] if m is not None]
        cells = [
            row["label"],
            str(len(row["seeds"])),
            f"{found.mean:.{digits}f}{spread}",
            "" if row["published"] is None else f"{row['published']:g}",
            ", ".join(f"{steps:,}" for steps in row["steps"]),
            f"{sum(minutes) / len(minutes):.1f}" if minutes else "not recorded",
        ]
        if accuracy:
            steps = [f"{step:,}" for step in row["solved_at"] if step is not None]
            cells += [f"{row['solved']} of {len(row['seeds'])}", ", ".join(steps)]
        else:
            cells += [", ".join(f"{step:,}" for step in row["best_step"] if step is not None)]
        lines.append("| " + " | ".join(cells) + " |")
    parts = [f"## {document['title']}", document["question"], "\n".join(lines)]
    parts += _lengths_table(document)
    parts += _frequencies_table(document)
    share = document["share"]
    first = document["rows"][0]
    facts = [
        f"{first['tokens_scored']:,} targets of the test split, windows of {first['protocol']['window']} with "
        f"stride {first['protocol']['stride']}, weights of the best validation step, mean ± standard deviation "
        "over seeds."
    ]
    if share < 1:
        facts.append(f"**{share:.1%} of the recipes' steps**, to fit a budget.")
    if document["published"]:
        facts.append(f"Published: {document['published']}.")
    baselines = {name: value for name, value in first["baselines"].items() if value is not None}
    if baselines and not accuracy:
        facts.append(
            "Count tables: " + ", ".join(f"{name} {value:.4f}" for name, value in baselines.items()) + "."
        )
    parts.append(" ".join(facts))
    parts += [_difference_text(difference, digits, unit) for difference in document["differences"]]
    parts += document["notes"]
    for row in document["rows"]:
        if row["differs_from_preset"] and share == 1:
            told = "; ".join(f"{k} {new} (preset {old})" for k, (old, new) in row["differs_from_preset"].items())
            parts.append(f"{row['label']} was run with {told}.")
    parts.append(f"![{document['title']}]({document['study']}.png)")
    devices, precisions, commits = (
        ", ".join(sorted({value for row in document["rows"] for value in row[name]}))
        for name in ("device", "precision", "commits")
    )
    parts.append(f"{devices}; trained in {precisions}, tested in fp32; commits {commits}.")
    return "\n\n".join(parts) + "\n"


def _lengths_table(document: Mapping[str, Any]) -> list[str]:
    rows = [row for row in document["rows"] if row.get("lengths")]
    if not rows:
        return []
    lengths = list(next(iter(rows[0]["lengths"].values())))
    lines = ["| tokens read at once | " + " | ".join(f"{int(n):,}" for n in lengths) + " |"]
    lines.append("|---|" + "---|" * len(lengths))
    for row in rows:
        for encoding, by_length in row["lengths"].items():
            label = row["label"] + (" with YaRN" if encoding.endswith("+yarn") else "")
            cells = []
            for values in by_length.values():
                found = estimate(values)
                cells.append(f"{found.mean:.3f}" + (f" ± {found.sd:.3f}" if found.sd is not None else ""))
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return ["The same targets at every length, nats/token:", "\n".join(lines)]


def _frequencies_table(document: Mapping[str, Any]) -> list[str]:
    found = document.get("frequencies")
    if not found:
        return []
    lines = ["| | window | query, % | key, % | query x key, % |", "|---|---|---|---|---|"]
    for label, group in found.items():
        shares = [100 * sum(group["beyond"][n]) / len(group["beyond"][n]) for n in ("query", "key", "product")]
        lines.append(f"| {label} | {group['trained_length']:,} | " + " | ".join(f"{x:.1f}" for x in shares) + " |")
    return [
        "Share of the magnitude at wavelengths that never complete a turn in training (`seqpope inspect` on a run "
        "shows all):",
        "\n".join(lines),
    ]


def _difference_text(found: Mapping[str, Any], digits: int, unit: str) -> str:
    text = f"{found['a']} minus {found['b']}: {found['mean']:+.{digits}f} {unit}"
    if found["low"] is None:
        return text + ", one pair: nothing follows from it."
    interval = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
    text += f" (95% t interval over {found['n']} paired seeds {interval}"
    text += f"; the smallest difference that so many find four times in five is {found['detectable']:.{digits}f})."
    if found["low"] <= 0 <= found["high"]:
        return text + " **These seeds cannot tell them apart.**"
    if found["n"] < 3:
        return text + " Two pairs are too few for a claim."
    return text


def write_study(document: Mapping[str, Any], folder: Path) -> None:
    """Write STUDY.json, STUDY.md and STUDY.png to a folder."""
    name = document["study"]
    write_text(folder / f"{name}.json", json.dumps(document, indent=1) + "\n")
    write_text(folder / f"{name}.md", markdown(document))
    write_bytes(folder / f"{name}.png", draw_study(document))


def write_results(folder: Path, file: Path) -> None:
    """Write one Markdown file of all studies' documents that lie in a folder.

    Raises:
        SeqpopeError: there is none, or one cannot be read.
    """
    documents = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            document = json.loads(path.read_text())
            documents[document["study"]] = document
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SeqpopeError(f"{path} is no document of a study ({error!r})") from error
    if not documents:
        raise SeqpopeError(
            f"there are no documents of studies in {folder}: expected what `seqpope reproduce` writes"
        )
    names = [n for n in STUDIES if n in documents] + sorted(set(documents) - set(STUDIES))
    place = Path(folder).resolve()
    parts = [
        "# Results",
        "Made by `seqpope reproduce results` from the JSON files in "
        f"`{_relative(place, file)}`; change those, not this file. NLL by the rules of the README: every target "
        "once, padding never a target, weights chosen on validation, each read of the test split logged.",
    ]
    for name in names:
        text = markdown(documents[name]).rstrip()
        parts.append(text.replace(f"]({name}.png)", f"]({_relative(place, file)}/{name}.png)"))
    missing = [
        f"{study.title}: `seqpope reproduce {study.name}`."
        for study in STUDIES.values()
        if study.name not in documents
    ]
    parts += ["## Not run", "\n".join(f"- {line}" for line in [*missing, *UNRUN])]
    write_text(file, "\n\n".join(parts) + "\n")


def _relative(place: Path, file: Path) -> str:
    return os.path.relpath(place, file.resolve().parent).replace(os.sep, "/")
