"""benchmarks/piano_round_trip.py: what it says of performances is so, and it sees what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from piano_pieces import random_performance
from scripts import load_benchmark

from seqpope.domains.music.piano.codec import Performance, write_midi
from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer, RemiTokenizer

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "piano_round_trip.py"
benchmark = load_benchmark("piano_round_trip")


class Slow(RemiTokenizer):
    """One that decodes a hundredth slower: nothing is itself again, and errors grow to the end."""

    def decode(self, ids, name=""):
        played = super().decode(ids, name)
        return Performance(played.onset * 1.01, played.duration, played.pitch, played.velocity)


def test_errors_by_hand(tmp_path):
    played = Performance([0.0, 1.03, 2.0], [0.5, 7.0, 0.51], [60, 62, 60], [64, 63, 67], [[0.4, 0.8]])
    found = benchmark.compare(played, RemiTokenizer(), tmp_path / "a.mid")
    assert (found["identity"], found["pitches"], found["long"], found["under_pedal"]) == (True, True, 1, 1)
    assert found["onset"] == pytest.approx([0, 0, 1.0 - 1.03], abs=1e-3)  # by pitch: 60, 60, 62
    assert found["duration"] == pytest.approx([0, 0.5 - 0.51, -1.0], abs=1e-3)
    assert found["velocity"].tolist() == [1, 0, 0]
    found = benchmark.compare(played, PerformanceTokenizer(), tmp_path / "a.mid")
    assert found["onset"] == pytest.approx([0, 0, 0], abs=1e-3)
    assert found["duration"] == pytest.approx([0, 0, 0], abs=1e-3)  # with what sounds, 0.8 s under the pedal


def test_of_two_notes_at_once_the_last_is_compared(tmp_path):
    played = Performance([0, 1, 1.004], [0.5, 0.5, 0.7], [60, 62, 62], [64, 60, 90])
    found = benchmark.compare(played, PerformanceTokenizer(), tmp_path / "a.mid")
    assert (found["dropped"], found["identity"], found["pitches"]) == (1, True, True)
    assert found["velocity"].max() <= 2


def test_drift_is_seen(tmp_path):
    played = random_performance(0, 100)
    found = benchmark.compare(played, Slow(), tmp_path / "a.mid")
    assert not found["identity"]
    assert found["tail"].mean() > 0.005 * played.onset[-1]
    good = benchmark.compare(played, RemiTokenizer(), tmp_path / "a.mid")
    assert np.abs(good["tail"]).max() < 0.04


def test_whole(tmp_path, monkeypatch):
    for seed in range(3):
        write_midi(random_performance(seed, 50), tmp_path / f"{seed}.mid")
    (tmp_path / "bad.mid").write_bytes(b"no music")
    words = ["--source", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *words])
    # A spawned process could not find this module by the name it has here.
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", InProcess)
    benchmark.main()
    text = (tmp_path / "out" / "piano-round-trip.md").read_text()
    assert "| tokens -> file -> tokens is the identity | 3 | 3 |" in text
    assert "| notes | 150 | 150 |" in text
    assert "bad.mid" in (tmp_path / "out" / "piano-round-trip.json").read_text()


class InProcess:
    """A pool that maps in this process."""

    def __init__(self, *_, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def map(self, *arguments):
        return map(*arguments)
