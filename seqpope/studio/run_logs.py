"""Logs of training as curves: read on while they grow, thinned to what a picture shows."""

from __future__ import annotations

import os
from array import array
from collections import deque
from pathlib import Path

CHUNK = 1 << 23  # bytes of logs that one request reads; the next goes on from there
LONGEST_LOG = 1 << 26  # bytes of one log that are drawn
POINTS = 1000  # of a curve
LARGEST_VALUE = 1e9  # that can be drawn
PACE = 20  # logged rows that time left is told from
CURVES = {"train": "train_nats_per_token", "validation": "validation_nats_per_token"}


class Log:
    """One metrics.csv, read on from where it was left, and from its start when its logger wrote it anew."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._begin()

    def _begin(self) -> None:
        self.offset, self.size, self.unread = 0, 0, 0
        self.steps: dict[str, array[int]] = {name: array("q") for name in CURVES}
        self.values: dict[str, array[float]] = {name: array("d") for name in CURVES}
        self.pace: deque[tuple[int, float]] = deque(maxlen=PACE)
        self._head = b""  # by which a file written anew is known
        self._columns: dict[str, int] = {}

    @property
    def whole(self) -> bool:
        """Whether all of it that will be read is read."""
        return self.offset >= min(self.size, LONGEST_LOG)

    @property
    def last(self) -> int:
        """The last step logged; 0 if none is."""
        return max((steps[-1] for steps in self.steps.values() if steps), default=0)

    @property
    def first(self) -> int | None:
        """The first step logged."""
        return min((steps[0] for steps in self.steps.values() if steps), default=None)

    def read_on(self, most: int) -> int:
        """Read what is new, whole lines of up to `most` bytes; how many bytes that were.

        Raises:
            OSError: it cannot be read.
        """
        with open(self.file, "rb") as opened:
            self.size = os.fstat(opened.fileno()).st_size
            if self.size < self.offset or opened.read(len(self._head)) != self._head:
                size = self.size
                self._begin()
                self.size = size
            if self.whole:
                return 0
            opened.seek(self.offset)
            block = opened.read(min(most, LONGEST_LOG - self.offset))
        end = block.rfind(b"\n") + 1
        if not end and len(block) >= CHUNK:  # no log has such lines
            end, self.unread = len(block), self.unread + 1
        if not self.offset:
            self._head = block[: min(end, 256)]
        self.offset += end
        for line in block[:end].decode(errors="replace").split("\n")[:-1]:
            self._take(line.rstrip("\r").split(","))
        if not end and self.offset + len(block) >= LONGEST_LOG:
            self.offset = LONGEST_LOG
        return len(block)

    def _take(self, cells: list[str]) -> None:
        if not self._columns:
            self._columns = {name: place for place, name in enumerate(cells)}
            return
        try:
            step = int(cells[self._columns["step"]])
            if not 0 <= step < 1 << 53:
                raise ValueError
            for name, column in CURVES.items():
                told = cells[self._columns[column]] if column in self._columns else ""
                if not told:
                    continue
                value, steps = float(told), self.steps[name]
                if not abs(value) < LARGEST_VALUE or (steps and step <= steps[-1]):
                    raise ValueError
                steps.append(step)
                self.values[name].append(value)
            if seconds := cells[self._columns["seconds"]] if "seconds" in self._columns else "":
                self.pace.append((step, float(seconds)))
        except (ValueError, IndexError, KeyError):
            self.unread += 1


def thinned(steps: array[int], values: array[float], most: int = POINTS) -> tuple[list[int], list[float]]:
    """At most so many of a curve's points: of equal stretches the lowest and the highest, and both ends."""
    count = len(steps)
    kept: list[int] | range = range(count)
    if count > most:
        stretches = (most - 2) // 2
        chosen = {0, count - 1}
        for number in range(stretches):
            stretch = range(number * count // stretches, (number + 1) * count // stretches)
            chosen |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
        kept = sorted(chosen)
    return [steps[i] for i in kept], [round(values[i], 5) for i in kept]
