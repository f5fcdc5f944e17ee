"""Reports of runs read in several lengths, from planted NLLs: numbers by hand, labels, refusals, the figure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stores import make_split
from test_report import make_result, write_run

from seqpope.errors import SeqpopeError
from seqpope.evaluate import lengths_file, plan_lengths, summarize_lengths
from seqpope.figures import draw_extrapolation, in_words
from seqpope.report import compare, compare_lengths
from seqpope.results import analyse_lengths, find_lengths, group_by_label, load_lengths

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


NAME = lengths_file("test", [16, 64])


def write_lengths(run, result, name=NAME):
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
            result = json.loads((run / NAME).read_text())
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
        write_lengths(tmp_path / "z", make_lengths("rope", 0, config__model={"longest_wavelength": 64.0}))
        told = {f", longest_wavelength {longest}" for longest in (0.0, 64.0)}  # those without it had 0
        assert set(group_by_label(load_lengths([experiment, tmp_path / "z"]))) == {
            "pope", *(encoding + one for encoding in ("rope", "rope+yarn") for one in told)
        }  # fmt: skip
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
        (runs[0] / NAME).unlink()
        compare(runs, out)
        assert (out / "report.md").exists()
        assert list(out.glob("lengths.*")) == []

    def test_compare_does_not_choose_among_several(self, tmp_path):
        run = write_run(tmp_path / "x" / "pope", make_result("pope", 0, [1.0, 1.2, 1.4]))
        write_lengths(run, make_lengths("pope", 0))
        compare([run], tmp_path / "out")
        write_lengths(run, make_lengths("pope", 0), "lengths-test-8.json")
        compare([run], tmp_path / "out")
        assert list((tmp_path / "out").glob("lengths.*")) == []

    def test_other_files_by_name(self, experiment, tmp_path):
        run = write_lengths(tmp_path / "y", make_lengths("pope", 5), "lengths-test-16-64-share0.5.json")
        analysis = compare_lengths([run], name="lengths-test-16-64-share0.5.json")
        assert analysis["encodings"]["pope"]["seeds"] == [5]

    @pytest.mark.parametrize(
        ("name", "chosen"),
        [
            ("lengths-test", ["a-16-64", "b-16-64-yarn"]),  # all that both have
            ("lengths", ["a-16-64", "b-16-64-yarn"]),
            ("lengths-test-16-64", ["a-16-64", "b-16-64-yarn"]),
            ("lengths-test-16-64.json", ["a-16-64", "b-16-64-yarn"]),
            ("lengths-test-16-64-yarn", ["a-16-64", "b-16-64-yarn"]),  # PoPE has no YaRN
            ("lengths-test-16", ["a-16-64", "b-16-64-yarn"]),
            ("lengths-test-8", ["b-8"]),  # the whole name of one is not the beginning of another
            ("lengths-test-8-32", ["b-8-32"]),
        ],
    )
    def test_a_beginning_will_do(self, tmp_path, name, chosen):
        for run, parts in (("a", ["16-64", "16-64-bf16"]), ("b", ["16-64", "16-64-yarn", "8", "8-32"])):
            for part in parts:
                write_lengths(tmp_path / run, make_lengths("pope", 0), f"lengths-test-{part}.json")
        found = [
            f"{file.parent.name}-{file.stem.removeprefix('lengths-test-')}"
            for file in find_lengths([tmp_path], name)
        ]
        assert found == chosen

    def test_a_figure_of_nothing(self, experiment):
        """Where only the last token of a document is a target no whole window may hold one."""
        results = load_lengths([experiment])
        for result in results:
            for records in result["scores"].values():
                for each in records[-1]["by_position"]:
                    each |= {"tokens": 0, "nats_per_token": None}
        assert draw_extrapolation(results)[:4] == b"\x89PNG"

    def test_the_figure_shows_what_it_is_given(self, experiment, monkeypatch):
        """A line of each encoding's mean, one of each seed, and where training ended."""
        drawn = []
        monkeypatch.setattr("seqpope.figures.as_png", lambda figure: drawn.append(figure) or b"")
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
        message = r"holds no lengths-test.json and no lengths-test-\*.json: make it with `seqpope evaluate"
        with pytest.raises(SeqpopeError, match=message):
            load_lengths([tmp_path / "run"])

    def test_another_name_than_those_there_are(self, tmp_path):
        for name in ("lengths-test-8.json", "lengths-train-16-yarn.json"):
            write_lengths(tmp_path / "x" / "run", make_lengths("rope", 0), name)
        message = (
            "holds no lengths-test-4.json and .*, but lengths-test-8, lengths-train-16: name one of these, or"
        )
        for path in (tmp_path / "x", tmp_path / "x" / "run"):
            with pytest.raises(SeqpopeError, match=message):
                load_lengths([path], "lengths-test-4")

    def test_a_beginning_of_several(self, tmp_path):
        for name in ("lengths-test-8.json", "lengths-test-8-16-bf16.json"):
            write_lengths(tmp_path / "run", make_lengths("rope", 0), name)
        message = "lengths-test is the beginning of lengths-test-8 and lengths-test-8-16-bf16: name one of them"
        with pytest.raises(SeqpopeError, match=message):
            load_lengths([tmp_path / "run"])

    def test_runs_that_were_read_in_other_lengths(self, tmp_path):
        for run, name in (("a", "lengths-test-8.json"), ("b", "lengths-test-16.json")):
            write_lengths(tmp_path / run, make_lengths("rope", 0), name)
        with pytest.raises(SeqpopeError, match="no one of lengths-test-16, lengths-test-8 is in all of them"):
            load_lengths([tmp_path])

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
        (tmp_path / NAME).write_text(content)
        with pytest.raises(SeqpopeError, match="is not what `seqpope evaluate --lengths` writes"):
            load_lengths([tmp_path])
