"""Train a study's arms, as far as they are not there yet, and read what they reached.

OUT/STUDY/
    timing.json                   what arms were found to take, until a budget is enough for them (`budget`)
    plan.yaml                     share of the steps, seeds, arms and data: interrupted work goes on with these
    ARM/                          an experiment of `seqpope train` for each arm, or
    parts/                        one for each arm and seed, where several train at a time (`spreading`)
    STUDY.json  STUDY.md  STUDY.png
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.files import held, write_text
from seqpope.reproduce.budget import TIMED, fitting_share
from seqpope.reproduce.documents import is_document
from seqpope.reproduce.merging import check_alike, measured_on
from seqpope.reproduce.rows import row_of
from seqpope.reproduce.spreading import train_spread
from seqpope.reproduce.studies import Arm, Study, arm_config, check_share, meant, shortened, slug
from seqpope.reproduce.summary import check_whole, summarise, write_study
from seqpope.results import RESULT, load_results
from seqpope.signals import Interrupted


def _inspect(runs: Mapping[str, Sequence[Path]], folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write what the models use each frequency for to folder/inspect; return the gist of it."""
    from seqpope.inspection.models import inspect_models
    from seqpope.inspection.writing import inspect_to

    folders = [path for paths in runs.values() for path in paths if path.is_dir()]
    found = inspect_models(folders, settings.get("data_folder"), device=settings.get("device", "auto"))
    inspect_to(folder / "inspect", found)
    return _gist(found["groups"])


def _gist(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Of what `inspect_models` finds, what a study's document holds."""
    from seqpope.inspection.text import band_title, beyond

    return {
        label: {
            "trained_length": group["trained_length"],
            "beyond": {name: beyond(group, name) for name in ("query", "key", "product")},
            "bands": [
                {
                    "wavelengths": band_title(band),
                    "frequencies": len(band["frequencies"]) / len(group["wavelengths"]),
                    "product": [seed[number] for seed in group["shares_of_model"]["product"]],
                }
                for number, band in enumerate(group["bands"])
            ],
        }
        for label, group in groups.items()
    }


def _runs_of(arm: Arm, paths: Sequence[Path]) -> list[Path]:
    """Taken runs one by one: of an experiment's folder those of the arm's encoding, if it has any."""
    found: list[Path] = []
    for path in paths:
        runs = []
        if path.is_dir() and not (path / RESULT).is_file():
            runs = [Path(r["folder"]) for r in load_results([path]) if r["position"] == arm.position]
        found += runs or [path]
    return found


def _take_up(file: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan in a file, None if there is no file.

    Raises:
        SeqpopeError: it cannot be read, or is not of what is asked for.
    """
    if not file.is_file():
        return None
    try:
        plan: dict[str, Any] = yaml.safe_load(file.read_text())
        if type(plan["share"]) not in (int, float) or not 0 < plan["share"] <= 1:
            raise ValueError(f"share is {plan['share']!r}")
        if not isinstance(plan["spread"], bool):
            raise ValueError(f"spread is {plan['spread']!r}")
        changed = [name for name in asked if repr(plan[name]) != repr(asked[name]) and name != "data"]
        changed += ["data"] if plan["data"] != asked["data"] else []
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise SeqpopeError(
            f"{file} is no plan of a study ({what}): give another --out, and for arms that are finished here "
            "--take LABEL=FOLDER"
        ) from error
    if changed:
        name = changed[0]
        raise SeqpopeError(
            f"{file.parent} was begun with {name} {plan[name]!r}, {asked[name]!r} is asked for: give the same, or "
            "another --out"
        )
    return plan


def check_numbers(budget: float | None, share: float, seed: int, seeds: int) -> None:
    """Refuse numbers that no study can be run with.

    Raises:
        SeqpopeError: one is out of range, or both a budget and a share are given.
    """
    if seeds < 1:
        raise SeqpopeError(f"seeds must be at least 1, it is {seeds}")
    if budget is not None and not 0 < budget < math.inf:
        raise SeqpopeError(f"budget must be a number of minutes above 0, it is {budget}")
    if not 0 < share <= 1 or (budget is not None and share != 1):
        raise SeqpopeError(
            f"share must be above 0 and at most 1, without a budget; share is {share}, budget {budget}"
        )
    TrainConfig(seed=seed, seeds=seeds)


def run_study(
    study: Study,
    out: Path,
    *,
    budget: float | None = None,
    studies: int = 1,
    share: float = 1.0,
    seed: int = 0,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    taken: Mapping[str, Sequence[Path]] = {},
    jobs: int = 1,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> dict[str, Any]:
    """Train what is missing of a study, and write its JSON, table and figure to `out`/NAME.

    Args:
        budget: minutes for all that is to be trained and tested, one run after another; every arm then gets the
            same share of its steps.
        studies: so many have the user's minutes between them, `budget` each: advice is in the user's.
        share: of its steps that every arm gets, where there is no budget.
        seed: the first.
        seeds: of each arm, the study's if None.
        only: arms to train, by label, or else by its beginning; all if None.
        taken: finished runs that stand for an arm, by its label: folders of runs, of experiments (whose runs of
            the arm's encoding are taken), report.json files, or documents of studies that have some of its seeds.
        jobs: runs that train at a time, each in a process of its own, spread over the GPUs (`spreading`).
        settings: data_folder, device and the like, for every arm.

    Returns:
        The study's document, as written.

    Raises:
        SeqpopeError: data is not prepared, `out` cannot be written, another process is at work there, what was
            begun was begun otherwise, or taken runs are not of that arm or not of this data.
        Interrupted: Ctrl-C or TERM; the same command goes on.
    """
    from seqpope.data.shards import MANIFEST, find_store, in_folder
    from seqpope.domains.base import open_store

    seeds = study.seeds if seeds is None else seeds
    check_numbers(budget, share, seed, seeds)
    if jobs < 1:
        raise SeqpopeError(f"jobs must be at least 1, it is {jobs}")
    known = "; ".join(arm.label for arm in study.arms)
    strange = [label for label in taken if label not in {arm.label for arm in study.arms}]
    strange += [begin for begin in only or () if not meant(study, begin)]
    if strange:
        raise SeqpopeError(f"{study.name} has no arm {strange[0]!r}: expected one of {known}")
    asked_for = {label for begin in only or () for label in meant(study, begin)}
    arms = [arm for arm in study.arms if arm.label not in taken and (only is None or arm.label in asked_for)]
    if not arms and not taken:
        raise SeqpopeError("there is nothing to train and nothing is taken: name arms, or finished runs")
    # All that can be refused is refused before hours of training.
    taken = {arm.label: _runs_of(arm, taken[arm.label]) for arm in study.arms if arm.label in taken}
    documents = [path for paths in taken.values() for path in paths if is_document(path)]
    if documents and budget is not None:
        raise SeqpopeError(
            f"a budget gives the runs a share of their steps that is not known yet, {documents[0]} has its own: "
            "give --share instead"
        )
    measured = []
    for arm in study.arms:
        if arm.label in taken:
            for path in filter(is_document, taken[arm.label]):
                check_whole(study, row_of(study, arm, [path], share))
            row = row_of(study, arm, taken[arm.label], share)
            check_whole(study, row)
            measured.append((arm.label, measured_on(row)))
    data = {}
    if budget is None:
        check_share(study, arms, share)
    for arm in arms:
        config = arm_config(arm, **settings)
        place = find_store(config.data_folder, config.dataset)
        if study.prepare and not (place / MANIFEST).is_file():
            there = in_folder(place, config.dataset)
            raise SeqpopeError(
                f"no prepared data in {place}: run `{study.prepare}{there}` first, which makes what "
                f"the recorded runs had, or `seqpope prepare {config.dataset}{there}`"
            )
        content = open_store(place).manifest.content
        data[config.dataset] = content[:12]
        told = {"data set": config.dataset, "data (content hash)": content}
        if arm.lengths:
            told["precision at several lengths"] = _precision(config)
        measured.append((arm.label, {**told, "window": config.eval_length, "stride": config.eval_stride}))
    check_alike(measured)
    folder = Path(out) / study.name
    own = (folder / f"{study.name}.json").resolve()
    if any(path.resolve() == own for path in documents):
        raise SeqpopeError(f"{own} is taken and would be written over: give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "no permission")
    except OSError as error:
        raise SeqpopeError(f"{folder} cannot be written ({error.strerror}): choose another --out") from error
    labels = [arm.label for arm in arms]
    asked = {"study": study.name, "arms": labels, "seed": seed, "seeds": seeds, "budget": budget, "data": data}
    if budget is None:
        asked["share"] = share
    with held(folder, "give another --out"):
        plan = _take_up(folder / "plan.yaml", asked)
        if plan is None:
            if budget is not None and arms:
                share = fitting_share(study, arms, seeds, budget, say, folder, studies, **settings)
            plan = {**asked, "share": share, "spread": jobs > 1}
            if arms:
                write_text(folder / "plan.yaml", yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
                (folder / TIMED).unlink(missing_ok=True)
        else:
            if jobs > 1 and not plan["spread"]:
                raise SeqpopeError(
                    f"{folder} was begun one run after another: leave out --jobs, or give another --out"
                )
            say(f"going on with {folder / 'plan.yaml'}")
        runs = {label: list(paths) for label, paths in taken.items()}
        if plan["spread"]:
            runs |= train_spread(study, arms, folder, plan, jobs, say, **settings)
        for arm in arms if not plan["spread"] else ():
            say(f"== {arm.label}")
            runs[arm.label] = _train_arm(study, arm, folder, plan, say, **settings)
        document = summarise(study, runs, plan)
        picture = None
        if study.inspect:
            document["frequencies"] = _inspect(runs, folder, settings)
            picture = (folder / "inspect" / "magnitudes.png").read_bytes()
        write_study(document, folder, picture)
    return document


def _train_arm(
    study: Study, arm: Arm, folder: Path, plan: Mapping[str, Any], say: Callable[[str], None], **settings: Any
) -> list[Path]:
    """Train what an arm lacks in folder/ARM, test it, read it in its lengths; its runs' folders, seed by seed."""
    from seqpope.evaluate import evaluate_lengths, lengths_file
    from seqpope.experiment import train
    from seqpope.model.positions import find_position

    config = arm_config(arm, seed=plan["seed"], seeds=plan["seeds"], side_by_side=study.side_by_side, **settings)
    config = replace(config, out=folder, name=slug(arm.label))
    config = shortened(config, plan["share"])
    place = folder / config.name
    try:
        train(config, resume=place, say=say)
    except Interrupted as error:
        # Its advice is for the arm alone.
        raise Interrupted(f"{arm.label}: {str(error).partition(';')[0]}; the same command goes on") from error
    runs = [place / f"{arm.position}-seed{seed}" for seed in range(config.seed, config.seed + config.seeds)]
    precision = _precision(config)
    yarn, split = find_position(arm.position).longer is not None, study.lengths_split
    for run in runs if arm.lengths else ():
        # Of another protocol there may be others.
        if not (run / lengths_file(split, arm.lengths, precision=precision, yarn=yarn)).is_file():
            lengths = list(arm.lengths)
            evaluate_lengths(run, lengths, split=split, device=config.device, yarn=yarn, precision=precision)
    return runs


def _precision(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """What runs are read in at several lengths."""
    from seqpope.provenance import choose_device

    return "bf16" if choose_device(config.device) == "cuda" else "fp32"
