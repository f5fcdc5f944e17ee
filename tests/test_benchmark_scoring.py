"""benchmarks/scoring.py: its plumbing on a CPU; what it measures needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import load_benchmark

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "scoring.py"
WORDS = ["--tiny", "--device", "cpu", "--bases", "130", "--rounds", "2"]


@pytest.fixture(scope="module")
def scoring():
    """The script as a module."""
    return load_benchmark("scoring")


def test_both_encodings_at_every_stride(scoring, tmp_path):
    with pytest.raises(SystemExit) as done:
        scoring.main([*WORDS, "--commit", "abc", "--out", str(tmp_path)])
    assert done.value.code == 0
    document = json.loads((tmp_path / "scoring.json").read_text())
    assert document["commit"] == "abc"
    assert not document["claims"]
    assert set(document["gate"]) == {"pope", "rope"}
    assert list(document["strides"]) == ["20", "15", "10"]
    for found in document["strides"].values():
        pope, rope = (found["encodings"][position] for position in ("pope", "rope"))
        assert len(pope["rounds"]) == len(rope["rounds"]) == 2
        assert pope["rounds"][0]["nats_per_base"] == pytest.approx(np.log(4), abs=0.1)  # of untrained models
        assert found["pope_over_rope"]["time"] == pytest.approx(
            rope["bases_per_second"] / pope["bases_per_second"]
        )
    assert "say nothing" in (tmp_path / "scoring.md").read_text()


def test_what_is_not_exact_is_not_claimed(scoring, tmp_path, monkeypatch):
    score = scoring.Trial.score
    monkeypatch.setattr(
        scoring.Trial, "score", lambda self, name, *rest: score(self, name, *rest) + 0.02 * (name == "bf16")
    )
    with pytest.raises(SystemExit) as done:
        scoring.main([*WORDS, "--out", str(tmp_path)])
    assert done.value.code == 1
    document = json.loads((tmp_path / "scoring.json").read_text())
    assert "nats a base off" in document["failures"][0]["reason"]
    assert all(not found["encodings"] for found in document["strides"].values())


def test_it_needs_no_library_of_genomes():
    """A GPU machine may have torch, lightning, numpy, safetensors and PyYAML alone."""
    code = f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='benchmark'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    foreign = {"pysam", "pyfaidx", "pyarrow", "pyBigWig", "jsonargparse", "Bio", "scipy", "matplotlib", "music21"}
    assert foreign.isdisjoint(name.split(".")[0] for name in done.stdout.split())
