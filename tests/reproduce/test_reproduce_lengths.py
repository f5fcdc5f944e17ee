from __future__ import annotations

import math
from dataclasses import replace

import pytest

from seqpope.errors import SeqpopeError
from seqpope.reproduce import figures, lengths, running
from seqpope.reproduce.figures import draw_study, enlarged_range
from seqpope.reproduce.lengths import (
    choice_text,
    choose,
    length_differences,
    lengths_of,
    lengths_tables,
    series_of,
)
from seqpope.reproduce.merging import check_alike, measured_on
from seqpope.reproduce.studies import STUDIES, Arm


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
        monkeypatch.setattr(lengths, "load_lengths", lambda folders, name: list(folders))
        monkeypatch.setattr(lengths, "_protocol", lambda folders, wanted, split: "")
        return {
            "label": label,
            "encoding": label[:4].lower(),
            "seeds": list(seeds),
            "recipe": {"data": {"length": 8}},
            **lengths_of(results, (8, 16)),
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


def test_what_is_read_through_yarn_stands_against_what_is(row):
    read = [{"pope": (1.0, 1.5), "pope+yarn": (1.0, 1.2)}, {"pope": (1.2, 1.9), "pope+yarn": (1.2, 1.3)}]
    found = length_differences(row("PoPE", *map(result, read)), row("RoPE", *map(result, ROPE)))
    assert [(each["a"], each["b"]) for each in found] == [
        ("PoPE", "RoPE"), ("PoPE", "RoPE with YaRN"), ("PoPE with YaRN", "RoPE with YaRN")
    ]  # fmt: skip
    assert found[2]["lengths"]["16"]["mean"] == pytest.approx((1.2 - 2.0 + 1.3 - 2.2) / 2)


def test_tables_say_how_little_is_behind_them(row):
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
    text = "\n".join(lengths_tables({"rows": rows, "length_differences": length_differences(*rows)}))
    assert "nats/token of the test split (bf16)" in text
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


class TestChoice:
    """Of who is not told from the best within the window, the lowest beyond it."""

    def rows(self, row, near, far):
        values = [[{"pope": pair} for pair in zip(near[label], far[label], strict=True)] for label in near]
        seeds = (0, 1, 2)
        return [row(label, *map(result, each), seeds=seeds) for label, each in zip(near, values, strict=True)]

    NEAR = {"old": [1.0, 1.1, 1.2], "best": [0.99, 1.12, 1.17], "apart": [1.1, 1.2, 1.301]}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("far", "chosen", "said"),
        [
            ([1.5, 1.6, 1.71], "best", "-0.497 (-0.511 to -0.482)."),
            ([1.5, 2.6, 2.0], "best", "**These seeds cannot"),
            ([2.5, 2.6, 2.0], "old", "It is the default"),
        ],
    )
    def test_by_the_rule(self, row, far, chosen, said):
        beyond = {"old": [2.0, 2.1, 2.2], "best": far, "apart": [0.5] * 3}
        found = choose(self.rows(row, self.NEAR, beyond), [*self.NEAR], "old")
        assert (found["near"], found["far"], found["best"], found["chosen"]) == (8, 16, "best", chosen)
        assert found["alike"] == ["old", "best"]
        (text,) = choice_text({"choice": found, "lengths_split": "validation"})
        assert "best is best at 8; 3 seeds cannot tell from it: old." in text
        assert said in text

    def test_only_among_all_and_by_enough_seeds(self, row):
        far = {"old": [2.0, 2.1, 2.2], "best": [1.5, 1.6, 1.71], "apart": [0.5] * 3}
        rows, labels = self.rows(row, self.NEAR, far), [*self.NEAR]
        assert choose(rows, labels, "old") is not None
        assert choose(rows[1:], labels, "old") is None
        assert choose(rows, [], "") is None
        assert choose([], labels, "old") is None
        # Seeds that not all have are left out.
        other = {**rows[0], "seeds": [1, 2, 3]}
        assert choose([other, *rows[1:]], labels, "old") is None
        assert choose([{**rows[0], "seeds": [7, 8, 9]}, *rows[1:]], labels, "old") is None
        rows[0]["lengths"]["pope"]["16"]["second_half"] = [2.0, None, 2.2]
        assert choose(rows, labels, "old") is None
        assert choice_text({}) == choice_text({"choice": None}) == []


def test_of_one_encoding_like_stands_against_like(row):
    read = [{"pope": (1.0, 1.5), "pope+yarn": (1.0, 1.2)}, {"pope": (1.2, 1.9), "pope+yarn": (1.2, 1.3)}]
    found = length_differences(*({**row("PoPE", *map(result, read)), "label": name} for name in ("a", "b")))
    assert [(each["a"], each["b"]) for each in found] == [("a", "b"), ("a with YaRN", "b with YaRN")]


def test_the_figure_takes_bins_that_are_empty(row):
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
    assert draw_study({"rows": rows, "title": "a title"})[:4] == b"\x89PNG"


class TestWhatHolds:
    @staticmethod
    def rows(*last):
        """Of each the seeds' NLL at the longest length; 1.0 and 1.1 at the shorter one."""
        halves = [{"8": {"second_half": [1.0, 1.1]}, "16": {"second_half": seeds}} for seeds in last]
        return [{"label": str(n), "lengths": {"pope": each}} for n, each in enumerate(halves)]

    def test_the_lowest_fifth_of_the_longest_length(self):
        held = enlarged_range(self.rows([1.2, 1.3], [5.9, 6.1], [1.9, 2.1], [2.2, 2.4]))  # 1.25 to 6: up to 2.2
        assert held == (1.0, 2.1)
        assert enlarged_range(self.rows([0.2, 0.3], [5.9, 6.1], [0.9, 1.0])) == (0.2, 1.1)

    def test_seeds_count_by_their_mean(self):
        rows = self.rows([1.2, 1.3], [5.9, 7.1], [1.5, 2.9], [1.0, 3.8])  # means 1.25, 6.5, 2.2, 2.4: up to 2.3
        assert enlarged_range(rows) == (1.0, 2.9)

    def test_what_is_read_through_yarn_counts(self):
        rows = self.rows([1.2, 1.3], [5.9, 6.1])
        rows[1]["lengths"]["rope+yarn"] = {"8": {"second_half": [1.0, 1.2]}, "16": {"second_half": [1.4, 1.5]}}
        assert enlarged_range(rows) == (1.0, 1.5)

    def test_what_can_be_told_apart_as_it_is_is_not_enlarged(self):
        rows = self.rows([1.2, 1.3], [2.9, 3.1], [1.3, 1.4])
        assert enlarged_range(rows) == (1.0, 1.4)
        rows[0]["lengths"]["pope"]["8"]["second_half"] = [2.0, 2.0]
        assert enlarged_range(rows) is None

    def test_a_panel_for_one_alone_or_for_all_would_tell_nothing(self):
        assert enlarged_range(self.rows([1.2, 1.3], [5.9, 6.1], [3.0, 3.1])) is None
        assert enlarged_range(self.rows([1.2, 1.2], [1.2, 1.2])) is None
        low = {"8": {"second_half": [1.0, 1.0]}, "16": {"second_half": [1.0, 1.0]}}  # alike throughout
        assert (
            enlarged_range([{"label": n, "lengths": {"pope": low}} for n in "ab"] + self.rows([6.0, 6.0])) is None
        )
        assert enlarged_range(self.rows([1.2, 1.3])) is enlarged_range([]) is None

    def test_what_is_not_scored_is_left_out(self):
        assert enlarged_range(self.rows([None, None], [None, 1.0])) is None
        assert enlarged_range(self.rows([1.2, 1.3], [6.0, math.inf], [1.4, 1.4], [5.0, 5.0])) == (1.0, 1.4)
        assert enlarged_range([{"label": "x", "lengths": {"pope": {}}}]) is None
        assert enlarged_range(self.rows([1.2, 1.3], [6.0, 6.0], [1.4, 1.4], [None, 1.0])) == (1.0, 1.4)


def test_what_lies_close_together_is_enlarged_between_the_others(row, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "as_png", lambda figure: drawn.append(figure) or b"")
    collapsed = [{"rope": (1.1, 9.0), "rope+yarn": (1.1, 2.0)}, {"rope": (1.0, 9.6), "rope+yarn": (1.0, 2.2)}]
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, collapsed))]
    draw_study({"rows": rows, "title": "a title"})
    whole, enlarged, places = drawn[0].axes
    assert [panel.get_title() for panel in drawn[0].axes[:2]] == ["second halves of windows", "the same, enlarged"]
    assert [panel.get_xlabel() for panel in (whole, enlarged)] == ["tokens read at once"] * 2
    assert enlarged.get_ylim() == pytest.approx(
        (1.0 - 0.06, 2.2 + 0.06)
    )  # a twentieth of 1.0 to 2.2 on either side
    assert whole.get_ylim() == places.get_ylim() != enlarged.get_ylim()
    assert places.get_ylim()[1] > 9
    assert all(label.get_visible() for label in places.get_yticklabels())
    curves = [
        [
            line.get_ydata().tolist()
            for line in panel.get_lines()
            if len(line.get_ydata()) == 2 and line.get_marker() == "o"
        ]
        for panel in (whole, enlarged)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["PoPE", "RoPE", "the same read through YaRN"]
    draw_study({"rows": rows[:1], "title": "a title"})
    assert len(drawn[1].axes) == 2
    assert not any(label.get_visible() for label in drawn[1].axes[1].get_yticklabels())


def test_halves_in_which_nothing_is_scored(row):
    rows = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
    for each in rows:
        for by_length in each["lengths"].values():
            by_length["16"]["second_half"] = [None, None]
        each["positions"]["nats_per_token"] = {name: [] for name in each["lengths"]}
    differences = length_differences(*rows)
    assert differences[0]["lengths"]["16"] is None
    text = "\n".join(lengths_tables({"rows": rows, "length_differences": differences}))
    assert "| PoPE minus RoPE | +0.050 (-1.856 to +1.956) |  |" in text
    assert draw_study({"rows": rows, "title": "a title"})[:4] == b"\x89PNG"


class TestFiles:
    @pytest.fixture
    def runs(self, tmp_path):
        folders = [tmp_path / f"rope-seed{seed}" for seed in (0, 1)]
        for folder in folders:
            folder.mkdir()
        return folders

    def test_other_protocols_beside_the_arms_own_change_nothing(self, runs):
        for folder in runs:
            for name in ("8-16-bf16-yarn", "8-16", "8-16-32-bf16", "8-16-share0.5", "4-8"):
                (folder / f"lengths-test-{name}.json").touch()
        assert lengths._protocol(runs, (8, 16)) == "lengths-test-8-16-bf16.json"
        assert lengths._protocol(runs, (4, 8)) == "lengths-test-4-8.json"

    def test_of_the_split_asked_for(self, runs):
        for folder in runs:
            (folder / "lengths-test-8-16-bf16.json").touch()
        with pytest.raises(SeqpopeError, match=r"no lengths-validation-8-16-bf16\.json.* and --split validation"):
            lengths._protocol(runs, (8, 16), "validation")
        for folder in runs:
            (folder / "lengths-validation-8-16-bf16-yarn.json").touch()
        assert lengths._protocol(runs, (8, 16), "validation") == "lengths-validation-8-16-bf16.json"

    def test_other_lengths_do_not_stand_for_the_arms(self, runs):
        for folder, name in zip(runs, ("8-16-bf16", "8-16-32-bf16"), strict=True):
            (folder / f"lengths-test-{name}.json").touch()
        with pytest.raises(
            SeqpopeError, match=r"rope-seed1 holds no lengths-test-8-16-bf16\.json.*--lengths 8,16` and --prec"
        ):
            lengths_of(runs, (8, 16))

    def test_with_yarn_or_without(self, row):
        with pytest.raises(SeqpopeError, match=r"read as rope, rope\+yarn and as rope; read the one without YaRN"):
            row("RoPE", *({**result(each), "folder": "x"} for each in (ROPE[0], {"rope": (1.0, 3.6)})))

    def test_a_study_reads_what_was_read_otherwise_alone(self, tmp_path, monkeypatch):
        study, arm = STUDIES["extrapolation-jsb"], Arm("RoPE", "rope", "jsb-augmented", lengths=(512, 1024))
        read: list[tuple[str, str, bool]] = []

        def read_one(run, lengths, *, split, yarn, **_):
            read.append((run.name, split, yarn))

        monkeypatch.setattr("seqpope.experiment.train", lambda *_, **__: None)
        monkeypatch.setattr("seqpope.evaluate.evaluate_lengths", read_one)
        for seed, name in enumerate(("512-1024-yarn", "512-1024", "512")):
            (tmp_path / f"rope/rope-seed{seed}").mkdir(parents=True)
            (tmp_path / f"rope/rope-seed{seed}/lengths-test-{name}.json").touch()
        running._train_arm(study, arm, tmp_path, {"seed": 0, "seeds": 3, "share": 1}, print, device="cpu")
        assert read == [("rope-seed1", "test", True), ("rope-seed2", "test", True)]
        read.clear()
        study = replace(study, lengths_split="validation")
        running._train_arm(study, arm, tmp_path, {"seed": 0, "seeds": 1, "share": 1}, print, device="cpu")
        assert read == [("rope-seed0", "validation", True)]

    def test_the_search_for_a_default_reads_no_test_split(self):
        assert {study.name for study in STUDIES.values() if study.candidates} == {"delta"}
        assert STUDIES["delta"].lengths_split == "validation"

    def test_other_precision_in_one_table(self, row):
        made = [row("PoPE", *map(result, POPE)), row("RoPE", *map(result, ROPE))]
        made[1]["length_targets"]["precision"] = "fp32"
        common = {"dataset": "jsb", "data": "x", "protocol": {"window": 8, "stride": 4}, "tokens_scored": 9}
        with pytest.raises(SeqpopeError, match="PoPE and RoPE cannot be compared: their precision at several"):
            check_alike([(each["label"], measured_on({**each, **common})) for each in made])
