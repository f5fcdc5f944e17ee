"""A genome from FASTA to a report: trained on windows of the store, resumed exactly, scored on every token."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from genomes import make_store as make_genome
from genomes import random_dna
from stores import make_store

from data_prep.genome import prepare
from seqpope.config import DataConfig, OptimizerConfig, TrainConfig
from seqpope.data.shards import StoreError, TokenStore, check_place
from seqpope.domains.base import DATASETS, open_store
from seqpope.domains.genome.store import GenomeStore
from seqpope.evaluate import evaluate_lengths
from seqpope.experiment import Interrupted, RunKeeper, train
from seqpope.model.config import ModelConfig
from seqpope.nll import mean_nats, token_nats

pytestmark = pytest.mark.usefixtures("unrendered")


@pytest.fixture(scope="module", params=["genome", "genome-bases"])
def data(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.fa").write_text(f">one\n{random_dna(30_000)}NNN{random_dna(9_000, 1)}\n")
    prepare(folder / request.param, source=folder / "a.fa", dataset=request.param, progress=lambda _: None)
    return folder / request.param


def config_of(data, out, **changes):
    values = {
        "domain": "genome",
        "dataset": data.name,
        "baseline": "none",
        "device": "cpu",
        "model": ModelConfig(width=16, layers=1, heads=2, dropout=0.1, attention_dropout=0.0),
        "data": DataConfig(length=32, batch_size=2, soft_mask_weight=0.5),
        "optimizer": OptimizerConfig(steps=6, learning_rate=1e-2, min_learning_rate=1e-3, warmup_steps=2),
        "eval_every": 3,
        "eval_length": 256,
        "eval_stride": 128,
        "data_folder": data.parent,
        "out": out,
        "name": "x",
    }
    return TrainConfig(**{**values, **changes})


def test_a_store_may_be_made_again_in_its_place(data, tmp_path):
    """With all that preparing, evaluating and measuring baselines left in it."""
    copy = tmp_path / data.name
    shutil.copytree(data, copy)
    (copy / "references-test.npz").touch()
    (copy / ".references-test.lock").touch()
    check_place(copy, data.name)
    with pytest.raises(StoreError, match=f"is a store of {data.name}"):
        check_place(copy, "jsb")
    (copy / "notes.txt").touch()
    with pytest.raises(StoreError, match=r"holds notes\.txt, which is no part of a store"):
        check_place(copy, data.name)


def test_read_in_windows_longer_than_documents_usually_are(data, tmp_path):
    run = train(config_of(data, tmp_path), say=lambda _: None) / "pope-seed0"
    store = GenomeStore(data)
    longest = 2 * store.document // store.reading.k
    result = evaluate_lengths(run, [32, longest], split="train", device="cpu")
    assert result["targets"]["same_tokens"] == longest
    (name,) = result["targets"]["same_documents"]
    start, end = map(int, name.removeprefix("one:").split("-"))
    assert end - start + 1 == 2 * store.document


def test_trained_resumed_and_scored(data, tmp_path, monkeypatch):
    whole = train(config_of(data, tmp_path / "whole"), say=lambda _: None)
    result = json.loads((whole / "pope-seed0" / "result.json").read_text())
    store = GenomeStore(data)
    told = store.manifest.splits["test"]
    assert result["tokens_scored"] == told["tokens"]
    assert result["units"]["base"]["count"] == told["bases"]
    counted = {name: value["tokens"] for name, value in result["strata"].items()}
    assert counted.items() >= told["strata"].items()
    assert counted["seen in training"] + counted["not seen in training"] == told["tokens"]
    assert result["content"] == store.manifest.content
    assert [document["name"] for document in result["documents"]] == store.split("test").names
    # Stopped after four steps and gone on with: the same weights.
    end = RunKeeper.on_train_batch_end

    def stop(self, trainer, *rest):
        end(self, trainer, *rest)
        self.stop = trainer.global_step == 4

    config = config_of(data, tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(RunKeeper, "on_train_batch_end", stop)
        with pytest.raises(Interrupted):
            train(config, say=lambda _: None)
    parts = train(config, resume=tmp_path / "parts" / "x", say=lambda _: None)
    states = [
        torch.load(folder / "pope-seed0" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (whole, parts)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_store_is_opened_as_what_it_is(tmp_path):
    genome = make_genome(tmp_path / "g", {"a": random_dna(500)}, {"train": [("a", 0, 500)]})
    assert isinstance(open_store(genome.folder), GenomeStore)
    assert isinstance(open_store(make_store(tmp_path).folder), TokenStore)
    with pytest.raises(StoreError, match=r"run `seqpope prepare none --data-folder .*` first"):
        open_store(tmp_path / "none")


def test_every_genome_has_a_tokenizer_that_stores_can_read():
    from seqpope.domains.genome.reading import reading_of

    for dataset in DATASETS.values():
        if dataset.domain == "genome":
            assert reading_of(dataset.load_tokenizer().fingerprint).k == (1 if "bases" in dataset.name else 6)


def test_weighted_losses():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    scored = torch.rand(2, 5) > 0.4
    nats = token_nats(logits, targets)
    assert torch.equal(mean_nats(logits, targets, scored), (nats * scored).sum() / scored.sum())
    weights = torch.rand(2, 5) * 0.01
    expected = (nats * weights).sum() / weights.sum()
    assert torch.allclose(mean_nats(logits, targets, weights), expected)
    assert mean_nats(logits, targets, torch.zeros(2, 5)) == 0
    assert mean_nats(logits, targets, torch.zeros(2, 5, dtype=torch.bool)) == 0
