"""benchmarks/step.py: its arithmetic, and its plumbing on a CPU; what it measures needs a GPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from scripts import load_benchmark

from seqpope.config import OptimizerConfig
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "step.py"


@pytest.fixture(scope="module")
def step():
    """The script as a module."""
    return load_benchmark("step")


class Threads:
    """Stands in for processes: quick to start, and what a test replaced is replaced in them."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process(threading.Thread):
        def __init__(self, target, args):
            theirs, *rest = args
            super().__init__(target=target, args=(Connection(os.dup(theirs.fileno())), *rest), daemon=True)

        def kill(self):
            pass


@pytest.fixture
def measure_tiny(step, monkeypatch, tmp_path):
    """Run the script in this process; its exit status, its record and its table."""

    def run(*words):
        monkeypatch.setattr(step.multiprocessing, "get_context", lambda _: Threads)
        with pytest.raises(SystemExit) as done:
            step.main(["--tiny", "--device", "cpu", "--steps", "2", "--out", str(tmp_path), *words])
        return (
            done.value.code,
            json.loads((tmp_path / "step.json").read_text()),
            (tmp_path / "step.md").read_text(),
        )

    return run


def test_flops_by_hand(step):
    preset = step.Preset(
        ModelConfig(width=8, layers=3, heads=2), OptimizerConfig(), vocabulary=5, batch=2, length=4
    )
    # A layer: 8 x 24 (q, k, v), 8 x 8 (out), 8 x 32 and 32 x 8 (MLP) = 768 weights; the output projection 8 x 5.
    matrices = 6 * (3 * 768 + 40) * (2 * 4)
    # A product: for 2 sequences and 2 heads of width 4, 2 x 4 x (4 x 4 / 2) FLOPs.
    product = 3 * 2 * 2 * (2 * 4 * 8)
    assert step.count_flops(preset) == {
        "model": matrices + 6 * product,
        "pope": matrices + 11 * product,
        "rope": matrices + 7 * product,
    }


@pytest.mark.parametrize("position", ["pope", "rope"])
def test_weights_counted_are_the_models_matrices(step, position):
    preset = step.TINY
    model = Transformer(preset.vocabulary, position, preset.model)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and not name.endswith("delta"))
    flops = step.count_flops(preset)
    product = (flops["pope"] - flops["rope"]) / 4
    assert flops["model"] - 6 * product == 6 * weights * preset.batch * preset.length


def test_presets_are_the_papers(step):
    genome = step.PRESETS["genome"]
    assert (genome.model.width, genome.model.layers, genome.model.heads) == (1024, 16, 16)
    assert (genome.vocabulary, genome.batch, genome.length, genome.model.dropout) == (4107, 64, 1000, 0.1)
    assert genome.model.attention_dropout == 0


@pytest.mark.slow
def test_processes_on_a_cpu_end_to_end(tmp_path):
    words = ["--tiny", "--device", "cpu", "--steps", "2", "--profile", "--commit", "abc", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "step.json").read_text())
    assert (document["commit"], document["claims"], document["failures"]) == ("abc", False, [])
    assert str(tmp_path) not in json.dumps(document)
    found = document["presets"]["tiny"]
    for position in ("pope", "rope"):
        entry = found["encodings"][position]
        assert len(entry["rounds"]) == 2
        assert entry["tokens_per_second"] == pytest.approx(2 * 48 / entry["ms_per_step"] * 1000)
        flops = entry["mfu"]["matmul"] * document["matmul_flops"] * entry["ms_per_step"] / 1000
        assert flops == pytest.approx(found["flops"]["model"])
        assert entry["hfu"]["matmul"] / entry["mfu"]["matmul"] == pytest.approx(
            found["flops"][position] / found["flops"]["model"]
        )
        assert entry["mfu"]["datasheet"] is None
        assert entry["profile"]["kernels"]
    pope, rope = (found["encodings"][position]["ms_per_step"] for position in ("pope", "rope"))
    assert found["pope_over_rope"]["time"] == pytest.approx(pope / rope)
    assert "say nothing" in (tmp_path / "step.md").read_text()
    assert "tiny pope" in (tmp_path / "step-profile.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-profile.txt", "step.json", "step.md"]


def test_what_fails_is_recorded_and_stops_nothing_else(step, monkeypatch, measure_tiny):
    def refuse(self):
        raise RuntimeError("no such kernel")

    forward = step.Trial.step
    monkeypatch.setattr(
        step.Trial, "step", lambda trial: refuse(trial) if trial.model.position == "pope" else forward(trial)
    )
    status, document, table = measure_tiny()
    assert status == 1
    assert list(document["presets"]["tiny"]["encodings"]) == ["rope"]
    assert "pope_over_rope" not in document["presets"]["tiny"]
    (failure,) = document["failures"]
    assert failure == {
        "preset": "tiny",
        "position": "pope",
        "reason": "warm: RuntimeError: no such kernel",
        "memory": False,
    }
    assert "tiny, pope failed: warm: RuntimeError: no such kernel" in table


@pytest.mark.slow
def test_out_of_memory_is_tried_again_alone(step, monkeypatch, measure_tiny):
    order = []
    turn = step.Trial.turn

    def crowded(self):
        order.append(self.model.position)
        if order == ["pope"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return turn(self)

    monkeypatch.setattr(step.Trial, "turn", crowded)
    status, document, _ = measure_tiny()
    assert (status, document["failures"]) == (0, [])
    assert order == ["pope", "rope", "rope", "pope", "pope"]
    assert "time" in document["presets"]["tiny"]["pope_over_rope"]


def test_a_process_that_is_silent_or_dies_is_a_failure(step):
    worker = object.__new__(step.Worker)
    worker.connection, theirs = multiprocessing.Pipe()
    worker.process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.process.start()
    worker.timeout = 0.1
    assert worker.do("warm") is None
    assert worker.failure == {"reason": "no answer for 0.1 s", "memory": False}
    assert not worker.process.is_alive()
    theirs.close()
    assert worker.do("turn") is None
    assert "died" in worker.failure["reason"]
    worker.stop()
