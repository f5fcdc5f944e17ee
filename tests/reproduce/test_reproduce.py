"""Studies: trained as asked, resumed, summed up, and written as tables that claim no more than the runs allow."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from tiny_study import ARMS, STUDY, TINY, run

from data_prep.indexing import prepare
from seqpope import cli
from seqpope.config import TrainConfig
from seqpope.errors import SeqpopeError
from seqpope.files import held
from seqpope.presets import presets
from seqpope.reproduce import budget
from seqpope.reproduce.figures import draw_study
from seqpope.reproduce.rows import SOLVED_NATS, row_of
from seqpope.reproduce.studies import (
    STUDIES,
    Arm,
    arm_config,
    check_share,
    find_studies,
    least_share,
    meant,
    shortened,
    slug,
)
from seqpope.reproduce.summary import _difference, markdown, summarise, write_results, write_study
from seqpope.signals import Interrupted

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The study run once, models inspected too: its document, and where it lies."""
    out = tmp_path_factory.mktemp("whole")
    return run(data, out, study=replace(STUDY, inspect=True))[0], out


class TestShipped:
    @pytest.mark.parametrize("name", STUDIES)
    def test_arms_can_be_run_and_are_told_apart(self, name):
        (study,) = find_studies(name)
        labels = [arm.label for arm in study.arms]
        assert len(set(map(slug, labels))) == len(labels)
        assert {label for pair in study.pairs for label in pair} <= set(labels)
        for arm in study.arms:
            assert arm.preset in presets()
            config = arm_config(arm, seeds=2, side_by_side=study.side_by_side)
            assert (config.position, config.baseline, config.seeds) == (arm.position, "none", 2)

    @pytest.mark.parametrize("name", [name for name in STUDIES if name != "delta"])  # whose pairs differ in more
    def test_pairs_differ_in_the_encoding_alone(self, name):
        (study,) = find_studies(name)
        arms = {arm.label: arm for arm in study.arms}
        for first, second in study.pairs:
            a, b = (arm_config(arms[label]).as_dict() for label in (first, second))
            for config in (a, b):
                config.pop("position")
                for field in (
                    "delta_init",
                    "delta_window",
                    "delta_bound",
                    "delta_learned",
                    "magnitude",
                ):  # PoPE's own
                    config["model"].pop(field)
            assert a == b

    def test_an_unknown_one_is_named(self):
        with pytest.raises(SeqpopeError, match="unknown study 'x': expected one of indirect-indexing, jsb"):
            find_studies("x")
        assert [study.name for study in find_studies("extrapolation")] == [
            "extrapolation-piano", "extrapolation-jsb", "extrapolation-genome"
        ]  # fmt: skip


class TestShortened:
    def test_keeps_the_number_of_validations_and_ends_on_one(self):
        config = TrainConfig(eval_every=100)
        config.optimizer = replace(config.optimizer, steps=3000, warmup_steps=300)
        for share in (1.0, 0.31, 0.0149, 0.01):
            short = shortened(config, share)
            assert short.optimizer.steps % short.eval_every == 0
            assert short.optimizer.warmup_steps < short.optimizer.steps
            assert short.optimizer.steps == pytest.approx(3000 * share, abs=30)
        whole = replace(config, eval_every=700)  # which does not divide them
        assert shortened(whole, 1.0) == whole
        assert shortened(config, 0.5).optimizer.warmup_steps == 150
        # Too little for a step a validation, or for one beside the warm-up: `check_share` refuses to train it.
        assert shortened(config, 1e-6).optimizer.steps == 30
        assert shortened(replace(config, eval_every=5000), 1e-6).optimizer.steps == 2

    def test_the_least(self, monkeypatch):
        config = TrainConfig(eval_every=100)
        config.optimizer = replace(config.optimizer, steps=3000)
        assert least_share(config) == 30 / 3000
        assert least_share(replace(config, eval_every=5000)) == 2 / 3000
        config.optimizer = replace(config.optimizer, steps=1, warmup_steps=0)
        assert least_share(config) == 1.0
        often = Arm("RoPE, often", "rope", "indexing-paper", {**TINY, "eval_every": 1})
        check_share(STUDY, ARMS, 1 / 3)
        check_share(STUDY, (), 1e-9)
        told = "tiny: a share of 0.5 is too small, RoPE, often has more .* give at least 1$"
        with pytest.raises(SeqpopeError, match=told):
            check_share(STUDY, (ARMS[0], often), 0.5)


class TestRun:
    def test_from_nothing_to_a_table(self, whole):
        document, tmp_path = whole
        assert [row["label"] for row in document["rows"]] == ["PoPE, tiny", "RoPE, tiny"]
        for row in document["rows"]:
            assert row["seeds"] == [0, 1]
            assert row["steps"] == [6]
            assert all(0 <= value <= 100 for value in row["values"])
            assert [[step for step, _ in curve] for curve in row["curves"]] == [[3, 6], [3, 6]]
            assert row["solved"] == 0
            assert row["differs_from_preset"] == {}
        (difference,) = document["differences"]
        a, b = (row["values"] for row in document["rows"])
        assert difference["paired"] == pytest.approx([x - y for x, y in zip(a, b, strict=True)])
        folder = tmp_path / "tiny"
        assert json.loads((folder / "tiny.json").read_text()) == json.loads(json.dumps(document))
        assert (folder / "tiny.png").read_bytes()[:4] == b"\x89PNG"
        text = (folder / "tiny.md").read_text()
        assert "| PoPE, tiny | 2 |" in text
        assert "| 94.82 | 6 |" in text
        assert "0 of 2 (0% to 84%)" in text
        assert "Solved by 0 of 2 and 0 of 2 seeds (Fisher's exact test: p = 1)." in text
        assert "A note." in text
        assert "of seeds trained side by side each has its share" in text
        assert str(tmp_path) not in text + json.dumps(document)

    def test_frequencies_are_shown(self, whole):
        document, tmp_path = whole
        assert set(document["frequencies"]) == {"pope", "rope"}
        for group in document["frequencies"].values():
            assert group["trained_length"] == 51
            assert [0 < share < 1 for share in group["beyond"]["product"]] == [True, True]
        assert (tmp_path / "tiny" / "inspect" / "magnitudes.png").is_file()
        text = (tmp_path / "tiny" / "tiny.md").read_text()
        assert "| pope | 51 |" in text
        assert "by wavelength in tokens" in text
        before = json.loads(json.dumps(document))  # of a version that had no bands
        for group in before["frequencies"].values():
            del group["bands"]
        assert "| pope | 51 |" in markdown(before)
        assert "by wavelength in tokens" not in markdown(before)

    def test_again_trains_nothing(self, data, whole, monkeypatch):
        first, tmp_path = whole
        first = {name: value for name, value in first.items() if name != "frequencies"}
        monkeypatch.setattr("seqpope.stack.train_stack", lambda *_: pytest.fail("trained again"))
        again, said = run(data, tmp_path)
        assert again == first
        assert any("finished before, kept" in line for line in said)

    def test_begun_otherwise_is_refused(self, data, tmp_path):
        run(data, tmp_path, only=["PoPE"])
        with pytest.raises(SeqpopeError, match=r"was begun with arms \['PoPE, tiny'\]"):
            run(data, tmp_path)
        with pytest.raises(SeqpopeError, match="was begun with seeds 2, 3 is asked for"):
            run(data, tmp_path, only=["PoPE"], seeds=3)

    @pytest.mark.parametrize(
        "wrong",
        [
            "spread: 1\n",
            "spread: 'no'\n",
            "",
            "spread: false\nshare: '1'\n",
            "spread: false\nshare: true\n",
            "[" * 3000,
        ],
    )
    def test_a_plan_that_is_none(self, data, tmp_path, monkeypatch, wrong):
        monkeypatch.setattr("seqpope.experiment.train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(data, tmp_path)
        plan = tmp_path / "tiny" / "plan.yaml"
        text = plan.read_text()
        assert "spread: false\n" in text
        plan.write_text(text.replace("spread: false\n", wrong))
        with pytest.raises(SeqpopeError, match=r"is no plan of a study .*give another --out"):
            run(data, tmp_path)

    def test_data_that_is_made_in_a_way_of_its_own(self, tmp_path):
        study = replace(STUDY, prepare="seqpope prepare x --split mine")
        place = re.escape(f" --data-folder '{tmp_path / 'no thing'}'`")
        told = f"run `seqpope prepare x --split mine{place} first, .* or `seqpope prepare indexing{place}$"
        with pytest.raises(SeqpopeError, match=told):
            run(tmp_path / "no thing", tmp_path / "out", study)
        assert not (tmp_path / "out").exists()

    def test_a_share_of_fewer_steps_than_validations(self, data, tmp_path):
        with pytest.raises(
            SeqpopeError, match=r"a share of 0\.2 is too small, PoPE, tiny has .* give at least 0\.333334"
        ):
            run(data, tmp_path, share=0.2)
        assert not (tmp_path / "tiny").exists()
        assert run(data, tmp_path, share=0.333334, seeds=1)[0]["rows"][0]["steps"] == [2]

    def test_finished_runs_are_taken(self, data, tmp_path, whole):
        from seqpope.report import compare

        document, place = whole[0], whole[1] / "tiny"
        runs = {arm.label: [place / slug(arm.label) / f"{arm.position}-seed{n}" for n in (0, 1)] for arm in ARMS}
        taken, _ = run(data, tmp_path / "b", taken=runs)
        assert taken["rows"] == document["rows"]
        compare([run for each in runs.values() for run in each], tmp_path / "report")
        reports = {arm.label: [tmp_path / "report" / "report.json"] for arm in ARMS}
        told, _ = run(data, tmp_path / "c", taken=reports)
        assert [row["values"] for row in told["rows"]] == [row["values"] for row in document["rows"]]
        with pytest.raises(SeqpopeError, match="RoPE, tiny: expected runs of rope, some are of pope"):
            run(data, tmp_path / "d", taken={arm.label: runs[ARMS[0].label] for arm in ARMS})
        with pytest.raises(SeqpopeError, match="has no arm 'x'"):
            run(data, tmp_path / "d", taken={"x": []})
        (tmp_path / "no.json").write_text("[]")
        with pytest.raises(SeqpopeError, match=r"no\.json is no report\.json"):
            run(data, tmp_path / "d", taken={ARMS[0].label: [tmp_path / "no.json"]}, only=["RoPE"])

    def test_nothing_is_written_of_what_cannot_be_drawn(self, tmp_path, whole):
        with pytest.raises(TypeError):
            write_study({**whole[0], "rows": [{**whole[0]["rows"][0], "curves": [None]}]}, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_written_where_one_of_three_cannot_be(self, tmp_path, whole):
        (tmp_path / "tiny.png").mkdir()
        with pytest.raises(IsADirectoryError):
            write_study(whole[0], tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.png"]

    def test_seeds_and_shares_spread_over_machines(self, data, tmp_path):
        """A seed each, by half of the steps; put together they are the study's runs at that share."""
        for seed in (0, 1):
            run(data, tmp_path / str(seed), seed=seed, seeds=1, share=0.5)
        taken = {arm.label: [tmp_path / str(seed) / "tiny" / slug(arm.label) for seed in (0, 1)] for arm in ARMS}
        document, _ = run(data, tmp_path / "both", taken=taken, only=[], share=0.5)
        assert [(row["seeds"], row["steps"], row["differs_from_preset"]) for row in document["rows"]] == [
            ([0, 1], [2], {})
        ] * 2
        assert "**50% of the recipes' steps**. Published" in markdown(document)
        undivided, _ = run(data, tmp_path / "undivided", share=0.5)
        for one, other in zip(undivided["rows"], document["rows"], strict=True):
            assert one["validation"] == pytest.approx(other["validation"], rel=1e-4)
        # At another share they are told to be something else.
        document, _ = run(data, tmp_path / "whole", taken=taken, only=[])
        assert document["rows"][0]["differs_from_preset"]["optimizer.steps"] == [6, 2]
        with pytest.raises(SeqpopeError, match="was begun with seed 0, 1 is asked for"):
            run(data, tmp_path / "0", seed=1, seeds=1, share=0.5)
        with pytest.raises(SeqpopeError, match=r"was begun with share 0\.5, 1\.0 is asked for"):
            run(data, tmp_path / "0", seeds=1)
        for wrong in ({"share": 0.0}, {"share": 1.5}, {"share": 0.5, "budget": 1.0}):
            with pytest.raises(SeqpopeError, match="share must be above 0 and at most 1, without a budget"):
                run(data, tmp_path / "c", **wrong)
        for seed in (-1, 2**32):
            with pytest.raises(SeqpopeError, match="every seed from 0 to 2"):
                run(data, tmp_path / "c", seed=seed)
        assert not (tmp_path / "c").exists()

    def test_an_experiment_is_taken_for_the_runs_of_the_arm(self, data, tmp_path, whole):
        document, place = whole[0], whole[1] / "tiny"
        twins = tmp_path / "twins"
        for arm in ARMS:
            for run_folder in (place / slug(arm.label)).glob(f"{arm.position}-seed*"):
                shutil.copytree(run_folder, twins / run_folder.name)
        taken, _ = run(data, tmp_path / "a", taken={arm.label: [twins] for arm in ARMS}, budget=1.0)
        assert taken["rows"] == document["rows"]

    def test_runs_that_are_no_seeds_of_one_recipe(self, data, tmp_path, whole):
        """A seed twice, other recipes and other data are refused before anything is trained."""
        arm, place = ARMS[0], whole[1] / "tiny" / slug(ARMS[0].label)
        runs = [place / "pope-seed0", place / "pope-seed1"]
        again = shutil.copytree(runs[0], tmp_path / "again")
        with pytest.raises(SeqpopeError, match="PoPE, tiny: seed 0 comes twice: take each seed once"):
            run(data, tmp_path / "a", taken={arm.label: [*runs, again]})
        result = json.loads((runs[1] / "result.json").read_text())

        def other(name, **changes):
            folder = shutil.copytree(runs[1], tmp_path / name)
            (folder / "result.json").write_text(json.dumps({**result, **changes}))
            return folder

        config = {**result["config"], "optimizer": {**result["config"]["optimizer"], "weight_decay": 0.5}}
        with pytest.raises(SeqpopeError, match=r"seeds 0 and 1 differ in optimizer\.weight_decay, 0\.01 and 0\.5"):
            run(data, tmp_path / "a", taken={arm.label: [runs[0], other("decay", config=config)]})
        with pytest.raises(SeqpopeError, match=r"differ in data \(content hash\), .* 'elsewhere'"):
            run(data, tmp_path / "a", taken={arm.label: [runs[0], other("data", content="elsewhere")]})
        strange = other("strange", content="elsewhere")
        with pytest.raises(SeqpopeError, match=r"PoPE, tiny and RoPE, tiny cannot be compared: their data"):
            run(data, tmp_path / "a", taken={arm.label: [strange]})
        without = other("without", accuracy=None)
        with pytest.raises(SeqpopeError, match=r"tell no accuracy.*score the runs again"):
            run(data, tmp_path / "a", taken={arm.label: [without]})
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"nats_per_token": float("nan")}, "nats_per_token is nan"),
            ({"trained": None}, "trained: of another kind"),
            ({"position": ...}, "'position' is missing"),
            ({"config": {}}, "'optimizer' is missing"),
        ],
    )
    def test_damaged_reports(self, whole, tmp_path, changes, told):
        result = json.loads((whole[1] / "tiny" / slug(ARMS[0].label) / "pope-seed0" / "result.json").read_text())
        result = {name: value for name, value in {**result, **changes}.items() if value is not ...}
        (tmp_path / "report.json").write_text(json.dumps({"results": [result]}))
        with pytest.raises(SeqpopeError, match=f"is no report.json of `seqpope compare` .*{told}"):
            row_of(STUDY, ARMS[0], [tmp_path / "report.json"])

    def test_where_runs_are_read_reports_are_not_enough(self, tmp_path):
        (tmp_path / "report.json").write_text("{}")
        for study, arm in (
            (replace(STUDY, inspect=True), ARMS[0]),
            (STUDY, replace(ARMS[0], lengths=(102,))),
        ):
            with pytest.raises(SeqpopeError, match=r"tiny reads the runs themselves.*give their folders"):
                row_of(study, arm, [tmp_path / "report.json"])

    def test_what_was_run_otherwise_is_told(self, data, tmp_path):
        run(data, tmp_path / "a", only=["RoPE"])
        runs = [tmp_path / "a" / "tiny" / slug(ARMS[1].label) / "rope-seed0"]
        other = replace(
            STUDY, arms=(replace(ARMS[1], settings={**TINY, "optimizer.weight_decay": 0.5}),), pairs=()
        )
        document, _ = run(data, tmp_path / "b", study=other, taken={ARMS[1].label: runs})
        assert document["rows"][0]["differs_from_preset"] == {"optimizer.weight_decay": [0.5, 0.01]}
        assert "was run with optimizer.weight_decay 0.01 (expected 0.5)" in markdown(document)
        assert "was run with optimizer.weight_decay" in markdown({**document, "share": 0.5})
        # What the encoding does not read makes no other run.
        arm = replace(ARMS[1], settings={**TINY, "model.delta_init": "zero", "model.magnitude": "relu"})
        assert row_of(STUDY, arm, runs)["differs_from_preset"] == {}
        # How often it was validated decides which weights are tested; how it was read is the protocol's.
        arm = replace(ARMS[1], settings={**TINY, "eval_every": 2, "eval_stride": 25})
        assert row_of(STUDY, arm, runs)["differs_from_preset"] == {"eval_every": [2, 3]}

    @pytest.mark.parametrize("text", ["", "[1]", "share: 0.5", "share: .nan", "a: b: c"])
    def test_a_damaged_plan(self, data, tmp_path, text):
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "plan.yaml").write_text(text)
        with pytest.raises(SeqpopeError, match=r"plan\.yaml is no plan of a study .*another --out"):
            run(data, tmp_path)

    def test_other_data_is_something_else(self, data, tmp_path, monkeypatch):
        monkeypatch.setattr("seqpope.experiment.train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(data, tmp_path)
        prepare(
            tmp_path / "data" / "indexing",
            counts={"train": 61, "validation": 9, "test": 8},
            progress=lambda _: None,
        )
        with pytest.raises(SeqpopeError, match=r"was begun with data \{'indexing': "):
            run(tmp_path / "data", tmp_path)

    def test_places_that_cannot_be_written_or_are_in_use(self, data, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SeqpopeError, match=r"file.tiny cannot be written .*choose another --out"):
            run(data, tmp_path / "file")
        with pytest.raises(SeqpopeError, match=r"run `seqpope prepare indexing --data-folder .*` first"):
            run(tmp_path / "nothing", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        pytest.importorskip("fcntl")
        (tmp_path / "used" / "tiny").mkdir(parents=True)
        refused = pytest.raises(SeqpopeError, match=r"another process is at work in .*give another --out")
        with held(tmp_path / "used" / "tiny", ""), refused:
            run(data, tmp_path / "used")

    def test_stopped_it_says_how_to_go_on(self, data, tmp_path, monkeypatch):
        """The study's command, not one for the arm or for a folder that is gone."""

        def stopped(*_, **__):
            raise Interrupted("stopped at step 4; go on with `seqpope train --resume elsewhere`")

        monkeypatch.setattr("seqpope.experiment.train_runs", stopped)
        with pytest.raises(Interrupted) as told:
            run(data, tmp_path)
        assert str(told.value) == "PoPE, tiny: stopped at step 4; the same command goes on"
        with pytest.raises(Interrupted) as told:
            run(data, tmp_path / "timed", budget=1.0)
        assert str(told.value) == "stopped while steps were timed; the same command goes on"
        # A power cut between a folder and its first file: what is there does not stop the same command.
        (tmp_path / "cut" / "tiny" / slug(ARMS[0].label)).mkdir(parents=True)
        (tmp_path / "cut" / "tiny" / slug(ARMS[0].label) / ".config.yaml.x").touch()
        with pytest.raises(Interrupted):
            run(data, tmp_path / "cut")

    @pytest.mark.parametrize("wrong", [{"seeds": 0}, *({"budget": each} for each in (0.0, math.nan, math.inf))])
    def test_impossible_numbers(self, data, tmp_path, wrong):
        name, value = next(iter(wrong.items()))
        with pytest.raises(SeqpopeError, match=rf"^{name} must be .*, it is {value}$"):
            run(data, tmp_path, **wrong)
        with pytest.raises(SeqpopeError, match="has no arm 'x'"):
            run(data, tmp_path, only=["x"])


class TestCommand:
    """`seqpope reproduce tiny ...`."""

    @pytest.fixture
    def reproduce(self, monkeypatch, tmp_path, data, capsys):
        monkeypatch.setitem(STUDIES, "tiny", STUDY)
        monkeypatch.setattr(cli, "prepare", lambda *_, **__: pytest.fail("data was prepared"))

        def called(*words, status=0, out="out", data=data):
            where = ["--out", str(tmp_path / out), "--data-folder", str(data), "--device", "cpu"]
            assert cli.main(["reproduce", "tiny", *map(str, words), *where]) == status
            told = capsys.readouterr()
            if status:
                assert not (tmp_path / out).exists()
                return told.err
            return json.loads((tmp_path / out / "tiny" / "tiny.json").read_text())

        return called

    def test_of_several_studies_none_is_begun_by_a_share_too_small_for_one(
        self, monkeypatch, data, tmp_path, capsys
    ):
        often = tuple(replace(arm, settings={**TINY, "eval_every": 1}) for arm in ARMS)
        for study in (replace(STUDY, name="tiny-a"), replace(STUDY, name="tiny-b", arms=often)):
            monkeypatch.setitem(STUDIES, study.name, study)
        where = ["--out", str(tmp_path / "out"), "--data-folder", str(data), "--device", "cpu"]
        assert cli.main(["reproduce", "tiny", "--share", "0.5", *where]) == 1
        assert "tiny-b: a share of 0.5 is too small" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(budget, "measure_cost", lambda *_: budget.Cost(1.5, 29.0))
        assert cli.main(["reproduce", "tiny", "--budget", "1", *where]) == 1
        assert "between about 2.4 and 2.9 (all steps) for all 2 studies" in capsys.readouterr().err

    def test_documents_alone(self, reproduce, whole, tmp_path):
        file = whole[1] / "tiny" / "tiny.json"
        assert reproduce("--take", file, "--arms", "none")["rows"] == whole[0]["rows"]
        # Without --arms nothing is left to train either; no data is asked for.
        assert reproduce("--take", file, out="b", data=tmp_path / "nowhere")["rows"] == whole[0]["rows"]
        odd = shutil.copy(file, tmp_path / "a=b.json")
        assert reproduce("--take", odd, out="c")["rows"] == whole[0]["rows"]

    def test_what_is_named_takes_the_place_of_what_documents_have(self, reproduce, whole):
        file, label = whole[1] / "tiny" / "tiny.json", ARMS[1].label
        runs = whole[1] / "tiny" / slug(label)
        first = reproduce("--take", file, "--take", f"{label}={runs}/rope-seed1", "--arms", "none")
        assert [row["seeds"] for row in first["rows"]] == [[0, 1], [1]]
        added = reproduce(
            "--take", file, "--take", f"{label}={runs}/rope-seed1,{file}", "--arms", "none", out="both"
        )
        assert [row["seeds"] for row in added["rows"]] == [[0, 1], [0, 1]]
        again = reproduce("--take", file, "--arms", "RoPE", "--seed", 7, "--seeds", 1, out="again")
        assert [row["seeds"] for row in again["rows"]] == [[0, 1], [7]]

    def test_documents_with_other_seeds_of_the_same_arms_are_put_together(self, reproduce, whole, tmp_path):
        both, parts = whole[1] / "tiny" / "tiny.json", []
        for seed in (0, 1):
            parts += ["--take", str(tmp_path / f"{seed}.json")]
            taken = [f"{arm.label}={whole[1]}/tiny/{slug(arm.label)}/{arm.position}-seed{seed}" for arm in ARMS]
            words = [word for each in taken for word in ("--take", each)]
            Path(parts[-1]).write_text(json.dumps(reproduce(*words, "--arms", "none", out=f"part{seed}")))
        assert reproduce(*parts, "--arms", "none")["rows"] == json.loads(both.read_text())["rows"]

    def test_an_arm_whose_label_begins_another(self, reproduce, whole, monkeypatch):
        """What is called just so is meant alone; the other stays taken."""
        longer = (replace(ARMS[0], label="PoPE, tiny, again"),)
        monkeypatch.setitem(STUDIES, "tiny", replace(STUDY, arms=(*ARMS, *longer)))
        file = whole[1] / "tiny" / "tiny.json"
        both = json.loads(file.read_text())
        both["rows"] += [{**both["rows"][0], "label": longer[0].label}]
        file = whole[1] / "both.json"
        file.write_text(json.dumps(both))
        document = reproduce("--take", file, "--arms", "PoPE, tiny", "--seed", 7, "--seeds", 1)
        assert [row["seeds"] for row in document["rows"]] == [[7], [0, 1], [0, 1]]

    def test_what_trains_nothing_leaves_no_plan(self, reproduce, whole, tmp_path):
        reproduce("--take", whole[1] / "tiny" / "tiny.json", "--arms", "none")
        assert not (tmp_path / "out" / "tiny" / "plan.yaml").exists()

    def test_seed_and_share(self, reproduce):
        document = reproduce("--arms", "RoPE", "--seed", 5, "--seeds", 1, "--share", 0.5)
        assert [(row["seeds"], row["steps"]) for row in document["rows"]] == [([5], [2])]

    def test_refused(self, reproduce, whole, tmp_path):
        file = whole[1] / "tiny" / "tiny.json"
        second = json.loads(file.read_text())
        second["rows"][0]["values"] = [1.0, 2.0]
        (tmp_path / "second.json").write_text(json.dumps(second))
        (tmp_path / "empty.json").write_text('{"study": "tiny", "rows": []}')
        assert "PoPE, tiny: seed 0 comes twice, by other runs, in" in reproduce(
            "--take", file, "--take", tmp_path / "second.json", status=1
        )
        assert "of tiny has no rows; tiny trains none of it" in reproduce(
            "--take", tmp_path / "empty.json", status=1
        )
        assert "--arms '' names none" in reproduce("--arms", "", status=1)
        assert "nothing to train and nothing is taken" in reproduce("--arms", "none", status=1)
        for words in ("=x", "PoPE, tiny=", "PoPE, tiny=,", "x"):
            assert f"--take {words!r}: expected STUDY.json, or LABEL=FOLDER" in reproduce(
                "--take", words, status=1
            )
        nowhere = tmp_path / "nowhere"
        assert "every seed from 0" in reproduce("--seed", -1, status=1, data=nowhere)
        assert "share must be above 0" in reproduce("--share", 7, status=1, data=nowhere)


class TestClaims:
    def document(self, differences):
        row = {
            "label": "a", "encoding": "pope", "published": None, "seeds": [0, 1, 2], "values": [1.0, 1.1, 1.2],
            "steps": [10], "minutes": [None, None, 2.0], "best_step": [5, 6, 7], "tokens_scored": 9,
            "protocol": {"window": 8, "stride": 4}, "baselines": {"unigram": 2.0, "none": None},
            "differs_from_preset": {}, "device": ["x"], "precision": ["fp32"], "commits": ["c"],
        }  # fmt: skip
        return {
            "study": "s", "title": "T", "question": "Q?", "measure": "nats_per_token", "published": "",
            "notes": [], "share": 1.0, "rows": [row], "differences": differences,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("n", "low", "high", "said"),
        [
            (3, -0.3, 0.1, "cannot tell them apart"),
            (2, -0.3, -0.1, "too few for a claim"),
            (3, -0.3, -0.1, None),
            (1, None, None, "nothing follows"),
        ],
    )
    def test_no_winner_inside_the_noise(self, n, low, high, said):
        difference = {"a": "a", "b": "b", "n": n, "mean": -0.2, "low": low, "high": high, "detectable": 0.05}
        text = markdown(self.document([difference]))
        line = next(line for line in text.splitlines() if line.startswith("a minus b: -0.2000"))
        for words in ("cannot tell them apart", "too few for a claim", "nothing follows"):
            assert (words in line) is (words == said)
        assert "| a | 3 | 1.1000 ± 0.1000 |  | 10 | 2.0 | 5, 6, 7 |" in text
        assert "unigram 2.0000" in text
        assert "none" not in text

    def test_differences_of_what_differs(self, whole):
        """Seeds that only one arm has, none in common, no spread, other recipes."""
        a, b = whole[0]["rows"]
        found = _difference({**a, "seeds": [1, 2], "values": [50.0, 70.0]}, {**b, "values": [5.0, 10.0]}, set())
        assert (found["seeds"], found["paired"], found["n"], found["low"]) == ([1], [40.0], 1, None)
        apart = _difference({**a, "seeds": [7, 8]}, b, set())
        assert (apart["n"], apart["mean"]) == (0, None)
        same = _difference({**a, "values": [3.0, 3.0]}, {**b, "values": [1.0, 1.0]}, set())
        recipe = {**b["recipe"], "optimizer": {**b["recipe"]["optimizer"], "steps": 7}}
        recipe["model"] = {**recipe["model"], "delta_init": "zero"}  # RoPE has none
        other = _difference(a, {**b, "recipe": recipe}, set())
        assert other["unlike"] == ["optimizer.steps"]
        assert _difference(a, {**b, "recipe": recipe}, {"optimizer.steps"})["unlike"] == []
        text = markdown({**whole[0], "differences": [apart, same, other]})
        assert "no seed in common, so no difference is told." in text
        assert "+2.0 points in each of 2 pairs: no spread to judge it by." in text
        assert "**These runs differ also in optimizer.steps**" in text

    def test_of_accuracies_the_least_and_the_most_are_told(self, whole):
        text = markdown({**whole[0], "rows": [{**whole[0]["rows"][0], "values": [50.0, 70.0]}]})
        assert "| 60.0 ± 14.1 (50.0 to 70.0) |" in text
        assert "mean ± standard deviation (least to most) over seeds." in text
        row = {**whole[0]["rows"][0], "seeds": [0], "values": [50.0], "minutes": [1.0], "solved_at": [None]}
        assert "| 50.0 |" in markdown({**whole[0], "rows": [row]})

    def test_several_intervals_are_not_each_a_finding(self):
        difference = {"a": "a", "b": "b", "n": 3, "mean": -0.2, "low": -0.3, "high": -0.1, "detectable": 0.05}
        assert "3 intervals, each of its own: where nothing differs, one in 20" in markdown(
            self.document([{**difference, "mean": mean} for mean in (-0.2, -0.21, -0.22)])
        )
        assert "one in 20" not in markdown(self.document([difference] * 2))

    def test_solving_is_told_by_what_validation_proves(self, data, whole, tmp_path):
        """Two letters left at even odds cost 0.69 nats and are half right: that is not solved."""
        run_folder = shutil.copytree(
            whole[1] / "tiny" / slug(ARMS[0].label) / "pope-seed0", tmp_path / "pope-seed0"
        )
        (log,) = (run_folder / "logs").glob("version_*/metrics.csv")
        head = "step,train_nats_per_token,validation_nats_per_token\n"
        log.write_text(head + f"1,,nan\n2,,0.70\n3,,{SOLVED_NATS + 0.001}\n4,,{SOLVED_NATS - 0.001}\n5,,0.9\n")
        document = summarise(STUDY, {ARMS[0].label: [run_folder]}, {"share": 1.0})
        (row,) = document["rows"]
        assert row["solved_at"] == [4]
        assert row["curves"][0][0] == [1, None]
        # An accuracy tells more; of half it is not yet solved.
        log.write_text(head.replace("\n", ",validation_accuracy\n") + "1,,2.0,0.5\n2,,1.0,0.501\n3,,0.1,0.9\n")
        assert row_of(STUDY, ARMS[0], [run_folder])["solved_at"] == [2]
        # Logs of an older version, gone on with: the first that is solved, by whatever tells.
        log.write_text(head + "1,,0.2\n")
        newer = log.parent.parent / "version_1" / "metrics.csv"
        newer.parent.mkdir()
        newer.write_text(head.replace("\n", ",validation_accuracy\n") + "2,,2.0,0.7\n")
        assert row_of(STUDY, ARMS[0], [run_folder])["solved_at"] == [1]
        shutil.rmtree(newer.parent)
        # What was never seen solved while training is so when tested, at the latest.
        log.write_text(head + "1,,1.0\n2,,0.9\n")
        result = json.loads((run_folder / "result.json").read_text())
        for accuracy, at in ((0.5, None), (0.51, result["trained"]["step"])):
            (run_folder / "result.json").write_text(json.dumps({**result, "accuracy": accuracy}))
            assert row_of(STUDY, ARMS[0], [run_folder])["solved_at"] == [at]
        json.dumps(document, allow_nan=False)
        draw_study(document)

    def test_results_of_all_studies(self, tmp_path):
        for name in ("b", "maestro", "jsb"):
            (tmp_path / f"{name}.json").write_text(json.dumps({**self.document([]), "study": name, "title": name}))
        write_results(tmp_path, tmp_path / "sub.md")
        text = (tmp_path / "sub.md").read_text()
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## jsb", "## maestro", "## b", "## Not run"
        ]  # fmt: skip
        assert "![jsb](./jsb.png)" in text
        assert "- Human genome: `seqpope reproduce genome`." in text
        assert "- MAESTRO" not in text
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(SeqpopeError, match=r"x\.json is no document of a study"):
            write_results(tmp_path, tmp_path / "sub.md")
        (tmp_path / "x.json").write_text('{"study": 3, "rows": []}')
        with pytest.raises(SeqpopeError, match=r"x\.json is no document of a study .*study is 3.*: take it away"):
            write_results(tmp_path, tmp_path / "sub.md")
        (tmp_path / "x.json").write_text((tmp_path / "jsb.json").read_text())
        with pytest.raises(SeqpopeError, match=r"jsb\.json and .*x\.json are both of jsb: put them together"):
            write_results(tmp_path, tmp_path / "sub.md")
        beyond = {"trained_length": 8, "beyond": {name: [] for name in ("query", "key", "product")}, "bands": []}
        frequencies = {**self.document([]), "study": "x", "frequencies": {"pope": beyond}}
        (tmp_path / "x.json").write_text(json.dumps(frequencies))
        with pytest.raises(SeqpopeError, match=r"the document of x in .* is not whole .ZeroDivisionError"):
            write_results(tmp_path, tmp_path / "sub.md")
        (tmp_path / "x.json").write_text('{"study": "x", "rows": []}')
        with pytest.raises(SeqpopeError, match=r"the document of x in .* is not whole .*`seqpope reproduce x`"):
            write_results(tmp_path, tmp_path / "sub.md")
        (tmp_path / "empty").mkdir()
        with pytest.raises(SeqpopeError, match="there are no documents"):
            write_results(tmp_path / "empty", tmp_path / "sub.md")

    def test_the_shipped_file_is_made_from_the_shipped_documents(self, tmp_path):
        root = Path(__file__).resolve().parents[2]
        write_results(root / "benchmarks" / "results" / "reproduce", tmp_path / "RESULTS.md")
        made = (
            (tmp_path / "RESULTS.md")
            .read_text()
            .replace(os.path.relpath(root / "benchmarks", tmp_path).replace(os.sep, "/"), "benchmarks")
        )
        assert made == (root / "RESULTS.md").read_text()

    def test_the_readme_and_the_findings_quote_what_was_measured(self):
        """Every mean with a spread in them stands in RESULTS.md or a report, there with as many digits or more."""
        root = Path(__file__).parents[2]
        reports = [root / "RESULTS.md", *(root / "benchmarks" / "results").rglob("*.md")]
        spread = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
        measured = {pair for report in reports for pair in spread.findall(report.read_text())}

        def rounds_to(found, told):
            digits, of_found = (len(number.partition(".")[2]) for number in (told, found))
            return of_found >= digits and abs(Decimal(told) - Decimal(found)) <= Decimal(5).scaleb(-digits - 1)

        def quoted(pair):
            return any(all(map(rounds_to, other, pair)) for other in measured)

        texts = [(root / name).read_text() for name in ("README.md", "docs/findings.md")]
        assert all(len(spread.findall(text)) > 10 for text in texts)
        quotes = {pair for text in texts for pair in spread.findall(text)}
        assert len(quotes) > 50
        assert {pair for pair in quotes if not quoted(pair)} == set()
        assert not quoted(("1.8600", "0.0140"))


def test_a_whole_label_means_that_arm_alone():
    study = STUDIES["indirect-indexing"]
    assert meant(study, "RoPE") == ["RoPE"]
    assert meant(study, "RoPE, b") == ["RoPE, by Muon"]
    assert len(meant(study, "PoPE")) == 5
    assert meant(study, "rope") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["results", "--share", "0.5", "--take", "a.json", "--seeds", "0"], "--take, --share, --seeds"),
        (["results", "--arms", "RoPE", "--jobs", "2", "--seed", "1"], "--seed, --arms, --jobs"),
        (
            ["results", "--budget", "3", "--data-folder", "x", "--device", "cpu"],
            "--budget, --data-folder, --device",
        ),
        (["jsb", "--documents", "elsewhere"], "--documents"),
    ],
)
def test_options_that_are_not_read_are_refused(capsys, words, told):
    assert cli.main(["reproduce", *words]) == 1
    assert f"`reproduce {words[0]}` does not read {told}: leave it out" in capsys.readouterr().err


def test_arms_that_name_none(capsys):
    assert cli.main(["reproduce", "jsb", "--arms", " ; "]) == 1
    assert "--arms ' ; ' names none" in capsys.readouterr().err
