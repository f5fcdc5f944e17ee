"""What share of their steps a study's runs can have within so many minutes."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.files import write_text
from seqpope.reproduce.studies import Arm, Study, arm_config, least_share, validations_of
from seqpope.signals import Interrupted

# The second half is timed: compiling and warming up are then over. A CPU compiles nothing and may take minutes a
# step.
PROBE_STEPS = {"cuda": 96, "cpu": 8}
TIMED = "timing.json"  # in a study's folder: what its arms were found to take, until it is begun
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

    around = compiling + begun_and_ended + validations_of(config) * validation + reading("test")
    return Cost(step, around + (lengths * reading(lengths_split) if lengths else 0.0))


def fitting_share(
    study: Study,
    arms: Sequence[Arm],
    seeds: int,
    minutes: float,
    say: Callable[[str], None],
    folder: Path,
    studies: int = 1,
    **settings: Any,
) -> float:
    """The share of every arm's steps with which all runs, one after another, take about so many minutes.

    Args:
        folder: where timings are kept: who is refused and asks for more minutes does not wait for them again, and
            is not refused because the machine was slower the second time.
        studies: that share the user's minutes: each has as many.

    Raises:
        SeqpopeError: a step for each validation, and what is done beside training, take longer.
        Interrupted: Ctrl-C or TERM while steps are timed.
    """
    from seqpope.model.positions import find_position

    began = time.perf_counter()
    kept, known = _kept(folder / TIMED), ""
    runs = 1 if study.side_by_side else seeds
    training = around = 0.0
    for arm in arms:
        config = arm_config(arm, seeds=seeds, side_by_side=study.side_by_side, **settings)
        ways = 1 + (find_position(arm.position).longer is not None)  # as trained, and through YaRN
        readings = len(arm.lengths) * ways
        of = _identity(config, readings, study.lengths_split)
        cost = _read_cost(kept.get(arm.label), of)
        timed = " (timed before)" if cost else ""
        known = known or (f"; delete {folder / TIMED} to have arms timed anew" if cost else "")
        if cost is None:
            try:
                cost = measure_cost(config, readings, study.lengths_split)
            except Interrupted:
                raise Interrupted("stopped while steps were timed; the same command goes on") from None
            kept[arm.label] = {"of": of, "step": cost.step, "around": cost.around}
            write_text(folder / TIMED, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        say(f"{arm.label}: {cost.step * 1000:.1f} ms a step, {cost.around:.0f} s beside them{timed}")
        training += runs * cost.step * config.optimizer.steps
        around += runs * cost.around
    around += time.perf_counter() - began  # the timing is paid for as well
    least = max(least_share(arm_config(arm, **settings)) for arm in arms)
    needed = around + least * training
    if MARGIN * minutes * 60 < needed:
        low, high = (_minutes(studies * seconds / MARGIN) for seconds in (needed, around + training))
        several = f" for all {studies} studies" if studies > 1 else ""
        raise SeqpopeError(
            f"timing, compiling, validation and tests, with a step for each validation, take {study.name} about "
            f"{_minutes(needed)} minutes: give a --budget between about {low} and {high} (all steps){several}, "
            f"fewer --seeds, or some --arms alone{known}"
        )
    share = min(1.0, (MARGIN * minutes * 60 - around) / training)
    say(f"all would take {_minutes(training + around)} minutes; {share:.1%} of the steps fit into {minutes:g}")
    return share


def _kept(file: Path) -> dict[str, Any]:
    """Timings by label; none where there is no file of them that can be read."""
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _identity(config: TrainConfig, readings: int, split: str) -> str:
    """What a timing is of: what `measure_cost` trains, by which code, on which machine."""
    from seqpope.data.shards import find_store
    from seqpope.domains.base import open_store
    from seqpope.provenance import choose_device, provenance

    content = open_store(find_store(config.data_folder, config.dataset)).manifest.content
    device = choose_device(config.device)
    on = provenance(device)
    recipe = replace(config, seeds=config.seeds if config.side_by_side else 1).as_dict()
    for name in ("data_folder", "out", "name", "device"):
        del recipe[name]
    machine = [platform.node(), on["device"], on["versions"], on["commit"]]
    told = [recipe, content, readings, split, machine]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _read_cost(entry: Any, of: str) -> Cost | None:
    """A timing that was kept, if it is one and of just that."""
    if not isinstance(entry, dict) or entry.get("of") != of:
        return None
    step, around = entry.get("step"), entry.get("around")
    if not (isinstance(step, float) and isinstance(around, float)):
        return None
    return Cost(step, around) if 0 < step < math.inf and 0 <= around < math.inf else None


def _minutes(seconds: float) -> str:
    """Rounded up."""
    return f"{math.ceil(seconds / 6) / 10:.1f}"
