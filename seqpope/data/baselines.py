"""What a table of counts reaches: the floors that a sequence model has to beat, in nats/token.

A table predicts a token from its position in the document modulo a period and from the tokens at given
lags. Its counts are the training split's alone; the one smoothing constant is chosen on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from seqpope.data.shards import SCORED, Split

# Weight of the back-off distribution, in tokens seen: a quarter to a thousand in steps of sqrt(2).
BACKOFF_WEIGHTS = tuple(0.25 * 2 ** (k / 2) for k in range(25))


@dataclass(frozen=True)
class References:
    """What a domain measures of a split's N tokens, to stand beside a model's NLL on the same tokens.

    nats: of each baseline (N,) float32 nats of every token.
    strata: of each further stratum (N,) bool.
    text: how it was measured, in sentences for a report.
    """

    nats: dict[str, np.ndarray] = field(default_factory=dict)
    strata: dict[str, np.ndarray] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)


def _contexts(split: Split, period: int, lags: Sequence[int], size: int, padding_id: int) -> np.ndarray:
    """A number for each token's context (tokens,) int64; padding stands before a document's start."""
    tokens = np.asarray(split.tokens).astype(np.int64)
    starts = np.repeat(np.asarray(split.starts[:-1]), np.diff(split.starts))
    position = np.arange(len(tokens)) - starts
    context = position % period
    for lag in lags:
        earlier = np.full(len(tokens), padding_id, np.int64)
        inside = position >= lag
        earlier[inside] = tokens[np.flatnonzero(inside) - lag]
        context = context * size + earlier
    return context


def _look_up(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Counts of `wanted` among sorted `keys`, 0 where absent."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, counts[at], 0).astype(np.float64)


def count_baseline(
    splits: dict[str, Split],
    vocabulary_size: int,
    padding_id: int,
    *,
    period: int = 1,
    lags: Sequence[int] = (),
) -> dict[str, float]:
    """Nats/token that a table of counts reaches on each split.

    The context of a token is (its position in its document modulo `period`, the tokens at `lags` before
    it), where padding stands before the document's start; period 1 without lags is the unigram model. With
    counts n of the training split and V - 1 ids (padding is no target),

        p(token | context) = (n(context, token) + w u(token)) / (n(context) + w)
        u(token)           = (n(token) + 1) / (N + V - 1)

    where w, one of BACKOFF_WEIGHTS, is the one that is best on validation (on train if there is no
    validation split). All scored tokens count, the first of a document included.

    Raises:
        ValueError: there is no train split, a period or lag is below 1, or the contexts overflow int64.
    """
    if "train" not in splits:
        raise ValueError(f"a baseline counts the train split, the splits are {sorted(splits)}")
    if period < 1 or any(lag < 1 for lag in lags):
        raise ValueError(f"period and lags must be at least 1, they are {period} and {tuple(lags)}")
    if period * vocabulary_size ** (len(lags) + 1) >= 2**63:
        raise ValueError(f"{len(lags)} lags over {vocabulary_size} ids are too many contexts for a table")

    contexts = {
        name: _contexts(split, period, lags, vocabulary_size, padding_id) for name, split in splits.items()
    }
    train = np.asarray(splits["train"].tokens).astype(np.int64)
    pair_keys, pair_counts = np.unique(contexts["train"] * vocabulary_size + train, return_counts=True)
    context_keys, context_counts = np.unique(contexts["train"], return_counts=True)
    unigram = np.bincount(train, minlength=vocabulary_size) + 1.0
    unigram[padding_id] = 0.0
    unigram /= unigram.sum()

    terms = {}  # n(context, token), n(context), u(token) of each scored token
    for name, split in splits.items():
        scored = np.flatnonzero(np.asarray(split.flags) & SCORED)
        tokens = np.asarray(split.tokens).astype(np.int64)[scored]
        context = contexts[name][scored]
        terms[name] = (
            _look_up(pair_keys, pair_counts, context * vocabulary_size + tokens),
            _look_up(context_keys, context_counts, context),
            unigram[tokens],
        )

    def nll(name: str, weight: float) -> float:
        pair, total, prior = terms[name]
        if not len(pair):
            return float("nan")
        return float(-np.log((pair + weight * prior) / (total + weight)).mean())

    chosen_on = "validation" if "validation" in splits and len(terms["validation"][0]) else "train"
    best = min(BACKOFF_WEIGHTS, key=lambda weight: nll(chosen_on, weight))
    return {name: nll(name, best) for name in splits}
