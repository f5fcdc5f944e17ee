from __future__ import annotations

import pytest

from seqpope.reproduce import lengths
from seqpope.reproduce.figures import draw_study
from seqpope.reproduce.lengths import length_differences, lengths_of, lengths_tables, series_of


def record(length, whole, second, same, documents):
    bins = [(0, 1, documents, whole + 1), (1, 2, 0, None), (2, length, 9, second)]
    return {
        "length": length,
        "documents": documents,
        "whole": {"tokens": 2 * documents, "nats_per_token": whole},
        "second_half": {"tokens": documents, "nats_per_token": second},
        "by_position": [dict(zip(("from", "to", "tokens", "nats_per_token"), each, strict=True)) for each in bins],
        "same_targets": {"whole": {"tokens": 40, "nats_per_token": same}},
    }


def result(scores, documents=2):
    """As `evaluate --lengths` writes of a run read in windows of 8 and 16."""
    return {
        "protocol": {"lengths": [8, 16], "precision": "bf16"},
        "targets": {"same_documents": ["a"] * documents, "same_tokens": 40},
        "scores": {
            name: [record(8, 1.0, near, near + 0.5, 30), record(16, 1.0, far, far + 0.5, documents)]
            for name, (near, far) in scores.items()
        },
    }


@pytest.fixture
def row(monkeypatch):
    def made(label, *results, seeds=(0, 1)):
        monkeypatch.setattr(lengths, "load_lengths", lambda folders: list(folders))
        return {
            "label": label,
            "encoding": label[:4].lower(),
            "seeds": list(seeds),
            "recipe": {"data": {"length": 8}},
            **lengths_of(results),
        }

    return made


POPE = [{"pope": (1.0, 1.5)}, {"pope": (1.2, 1.9)}]
ROPE = [{"rope": (1.1, 3.0), "rope+yarn": (1.1, 2.0)}, {"rope": (1.0, 3.6), "rope+yarn": (1.0, 2.2)}]


def test_what_a_row_holds(row):
    made = row("RoPE", *map(result, ROPE))
    assert made["lengths"]["rope"] == {
        "8": {"same": [1.6, 1.5], "second_half": [1.1, 1.0]},
        "16": {"same": [3.5, 4.1], "second_half": [3.0, 3.6]},
    }
    assert made["length_targets"] == {
        "precision": "bf16",
        "same": {"documents": 2, "tokens": 40},
        "second_half": {"8": {"documents": 30, "tokens": 30}, "16": {"documents": 2, "tokens": 2}},
    }
    assert list(series_of(made)) == ["RoPE", "RoPE with YaRN"]


@pytest.mark.parametrize(("documents", "length"), [(2, 8), (9, 8), (10, 16)])
def test_positions_are_those_of_the_longest_window_that_many_documents_fill(row, documents, length):
    found = row("RoPE", *(result(each, documents) for each in ROPE))["positions"]
    assert (found["length"], found["documents"]) == (length, 30 if length == 8 else documents)
    near_or_far = 1.05 if length == 8 else 3.3
    assert found["nats_per_token"]["rope"] == [[0, 1, 2.0], [2, length, pytest.approx(near_or_far)]]


def test_differences_are_paired_by_seed(row):
    pope, rope = row("PoPE", *map(result, POPE), seeds=(1, 2)), row("RoPE", *map(result, ROPE), seeds=(2, 1))
    plain, yarn = length_differences(pope, rope)
    assert (plain["a"], plain["b"], yarn["b"]) == ("PoPE", "RoPE", "RoPE with YaRN")
    assert plain["lengths"]["16"]["mean"] == pytest.approx((1.5 - 3.6 + 1.9 - 3.0) / 2)
    assert plain["lengths"]["16"]["sd"] == pytest.approx(abs((1.5 - 3.6) - (1.9 - 3.0)) / 2**0.5)
    assert yarn["lengths"]["8"]["mean"] == pytest.approx((1.0 - 1.0 + 1.2 - 1.1) / 2)
    assert length_differences(pope, {**rope, "seeds": [7, 8]}) == []
    assert length_differences(pope, {"label": "RoPE", "seeds": [1, 2]}) == []


def test_tables_say_how_little_is_behind_them(row):
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
    text = "\n".join(lengths_tables({"rows": rows, "length_differences": length_differences(*rows)}))
    assert "nats/token (bf16)" in text
    assert "| tokens read at once | 8 (30 documents) | 16 (2 documents) |" in text
    assert "| RoPE with YaRN | 1.050 ± 0.071 | 2.100 ± 0.141 |" in text
    assert "The same 40 targets, of the 2 documents" in text
    assert "an example, no measurement" in text
    assert "| PoPE minus RoPE | +0.050 (-1.856 to +1.956) | -1.600 (-2.871 to -0.329) |" in text
    many = [row("PoPE", *(result(each, 12) for each in POPE))]
    assert "an example" not in "\n".join(lengths_tables({"rows": many}))
    assert lengths_tables({"rows": [{"label": "a"}]}) == []


def test_one_seed_has_no_spread(row):
    rows = [row("PoPE", result(POPE[0]), seeds=(0,)), row("RoPE", result(ROPE[0]), seeds=(0,))]
    text = "\n".join(lengths_tables({"rows": rows, "length_differences": length_differences(*rows)}))
    assert "| PoPE | 1.000 | 1.500 |" in text
    assert "| PoPE minus RoPE | -0.100 | -1.500 |" in text


def test_the_figure_takes_bins_that_are_empty(row):
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
    assert draw_study({"rows": rows, "title": "a title"})[:4] == b"\x89PNG"
