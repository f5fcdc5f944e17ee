"""Seeds trained side by side: each is what it would be alone."""

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from stores import PADDING, make_store

from data_prep.indexing import prepare
from seqpope.checkpoint import load_checkpoint
from seqpope.config import DataConfig, OptimizerConfig, TrainConfig
from seqpope.domains.base import open_store
from seqpope.errors import SeqpopeError
from seqpope.experiment import Interrupted, train
from seqpope.figures import read_curve
from seqpope.files import held
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.nll import validate
from seqpope.stack import StackedTransformer
from seqpope.training import parameter_groups

pytestmark = pytest.mark.usefixtures("unrendered")

MODEL = ModelConfig(width=16, layers=2, heads=2, delta_init="uniform")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(folder / "indexing", counts={"train": 60, "validation": 9, "test": 8}, progress=lambda _: None)
    return folder


def make_config(data, out, **changes) -> TrainConfig:
    config = TrainConfig(
        domain="indexing",
        dataset="indexing",
        seeds=3,
        seed=5,
        side_by_side=True,
        device="cpu",
        model=MODEL,
        data=DataConfig(length=51, batch_size=4),
        # A rate and a norm at which clipping decides and seeds differ.
        optimizer=OptimizerConfig(steps=6, warmup_steps=2, learning_rate=0.03, gradient_clip=0.2),
        eval_every=3,
        eval_length=51,
        eval_stride=51,
        data_folder=data,
        out=out,
        name="x",
    )
    return replace(config, **changes)


def curve(run, column):
    return [
        float(row[column])
        for row in csv.DictReader(open(run / "logs" / "version_0" / "metrics.csv"))
        if row[column]
    ]


def models(position, count=3):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(Transformer(30, position, MODEL))
        for parameter in made[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # norms too
    return made


@pytest.mark.parametrize("position", ["pope", "rope", "alibi", "nope", "pope-yarn"])
class TestModel:
    def test_logits_are_those_of_each_model(self, position):
        alone = models(position)
        stacked = StackedTransformer(alone)
        ids = torch.randint(30, (6, 9), generator=torch.Generator().manual_seed(0))
        expected = torch.cat([model(ids[2 * n : 2 * n + 2]) for n, model in enumerate(alone)])
        torch.testing.assert_close(stacked(ids), expected, rtol=2e-5, atol=2e-5)

    def test_gradients_are_those_of_each_model(self, position):
        alone = models(position)
        stacked = StackedTransformer(alone)
        ids = torch.randint(30, (6, 9), generator=torch.Generator().manual_seed(0))
        weight = torch.randn(6, 9, 30, generator=torch.Generator().manual_seed(1))
        (stacked(ids) * weight).sum().backward()
        stacked.clip_gradients(0.1)
        for n, model in enumerate(alone):
            (model(ids[2 * n : 2 * n + 2]) * weight[2 * n : 2 * n + 2]).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            grads = {name: p.grad for name, p in model.named_parameters()}
            for name, p in stacked.named_parameters():
                own = grads[name]
                own = own.T if name in stacked.turned else own
                torch.testing.assert_close(p.grad[n], own, rtol=1e-4, atol=1e-6)

    def test_what_is_not_learned_stays_so(self, position):
        config = replace(MODEL, delta_learned=False)
        alone = [Transformer(30, position, config) for _ in range(2)]
        stacked = StackedTransformer(alone)
        for ours, theirs in ((stacked.named_parameters(), alone[0].named_parameters()),
                             (stacked.named_buffers(), alone[0].named_buffers())):  # fmt: skip
            assert [name for name, _ in ours] == [name for name, _ in theirs]
        ids = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(0))
        expected = torch.cat([model(ids[2 * n : 2 * n + 2]) for n, model in enumerate(alone)])
        torch.testing.assert_close(stacked(ids), expected, rtol=2e-5, atol=2e-5)

    def test_taken_out_again(self, position):
        alone = models(position)
        for n, model in enumerate(alone):
            copy = StackedTransformer(alone).take_out(n, Transformer(30, position, MODEL))
            for name, parameter in copy.named_parameters():
                assert torch.equal(parameter, dict(model.named_parameters())[name])

    @pytest.mark.parametrize("settings", [OptimizerConfig(), OptimizerConfig(delta_rate=3.0, delta_decay=0.2)])
    def test_the_same_parameters_decay(self, position, settings):
        alone = models(position)
        stacked = StackedTransformer(alone)
        sizes = [
            [sum(p.numel() for p in group["params"]) for group in groups]
            for groups in (
                parameter_groups(alone[0], settings),
                parameter_groups(stacked, settings, models=True),
            )
        ]
        assert sizes[1] == [3 * size for size in sizes[0]]


@pytest.mark.parametrize(
    ("average", "delta", "baseline"),
    [
        (0.0, {}, "none"),
        (0.0, {"name": "muon"}, "none"),
        (0.9, {"delta_rate": 4.0, "delta_decay": 0.5}, "rope"),
        *(
            pytest.param(0.0, delta, "rope", marks=pytest.mark.slow, id=f"both {delta}")
            for delta in ({}, {"delta_learned": False})
        ),
    ],
)
def test_runs_are_those_of_seeds_trained_alone(data, tmp_path, average, delta, baseline):
    config = make_config(data, tmp_path / "side", baseline=baseline)
    config.optimizer.average_decay = average
    for name, value in delta.items():
        setattr(config.model if name == "delta_learned" else config.optimizer, name, value)
    side = train(config, say=lambda _: None)
    alone = train(replace(config, side_by_side=False, out=tmp_path / "alone"), say=lambda _: None)
    told = []
    close = 2e-3 if config.optimizer.name == "muon" else 2e-4  # which orthogonalises in bf16
    positions = ["pope"] if baseline == "none" else ["pope", "rope"]
    for position in positions:
        for seed in (5, 6, 7):
            pair = [folder / f"{position}-seed{seed}" for folder in (side, alone)]
            for column in ("train_nats_per_token", "validation_nats_per_token", "learning_rate"):
                values = [curve(run, column) for run in pair]
                assert len(values[0]) == len(values[1]) > 0
                np.testing.assert_allclose(*values, rtol=close)
            results = [json.loads((run / "result.json").read_text()) for run in pair]
            assert results[0]["nats_per_token"] == pytest.approx(results[1]["nats_per_token"], rel=close)
            assert results[0]["trained"]["step"] == results[1]["trained"]["step"]
            assert results[0]["trained"]["side_by_side"] == 3
            told.append(results[0]["nats_per_token"])
    assert len({round(nats, 4) for nats in told}) == 3 * len(positions)
    assert not list(side.glob("stack-*"))
    assert "accuracy, %" in (side / "report.md").read_text()
    weights = [load_checkpoint(folder / f"{positions[-1]}-seed6")[0].embedding.weight for folder in (side, alone)]
    if config.optimizer.name == "adamw":
        torch.testing.assert_close(*weights, rtol=1e-2, atol=close / 2)
    else:  # which rounds; and of AdamW's first steps the sign alone counts, of gradients near 0 as well
        assert (weights[0] - weights[1]).norm() < 0.03 * weights[1].norm()


@pytest.mark.parametrize("side_by_side", [True, False])
def test_the_accuracy_that_is_logged_is_that_of_the_weights(tmp_path, side_by_side):
    split = make_store(tmp_path).split("validation")
    config = make_config(tmp_path / "data", tmp_path / "out", baseline="none", side_by_side=side_by_side)
    config = replace(config, domain="music", dataset="tiny", eval_length=16, eval_stride=8)
    config.data = DataConfig(length=16, batch_size=2)
    folder = train(config, say=lambda _: None)
    logged = []
    for seed in (5, 6, 7):
        run = folder / f"pope-seed{seed}"
        step = json.loads((run / "result.json").read_text())["trained"]["step"]
        found = validate(load_checkpoint(run)[0].eval(), split, PADDING, length=16, stride=8)
        logged.append(dict(read_curve(run)["validation_accuracy"])[step])
        assert logged[-1] == pytest.approx(found.accuracy)
    assert len({0.0, *logged}) == 4


@pytest.mark.parametrize(
    "optimizer", [{}, {"name": "muon", "delta_rate": 3.0, "delta_decay": 0.2, "average_decay": 0.9}]
)
def test_resumed_runs_follow_the_uninterrupted_ones(data, tmp_path, monkeypatch, optimizer):
    config = make_config(data, tmp_path / "whole", model=replace(MODEL, dropout=0.2), baseline="none")
    config.optimizer = replace(config.optimizer, **optimizer)
    whole = train(config, say=lambda _: None)
    from seqpope import stack

    plain = stack.StackTraining.update

    def stopped(self, losses):
        plain(self, losses)
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stack.StackTraining, "update", stopped)
    config = replace(config, out=tmp_path / "parts")
    with pytest.raises(Interrupted, match="stopped at step 4"):
        train(config, say=lambda _: None)
    monkeypatch.setattr(stack.StackTraining, "update", plain)
    folder = tmp_path / "parts" / "x"
    assert (folder / "stack-pope.ckpt").is_file()
    with pytest.raises(SeqpopeError, match=r"is of the seeds \[5, 6, 7\], these are \[5, 6\]"):
        train(replace(config, seeds=2), resume=folder, say=lambda _: None)
    train(config, resume=folder, say=lambda _: None)
    for seed in (5, 6, 7):
        first, second = (load_checkpoint(f / f"pope-seed{seed}")[0].state_dict() for f in (whole, folder))
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        a, b = (json.loads((f / f"pope-seed{seed}" / "result.json").read_text()) for f in (whole, folder))
        assert a["nats_per_token"] == b["nats_per_token"]


def test_the_last_block_works_where_the_target_is(data, tmp_path):
    """In a stack and alone: of 51 positions a row one."""
    from seqpope import stack
    from seqpope.training import SequenceModule

    config = make_config(data, tmp_path, baseline="none")
    store = open_store(data / "indexing")
    training = stack.StackTraining(config, store, tmp_path, "cpu")
    batch = next(iter(training.batches()))
    alone = SequenceModule(
        Transformer(store.manifest.vocabulary_size, "pope", MODEL),
        config.optimizer,
        seed=0,
        padding_id=0,
        validation=store.split("validation"),
        eval_length=51,
        eval_stride=51,
        one_target=True,
    )
    shapes = []
    for model in (training.model, alone.model):
        for part in (model.blocks[0], model.blocks[-1]):
            for layer in (part.attention.out, part.mlp_in):
                layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(x[0].shape[:2])))
    training.losses(*batch)
    alone.training_step(type(batch)(*(x[:4] for x in batch)), 0)
    assert shapes == [(12, 51)] * 2 + [(12, 1)] * 2 + [(4, 51)] * 2 + [(4, 1)] * 2


def test_a_run_alone_is_told_that_there_is_one_target(data, tmp_path, monkeypatch):
    import seqpope.training

    told, plain = [], seqpope.training.batch_nats

    def record(*arguments, **keywords):
        told.append(keywords["one_target"])
        return plain(*arguments, **keywords)

    monkeypatch.setattr(seqpope.training, "batch_nats", record)
    train(make_config(data, tmp_path, baseline="none", seeds=1, side_by_side=False), say=lambda _: None)
    assert told == [True] * 6


def test_a_seed_that_diverges_leaves_the_others_alone(data, tmp_path, monkeypatch):
    from seqpope import stack

    config = make_config(data, tmp_path / "well", baseline="none")
    well = train(config, say=lambda _: None)
    plain = stack.StackTraining.__init__

    def spoilt(self, *args):
        plain(self, *args)
        with torch.no_grad():
            self.model.norm.weight[1] = float("nan")

    monkeypatch.setattr(stack.StackTraining, "__init__", spoilt)
    with pytest.raises(SeqpopeError, match=r"no validation of pope was finite under the seeds \[6\]"):
        train(replace(config, out=tmp_path / "ill"), say=lambda _: None)
    with pytest.raises(SeqpopeError, match=r"no validation of pope was finite under the seeds \[6\]"):
        train(config, resume=tmp_path / "ill" / "x", say=lambda _: None)  # all is done, and this is still so
    for seed in (5, 7):
        a, b = (load_checkpoint(tmp_path / f / "x" / f"pope-seed{seed}")[0] for f in ("well", "ill"))
        torch.testing.assert_close(a.embedding.weight, b.embedding.weight, rtol=0, atol=0)
    assert well.is_dir()


def test_a_damaged_state_is_told(data, tmp_path):
    config = make_config(data, tmp_path, baseline="none")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "stack-pope.ckpt").write_bytes(b"no state")
    with pytest.raises(SeqpopeError, match="delete it to train these runs from the start"):
        train(config, resume=tmp_path / "x", say=lambda _: None)
    state = {"seeds": [5, 6, 7], "model": {"strange": torch.zeros(1)}}
    torch.save(state, tmp_path / "x" / "stack-pope.ckpt")
    with pytest.raises(SeqpopeError, match=r"is not of this model and optimiser .*: give the settings"):
        train(config, resume=tmp_path / "x", say=lambda _: None)


def test_another_process_in_the_folder_is_refused(data, tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "x").mkdir()
    with held(tmp_path / "x", ""), pytest.raises(SeqpopeError, match=r"another process is at work in .*x: wait"):
        train(make_config(data, tmp_path), resume=tmp_path / "x", say=lambda _: None)
    assert list((tmp_path / "x").iterdir()) == []


def test_logs_that_were_deleted_leave_their_numbers_unused(data, tmp_path):
    from seqpope import stack

    config = make_config(data, tmp_path, seeds=1)
    training = stack.StackTraining(config, open_store(data / "indexing"), tmp_path, "cpu")
    (training.run(5) / "logs" / "version_1").mkdir(parents=True)
    with stack._logs(training):
        pass
    assert (training.run(5) / "logs" / "version_2" / "metrics.csv").is_file()
