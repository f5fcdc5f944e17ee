from __future__ import annotations

import numpy as np
import pytest
import torch
from stores import PADDING, VOCABULARY

from seqpope.errors import SeqpopeError
from seqpope.model.config import ModelConfig
from seqpope.model.positions import POSITIONS
from seqpope.model.transformer import Transformer
from seqpope.sampling import SamplingConfig, next_distribution, sample

NO_PROMPT = torch.zeros(0, dtype=torch.long)
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def make_model(position="pope", seed=0, scale=8.0):
    torch.manual_seed(seed)
    model = Transformer(VOCABULARY, position, ModelConfig(width=16, layers=2, heads=2)).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight *= 20
            block.attention.out.weight *= 10
        model.embedding.weight *= scale
    return model


class FixedModel(torch.nn.Module):
    """Always the same logits: what is drawn follows a distribution that is known."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits))
        self.config = ModelConfig(width=2, layers=1, heads=1)

    def forward(self, ids, cache, *, last_only):
        return self.logits.expand(ids.shape[0], 1, -1)


def draw(model, prompt=PROMPT, count=30, seeds=(0,), **config):
    return sample(model, prompt, count, seeds=list(seeds), padding_id=PADDING, config=SamplingConfig(**config))


@pytest.mark.parametrize("position", POSITIONS)
def test_what_a_seed_draws_does_not_depend_on_its_neighbours(position):
    model = make_model(position)
    together, _ = draw(model, seeds=[7, 8, 9, 10])
    for row, seed in enumerate([7, 8, 9, 10]):
        assert torch.equal(draw(model, seeds=[seed])[0][0], together[row])
    assert torch.equal(draw(model, seeds=[10, 7])[0], together[[3, 0]])
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_global_randomness_has_no_part():
    model = make_model()
    torch.manual_seed(1)
    first, _ = draw(model)
    torch.manual_seed(2)
    assert torch.equal(draw(model)[0], first)


@pytest.mark.parametrize("prompt", [NO_PROMPT, PROMPT])
@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_nats_are_those_of_an_uncached_forward(position, prompt):
    """Also under a temperature and cuts: the NLL is the untouched model's."""
    model = make_model(position)
    for config in ({}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}):
        drawn, nats = draw(model, prompt, seeds=[0, 1, 2], **config)
        whole = torch.cat((torch.tensor([PADDING]), prompt)).repeat(3, 1)
        logits = model(torch.cat((whole, drawn), 1)[:, :-1])[:, len(prompt) :]
        expected = -logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        torch.testing.assert_close(nats, expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_temperature_zero_takes_the_likeliest():
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[PADDING] *= 0.1
    drawn, _ = draw(model, count=12, temperature=0.0, seeds=[0, 1])
    assert torch.equal(drawn[0], drawn[1])
    ids = torch.cat((torch.tensor([PADDING]), PROMPT))[None]
    for token in drawn[0]:
        logits = model(ids)[0, -1]
        logits[PADDING] = float("-inf")
        assert int(token) == int(logits.argmax())
        ids = torch.cat((ids, token[None, None]), 1)


def test_the_prompt_matters_and_is_not_returned():
    model = make_model()
    drawn, nats = draw(model, count=9, seeds=[0, 1])
    assert drawn.shape == nats.shape == (2, 9)
    assert not torch.equal(draw(model, NO_PROMPT, count=9, seeds=[0, 1])[0], drawn)


@pytest.mark.parametrize("config", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}])
def test_padding_is_never_drawn(config):
    logits = torch.zeros(VOCABULARY)
    logits[PADDING] = 20.0  # the model would take nothing else
    drawn, nats = draw(FixedModel(logits), count=200, seeds=range(4), **config)
    assert not (drawn == PADDING).any()
    assert (nats > 19).all()  # and its NLL says how unlikely all else was


def test_draws_follow_the_distribution():
    logits = torch.tensor([5.0, 0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5])
    count = 500
    drawn, _ = draw(FixedModel(logits), count=count, seeds=range(8))
    expected = logits.double().clone()
    expected[PADDING] = float("-inf")
    expected = expected.softmax(0).numpy()
    counts = np.bincount(drawn.flatten().numpy(), minlength=len(logits))
    n = counts.sum()
    assert counts[expected == 0].sum() == 0
    keep = expected > 0
    chi_square = ((counts[keep] - n * expected[keep]) ** 2 / (n * expected[keep])).sum()
    assert chi_square < 23.5  # 99.97% of draws from the right distribution, 5 - 1 degrees of freedom


def test_a_number_is_inverted_through_the_distribution(monkeypatch):
    """Of the probabilities 0, 1/2, 0, 1/4, 1/4 each token owns an interval; those of 0 own not even a point."""
    logits = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25]).log()
    numbers = iter([0.0, 0.25, 0.5 - 1e-6, 0.5 + 1e-6, 0.75 - 1e-6, 0.75 + 1e-6, 1 - 2**-53])
    monkeypatch.setattr(torch, "rand", lambda *_, **options: torch.tensor([next(numbers)], dtype=torch.float64))
    drawn, _ = draw(FixedModel(logits), count=7)
    assert drawn[0].tolist() == [1, 1, 1, 3, 3, 4, 4]


class TestNextDistribution:
    logits = torch.log(torch.tensor([[0.05, 0.4, 0.3, 0.15, 0.1], [0.1, 0.2, 0.3, 0.15, 0.25]]))

    def support(self, **config):
        got = next_distribution(self.logits, SamplingConfig(**config))
        torch.testing.assert_close(got.sum(-1), torch.ones(2, dtype=torch.float64))
        # What is kept keeps its proportions.
        for row, original in zip(got, self.logits.double().exp(), strict=True):
            kept = row > 0
            torch.testing.assert_close(row[kept], original[kept] / original[kept].sum())
        return [row.nonzero().flatten().tolist() for row in got]

    def test_untouched(self):
        assert self.support() == [[0, 1, 2, 3, 4]] * 2

    @pytest.mark.parametrize(
        ("k", "expected"),
        [(1, [[1], [2]]), (2, [[1, 2], [2, 4]]), (4, [[1, 2, 3, 4], [1, 2, 3, 4]]), (5, None), (99, None)],
    )
    def test_top_k(self, k, expected):
        assert self.support(top_k=k) == (expected or [[0, 1, 2, 3, 4]] * 2)

    @pytest.mark.parametrize(
        ("p", "expected"),
        [
            (1e-9, [[1], [2]]),
            (0.39, [[1], [2, 4]]),
            (0.41, [[1, 2], [2, 4]]),
            (0.71, [[1, 2, 3], [1, 2, 4]]),
            (0.96, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        ],
    )
    def test_top_p_keeps_the_fewest_that_reach_it(self, p, expected):
        assert self.support(top_p=p) == expected

    def test_top_k_is_cut_before_top_p(self):
        # Among the two that are left, of 4/7 and 3/7, the first alone reaches a half.
        assert self.support(top_k=2, top_p=0.5)[0] == [1]

    def test_temperature(self):
        got = next_distribution(self.logits, SamplingConfig(temperature=2.0))
        root = self.logits.double().exp().sqrt()
        torch.testing.assert_close(got, root / root.sum(-1, keepdim=True))
        cold = next_distribution(self.logits, SamplingConfig(temperature=1e-3))
        assert torch.equal(cold.argmax(-1), torch.tensor([1, 2]))
        assert cold.max(-1).values.min() > 1 - 1e-9

    def test_temperature_zero_is_one_hot(self):
        got = next_distribution(self.logits, SamplingConfig(temperature=0.0))
        assert got.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_settings_that_mean_nothing(config):
    with pytest.raises(SeqpopeError, match="expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1"):
        SamplingConfig(**config)


def test_progress():
    calls = []
    sample(
        make_model(),
        PROMPT,
        3,
        seeds=[0],
        padding_id=PADDING,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
