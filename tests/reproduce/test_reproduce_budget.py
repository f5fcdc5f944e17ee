"""Minutes that a study may take: what its arms take, and what share of their steps fits."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
from tiny_study import ARMS, STUDY, TINY, run

from data_prep.indexing import prepare
from seqpope import provenance
from seqpope.data.shards import find_store
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.reproduce import budget
from seqpope.reproduce.budget import Cost, measure_cost
from seqpope.reproduce.studies import arm_config
from seqpope.reproduce.summary import markdown
from seqpope.signals import Interrupted

pytestmark = pytest.mark.usefixtures("unrendered")


def test_a_budget_shortens_every_arm_alike(data, tmp_path, monkeypatch):
    costs = {"pope": Cost(10.0, 7.0), "rope": Cost(20.0, 11.0)}
    monkeypatch.setattr(budget, "measure_cost", lambda config, *_: costs[config.position])
    # Timing takes 1 s.
    monkeypatch.setattr(budget.time, "perf_counter", itertools.count().__next__)
    # 6 steps of 10 and of 20 s: 180 s in all; 0.9 x 121 1/9 s less 18 s beside them and 1 s is half of it.
    document, said = run(data, tmp_path, budget=109 / 54)
    assert document["share"] == pytest.approx(0.5)
    assert [row["steps"] for row in document["rows"]] == [[2], [2]]
    assert "**50% of the recipes' steps**, to fit a budget." in markdown(document)
    assert "PoPE, tiny: 10000.0 ms a step, 7 s beside them" in said
    assert "all would take 3.4 minutes; 50.0% of the steps fit into 2.01852" in said
    monkeypatch.setattr(budget, "measure_cost", lambda *_: pytest.fail("probed again"))
    assert run(data, tmp_path, budget=109 / 54)[0] == document


def test_a_budget_that_tests_alone_would_use_up(data, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "measure_cost", lambda *_: Cost(1.5, 29.0))
    # 2 of 6 steps, one for each validation, are 6 s of 18.
    advice = r"take tiny about 1\.1 minutes: give a --budget between about 1\.2 and 1\.5 \(all steps\), fewer"
    with pytest.raises(SeqpopeError, match=f"{advice}.*alone$"):
        run(data, tmp_path, budget=1)
    again = rf"between about 2\.4 and 2\.9 \(all steps\) for all 2 studies.*; delete {tmp_path}.*json to have"
    with pytest.raises(SeqpopeError, match=again):
        run(data, tmp_path, budget=1, studies=2)
    assert not (tmp_path / "tiny" / "plan.yaml").exists()
    shutil.copytree(tmp_path, tmp_path / "all")
    # Who takes the advice is not timed again, and not refused.
    monkeypatch.setattr(budget, "measure_cost", lambda *_: pytest.fail("timed again"))
    document, said = run(data, tmp_path, budget=1.2)
    assert 1 / 3 < document["share"] < 0.5
    assert [row["steps"] for row in document["rows"]] == [[2], [2]]
    assert "PoPE, tiny: 1500.0 ms a step, 29 s beside them (timed before)" in said
    assert not (tmp_path / "tiny" / budget.TIMED).exists()
    assert run(data, tmp_path / "all", budget=1.5)[0]["share"] == 1.0


def test_the_least_budget_is_that_of_the_arm_that_is_validated_most(data, tmp_path, monkeypatch):
    often = replace(ARMS[1], settings={**TINY, "eval_every": 1})
    monkeypatch.setattr(budget, "measure_cost", lambda *_: Cost(1.5, 29.0))
    with pytest.raises(SeqpopeError, match=r"between about 1\.5 and 1\.5"):
        run(data, tmp_path, replace(STUDY, arms=(ARMS[0], often)), budget=1)


def test_what_timings_are_of(data, tmp_path, monkeypatch):
    timed = []

    def measured(config, *_):
        timed.append(config.position)
        if len(timed) == stop:
            raise Interrupted("stopped")
        return Cost(1.5, 29.0)

    def again(study=STUDY, data=data, **settings):
        timed.clear()
        with pytest.raises((SeqpopeError, Interrupted)):
            run(data, tmp_path / "out", study, budget=1, **settings)
        return list(timed)

    monkeypatch.setattr(budget, "measure_cost", measured)
    monkeypatch.setattr(provenance, "commit", lambda: "a")
    stop = 2
    assert again() == ["pope", "rope"]  # the second was interrupted
    stop = 0
    assert again() == ["rope"]
    assert again() == []
    shutil.copytree(data, tmp_path / "moved")
    assert again(data=tmp_path / "moved") == []
    both = ["pope", "rope"]
    assert again(seeds=3) == both  # as one model
    alone = replace(STUDY, side_by_side=False)
    assert again(alone) == both
    assert again(alone, seeds=1) == []  # a run each: it is still refused
    for changed in (
        replace(STUDY, arms=tuple(replace(arm, settings={**TINY, "model.width": 32}) for arm in ARMS)),
        replace(STUDY, arms=tuple(replace(arm, lengths=(51, 102)) for arm in ARMS)),
        replace(STUDY, arms=tuple(replace(arm, lengths=(51, 102)) for arm in ARMS), lengths_split="validation"),
    ):
        assert again(changed) == both
        assert again(changed) == []
    assert again() == both
    monkeypatch.setattr(provenance, "commit", lambda: "b")
    assert again() == both
    monkeypatch.setattr(budget.platform, "node", lambda: "another")
    assert again() == both
    monkeypatch.setattr(provenance, "device_name", lambda _: "another")
    assert again() == both
    prepare(
        tmp_path / "other" / "indexing",
        counts={"train": 61, "validation": 9, "test": 8},
        progress=lambda _: None,
    )
    assert again(data=tmp_path / "other") == both


@pytest.mark.parametrize("wrong", ["", "[]", "{}", "[" * 100_000, "of", "step", "around", "text"])
def test_timings_of_something_else_are_made_again(data, tmp_path, monkeypatch, wrong):
    timed = []

    def measured(config, *_):
        timed.append(config.position)
        return Cost(1.5, 29.0)

    monkeypatch.setattr(budget, "measure_cost", measured)
    file = tmp_path / "tiny" / budget.TIMED
    with pytest.raises(SeqpopeError, match="between about 1"):
        run(data, tmp_path, budget=1)
    kept = json.loads(file.read_text())
    if wrong in ("of", "step", "around", "text"):
        name = "around" if wrong == "text" else wrong
        kept["PoPE, tiny"][name] = "1" if wrong in ("of", "text") else -1.0
        file.write_text(json.dumps(kept))
    else:
        file.write_text(wrong)
    with pytest.raises(SeqpopeError, match="between about 1"):
        run(data, tmp_path, budget=1)
    again = ["pope"] if wrong in ("of", "step", "around", "text") else ["pope", "rope"]
    assert timed == ["pope", "rope", *again]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_run_is_timed(data, side_by_side):
    config = arm_config(ARMS[0], data_folder=data, device="cpu", seeds=2, side_by_side=side_by_side)
    cost = measure_cost(config)
    assert 0 < cost.step < 5
    assert 0 < cost.around < 120


def test_what_a_run_takes_beside_its_steps(data, monkeypatch):
    """Steps of 0.5 s after 5 s of compiling, two seeds validated in 3 s each, and 10 s for all else."""

    def trained(config, folder, **_):
        for seed in "ab":
            log = folder / seed / "logs" / "version_0" / "metrics.csv"
            log.parent.mkdir(parents=True)
            log.write_text("seconds,step,validation_seconds\n7.0,4,\n9.0,8,\n,8,3.0\n")
        return [folder / "a", folder / "b"]

    clock = itertools.cycle([100.0, 125.0])
    monkeypatch.setattr("seqpope.experiment.train_runs", trained)
    monkeypatch.setattr("seqpope.reproduce.budget.time.perf_counter", lambda: next(clock))
    config = arm_config(ARMS[0], data_folder=data, device="cpu")
    cost = measure_cost(config)
    store = open_store(find_store(data, "indexing"))
    test = 6 * len(store.split("test").tokens) / len(store.split("validation").tokens)
    assert cost.step == pytest.approx(0.5)
    assert cost.around == pytest.approx(5 + 10 + 2 * 6 + test)  # 6 steps are validated twice
    assert measure_cost(config, 3).around == pytest.approx(cost.around + 3 * test)
    assert measure_cost(config, 3, "validation").around == pytest.approx(cost.around + 3 * 6)
