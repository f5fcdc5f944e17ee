"""benchmarks/generation.py: its judge of DNA, which is not the constraint's own code, sees what breaks a rule."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "generation.py"
spec = importlib.util.spec_from_file_location("benchmark_generation", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


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
