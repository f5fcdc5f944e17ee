"""Processes beside the server: one computes with a model, one reads and writes files under limits.

The server stays quick while they work, and what goes wrong in them (a decompression bomb, a file that hangs
its parser) ends with them. A process does one job at a time; it is told to stop by an event, and
killed if it does not.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from seqpope.errors import SeqpopeError

T = TypeVar("T")
STOP_SECONDS = 5.0  # that a job has to stop before its process is killed
AT_ONCE = {"cpu": 2048}  # tokens that a model reads between two looks at whether to stop, by device
OTHERWISE = 16384
STARTED_SECONDS = 120.0  # that a process has to start, with all its imports


def tokens_at_once(device: str) -> int:
    """How many tokens a model on that device reads between two looks at whether its job is to stop."""
    return AT_ONCE.get(device, OTHERWISE)


class Cancelled(Exception):
    """The job is to stop."""


@dataclass
class Context:
    """What a job gets beside its arguments.

    Attributes:
        send: for `emit`.
        stopping: whether the job is to stop.
        kept: what a process keeps from one job to the next, such as the one model in memory.
    """

    send: Callable[[tuple[str, Any]], None]
    stopping: Callable[[], bool]
    kept: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise Cancelled if the job is to stop."""
        if self.stopping():
            raise Cancelled

    def emit(self, name: str, data: Any) -> None:
        """Tell the page of something; data is plain JSON.

        Raises:
            Cancelled: the job is to stop.
        """
        self.check()
        self.send((name, data))

    def held(self, file: str, read: Callable[[Path], T]) -> T:
        """The one model in memory, if it is this file's; else what `read` makes of the file, in its place.

        Raises:
            SeqpopeError: the file is gone since its model was asked for.
        """
        try:
            key = (file, Path(file).stat().st_mtime_ns)
        except OSError as error:
            raise SeqpopeError(
                "the model is no longer where it was: load the page again and choose one"
            ) from error
        if self.kept.get("key") != key:
            self.kept.clear()
            self.kept["model"] = read(Path(file))
            self.kept["key"] = key
        return self.kept["model"]


def _limit(memory: int, files: int) -> None:
    """Bound this process: bytes of address space, and of any file it writes."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, files), (resource.RLIMIT_CORE, 0)):
        most = resource.getrlimit(kind)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def serve(pipe: Connection, stop: Any, package: str, setup: str, limits: tuple[int, int] | None) -> None:
    """The process's own loop: (kind, arguments) in, (name, data) out, ended by ("end", None)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # the page comes first
    if limits is not None:
        _limit(*limits)
    context = Context(pipe.send, stop.is_set)
    if setup:
        _function(package, setup)(context)
    pipe.send(("ready", None))
    while True:
        try:
            kind, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(("result", _function(package, kind)(arguments, context)))
        except Cancelled:
            pipe.send(("cancelled", None))
        except SeqpopeError as error:
            pipe.send(("error", str(error)))
        except Exception as error:
            if _of_memory(error):
                pipe.send(("error", "this does not fit the memory: ask for less at once"))
            else:
                traceback.print_exc(file=sys.stderr)
                pipe.send(("error", f"a mistake of seqpope's ({type(error).__name__}): the terminal has more"))
        pipe.send(("end", None))


def _of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, Python's or torch's, which is not imported for this."""
    torch_says = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in torch_says)
    )


def _function(package: str, kind: str) -> Callable[..., Any]:
    module, name = kind.split(".")
    return getattr(importlib.import_module(f"{package}.{module}"), name)


class Worker:
    """One process, started when it is needed and again when it died.

    Args:
        setup: function "MODULE.FUNCTION" that it begins with, given its Context.
        limits: bytes of memory and of a file, None for none.
        seconds: that a job may take, None for as long as it likes.
        package: in which kinds of jobs are looked up.
    """

    def __init__(
        self,
        setup: str = "",
        limits: tuple[int, int] | None = None,
        seconds: float | None = None,
        package: str = "seqpope.studio",
    ) -> None:
        self.setup, self.limits, self.seconds, self.package = setup, limits, seconds, package
        self._closed = False
        self._spawn = multiprocessing.get_context("spawn")  # a forked copy of a threaded server may hang
        self._process: Any = None
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            SeqpopeError: it did not start.
        """
        with self._lock:  # or a job would take the word that the process is ready for its own
            if self._process is None or not self._process.is_alive():
                self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._spawn.Pipe()
        self._stop = self._spawn.Event()
        arguments = (theirs, self._stop, self.package, self.setup, self.limits)
        process = self._spawn.Process(target=serve, args=arguments, daemon=True)
        process.start()
        self._process = process
        theirs.close()
        if self._closed:  # while it started
            self.kill()
            raise SeqpopeError("the studio is ending")
        try:
            ready = self._pipe.poll(STARTED_SECONDS) and self._pipe.recv()[0] == "ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.kill()
            raise SeqpopeError("the working process did not start: the terminal that runs the studio has more")

    def kill(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is not None and process.is_alive():
            process.kill()
            process.join()

    def close(self) -> None:
        """End the process and start none again."""
        self._closed = True
        self.kill()

    def run(
        self, kind: str, arguments: Any, heard: Callable[[str, Any], None], stopping: Callable[[], bool]
    ) -> None:
        """Do one job; blocks. `heard` gets all it says, the last of it "result", "error" or "cancelled"."""
        with self._lock:
            if self._closed:
                heard("cancelled", None)
                return
            try:
                try:
                    self._hand_over(kind, arguments)
                except OSError:  # it died while it had nothing to do
                    self.kill()
                    self._hand_over(kind, arguments)
            except (SeqpopeError, OSError) as error:
                heard("error", str(error))
                return
            self._follow(heard, stopping)

    def _hand_over(self, kind: str, arguments: Any) -> None:
        self.start()
        self._stop.clear()
        self._pipe.send((kind, arguments))

    def _follow(self, heard: Callable[[str, Any], None], stopping: Callable[[], bool]) -> None:
        began, asked, ended = time.monotonic(), 0.0, False
        while True:
            try:
                if self._pipe.poll(0.05):
                    name, data = self._pipe.recv()
                    if name == "end":
                        return
                    ended = ended or name in ("result", "error", "cancelled")
                    heard(name, data)
            except (EOFError, OSError):
                self.kill()
                if not ended:
                    heard(
                        "error", "the process that did this ended in the middle: it took too much, or was killed"
                    )
                return
            now = time.monotonic()
            if not asked and stopping():
                asked = now
                self._stop.set()
            late = self.seconds is not None and now - began > self.seconds
            if late or (asked and now - asked > STOP_SECONDS):
                self.kill()
                if not ended:
                    heard(*(("error", f"this took more than {self.seconds:g} s") if late else ("cancelled", None)))
                return
