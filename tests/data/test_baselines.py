from __future__ import annotations

import math

import numpy as np
import pytest

from seqpope.data.baselines import BACKOFF_WEIGHTS, count_baseline
from seqpope.data.shards import SCORED, Split, pack


def make_split(documents, flags=None) -> Split:
    flags = flags or [np.full(len(document), SCORED, np.uint8) for document in documents]
    return pack([np.array(d) for d in documents], flags, [str(n) for n in range(len(documents))], np.uint8)


def by_hand(train, documents, weight, size, padding, period, lags):
    """The docstring's formula, one token at a time."""

    def contexts(document):
        for position, token in enumerate(document):
            earlier = tuple(document[position - lag] if position >= lag else padding for lag in lags)
            yield (position % period, earlier), token

    pairs, totals, unigram = {}, {}, {}
    for document in train:
        for context, token in contexts(document):
            pairs[context, token] = pairs.get((context, token), 0) + 1
            totals[context] = totals.get(context, 0) + 1
            unigram[token] = unigram.get(token, 0) + 1
    count = sum(unigram.values())
    nats = []
    for document in documents:
        for context, token in contexts(document):
            prior = (unigram.get(token, 0) + 1) / (count + size - 1)
            nats.append(
                -math.log((pairs.get((context, token), 0) + weight * prior) / (totals.get(context, 0) + weight))
            )
    return sum(nats) / len(nats)


@pytest.mark.parametrize(("period", "lags"), [(1, ()), (4, (4,)), (16, (4,)), (3, (2, 1)), (1, (1,))])
def test_agrees_with_the_formula_token_by_token(period, lags):
    generator = np.random.default_rng(3)
    size = 7
    raw = {
        name: [generator.integers(1, size, length).tolist() for length in lengths]
        for name, lengths in (("train", [40, 1, 33]), ("validation", [25, 3]), ("test", [50, 2]))
    }
    figures = count_baseline(
        {name: make_split(documents) for name, documents in raw.items()}, size, 0, period=period, lags=lags
    )
    candidates = {
        weight: by_hand(raw["train"], raw["validation"], weight, size, 0, period, lags)
        for weight in BACKOFF_WEIGHTS
    }
    best = min(candidates, key=candidates.__getitem__)
    for name, documents in raw.items():
        expected = by_hand(raw["train"], documents, best, size, 0, period, lags)
        assert figures[name] == pytest.approx(expected, abs=1e-9)


def test_a_period_is_learnt():
    """Tokens that follow from position alone cost next to nothing with the period, log 4 without."""
    documents = [[1, 2, 3, 4] * 200]
    splits = {name: make_split(documents) for name in ("train", "validation", "test")}
    assert count_baseline(splits, 5, 0)["test"] == pytest.approx(math.log(4), abs=0.01)
    assert count_baseline(splits, 5, 0, period=4)["test"] < 0.01
    assert count_baseline(splits, 5, 0, lags=(1,))["test"] < 0.05


def test_lags_stop_at_the_documents_start():
    """The first token's context is padding, not the last token of the document before."""
    train = make_split([[1, 2]] * 100)
    first_only = [np.array([SCORED, 0], np.uint8)] * 100
    figures = count_baseline(
        {"train": train, "validation": train, "test": make_split([[1, 2]] * 100, first_only)}, 3, 0, lags=(1,)
    )
    assert figures["test"] < 0.02


def test_only_scored_tokens_count():
    train = make_split([[1] * 90 + [2] * 10])
    flags = [np.array([SCORED, 0, 0, 2], np.uint8)]
    some, one, all_of_it = (
        count_baseline({"train": train, "test": test}, 3, 0)["test"]
        for test in (make_split([[1, 2, 2, 2]], flags), make_split([[1]]), make_split([[1, 2, 2, 2]]))
    )
    assert some == one == pytest.approx(-math.log(0.9), abs=0.01)
    assert all_of_it > 1


def test_tokens_never_seen_are_finite():
    splits = {"train": make_split([[1, 1]]), "test": make_split([[88, 89]])}
    assert 3 < count_baseline(splits, 90, 0, period=4, lags=(4, 1))["test"] < 6


def test_nothing_is_learnt_from_test():
    train, validation = make_split([[1, 2, 3] * 10]), make_split([[1, 2] * 10])
    figures = [
        count_baseline({"train": train, "validation": validation, "test": test}, 5, 0, lags=(1,))
        for test in (make_split([[4] * 50]), make_split([[1, 2, 3]]))
    ]
    assert figures[0]["train"] == figures[1]["train"]
    assert figures[0]["validation"] == figures[1]["validation"]


def test_empty_split_has_no_figure():
    figures = count_baseline({"train": make_split([[1, 2]]), "test": make_split([])}, 5, 0, lags=(1,))
    assert math.isnan(figures["test"])


@pytest.mark.parametrize("arguments", [{"period": 0}, {"lags": (0,)}, {"lags": (1,) * 12}])
def test_impossible_contexts_are_refused(arguments):
    with pytest.raises(ValueError, match=r"at least 1|too many contexts"):
        count_baseline({"train": make_split([[1]])}, 90, 0, **arguments)
    with pytest.raises(ValueError, match="train split"):
        count_baseline({"test": make_split([[1]])}, 90, 0)
