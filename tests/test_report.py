"""Reports from synthetic results: numbers by hand, claims no larger than the evidence, refusals, curves."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seqpope.config import OptimizerConfig
from seqpope.errors import SeqpopeError
from seqpope.figures import draw_loss, read_curve
from seqpope.model.config import ModelConfig
from seqpope.report import compare, write_report
from seqpope.results import LATER, load_results, verdict
from seqpope.statistics import bootstrap_difference

TOKENS = np.array([40, 100, 60])  # of three pieces
CONFIG = {
    "domain": "music",
    "dataset": "tiny",
    "position": "pope",
    "baseline": "none",
    "seed": 0,
    "seeds": 1,
    "device": "auto",
    "precision": "auto",
    "out": "/somewhere/runs",
    "name": "x",
    "data_folder": "/somewhere/data",
    "model": {"width": 32, "layers": 1},
    "optimizer": {"steps": 40, "learning_rate": 0.001},
}


def make_result(position: str, seed: int, pieces: list[float], **changes: Any) -> dict[str, Any]:
    """A result whose three pieces have these nats/token. `model__width=64` changes a part of a part."""
    nats = TOKENS * np.array(pieces)
    mean = float(nats.sum() / TOKENS.sum())
    result: dict[str, Any] = {
        "run": f"{position}-seed{seed}",
        "position": position,
        "domain": "music",
        "dataset": "tiny",
        "split": "test",
        "nats_per_token": mean,
        "tokens_scored": 200,
        "units": {"time step": {"nats": mean * 4, "count": 50.0}},
        "strata": {
            "changed": {"tokens": 50, "nats_per_token": 2 * mean},
            "empty": {"tokens": 0, "nats_per_token": None},
        },
        "paper_protocol": {"tokens": 190, "nats_per_token": mean - 0.01, "definition": "first tokens not scored"},
        "by_position": [
            {"from": 0, "to": 4, "tokens": 12, "nats_per_token": mean + 0.5},
            {"from": 4, "to": 64, "tokens": 150, "nats_per_token": mean},
            {"from": 64, "to": 80, "tokens": 0, "nats_per_token": None},
            {"from": 80, "to": 100, "tokens": 38, "nats_per_token": mean - 0.1},
        ],
        "documents": [
            {"name": f"piece-{i}", "tokens": int(t), "nats": float(n)}
            for i, (t, n) in enumerate(zip(TOKENS, nats, strict=True))
        ],
        "baselines": {"unigram": 3.4, "bigram": 0.7, "another split's": None},
        "protocol": {
            "window": 64,
            "stride": 32,
            "first_token": "scored, predicted from padding at the input",
            "precision": "fp32",
            "selection": "best validation step",
        },
        "parameters": 12345,
        "trained": {
            "seed": seed,
            "precision": "32-true",
            "data": "c0ffee",
            "step": 30,
            "validation_nats_per_token": mean - 0.02,
            "seconds": 90.0,
        },
        "fingerprint": "f" * 64,
        "content": "c" * 64,
        "config": copy.deepcopy(CONFIG) | {"position": position, "seed": seed},
        "versions": {"seqpope": "0.1", "torch": "2.11"},
        "commit": "abc123",
        "device": "a GPU",
        "date": "2026-01-02T03:04:05+00:00",
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        part = result
        for key in path:
            part = part[key]
        part[last] = value
    return result


LOG = "learning_rate,step,train_nats_per_token,validation_nats_per_token\n"


def write_run(folder: Path, result: dict[str, Any] | None, reads: int = 1, logs: tuple[str, ...] = ()) -> Path:
    """A run's folder as training and evaluation leave it; without a result it is not finished."""
    folder.mkdir(parents=True)
    (folder / "versions.json").write_text("{}")
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
        read = json.dumps({"date": "2026", "commit": "abc123", "length": 64, "stride": 32}) + "\n"
        (folder / "test_reads.jsonl").write_text(read * reads)
    for version, rows in enumerate(logs):
        (folder / "logs" / f"version_{version}").mkdir(parents=True)
        (folder / "logs" / f"version_{version}" / "metrics.csv").write_text(LOG + rows)
    return folder


CURVE = "0.001,10,2.0,\n,10,,1.9\n0.001,20,1.0,\n,20,,0.9\n0.001,30,0.5,\n,30,,0.6\n0.001,40,0.4,\n,40,,0.7\n"

# Nats/token of three pieces for each seed: PoPE ahead by 0.03, 0.02, 0.04, 0.03 with some noise among pieces.
ROPE = [[0.60, 0.50, 0.40], [0.62, 0.51, 0.39], [0.61, 0.49, 0.42], [0.60, 0.52, 0.41]]
AHEAD = [[0.03, 0.03, 0.03], [0.02, 0.02, 0.02], [0.04, 0.04, 0.04], [0.03, 0.03, 0.03]]
POPE = (np.array(ROPE) - np.array(AHEAD)).tolist()


def write_experiment(folder: Path, seeds: int = 4, pope: list[list[float]] = POPE, **changes: Any) -> Path:
    """Twins of some seeds; the changes are to the PoPE runs."""
    for seed in range(seeds):
        write_run(folder / f"pope-seed{seed}", make_result("pope", seed, pope[seed], **changes), logs=(CURVE,))
        write_run(folder / f"rope-seed{seed}", make_result("rope", seed, ROPE[seed]), logs=(CURVE,))
    return folder


def plain(text: str) -> str:
    """Without Markdown's marks and line breaks."""
    return " ".join(text.replace("*", "").split())


def table(text: str, first: str) -> list[dict[str, str]]:
    """Rows of the Markdown table whose first column is headed so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\| {first} +\|", line))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


class TestNumbers:
    @pytest.fixture
    def report(self, tmp_path):
        return compare([write_experiment(tmp_path / "x")])

    def test_means(self, report):
        means = {
            p: [(np.array(n) * TOKENS).sum() / 200 for n in v] for p, v in {"pope": POPE, "rope": ROPE}.items()
        }
        rows = {row["encoding"]: row for row in table(report["markdown"], "encoding")}
        for position, values in means.items():
            found = report["encodings"][position]["nats_per_token"]
            assert found["mean"] == pytest.approx(np.mean(values))
            assert found["sd"] == pytest.approx(np.std(values, ddof=1))
            interval = stats.ttest_1samp(values, 0).confidence_interval()
            assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
            mean, sd = np.mean(values), np.std(values, ddof=1)
            assert rows[position] == {
                "encoding": position,
                "seeds": "4",
                "nats/token": f"{mean:.4f} ± {sd:.4f}",
                "nats/time step": f"{4 * mean:.3f} ± {4 * sd:.3f}",
                "changed": f"{2 * mean:.4f} ± {2 * sd:.4f}",
                "first window only": f"{mean - 0.01:.4f} ± {sd:.4f}",
            }

    @pytest.mark.parametrize(("window", "name"), [(2048, "paper's protocol"), (64, "first window only")])
    def test_the_paper_s_protocol_is_called_so_at_its_window_alone(self, tmp_path, window, name):
        write_run(tmp_path / "x", make_result("pope", 0, POPE[0], protocol__window=window), logs=(CURVE,))
        text = compare([tmp_path / "x"])["markdown"]
        assert name in table(text, "encoding")[0]

    def test_a_stratum_that_is_the_whole_split_is_left_out(self, tmp_path):
        empty = {"tokens": 0, "nats_per_token": None}
        whole = {"changed": {"tokens": 200, "nats_per_token": 0.5}, "empty": empty}
        text = compare([write_experiment(tmp_path / "x", strata=whole)])["markdown"]
        assert "changed" not in table(text, "encoding")[0]

    def test_baselines_stand_beside(self, report):
        rows = {row["encoding"]: row for row in table(report["markdown"], "encoding")}
        assert list(rows) == ["pope", "rope", "unigram", "bigram"]  # none that this split has no number of
        assert rows["bigram"]["nats/token"] == "0.7000"
        assert rows["bigram"]["nats/time step"] == "2.800"
        assert "pope beats: unigram; bigram." in report["markdown"]

    def test_paired_by_seed(self, report):
        (difference,) = report["differences"]
        assert (difference["a"], difference["b"], difference["seeds"]) == ("pope", "rope", [0, 1, 2, 3])
        assert difference["paired"] == pytest.approx([-0.03, -0.02, -0.04, -0.03])
        theirs = stats.ttest_rel([-0.03, -0.02, -0.04, -0.03], [0, 0, 0, 0]).confidence_interval()
        over = difference["over_seeds"]
        assert (over["low"], over["high"]) == pytest.approx((theirs.low, theirs.high))
        # The spread of the differences, not that of the encodings: here it is far smaller.
        assert over["sd"] == pytest.approx(np.std([3, 2, 4, 3], ddof=1) / 100)
        # Power of four pairs: the noncentral t at 0.05 finds 2.12795 standard deviations four times in five.
        assert difference["detectable"] == pytest.approx(2.12795 * over["sd"], rel=1e-5)

    def test_over_pieces_is_the_bootstrap_of_mean_nats(self, tmp_path):
        ahead = [[0.1, 0.0, 0.02], [0.08, 0.02, -0.02], [0.12, 0.01, 0.0], [0.1, 0.01, 0.0]]
        pope = (np.array(ROPE) - ahead).tolist()
        (difference,) = compare([write_experiment(tmp_path / "x", pope=pope)])["differences"]
        gaps = -np.mean(ahead, axis=0) * TOKENS
        mean, low, high = bootstrap_difference(gaps, np.zeros(3), TOKENS)
        assert difference["over_pieces"] == pytest.approx({"mean": mean, "low": low, "high": high, "pieces": 3})
        assert mean == pytest.approx(difference["over_seeds"]["mean"])
        assert mean == pytest.approx(-(0.1 * 40 + 0.01 * 100) / 200)

    def test_runs_table(self, report):
        rows = table(report["markdown"], "run")
        assert [row["run"] for row in rows] == [f"{p}-seed{s}" for p in ("pope", "rope") for s in range(4)]
        assert rows[4] == {
            "run": "rope-seed0",
            "encoding": "rope",
            "seed": "0",
            "parameters": "12,345",
            "best step": "30",
            "validation": "0.4700",
            "test": "0.4900",  # (40 * 0.6 + 100 * 0.5 + 60 * 0.4) / 200
            "reads of test": "1",
            "minutes to best": "1.5",
        }

    @settings(max_examples=12, deadline=None)
    @given(order=st.permutations(range(8)))
    def test_order_of_the_folders_changes_nothing(self, tmp_path_factory, order):
        folder = tmp_path_factory.getbasetemp() / "order"
        if not folder.exists():
            write_experiment(folder)
        runs = sorted(folder.iterdir())
        assert compare([runs[i] for i in order]) == compare([folder])

    def test_order_changes_no_file(self, tmp_path):
        a = write_experiment(tmp_path / "a", seeds=1)
        b = write_run(tmp_path / "b" / "alibi-seed0", make_result("alibi", 0, ROPE[0]), logs=(CURVE,))
        compare([a, b], tmp_path / "ab")
        compare([b, a], tmp_path / "ba")
        for name in ("report.md", "report.json", "loss.png", "position.png"):
            assert (tmp_path / "ab" / name).read_bytes() == (tmp_path / "ba" / name).read_bytes()

    def test_a_run_named_twice_counts_once(self, tmp_path, monkeypatch):
        folder = write_experiment(tmp_path / "x")
        monkeypatch.chdir(tmp_path)
        twice = compare([Path("x"), folder / "pope-seed0", folder / ".." / "x"])
        assert twice["differences"] == compare([folder])["differences"]


class TestProtocol:
    def test_everything_is_told(self, tmp_path):
        text = plain(compare([write_experiment(tmp_path / "x")])["markdown"])
        for told in (
            "test split",
            "200 tokens of 3 pieces",
            "windows of 64 with stride 32",
            "First token: scored, predicted from padding at the input",
            "Padding is never a target",
            "Scored in fp32, trained in 32-true",
            "Weights: best validation step",
            "reads of the test split: once a run",
            "Seeds 0, 1, 2, 3 of each encoding",
            "changed: the 50 tokens of that kind",
            "first tokens not scored, 190 tokens",
            "Data " + "c" * 12,
            "Commit: abc123",
            "Reads of test by commit: abc123 8",
            "Scored on: a GPU",
            "torch 2.11",
        ):
            assert told in text

    def test_no_folder_of_the_machine(self, tmp_path):
        folder = write_experiment(tmp_path / "x")
        compare([folder], tmp_path / "out")
        for file in ("report.md", "report.json"):
            text = (tmp_path / "out" / file).read_text()
            assert "/somewhere" not in text
            assert str(tmp_path) not in text

    def test_reads_are_counted_with_their_commits(self, tmp_path):
        run = write_run(tmp_path / "a", make_result("pope", 0, POPE[0]), reads=2)
        with open(run / "test_reads.jsonl", "a") as log:
            log.write('{"commit": "def456"}\n{"commit": null}\n{"comm')  # the last one by a power cut
        other = write_run(tmp_path / "b", make_result("rope", 0, ROPE[0]))
        text = plain(compare([run, other])["markdown"])
        assert "reads of the test split: 1 to 5 times a run" in text
        assert "Reads of test by commit: abc123 3; def456 1; unknown 2." in text
        assert [row["reads of test"] for row in table(compare([run])["markdown"], "run")] == ["5"]

    def test_reads_that_nobody_logged(self, tmp_path):
        run = write_run(tmp_path / "a", make_result("pope", 0, POPE[0]))
        (run / "test_reads.jsonl").unlink()
        text = plain(compare([run])["markdown"])
        assert "reads of the test split: not logged" in text
        assert "once a run" not in text

    def test_machines_and_versions_of_all_runs(self, tmp_path):
        write_run(tmp_path / "x" / "a", make_result("pope", 0, POPE[0]))
        changes = {"device": "cpu", "commit": None, "versions__torch": "2.13", "date": "2026-02-01T00:00:00+00:00"}
        write_run(tmp_path / "x" / "b", make_result("rope", 0, ROPE[0], **changes))
        text = plain(compare([tmp_path / "x"])["markdown"])
        assert "Scored on: a GPU; cpu." in text
        assert "Commit: abc123, unknown." in text
        assert "torch 2.11, 2.13" in text
        assert "Scored 2026-01-02T03:04:05+00:00 to 2026-02-01T00:00:00+00:00." in text

    @pytest.mark.parametrize(("window", "told"), [(2048, False), (64, True)])
    def test_published_figures_for_jsb_alone(self, tmp_path, window, told):
        changes = {"dataset": "jsb", "protocol__window": window}
        jsb = write_run(tmp_path / "jsb", make_result("pope", 0, POPE[0], **changes))
        text = plain(compare([jsb])["markdown"])
        assert "pope 0.4889, rope 0.5081" in text
        assert "arXiv 2509.10534" in text
        assert ("Its windows are 2048 tokens, these are 64" in text) is told
        other = write_run(tmp_path / "tiny", make_result("pope", 0, POPE[0]))
        assert "0.4889" not in compare([other])["markdown"]

    def test_a_lost_baseline_is_told_of_the_encoding_that_lost(self, tmp_path):
        write_run(tmp_path / "x" / "a", make_result("pope", 0, POPE[0]))
        write_run(tmp_path / "x" / "b", make_result("rope", 0, [0.9, 0.9, 0.9]))
        text = compare([tmp_path / "x"])["markdown"]
        assert "pope beats: unigram; bigram." in text
        assert "**rope does not beat: bigram.**" in text
        assert "rope beats: unigram." in text

    def test_a_recipe_is_what_its_domain_reads(self, tmp_path):
        older = {**CONFIG, "domain": "music", "data": {"length": 64, "transpose": [0, 0]}}
        newer = {**older, "data": {**older["data"], "reverse_complement": True, "soft_mask_weight": 1.0}}
        write_run(tmp_path / "x" / "a", make_result("pope", 0, POPE[0], config=older))
        write_run(tmp_path / "x" / "b", make_result("rope", 0, ROPE[0], config=newer))
        text = compare([tmp_path / "x"])["markdown"]
        assert "These recipes differ" not in text
        assert "reverse_complement" not in text
        for name in ("a", "b"):
            result = json.loads((tmp_path / "x" / name / "result.json").read_text())
            result["config"]["domain"] = "genome"
            (tmp_path / "x" / name / "result.json").write_text(json.dumps(result))
        text = compare([tmp_path / "x"])["markdown"]
        assert "data.reverse_complement: pope not set; rope True" in text
        assert "transpose" not in text

    def test_names_of_near_baselines_do_not_overlap(self, tmp_path, monkeypatch):
        from matplotlib.axes import Axes

        texts = []
        monkeypatch.setattr(Axes, "annotate", lambda self, text, *_, **__: texts.append(text))
        result = make_result("pope", 0, POPE[0], baselines={"x": 1.0, "y": 1.001, "z": 1.3})
        run = write_run(tmp_path / "a", result, logs=("0.1,1,1.4,\n0.1,2,0.7,\n",))
        assert draw_loss([{**result, "folder": str(run)}])
        assert texts == ["x; y", "z"]

    def test_recipe_is_yaml(self, tmp_path):
        text = compare([write_experiment(tmp_path / "x", seeds=1)])["markdown"]
        recipe = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
        assert recipe == {k: CONFIG[k] for k in ("domain", "dataset", "precision", "model", "optimizer")}

    def test_tables_are_aligned_and_names_cannot_break_them(self, tmp_path):
        result = make_result("a|b", 0, POPE[0], baselines={"x | y": 1.0})
        text = compare([write_run(tmp_path / "a", result)])["markdown"]
        assert [row["encoding"] for row in table(text, "encoding")] == ["a|b", "x | y"]
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(line) for line in block.splitlines()}) == 1


def difference(n: int, seeds: tuple[float, float], pieces: tuple[float, float]) -> dict[str, Any]:
    return {
        "a": "pope",
        "b": "rope",
        "seeds": list(range(n)),
        "over_seeds": {"mean": sum(seeds) / 2, "low": seeds[0], "high": seeds[1]},
        "over_pieces": {"mean": sum(pieces) / 2, "low": pieces[0], "high": pieces[1], "pieces": 7},
    }


class TestVerdict:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ((3, (-0.03, -0.01), (-0.03, -0.01)), "pope is better than rope by 0.0200"),
            ((3, (0.01, 0.03), (0.01, 0.03)), "rope is better than pope by 0.0200"),
            ((3, (-0.03, 0.01), (-0.03, -0.01)), "cannot tell pope and rope apart"),
            ((9, (0.0, 0.03), (0.01, 0.02)), "cannot tell pope and rope apart"),
            ((3, (-0.03, -0.01), (-0.03, 0.001)), "no claim for other pieces"),
            ((2, (-0.03, -0.01), (-0.03, -0.01)), "2 seeds: no claim"),
            ((1, (-0.03, -0.01), (-0.03, -0.01)), "1 seed: no claim"),
            ((0, (-0.03, -0.01), (-0.03, -0.01)), "no seed in common"),
        ],
    )
    def test_sentence(self, given, said):
        assert said in verdict(difference(*given))

    @given(st.integers(0, 9), st.tuples(*[st.floats(-1, 1)] * 4), st.booleans())
    def test_a_winner_needs_seeds_pieces_and_one_recipe(self, n, ends, recipes):
        seeds, pieces = sorted(ends[:2]), sorted(ends[2:])
        text = verdict(difference(n, tuple(seeds), tuple(pieces)), ["model.width"] if recipes else [])
        certain = n >= 3 and not recipes and not seeds[0] <= 0 <= seeds[1] and not pieces[0] <= 0 <= pieces[1]
        assert ("better than" in text and "no claim" not in text) == certain

    def test_clear_difference_of_twins(self, tmp_path):
        text = compare([write_experiment(tmp_path / "x")])["markdown"]
        assert "pope is better than rope by 0.0300 nats/token; the intervals over seeds and over pieces" in text

    def test_difference_inside_the_noise(self, tmp_path):
        noisy = (np.array(ROPE) - np.array([[0.03], [-0.02], [0.01], [0.0]])).tolist()
        text = compare([write_experiment(tmp_path / "x", pope=noisy)])["markdown"]
        assert "these 4 seeds cannot tell pope and rope apart" in text
        assert "better than" not in text

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_few_seeds(self, tmp_path, seeds):
        report = compare([write_experiment(tmp_path / "x", seeds=seeds)])
        (difference,) = report["differences"]
        assert f"{seeds} seed{'s' if seeds > 1 else ''}: no claim" in report["markdown"]
        assert ("no interval over seeds" in report["markdown"]) == (seeds == 1)
        assert ("nothing is known of the spread" in report["markdown"]) == (seeds == 1)
        assert ("t interval" in report["markdown"]) == (seeds == 2)
        assert (difference["over_seeds"]["low"] is None) == (seeds == 1)
        if seeds == 1:
            assert "±" not in report["markdown"]

    def test_only_seeds_with_a_twin_are_paired(self, tmp_path):
        folder = write_experiment(tmp_path / "x")
        shutil.rmtree(folder / "rope-seed1")
        report = compare([folder])
        (difference,) = report["differences"]
        assert difference["paired"] == pytest.approx([-0.03, -0.04, -0.03])
        assert report["encodings"]["pope"]["seeds"] == [0, 1, 2, 3]
        text = plain(report["markdown"])
        assert "Not in it, having no twin: seed 1." in text
        assert "Seeds: pope 0, 1, 2, 3; rope 0, 2, 3." in text

    def test_no_seed_in_common(self, tmp_path):
        write_run(tmp_path / "x" / "a", make_result("pope", 0, POPE[0]))
        write_run(tmp_path / "x" / "b", make_result("rope", 1, ROPE[1]))
        report = compare([tmp_path / "x"], tmp_path / "out")
        assert "no paired difference" in report["markdown"]
        assert "over_seeds" not in report["differences"][0]

    def test_three_encodings_of_any_name(self, tmp_path):
        folder = write_experiment(tmp_path / "x", seeds=3)
        for seed in range(3):
            write_run(folder / f"n-{seed}", make_result("no position", seed, ROPE[seed]), logs=(CURVE,))
        report = compare([folder], tmp_path / "out")
        pairs = [(d["a"], d["b"]) for d in report["differences"]]
        assert pairs == [("no position", "pope"), ("no position", "rope"), ("pope", "rope")]
        assert "not corrected for 3 comparisons" in report["markdown"]
        assert report["differences"][0]["over_seeds"]["mean"] == pytest.approx(0.03)
        assert report["differences"][1]["over_seeds"]["mean"] == 0

    def test_one_encoding(self, tmp_path):
        run = write_run(tmp_path / "a", make_result("pope", 5, POPE[0]), logs=(CURVE,))
        report = compare([run], tmp_path / "out")
        assert report["differences"] == []
        assert "One encoding alone" in report["markdown"]
        assert "Seed 5." in report["markdown"]


class TestRecipes:
    def test_twins_differ_in_nothing(self, tmp_path):
        compare([write_experiment(tmp_path / "x")], tmp_path / "out")
        assert json.loads((tmp_path / "out" / "report.json").read_text())["recipes_differ_in"] == {}

    def test_difference_is_prominent_and_forbids_a_claim(self, tmp_path):
        changes = {
            "config__model__width": 64,
            "config__optimizer__weight_decay": 0.1,
            "trained__precision": "bf16",
        }
        report = compare([write_experiment(tmp_path / "x", **changes)], tmp_path / "out")
        head = report["markdown"].split("| encoding")[0]
        assert "**These recipes differ: this is no comparison of twins**" in head
        assert "- model.width: pope 64; rope 32" in head
        assert "- optimizer.weight_decay: pope 0.1; rope not set" in head
        assert "- training precision: pope bf16; rope 32-true" in head
        assert "better than" not in report["markdown"]
        assert "the recipes differ in model.width, optimizer.weight_decay, training precision: no claim" in plain(
            report["markdown"]
        )
        differing = json.loads((tmp_path / "out" / "report.json").read_text())["recipes_differ_in"]
        assert differing["model.width"] == {"pope": [64], "rope": [32]}

    def test_settings_that_came_later_have_their_defaults_in_older_runs(self, tmp_path):
        defaults = {"model": ModelConfig(), "optimizer": OptimizerConfig()}
        told = {name: getattr(defaults[name.split(".")[0]], name.split(".")[1]) for name in LATER}
        assert told == LATER
        for position, values, magnitude in (("pope", POPE, "relu"), ("rope", ROPE, "softplus")):
            for seed, older in enumerate((True, False)):
                changes = {} if older else {"config__model__magnitude": magnitude}
                write_run(
                    tmp_path / "x" / f"{position}{seed}", make_result(position, seed, values[seed], **changes)
                )
        compare([tmp_path / "x"], tmp_path / "out")
        differing = json.loads((tmp_path / "out" / "report.json").read_text())["recipes_differ_in"]
        assert differing == {"model.magnitude": {"pope": ["softplus", "relu"], "rope": ["softplus"]}}

    def test_seeds_of_one_encoding_by_two_recipes(self, tmp_path):
        for seed in range(3):
            rate = 0.01 if seed == 1 else 0.001
            for position, values in (("pope", POPE), ("rope", ROPE)):
                result = make_result(position, seed, values[seed], config__optimizer__learning_rate=rate)
                write_run(tmp_path / "x" / f"{position}{seed}", result)
        text = compare([tmp_path / "x"])["markdown"]
        assert "- optimizer.learning_rate: pope 0.001 and 0.01; rope 0.001 and 0.01" in text
        assert "**Runs of pope and of rope differ among themselves**" in text
        assert "better than" not in text

    def test_a_third_encodings_recipe_does_not_spoil_the_twins(self, tmp_path):
        folder = write_experiment(tmp_path / "x", seeds=3)
        for seed in range(3):
            result = make_result("alibi", seed, [0.9, 0.9, 0.9 - 0.01 * seed], config__model__width=16)
            write_run(folder / f"alibi-{seed}", result)
        verdicts = {(d["a"], d["b"]): d["verdict"] for d in compare([folder])["differences"]}
        assert "pope is better than rope" in verdicts["pope", "rope"]
        assert "no claim" in verdicts["alibi", "pope"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"content": "d" * 64}, "content hash"),
            ({"fingerprint": "e" * 64}, "fingerprint"),
            ({"split": "validation"}, "split"),
            ({"dataset": "jsb"}, "data set"),
            ({"protocol__window": 128}, "window"),
            ({"protocol__stride": 16}, "stride"),
            ({"protocol__precision": "bf16"}, "precision"),
            ({"protocol__first_token": "not scored"}, "first token"),
            ({"protocol__constrained": True}, "constrained"),
        ],
    )
    @pytest.mark.parametrize("swap", [False, True])
    def test_other_data_or_protocol(self, tmp_path, change, named, swap):
        results = [make_result("pope", 0, POPE[0], **change), make_result("rope", 0, ROPE[0])]
        if swap:
            results = [make_result("pope", 0, POPE[0]), make_result("rope", 0, ROPE[0], **change)]
        for name, result in zip("ab", results, strict=True):
            write_run(tmp_path / name, result)
        with pytest.raises(SeqpopeError, match=named) as error:
            compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
        assert repr(next(iter(change.values()))) in str(error.value)
        assert not (tmp_path / "out").exists()

    def test_strata_of_another_version(self, tmp_path):
        write_run(tmp_path / "a", make_result("pope", 0, POPE[0]))
        write_run(tmp_path / "b", make_result("rope", 0, ROPE[0], strata={"not changed": {"tokens": 0}}))
        with pytest.raises(SeqpopeError, match=r"set of strata differs, .* and \['not changed'\]; compare"):
            compare([tmp_path / "a", tmp_path / "b"])

    def test_a_seed_twice(self, tmp_path):
        for name in "ab":
            write_run(tmp_path / name, make_result("pope", 0, POPE[0]))
        with pytest.raises(SeqpopeError, match=r"a and .*b are both pope with seed 0"):
            compare([tmp_path / "a", tmp_path / "b"])

    def test_no_folder(self, tmp_path):
        with pytest.raises(SeqpopeError, match="no folder"):
            load_results([tmp_path / "nowhere"])

    def test_nothing_in_it(self, tmp_path):
        with pytest.raises(SeqpopeError, match=r"expected result.json"):
            load_results([tmp_path])

    def test_run_that_is_not_finished(self, tmp_path):
        write_run(tmp_path / "x" / "pope-seed0", None)
        with pytest.raises(SeqpopeError, match=f"not finished.*--resume {re.escape(str(tmp_path / 'x'))}`"):
            load_results([tmp_path / "x" / "pope-seed0"])

    def test_experiment_that_is_not_finished(self, tmp_path):
        folder = write_experiment(tmp_path / "x", seeds=1)
        write_run(folder / "pope-seed1", None)
        with pytest.raises(SeqpopeError, match="not finished: pope-seed1"):
            load_results([folder])
        assert len(load_results([folder / "pope-seed0", folder / "rope-seed0"])) == 2

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            ("", "Expecting value"),
            ('{"position": "pope"', "Expecting"),
            ("[1, 2]", "not a result"),
            ("null", "not a result"),
            (b"\xff\xfe", "decode"),
            (json.dumps({k: v for k, v in make_result("p", 0, POPE[0]).items() if k != "strata"}), "strata"),
            (json.dumps(make_result("p", 0, POPE[0], trained=[])), "trained"),
            (json.dumps(make_result("p", 0, POPE[0], protocol={"stride": 1})), "window"),
            (json.dumps(make_result("p", 0, POPE[0], nats_per_token=float("nan"))), "nan"),
        ],
    )
    def test_damaged_result(self, tmp_path, content, named):
        run = write_run(tmp_path / "a", {})
        (run / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(SeqpopeError, match=named) as error:
            load_results([run])
        assert "result.json" in str(error.value)
        assert "seqpope evaluate" in str(error.value)


class TestCurves:
    def test_one_start(self, tmp_path):
        curve = read_curve(write_run(tmp_path / "a", None, logs=(CURVE,)))
        assert curve["train_nats_per_token"] == [(10, 2.0), (20, 1.0), (30, 0.5), (40, 0.4)]
        assert curve["validation_nats_per_token"] == [(10, 1.9), (20, 0.9), (30, 0.6), (40, 0.7)]

    def test_resumed_start_replaces_what_came_after_its_first_step(self, tmp_path):
        first = "0.001,10,2.0,\n,10,,1.9\n0.001,20,1.0,\n,20,,0.9\n0.001,25,0.8,\n0.001,30,0.7,\n"
        # Resumed from the state at 20: 25 is logged no more, 30 comes out otherwise.
        second = "0.001,22,0.95,\n0.001,30,0.5,\n,30,,0.6\n"
        curve = read_curve(write_run(tmp_path / "a", None, logs=(first, second)))
        assert curve["train_nats_per_token"] == [(10, 2.0), (20, 1.0), (22, 0.95), (30, 0.5)]
        assert curve["validation_nats_per_token"] == [(10, 1.9), (20, 0.9), (30, 0.6)]

    def test_versions_in_order_of_number(self, tmp_path):
        rows = [f"0.001,{10 * (i + 1)},{i}.0,\n0.001,999,{i}.5,\n" for i in range(11)]
        curve = read_curve(write_run(tmp_path / "a", None, logs=tuple(rows)))
        assert curve["train_nats_per_token"][-1] == (999, 10.5)  # version_10 comes after version_9
        assert len(curve["train_nats_per_token"]) == 12

    def test_start_that_logged_nothing_and_broken_last_line(self, tmp_path):
        run = write_run(tmp_path / "a", None, logs=(CURVE, "", "0.001,50,0.3,\n0.001,60,0.2e"))
        curve = read_curve(run)
        assert curve["train_nats_per_token"][-2:] == [(40, 0.4), (50, 0.3)]
        (run / "logs" / "version_2" / "metrics.csv").write_bytes(b"")
        assert read_curve(run)["train_nats_per_token"][-1] == (40, 0.4)

    def test_a_start_stopped_before_its_first_validation(self, tmp_path):
        run = write_run(tmp_path / "a", None)
        (run / "logs" / "version_0").mkdir(parents=True)
        head = "learning_rate,step,train_nats_per_token\n"
        (run / "logs" / "version_0" / "metrics.csv").write_text(head + "0.1,10,3.0\n")
        nothing = {"validation_nats_per_token": [], "validation_accuracy": []}
        assert read_curve(run) == {"train_nats_per_token": [(10, 3.0)], **nothing}

    def test_no_logs_no_picture(self, tmp_path):
        folder = tmp_path / "x"
        run = write_run(folder / "a", make_result("pope", 0, POPE[0]))
        assert draw_loss(load_results([run])) is None
        (folder / "loss.png").write_bytes(b"of an earlier report")
        write_report([run], folder)
        assert sorted(p.name for p in folder.iterdir()) == ["a", "position.png", "report.json", "report.md"]

    def test_twins_of_unequal_logs(self, tmp_path):
        a = write_run(tmp_path / "a", make_result("pope", 0, POPE[0]), logs=(CURVE,))
        b = write_run(tmp_path / "b", make_result("pope", 1, POPE[1]), logs=("0.001,10,2.0,\n",))
        c = write_run(tmp_path / "c", make_result("rope", 0, ROPE[0]))
        picture = draw_loss(load_results([a, b, c]))
        assert picture is not None
        assert picture.startswith(b"\x89PNG")


class TestFiles:
    @pytest.mark.usefixtures("unrendered")
    def test_report_is_what_compare_found(self, tmp_path):
        folder = write_experiment(tmp_path / "x")
        write_report(sorted(folder.iterdir()), folder)
        found = compare([folder])
        assert (folder / "report.md").read_text() == found.pop("markdown")
        written = json.loads((folder / "report.json").read_text())
        assert {k: v for k, v in written.items() if k in found} == found
        assert [r["nats_per_token"] for r in written["results"]] == [
            r["nats_per_token"] for r in load_results([folder])
        ]

    def test_pictures_are_not_blank(self, tmp_path):
        from matplotlib import colors, image

        from seqpope.figures import COLOURS

        folder = write_experiment(tmp_path / "x")
        compare([folder], tmp_path / "out")
        for name in ("loss.png", "position.png"):
            pixels = image.imread(tmp_path / "out" / name)[..., :3].reshape(-1, 3)
            for colour in (COLOURS["pope"], COLOURS["rope"]):
                near = np.abs(pixels - np.array(colors.to_rgb(colour))).max(1) < 0.02
                assert near.sum() > 100, (name, colour)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        ([-0.3, -0.3, -0.3], "- pope beats deep, the best of them on all tokens: -0.216 bits/base"),
        ([0.3, 0.3, 0.3], "- **pope does not beat deep, the best of them on all tokens: +0.216 bits/base"),
        (
            [-0.5, 0.25, 0.0],
            "- **pope cannot be told apart from deep, the best of them on all tokens: +0.018 bits",
        ),
    ],
)
def test_measured_baselines_are_told_by_stratum_in_bits_with_a_verdict(tmp_path, ahead, said):
    """Twice as many bases as tokens; the deep table is the better one in all, the plain one where late."""
    deep = np.array([1.0, 1.2, 0.8])
    late = np.array([10, 0, 20])

    def measured(nats, where_late):
        total = nats * TOKENS
        return {
            "tokens": 200,
            "nats_per_token": float(total.sum() / 200),
            "documents": total.tolist(),
            "strata": {
                "late": {"tokens": 30, "nats_per_token": where_late, "documents": (where_late * late).tolist()},
                "empty": {"tokens": 0, "nats_per_token": None, "documents": [0.0, 0.0, 0.0]},
            },
        }

    pieces = deep + np.array(ahead)
    result = make_result("pope", 0, pieces.tolist())
    result |= {
        "units": {"base": {"nats": result["nats_per_token"] / 2, "count": 400.0}},
        "strata": {
            "late": {"tokens": 30, "nats_per_token": 0.5},
            "empty": {"tokens": 0, "nats_per_token": None},
        },
        "references": {
            "text": ["Measured thus."],
            "tokens": {"late": late.tolist(), "empty": [0, 0, 0]},
            "nats": {"late": (0.5 * late).tolist(), "empty": [0.0, 0.0, 0.0]},
            "baselines": {"plain": measured(deep + 1, 0.25), "deep": measured(deep, 2.0)},
        },
    }
    write_run(tmp_path / "x" / "pope-seed0", result)
    text = compare([tmp_path / "x"])["markdown"]
    assert said in text
    assert "Measured thus." in text
    rows = {row["stratum"]: row for row in table(text, "stratum")}
    assert list(rows) == ["all", "late"]
    bits = result["nats_per_token"] / 2 / np.log(2)
    assert (rows["all"]["tokens"], rows["all"]["bases"], rows["all"]["pope"]) == ("200", "400", f"{bits:.3f}")
    assert rows["late"]["pope - best"] == "+0.180 (+0.180 to +0.180)"  # from the plain table, better there
    assert (rows["late"]["bases"], rows["late"]["plain"], rows["late"]["deep"]) == ("60", "0.180", "1.443")
    assert table(text, "encoding")[0]["bits/base"] == f"{bits:.3f}"
