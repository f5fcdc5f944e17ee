"""How long work is stopped: a signal lets the step in hand finish, so that it can be saved."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from seqpope.errors import SeqpopeError

SAVE_SECONDS = 120  # a power cut costs no more training than this
# `timeout` and batch systems signal the process and then its group, which reaches the process twice.
SAME_SIGNAL_SECONDS = 1.0
# Set before a process asks itself to stop since the one that began it was killed: it may be saving already, and
# then that is no second request.
orphaned = False


class Interrupted(SeqpopeError):
    """The user stopped a run; it was saved first."""


class Stoppable(Protocol):
    """What trains, and looks between two steps whether it is asked to stop."""

    stop: bool


def tell(line: str, file: TextIO | None = None) -> None:
    """Print; hours of training don't end because nobody reads on (a pipe that broke, a full disk)."""
    with contextlib.suppress(OSError):
        print(line, file=file, flush=True)


def listen(keeper: Stoppable) -> dict[int, Any]:
    """The first Ctrl-C or TERM lets the current step finish and saves; one more, later, stops at once.

    Returns:
        The handlers there were before.
    """
    asked = -math.inf

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if keeper.stop and orphaned:
            return  # it is saving already
        if keeper.stop and time.monotonic() - asked > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if keeper.stop:
            return
        keeper.stop, asked = True, time.monotonic()
        tell("stopping after this step and its validation, if it has one (once more to stop at once)", sys.stderr)

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        pass
    return previous


@contextmanager
def stop_on_signal(keeper: Stoppable) -> Iterator[None]:
    """Listen while the block runs."""
    previous = listen(keeper)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
