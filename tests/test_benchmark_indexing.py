"""The small task that benchmarks/indexing_small.py trains on, and its table."""

import json
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from scripts import load_benchmark


@pytest.fixture(scope="module")
def small():
    return load_benchmark("indexing_small")


def test_examples_are_what_they_say(small):
    ids, at, targets = small.draw(np.random.default_rng(0), 400)
    shifts = set()
    for row, place, target in zip(ids.tolist(), at[:, 0].tolist(), targets.tolist(), strict=True):
        text = row[1 : place + 1]  # after padding, up to the comma that the target follows
        assert row[0] == 0
        assert not any(row[place + 1 :])
        string = text[: text.index(small.COMMA)]
        letter, comma, *number, last = text[len(string) + 1 :]
        assert comma == last == small.COMMA
        assert small.SHORTEST <= len(string) <= small.LONGEST
        assert len(set(string)) == len(string)
        assert all(1 <= token <= small.LETTERS for token in string)
        shift = (number[-1] - 1 - small.LETTERS) * (-1 if number[0] == small.MINUS else 1)
        assert string[string.index(letter) + shift] == target
        shifts.add(shift)
    assert shifts == set(range(-3, 4))


@pytest.mark.parametrize("name", ["PoPE, Muon, delta learned at ten times the rate", "RoPE, AdamW"])
def test_a_run_and_its_row(small, monkeypatch, name):
    monkeypatch.setattr(small, "EVERY", 2)
    one, again = small.run(name, 3, 4), small.run(name, 3, 4)
    assert one["curve"] == again["curve"]
    assert [step for step, *_ in one["curve"]] == [2, 4]
    assert all(2.5 < loss < 4 for _, loss, _ in one["curve"])
    told = small.report([one, {**one, "seed": 1, "curve": [[2, 2.0, 0.6], [4, 0.1, 0.98]]}])
    assert f"| {name} | 2 | 1 of 2 | 2, not by 4 | 4, not by 4 | 0.10, " in told


def test_runs_are_made_again_for_more_steps_alone(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(small, "EVERY", 2)
    monkeypatch.setattr(small, "RESULTS", tmp_path / "x.json")
    monkeypatch.setattr(small, "get_context", lambda _: None)
    monkeypatch.setattr(small, "ProcessPoolExecutor", Now)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["indexing_small.py", *words])
        small.main()
        return [[step for step, *_ in r["curve"]] for r in json.loads((tmp_path / "x.json").read_text())]

    with pytest.raises(SystemExit):
        call("--table")
    with pytest.raises(SystemExit):
        call("--steps", "1")
    assert "--steps is 1, and a point of a curve takes 2" in capsys.readouterr().err
    arm = ["--arms", "RoPE, AdamW", "--seeds", "1"]
    assert call(*arm, "--steps", "2") == [[2]]
    assert call(*arm, "--steps", "4") == [[2, 4]]
    assert "RoPE, AdamW 0 [4," in capsys.readouterr().out
    assert call(*arm, "--steps", "2") == [[2, 4]]
    assert capsys.readouterr().out == ""
    assert "| RoPE, AdamW | 1 | 0 of 1 | not by 4 |" in (tmp_path / "x.md").read_text()


class Now:
    """An executor that does each job when it is submitted, in this process."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future
