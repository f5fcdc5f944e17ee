"""Processes beside the server: what goes wrong in one ends with it, and is told in words."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from seqpope.errors import SeqpopeError
from seqpope.studio import worker as studio_worker
from seqpope.studio.server import CLERK_SECONDS, FILE, MEMORY
from seqpope.studio.worker import Context, Worker


@pytest.fixture
def worker():
    made = Worker(package="odd_jobs")
    yield made
    made.close()


def run(worker: Worker, kind: str, arguments: Any = None, stopping=lambda: False) -> list[tuple[str, Any]]:
    heard: list[tuple[str, Any]] = []
    worker.run(f"jobs.{kind}", arguments, lambda name, data: heard.append((name, data)), stopping)
    return heard


def test_jobs_are_done(worker):
    assert run(worker, "echo", {"a": [1]}) == [("result", {"a": [1]})]
    assert run(worker, "count", 3) == [("step", 0), ("step", 1), ("step", 2), ("result", 3)]


def test_what_goes_wrong_is_told_and_the_next_job_works(worker):
    assert run(worker, "refuse") == [("error", "not this")]
    for kind in ("mistake", "deep", "unsendable", "nothing"):
        [(name, said)] = run(worker, kind)
        assert name == "error", kind
        assert "mistake of seqpope's" in said
        assert "details" not in said
        assert run(worker, "echo", 1) == [("result", 1)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_out_of_memory_is_no_mistake(worker, device):
    assert run(worker, "fill", device) == [("error", "this does not fit the memory: ask for less at once")]


def test_a_model_that_is_gone(tmp_path):
    file = tmp_path / "best.safetensors"
    file.write_text("one")
    context = Context(print, lambda: False)
    assert context.held(str(file), lambda path: path.read_text()) == "one"
    file.unlink()
    with pytest.raises(SeqpopeError, match="no longer where it was"):
        context.held(str(file), lambda path: path.read_text())


def test_one_that_dies_in_the_middle(worker):
    *_, (name, said) = run(worker, "die")
    assert name == "error"
    assert "ended in the middle" in said
    assert run(worker, "echo", 1) == [("result", 1)]


def test_one_that_died_while_it_had_nothing_to_do(worker):
    run(worker, "echo")
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.join()
    assert run(worker, "echo", 1) == [("result", 1)]


def test_one_that_is_cancelled_stops(worker):
    heard = run(worker, "count", 10_000, stopping=lambda: True)  # it says something all the time
    assert heard[-1] == ("cancelled", None)
    assert len(heard) < 200
    assert run(worker, "echo", 1) == [("result", 1)]  # it is not told to stop still


def test_one_that_does_not_stop_is_killed(worker, monkeypatch):
    monkeypatch.setattr(studio_worker, "STOP_SECONDS", 0.3)
    run(worker, "echo")
    process = worker._process
    assert run(worker, "hang", stopping=lambda: True)[-1] == ("cancelled", None)
    assert not process.is_alive()
    assert run(worker, "echo", 1) == [("result", 1)]


@pytest.mark.parametrize(("kind", "arguments"), [("hang", None), ("count", 10_000)])
def test_one_that_takes_too_long_is_killed(kind, arguments):
    worker = Worker(package="odd_jobs", seconds=0.3)
    *_, last = run(worker, kind, arguments)
    worker.close()
    assert last == ("error", "this took more than 0.3 s")


def test_limits_hold():
    worker = Worker(package="odd_jobs", limits=(1 << 30, 1 << 20), seconds=20)
    assert run(worker, "limits") == [("result", [1 << 30, 1 << 20, 0])]
    [(name, said)] = run(worker, "take", 2 << 30)
    assert name == "error"
    assert "memory" in said
    assert run(worker, "take", 1 << 20) == [("result", 1 << 20)]
    assert run(worker, "write", 2 << 20)[0][0] == "error"
    assert run(worker, "write", 1 << 19) == [("result", 1 << 19)]
    worker.close()
    assert MEMORY <= 8 << 30
    assert FILE <= 1 << 30
    assert CLERK_SECONDS <= 60


def test_one_that_cannot_start_is_told():
    worker = Worker(setup="jobs.broken", package="odd_jobs")
    [(name, said)] = run(worker, "echo")
    assert name == "error"
    assert "did not start" in said
    with pytest.raises(SeqpopeError, match="did not start"):
        worker.start()


def test_started_twice_at_once_it_is_one_process():
    worker = Worker(setup="jobs.ready", package="odd_jobs")
    heard: list[tuple[str, Any]] = []
    threads = [threading.Thread(target=worker.start) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: heard.extend(run(worker, "echo", 1))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == [("result", 1)]
    worker.close()


def test_closed_it_starts_none_again():
    worker = Worker(package="odd_jobs")
    working = threading.Thread(target=run, args=(worker, "hang"))
    working.start()
    while worker._process is None:
        time.sleep(0.01)
    process = worker._process
    worker.close()
    working.join(10)
    assert not working.is_alive()
    assert not process.is_alive()
    assert run(worker, "echo") == [("cancelled", None)]
