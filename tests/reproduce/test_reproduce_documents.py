"""Rows of a study that are taken from documents made before, on another machine or of another study."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_study import ARMS, STUDY, TINY, run

from seqpope.errors import SeqpopeError
from seqpope.reproduce.documents import standing_for
from seqpope.reproduce.merging import merge_rows
from seqpope.reproduce.rows import row_of
from seqpope.reproduce.studies import STUDIES, Arm, slug
from seqpope.reproduce.summary import _difference

pytestmark = pytest.mark.usefixtures("unrendered")


READ = {
    "length_targets": {"precision": "bf16", "same": {"documents": 9, "tokens": 90}},
    "positions": {"length": 51, "documents": 9, "nats_per_token": {"pope": [[0, 8, 1.0]]}},
}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The study run once: its document, and where it lies."""
    out = tmp_path_factory.mktemp("whole")
    return run(data, out)[0], out


def test_rows_are_taken_from_documents(data, tmp_path, whole):
    """What one machine trained stands beside what another did, though its runs' folders are gone."""
    document, file = whole[0], whole[1] / "tiny" / "tiny.json"
    both = {arm.label: [file] for arm in ARMS}
    told, _ = run(data, tmp_path / "a", taken=both, only=[])
    assert told == document
    run(data, tmp_path / "b", only=["RoPE"])
    mixed, _ = run(data, tmp_path / "c", taken={ARMS[0].label: [file]}, only=["RoPE"])
    assert mixed["rows"][0] == document["rows"][0]
    assert mixed["differences"][0]["mean"] == document["differences"][0]["mean"]
    assert standing_for(STUDY, file) == ["PoPE, tiny", "RoPE, tiny"]


def test_documents_that_cannot_be_taken(data, tmp_path, whole):
    file = whole[1] / "tiny" / "tiny.json"
    label = ARMS[0].label

    def refused(match, paths, study=STUDY, **settings):
        with pytest.raises(SeqpopeError, match=match):
            run(data, tmp_path / "out", study=study, taken={label: paths}, only=[], **settings)
        assert not (tmp_path / "out").exists()

    def other(**changes):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({**whole[0], **changes}))
        return [path]

    def but(changes):
        """The row with these changes; ... leaves a field out."""
        return {name: value for name, value in {**row, **changes}.items() if value is not ...}

    refused("has 1.0 of the recipes' steps, 0.5 are asked.*give --share 1.0", [file], share=0.5)
    refused("is of tiny, in nats, and has .*: expected tiny, in accuracy", other(measure="nats"))
    refused("and has RoPE, tiny: expected tiny, in accuracy, with PoPE", other(rows=[whole[0]["rows"][1]]))
    refused("no whole document of a study .KeyError", other(rows=[{"label": label}]))
    refused("reads the models themselves: give the runs' folders", [file], replace(STUDY, inspect=True))
    row = whole[0]["rows"][0]
    refused("is of nope there, expected pope", other(rows=[{**row, "encoding": "nope"}]))
    for wrong in (
        {"seeds": [0]}, {"seeds": [0, 0]}, {"seeds": ["a", "b"]}, {"seeds": []}, {"values": [1.0]},
        {"minutes": None}, {"solved_at": [1]}, {"recipe": None}, {"recipe": []}, {"recipe": {}}, {"commits": None},
        {"values": [True, 3.0]}, {"values": [None, 1.0]}, {"parameters": -4}, {"parameters": 1.5},
        {"device": ["a\nb"]}, {"device": ["a <b>"]}, {"device": ["a | b"]}, {"device": ["a\x1b[31m"]},
        {"device": [""]}, {"device": []}, {"device": ["a" * 201]}, {"dates": [3, 4]}, {"dates": ["x"]},
        {"commits": ["<a>"]}, {"commits": []}, {"precision": ["|"]}, {"data": "<a>"},
        {"baselines": {"<a>": 1.0}}, {"steps": []}, {"steps": [1.5]}, {"steps": ["many"]},
        {"values": [-0.1, 1.0]}, {"values": [100.5, 1.0]}, {"seeds": [-1, 0]}, {"minutes": [-1.0, 1.0]},
        {"values": [float("nan"), 1.0]}, {"values": [1e308, 1.0]}, {"values": [10**400, 1.0]}, {"protocol": {}},
        {"device": "a GPU"}, {"units": {"token": [1.0]}}, {"data": ...},
    ):  # fmt: skip
        refused("is no whole document of a study", other(rows=[but(wrong)]))
    for wrong in (
        {"baselines": []}, {"curves": [None]}, {"curves": [["x"]]},
    ):  # fmt: skip
        refused("the row of PoPE, tiny in a document is not whole", other(rows=[{**row, **wrong}]))
    refused(r"there is no .*nothing\.json: expected a document", [tmp_path / "nothing.json"])
    (tmp_path / "deep.json").write_text("[" * 100000)
    refused("no report.json of `seqpope compare`", [tmp_path / "deep.json"])
    strange = {**row, "data": "elsewhere"}
    with pytest.raises(SeqpopeError, match=r"PoPE, tiny and RoPE, tiny cannot be compared: their data"):
        run(data, tmp_path / "out", taken={label: other(rows=[strange])})
    refused("a budget gives the runs a share .* has its own: give --share", [file], budget=1.0)
    with pytest.raises(SeqpopeError, match="there is nothing to train and nothing is taken"):
        run(data, tmp_path / "out", only=[])
    with pytest.raises(SeqpopeError, match=r"is no document of a study .*expected STUDY\.json"):
        standing_for(STUDY, tmp_path / "nothing.json")


def test_rows_are_taken_from_another_study_that_trained_the_same(data, tmp_path, whole):
    """By recipe, not by label: what is called otherwise there is called as here."""
    file, decayed = whole[1] / "tiny" / "tiny.json", {**TINY, "optimizer.weight_decay": 0.5}
    arms = (
        Arm("the same", "pope", "indexing-paper", {**TINY, "model.delta_init": "uniform"}),
        Arm("decayed", "pope", "indexing-paper", decayed),
        # What RoPE does not read makes it no other.
        Arm("RoPE", "rope", "indexing-paper", {**TINY, "model.delta_init": "zero"}),
    )
    other = replace(STUDY, name="other", arms=arms, pairs=(("the same", "RoPE"),))
    assert standing_for(other, file) == ["the same", "RoPE"]
    taken = {label: [file] for label in ("the same", "RoPE")}
    document, _ = run(data, tmp_path, study=other, taken=taken, only=[])
    assert [row["label"] for row in document["rows"]] == ["the same", "RoPE"]
    assert [row["values"] for row in document["rows"]] == [row["values"] for row in whole[0]["rows"]]
    assert document["differences"][0]["paired"] == whole[0]["differences"][0]["paired"]
    with pytest.raises(SeqpopeError, match="with decayed once, or a study that trained the same"):
        run(data, tmp_path, study=other, taken={"decayed": [file]}, only=[])
    for match, asked, share in (
        (r"of tiny has PoPE, tiny, RoPE, tiny; other trains none of it$", replace(other, arms=arms[1:2]), 1.0),
        (r"trains none of it: it has 1\.0 of the recipes' steps, 0\.5 are asked for", other, 0.5),
        ("trains none of it$", replace(other, measure="nats_per_token"), 1.0),
        ("trains none of it$", replace(other, arms=tuple(replace(a, lengths=(51,)) for a in arms)), 1.0),
        (
            "it was read on the test split, other is on validation",
            replace(other, arms=tuple(replace(a, lengths=(51,)) for a in arms), lengths_split="validation"),
            1.0,
        ),
    ):
        with pytest.raises(SeqpopeError, match=match):
            standing_for(asked, file, share)
    strange = replace(STUDY, arms=STUDY.arms[:1])
    with pytest.raises(SeqpopeError, match=r"tiny\.json has RoPE, tiny: tiny has no such arm, but PoPE, tiny"):
        standing_for(strange, file)


def test_lengths_that_an_arm_does_not_have_are_left_out(tmp_path, whole):
    row = {**whole[0]["rows"][0], "lengths": {"pope": {}}, "length_targets": {}, "positions": {}}
    (tmp_path / "a.json").write_text(json.dumps({**whole[0], "study": "far", "rows": [row]}))
    assert not row_of(STUDY, ARMS[0], [tmp_path / "a.json"]).keys() & {
        "lengths",
        "length_targets",
        "positions",
    }


def test_rows_from_documents_are_held_against_the_arm_of_today(data, tmp_path, whole):
    path, row = tmp_path / "other.json", whole[0]["rows"][0]
    recipe = {**row["recipe"], "optimizer": {**row["recipe"]["optimizer"], "weight_decay": 0.5}}
    rows = [{**row, "published": 0.1, "recipe": recipe}]
    path.write_text(json.dumps({**whole[0], "rows": rows}))
    document, _ = run(data, tmp_path / "out", taken={ARMS[0].label: [path]}, only=[])
    assert document["rows"][0]["published"] == 94.82
    assert document["rows"][0]["differs_from_preset"] == {"optimizer.weight_decay": [0.01, 0.5]}


def test_of_rows_read_in_several_lengths(whole, tmp_path):
    """The same lengths, on the same split."""
    study, arm = replace(STUDY, lengths_split="validation"), replace(ARMS[0], lengths=(51, 102))
    both = {length: {"same": [1.0, 1.0], "second_half": [1.0, 1.0]} for length in ("51", "102")}

    def taken(split, lengths):
        row = {**whole[0]["rows"][0], **READ, "lengths": {"pope": lengths}}
        path = tmp_path / "lengths.json"
        path.write_text(json.dumps({**whole[0], "rows": [row], "lengths_split": split}))
        return row_of(study, arm, [path])

    assert taken("validation", both)["lengths"] == {"pope": both}
    with pytest.raises(SeqpopeError, match="read in several lengths on the test split, tiny is on validation"):
        taken("test", both)
    with pytest.raises(SeqpopeError, match=r"was read at 51 tokens, PoPE, tiny is at 51, 102"):
        taken("validation", {"51": both["51"]})
    with pytest.raises(SeqpopeError, match="not every list has a number for each of 2 seeds"):
        taken("validation", {**both, "51": {"same": [1.0], "second_half": [1.0, 1.0]}})


class TestSeedsOfSeveral:
    """A row put together of parts is that of all seeds at once."""

    @pytest.fixture
    def made(self, whole, tmp_path):
        """Writes a document whose row of the first arm is changed so; ... leaves a field out."""

        def written(name="other", **changes):
            row = {"seeds": [7, 8], **{n: v for n, v in whole[0]["rows"][0].items() if n != "seeds"}, **changes}
            row = {n: v for n, v in row.items() if v is not ...}
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps({**whole[0], "rows": [row]}))
            return path

        return written

    def test_documents_and_folders(self, data, whole, tmp_path):
        """In any order; each of a part's seeds in a document or as a run."""
        for arm, row in zip(ARMS, whole[0]["rows"], strict=True):
            place = whole[1] / "tiny" / slug(arm.label)
            runs = [place / f"{arm.position}-seed{seed}" for seed in (0, 1)]
            parts = []
            for seed, path in enumerate(runs):
                run(data, tmp_path / f"{seed}{arm.position}", taken={arm.label: [path]}, only=[])
                parts.append(tmp_path / f"{seed}{arm.position}" / "tiny" / "tiny.json")
            for paths in (parts, parts[::-1], [parts[1], runs[0]], [runs[1], parts[0]]):
                assert row_of(STUDY, arm, paths) == row

    def test_of_several_machines(self, whole, made):
        """What was found there stands in the order of seeds; what they were is told of all."""
        arm, row = ARMS[0], whole[0]["rows"][0]
        solved = made(
            "solved", seeds=[5, 3], values=[90.0, 60.0], solved=0, solved_at=[40, 30], device=["another"],
            commits=["abc"], precision=["bf16-mixed"], dates=["2020-01-01", "2999-01-01"],
            recipe={**row["recipe"], "precision": "fp32", "compile": "false"}, curves=row["curves"][:1],
        )  # fmt: skip
        whole_file = whole[1] / "tiny" / "tiny.json"
        merged = row_of(STUDY, arm, [solved, whole_file])
        assert merged == row_of(STUDY, arm, [whole_file, solved])
        assert merged["seeds"] == [0, 1, 3, 5]
        assert merged["values"] == [*row["values"], 60.0, 90.0]
        assert (merged["solved"], merged["solved_at"]) == (2, [*row["solved_at"], 30, 40])
        assert merged["curves"] == [*row["curves"], row["curves"][0]]
        assert merged["recipe"] == row["recipe"]
        assert merged["device"] == sorted(["another", *row["device"]])
        assert merged["commits"] == sorted(["abc", *row["commits"]])
        assert merged["precision"] == ["32-true", "bf16-mixed"]
        assert merged["dates"] == ["2020-01-01", "2999-01-01"]
        assert merged["differs_from_preset"] == {}

    def test_seeds_of_two_precisions_are_told(self, whole, made):
        """Which seed was trained in which is not in a row, so that pairs may be of two."""
        other = row_of(STUDY, ARMS[0], [whole[1] / "tiny" / "tiny.json", made(precision=["bf16-mixed"])])
        assert _difference(other, other, set())["unlike"] == ["training precision"]

    def test_settings_that_only_some_tell(self, whole, made):
        """Two parts that differ in one are told apart, whichever part comes between them."""
        recipe, arm = whole[0]["rows"][0]["recipe"], ARMS[0]

        def part(seed, decay=None, **model):
            optimizer = {n: v for n, v in recipe["optimizer"].items() if n != "average_decay"}
            optimizer |= {} if decay is None else {"average_decay": decay}
            told = {**recipe, "optimizer": optimizer, "model": {**recipe["model"], **model}}
            lists = {
                n: whole[0]["rows"][0][n][:1]
                for n in ("values", "validation", "best_step", "minutes", "solved_at")
            }
            units = {name: values[:1] for name, values in whole[0]["rows"][0]["units"].items()}
            return made(str(seed), seeds=[seed], recipe=told, units=units, **lists)

        silent, none, some = part(0), part(1, 0.0), part(2, 0.5)
        for order in itertools.permutations((silent, none, some)):
            with pytest.raises(SeqpopeError, match=r"seeds [12] and [12] differ in optimizer\.average_decay"):
                row_of(STUDY, arm, order)
        assert row_of(STUDY, arm, [silent, none])["recipe"]["optimizer"]["average_decay"] == 0.0
        with pytest.raises(SeqpopeError, match=r"seeds 0 and 4 differ in model\.delta_init, 'uniform' and 'zero'"):
            row_of(STUDY, arm, [silent, part(4, delta_init="zero")])
        rope = [
            {**row_of(STUDY, arm, [path]), "encoding": "rope"} for path in (silent, part(4, delta_init="zero"))
        ]
        assert merge_rows("RoPE", [("a", rope[0]), ("b", rope[1])])["seeds"] == [0, 4]

    def test_read_in_several_lengths(self, whole):
        """A part of two seeds and one of one: means over seeds weigh them alike."""

        def part(seeds, nats):
            row = whole[0]["rows"][0]
            named = {
                name: [row[name][0]] * len(seeds) for name in ("values", "validation", "best_step", "minutes")
            }
            named |= {"solved": 0, "solved_at": [None] * len(seeds), "curves": [], "seeds": seeds}
            positions = {**READ["positions"], "nats_per_token": {"pope": [[0, 8, sum(nats) / len(nats)]]}}
            return {
                **row,
                **named,
                **READ,
                "units": {"token": nats},
                "lengths": {"pope": {"51": {"same": nats, "second_half": [2 * n for n in nats]}}},
                "positions": positions,
            }

        one, other = part([0, 4], [1.0, 3.0]), part([2], [5.0])
        merged = merge_rows("PoPE", [("a", one), ("b", other)])
        assert merged["seeds"] == [0, 2, 4]
        assert merged["lengths"] == {"pope": {"51": {"same": [1.0, 5.0, 3.0], "second_half": [2.0, 10.0, 6.0]}}}
        assert merged["positions"]["nats_per_token"] == {"pope": [[0, 8, 3.0]]}
        assert merged["units"] == {"token": [1.0, 5.0, 3.0]}
        targets, positions = READ["length_targets"], other["positions"]
        for changes, told in (
            (
                {"lengths": {"pope": other["lengths"]["pope"], "pope+yarn": {}}},
                "not read alike .* their ways of reading differ, pope and pope, pope.yarn",
            ),
            ({"length_targets": {**targets, "second_half": 3}}, "not read alike .* their targets differ:"),
            ({"positions": {**positions, "length": 8}}, "not read alike .* their curves by position differ:"),
            (
                {"positions": {**positions, "nats_per_token": {"pope": [[0, 9, 1.0]]}}},
                "not read alike .* their bins differ:",
            ),
            (
                {"length_targets": {**targets, "precision": "fp32"}},
                "differ in precision at several lengths, 'bf16' and 'fp32'",
            ),
            (
                {"length_targets": {**targets, "same": {"documents": 3, "tokens": 5}}},
                "differ in targets at several lengths, '90 of 9 documents' and '5 of 3 documents'",
            ),
        ):
            with pytest.raises(SeqpopeError, match=f"seeds 0 and 2 .*{told}"):
                merge_rows("PoPE", [("a", one), ("b", {**other, **changes})])

    def test_what_is_no_part_of_it(self, whole, made):
        arm, row = ARMS[0], whole[0]["rows"][0]
        file = whole[1] / "tiny" / "tiny.json"

        def refused(match, *paths):
            for order in itertools.permutations(paths):
                with pytest.raises(SeqpopeError, match=match):
                    row_of(STUDY, arm, order)

        refused("seed 1 comes twice, by other runs, in .*json and in .*json: say what", file, made(seeds=[1, 2]))
        for name in ("values", "validation", "best_step"):
            changed = {name: [row[name][0], row[name][1] + 1]}
            refused("seed 1 comes twice, by other runs", file, made(seeds=[0, 1], **changed))
        decayed = {**row["recipe"], "optimizer": {**row["recipe"]["optimizer"], "weight_decay": 0.5}}
        protocol = {**row["protocol"], "selection": "the last step"}
        for seeds in ([7, 8], [0, 1]):  # of other seeds, and of the same
            for changes, told in (
                ({"recipe": decayed}, r"optimizer\.weight_decay, 0\.\d+ and 0\.\d+"),
                ({"data": "elsewhere"}, r"data \(content hash\)"),
                ({"parameters": 3}, "number of parameters"),
                ({"protocol": protocol}, "protocol's selection"),
            ):
                refused(rf"seeds \d and \d differ in {told}", file, made(seeds=seeds, **changes))
        tables = made("a", baselines={"unigram": 1.0}), made("b", seeds=[3, 4], baselines={"unigram": 9.0})
        refused(r"seeds \d and \d differ in baseline unigram, \d\.0 and \d\.0", *tables)
        refused(r"dates are {}", file, made(dates={}))
        assert row_of(STUDY, arm, [file, made()])["seeds"] == [0, 1, 7, 8]

    def test_the_very_same_runs_count_once(self, whole, made):
        """Two studies that trained the same have them both; so has a document of the runs beside it."""
        arm, file, row = ARMS[0], whole[1] / "tiny" / "tiny.json", whole[0]["rows"][0]
        alone = row_of(STUDY, arm, [file])

        def seed(number):
            lists = {n: [row[n][number]] for n in ("values", "validation", "best_step", "minutes", "solved_at")}
            lists["units"] = {unit: [values[number]] for unit, values in row["units"].items()}
            return made(f"seed{number}", seeds=[number], curves=[row["curves"][number]], **lists)

        silent = made("silent", seeds=[0, 1], curves=[], minutes=[None, None], solved_at=[None, None])
        again = {"seeds": [0, 7], "values": [row["values"][0], 60.0], "solved_at": [None, 9]}
        for parts in (
            (file, made(seeds=[0, 1])),
            (file, seed(0), seed(1)),
            (seed(0), whole[1] / "tiny" / slug(arm.label) / "pope-seed1"),
            (file, whole[1] / "tiny" / slug(arm.label) / "pope-seed1"),
            (file, silent),
        ):
            for order in itertools.permutations(parts):
                assert row_of(STUDY, arm, order) == alone
        for order in itertools.permutations((file, made("again", **again))):
            merged = row_of(STUDY, arm, order)
            assert (merged["seeds"], merged["solved"], len(merged["curves"])) == ([0, 1, 7], 1, 3)
            assert merged["values"] == [*row["values"], 60.0]

    def test_means_over_seeds_cannot_be_taken_apart(self, whole):
        row = whole[0]["rows"][0]
        nats = {"pope": {"51": {"same": [1.0, 2.0], "second_half": [1.0, 2.0]}}}
        one = {**row, **READ, "lengths": nats}
        assert merge_rows("PoPE", [("a", one), ("b", one)]) == one
        lists = {n: [row[n][1], row[n][0]] for n in ("values", "validation", "best_step", "minutes", "solved_at")}
        units = {unit: values[::-1] for unit, values in row["units"].items()}
        turned = {"pope": {"51": {"same": [2.0, 1.0], "second_half": [2.0, 1.0]}}}
        other = {**one, **lists, "seeds": [1, 2], "units": units, "lengths": turned}
        with pytest.raises(SeqpopeError, match="b has seeds that others have too, and its curves by position"):
            merge_rows("PoPE", [("a", one), ("b", other)])
        read_otherwise = {"pope": {"51": {"same": [1.0, 2.0], "second_half": [1.0, 3.0]}}}
        with pytest.raises(SeqpopeError, match="seed 1 comes twice, by other runs, in a and in b"):
            merge_rows("PoPE", [("a", one), ("b", {**one, "lengths": read_otherwise})])

    def test_what_only_some_parts_tell_is_kept(self, whole, made):
        row = whole[0]["rows"][0]
        baselines = {**row["baselines"], "of more": 1.0}
        recipe = {**row["recipe"], "model": {**row["recipe"]["model"], "dropout": 0.3}}
        differing = made("differing", recipe=recipe, baselines=baselines)
        less = {**row["recipe"], "model": {n: v for n, v in row["recipe"]["model"].items() if n != "dropout"}}
        for order in itertools.permutations((differing, made("silent", seeds=[3, 4], recipe=less))):
            merged = row_of(STUDY, ARMS[0], order)
            assert merged["baselines"] == baselines
            assert merged["recipe"]["model"]["dropout"] == 0.3
            assert merged["differs_from_preset"] == {"model.dropout": [0.0, 0.3]}

    def test_a_document_is_not_written_over_by_what_it_is_a_part_of(self, data, whole):
        file = whole[1] / "tiny" / "tiny.json"
        before = file.read_bytes()
        with pytest.raises(SeqpopeError, match=r"tiny\.json is taken and would be written over: give another"):
            run(data, whole[1], taken={arm.label: [file] for arm in ARMS}, only=[])
        assert file.read_bytes() == before


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if not study.inspect])
def test_the_shipped_documents_can_be_taken(name):
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "reproduce" / f"{name}.json"
    document, study = json.loads(file.read_text()), STUDIES[name]
    labels = standing_for(study, file, document["share"])
    assert labels == [row["label"] for row in document["rows"]]
    for arm in study.arms:
        if arm.label in labels:
            assert row_of(study, arm, [file], document["share"])["values"]
