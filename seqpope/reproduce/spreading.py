"""A study's runs as processes of their own, some at a time, spread over the GPUs there are.

OUT/STUDY/parts/
    ARM-seedK/STUDY/     what `run_study` writes of an arm and seed, or of all its seeds if they train side by side
    ARM-seedK.log        what the process said

A small model leaves a GPU idle while it compiles, validates and writes; two or three at a time fill it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from seqpope import signals
from seqpope.errors import SeqpopeError
from seqpope.files import wait_until_free
from seqpope.processes import term_as_interrupt
from seqpope.reproduce.studies import Arm, Study, slug
from seqpope.signals import Interrupted

STOPPED = 3  # exit status of a process that saved its run when it was asked to stop
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Part:
    """One process's work: an arm's seeds from `seed` on."""

    arm: Arm
    seed: int
    seeds: int

    @property
    def name(self) -> str:
        return f"{slug(self.arm.label)}-seed{self.seed}"

    def runs(self, study: Study, parts: Path) -> list[Path]:
        """Folders of its runs, seed by seed."""
        place = parts / self.name / study.name / slug(self.arm.label)
        return [place / f"{self.arm.position}-seed{seed}" for seed in range(self.seed, self.seed + self.seeds)]


def parts_of(study: Study, arms: Sequence[Arm], seed: int, seeds: int) -> list[Part]:
    """All arms of the first seed, then of the next, so that what is stopped early has something of each."""
    if study.side_by_side:
        return [Part(arm, seed, seeds) for arm in arms]
    return [Part(arm, each, 1) for each in range(seed, seed + seeds) for arm in arms]


def train_spread(
    study: Study,
    arms: Sequence[Arm],
    folder: Path,
    plan: Mapping[str, Any],
    jobs: int,
    say: Callable[[str], None],
    **settings: Any,
) -> dict[str, list[Path]]:
    """Train what is missing of the arms, `jobs` processes at a time; their runs' folders by label.

    Raises:
        SeqpopeError: some did not finish, after all others have.
        Interrupted: Ctrl-C or TERM, after all have saved.
    """
    every = parts_of(study, arms, plan["seed"], plan["seeds"])
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    left = [part for part in every if not (parts / part.name / study.name / f"{study.name}.json").is_file()]
    if len(left) < len(every):
        say(f"{len(every) - len(left)} of {len(every)} runs finished before, kept")
    failed = _run(study, left, parts, plan["share"], jobs, _gpus(settings), say, settings) if left else []
    if failed:
        logs = ", ".join(str(parts / f"{part.name}.log") for part in failed)
        raise SeqpopeError(
            f"{len(failed)} of {len(every)} runs failed, see {logs}; the same command tries them again"
        )
    return {
        arm.label: [run for part in every if part.arm == arm for run in part.runs(study, parts)] for arm in arms
    }


def _gpus(settings: Mapping[str, Any]) -> list[str]:
    """What the GPUs that this process sees are called; none where it computes on a CPU."""
    from seqpope.provenance import choose_device

    if choose_device(settings.get("device", "auto")) != "cuda":
        return []
    import torch

    named = os.environ.get(VISIBLE)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _run(
    study: Study,
    left: Sequence[Part],
    parts: Path,
    share: float,
    jobs: int,
    gpus: Sequence[str],
    say: Callable[[str], None],
    settings: Mapping[str, Any],
) -> list[Part]:
    """Those that failed."""
    spawn = get_context("spawn")  # a forked copy of a process that runs torch's threads may hang
    waiting, failed, begun = list(left), [], time.monotonic()
    # Without a GPU processes that each take all cores would stand in each other's way.
    threads = None if gpus else max(1, (os.cpu_count() or 1) // jobs)
    running: dict[str, tuple[Part, BaseProcess, str | None]] = {}
    try:
        with term_as_interrupt():
            while waiting or running:
                while waiting and len(running) < jobs:
                    part = waiting.pop(0)
                    gpu = min(gpus, key=lambda gpu: sum(on == gpu for *_, on in running.values()), default=None)
                    words = (study, part, parts, share, threads, dict(settings))
                    child: BaseProcess = spawn.Process(target=_work, args=words, name=part.name)
                    with _seeing(gpu):
                        child.start()
                    running[part.name] = (part, child, gpu)
                connection.wait([process.sentinel for _, process, _ in running.values()])
                for part, process, _ in list(running.values()):
                    status = process.exitcode
                    if status is None:
                        continue
                    del running[part.name]
                    if status == STOPPED:  # signalled itself, by whom the whole may be meant
                        raise KeyboardInterrupt
                    failed += [part] if status else []
                    done, passed = len(left) - len(waiting) - len(running), time.monotonic() - begun
                    say(
                        f"{part.name}  {'failed' if status else 'done'}; {done} of {len(left)}, {len(running)} at "
                        f"work, about {passed / done * (len(left) - done) / 60:.0f} minutes left"
                    )
    except KeyboardInterrupt:
        say(f"stopping; {len(running)} runs save what they have")
        for _, process, _ in running.values():
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
        for _, process, _ in running.values():
            process.join()
        raise Interrupted("stopped; the same command goes on") from None
    return failed


@contextmanager
def _seeing(gpu: str | None) -> Iterator[None]:
    """Have a process that starts in the block see one GPU alone."""
    before = os.environ.get(VISIBLE)
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            del os.environ[VISIBLE]
            if before is not None:
                os.environ[VISIBLE] = before


def _stop_without_parent() -> None:
    """Save and stop, as on TERM, once the process that began this one was killed: nobody else would end it."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        signals.orphaned = True
        if os.name == "nt":
            signal.raise_signal(signal.SIGTERM)  # os.kill would end the process there
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _work(
    study: Study, part: Part, parts: Path, share: float, threads: int | None, settings: Mapping[str, Any]
) -> None:
    """A process: its part of the study, told in a log."""
    log = os.open(parts / f"{part.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    _stop_without_parent()
    place = parts / part.name / study.name
    wait_until_free(
        place, lambda: print(f"waiting for the run in {place}, which another process saves", flush=True)
    )
    from seqpope.reproduce.running import run_study

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        run_study(
            study,
            parts / part.name,
            share=share,
            seed=part.seed,
            seeds=part.seeds,
            only=[part.arm.label],
            say=lambda line: print(line, flush=True),
            **settings,
        )
    except (Interrupted, KeyboardInterrupt) as error:
        print(error, flush=True)
        sys.exit(STOPPED)
    except SeqpopeError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
