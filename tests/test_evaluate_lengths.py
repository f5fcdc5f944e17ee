from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from stores import VOCABULARY, make_split
from test_evaluate import make_run, reads, results

import seqpope.evaluate
from seqpope import cli
from seqpope.checkpoint import load_checkpoint
from seqpope.data.shards import SCORED
from seqpope.errors import SeqpopeError
from seqpope.evaluate import evaluate_lengths, lengths_file, plan_lengths, position_edges, summarize_lengths
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer, with_yarn
from seqpope.nll import score_split


class Planted(torch.nn.Module):
    """A model whose NLL is 5 + position / 8 nats, whatever it reads: an id that never comes takes the rest."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.sizes = []

    def forward(self, ids):
        self.sizes.append(tuple(ids.shape))
        nats = 5 + torch.arange(ids.shape[1], dtype=torch.float64) / 8
        logits = torch.zeros(*ids.shape, VOCABULARY + 1, dtype=torch.float64)
        logits[..., VOCABULARY] = (nats.exp() - VOCABULARY).log()
        return logits


def planted(positions):
    positions = np.asarray(list(positions), float)
    return {"tokens": len(positions), "nats_per_token": pytest.approx(5 + positions.mean() / 8, rel=1e-6)}


@pytest.fixture
def planted_run(tmp_path, monkeypatch):
    """A run whose weights are the planted model's; train has documents of 21, 40, 8, 33, 16, 27, 12 tokens."""
    run, _, _ = make_run(tmp_path, unscored=0)
    _, info = load_checkpoint(run)
    model = Planted()
    monkeypatch.setattr(seqpope.evaluate, "load_checkpoint", lambda run, device: (model, info))
    return run, model


def evaluated(run, lengths, **options):
    return evaluate_lengths(run, lengths, **{"split": "train", "device": "cpu", **options})


class TestPlanted:
    def test_windows_side_by_side(self, planted_run):
        """Own targets: whole windows alone. 21, 40, 33, 16, 27 and 12 tokens hold 2, 5, 4, 2, 3 and 1 of 8."""
        run, _ = planted_run
        short, long = evaluated(run, [16, 8])["scores"]["pope"]
        assert (short["length"], short["documents"], short["windows"]) == (8, 7, 2 + 5 + 1 + 4 + 2 + 3 + 1)
        assert short["whole"] == planted([*range(8)] * 18)
        assert short["second_half"] == planted([4, 5, 6, 7] * 18)
        assert (long["length"], long["stride"], long["documents"], long["windows"]) == (16, 16, 5, 7)
        assert long["whole"] == planted([*range(16)] * 7)
        assert long["second_half"] == planted([*range(8, 16)] * 7)

    def test_curve_is_the_planted_one(self, planted_run):
        run, _ = planted_run
        [record] = evaluated(run, [16])["scores"]["pope"]
        curve = record["by_position"]
        assert [(b["from"], b["to"]) for b in curve] == [
            (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8),
            (8, 10), (10, 11), (11, 13), (13, 16),
        ]  # fmt: skip
        for b in curve:
            assert {k: b[k] for k in ("tokens", "nats_per_token")} == planted([*range(b["from"], b["to"])] * 7)

    def test_all_lengths_on_the_same_targets(self, planted_run):
        """Those of whole windows of 16: the first 16 of 21, 16 and 27 tokens, the first 32 of 40 and 33."""
        run, _ = planted_run
        result = evaluated(run, [4, 12, 16])
        assert result["targets"] == {
            "split_documents": 7,
            "split_tokens": 157,
            "same_documents": ["piece-0", "piece-1", "piece-3", "piece-4", "piece-5"],
            "same_document_tokens": [16, 32, 32, 16, 16],
            "same_tokens": 112,
            # Places 8..15 of 16, of which 6..11 of 12 and 2..3 of 4: 10 and 11; of a second window there
            # (places 24..31) again those in 18..23 and 30..35, and so 30 and 31.
            "same_tokens_second_half": 2 * 5 + 2 * 2,
        }
        four, twelve, sixteen = (record["same_targets"] for record in result["scores"]["pope"])
        assert four["whole"] == planted([*range(4)] * 28)
        first, second = [*range(12), *range(4)], [*range(4, 12), *range(8)]  # 12 does not divide 16
        assert twelve["whole"] == planted(first * 5 + second * 2)
        assert sixteen["whole"] == planted([*range(16)] * 7)
        assert four["second_half"] == planted([2, 3] * 7)
        assert twelve["second_half"] == planted([10, 11] * 5 + [6, 7] * 2)
        assert sixteen["second_half"] == planted([10, 11] * 5 + [14, 15] * 2)
        for same in (four, twelve, sixteen):
            assert sum(b["tokens"] for b in same["by_document_position"]) == 112
            assert sum(same["document_nats"]) == pytest.approx(112 * same["whole"]["nats_per_token"])
            assert [b["tokens"] for b in same["by_document_position"][:3]] == [5, 5, 5]
        assert sixteen["document_nats"][0] == pytest.approx(16 * (5 + 7.5 / 8))

    @pytest.mark.parametrize(("options", "stride"), [({"stride_share": 0.5}, 4), ({"stride": 3}, 3)])
    def test_overlapping_windows(self, planted_run, options, stride):
        """After a document's first window each scores its last tokens; a stride need not divide the rest."""
        run, _ = planted_run
        result = evaluated(run, [8], **options)
        [record] = result["scores"]["pope"]
        assert record["stride"] == stride
        sizes = [21, 40, 8, 33, 16, 27, 12]
        positions = [p for n in sizes for p in [*range(8)] + [*range(8 - stride, 8)] * ((n - 8) // stride)]
        assert record["windows"] == sum(1 + (n - 8) // stride for n in sizes)
        assert record["whole"] == planted(positions)
        assert record["second_half"] == planted(p for p in positions if p >= 4)
        # With a stride of at most half the length all past the first half is in the second half of a window.
        deep = result["targets"]["same_tokens_second_half"]
        assert deep == result["targets"]["same_tokens"] - 4 * 7

    def test_documents_shorter_than_a_length_are_not_read_at_it(self, planted_run):
        run, model = planted_run
        evaluated(run, [30])
        assert model.sizes == [(4, 30)]  # 30, 30, 10 and 3 tokens of the two that are longer
        [record] = evaluated(run, [30])["scores"]["pope"]
        assert (record["documents"], record["windows"]) == (2, 2)

    def test_memory_is_that_of_batch_tokens_or_one_window(self, planted_run):
        run, model = planted_run
        evaluated(run, [4, 32], batch_tokens=9)
        assert {size for size in model.sizes if size[1] in (4, 32)} == {(2, 4), (1, 32)}
        assert max(rows * size for rows, size in model.sizes if size <= 9) <= 9

    def test_what_is_not_scored_counts_nowhere(self, tmp_path):
        split = make_split([16, 5], unscored=3)
        plans = plan_lengths(split, {4: 4, 8: 8})
        nats = [np.where(plan.place < 0, np.nan, 1.0 + plan.place) for plan in plans]
        got = summarize_lengths(split, plans, {"x": nats})["scores"]["x"]
        scored = split.flags[:16] & SCORED
        expected = [1.0 + i % 8 for i in range(16) if scored[i]]
        assert got[1]["whole"] == {"tokens": 11, "nats_per_token": pytest.approx(np.mean(expected))}
        # The second document holds one window of 4, its place 2 not scored; its last token is in a cut window.
        assert got[0]["whole"]["tokens"] == 11 + 3
        nats[0][0] = np.nan
        with pytest.raises(ValueError, match="a scored token has no NLL"):
            summarize_lengths(split, plans, {"x": nats})


@pytest.mark.parametrize("end", [1, 2, 3, 16, 17, 255, 256, 20480, 2**17])
def test_edges_part_the_positions(end):
    edges = position_edges(end)
    assert (edges[0], edges[-1]) == (0, end)
    assert edges == sorted(set(edges))
    assert {2**k for k in range(17) if 2**k < end} <= set(edges)
    assert all(high / low <= 1.34 for low, high in pairwise(edges) if low >= 8)


class TestRealModels:
    @pytest.mark.parametrize("position", ["pope", "rope"])
    def test_is_the_nll_of_score_split(self, tmp_path, position):
        run, model, store = make_run(tmp_path, position, unscored=0)
        result = evaluated(run, [8, 16])
        split = store.split("train")
        nats = score_split(model, split, 0, length=8, stride=8)
        kept = [a + i for a, b in pairwise(split.starts) for i in range((b - a) // 8 * 8)]
        assert list(result["scores"]) == [position]
        assert result["scores"][position][0]["whole"]["nats_per_token"] == pytest.approx(
            nats[kept].mean(), rel=1e-6
        )

    @pytest.mark.parametrize("position", ["rope", "pope"])
    def test_yarn_reads_the_same_weights(self, tmp_path, position):
        """Trained at 16: within, it is the model itself; at 32 its factor is 2. A NoPE run is scored as it is."""
        run, model, store = make_run(tmp_path, position, unscored=0)
        result = evaluated(run, [8, 16, 32], yarn=True)
        plain, yarn = result["scores"][position], result["scores"][f"{position}+yarn"]
        assert result["protocol"]["yarn_factors"] == [1, 1, 2]
        assert yarn[:2] == plain[:2]
        assert yarn[2]["whole"] != plain[2]["whole"]
        split = store.split("train")
        nats = score_split(with_yarn(model, 2.0, 16), split, 0, length=32, stride=32)
        own = np.concatenate([nats[21:53], nats[69:101]])  # of documents with 40 and 33 tokens
        assert yarn[2]["whole"] == {"tokens": 64, "nats_per_token": pytest.approx(own.mean(), rel=1e-6)}
        assert yarn[2]["whole"]["tokens"] == plain[2]["whole"]["tokens"]
        other, _, _ = make_run(tmp_path / "other", "nope")
        result = evaluated(other, [8, 32], yarn=True)
        assert list(result["scores"]) == ["nope"]
        assert result["protocol"]["yarn_factors"] is None

    def test_bf16_is_near_and_told(self, tmp_path):
        run, _, _ = make_run(tmp_path, "rope")
        exact, rough = (evaluated(run, [16], precision=p) for p in ("fp32", "bf16"))
        a, b = (r["scores"]["rope"][0]["whole"]["nats_per_token"] for r in (exact, rough))
        assert a != b
        assert a == pytest.approx(b, rel=0.05)
        assert [r["protocol"]["precision"] for r in (exact, rough)] == ["fp32", "bf16"]

    def test_a_file_beside_the_result_and_a_read_of_test(self, tmp_path):
        run, _, store = make_run(tmp_path, "rope")
        calls = []
        result = evaluate_lengths(
            run, [8, 14, 8], device="cpu", yarn=True, progress=lambda *call: calls.append(call)
        )
        assert results(run) == []
        assert [path.name for path in run.glob("lengths*")] == ["lengths-test-8-14-yarn.json"]
        assert json.loads((run / "lengths-test-8-14-yarn.json").read_text()) == result
        [read] = reads(run)
        assert (read["lengths"], read["strides"], read["precision"]) == ([8, 14], [8, 14], "fp32")
        assert (result["split"], result["trained_length"], result["dataset"]) == ("test", 16, "tiny")
        assert (result["content"], result["trained"]["seed"]) == (store.manifest.content, 2)
        assert result.keys() >= {"commit", "versions", "device", "config", "parameters", "fingerprint"}
        assert calls[-1] == ("rope", 14, 39, 39)  # YaRN adds nothing within the training length
        evaluate_lengths(run, [8], split="validation", device="cpu", stride_share=0.5)
        evaluate_lengths(run, [8], split="validation", device="cpu", stride=2)
        assert len(reads(run)) == 1
        assert sorted(path.name for path in run.glob("lengths*")) == [
            "lengths-test-8-14-yarn.json",
            "lengths-validation-8-share0.5.json",
            "lengths-validation-8-stride2.json",
        ]

    @pytest.mark.parametrize(
        ("lengths", "options", "name"),
        [
            ([8, 4, 8], {}, "lengths-train-4-8"),
            ([8], {"precision": "bf16"}, "lengths-train-8-bf16"),
            ([8], {"yarn": True}, "lengths-train-8-yarn"),
            ([16, 8], {"yarn": True, "precision": "bf16", "stride_share": 0.25},
             "lengths-train-8-16-share0.25-bf16-yarn"),
        ],
    )  # fmt: skip
    def test_another_protocol_leaves_the_file_of_the_first(self, tmp_path, lengths, options, name):
        run, _, _ = make_run(tmp_path, "rope")
        first = evaluated(run, [8])
        second = evaluated(run, lengths, **options)
        assert sorted(path.stem for path in run.glob("lengths*")) == sorted(["lengths-train-8", name])
        assert json.loads((run / "lengths-train-8.json").read_text()) == first
        assert json.loads((run / f"{name}.json").read_text()) == second

    def test_yarn_is_in_the_name_only_where_it_is_in_the_file(self, tmp_path):
        run, _, _ = make_run(tmp_path, "nope")
        evaluated(run, [8], yarn=True)
        assert [path.name for path in run.glob("lengths*")] == ["lengths-train-8.json"]

    def test_names_of_many_lengths_stay_short_and_differ(self):
        names = {lengths_file("test", range(first, 2000, 3), yarn=True) for first in (1, 2, 3)}
        assert len(names) == 3
        assert max(map(len, names)) < 50
        assert lengths_file("test", range(3, 2000, 3)).startswith("lengths-test-3-to-1998-")

    def test_interrupted_work_leaves_the_earlier_file(self, tmp_path, monkeypatch):
        run, _, _ = make_run(tmp_path, "rope")
        evaluated(run, [8, 16])
        before = (run / "lengths-train-8-16.json").read_bytes()

        def stop(name, length, done, total):
            if length == 16:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluated(run, [8, 16], progress=stop)
        assert (run / "lengths-train-8-16.json").read_bytes() == before
        assert [path.name for path in run.glob("*lengths*")] == ["lengths-train-8-16.json"]

    def test_a_model_trained_with_yarn_is_scored_with_its_own_factor(self, tmp_path):
        run, model, store = make_run(
            tmp_path, "yarn", model={"width": 16, "layers": 1, "heads": 2, "yarn_factor": 4.0}
        )
        own = Transformer(VOCABULARY, "yarn", replace(model.config, yarn_factor=4.0)).eval()
        own.load_state_dict(model.state_dict())
        nats = score_split(own, store.split("train"), 0, length=40, stride=40)
        result = evaluated(run, [40], yarn=True)
        assert list(result["scores"]) == ["yarn"]
        scored = (store.split("train").flags[21:61] & SCORED).astype(bool)
        assert result["scores"]["yarn"][0]["whole"]["nats_per_token"] == pytest.approx(
            nats[21:61][scored].mean(), rel=1e-6
        )


class TestMemory:
    """No L x L of any kind, whatever the window."""

    @pytest.mark.parametrize("position", ["rope", "yarn", "nope", "pope", "pope-yarn", "alibi"])
    def test_a_window_is_read_without_a_mask(self, position, monkeypatch):
        """SDPA is told of causality by a word; with a mask it would leave its flash kernels."""
        calls, sdpa = [], torch.nn.functional.scaled_dot_product_attention

        def spy(*tensors, attn_mask, is_causal, **options):
            calls.append((attn_mask, is_causal))
            return sdpa(*tensors, attn_mask=attn_mask, is_causal=is_causal, **options)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        Transformer(VOCABULARY, position, ModelConfig(width=16, layers=1, heads=2))(torch.zeros(1, 40).long())
        assert calls == [(None, True)]

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("position", ["rope", "yarn", "nope", "pope", "pope-yarn", "alibi"])
    @torch.inference_mode()
    def test_on_a_gpu(self, position, dtype):
        """20,480 positions of 8 heads would be 3.4 GB even as one byte a pair."""
        model = Transformer(VOCABULARY, position, ModelConfig(width=384, layers=1, heads=8)).cuda().eval()
        ids = torch.zeros(1, 20480, dtype=torch.long, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            model(ids)
        assert torch.cuda.max_memory_allocated() < 1 << 30


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lengths": []}, "no length is given"),
            ({"lengths": [8, 41]}, "no document of the split holds a window of 41 tokens, the longest has 40"),
            ({"lengths": [0, 8]}, "expected lengths of at least 1"),
            (
                {"lengths": [8, 16], "stride": 9},
                "strides from 1 to the length, got a stride of 9 for windows of 8",
            ),
            ({"lengths": [8], "stride": 0}, "got a stride of 0"),
            (
                {"lengths": [8], "stride_share": 1.5},
                "share of a length must be in .0, 1., it is 1.5",
            ),
            ({"lengths": [8], "stride_share": math.nan}, "share of a length"),
            ({"lengths": [8], "precision": "fp16"}, "precision must be fp32 or bf16, it is 'fp16'"),
        ],
        ids=str,
    )
    def test_what_makes_no_sense(self, tmp_path, options, message):
        run, _, _ = make_run(tmp_path)
        with pytest.raises(SeqpopeError, match=message):
            evaluated(run, **options)
        assert list(run.glob("lengths*")) == []
        assert reads(run) == []


class TestCommand:
    def test_every_run_of_an_experiment(self, tmp_path, capsys):
        """YaRN is for those among them that it extends; a line for each encoding and length."""
        rope, _, store = make_run(tmp_path, "rope")
        nope = rope.with_name("nope-seed2")
        other, _, _ = make_run(tmp_path / "other", "nope")
        other.rename(nope)
        words = ["--lengths", "8,32", "--yarn", "--split", "train", "--stride-share", "0.5", "--device", "cpu"]
        data = ["--data-folder", str(store.folder.parent)]
        assert cli.main(["evaluate", str(rope.parent), *words, *data]) == 0
        lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        assert lines == [[e, n] for e in ("nope", "rope", "rope+yarn") for n in ("8", "32")]
        for run, name in ((rope, "lengths-train-8-32-share0.5-yarn"), (nope, "lengths-train-8-32-share0.5")):
            result = json.loads((run / f"{name}.json").read_text())
            assert result["protocol"]["strides"] == [4, 16]
        out = tmp_path / "out"
        words = ["--lengths", "lengths-train", "--out", str(out)]
        assert cli.main(["compare", str(rope.parent), *words]) == 0
        said = capsys.readouterr().out
        assert "| RoPE with YaRN | 1 " in said
        assert "| no positions   | 1 " in said
        assert (out / "lengths.png").is_file()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--lengths", "8", "--length", "8"], "--lengths takes the place of --length"),
            (["--lengths", "8", "--stride", "4", "--stride-share", "0.5"], "goes with one of --stride and"),
            (["--lengths", "8,many"], "--lengths takes whole numbers such as 2048,4096, it is '8,many'"),
            (["--lengths", "8", "--yarn"], "--yarn extends RoPE and PoPE, and these runs are of nope"),
            (["--yarn"], "go with --lengths"),
            (["--precision", "bf16"], "go with --lengths"),
        ],
        ids=str,
    )
    def test_told_in_words(self, tmp_path, capsys, words, message):
        run, _, _ = make_run(tmp_path, "nope")
        assert cli.main(["evaluate", str(run), "--split", "train", *words]) == 1
        assert message in capsys.readouterr().err
        assert list(run.glob("*train*")) == []
