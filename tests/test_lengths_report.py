"""Reports of runs read in several lengths, from planted NLLs: numbers by hand, labels, refusals, the figure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stores import make_split
from test_report import make_result, write_run

from seqpope.errors import SeqpopeError
from seqpope.evaluate import plan_lengths, summarize_lengths
from seqpope.figures import draw_extrapolation, in_words
from seqpope.report import compare, compare_lengths
from seqpope.results import LENGTHS, analyse_lengths, group_by_label, load_lengths

SPLIT = make_split([70, 64, 20], unscored=0)
PLANS = plan_lengths(SPLIT, {16: 16, 64: 64})


def make_lengths(position, seed, slope=0.0, **changes):
    """Trained at 16: 2 + seed nats at first, `slope` more at each place beyond; with YaRN a tenth of that."""
    planted = {position: slope} | ({f"{position}+yarn": slope / 10} if position == "rope" else {})
    nats = {
        name: [np.where(p.place < 0, np.nan, 2 + seed + each * np.maximum(0, p.place - 15)) for p in PLANS]
        for name, each in planted.items()
    }
    result = make_result(position, seed, [1, 1, 1]) | summarize_lengths(SPLIT, PLANS, nats)
    result["protocol"] = {"lengths": [16, 64], "strides": [16, 64], "precision": "fp32"}
    result["trained_length"] = 16
    for name, value in changes.items():
        *path, last = name.split("__")
        part = result
        for key in path:
            part = part[key]
        part[last] = value
    return result


def write_lengths(run, result, name=LENGTHS):
    run.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(json.dumps(result))
    return run


@pytest.fixture
def experiment(tmp_path):
    for seed in (0, 1):
        write_lengths(tmp_path / "x" / f"pope-seed{seed}", make_lengths("pope", seed))
        write_lengths(tmp_path / "x" / f"rope-seed{seed}", make_lengths("rope", seed, 0.1))
    return tmp_path / "x"


def table_rows(text, head):
    """Cells of the table below a heading, by (encoding, part)."""
    lines = text.split(f"## {head}")[1].split("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {(row[0], row[2]): row[3:] for row in rows[2:]}


class TestNumbers:
    def test_means_and_spread(self, experiment):
        """Places 16..63 cost 0.1, 0.2, ... 4.8 more: 1.8375 over the window, 3.25 over its second half."""
        text = compare_lengths([experiment])["markdown"]
        rows = table_rows(text, "Each length's own targets")
        assert rows["PoPE", "whole window"] == ["2.500 ± 0.707", "2.500 ± 0.707"]
        assert rows["RoPE", "whole window"] == ["2.500 ± 0.707", "4.338 ± 0.707"]
        assert rows["RoPE", "second half"] == ["2.500 ± 0.707", "5.750 ± 0.707"]
        assert rows["RoPE with YaRN", "second half"] == ["2.500 ± 0.707", "2.825 ± 0.707"]
        assert rows["tokens scored", "whole window"] == ["144", "128"]  # 4 + 4 + 1 windows of 16, 2 of 64
        rows = table_rows(text, "The same targets at every length")
        assert rows["tokens scored", "whole window"] == ["128", "128"]
        assert rows["tokens scored", "second half"] == ["32", "32"]
        # Places 40..47 and 56..63 of the long window, in the second halves of 16 too: 2.85 and 4.45 more.
        assert rows["RoPE", "second half"] == ["2.500 ± 0.707", "6.150 ± 0.707"]

    def test_differences_are_paired_by_seed(self, experiment, tmp_path):
        """Of seeds that both have; offsets of a seed, one nat apart here, fall out of them."""
        write_lengths(tmp_path / "z", make_lengths("pope", 7))
        wild = make_lengths("rope", 2, 0.3)
        write_lengths(experiment / "rope-seed2", wild)
        write_lengths(experiment / "pope-seed2", make_lengths("pope", 2))
        got = compare_lengths([experiment, tmp_path / "z"])
        pairs = {(d["a"], d["b"]): d for d in got["differences"]}
        assert list(pairs) == [("pope", "rope"), ("pope", "rope+yarn"), ("rope", "rope+yarn")]
        difference = pairs["pope", "rope"]
        assert difference["seeds"] == [0, 1, 2]
        each = np.array([-1.8375, -1.8375, -3 * 1.8375])
        whole = difference["lengths"][1]["whole"]
        assert whole["mean"] == pytest.approx(each.mean())
        half = 4.302653 * each.std(ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom at 97.5%
        assert (whole["low"], whole["high"]) == pytest.approx((each.mean() - half, each.mean() + half))
        rows = table_rows(got["markdown"].replace("Differences on these", "## D"), "D")
        assert rows["PoPE - RoPE", "whole window"] == [
            "+0.000 (+0.000 to +0.000)",
            f"{each.mean():+.3f} ({each.mean() - half:+.3f} to {each.mean() + half:+.3f})",
        ]
        alone = compare_lengths([experiment / "pope-seed0", experiment / "rope-seed1"])
        assert alone["differences"][0]["lengths"][0] == {"whole": None, "second_half": None}
        assert "| PoPE - RoPE           | 0     | whole window | none" in alone["markdown"]

    def test_the_protocol_is_told(self, experiment):
        text = compare_lengths([experiment])["markdown"]
        assert "test split" in text
        assert "Trained on windows of 16 tokens, read in windows of 16, 64 side by side" in text
        assert "Scored in fp32" in text
        assert "The 128 tokens of 2 pieces that whole windows of 64 score" in text
        for run in experiment.iterdir():
            result = json.loads((run / LENGTHS).read_text())
            result["protocol"]["strides"] = [8, 32]
            write_lengths(run, result)
        assert "with strides of 8, 32" in compare_lengths([experiment])["markdown"]

    def test_analysis_is_plain(self, experiment):
        analysis = analyse_lengths(load_lengths([experiment]))
        assert json.loads(json.dumps(analysis)) == analysis
        assert analysis["encodings"]["pope"]["seeds"] == [0, 1]
        assert list(analysis["encodings"]) == ["pope", "rope", "rope+yarn"]

    def test_recipes_of_one_encoding_are_told_apart(self, experiment, tmp_path):
        """Only by what both know: a setting that came to the program in between is no difference of recipe."""
        other = make_lengths("pope", 0, config__model={"width": 32, "layers": 1, "delta_init": "uniform"})
        write_lengths(tmp_path / "y", other)
        with pytest.raises(SeqpopeError, match="are both pope with seed 0"):
            load_lengths([experiment, tmp_path / "y"])
        for seed in (0, 1):
            model = {"width": 32, "layers": 1, "delta_init": "zero"}
            write_lengths(experiment / f"pope-seed{seed}", make_lengths("pope", seed, config__model=model))
        groups = group_by_label(load_lengths([experiment, tmp_path / "y"]))
        assert {label: len(runs) for label, runs in groups.items()} == {
            "pope, delta_init uniform": 1,
            "pope, delta_init zero": 2,
            "rope": 2,
            "rope+yarn": 2,
        }
        assert in_words("pope, delta_init zero") == "PoPE, delta init zero"
        assert in_words("xpos") == "xpos"


class TestFiles:
    def test_written_together(self, experiment, tmp_path):
        out = tmp_path / "out"
        got = compare_lengths([experiment], out)
        assert sorted(path.name for path in out.iterdir()) == ["lengths.json", "lengths.md", "lengths.png"]
        assert (out / "lengths.md").read_text() == got.pop("markdown")
        assert json.loads((out / "lengths.json").read_text()) == got
        assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")

    def test_compare_adds_them_where_all_runs_have_them_and_removes_those_of_other_runs(self, tmp_path):
        runs, out = [], tmp_path / "out"
        for position in ("pope", "rope"):
            run = write_run(tmp_path / "x" / position, make_result(position, 0, [1.0, 1.2, 1.4]))
            runs.append(write_lengths(run, make_lengths(position, 0)))
        compare(runs, out)
        assert len(list(out.glob("lengths.*"))) == 3
        (runs[0] / LENGTHS).unlink()
        compare(runs, out)
        assert (out / "report.md").exists()
        assert list(out.glob("lengths.*")) == []

    def test_other_files_by_name(self, experiment, tmp_path):
        run = write_lengths(tmp_path / "y", make_lengths("pope", 5), "lengths-test-share0.5.json")
        analysis = compare_lengths([run], name="lengths-test-share0.5.json")
        assert analysis["encodings"]["pope"]["seeds"] == [5]

    def test_the_figure_shows_what_it_is_given(self, experiment, monkeypatch):
        """A line of each encoding's mean, one of each seed, and where training ended."""
        drawn = []
        monkeypatch.setattr("seqpope.figures._png", lambda figure: drawn.append(figure) or b"")
        draw_extrapolation(load_lengths([experiment]))
        [axes] = drawn[0].axes
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == [
            "PoPE (mean of 2 seeds)",
            "RoPE (mean of 2 seeds)",
            "RoPE with YaRN (mean of 2 seeds)",
        ]
        assert len({line.get_color() for line in lines.values()}) == 3
        assert len(axes.lines) == 3 * 3 + 1
        x, y = lines["RoPE (mean of 2 seeds)"].get_data()
        assert 16 <= x[0] < 20
        assert 54 < x[-1] < 64
        assert y[-1] == pytest.approx(2.5 + 0.1 * (np.arange(54, 64) - 15).mean())  # the last bin, 54..63
        assert [line.get_xdata()[0] for line in axes.lines].count(16) == 1
        assert axes.get_ylim()[1] > y.max() + 0.5


class TestRefused:
    def test_no_file(self, tmp_path):
        (tmp_path / "run").mkdir()
        with pytest.raises(SeqpopeError, match=r"holds no lengths-test.json: make it with `seqpope evaluate"):
            load_lengths([tmp_path / "run"])

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"content": "d" * 64}, "content hash"),
            ({"split": "validation"}, "split"),
            ({"trained_length": 32}, "training length"),
            ({"protocol__lengths": [16, 32]}, "protocol's lengths"),
            ({"protocol__strides": [8, 32]}, "protocol's strides"),
            ({"protocol__precision": "bf16"}, "protocol's precision"),
        ],
        ids=str,
    )
    def test_what_cannot_be_compared(self, tmp_path, changes, field):
        one = write_lengths(tmp_path / "a", make_lengths("pope", 0))
        other = write_lengths(tmp_path / "b", make_lengths("rope", 0, **changes))
        with pytest.raises(SeqpopeError, match=f"cannot be compared: their .*{field}"):
            load_lengths([one, other])

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"position": "pope"}'])
    def test_what_is_no_result(self, tmp_path, content):
        (tmp_path / LENGTHS).write_text(content)
        with pytest.raises(SeqpopeError, match="is not what `seqpope evaluate --lengths` writes"):
            load_lengths([tmp_path])
