"""Train a study's arms, as far as they are not there yet, and read what they reached.

OUT/STUDY/
    plan.yaml                     steps and seeds of each arm, so that interrupted work goes on with the same ones
    ARM/                          an experiment of `seqpope train` for each arm
    STUDY.json  STUDY.md  STUDY.png
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.reproduce.studies import Arm, Study, arm_config
from seqpope.reproduce.summary import row_of, summarise, write_study

PROBE_STEPS = 96  # the second half is timed: compiling and warming up are then over
OF_BUDGET = 0.9  # the rest is for compiling, validation and tests


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def shortened(config: TrainConfig, share: float) -> TrainConfig:
    """A configuration with that share of the steps; warm-up shrinks with it, validations are as many."""
    steps = max(2, round(config.optimizer.steps * share))
    warmup = min(max(1, round(config.optimizer.warmup_steps * share)), steps - 1)
    validations = max(1, config.optimizer.steps // config.eval_every)
    every = max(1, steps // validations)
    optimizer = replace(config.optimizer, steps=every * validations, warmup_steps=warmup)
    return replace(config, optimizer=optimizer, eval_every=every)


def step_seconds(config: TrainConfig) -> float:
    """Seconds a training step takes on this machine, with all seeds if they are trained side by side."""
    import csv

    from seqpope.experiment import train_runs

    with tempfile.TemporaryDirectory(prefix="seqpope-probe-") as place:
        optimizer = replace(config.optimizer, steps=PROBE_STEPS, warmup_steps=1)
        seeds = config.seeds if config.side_by_side else 1
        probe = replace(config, optimizer=optimizer, eval_every=PROBE_STEPS, seeds=seeds)
        run = train_runs(probe, Path(place), say=lambda _: None, test=False)[0]
        with open(run / "logs" / "version_0" / "metrics.csv", newline="") as file:
            times = {int(row["step"]): float(row["seconds"]) for row in csv.DictReader(file) if row["seconds"]}
    return (times[PROBE_STEPS] - times[PROBE_STEPS // 2]) / (PROBE_STEPS - PROBE_STEPS // 2)


def make_plan(
    study: Study,
    arms: Sequence[Arm],
    seeds: int,
    budget: float | None,
    say: Callable[[str], None],
    **settings: Any,
) -> dict[str, Any]:
    """What share of its steps each arm gets, so that all take `budget` minutes together; all of them if None."""
    share, seconds = 1.0, {}
    if budget is not None:
        for arm in arms:
            config = arm_config(arm, seeds=seeds, side_by_side=study.side_by_side, **settings)
            seconds[arm.label] = step_seconds(config)
            say(f"{arm.label}: {seconds[arm.label] * 1000:.1f} ms a step")
        runs = 1 if study.side_by_side else seeds
        whole = sum(runs * seconds[arm.label] * arm_config(arm, **settings).optimizer.steps for arm in arms)
        share = min(1.0, OF_BUDGET * budget * 60 / whole)
        say(f"all steps would take {whole / 60:.0f} minutes, {share:.1%} of them fit into {budget:g}")
    return {
        "study": study.name,
        "arms": [arm.label for arm in arms],
        "seeds": seeds,
        "budget": budget,
        "share": share,
    }


def _inspect(runs: Mapping[str, Sequence[Path]], folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write what the models use each frequency for to folder/inspect; return the gist of it."""
    from seqpope.inspection import beyond, inspect_models, inspect_to

    folders = [path for paths in runs.values() for path in paths if path.is_dir()]
    found = inspect_models(folders, settings.get("data_folder"), device=settings.get("device", "auto"))
    inspect_to(folder / "inspect", found)
    return {
        label: {
            "trained_length": group["trained_length"],
            "beyond": {name: beyond(group, name) for name in ("query", "key", "product")},
        }
        for label, group in found["groups"].items()
    }


def run_study(
    study: Study,
    out: Path,
    *,
    budget: float | None = None,
    seeds: int | None = None,
    only: Sequence[str] = (),
    taken: Mapping[str, Sequence[Path]] = {},
    say: Callable[[str], None] = print,
    **settings: Any,
) -> dict[str, Any]:
    """Train what is missing of a study, and write its JSON, table and figure to `out`/NAME.

    Args:
        budget: minutes for all training; every arm then gets the same share of its steps.
        seeds: of each arm, the study's if None.
        only: arms to train, by label or its beginning; all if empty.
        taken: finished runs that stand for an arm, by its label: folders of runs, or report.json files.
        settings: data_folder, device and the like, for every arm.

    Returns:
        The study's document, as written.

    Raises:
        SeqpopeError: data is not prepared, what was begun was begun otherwise, or taken runs are not of that arm.
        Interrupted: Ctrl-C or TERM; the same command goes on.
    """
    from seqpope.evaluate import evaluate_lengths
    from seqpope.experiment import train
    from seqpope.provenance import choose_device

    seeds = study.seeds if seeds is None else seeds
    if seeds < 1 or (budget is not None and not budget > 0):
        raise SeqpopeError(f"seeds and budget must be above 0, they are {seeds} and {budget}")
    strange = [label for label in taken if label not in {arm.label for arm in study.arms}]
    if strange:
        known = "; ".join(arm.label for arm in study.arms)
        raise SeqpopeError(f"{study.name} has no arm {strange[0]!r}: expected one of {known}")
    arms = [
        arm
        for arm in study.arms
        if arm.label not in taken and (not only or any(arm.label.startswith(begin) for begin in only))
    ]
    for begin in only:
        if not any(arm.label.startswith(begin) for arm in study.arms):
            raise SeqpopeError(
                f"{study.name} has no arm {begin!r}: expected one of {'; '.join(a.label for a in study.arms)}"
            )
    for arm in study.arms:  # before hours of training
        if arm.label in taken:
            row_of(study, arm, taken[arm.label])
    folder = Path(out) / study.name
    plan_file = folder / "plan.yaml"
    asked = {"study": study.name, "arms": [arm.label for arm in arms], "seeds": seeds, "budget": budget}
    if plan_file.is_file():
        plan = yaml.safe_load(plan_file.read_text())
        changed = [name for name in asked if plan.get(name) != asked[name]]
        if changed:
            raise SeqpopeError(
                f"{folder} was begun with {changed[0]} {plan.get(changed[0])!r}, {asked[changed[0]]!r} is asked "
                "for: give the same, or another --out"
            )
        say(f"going on with {plan_file}")
    else:
        plan = make_plan(study, arms, seeds, budget, say, **settings)
        write_text(plan_file, yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
    runs: dict[str, list[Path]] = {label: list(paths) for label, paths in taken.items()}
    for arm in arms:
        config = arm_config(arm, seeds=seeds, side_by_side=study.side_by_side, **settings)
        config = replace(config, out=folder, name=slug(arm.label))
        if plan["share"] < 1:
            config = shortened(config, plan["share"])
        say(f"== {arm.label}")
        place = folder / config.name
        train(config, resume=place if (place / "config.yaml").is_file() else None, say=say)
        runs[arm.label] = [
            place / f"{arm.position}-seed{seed}" for seed in range(config.seed, config.seed + seeds)
        ]
        for run in runs[arm.label] if arm.lengths else ():
            if not any(run.glob("lengths-test-*.json")):
                evaluate_lengths(
                    run,
                    list(arm.lengths),
                    device=config.device,
                    yarn=True,
                    precision="bf16" if choose_device(config.device) == "cuda" else "fp32",
                )
    document = summarise(study, runs, plan)
    if study.inspect:
        document["frequencies"] = _inspect(runs, folder, settings)
    write_study(document, folder)
    return document
