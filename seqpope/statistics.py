"""Means, intervals and paired differences. NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, special, stats


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values with its sample standard deviation and two-sided 95% t interval.

    Standard deviation and interval are None for a single value: one run says nothing of its spread.
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean, sample standard deviation and Student t interval.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    x = np.asarray(values, np.float64)
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"an estimate needs at least one value and only finite ones, got {list(values)}")
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, 1)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1)) * sd / np.sqrt(len(x))
    return Estimate(mean, len(x), sd, mean - half, mean + half)


def detectable_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a paired two-sided t test on `n` pairs finds with this power.

    Args:
        sd: standard deviation of the paired differences; the effect comes in its unit.

    Raises:
        ValueError: n is below 2, sd is negative or not finite, or power is not between alpha and 1.
    """
    if n < 2:
        raise ValueError(f"a paired t test needs at least 2 pairs, got {n}")
    if not 0 <= sd < np.inf:
        raise ValueError(f"expected a standard deviation of 0 or more, got {sd}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"expected 0 < alpha < power < 1, got {alpha} and {power}")
    chi = stats.chi(n - 1)
    critical = stats.t.isf(alpha / 2, n - 1) / np.sqrt(n - 1)
    ends = float(chi.ppf(1e-12)), float(chi.isf(1e-12))

    # Integrated over the sample's spread: SciPy's noncentral t is NaN where 2 or 3 pairs put the answer.
    def missing(shift: float) -> float:
        def density(s: float) -> float:
            return float(chi.pdf(s) * (special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)))

        return float(integrate.quad(density, *ends, limit=200)[0]) - power

    high = 4.0
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0, high)) * sd / np.sqrt(n)


def rate_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of the probability of what happened `count` times in `n`.

    Raises:
        ValueError: n is below 1, or count is not from 0 to n.
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"expected a count from 0 to n, and n of at least 1, got {count} and {n}")
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(stats.beta.isf(tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def equal_rates(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test that two counts, each (count, n), have one probability."""
    return float(stats.fisher_exact([[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]])[1])


def bootstrap_difference(
    nats_a: np.ndarray,
    nats_b: np.ndarray,
    tokens: np.ndarray,
    *,
    resamples: int = 10000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference in nats/token, a - b, with a percentile interval from resampling pieces in pairs.

    Args:
        nats_a: (pieces,) summed nats of each piece under model a (averaged over its seeds).
        nats_b: (pieces,) the same pieces under model b.
        tokens: (pieces,) scored tokens of each piece.

    Returns:
        The difference on all pieces and the interval's ends. The interval speaks of other pieces of the same
        kind, not of other seeds. A piece without scored tokens takes no part.

    Raises:
        ValueError: the arrays differ in length, or no piece has a scored token.
    """
    difference = np.asarray(nats_a, np.float64) - np.asarray(nats_b, np.float64)
    tokens = np.asarray(tokens, np.float64)
    if difference.shape != tokens.shape or tokens.ndim != 1:
        raise ValueError(f"expected nats and tokens of the same pieces, got {difference.shape} and {tokens.shape}")
    difference, tokens = difference[tokens > 0], tokens[tokens > 0]
    if len(tokens) == 0:
        raise ValueError("the bootstrap needs at least one piece with scored tokens")
    random = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    at_once = max(1, 4_000_000 // len(tokens))  # 32 MB of indices: a genome has thousands of documents
    for start in range(0, resamples, at_once):
        part = ratios[start : start + at_once]
        chosen = random.integers(0, len(tokens), (len(part), len(tokens)))
        part[:] = difference[chosen].sum(1) / tokens[chosen].sum(1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference.sum() / tokens.sum()), float(low), float(high)
