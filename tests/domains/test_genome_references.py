from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from genomes import make_store

from seqpope.checkpoint import BEST, CheckpointInfo, save_checkpoint
from seqpope.domains.genome import references
from seqpope.domains.genome.bases import letter_codes, reverse_complement
from seqpope.domains.genome.markov import Markov, count_bases
from seqpope.domains.genome.references import measure
from seqpope.domains.genome.tokenizer import SixMerTokenizer
from seqpope.evaluate import evaluate_run
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.report import compare

TRAINING, HELD_OUT = 120_000, 60_000


def drawn(bases, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), bases, p=[0.35, 0.15, 0.15, 0.35]))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The test split holds a stretch of the training sequence's other strand, in lower case, and some N."""
    text = list(drawn(TRAINING + 2 * HELD_OUT, 0))
    start = TRAINING + HELD_OUT
    text[start + 20_000 : start + 20_900] = reverse_complement("".join(text[1000:1900])).lower()
    text[start + 30_000 : start + 30_100] = "N" * 100
    sequences = {"one": "".join(text), "short": drawn(700, 1), "held": drawn(6_001, 2)}
    intervals = {
        "train": [("one", 0, TRAINING), ("short", 0, 700)],
        "validation": [("one", TRAINING, start)],
        "test": [("one", start, start + HELD_OUT), ("held", 0, 6_001)],
    }
    return make_store(tmp_path_factory.mktemp("genome") / "data" / "genome", sequences, intervals)


@pytest.fixture(scope="module")
def measured(store):
    return measure(store, "test")


def decoded(store, name):
    """Bases of a split's tokens, a document each."""
    split, tokenizer = store.split(name), SixMerTokenizer()
    texts = [tokenizer.decode(split.document(d)) for d in range(len(split))]
    return [letter_codes(text, "NACGT") for text in texts]


def test_markov_models_are_scored_on_the_very_bases_of_the_tokens(store, measured):
    training = [store.fetch("one", 0, TRAINING), store.fetch("short", 0, 700)]
    assert 4**10 <= 16 * (TRAINING + 700) < 4**11  # so the highest order is lower than 12
    model = Markov(count_bases(training, 10), decoded(store, "validation"))
    assert list(measured.nats) == [f"Markov, order {order}" for order in (2, 6, 10)]
    by_base = model.nats(decoded(store, "test"), [2, 6, 10])
    assert by_base.shape[1] == 6 * len(store.split("test").tokens)
    for name, row in zip(measured.nats, by_base, strict=True):
        np.testing.assert_allclose(measured.nats[name], row.reshape(-1, 6).sum(1), rtol=1e-5)


def test_what_was_copied_is_seen_and_the_rest_is_not(store, measured):
    soft = (store.split("test").flags & 2).astype(bool)
    seen = measured.strata["seen in training"]
    assert soft.sum() == 150
    assert (seen == soft).all()
    assert (measured.strata["not seen in training"] == ~seen).all()
    assert (measured.strata["unique, not seen in training"] == ~soft & ~seen).all()
    # The high order has read the copy's words once, on the other strand.
    deep = measured.nats["Markov, order 10"]
    assert deep[seen].mean() < deep[~seen].mean() - 0.1
    # 900 - 31 of the words in the three known stretches
    words = 30_000 + 29_900 + 6_001 - 3 * 31
    assert f"Of the {words:,} 32-mers of the split {100 * 869 / words:.1f}% occur" in " ".join(measured.text)


def test_words_are_found_across_documents_borders(tmp_path):
    """A copy of 40 bases, of which neither document holds 32."""
    whole = drawn(30_000, 3)
    text = drawn(12_000 - 20, 4) + whole[:40] + drawn(5_000, 8)
    intervals = {"train": [("a", 0, 30_000)], "validation": [("b", 0, 3_000)], "test": [("c", 0, len(text))]}
    made = make_store(tmp_path / "data" / "x", {"a": whole, "b": drawn(3_000, 6), "c": text}, intervals)
    seen = measure(made, "test").strata["seen in training"]
    assert len(made.split("test")) == 2
    assert np.flatnonzero(seen).tolist() == [*range(1997, 2003)]  # six six-mers and four bases at either end


def test_without_soft_masking_there_is_no_stratum_of_the_unique(tmp_path):
    text = drawn(9_000, 7)
    intervals = {"train": [("a", 0, 3000)], "validation": [("a", 3000, 6000)], "test": [("a", 6000, 9000)]}
    made = make_store(tmp_path / "data" / "x", {"a": text}, intervals)
    assert list(measure(made, "test").strata) == ["seen in training", "not seen in training"]


def test_what_is_outside_a_bed_file_is_a_stratum_too(tmp_path):
    """Of six-mers from 6000 on, that at 6006 has half of its bases inside: not in it."""
    text = drawn(9_000, 7)
    intervals = {"train": [("a", 0, 3000)], "validation": [("a", 3000, 6000)], "test": [("a", 6000, 9000)]}
    inside = {"repeats": [("a", 5000, 6009)], "none": []}
    made = make_store(tmp_path / "data" / "x", {"a": text}, intervals, strata=inside)
    found = measure(made, "test").strata
    assert list(found) == ["not repeats", "not none", "seen in training", "not seen in training"]
    assert np.flatnonzero(~found["not repeats"]).tolist() == [0]
    assert found["not none"].all()


def test_the_training_split_has_none(store):
    assert measure(store, "train") is None


def test_it_is_measured_once(store, measured, monkeypatch):
    calls = []
    real = references.measure_anew
    monkeypatch.setattr(references, "measure_anew", lambda *a: calls.append(a) or real(*a))
    again = measure(store, "test")
    assert not calls
    assert again.text == measured.text
    for kind in ("nats", "strata"):
        one, other = getattr(measured, kind), getattr(again, kind)
        assert list(one) == list(other)
        assert all((one[name] == other[name]).all() for name in one)
    kept = store.folder / "references-test.npz"
    whole = kept.read_bytes()
    for damaged in (whole[:1000], b"", b"no archive"):
        kept.write_bytes(damaged)
        measure(store, "test")
    assert len(calls) == 3
    monkeypatch.setattr(store.manifest, "content", "another")
    measure(store, "test")
    assert len(calls) == 4
    kept.write_bytes(whole)


def test_a_store_that_cannot_be_written_to_is_measured_all_the_same(store, measured, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(references, "write_bytes", refused)
    monkeypatch.setattr(references, "locked", refused)
    monkeypatch.setattr(references, "_read", lambda *_: None)
    monkeypatch.setattr(references, "measure_anew", lambda *_: measured)
    assert measure(store, "test") is measured


def make_run(folder, store, seed=0):
    manifest = store.manifest
    torch.manual_seed(seed)
    shape = {"width": 8, "layers": 1, "heads": 1}
    model = Transformer(manifest.vocabulary_size, "pope", ModelConfig(**shape)).eval()
    info = CheckpointInfo(
        domain="genome",
        dataset="genome",
        position="pope",
        vocabulary_size=manifest.vocabulary_size,
        padding_id=manifest.padding_id,
        length=100,
        model=shape,
        tokenizer=manifest.tokenizer,
        fingerprint=manifest.fingerprint,
        trained={"seed": seed, "step": 1, "data": manifest.content},
    )
    run = folder / f"pope-seed{seed}"
    save_checkpoint(run / BEST, model, info)
    config = {"data_folder": str(store.folder.parent), "eval_length": 100, "eval_stride": 50, "seed": seed}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "versions.json").write_text("{}")
    return run


def test_the_report_tells_bits_a_base_strata_and_whether_markov_models_are_beaten(store, measured, tmp_path):
    run = make_run(tmp_path, store)
    result = evaluate_run(run, device="cpu")
    tokens = result["tokens_scored"]
    assert result["units"]["base"]["count"] == 6 * tokens
    assert result["protocol"]["least_context_in_bases"] == 300
    deep = result["references"]["baselines"]["Markov, order 10"]
    values = measured.nats["Markov, order 10"].astype(np.float64)
    assert deep["nats_per_token"] == pytest.approx(values.mean())
    assert deep["documents"] == pytest.approx([values[a:b].sum() for a, b in pairwise(store.split("test").starts)])
    seen = measured.strata["seen in training"]
    assert deep["strata"]["seen in training"]["nats_per_token"] == pytest.approx(values[seen].mean())
    assert result["baselines"]["Markov, order 10"] == deep["nats_per_token"]
    assert json.loads((run / "result.json").read_text())["references"] == result["references"]

    text = compare([tmp_path], tmp_path / "report")["markdown"]
    bits = result["nats_per_token"] / 6 / np.log(2)
    assert "bits/base" in text
    assert "nats/base" not in text
    assert f"| {bits:.3f} " in text
    assert f"{tokens} tokens ({6 * tokens:,} bases) of 7 pieces" in text
    assert (
        "in windows of 100 (600 bases) with stride 50 (300 bases). Past a piece's first window each token has at "
        in text
    )
    section = text[text.index("## By stratum") : text.index("## Paired")]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    assert rows[:2] == ["stratum", "-" * len("unique, not seen in training")]
    assert rows[2:] == [
        "all",
        "soft-masked",
        "unique",
        "seen in training",
        "not seen in training",
        "unique, not seen in training",
    ]
    # An untrained model loses against all of them, and the report says so.
    assert "**pope does not beat Markov, order" in text
    assert "(95% bootstrap over 7 pieces" in text
    kept = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "references" not in kept["results"][0]
    assert kept["references"][0]["stratum"] == "all"
    assert kept["references"][0]["difference"]["low"] > 0
