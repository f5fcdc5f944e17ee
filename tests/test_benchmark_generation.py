"""benchmarks/generation.py: its judges, which are not the constraints' own code, see what breaks a rule."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import load_benchmark

from seqpope.domains.music.piano.codec import Performance, write_midi

benchmark = load_benchmark("generation")


@pytest.mark.parametrize(
    ("text", "prompt", "options", "broken"),
    [
        ("ACGT", 0, {}, False),
        ("ACGN", 0, {}, True),
        ("CCGAATTC", 0, {"forbid": "EcoRI"}, True),
        ("CCGAATTG", 0, {"forbid": "EcoRI"}, False),
        ("GAGACC", 0, {"forbid": "BamHI,BsaI"}, True),  # the other strand, where BsaI would cut outside
        ("CCAGG", 0, {"forbid": "CCWGG"}, True),
        ("GAATTCA", 6, {"forbid": "EcoRI", "judge_prompt": False}, False),
        ("GAATTCA", 5, {"forbid": "EcoRI", "judge_prompt": False}, True),
        ("ACGTAA", 0, {"gc": "0.4,0.6"}, True),
        ("ACGTGA", 0, {"gc": "0.4,0.6"}, False),
        ("AACCGG", 0, {"gc": "0.4,0.7", "gc_window": 4}, True),
        ("ACAGCG", 0, {"gc": "0.4,0.8", "gc_window": 4}, False),
        ("CTAACC", 0, {"open_frame": 1}, True),
        ("CTAACC", 0, {"open_frame": 0}, False),
        ("CTAACC", 0, {"no_stop": True}, True),
        ("TAACCC", 3, {"no_stop": True, "judge_prompt": False}, False),
        ("CTAACC", 3, {"no_stop": True, "judge_prompt": False}, True),
    ],
)
def test_what_breaks_a_rule(text, prompt, options, broken):
    assert benchmark.dna_broken(text, prompt, options) == broken


def test_kinds_are_options_of_rules():
    from seqpope.generate.dna import make_rules

    for options in benchmark.DNA_KINDS.values():
        make_rules(**options)


class TestPiano:
    """A judge that finds nothing is none: what each rule forbids is put into a file and found."""

    PROMPT = Performance([0.0, 1.0, 2.0], [1, 0.5, 4], [60, 62, 64], [70] * 3)

    @pytest.mark.parametrize(
        ("drawn", "options", "message"),
        [
            ([(3.0, 60, 1), (4.0, 60, 1)], {}, None),
            ([(3.0, 60, 1), (4.0, 61, 1)], {"keys": (60, 60)}, "a key outside the range"),
            ([(3.0, 60, 1), (7.5, 60, 1)], {}, "a note behind the end"),
            ([(3.0, 60, 1), (3.5, 60, 1)], {}, "a key that sounds is struck"),
            ([(3.0, 60, 1), (3.0, 61, 1)], {"polyphony": 3}, None),
            ([(3.0, 60, 1), (3.0, 61, 1)], {"polyphony": 2}, "3 notes at once"),
            ([], {}, None),
        ],
    )
    def test_what_breaks_a_rule(self, tmp_path, drawn, options, message):
        write_midi(self.PROMPT, tmp_path / "prompt.mid")
        onset, pitch, held = np.array(drawn, float).reshape(-1, 3).T
        parts = ("onset", "duration", "pitch", "velocity")
        more = (onset, held, pitch.astype(int), np.full(len(onset), 70))
        whole = [np.concatenate([getattr(self.PROMPT, p), new]) for p, new in zip(parts, more, strict=True)]
        write_midi(Performance(*whole), tmp_path / "a.mid")
        found = benchmark.broken_piano(tmp_path / "a.mid", tmp_path / "prompt.mid", len(drawn), 5.0, **options)
        assert found == ([] if message is None else [message])

    def test_another_prompt_is_seen(self, tmp_path):
        write_midi(self.PROMPT, tmp_path / "prompt.mid")
        write_midi(Performance([0, 1, 2, 3], [1] * 4, [60, 62, 65, 60], [70] * 4), tmp_path / "a.mid")
        found = benchmark.broken_piano(tmp_path / "a.mid", tmp_path / "prompt.mid", 1, 5.0)
        assert found == ["the prompt is not as it was"]

    def test_notes_that_are_not_there_are_missed(self, tmp_path):
        write_midi(self.PROMPT, tmp_path / "a.mid")
        assert benchmark.broken_piano(tmp_path / "a.mid", None, 4, 6.0) == ["4 notes told, 3 found"]
