"""A study's runs as one document: a row an arm, differences paired by seed, a table; and RESULTS.md of all.

Documents hold no place on a machine and nothing that a later reader would need a run's folder for.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.files import write_files, write_text
from seqpope.markdown import table
from seqpope.provenance import commit
from seqpope.reproduce.documents import NOT_WHOLE
from seqpope.reproduce.figures import draw_study
from seqpope.reproduce.lengths import choice_text, choose, length_differences, lengths_tables
from seqpope.reproduce.merging import check_alike, measured_on
from seqpope.reproduce.rows import SOLVED_NATS, row_of
from seqpope.reproduce.studies import SOLVED, STUDIES, UNRUN, Study, arm_config, is_read
from seqpope.results import LATER, flat, recipe
from seqpope.statistics import detectable_effect, equal_rates, estimate, rate_interval


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
        "budget": plan.get("budget"),
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
        "choice": choose(rows, study.candidates, study.default),
    }


def check_whole(study: Study, row: Mapping[str, Any]) -> None:
    """Make all of a row that documents are made of, to no purpose but this.

    Raises:
        SeqpopeError: it cannot be made.
    """
    about = {"study": study.name, "title": study.title, "question": "", "measure": study.measure, "published": ""}
    try:
        differences = [_difference(row, row, set())]
        of_lengths = length_differences(row, row)
        parts = {"rows": [row], "differences": differences, "length_differences": of_lengths}
        document = {**about, **parts, "notes": [], "share": 1.0, "lengths_split": study.lengths_split}
        markdown(json.loads(json.dumps(document, allow_nan=False)))
        draw_study(document)
    except NOT_WHOLE as error:
        raise SeqpopeError(
            f"the row of {row['label']} in a document is not whole ({error!r}): take its runs' folders"
        ) from error


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
    if len(a["precision"]) + len(b["precision"]) > 2:  # whose seed was trained in which is not known here
        unlike.add("training precision")
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
    head += ["seeds solved (95% interval)", "solved by step"] if accuracy else ["best at step"]
    lines = []
    for row in document["rows"]:
        found = estimate(row["values"])
        spread = f" ± {found.sd:.{digits}f}" if found.sd is not None else ""
        minutes = [m for m in row["minutes"] if m is not None]
        cells = [
            row["label"],
            str(len(row["seeds"])),
            f"{found.mean:.{digits}f}{spread}" + (_ends(row["values"], digits) if accuracy else ""),
            "" if row["published"] is None else f"{row['published']:g}",
            ", ".join(f"{steps:,}" for steps in row["steps"]),
            f"{sum(minutes) / len(minutes):.1f}" if minutes else "not recorded",
        ]
        if accuracy:
            times = Counter(step for step in row["solved_at"] if step is not None)
            steps = [
                f"{step:,}" + (f" ({count} seeds)" if count > 1 else "") for step, count in sorted(times.items())
            ]
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
        + ("(least to most) over seeds." if accuracy else "over seeds.")
    ]
    if any(minutes is not None for row in document["rows"] for minutes in row["minutes"]):
        facts.append(
            "Minutes are of training, compiling included; of seeds trained side by side each has its share of "
            "theirs, and runs that shared a GPU took longer than alone."
        )
    if share < 1:
        why = ", to fit a budget" if document.get("budget") else ""
        facts.append(f"**{100 * share:.3g}% of the recipes' steps**{why}.")
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
            "Solved by step: the first validation with such an accuracy or, where accuracies were not logged, "
            f"below {SOLVED_NATS:.3f} nats (ln 2 / 2), where more than half of the targets must be the likeliest "
            "token, else the step that was tested; it may have been solved before."
        )
    parts.append(" ".join(facts))
    unit = "points" if accuracy else unit
    parts += [_difference_text(difference, digits, unit) for difference in document["differences"]]
    of_lengths = [each for found in document.get("length_differences", []) for each in found["lengths"].values()]
    every = [each for each in document["differences"] + of_lengths if each is not None and each["low"] is not None]
    # Within the training length YaRN is the model itself, and an interval the same.
    intervals = len({(each["mean"], each["low"], each["high"]) for each in every})
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
    parts += choice_text(document)
    for row in document["rows"]:
        differs = row["differs_from_preset"]
        if differs:
            told = "; ".join(f"{k} {new} (expected {old})" for k, (old, new) in differs.items())
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


def _ends(values: Sequence[float], digits: int) -> str:
    """Of accuracies that may have two peaks a mean and its spread tell little."""
    return f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""


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
    name, text, picture = document["study"], markdown(document), picture or draw_study(document)
    contents = {"json": (json.dumps(document, indent=1) + "\n").encode(), "md": text.encode(), "png": picture}
    write_files({folder / f"{name}.{ending}": content for ending, content in contents.items()})


def write_results(folder: Path, file: Path) -> None:
    """Write one Markdown file of all studies' documents that lie in a folder.

    Raises:
        SeqpopeError: there is none, one cannot be read, or two are of one study.
    """
    documents: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            document = json.loads(path.read_text())
            name = document["study"]
            if not isinstance(name, str):
                raise TypeError(f"study is {name!r}")
        except NOT_WHOLE as error:
            raise SeqpopeError(
                f"{path} is no document of a study ({error!r}): take it away, or make it again with "
                "`seqpope reproduce`"
            ) from error
        if name in files:
            raise SeqpopeError(
                f"{files[name]} and {path} are both of {name}: put them together by --take, or take one away"
            )
        documents[name], files[name] = document, path
    if not documents:
        raise SeqpopeError(
            f"there are no documents of studies in {folder}: expected a folder with the JSON files that `seqpope "
            "reproduce` writes"
        )
    texts = {}
    for name, document in documents.items():
        try:
            texts[name] = markdown(document).rstrip()
        except NOT_WHOLE as error:
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
