"""The queue: its order, its end, what is told of a job to whom."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from seqpope.errors import SeqpopeError
from seqpope.studio.jobs import MOST_EVENTS, MOST_KEPT, MOST_WAITING, Job, Jobs


class Made:
    """A worker in the server's own process; "wait" works until it is told to stop."""

    def run(self, kind: str, arguments: Any, heard, stopping) -> None:
        if kind == "fail":
            raise ValueError("a mistake")
        if kind == "silent":
            return
        while kind == "wait" and not stopping():
            time.sleep(0.005)
        heard(*(("cancelled", None) if stopping() else ("result", arguments)))


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(Made())  # type: ignore[arg-type]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """In a thread of its own: beside the browser's tests this one has a loop that runs already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asyncio.wait_for(coroutine, 10)).result()


def heard(jobs: Jobs, job: Job, after: int = 0) -> list[tuple[int, str, Any]]:
    async def collect() -> list[tuple[int, str, Any]]:
        return [one async for one in jobs.events(job, after)]

    return run(collect())


def test_one_after_the_other(jobs):
    made = [jobs.submit("echo", number) for number in range(5)]
    assert [heard(jobs, job)[-1] for job in made] == [(2, "result", number) for number in range(5)]


def test_the_queue_has_an_end_and_what_waits_can_be_taken_out(jobs):
    working = jobs.submit("wait", None)
    while working.state != "working":
        time.sleep(0.005)
    waiting = [jobs.submit("wait", None) for _ in range(MOST_WAITING)]
    with pytest.raises(SeqpopeError, match="waiting already"):
        jobs.submit("wait", None)
    assert [jobs.before(job) for job in waiting] == list(range(1, MOST_WAITING + 1))
    jobs.cancel(waiting[3])
    jobs.cancel(waiting[3])
    assert heard(jobs, waiting[3]) == [(1, "cancelled", None)]
    last = jobs.submit("echo", 1)
    for job in (*waiting, working):
        jobs.cancel(job)
    assert heard(jobs, working)[-1][1] == "cancelled"
    assert heard(jobs, last)[-1][1:] == ("result", 1)


def test_a_mistake_leaves_the_queue_working(jobs):
    for kind, words in (("fail", "ValueError"), ("silent", "without an answer")):
        _, name, said = heard(jobs, jobs.submit(kind, None))[-1]
        assert name == "error"
        assert words in said
    assert heard(jobs, jobs.submit("echo", 1))[-1][1:] == ("result", 1)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 10**9])
def test_told_again_from_where_one_was(jobs, after):
    job = jobs.submit("echo", 1)
    whole = [one for one in heard(jobs, job) if one[0]]  # without how many are before it
    assert heard(jobs, job, after) == (whole[after:] or whole[-1:])


def test_only_so_much_is_kept(jobs):
    first = jobs.submit("echo", 0)
    for number in range(MOST_KEPT + 3):
        heard(jobs, jobs.submit("echo", number))
    with pytest.raises(SeqpopeError, match="no such job"):
        jobs.find(first.id)
    job = Job("kind", None)
    for number in range(MOST_EVENTS + 10):
        job.say("step", number)
    job.say("result", 1)
    job.say("error", "after the end")
    assert len(job.events) == MOST_EVENTS + 1
    assert job.events[-1] == ("result", 1)


def test_a_job_that_nobody_listens_to_is_cancelled(jobs, monkeypatch):
    monkeypatch.setattr("seqpope.studio.jobs.DESERTED_SECONDS", 0.3)
    deserted, waiting = jobs.submit("wait", None), jobs.submit("echo", 1)

    async def listen() -> list[str]:
        names = []
        async for _, name, _ in jobs.events(waiting):
            names.append(name)
        return names

    began = time.monotonic()
    assert run(listen())[-2:] == ["begun", "result"]  # it waited longer, but was listened to
    assert time.monotonic() - began >= 0.25
    assert deserted.events[-1][0] == "cancelled"


def test_those_that_wait_and_are_deserted_make_room(jobs, monkeypatch):
    waiting = []

    async def listen() -> None:
        async for _, name, _ in jobs.events(working):
            if name == "begun":
                monkeypatch.setattr("seqpope.studio.jobs.DESERTED_SECONDS", 0.1)  # of the others
                waiting.extend(jobs.submit("wait", None) for _ in range(MOST_WAITING))
                await asyncio.sleep(0.2)
                last = jobs.submit("echo", 1)
                monkeypatch.setattr("seqpope.studio.jobs.DESERTED_SECONDS", 30.0)
                assert [job.state for job in waiting] == ["done"] * MOST_WAITING
                assert jobs.before(last) == 1
                jobs.cancel(working)

    working = jobs.submit("wait", None)
    run(listen())


def test_who_leaves_leaves_no_job_that_looks_deserted(jobs, monkeypatch):
    """Not even for a moment: the thread of jobs may look at it then."""
    monkeypatch.setattr("seqpope.studio.jobs.DESERTED_SECONDS", 0.2)
    looked = []

    class Watched(Job):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "listeners" and hasattr(self, "heard"):
                looked.append(self.deserted)

    async def listen() -> None:
        async for _ in jobs.events(Watched("kind", None)):
            await asyncio.sleep(0.4)
            return

    run(listen())
    assert looked == [False, False]


class Large:
    """Arguments that take long to compare."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("arguments are compared")

    __hash__ = None  # type: ignore[assignment]


def test_to_find_a_job_no_arguments_are_compared(jobs):
    working = jobs.submit("wait", None)
    while working.state != "working":
        time.sleep(0.005)
    waiting = [jobs.submit("wait", Large()) for _ in range(3)]
    assert [jobs.before(job) for job in waiting] == [1, 2, 3]
    for job in (*waiting[::-1], working):
        jobs.cancel(job)


def test_who_stops_listening_may_come_back_in_time(jobs, monkeypatch):
    monkeypatch.setattr("seqpope.studio.jobs.DESERTED_SECONDS", 0.5)
    job = jobs.submit("wait", None)

    async def listen(seconds: float) -> None:
        async def collect() -> None:
            async for _ in jobs.events(job):
                pass

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(collect(), seconds)

    for _ in range(4):
        run(listen(0.1))
        time.sleep(0.2)
    assert job.state == "working"
    time.sleep(0.8)
    assert job.state == "done"


def test_who_listens_is_let_go_at_the_end(jobs):
    job = jobs.submit("wait", None)

    async def listen() -> None:
        async for _ in jobs.events(job):
            jobs.closing = True

    run(listen())
    jobs.cancel(job)
