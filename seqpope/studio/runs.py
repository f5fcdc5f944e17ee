"""Runs and experiments as the page shows them: what their folders' files say, read without torch.

A file may be half-written, damaged or huge while it is looked at: what cannot be read is named in words beside
what can. Numbers are those of the files; nothing is computed from them.
"""

from __future__ import annotations

import math
import os
import threading
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from seqpope.checkpoint import BEST
from seqpope.errors import SeqpopeError
from seqpope.studio.catalogue import id_of, read_header
from seqpope.studio.run_files import Encoding, Report, Result, Settings, Told, Trained
from seqpope.studio.run_logs import CHUNK, CURVES, LONGEST_LOG, Log, thinned

DEEPEST, MOST_FOLDERS = 3, 3000  # levels below the runs folder, and folders, that are looked into
SETTINGS, SMALL, LARGE = 1 << 16, 1 << 20, 1 << 26  # bytes of settings, of a text, of a result
MOST_BRACKETS = 200  # of settings: YAML's reader takes the square of how deep they nest
MOST_LOGS = 200  # runs whose logs are kept in memory
QUIET = 120.0  # seconds without a new row after which a run counts as stopped, if its rows come faster
FIGURES = {
    "loss": "loss.png",
    "position": "position.png",
    "lengths": "lengths.png",
    "magnitudes": "inspect/magnitudes.png",
    "heads-query": "inspect/heads-query.png",
    "heads-key": "inspect/heads-key.png",
    "delta": "inspect/delta.png",
}

T = TypeVar("T", bound=Told)


@dataclass
class Budget:
    """Bytes of logs that a request may still read."""

    left: int = CHUNK


@dataclass
class Found:
    """A folder of runs; a run that lies alone is an experiment of its own."""

    folder: Path
    label: str
    runs: list[Path] = field(default_factory=list)


class Library:
    """The runs folder. What was read is kept by a file's time and size, logs by how far they were read."""

    def __init__(self, runs: Path) -> None:
        self.runs = Path(runs)
        self._kept: dict[Path, tuple[tuple[int, int], Any, str | None]] = {}
        self._logs: OrderedDict[Path, dict[Path, Log]] = OrderedDict()
        self._lock = threading.Lock()  # requests come in threads

    def overview(self) -> dict[str, Any]:
        """All experiments in short, those that changed last first."""
        with self._lock:
            found, problems = self._find()
            budget = Budget()
            told = [self._experiment(one, budget, whole=False) for one in found]
            if len(self._kept) > 4 * MOST_FOLDERS:
                self._kept.clear()
        told.sort(key=lambda one: -one["changed"])
        return {"experiments": told, "problems": problems}

    def experiment(self, name: str) -> dict[str, Any]:
        """All about an experiment, by id.

        Raises:
            SeqpopeError: there is none.
        """
        with self._lock:
            for found in self._find()[0]:
                if id_of(found.folder) == name:
                    return self._experiment(found, Budget(), whole=True)
        raise SeqpopeError("there is no such experiment: it may have been moved; load the page again")

    def figure(self, name: str, figure: str) -> Path:
        """The file of a figure of a run or an experiment, by id and by a name of FIGURES.

        Raises:
            SeqpopeError: there is none.
        """
        if figure in FIGURES:
            for found in self._find()[0]:
                for folder in (found.folder, *found.runs):
                    file = folder / FIGURES[figure]
                    if id_of(folder) == name and file.is_file():
                        return file
        raise SeqpopeError("there is no such figure: it may have been moved; load the page again")

    def _find(self) -> tuple[list[Found], list[str]]:
        found: dict[str, Found] = {}
        problems: list[str] = []
        seen: set[Path] = set()  # a link may lead back up

        def look(folder: Path, depth: int, within: bool) -> None:
            if (real := folder.resolve()) in seen:
                return
            seen.add(real)
            try:
                with os.scandir(folder) as entries:
                    below = sorted(entry.name for entry in entries if not entry.name.startswith("."))
            except OSError as error:
                problems.append(f"{self._called(folder)} cannot be read: {error.strerror}")
                return
            if _is_run(below):
                home = folder.parent if within else folder
                one = found.setdefault(id_of(home), Found(home, self._called(home)))
                one.runs.append(folder)
                return
            here = not {"report.json", "config.yaml"}.isdisjoint(below)
            if here:
                found.setdefault(id_of(folder), Found(folder, self._called(folder)))
            if depth < DEEPEST:
                for name in below:
                    if len(seen) < MOST_FOLDERS and name not in ("inspect", "logs") and (folder / name).is_dir():
                        look(folder / name, depth + 1, bool(depth) or here)

        if self.runs.is_dir():
            look(self.runs, 0, False)
            if len(seen) >= MOST_FOLDERS:
                problems.append(f"more than {MOST_FOLDERS:,} folders: the rest is not shown")
        return list(found.values()), problems

    def _called(self, folder: Path) -> str:
        return str(folder.relative_to(self.runs)) if folder != self.runs else "the runs folder"

    def _experiment(self, found: Found, budget: Budget, whole: bool) -> dict[str, Any]:
        problems: list[str] = []
        alone = found.runs == [found.folder]
        report = self._json(found.folder / "report.json", Report, problems)
        settings = None if alone else self._settings(found.folder / "config.yaml", problems)
        rows = [self._run(run, budget, whole) for run in found.runs]
        if not rows and report is not None:  # a report that came without its runs
            rows = [_row(found.label, result.run, None, result, None, {}) for result in report.results]
        told: dict[str, Any] = {
            "id": id_of(found.folder),
            "label": found.label,
            "runs": rows,
            "problems": problems,
            "expected": (1 + (settings.baseline not in ("none", settings.position))) * settings.seeds
            if settings
            else None,
            "dataset": next((row["dataset"] for row in rows if row["dataset"]), settings and settings.dataset),
            "changed": max((_changed(run) for run in (found.folder, *found.runs)), default=0.0),
            "report": report is not None,
            "means": {name: _means(one) for name, one in report.encodings.items()} if report else {},
        }
        if whole:
            told["report"] = report and report.model_dump(exclude={"results"})
            told["text"] = self._text(found.folder / "report.md", problems) if report else None
            told["figures"] = _figures(found.folder)
        return told

    def _run(self, run: Path, budget: Budget, whole: bool) -> dict[str, Any]:
        problems: list[str] = []
        result = self._json(run / "result.json", Result, problems)
        settings = self._settings(run / "config.yaml", problems)
        header = self._keep(run / BEST, read_header)[0] or {}
        row = _row(id_of(run), run.name, settings, result, None, header)
        row["problems"] = problems
        if result is None or whole:
            logs = self._read_logs(run, budget, problems)
            row["reading"] = any(not log.whole for log in logs)
            last = logs[-1] if logs else None
            row["step"] = max(row["best_step"] or 0, last.last if last else 0)
            if result is None:
                _progress(row, _changed(run), last)
            if whole:
                row["curves"] = _curves(logs)
        if whole:
            row["figures"] = _figures(run)
            row["by_position"] = [
                [one.from_, one.to, one.nats_per_token]
                for one in (result.by_position if result else [])
                if one.tokens
            ]
        return row

    def _read_logs(self, run: Path, budget: Budget, problems: list[str]) -> list[Log]:
        """A run's logs, oldest start first, each read on as far as the budget goes."""
        kept = self._logs.setdefault(run, {})
        self._logs.move_to_end(run)
        if len(self._logs) > MOST_LOGS:
            self._logs.popitem(last=False)
        files = [f for f in (run / "logs").glob("version_*/metrics.csv") if f.parent.name[8:].isdecimal()]
        logs = []
        for file in sorted(files, key=lambda file: int(file.parent.name[8:])):
            log = kept.setdefault(file, Log(file))
            called = f"{run.name}/{file.relative_to(run)}"
            try:
                if budget.left > 0:
                    budget.left -= log.read_on(budget.left)
                else:
                    log.size = max(log.size, file.stat().st_size)
            except OSError as error:
                problems.append(f"{called} cannot be read: {error.strerror}")
                continue
            if log.unread:
                problems.append(f"{called}: {log.unread:,} line{'s' * (log.unread > 1)} could not be read")
            if log.size > LONGEST_LOG:
                problems.append(f"{called} is larger than {LONGEST_LOG >> 20} MiB: only its beginning is drawn")
            logs.append(log)
        return logs

    def _keep(self, file: Path, read: Callable[[Path], Any]) -> tuple[Any, str | None]:
        """What a file says and why it says nothing, read again only when it changed."""
        try:
            at = file.stat()
        except OSError:
            return None, None
        stamp = (at.st_mtime_ns, at.st_size)
        kept = self._kept.get(file)
        if kept is None or kept[0] != stamp:
            try:
                kept = (stamp, read(file), None)
            except OSError as error:
                kept = (stamp, None, f"cannot be read: {error.strerror}")
            except (ValueError, RecursionError, yaml.YAMLError) as error:
                kept = (stamp, None, f"cannot be read: {_in_words(error)}")
            self._kept[file] = kept
        return kept[1], kept[2]

    def _named(self, file: Path, read: Callable[[Path], Any], problems: list[str]) -> Any:
        value, problem = self._keep(file, read)
        if problem is not None:
            problems.append(f"{self._called(file)} {problem}")
        return value

    def _json(self, file: Path, kind: type[T], problems: list[str]) -> T | None:
        return self._named(file, lambda file: kind.model_validate_json(_bytes(file, LARGE)), problems)

    def _settings(self, file: Path, problems: list[str]) -> Settings | None:
        return self._named(file, _read_settings, problems)

    def _text(self, file: Path, problems: list[str]) -> str | None:
        return self._named(file, lambda file: _bytes(file, SMALL).decode(errors="replace"), problems)


def _means(encoding: Encoding) -> dict[str, float]:
    """Means over seeds in short: nats a token and nats of each unit."""
    return {"token": encoding.nats_per_token.mean} | {unit: one.mean for unit, one in encoding.units.items()}


def _is_run(names: list[str]) -> bool:
    """A run has versions, weights, logs or a result; an experiment only settings and a report."""
    return not {"versions.json", BEST, "result.json", "logs"}.isdisjoint(names)


def _bytes(file: Path, most: int) -> bytes:
    with open(file, "rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 10:,} KiB")
    return content


def _read_settings(file: Path) -> Settings:
    content = _bytes(file, SETTINGS)
    if content.count(b"[") + content.count(b"{") > MOST_BRACKETS:
        raise RecursionError
    return Settings.model_validate(yaml.safe_load(content))


def _in_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place + ': ' if place else ''}{first['msg'][:200]}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200]


def _changed(folder: Path) -> float:
    """When something in a run's or an experiment's folder was last written."""
    files = [folder / name for name in ("config.yaml", "last.ckpt", BEST, "result.json", "report.json")]
    times = [0.0]
    for file in (*files, *(folder / "logs").glob("version_*/metrics.csv")):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _figures(folder: Path) -> list[str]:
    return [name for name, file in FIGURES.items() if (folder / file).is_file()]


def _row(
    name: str,
    label: str,
    settings: Settings | None,
    result: Result | None,
    state: str | None,
    header: dict[str, Any],
) -> dict[str, Any]:
    """A run in a line: its result says most, before there is one the header of its weights, then its settings."""
    try:
        trained = result.trained if result else Trained.model_validate(header.get("trained", {}))
    except ValidationError:
        trained = Trained()
    of = {key: str(header[key]) for key in ("position", "dataset", "domain") if header.get(key)}
    one = result or settings
    steps = trained.steps or (settings.optimizer.steps if settings else None)
    return {
        "id": name,
        "label": label,
        "position": one.position if one else of.get("position"),
        "dataset": one.dataset if one else of.get("dataset"),
        "domain": (one.domain if one else "") or of.get("domain", ""),
        "seed": trained.seed if result or "trained" in header else settings and settings.seed,
        "parameters": result and result.parameters,
        "steps": steps,
        "step": trained.step,
        "best_step": trained.step,
        "validation": trained.validation_nats_per_token,
        "seconds": trained.seconds,
        "precision": trained.precision,
        "test": result and result.nats_per_token,
        "split": result and result.split,
        "tokens": result and result.tokens_scored,
        "units": {unit: [each.nats, each.count] for unit, each in result.units.items()} if result else {},
        "baselines": {k: v for k, v in result.baselines.items() if v is not None} if result else {},
        "window": result and result.protocol.window,
        "device": result and result.device,
        "date": result and result.date,
        "state": state or ("finished" if result else "stopped"),
        "left": None,
        "changed": None,
        "reading": False,
        "problems": [],
    }


def _progress(row: dict[str, Any], changed: float, log: Log | None) -> None:
    """Whether a run without a result still trains, and how long it has to go if its pace is known."""
    pace = list(log.pace) if log else []
    steps = pace[-1][0] - pace[0][0] if pace else 0
    each = (pace[-1][1] - pace[0][1]) / steps if steps > 0 else None
    between = each * steps / (len(pace) - 1) if each is not None else 0.0
    row["changed"] = changed
    if row["steps"] and (row["step"] or 0) >= row["steps"]:
        row["state"] = "trained"
    elif time.time() - changed <= max(QUIET, 5 * between):
        row["state"] = "training"
        if each is not None and row["steps"] and math.isfinite(each) and each >= 0:
            row["left"] = round(each * (row["steps"] - row["step"]))


def _curves(logs: list[Log]) -> dict[str, dict[str, Any]]:
    """Each curve over all starts of a run; a resumed start overrides later steps."""
    curves = {}
    for name in CURVES:
        steps, values = array("q"), array("d")
        for log in logs:
            if log.first is None:
                continue
            kept = bisect_left(steps, log.first)
            steps, values = steps[:kept] + log.steps[name], values[:kept] + log.values[name]
        told = thinned(steps, values)
        curves[name] = {"steps": told[0], "values": told[1], "of": len(steps)}
    return curves
