from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stores import PADDING, VOCABULARY, make_split, make_store

import seqpope.training
from seqpope.config import DataConfig, OptimizerConfig, TrainConfig
from seqpope.data.datamodule import TrainingBatches
from seqpope.data.shards import SCORED
from seqpope.errors import SeqpopeError
from seqpope.experiment import train_run
from seqpope.model.config import ModelConfig
from seqpope.model.transformer import Transformer
from seqpope.nll import batch_nats, score_split
from seqpope.stack import StackedTransformer
from seqpope.training import SequenceModule, make_optimizer, parameter_groups

MODEL = {"width": 16, "layers": 2, "heads": 2, "delta_init": "uniform"}


def make_model(position="pope", **changes):
    torch.manual_seed(0)
    return Transformer(VOCABULARY, position, ModelConfig(**{**MODEL, **changes}))


class TestSchedule:
    config = OptimizerConfig(steps=100, warmup_steps=10, learning_rate=1e-2, min_learning_rate=1e-3)

    def test_ends(self):
        rates = [self.config.rate_at(step) for step in range(100)]
        assert rates[0] == pytest.approx(1e-3)  # a tenth of the way up: the first step already learns
        assert rates[9] == pytest.approx(1e-2)
        assert rates[10] == pytest.approx(1e-2)
        assert rates[99] == pytest.approx(1e-3)
        assert max(rates) == pytest.approx(1e-2)
        assert rates[10:] == sorted(rates[10:], reverse=True)
        np.testing.assert_allclose(np.diff(rates[:10]), 1e-3)

    def test_half_way_down_is_the_mean(self):
        config = OptimizerConfig(steps=101, warmup_steps=0, learning_rate=1e-2, min_learning_rate=2e-3)
        assert config.rate_at(0) == pytest.approx(1e-2)
        assert config.rate_at(50) == pytest.approx(6e-3)
        assert config.rate_at(100) == pytest.approx(2e-3)
        assert config.rate_at(1000) == pytest.approx(2e-3)

    @pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 10), (2, 1)])
    def test_short_runs_have_rates_too(self, steps, warmup):
        config = OptimizerConfig(steps=steps, warmup_steps=warmup, learning_rate=1e-2, min_learning_rate=0.0)
        assert all(0 <= config.rate_at(step) <= 1e-2 for step in range(steps + 1))
        assert config.rate_at(0) > 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 0}, "optimizer.steps"),
            ({"warmup_steps": -1}, "optimizer.warmup_steps"),
            ({"learning_rate": 0.0}, "optimizer.min_learning_rate"),
            ({"learning_rate": float("nan")}, "optimizer.min_learning_rate"),
            ({"learning_rate": 1e-5, "min_learning_rate": 1e-4}, "optimizer.min_learning_rate"),
            ({"beta2": 1.0}, "optimizer.beta2"),
            ({"average_decay": 1.0}, "optimizer.average_decay"),
            ({"gradient_clip": -1.0}, "optimizer.gradient_clip"),
            ({"weight_decay": -0.1}, "weight_decay"),
            ({"delta_rate": 0.0}, "optimizer.delta_rate must be above 0 .model.delta_learned false"),
            ({"delta_rate": float("nan")}, "optimizer.delta_rate"),
            ({"delta_decay": -1.0}, "optimizer.delta_decay not negative, they are 1.0 and -1.0"),
        ],
    )
    def test_settings_that_make_no_sense(self, changes, message):
        with pytest.raises(SeqpopeError, match=message):
            OptimizerConfig(**changes)


class TestWeightDecay:
    @pytest.mark.parametrize("position", ["pope", "rope"])
    def test_matrices_alone_are_decayed(self, position):
        model = make_model(position)
        decayed, free = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
        names = {id(p): name for name, p in model.named_parameters()}
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
        assert len(decayed["params"]) + len(free["params"]) == len(names)
        free_names = {names[id(p)] for p in free["params"]}
        delta = {f"blocks.{i}.attention.position.delta" for i in range(2)} if position == "pope" else set()
        norms = {f"blocks.{i}.norm_{part}.weight" for i in range(2) for part in ("attention", "mlp")}
        assert free_names == delta | norms | {"norm.weight"}

    @pytest.mark.parametrize(("rate", "decay"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.25)])
    @pytest.mark.parametrize("name", ["adamw", "muon"])
    def test_without_a_gradient_only_matrices_shrink_and_delta_as_told(self, name, rate, decay):
        model = make_model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        config = OptimizerConfig(
            name=name, learning_rate=0.1, weight_decay=0.5, delta_rate=rate, delta_decay=decay
        )
        optimizer = make_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for n, parameter in model.named_parameters():
            left = 1 - 0.1 * rate * decay if n.endswith("delta") else 1 - 0.1 * 0.5 * (parameter.dim() == 2)
            torch.testing.assert_close(parameter.detach(), before[n] * left, msg=n)

    @pytest.mark.parametrize("name", ["adamw", "muon"])
    def test_of_a_stack_too(self, name):
        """Norms of several models have two dimensions, their deltas three: vectors and angles all the same."""
        model = StackedTransformer([make_model(), make_model()])
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        config = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5)
        optimizer = make_optimizer(model, config, models=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for n, parameter in model.named_parameters():
            left = 1.0 if n.endswith("delta") or "norm" in n else 0.95
            assert parameter.dim() == (2 if "norm" in n else 3)
            torch.testing.assert_close(parameter.detach(), before[n] * left, msg=n)

    @pytest.mark.parametrize("name", ["adamw", "muon"])
    def test_delta_has_a_group_where_it_goes_its_own_way(self, name):
        def deltas(position="pope", model=None, **optimizer):
            made = make_model(position, **(model or {}))
            groups = make_optimizer(made, OptimizerConfig(name=name, learning_rate=0.1, **optimizer)).param_groups
            own = {id(p) for n, p in made.named_parameters() if n.endswith("delta")}
            assert sum(len(group["params"]) for group in groups) == len(list(made.parameters()))
            return [g for g in groups if g["params"] and {id(p) for p in g["params"]} <= own]

        assert deltas() == []  # as in the optimiser states of older runs
        assert deltas("rope", delta_rate=3.0) == []
        assert deltas(model={"delta_learned": False}, delta_rate=3.0) == []
        (group,) = deltas(delta_rate=3.0, delta_decay=0.7)
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.3), 0.7)


class TestMuon:
    def test_every_parameter_has_one_optimizer(self):
        model = make_model()
        optimizer = make_optimizer(model, OptimizerConfig(name="muon"))
        muon, adam = optimizer.optimizers
        taken = [id(p) for o in (muon, adam) for group in o.param_groups for p in group["params"]]
        assert sorted(taken) == sorted(id(p) for p in model.parameters())
        names = {id(p): name for name, p in model.named_parameters()}
        orthogonal = {names[id(p)] for group in muon.param_groups for p in group["params"]}
        parts = ("attention.qkv", "attention.out", "mlp_in", "mlp_out")
        assert orthogonal == {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts}

    def test_a_schedule_reaches_both_also_after_loading(self):
        model = make_model()
        optimizer = make_optimizer(model, OptimizerConfig(name="muon", learning_rate=1e-2))
        other = make_optimizer(model, OptimizerConfig(name="muon", learning_rate=1e-2))
        other.load_state_dict(optimizer.state_dict())
        schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 0.5**step)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        other.step()
        schedule.step()
        rates = [group["lr"] for o in other.optimizers for group in o.param_groups]
        assert rates == [5e-3] * 3

    def test_state_survives(self):
        def run(model, optimizer, steps):
            for step in steps:
                generator = torch.Generator().manual_seed(step)
                for parameter in model.parameters():
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
                optimizer.step()
                optimizer.zero_grad()
            assert all(p.grad is None for p in model.parameters())

        config = OptimizerConfig(name="muon", learning_rate=1e-2)
        whole, first, second = make_model(), make_model(), make_model()
        run(whole, make_optimizer(whole, config), range(6))
        optimizer = make_optimizer(first, config)
        run(first, optimizer, range(3))
        second.load_state_dict(first.state_dict())
        resumed = make_optimizer(second, config)
        resumed.load_state_dict(optimizer.state_dict())
        run(second, resumed, range(3, 6))
        for a, b in zip(whole.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


def make_config(tmp_path, steps=8, dropout=0.0, data=None, **optimizer):
    return TrainConfig(
        dataset="tiny",
        model=ModelConfig(**MODEL, dropout=dropout),
        data=DataConfig(**{"length": 16, "batch_size": 2, **(data or {})}),
        optimizer=OptimizerConfig(
            **{
                "steps": steps,
                "learning_rate": 1e-2,
                "min_learning_rate": 1e-3,
                "warmup_steps": 2,
                "gradient_clip": 0.0,
                **optimizer,
            }
        ),
        eval_every=4,
        eval_length=16,
        eval_stride=8,
        device="cpu",
        data_folder=tmp_path / "data",
        out=tmp_path / "runs",
    )


def plain_loop(store, config):
    """The same training in a dozen lines of torch: what the machinery around it has to amount to."""
    torch.manual_seed(config.seed)
    model = Transformer(VOCABULARY, config.position, config.model).train()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    o = config.optimizer
    matrices, others, deltas, muon = [], [], [], []
    for name, p in model.named_parameters():
        if o.name == "muon" and name.startswith("blocks") and p.dim() == 2 and "delta" not in name:
            muon.append(p)
        else:
            (deltas if "delta" in name else others if p.dim() == 1 else matrices).append(p)
    groups = [
        {"params": matrices, "weight_decay": o.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": deltas, "weight_decay": o.delta_decay},
    ]
    optimizers = [torch.optim.AdamW(groups, betas=(o.beta1, o.beta2))]
    if muon:
        optimizers.append(torch.optim.Muon(muon, weight_decay=o.weight_decay, adjust_lr_fn="match_rms_adamw"))
    batches = TrainingBatches(store.split("train"), store.manifest, config.data, config.seed)
    for step in range(o.steps):
        batch = batches[step]
        logits = model(batch.ids)[batch.scored]
        torch.nn.functional.cross_entropy(logits, batch.targets[batch.scored]).backward()
        if o.gradient_clip:
            # In the optimisers' order: Muon's sums are bf16, where the norm's last digit can grow a thousandfold.
            vectors = [p for name, p in model.named_parameters() if p.dim() == 1 or "delta" in name]
            torch.nn.utils.clip_grad_norm_([*muon, *matrices, *vectors], o.gradient_clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = o.rate_at(step) * (o.delta_rate if group["params"] is groups[2]["params"] else 1)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(o.average_decay, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return dict(model.named_parameters()), average


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip": 0.3},
        {"average_decay": 0.6},
        {"gradient_clip": 0.3, "average_decay": 0.6},
        {"delta_rate": 3.0, "delta_decay": 0.5},
    ],
)
def test_training_is_the_plain_loop(tmp_path, settings, name):
    store = make_store(tmp_path, unscored=5)
    config = make_config(tmp_path, weight_decay=0.1, name=name, data={"transpose": (-2, 2)}, **settings)
    train_run(config, tmp_path / "run", "t")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    model, average = plain_loop(store, config)
    tolerance = {"atol": 2e-5, "rtol": 1e-3}
    assert any(key.startswith("average.") for key in state) == ("average_decay" in settings)
    for key, value in model.items():
        torch.testing.assert_close(state[f"model.{key}"], value.detach(), **tolerance, msg=key)
        if "average_decay" in settings:
            torch.testing.assert_close(state[f"average.{key}"], average[key], **tolerance, msg=key)
    if "gradient_clip" in settings:  # clipping bites, or nothing was shown
        config.optimizer.gradient_clip = 0.0
        unclipped, _ = plain_loop(store, config)
        assert max(float((unclipped[key] - model[key]).detach().abs().max()) for key in model) > 1e-3


@pytest.mark.parametrize("position", ["pope", "rope"])
def test_a_tiny_model_learns_scales(tmp_path, position):
    make_store(tmp_path)
    config = make_config(tmp_path, steps=80, min_learning_rate=1e-3, gradient_clip=1.0)
    config.position, config.eval_every = position, 80
    train_run(config, tmp_path / "run", "t")
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    best = state["callbacks"]["RunKeeper"]["best"]
    # From log 14 = 2.64 of knowing nothing; 7 ids alike would still cost 1.9.
    assert best < 1.0


def make_module(validation, model=None, **optimizer):
    model = model or make_model(dropout=0.5)
    return SequenceModule(
        model,
        OptimizerConfig(**optimizer),
        seed=0,
        padding_id=PADDING,
        validation=validation,
        eval_length=8,
        eval_stride=4,
    )


class TestValidation:
    def test_is_the_mean_over_scored_tokens(self):
        split = make_split([30, 9, 17], unscored=3)
        split.tokens[10:25] = split.tokens[9]  # an untrained model tells what it read
        module = make_module(split)
        model = module.model.eval()
        right = np.zeros(len(split.tokens), bool)
        nats = score_split(model, split, PADDING, length=8, stride=4, right=right)
        scored = (split.flags & SCORED).astype(bool)
        assert 0 < scored.sum() < len(scored)
        assert not math.isclose(nats[scored].mean(), nats.mean(), rel_tol=1e-6)
        found = module.validated()
        assert found.nats == pytest.approx(nats[scored].mean(), rel=1e-6)
        assert found.accuracy == right[scored].mean() != right.mean()

    def test_dropout_is_off_and_training_goes_on(self):
        module = make_module(make_split([30]))
        module.train()
        assert module.validated() == module.validated()
        assert module.model.training

    def test_is_fp32_under_autocast(self):
        module = make_module(make_split([30]))
        exact = module.validated()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module.validated() == exact

    def test_draws_nothing(self):
        module = make_module(make_split([30]))
        before = torch.get_rng_state()
        module.validated()
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_average_is_what_is_validated(self):
        module = make_module(make_split([30]), average_decay=0.9)
        assert module.evaluated_model is module.average
        before = module.validated()
        with torch.no_grad():
            module.model.embedding.weight.mul_(10)
        assert module.validated() == before
        with torch.no_grad():
            module.average.embedding.weight.mul_(10)
        assert module.validated() != before
        assert not any(p.requires_grad for p in module.average.parameters())
        assert make_module(make_split([30])).evaluated_model is not None


def test_dropout_of_a_step_is_of_seed_and_step(tmp_path):
    """Dropout makes two runs alike only if its draws come from (seed, step) alone."""
    make_store(tmp_path)
    states = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = make_config(tmp_path, dropout=0.3)
        config.seed = seed
        train_run(config, tmp_path / run, run)
        torch.rand(7)  # what happens between runs has no part in them
        states.append(torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"])
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["model.embedding.weight"], other["model.embedding.weight"])


def test_every_step_of_every_seed_has_dropout_of_its_own(tmp_path, monkeypatch):
    make_store(tmp_path)
    draws = []

    def record(*arguments, **keywords):
        draws.append(float(torch.rand(1, dtype=torch.float64)))
        return batch_nats(*arguments, **keywords)

    monkeypatch.setattr(seqpope.training, "batch_nats", record)
    for seed in (0, 1):
        config = make_config(tmp_path)
        config.seed = seed
        train_run(config, tmp_path / str(seed), "t")
    assert len(draws) == 16
    assert len(set(draws)) == 16
