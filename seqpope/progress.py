"""Progress of long work on the terminal: how much, how fast, how long still."""

from __future__ import annotations

import sys
import time

from seqpope.signals import tell


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def speed(rate: float, unit: str) -> str:
    """So many of a unit a second, or where they are slow the seconds of each."""
    return f"{rate:.1f} {unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"


class Progress:
    """Called with what is done and what there is in all; writes a line to standard error every few seconds.

    `already` is what an earlier start had done: it does not count for the rate.
    """

    def __init__(self, title: str, unit: str, every: float = 3.0, already: int = 0) -> None:
        self.title, self.unit, self.every, self.already = title, unit, every, already
        self.start = self.shown = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self.shown < self.every or done <= self.already:
            return
        self.shown = now
        rate = (done - self.already) / (now - self.start)
        tell(
            f"{self.title}  {done}/{total} {self.unit}  {rate:.1f} {self.unit}/s  "
            f"{clock((total - done) / rate)} left",
            sys.stderr,
        )
