"""benchmarks/side_by_side.py on a CPU: what it records and tells; what it measures needs a GPU."""

import json

import pytest
import yaml
from scripts import load_benchmark

from data_prep.indexing import prepare
from seqpope.errors import SeqpopeError


@pytest.fixture(scope="module")
def script():
    return load_benchmark("side_by_side")


@pytest.fixture
def measured(script, tmp_path):
    prepare(tmp_path / "indexing", counts={"train": 40, "validation": 4, "test": 4}, progress=lambda _: None)
    config = {
        "domain": "indexing",
        "dataset": "indexing",
        "model": {"width": 8, "layers": 1, "heads": 2},
        "data": {"length": 51, "batch_size": 2},
        "optimizer": {"steps": 6000},
    }

    def run(*words, **changes):
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config | changes))
        out = tmp_path / "out"
        plan = ["--config", str(tmp_path / "tiny.yaml"), "--data-folder", str(tmp_path), "--out", str(out)]
        small = ["--device", "cpu", "--steps", "2", "--rounds", "3", "--warm-up", "1"]
        script.main([*plan, *small, *words])
        return json.loads((out / "side-by-side.json").read_text()), (out / "side-by-side.md").read_text()

    return run


def test_rows_and_their_table(measured, script):
    rows, told = measured("--seeds", "2", "--optimizer", "adamw")
    assert [(row["position"], row["seeds"], row["optimizer"]) for row in rows] == [
        ("pope", 2, "adamw"),
        ("rope", 2, "adamw"),
    ]
    assert all(len(row["ms"]) == 3 and min(row["ms"]) > 0 and row["recipe_steps"] == 6000 for row in rows)
    assert all(0 <= row["losses_apart"] < 1e-4 for row in rows)
    assert told.count("| AdamW | 2 |") == 1
    again, told = measured("--seeds", "2", "--optimizer", "adamw", "muon")
    assert len(again) == 4  # rows measured again are replaced
    assert told.count("| AdamW | 2 |") == told.count("| Muon | 2 |") == 1
    for row, ms in zip(again, ([3.0, 1.0, 2.0], [4.0, 9.0, 1.0], [1.0] * 3, [1.0] * 3), strict=True):
        row["ms"] = ms
    assert "| AdamW | 2 | 2.0 | 4.0 | 0.500 | 0.2 | 0.4 |" in script.report(again)
    assert "| AdamW | 2 | 2.0 |  |  | 0.2 |  |" in script.report(again[:1])


def test_a_step_that_computes_something_else_is_not_timed(measured, script, monkeypatch, tmp_path):
    read = script.StackTraining.read
    monkeypatch.setattr(script.StackTraining, "read", lambda self, batch: read(self, batch) * 1.001)
    with pytest.raises(SeqpopeError, match=r"off by 1.0e-03 .* expected at most 1e-04"):
        measured("--seeds", "2", "--optimizer", "adamw")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(script.StackTraining, "read", lambda self, batch: read(self, batch) * 1.02)
    with pytest.raises(SeqpopeError, match=r"off by .* expected at most 1e-02"):
        measured("--seeds", "2", "--optimizer", "adamw", precision="bf16-mixed")


def test_in_bf16_each_model_is_held_against_its_own_weights(measured):
    wide = {"width": 64, "layers": 2, "heads": 2}
    rows, _ = measured("--seeds", "3", "--optimizer", "adamw", precision="bf16-mixed", model=wide)
    assert [row["precision"] for row in rows] == ["bf16-mixed"] * 2
    assert all(row["losses_apart"] < 2e-3 for row in rows)  # by another's weights 0.01 to 0.07
    rows, _ = measured("--seeds", "2", "--optimizer", "adamw", model={**wide, "dropout": 0.5})
    assert all(row["losses_apart"] < 1e-4 for row in rows)  # held against each other without it


def test_what_cannot_be_measured(measured, tmp_path, capsys):
    with pytest.raises(SystemExit):
        measured("--steps", "0")
    assert "--steps must be at least 1, it is 0" in capsys.readouterr().err
    with pytest.raises(SeqpopeError, match="indexing"):
        measured("--data-folder", str(tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()
