"""A study's runs as one document: a row an arm, differences paired by seed, a table; and RESULTS.md of all.

Documents hold no place on a machine and nothing that a later reader would need a run's folder for.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.figures import read_curve
from seqpope.files import write_bytes, write_text
from seqpope.markdown import table
from seqpope.provenance import commit
from seqpope.reproduce.figures import draw_study
from seqpope.reproduce.lengths import length_differences, lengths_of, lengths_tables
from seqpope.reproduce.studies import STUDIES, UNRUN, Arm, Study, arm_config, is_read, shortened
from seqpope.results import FIELDS, LATER, flat, load_results, precision_of, recipe, seed_of
from seqpope.statistics import detectable_effect, equal_rates, estimate, rate_interval

SOLVED = 50.0  # per cent of targets
# Mean nats of the validation targets. A target that is not the likeliest has a probability of 1/2 at most and
# costs ln 2 or more; below half of that more than half of the targets are the likeliest, however the rest stand.
SOLVED_NATS = math.log(2) / 2


def summarise(study: Study, runs: Mapping[str, Sequence[Path]], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a study from the finished runs of its arms.

    Args:
        runs: by an arm's label, what `row_of` takes.
        plan: of it the share of the recipes' steps, "share".

    Raises:
        SeqpopeError: runs are not finished, not of the arm, or of other data or windows than other arms'.
    """
    rows = [row_of(study, arm, runs[arm.label], plan["share"]) for arm in study.arms if arm.label in runs]
    check_alike([(row["label"], measured_on(row)) for row in rows])
    arms = {arm.label: arm for arm in study.arms}
    by_label = {row["label"]: row for row in rows}
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "measure": study.measure,
        "published": study.published,
        "notes": list(study.notes),
        "lengths_split": study.lengths_split,
        "share": plan["share"],
        "commit": commit(),
        "rows": rows,
        "differences": [
            _difference(by_label[a], by_label[b], _settings_apart(arm_config(arms[a]), arm_config(arms[b])))
            for a, b in study.pairs
            if a in by_label and b in by_label
        ],
        "length_differences": [
            found
            for a, b in study.pairs
            if a in by_label and b in by_label
            for found in length_differences(by_label[a], by_label[b])
        ],
    }


def measured_on(row: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers must share to stand in one table: data, windows, targets."""
    return {
        "data set": row["dataset"],
        "data (content hash)": row["data"],
        "window": row["protocol"]["window"],
        "stride": row["protocol"]["stride"],
        "number of targets": row["tokens_scored"],
        **(
            {"precision at several lengths": row["length_targets"]["precision"]} if "length_targets" in row else {}
        ),
    }


def check_alike(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse arms, (label, what they are measured on), whose numbers cannot stand in one table.

    Raises:
        SeqpopeError: two differ in something that both tell.
    """
    for label, found in measured[1:]:
        first, wanted = measured[0]
        for name in wanted.keys() & found.keys():
            if found[name] != wanted[name]:
                raise SeqpopeError(
                    f"{first} and {label} cannot be compared: their {name} differs, {wanted[name]!r} and "
                    f"{found[name]!r}; take runs scored alike on the same data, and give its --data-folder"
                )


def row_of(study: Study, arm: Arm, paths: Sequence[Path], share: float = 1.0) -> dict[str, Any]:
    """An arm's row: from folders of runs, from report.json files, or as it stands in one document of the study.

    Args:
        share: of the recipe's steps that the runs should have.

    Raises:
        SeqpopeError: they are not finished, of another encoding, of different recipes or data, a seed comes
            twice, a report is given where the study needs folders, or a document is of another study or share.
    """
    documents = [path for path in paths if is_document(path)]
    if documents:
        if len(paths) > 1:
            raise SeqpopeError(
                f"{arm.label}: {documents[0]} has the whole row, so nothing can be added to it: take the folders "
                "of all runs, or the document alone"
            )
        return _of_document(study, arm, documents[0], share)
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
    _check_seeds(arm, results)
    wanted = flat(recipe(shortened(arm_config(arm), share).as_dict()))
    differs = {
        name: [wanted[name], value]
        for name, value in flat(recipe(results[0]["config"])).items()
        if name in wanted and wanted[name] != value and not name.startswith("eval_") and name != "dataset"
        if is_read(name, arm.position)
    }
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
        "differs_from_preset": differs,
    }
    if study.measure == "accuracy":
        curves = [
            read_curve(Path(r["folder"]))["validation_nats_per_token"] if "folder" in r else [] for r in results
        ]
        # No number is null: JSON has no nan.
        row["curves"] = [
            [[step, nats if math.isfinite(nats) else None] for step, nats in curve] for curve in curves if curve
        ]
        row["solved"] = sum(value > SOLVED for value in values)
        row["solved_at"] = [next((step for step, nats in curve if nats < SOLVED_NATS), None) for curve in curves]
    if arm.lengths and folders:
        row |= lengths_of(folders, arm.lengths, study.lengths_split)
    return row


def is_document(path: Path) -> bool:
    """Whether a file is what `write_study` writes, whole or not."""
    try:
        return Path(path).suffix == ".json" and "rows" in json.loads(Path(path).read_text())
    except (OSError, ValueError, TypeError):
        return False


def labels_of(path: Path) -> list[str]:
    """Labels of the arms in a study's document.

    Raises:
        SeqpopeError: it is none.
    """
    try:
        return [str(row["label"]) for row in json.loads(Path(path).read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeqpopeError(
            f"{path} is no document of a study ({error!r}): expected STUDY.json of `seqpope reproduce`, or "
            "LABEL=FOLDER for runs"
        ) from error


def _of_document(study: Study, arm: Arm, path: Path, share: float) -> dict[str, Any]:
    document = json.loads(Path(path).read_text())
    try:
        found = [row for row in document["rows"] if row["label"] == arm.label]
        if document["study"] != study.name or len(found) != 1:
            raise SeqpopeError(
                f"{path} is of {document['study']} and has {', '.join(row['label'] for row in document['rows'])}: "
                f"expected {study.name} with {arm.label}"
            )
        if not math.isclose(document["share"], share):
            raise SeqpopeError(
                f"{path} has {document['share']:g} of the recipes' steps, {share:g} are asked for: take runs of "
                f"as many, or give --share {document['share']:g}"
            )
        (row,) = found
        if row.get("lengths") and document.get("lengths_split", "test") != study.lengths_split:
            raise SeqpopeError(
                f"{path} was read in several lengths on the {document.get('lengths_split', 'test')} split, "
                f"{study.name} is on {study.lengths_split}: take the runs' folders"
            )
        markdown({**document, "rows": [row], "differences": [], "length_differences": []})
        measured_on(row), row["encoding"], row["recipe"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SeqpopeError(f"{path} is no whole document of a study ({error!r}): take runs' folders") from error
    if study.inspect:
        raise SeqpopeError(f"{arm.label}: {study.name} reads the models themselves: give the runs' folders")
    return row


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SeqpopeError(
            f"{path} is no report.json of `seqpope compare` ({what}): make it again, or give the runs' folders"
        ) from error
    return results


_REPORTED = {name: kind for name, kind in FIELDS.items() if name not in ("by_position", "documents")}


def _check_seeds(arm: Arm, results: Sequence[dict[str, Any]]) -> None:
    """Refuse runs of an arm, by rising seed, that are not seeds of one recipe measured alike."""
    first = results[0]
    for before, result in itertools.pairwise(results):
        if seed_of(before) == seed_of(result):
            raise SeqpopeError(f"{arm.label}: seed {seed_of(result)} comes twice: take each seed once")
    one = LATER | flat(recipe(first["config"]))
    for result in results[1:]:
        other = LATER | flat(recipe(result["config"]))
        apart = [(name, one[name], other[name]) for name in sorted(one.keys() & other.keys())]
        apart = [(name, a, b) for name, a, b in apart if a != b and name not in ("precision", "compile")]
        apart = [values for values in apart if is_read(values[0], arm.position)]
        measured = [measured_on({**r, "data": r["content"]}) for r in (first, result)]
        apart += [(name, a, measured[1][name]) for name, a in measured[0].items() if a != measured[1][name]]
        if apart:
            name, a, b = apart[0]
            raise SeqpopeError(
                f"{arm.label}: seeds {seed_of(first)} and {seed_of(result)} differ in {name}, {a!r} and {b!r}: "
                "expected seeds of one recipe, scored alike on the same data"
            )


def _settings_apart(a: TrainConfig, b: TrainConfig) -> set[str]:
    one, other = (flat(recipe(config.as_dict())) for config in (a, b))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _difference(a: Mapping[str, Any], b: Mapping[str, Any], meant: set[str]) -> dict[str, Any]:
    """Of two rows, a - b over the seeds that both have.

    Args:
        meant: settings in which the arms shall differ; "unlike" names all others in which the runs do.
    """
    one, other = (LATER | flat(row["recipe"]) | {"training precision": row["precision"]} for row in (a, b))
    unlike = {name for name in one.keys() & other.keys() if one[name] != other[name]} - meant
    unlike -= {"precision", "compile"}
    unlike = {name for name in unlike if is_read(name, a["encoding"]) and is_read(name, b["encoding"])}
    first, second = (dict(zip(row["seeds"], row["values"], strict=True)) for row in (a, b))
    seeds = sorted(first.keys() & second.keys())
    told: dict[str, Any] = {"a": a["label"], "b": b["label"], "seeds": seeds, "unlike": sorted(unlike)}
    if "solved" in a:
        solved = [(row["solved"], len(row["seeds"])) for row in (a, b)]
        told |= {"solved": [list(each) for each in solved], "solved_p": equal_rates(*solved)}
    told["paired"] = [first[seed] - second[seed] for seed in seeds]
    if not seeds:
        return {**told, "mean": None, "n": 0, "sd": None, "low": None, "high": None, "detectable": None}
    found = estimate(told["paired"])
    detectable = detectable_effect(found.sd, len(seeds)) if found.sd else None
    return {**told, **vars(found), "detectable": detectable}


def markdown(document: Mapping[str, Any]) -> str:
    """A study's table and sentences, a section of RESULTS.md."""
    accuracy = document["measure"] == "accuracy"
    digits, unit = (1, "%") if accuracy else (4, "nats/token")
    head = [
        "",
        "seeds",
        f"test {'accuracy, %' if accuracy else unit}",
        "published",
        "steps",
        "minutes to the best step",
    ]
    head += ["seeds solved (95% interval)", "surely solved at step"] if accuracy else ["best at step"]
    lines = []
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
            low, high = rate_interval(row["solved"], len(row["seeds"]))
            cells += [f"{row['solved']} of {len(row['seeds'])} ({low:.0%} to {high:.0%})", ", ".join(steps)]
        else:
            cells += [", ".join(f"{step:,}" for step in row["best_step"] if step is not None)]
        lines.append(cells)
    parts = [f"## {document['title']}", document["question"], table(head, lines)]
    parts += lengths_tables(document)
    parts += _frequencies_table(document)
    share = document["share"]
    first = document["rows"][0]
    known = STUDIES[document["study"]].arms if document["study"] in STUDIES else ()
    left = [arm.label for arm in known if arm.label not in {row["label"] for row in document["rows"]}]
    if left:
        parts.append(f"Not run: {'; '.join(left)}.")
    facts = [
        f"{first['tokens_scored']:,} targets of the test split, windows of {first['protocol']['window']} with "
        f"stride {first['protocol']['stride']}, weights of the best validation step, mean ± standard deviation "
        "over seeds."
    ]
    if any(minutes is not None for row in document["rows"] for minutes in row["minutes"]):
        facts.append("Minutes are of training, compiling included; seeds trained side by side share theirs.")
    if share < 1:
        facts.append(f"**{share:.1%} of the recipes' steps**, to fit a budget.")
    if document["published"]:
        facts.append(f"Published: {document['published']}.")
    baselines = {name: value for name, value in first["baselines"].items() if value is not None}
    if baselines and not accuracy:
        facts.append(
            "Count tables: " + ", ".join(f"{name} {value:.4f}" for name, value in baselines.items()) + "."
        )
    if accuracy:
        facts.append(
            f"Solved: accuracy over {SOLVED:g}%; the interval is the exact one of the share of seeds that are. "
            f"Surely solved: the first validation below {SOLVED_NATS:.3f} nats (ln 2 / 2), where more than half "
            "of the targets must be the likeliest token; it may have been solved before."
        )
    parts.append(" ".join(facts))
    parts += [_difference_text(difference, digits, unit) for difference in document["differences"]]
    intervals = sum(difference["low"] is not None for difference in document["differences"])
    if intervals > 2:
        parts.append(
            f"{intervals} intervals, each of its own: where nothing differs, one in 20 leaves out 0 all the same."
        )
    if accuracy and intervals:
        parts.append(
            "Where seeds solve a task or do not, accuracies have two peaks, and t intervals and the difference "
            "to be found are rough; the numbers of seeds solved say more."
        )
    parts += document["notes"]
    for row in document["rows"]:
        differs = row["differs_from_preset"]
        if differs:
            told = "; ".join(f"{k} {new} (preset {old})" for k, (old, new) in differs.items())
            parts.append(f"{row['label']} was run with {told}.")
    parts.append(f"![{document['title']}]({document['study']}.png)")
    devices, precisions, commits = (
        ", ".join(sorted({value for row in document["rows"] for value in row[name]}))
        for name in ("device", "precision", "commits")
    )
    parts.append(f"{devices}; trained in {precisions}, tested in fp32; commits {commits}.")
    return "\n\n".join(parts) + "\n"


def _frequencies_table(document: Mapping[str, Any]) -> list[str]:
    found = document.get("frequencies")
    if not found:
        return []

    def mean(shares: Sequence[float]) -> str:
        return f"{100 * sum(shares) / len(shares):.1f}"

    lines = []
    for label, group in found.items():
        shares = [mean(group["beyond"][name]) for name in ("query", "key", "product")]
        lines.append([label, f"{group['trained_length']:,}", *shares])
    parts = [
        "Share of the magnitude at wavelengths that never complete a turn in training (`seqpope inspect` on a run "
        "shows all):",
        table(["", "window", "query, %", "key, %", "query x key, %"], lines),
    ]
    if any("bands" not in group for group in found.values()):
        return parts  # a document of before there were any
    bands = [band["wavelengths"] for band in next(iter(found.values()))["bands"]]
    by_band = []
    for label, group in found.items():
        if [band["wavelengths"] for band in group["bands"]] == bands:
            shares = [f"{mean(band['product'])} ({100 * band['frequencies']:.1f})" for band in group["bands"]]
            by_band.append([label, *shares])
    return [
        *parts,
        "Share of query x key by wavelength in tokens, % (in brackets: even would be the share of frequencies):",
        table(["", *bands], by_band),
    ]


def _difference_text(found: Mapping[str, Any], digits: int, unit: str) -> str:
    text = f"{found['a']} minus {found['b']}: "
    if found["n"] == 0:
        text += "no seed in common, so no difference is told."
    elif found["n"] == 1:
        text += f"{found['mean']:+.{digits}f} {unit}, one pair: nothing follows from it."
    elif not found["detectable"]:  # no spread: t has nothing to go by
        text += f"{found['mean']:+.{digits}f} {unit} in each of {found['n']} pairs: no spread to judge it by."
    else:
        interval = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
        text += (
            f"{found['mean']:+.{digits}f} {unit} (95% t interval over {found['n']} paired seeds {interval}; were "
            "their spread that of all seeds, so many would find a true difference of "
            f"{found['detectable']:.{digits}f} four times in five)."
        )
        if found["low"] <= 0 <= found["high"]:
            text += " **These seeds cannot tell them apart.**"
        elif found["n"] < 3:
            text += " Two pairs are too few for a claim."
    if found.get("solved"):
        (a, of_a), (b, of_b) = found["solved"]
        text += (
            f" Solved by {a} of {of_a} and {b} of {of_b} seeds (Fisher's exact test: p = {found['solved_p']:.2g})."
        )
    if found.get("unlike"):
        text += (
            f" **These runs differ also in {', '.join(found['unlike'])}**: the difference is not that of the arms "
            "alone."
        )
    return text


def write_study(document: Mapping[str, Any], folder: Path, picture: bytes | None = None) -> None:
    """Write STUDY.json, STUDY.md and STUDY.png to a folder; the picture is `draw_study`'s if none is given."""
    name = document["study"]
    write_text(folder / f"{name}.json", json.dumps(document, indent=1) + "\n")
    write_text(folder / f"{name}.md", markdown(document))
    write_bytes(folder / f"{name}.png", picture or draw_study(document))


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
    texts = {}
    for name, document in documents.items():
        try:
            texts[name] = markdown(document).rstrip()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise SeqpopeError(
                f"the document of {name} in {folder} is not whole ({error!r}): make it again with "
                f"`seqpope reproduce {name}`"
            ) from error
    names = [n for n in STUDIES if n in documents] + sorted(set(documents) - set(STUDIES))
    place = Path(folder).resolve()
    parts = [
        "# Results",
        "Made by `seqpope reproduce results` from the JSON files in "
        f"`{_relative(place, file)}`; change those, not this file. NLL by the rules of the README: every target "
        "once, padding never a target, weights chosen on validation, each read of the test split logged.",
    ]
    for name in names:
        parts.append(texts[name].replace(f"]({name}.png)", f"]({_relative(place, file)}/{name}.png)"))
    missing = [
        f"{study.title}: `seqpope reproduce {study.name}`." + (f" {study.unrun}" if study.unrun else "")
        for study in STUDIES.values()
        if study.name not in documents
    ]
    parts += ["## Not run", "\n".join(f"- {line}" for line in [*missing, *UNRUN])]
    write_text(file, "\n\n".join(parts) + "\n")


def _relative(place: Path, file: Path) -> str:
    return os.path.relpath(place, file.resolve().parent).replace(os.sep, "/")
