"""benchmarks/tune_attention.py without a GPU: what it leaves away, what it calls best, and that it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seqpope.kernels import flash

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
tune = importlib.import_module("tune_attention")
CPU = torch.device("cpu")
TINY = tune.Shape(1, 1, 24, 16)
A, B, C = (64, 64, 4, 3, None), (128, 64, 8, 3, 128), (64, 64, 4, 2, 168)


@pytest.mark.parametrize(
    ("kernel", "dim", "tiles", "taken"),
    [  # what Triton 3.6 took for sm_90
        ("forward", 64, (128, 64, 8, 3), 106496),
        ("forward", 128, (128, 64, 8, 3), 212992),
        ("backward_keys", 64, (64, 64, 4, 2), 74240),
        ("backward_queries", 48, (128, 64, 8, 2), 81920),
    ],
)
def test_shared_memory(kernel, dim, tiles, taken):
    assert 0.97 * taken < tune.needs(kernel, dim, flash.Tiles(*tiles)).shared <= taken


def test_registers_by_hand():
    # Eight warps, half a row each: 64 sums, 64 scores and half as many registers for weights of 16 bits.
    assert tune.needs("forward", 64, flash.Tiles(128, 64, 8, 3)).registers == (64 + 64 + 32) / 2
    # 128 for dk', 64 for dv, then weights and gradients of 32 queries and one of the two in 16 bits
    assert tune.needs("backward_keys", 64, flash.Tiles(32, 64, 4, 2)).registers == (192 + 64 + 16) / 2


@pytest.mark.parametrize(
    ("kernel", "dim", "tiles", "reason"),
    [
        ("forward", 64, (128, 64, 8, 3, 128), None),
        ("forward", 64, (64, 64, 8, 2), "eight 128"),
        ("backward_keys", 64, (128, 64, 8, 2), "eight 128"),  # it holds keys
        ("backward_keys", 64, (64, 128, 8, 2), None),
        ("backward_queries", 64, (32, 64, 4, 2), "four warps multiply 64"),
        ("forward", 128, (128, 128, 8, 2), "shared memory"),
        ("backward_keys", 64, (128, 128, 4, 2), "the 255 that there are"),
        ("forward", 64, (64, 64, 4, 2, 96), "some 24 registers"),
        ("forward", 64, (128, 64, 8, 3, 168), "lets no further program in"),
        ("forward", 64, (64, 64, 4, 4), "stages that cost a program"),
        ("forward", 64, (128, 64, 8, 1, 128), "one stage"),
        ("forward", 64, (128, 32, 8, 3, 128), "32 columns"),
        ("backward_queries", 128, (64, 32, 4, 2), None),  # there is no room for 64
    ],
)
def test_pruning(kernel, dim, tiles, reason):
    found = tune.why_not(kernel, dim, flash.Tiles(*tiles))
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize("dim", [32, 48, 64, 128])
@pytest.mark.parametrize("kernel", tune.TILED)
def test_candidates(monkeypatch, kernel, dim):
    def tiling(dim, keys, dtype, device):
        return flash.HOPPER_LONG[dim] if keys > flash.LONG and dim in flash.HOPPER_LONG else flash.HOPPER[dim]

    monkeypatch.setattr(flash, "choose_tiling", tiling)
    present, *others = tune.candidates(kernel, dim, torch.device("cuda"))
    assert present == getattr(flash.HOPPER[dim], kernel)
    assert 5 < len(others) <= tune.MOST
    assert len({present, *others}) == 1 + len(others)
    assert not any(tune.why_not(kernel, dim, flash.Tiles(*entry)) for entry in others)
    if dim in flash.HOPPER_LONG:
        longer = getattr(flash.HOPPER_LONG[dim], kernel)
        assert longer in (present, others[0])
        others = [entry for entry in others if entry != longer]
    far = [tune.unlikeness(entry, present) for entry in others]
    assert far == sorted(far)


def test_candidates_for_rotation():
    assert tune.candidates("rotate", 64, torch.device("cuda")) == [(32,), (16,), (64,)]


@pytest.mark.parametrize(
    ("tables", "best", "gain"),
    [
        ([{A: 2.0, B: 1.0}], B, 50.0),
        ([{A: 1.0, B: 2.0}, {A: 4.0, B: 2.0, C: 1.0}], B, 20.0),  # 1 + 4 against 2 + 2; C has no time at the first
        ([{A: 100.0, B: 101.0}, {A: 0.2, B: 0.1}], B, 100 * (1 - 2.01 / 3)),  # long shapes weigh no more
        ([{A: 1.0, B: 1.0}], A, 0.0),
        ([{B: 1.0, C: 2.0}], B, None),
        ([{B: 1.0}, {C: 2.0}], A, None),
        ([{}], A, None),
    ],
)
def test_choice(tables, best, gain):
    assert tune.choose(tables, A) == (best, gain if gain is None else pytest.approx(gain))


def measured(times, complete=True):
    rows = [{"entry": list(entry), "ms": ms} for entry, ms in times.items()]
    return {"present": list(A), "complete": complete, "times": rows, "failed": []}


def test_recommendation():
    now = dict.fromkeys(tune.TILED, A) | {"rotate": (32,)}
    present = {(64, False): now, (64, True): now}
    shapes = {
        "one": {"shape": [1, 1, 4096, 64], "kernels": {"forward": measured({A: 2.0, B: 1.0, C: 3.0})}},
        "late": {"shape": [1, 1, 512, 64], "kernels": {"forward": measured({A: 2.0}, complete=False)}},
        "long": {
            "shape": [1, 1, 8192, 64],
            "kernels": {
                "backward_queries": measured({A: 2.0, C: 1.5}),
                "rotate": measured({(32,): 1.0, (16,): 0.9}),
            },
        },
    }
    assert tune.recommend(shapes, present).split("\n") == [
        "",
        "    # up to 4,096 keys; now Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3))",
        "    # forward: gain 50.0 % (one)",
        "    64: Tiling(Tiles(128, 64, 8, 3, 128), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3)),",
        "",
        "    # more than 4,096 keys; now Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3))",
        "    # backward_queries: gain 25.0 % (long)",
        "    # rotate: gain 10.0 % by 16 rows, now 32 (long)",
        "    64: Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2, 168)),",
    ]


class Script:
    """Stands in for a worker: answers by the entry asked for, a list's in turn."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def ask(self, request):
        self.asked.append(request)

    def answer(self):
        found = self.answers[self.asked[-1].entry]
        return found.pop(0) if isinstance(found, list) else found


def test_a_sweep_goes_on_after_failures_and_times_the_best_again():
    other, dead = (64, 64, 4, 2, None), (64, 64, 4, 4, None)
    answers = {
        A: [{"ms": 2.0}, {"ms": 3.0}],
        B: {"failed": "out of resource: shared memory"},
        C: [{"ms": 1.0}, {"failed": "no answer for 90 s"}],
        other: [{"ms": 9.0}, {"ms": 8.0}],
    }
    worker, failed = Script(answers), {dead: "not compiled"}
    found = tune.sweep(worker, "forward", TINY, [A, B, C, dead, other], failed, math.inf)
    assert {row["entry"]: (row["ms"], row["rounds_ms"]) for row in found["times"]} == {
        A: (2.5, [2.0, 3.0]),
        other: (8.5, [9.0, 8.0]),
    }
    assert {row["entry"]: row["reason"] for row in found["failed"]} == {
        dead: "not compiled", B: "out of resource: shared memory", C: "no answer for 90 s",
    }  # fmt: skip
    assert [request.entry for request in worker.asked] == [A, B, C, other, A, C, other]
    assert {request.trusted for request in worker.asked} == {A}
    assert worker.asked[3].slow_ms == tune.SLOW * 1.0 + tune.SLACK_MS
    assert found["complete"]
    late = tune.sweep(Script({}), "forward", TINY, [A, B], {}, time.monotonic())
    assert (late["complete"], late["times"]) == (False, [])


def test_what_fails_or_is_wrong_is_said(monkeypatch):
    bench, present = tune.Bench(CPU), tune.present_entry("forward", 16, CPU)
    ask = tune.Request("forward", TINY, present, present)
    assert bench.answer(ask)["difference"] == 0
    with pytest.raises(Exception, match="power of 2"):
        bench.answer(ask._replace(entry=(24, 16, 4, 1, None)))
    launch = flash.launch_forward
    monkeypatch.setattr(flash, "launch_forward", lambda *rest: launch(*rest) or rest[3].mul_(1.02))
    assert "differs from the present entry's result by 0.02" in bench.answer(ask)["failed"]
    monkeypatch.setattr(flash, "launch_forward", lambda *rest: None)  # writes nothing
    assert "nan" in bench.answer(ask)["failed"]
    monkeypatch.undo()
    assert bench.answer(ask)["ms"] > 0


def test_processes_that_die_or_are_silent_stop_nothing(monkeypatch):
    jobs = [tune.Request("forward", TINY, entry) for entry in (A, B, C)]
    workers = [tune.Worker("cpu") for _ in range(2)]
    monkeypatch.setattr(tune, "serve", print)  # prints its arguments and ends
    failed = tune.compile_all(workers, jobs, math.inf)
    assert set(failed) == set(jobs)
    assert all("the process died, exit status 0" in reason for reason in failed.values())
    monkeypatch.undo()
    monkeypatch.setattr(tune, "PATIENCE", 0.1)
    assert tune.compile_all(workers, jobs[:1], math.inf) == {jobs[0]: "no answer for 0.1 s"}
    assert tune.compile_all(workers, jobs, 0.0) == dict.fromkeys(jobs, "no time was left to compile it")
    assert all(worker.process is None for worker in workers)


def test_clock_spends_little_and_less_on_what_is_slow(monkeypatch):
    clock, calls = tune.BriefClock(CPU), []
    clock.cuda = True
    monkeypatch.setattr(clock, "_times", lambda call, count: [call() for _ in range(count)])
    monkeypatch.setattr(clock, "_capture", lambda call: argparse.Namespace(replay=call))
    assert clock.brief(lambda: calls.append(1) or 2.0 + len(calls), 9.0) == {"ms": 8.5, "calls": 8}
    assert len(calls) == 1 + 1 + 8  # one to judge by, a first replay that uploads the graph, those that count
    assert clock.brief(lambda: 5.0, 4.0) == {"ms": 5.0, "calls": 1}
    assert clock.brief(lambda: 40.0, math.inf)["calls"] == 3
    assert clock.brief(lambda: 0.01, math.inf)["calls"] == 50


@pytest.mark.slow
def test_whole_run(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "tune_attention.py"), "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--jobs", "2", "--commit", "abc"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "tune.json").read_text()
    result = json.loads(text)
    assert result["provenance"]["commit"] == "abc"
    assert str(tmp_path) not in text
    (tiny,) = result["shapes"].values()
    assert set(tiny["kernels"]) == set(tune.KERNELS)
    for found in tiny["kernels"].values():
        assert (found["complete"], found["failed"], len(found["times"])) == (True, [], 2)
        assert found["times"][0]["entry"] == found["present"]
        assert all(row["difference"] < 1e-4 and row["ms"] > 0 for row in found["times"])
    assert "16: Tiling(Tiles(" in done.stdout
    assert "rotate: gain" in done.stdout
