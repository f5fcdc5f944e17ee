from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import small_models
import torch
from stores import PADDING, VOCABULARY, make_split

from seqpope.data.shards import pack
from seqpope.model.positions import POSITIONS
from seqpope.nll import batch_nats, mean_nats, score_split, scoring_batches, token_nats

LENGTHS = [30, 9, 0, 17, 1]


make_model = partial(small_models.make_model, scale=30)


def score(model, split, **options):
    return score_split(model, split, PADDING, **{"length": 8, "stride": 3, **options})


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("weight", [None, 0.5])
def test_a_target_a_row_costs_what_it_costs_among_all(position, weight):
    """The loss and every gradient, in two parts, and with weights; the last block works on one position a row."""
    random = torch.Generator().manual_seed(3)
    ids, targets = torch.randint(0, VOCABULARY, (2, 6, 9), generator=random)
    scored = torch.arange(9) == torch.tensor([8, 0, 3, 3, 7, 1])[:, None]
    if weight:
        scored = scored * torch.linspace(weight, 1, 6)[:, None]
    found = []
    for one_target in (False, True):
        model = make_model(position)
        shapes = []
        model.blocks[-1].mlp_in.register_forward_hook(lambda _, x, y, shapes=shapes: shapes.append(tuple(y.shape)))
        losses = batch_nats(model, (ids, targets, scored), 2, one_target=one_target)
        (losses * torch.tensor([1.0, 3.0])).sum().backward()
        assert shapes == [(6, 1 if one_target else 9, 64)]
        found.append((losses, [p.grad for p in model.parameters()]))
    (expected, gradients), (got, cheap) = found
    assert got.shape == (2,)
    torch.testing.assert_close(got, expected)
    for a, b in zip(cheap, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


class TestTokenNats:
    def test_is_minus_log_probability(self):
        logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([[0, 4, 2], [1, 1, 3]])
        got = token_nats(logits, targets)
        for row in range(2):
            for place in range(3):
                weights = [math.exp(x) for x in logits[row, place].tolist()]
                expected = -math.log(weights[targets[row, place]] / sum(weights))
                assert float(got[row, place]) == pytest.approx(expected, rel=1e-5)

    def test_uniform_logits_cost_the_log_of_the_vocabulary(self):
        got = token_nats(torch.full((1, 4, 90), 3.7), torch.zeros(1, 4, dtype=torch.long))
        torch.testing.assert_close(got, torch.full((1, 4), math.log(90)))

    def test_bf16_logits_are_summed_in_fp32(self):
        logits = (4 * torch.randn(3, 7, 500, generator=torch.Generator().manual_seed(0))).bfloat16()
        targets = torch.randint(500, (3, 7), generator=torch.Generator().manual_seed(1))
        got = token_nats(logits, targets)
        exact = torch.nn.functional.cross_entropy(
            logits.double().flatten(0, 1), targets.flatten(), reduction="none"
        )
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double().flatten(), exact, atol=1e-5, rtol=1e-6)

    def test_logits_of_any_size(self):
        logits = torch.tensor([[[1e4, 0.0, -1e4]]])
        assert token_nats(logits, torch.tensor([[0]])).item() == 0
        assert token_nats(logits, torch.tensor([[2]])).item() == 2e4


class TestMeanNats:
    def test_is_the_sum_over_the_count(self):
        logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        targets = torch.randint(5, (2, 6), generator=torch.Generator().manual_seed(1))
        scored = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
        nats = token_nats(logits, targets)
        # Every token counts alike, however they fall on rows: no mean of means.
        expected = (nats[0, :5].sum() + nats[1, 0]) / 6
        torch.testing.assert_close(mean_nats(logits, targets, scored), expected)

    def test_what_is_not_scored_has_no_value_and_no_gradient(self):
        logits = torch.randn(1, 4, 5, requires_grad=True)
        targets = torch.tensor([[1, 2, 3, 4]])
        scored = torch.tensor([[True, True, False, False]])
        loss = mean_nats(logits, targets, scored)
        loss.backward()
        assert logits.grad[0, :2].abs().sum() > 0
        assert not logits.grad[0, 2:].any()
        wild = logits.detach().clone()
        wild[0, 2:] *= 1000
        targets[0, 2:] = 0
        torch.testing.assert_close(mean_nats(wild, targets, scored), loss.detach())

    def test_nothing_scored_is_zero_not_nan(self):
        logits = torch.randn(1, 2, 5, requires_grad=True)
        loss = mean_nats(logits, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()


def naive(model, split, length, stride, padding=PADDING):
    """Token by token: read what the windows' definition lets it see, take one logit."""
    nats = []
    for index in range(len(split)):
        document = [int(token) for token in split.document(index)]
        for place, token in enumerate(document):
            # The first window scores `length` tokens, each later one begins `stride` after the one before.
            start = 0 if place < length else stride * ((place - length) // stride + 1)
            before = [padding, *document][start : place + 1]
            logits = model(torch.tensor([before]))[0, -1].double()
            nats.append(-float(logits.log_softmax(-1)[token].detach()))
    return np.array(nats)


@pytest.mark.parametrize(("length", "stride"), [(8, 3), (8, 8), (5, 1), (64, 32)])
@pytest.mark.parametrize("position", POSITIONS)
def test_scoring_a_split_is_the_naive_loop(position, length, stride):
    model, split = make_model(position), make_split(LENGTHS)
    got = score(model, split, length=length, stride=stride)
    assert got.dtype == np.float64
    assert got.shape == (len(split.tokens),)
    np.testing.assert_allclose(got, naive(model, split, length, stride), atol=2e-5)


def test_padding_is_the_id_that_it_is_said_to_be():
    model, split = make_model(), make_split(LENGTHS)
    padding = VOCABULARY - 1  # not the 0 that arrays start with
    got = score_split(model, split, padding, length=8, stride=3)
    np.testing.assert_allclose(got, naive(model, split, 8, 3, padding), atol=2e-5)
    assert np.abs(got - score(model, split)).max() > 1e-2
    for batch in scoring_batches(split, padding, length=8, stride=3):
        for ids, targets, window in zip(batch.ids, batch.targets, batch.windows, strict=True):
            size = window.end - window.start
            assert set(ids[size:].tolist()) | set(targets[size:].tolist()) <= {padding}


def test_bf16_forward_scores_are_near():
    """Scores of a model in half precision: fp32 from its logits on."""
    model, split = make_model(), make_split(LENGTHS)

    def rough(ids):
        return model(ids).bfloat16()

    got, exact = score(rough, split), score(model, split)
    assert got.dtype == np.float64
    assert 0 < np.abs(got - exact).max() < 0.02 * max(1, np.abs(exact).max())


def test_batches_do_not_matter():
    model, split = make_model(), make_split(LENGTHS)
    alone = score(model, split, batch_tokens=1)
    for batch_tokens in (9, 40, 16384):
        np.testing.assert_allclose(score(model, split, batch_tokens=batch_tokens), alone, atol=2e-5)


def test_documents_do_not_matter_to_each_other():
    model = make_model()
    split = make_split([30, 9])
    documents = [np.array(split.document(i)) for i in range(2)]
    flags = [np.ones(len(d), np.uint8) for d in documents]
    swapped = pack(documents[::-1], flags[::-1], ["b", "a"], np.uint8)
    one, other = score(model, split), score(model, swapped)
    np.testing.assert_allclose(np.concatenate((other[9:], other[:9])), one, atol=2e-5)


def test_padding_is_read_by_no_scored_token():
    """Whatever stands to the right of a window, its scores stay: padding could be any token."""
    model, split = make_model(), make_split(LENGTHS)
    lengths = {}
    for batch in scoring_batches(split, PADDING, length=8, stride=3):
        for row, window in zip(batch.targets.tolist(), batch.windows, strict=True):
            lengths[tuple(row)] = window.end - window.start
            assert row[: window.end - window.start] == split.tokens[window.start : window.end].tolist()
            assert not any(row[window.end - window.start :])

    padded = 0

    def with_noise(ids):
        nonlocal padded
        ids = ids.clone()
        for row in ids:
            last = int(row.nonzero().max()) if row.any() else 0
            padded += len(row) - last - 1
            row[last + 1 :] = torch.randint(1, VOCABULARY, (len(row) - last - 1,))
        return model(ids)

    np.testing.assert_allclose(score(with_noise, split), score(model, split), atol=2e-5)
    assert padded > 0


def test_every_window_once_and_batches_of_the_size_asked_for():
    split = make_split(LENGTHS)
    batches = list(scoring_batches(split, PADDING, length=8, stride=3, batch_tokens=24))
    windows = [window for batch in batches for window in batch.windows]
    assert len(windows) == len(set(windows))
    assert sum(window.end - window.score for window in windows) == len(split.tokens)
    assert all(batch.ids.shape == batch.targets.shape for batch in batches)
    assert all(batch.ids.numel() <= 24 for batch in batches)
    assert len(batches[0].windows) == 3


def test_progress_ends_at_all_tokens():
    split, calls = make_split(LENGTHS), []
    score(make_model(), split, batch_tokens=16, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (57, 57)


def test_an_empty_split_scores_nothing():
    assert score(make_model(), make_split([])).shape == (0,)


def test_scoring_keeps_no_graph():
    model = make_model()
    seen = []

    def forward(ids):
        seen.append(model(ids))
        return seen[-1]

    score(forward, make_split([9]))
    assert not seen[0].requires_grad
