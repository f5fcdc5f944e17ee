from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from data_prep.genome import DOCUMENT, FEWEST, prepare
from seqpope.checkpoint import BEST, CheckpointInfo, save_checkpoint
from seqpope.data.shards import TokenStore
from seqpope.domains.genome import references
from seqpope.domains.genome.bases import letter_codes, reverse_complement
from seqpope.domains.genome.markov import Markov, count_bases
from seqpope.domains.genome.references import measure
from seqpope.domains.genome.tokenizer import K, SixMerTokenizer
from seqpope.evaluate import evaluate_run
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.report import compare

SIZE = 2 * FEWEST * DOCUMENT * K
SPLIT_AT = 22 * DOCUMENT * K  # of 24 documents the 23rd is left out, the last is the test


def codes_of(text):
    return letter_codes(text, "NACGT")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A store whose test document holds a stretch of the training sequence's other strand, in lower case."""
    random = np.random.default_rng(0)
    letters = list("".join(random.choice(list("ACGT"), SIZE, p=[0.35, 0.15, 0.15, 0.35])))
    start = SIZE - 6000
    letters[start : start + 900] = reverse_complement("".join(letters[1000:1900])).lower()
    folder = tmp_path_factory.mktemp("genome") / "data" / "genome"
    fasta = folder.parent.parent / "a.fa"
    fasta.write_text(">one\n" + "".join(letters) + "\n")
    prepare(folder, source=fasta, progress=lambda text: None)
    return folder, "".join(letters)


def decoded(store, name):
    split, tokenizer = store.split(name), SixMerTokenizer()
    return [codes_of(tokenizer.decode(split.document(d))) for d in range(len(split))]


@pytest.fixture(scope="module")
def measured(prepared):
    return measure(TokenStore(prepared[0]), "test")


def test_markov_models_are_scored_on_the_very_bases_of_the_tokens(prepared, measured):
    store = TokenStore(prepared[0])
    model = Markov(count_bases(decoded(store, "train"), 9), decoded(store, "validation"))
    test = decoded(store, "test")
    assert 4**10 <= 16 * sum(map(len, decoded(store, "train"))) < 4**12  # so the highest order is lower than 12
    assert list(measured.nats) == ["Markov, order 2", "Markov, order 6", "Markov, order 10"]
    for name, row in zip(("Markov, order 2", "Markov, order 6"), model.nats(test, [2, 6]), strict=True):
        np.testing.assert_allclose(measured.nats[name], row.reshape(-1, K).sum(1), rtol=1e-5)
        assert len(measured.nats[name]) == len(store.split("test").tokens)


def test_what_was_copied_is_seen_and_the_rest_is_not(prepared, measured):
    store = TokenStore(prepared[0])
    soft = (store.split("test").flags & 2).astype(bool)
    seen = measured.strata["seen in training"]
    assert soft.sum() == 150
    assert (seen == soft).mean() > 0.998  # words of 32 over the borders by chance
    assert (seen != measured.strata["not seen in training"]).all()
    assert (measured.strata["unique"] == ~soft).all()
    assert (measured.strata["unique, not seen in training"] == ~soft & ~seen).all()
    # The high order has read the copy's words once, on the other strand.
    deep = measured.nats["Markov, order 10"]
    assert deep[seen].mean() < deep[~seen].mean() - 0.1
    assert "of the split" in " ".join(measured.text)


def test_the_training_split_has_none(prepared):
    assert measure(TokenStore(prepared[0]), "train") is None


def test_it_is_measured_once(prepared, measured, monkeypatch):
    calls = []
    real = references._measure
    monkeypatch.setattr(references, "_measure", lambda *a: calls.append(a) or real(*a))
    store = TokenStore(prepared[0])
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
    store.manifest.content = "another"
    measure(store, "test")
    assert len(calls) == 4
    kept.write_bytes(whole)


def test_a_store_that_cannot_be_written_to_is_measured_all_the_same(prepared, measured, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(references, "write_bytes", refused)
    monkeypatch.setattr(references, "locked", refused)
    monkeypatch.setattr(references, "_read", lambda *_: None)
    monkeypatch.setattr(references, "_measure", lambda *_: measured)
    assert measure(TokenStore(prepared[0]), "test") is measured


def make_run(folder, data, seed=0):
    store = TokenStore(data)
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
    config = {"data_folder": str(data.parent), "eval_length": 100, "eval_stride": 50, "seed": seed}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "versions.json").write_text("{}")
    return run


def test_the_report_tells_bits_a_base_strata_and_whether_markov_models_are_beaten(prepared, measured, tmp_path):
    run = make_run(tmp_path, prepared[0])
    result = evaluate_run(run, device="cpu")
    tokens = result["tokens_scored"]
    assert result["units"]["base"]["count"] == 6 * tokens
    assert result["protocol"]["least_context_in_bases"] == 300
    deep = result["references"]["baselines"]["Markov, order 10"]
    values = measured.nats["Markov, order 10"].astype(np.float64)
    assert deep["nats_per_token"] == pytest.approx(values.mean())
    assert deep["documents"] == pytest.approx([values.sum()])
    seen = measured.strata["seen in training"]
    assert deep["strata"]["seen in training"]["nats_per_token"] == pytest.approx(values[seen].mean())
    assert result["baselines"]["Markov, order 10"] == deep["nats_per_token"]
    assert json.loads((run / "result.json").read_text())["references"] == result["references"]

    text = compare([tmp_path], tmp_path / "report")["markdown"]
    bits = result["nats_per_token"] / 6 / np.log(2)
    assert "bits/base" in text
    assert "nats/base" not in text
    assert f"| {bits:.3f} " in text
    assert f"They are {6 * tokens:,} bases" in text
    assert "at least 50 tokens (300 bases) are read" in text
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
    assert "(95% bootstrap over 1 pieces" in text
    kept = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "references" not in kept["results"][0]
    assert kept["references"][0]["stratum"] == "all"
    assert kept["references"][0]["difference"]["low"] > 0
