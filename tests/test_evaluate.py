from __future__ import annotations

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from stores import PADDING, VOCABULARY, make_split, make_store

from seqpope.checkpoint import BEST, CheckpointError, CheckpointInfo, save_checkpoint
from seqpope.data.baselines import References
from seqpope.data.shards import SCORED, Split, pack, write_store
from seqpope.errors import SeqpopeError
from seqpope.evaluate import READS, evaluate_run, summarize
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer

SHAPE = {"width": 16, "layers": 1, "heads": 2, "delta_init": "uniform"}


class TestSummarize:
    """Seven tokens of powers of two, so that every sum says what is in it."""

    nats = np.array([1.0, 2.0, 4.0, np.nan, 16.0, 32.0, 64.0])
    flags = np.array([SCORED, SCORED | 2, SCORED, 4, SCORED | 2, SCORED | 2, SCORED], np.uint8)
    split = Split(np.zeros(7, np.uint8), np.array([0, 5, 5, 7]), flags, ["a", "empty", "b"])

    def result(self, window=3):
        return summarize(self.nats, self.split, ["changed", "never"], {"step": 0.25, "base": 1.0}, window)

    def test_whole(self):
        result = self.result()
        assert result["nats_per_token"] == 119 / 6
        assert result["tokens_scored"] == 6

    def test_units(self):
        assert self.result()["units"] == {
            "step": {"nats": 119 / 1.5, "count": 1.5},
            "base": {"nats": 119 / 6, "count": 6.0},
        }

    def test_units_counted_for_each_document(self):
        """They are sums over documents, whatever their tokens; constant ones stay beside."""
        split = Split(*(getattr(self.split, key) for key in ("tokens", "starts", "flags", "names")))
        split.units.update(note=np.array([3.0, 0.0, 4.0]), rest=np.zeros(3))
        result = summarize(self.nats, split, [], {"base": 1.0}, 3)
        assert result["units"] == {
            "base": {"nats": 119 / 6, "count": 6.0},
            "note": {"nats": 17.0, "count": 7.0},
            "rest": {"nats": None, "count": 0.0},
        }
        assert [document["units"]["note"] for document in result["documents"]] == [3, 0, 4]
        assert all("units" not in document for document in self.result()["documents"])

    def test_strata(self):
        assert self.result()["strata"] == {
            "changed": {"tokens": 3, "nats_per_token": 50 / 3},
            "never": {"tokens": 0, "nats_per_token": None},  # its one token is not scored
        }

    @pytest.mark.parametrize(
        ("window", "tokens", "nats"),
        [
            (1, 0, None),
            (2, 2, (2 + 64) / 2),
            (3, 3, (2 + 4 + 64) / 3),
            (5, 4, (2 + 4 + 16 + 64) / 4),
            (99, 4, 21.5),
        ],
    )
    def test_paper_protocol(self, window, tokens, nats):
        """Neither first tokens, nor those past the window of their document."""
        got = self.result(window)["paper_protocol"]
        assert (got["tokens"], got["nats_per_token"]) == (tokens, nats)
        assert f"past {window} not scored" in got["definition"]

    def test_by_position(self):
        assert self.result()["by_position"] == [
            {"from": 0, "to": 4, "tokens": 5, "nats_per_token": 103 / 5},
            {"from": 4, "to": 5, "tokens": 1, "nats_per_token": 16.0},
        ]

    def test_documents(self):
        assert self.result()["documents"] == [
            {"name": "a", "tokens": 4, "nats": 23.0},
            {"name": "empty", "tokens": 0, "nats": 0.0},
            {"name": "b", "tokens": 2, "nats": 96.0},
        ]

    def test_references_count_the_same_tokens_and_add_strata(self):
        nats = np.array([2.0, 2.0, 2.0, np.nan, 8.0, 8.0, 1.0])
        late = np.array([False, False, True, True, True, False, True])
        references = References({"table": nats}, {"late": late}, ["so it was measured"])
        result = summarize(self.nats, self.split, ["changed"], {}, 3, references)
        assert result["strata"]["late"] == {"tokens": 3, "nats_per_token": 84 / 3}
        assert list(result["strata"]) == ["changed", "late"]
        found = result["references"]
        assert found["tokens"] == {"changed": [2, 0, 1], "late": [2, 0, 1]}
        assert found["nats"] == {"changed": [18, 0, 32], "late": [20, 0, 64]}
        assert found["text"] == ["so it was measured"]
        assert found["baselines"]["table"] == {
            "tokens": 6,
            "nats_per_token": 23 / 6,
            "documents": [14, 0, 9],
            "strata": {
                "changed": {"tokens": 3, "nats_per_token": 18 / 3, "documents": [10, 0, 8]},
                "late": {"tokens": 3, "nats_per_token": 11 / 3, "documents": [10, 0, 1]},
            },
        }
        assert self.result()["references"] is None

    def test_is_plain_json(self):
        assert json.loads(json.dumps(self.result())) == self.result()

    def test_a_scored_token_without_nats_is_a_bug(self):
        nats = self.nats.copy()
        nats[4] = np.nan
        with pytest.raises(ValueError, match="a scored token has no NLL"):
            summarize(nats, self.split, [], {}, 3)

    @pytest.mark.parametrize("lengths", [[1], [4], [5], [8, 8], [9, 3], [64], [65, 1], [1, 100, 0, 31]])
    def test_positions_and_documents_part_the_tokens(self, lengths):
        split = make_split(lengths, unscored=3)
        nats = np.random.default_rng(0).random(sum(lengths))
        result = summarize(nats, split, ["odd"], {}, 16)
        ranges = result["by_position"]
        assert ranges[0]["from"] == 0
        assert ranges[-1]["to"] == max(lengths)
        assert all(a["to"] == b["from"] for a, b in pairwise(ranges))
        for parts, total in (
            (ranges, lambda part: part["tokens"] * (part["nats_per_token"] or 0)),
            (result["documents"], lambda part: part["nats"]),
        ):
            assert sum(part["tokens"] for part in parts) == result["tokens_scored"]
            expected = result["tokens_scored"] * result["nats_per_token"]
            assert sum(total(part) for part in parts) == pytest.approx(expected)


def make_run(tmp_path, position="pope", unscored=4, **changes):
    """The folder of a run, as training leaves it: weights and configuration, nothing tested."""
    store = make_store(tmp_path, unscored=unscored)
    torch.manual_seed(0)
    model = Transformer(VOCABULARY, position, ModelConfig(**SHAPE)).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # or all tokens are about as likely, and no window would matter
        for block in model.blocks:
            block.attention.qkv.weight.mul_(20)
            block.attention.out.weight.mul_(20)
    manifest = store.manifest
    values = {
        "domain": "music",
        "dataset": "tiny",
        "position": position,
        "vocabulary_size": VOCABULARY,
        "padding_id": PADDING,
        "length": 16,
        "model": SHAPE,
        "tokenizer": manifest.tokenizer,
        "fingerprint": manifest.fingerprint,
        "trained": {"seed": 2, "step": 7, "data": manifest.content},
    }
    run = tmp_path / "runs" / "x" / f"{position}-seed2"
    save_checkpoint(run / BEST, model, CheckpointInfo(**{**values, **changes}))
    config = {"data_folder": str(tmp_path / "data"), "eval_length": 16, "eval_stride": 8, "seed": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run, model, store


def reads(run):
    file = run / READS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def results(run):
    return sorted(path.name for path in run.glob("result*"))


class TestEvaluateRun:
    @pytest.mark.parametrize("position", ["pope", "rope"])
    @torch.no_grad()
    def test_is_the_plain_sum_over_tokens(self, tmp_path, position):
        """A window that holds every document: each token from all before it, one forward a document."""
        run, model, store = make_run(tmp_path, position)
        split = store.split("validation")
        total, count = 0.0, 0
        for d in range(len(split)):
            ids = torch.from_numpy(split.document(d).astype("int64"))
            scored = split.flags[split.starts[d] : split.starts[d + 1]] & SCORED
            logits = model(torch.cat((torch.tensor([PADDING]), ids[:-1]))[None])[0].double()
            nats = -logits.log_softmax(-1)[torch.arange(len(ids)), ids]
            total += float(nats[torch.from_numpy(scored.astype(bool))].sum())
            count += int(scored.sum())
        result = evaluate_run(run, split="validation", device="cpu", length=64, stride=64)
        assert result["tokens_scored"] == count == 56 - 7 - 2 - 4
        assert result["nats_per_token"] == pytest.approx(total / count, rel=1e-6)
        shorter = evaluate_run(run, split="validation", device="cpu")
        assert shorter["tokens_scored"] == count
        assert shorter["nats_per_token"] != pytest.approx(total / count, rel=1e-4)

    def test_test_finishes_the_run_and_is_a_read(self, tmp_path):
        run, _, store = make_run(tmp_path)
        result = evaluate_run(run, device="cpu")
        assert results(run) == ["result.json"]
        assert json.loads((run / "result.json").read_text()) == result
        [read] = reads(run)
        assert (read["length"], read["stride"]) == (16, 8)
        assert read["date"] == result["date"]
        assert result["run"] == "pope-seed2"
        assert result["protocol"] == {
            "window": 16,
            "stride": 8,
            "first_token": "scored, predicted from padding at the input",
            "precision": "fp32",
            "selection": "best validation step",
        }
        assert result["baselines"] == {"unigram": 2.0}
        assert result["trained"] == {"seed": 2, "step": 7, "data": store.manifest.content}
        assert result["content"] == store.manifest.content
        assert result["fingerprint"] == store.manifest.fingerprint
        assert result["strata"].keys() == {"odd"}
        assert result["units"].keys() == {"step"}
        assert result.keys() >= {"commit", "versions", "device", "config", "parameters"}

    def test_each_read_of_test_is_logged_whatever_the_window(self, tmp_path):
        run, _, _ = make_run(tmp_path)
        evaluate_run(run, device="cpu")
        before = (run / "result.json").read_bytes()
        evaluate_run(run, device="cpu", length=32)
        evaluate_run(run, device="cpu", stride=4)
        evaluate_run(run, device="cpu", length=4)
        assert [(read["length"], read["stride"]) for read in reads(run)] == [(16, 8), (32, 8), (16, 4), (4, 4)]
        assert results(run) == [
            "result-test-16-4.json",
            "result-test-32-8.json",
            "result-test-4-4.json",
            "result.json",
        ]
        assert (run / "result.json").read_bytes() == before

    @pytest.mark.parametrize(("split", "tokens"), [("validation", 43), ("train", 119)])
    def test_other_splits_neither_finish_nor_read(self, tmp_path, split, tokens):
        run, _, _ = make_run(tmp_path)
        result = evaluate_run(run, split=split, device="cpu")
        assert result["split"] == split
        assert result["tokens_scored"] == tokens
        assert results(run) == [f"result-{split}-16-8.json"]
        assert reads(run) == []

    def test_data_and_run_may_have_moved(self, tmp_path):
        run, _, _ = make_run(tmp_path)
        expected = evaluate_run(run, split="validation", device="cpu")["nats_per_token"]
        shutil.move(tmp_path / "data", tmp_path / "elsewhere")
        shutil.move(run, tmp_path / "moved")
        result = evaluate_run(tmp_path / "moved", tmp_path / "elsewhere", split="validation", device="cpu")
        assert result["nats_per_token"] == expected
        with pytest.raises(SeqpopeError, match=r"run `seqpope prepare tiny --data-folder .*` first"):
            evaluate_run(tmp_path / "moved", split="validation", device="cpu")

    def test_progress(self, tmp_path):
        run, _, _ = make_run(tmp_path)
        calls = []
        evaluate_run(run, device="cpu", progress=lambda done, total: calls.append((done, total)))
        assert calls[-1] == (39, 39)


class TestRefused:
    def test_no_run(self, tmp_path):
        run, _, _ = make_run(tmp_path)
        for folder in (tmp_path / "nowhere", tmp_path, run.parent):
            with pytest.raises(CheckpointError, match="is not the folder of a trained run"):
                evaluate_run(folder)
        (run / "config.yaml").unlink()
        with pytest.raises(CheckpointError, match="is not the folder of a trained run"):
            evaluate_run(run)

    def test_data_of_another_tokenizer(self, tmp_path):
        run, _, _ = make_run(tmp_path, fingerprint="ab" * 32)
        with pytest.raises(CheckpointError, match="trained on tokens abababababab"):
            evaluate_run(run, device="cpu")
        assert (reads(run), results(run)) == ([], [])

    def test_data_split_anew(self, tmp_path):
        """The same tokens, another split: what is in test now may have been trained on."""
        run, _, store = make_run(tmp_path)
        splits = {
            name: store.split(other)
            for name, other in zip(("train", "validation", "test"), ("test", "validation", "train"), strict=True)
        }
        copies = {
            name: pack(
                [np.array(s.document(i)) for i in range(len(s))],
                [np.array(s.flags[s.starts[i] : s.starts[i + 1]]) for i in range(len(s))],
                s.names,
                np.uint8,
            )
            for name, s in splits.items()
        }
        write_store(store.folder, store.manifest, copies)
        with pytest.raises(
            SeqpopeError, match=r"is not what .*pope-seed2 was trained on.*prepare the same version"
        ):
            evaluate_run(run, device="cpu")
        assert (reads(run), results(run)) == ([], [])

    def test_an_unknown_split(self, tmp_path):
        run, _, _ = make_run(tmp_path)
        with pytest.raises(SeqpopeError, match="'holdout' was asked for"):
            evaluate_run(run, split="holdout", device="cpu")

    @pytest.mark.parametrize(
        "window",
        [{"length": 0}, {"length": -1}, {"stride": 0}, {"stride": -3}, {"length": 5, "stride": 9}],
        ids=str,
    )
    def test_windows_that_make_no_sense(self, tmp_path, window):
        run, _, _ = make_run(tmp_path)
        with pytest.raises(SeqpopeError, match="length and stride must be at least 1"):
            evaluate_run(run, device="cpu", **window)
        assert (reads(run), results(run)) == ([], [])
