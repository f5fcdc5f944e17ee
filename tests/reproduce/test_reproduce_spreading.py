"""Runs of a study as processes of their own, some at a time."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tiny_study

from seqpope.errors import SeqpopeError
from seqpope.reproduce import spreading
from seqpope.reproduce.spreading import VISIBLE, parts_of, train_spread

STUDY = replace(tiny_study.STUDY, seeds=1, side_by_side=False)


def run(data, out, study=STUDY, **settings):
    return tiny_study.run(data, out, study, **settings)


def test_as_one_after_another_and_resumed(data, tmp_path, monkeypatch):
    """A part fails, the others finish; the same command trains what is missing alone."""
    broken = tmp_path / "a" / "tiny" / "parts" / "rope-tiny-seed0"
    broken.parent.mkdir(parents=True)
    broken.write_text("in the way")
    with pytest.raises(SeqpopeError, match=r"1 of 2 runs failed, see .*rope-tiny-seed0\.log; the same command"):
        run(data, tmp_path / "a", jobs=2)
    assert "cannot be written" in broken.with_name("rope-tiny-seed0.log").read_text()
    assert not (tmp_path / "a" / "tiny" / "tiny.json").exists()
    broken.unlink()
    document, said = run(data, tmp_path / "a", jobs=2)
    assert "1 of 2 runs finished before, kept" in said
    assert any(line.startswith("rope-tiny-seed0  done; 1 of 1, 0 at work") for line in said)
    alone, _ = run(data, tmp_path / "b")
    for one, other in zip(document["rows"], alone["rows"], strict=True):
        assert (one["label"], one["seeds"]) == (other["label"], other["seeds"])
        assert one["validation"] == pytest.approx(other["validation"], rel=1e-5)
    monkeypatch.setattr(spreading, "_run", lambda *_: pytest.fail("trained again"))
    again, _ = run(data, tmp_path / "a")  # how it was begun is in its plan
    assert again["rows"] == document["rows"]
    with pytest.raises(SeqpopeError, match="was begun one run after another: leave out --jobs"):
        run(data, tmp_path / "b", jobs=2)
    with pytest.raises(SeqpopeError, match="jobs must be at least 1, it is 0"):
        run(data, tmp_path / "c", jobs=0)


def test_parts_are_seeds_unless_those_train_as_one_model(tmp_path):
    arms = STUDY.arms
    assert [(part.name, part.seeds) for part in parts_of(STUDY, arms, 4, 2)] == [
        ("pope-tiny-seed4", 1), ("rope-tiny-seed4", 1), ("pope-tiny-seed5", 1), ("rope-tiny-seed5", 1)
    ]  # fmt: skip
    together = replace(STUDY, side_by_side=True)
    assert [(part.name, part.seeds) for part in parts_of(together, arms, 4, 2)] == [
        ("pope-tiny-seed4", 2), ("rope-tiny-seed4", 2)
    ]  # fmt: skip
    runs = parts_of(together, arms, 4, 2)[1].runs(together, tmp_path)
    place = tmp_path / "rope-tiny-seed4" / "tiny" / "rope-tiny"
    assert runs == [place / "rope-seed4", place / "rope-seed5"]


def test_gpus_are_shared_evenly_and_the_own_view_of_them_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "5,7")
    monkeypatch.setattr(spreading, "_gpus", lambda settings: ["5", "7"])
    seen, at_work = [], set()

    class Process:
        def __init__(self, target, args, name):
            self.name, self.exitcode, self.sentinel, self.pid = name, None, self, None

        def start(self):
            seen.append(os.environ[VISIBLE])
            at_work.add(self)
            assert len(at_work) <= 3

    def wait(sentinels):
        assert set(sentinels) == at_work
        first = sentinels[0]
        first.exitcode = 0
        at_work.discard(first)

    monkeypatch.setattr(spreading, "get_context", lambda _: type("Spawn", (), {"Process": Process}))
    monkeypatch.setattr(spreading.connection, "wait", wait)
    plan = {"seed": 0, "seeds": 3, "share": 1.0}
    runs = train_spread(STUDY, STUDY.arms, tmp_path, plan, 3, lambda _: None)
    assert [len(each) for each in runs.values()] == [3, 3]
    assert seen == ["5", "7", "5", "5", "7", "5"]  # each goes where the one that ended was, or fewest are
    assert os.environ[VISIBLE] == "5,7"


@pytest.fixture
def begun(data, tmp_path):
    """A process that trains two long runs at a time."""
    program = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from dataclasses import replace
from pathlib import Path
from tiny_study import STUDY, TINY, run
from seqpope.signals import Interrupted
LONG = {{**TINY, "optimizer.steps": 100000, "eval_every": 100000}}
if __name__ == "__main__":
    study = replace(STUDY, seeds=1, side_by_side=False)
    study = replace(study, arms=tuple(replace(arm, settings=LONG) for arm in study.arms))
    try:
        run({str(data)!r}, Path({str(tmp_path)!r}), study, jobs=2)
    except Interrupted as error:
        print(error)
"""
    script = tmp_path / "long.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(1800):
            time.sleep(0.1)
            logs = [log.read_text() for log in (tmp_path / "tiny" / "parts").glob("*.log")]
            if ["from scratch" in log for log in logs] == [True, True] or process.poll() is not None:
                break
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_stopped_or_killed_all_runs_save(begun, tmp_path, number):
    """On TERM it waits for them; killed, it leaves none that trains on."""
    begun.send_signal(getattr(signal, number))
    told, _ = begun.communicate(timeout=60)
    parts = tmp_path / "tiny" / "parts"
    if number == "SIGTERM":
        assert told.strip() == "stopped; the same command goes on"
    for _ in range(600):
        stopped = ["stopped at step" in log.read_text() for log in parts.glob("*.log")]
        if stopped == [True, True]:
            break
        assert number == "SIGKILL", stopped
        time.sleep(0.1)
    assert stopped == [True, True]
    assert len(list(parts.glob("*/tiny/*/*/last.ckpt"))) == 2, [str(p) for p in parts.rglob("*")]
    assert "spread: true" in (tmp_path / "tiny" / "plan.yaml").read_text()
