"""What share of their steps a study's runs can have within so many minutes."""

from __future__ import annotations

import csv
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.reproduce.studies import Arm, Study, arm_config
from seqpope.signals import Interrupted

# The second half is timed: compiling and warming up are then over. A CPU compiles nothing and may take minutes a
# step.
PROBE_STEPS = {"cuda": 96, "cpu": 8}
MARGIN = 0.9  # of the budget is planned with: machines are not always as fast as in the first seconds


@dataclass(frozen=True)
class Cost:
    """Seconds of a training run, or of the seeds that train side by side: of each step, and of all else."""

    step: float
    around: float


def measure_cost(config: TrainConfig, lengths: int = 0, lengths_split: str = "test") -> Cost:
    """Train a few steps and validate once, in a folder that is then deleted.

    A split is taken to cost as much a token as the validation did. What is measured once a data set (count tables
    of DNA) or of finished models (`inspect`) is not counted.

    Args:
        lengths: how many times a run reads `lengths_split` after its test.
    """
    from seqpope.data.shards import find_store
    from seqpope.domains.base import open_store
    from seqpope.experiment import train_runs
    from seqpope.provenance import choose_device

    last = PROBE_STEPS[choose_device(config.device)]
    times: dict[int, float] = {}
    validation = 0.0  # of all seeds
    with tempfile.TemporaryDirectory(prefix="seqpope-probe-") as place:
        optimizer = replace(config.optimizer, steps=last, warmup_steps=1)
        seeds = config.seeds if config.side_by_side else 1
        probe = replace(config, optimizer=optimizer, eval_every=last, seeds=seeds)
        began = time.perf_counter()
        runs = train_runs(probe, Path(place), say=lambda _: None, test=False)
        wall = time.perf_counter() - began
        for run in runs:
            with open(run / "logs" / "version_0" / "metrics.csv", newline="") as file:
                for row in csv.DictReader(file):
                    if row["seconds"]:
                        times[int(row["step"])] = float(row["seconds"])
                    validation += float(row["validation_seconds"] or 0)
    step = (times[last] - times[last // 2]) / (last - last // 2)
    compiling = max(0.0, times[last] - last * step)
    begun_and_ended = max(0.0, wall - times[last] - validation)
    store = open_store(find_store(config.data_folder, config.dataset))

    def reading(split: str) -> float:
        return validation * len(store.split(split).tokens) / max(1, len(store.split("validation").tokens))

    validations = max(1, config.optimizer.steps // config.eval_every)
    around = compiling + begun_and_ended + validations * validation + reading("test")
    return Cost(step, around + (lengths * reading(lengths_split) if lengths else 0.0))


def fitting_share(
    study: Study,
    arms: Sequence[Arm],
    seeds: int,
    minutes: float,
    say: Callable[[str], None],
    **settings: Any,
) -> float:
    """The share of every arm's steps with which all runs, one after another, take about so many minutes.

    Raises:
        SeqpopeError: what is done beside training takes as long alone.
        Interrupted: Ctrl-C or TERM while steps are timed.
    """
    from seqpope.model.positions import find_position

    began = time.perf_counter()
    runs = 1 if study.side_by_side else seeds
    training = around = 0.0
    for arm in arms:
        config = arm_config(arm, seeds=seeds, side_by_side=study.side_by_side, **settings)
        ways = 1 + (find_position(arm.position).longer is not None)  # as trained, and through YaRN
        try:
            cost = measure_cost(config, len(arm.lengths) * ways, study.lengths_split)
        except Interrupted:
            raise Interrupted("stopped while steps were timed; the same command begins again") from None
        say(f"{arm.label}: {cost.step * 1000:.1f} ms a step, {cost.around:.0f} s beside them")
        training += runs * cost.step * config.optimizer.steps
        around += runs * cost.around
    around += time.perf_counter() - began  # the timing is paid for as well
    left = MARGIN * minutes * 60 - around
    if left <= 0:
        raise SeqpopeError(
            f"timing, compiling, validation and tests alone take about {_minutes(around)} minutes: give a "
            f"--budget between about {_minutes(around / MARGIN)} and {_minutes((around + training) / MARGIN)} "
            "(all steps), fewer --seeds, or some --arms alone"
        )
    share = min(1.0, left / training)
    say(f"all would take {_minutes(training + around)} minutes; {share:.1%} of the steps fit into {minutes:g}")
    return share


def _minutes(seconds: float) -> str:
    """Rounded up."""
    return f"{math.ceil(seconds / 6) / 10:.1f}"
