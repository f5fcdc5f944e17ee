"""Worker processes that a Ctrl-C neither kills in the middle nor leaves hanging."""

from __future__ import annotations

import atexit
import multiprocessing.util
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


def _leave_signals_to_the_parent() -> None:
    # A terminal and `timeout` signal the whole group. A worker that dies while it holds the queue's lock leaves
    # the others, and then their parent, waiting for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _ignoring(number: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # who may not set handlers, and gets no signals
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def term_as_interrupt() -> Iterator[None]:
    """Have TERM end the block as Ctrl-C does, so that it clears up; outside the main thread as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kill_daemons() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def kill_workers_at_exit() -> None:
    """Have workers that ignore TERM (`datamodule.leave_signals_to_the_trainer`) end with this process.

    At its exit multiprocessing sends TERM to daemons and waits for them. One that nobody ended before, since an
    error or its traceback still holds the loader, would be waited for without end.
    """
    atexit.unregister(_kill_daemons)
    atexit.register(_kill_daemons)  # called before what multiprocessing registered, which was imported above


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """`count` processes; if the block fails or is interrupted, what they have begun is finished, the rest dropped.

    They are spawned: a forked copy of a process that runs torch's threads may hang.
    """
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_signals_to_the_parent)
    try:
        yield pool
    except BaseException:
        # The same signal may come twice, and the second one here would leave all that is due to be done after all.
        with _ignoring(signal.SIGINT):
            pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
