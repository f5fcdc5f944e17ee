"""Means, intervals and paired differences. NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


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
        ValueError: there is no value.
    """
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        raise ValueError("an estimate needs at least one value")
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, 1)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1)) * sd / np.sqrt(len(x))
    return Estimate(mean, len(x), sd, mean - half, mean + half)


def detectable_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a paired two-sided t test on `n` pairs finds with this power.

    Solved on the noncentral t distribution, for differences with standard deviation `sd`.

    Raises:
        ValueError: n is below 2.
    """
    if n < 2:
        raise ValueError(f"a paired t test needs at least 2 pairs, got {n}")
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def missing(noncentrality: float) -> float:
        found = stats.nct.sf(critical, n - 1, noncentrality) + stats.nct.cdf(-critical, n - 1, noncentrality)
        return float(found) - power

    high = 2.0
    while missing(high) < 0:  # far out the noncentral t is not finite: stay as near as possible
        high *= 1.5
    return float(optimize.brentq(missing, 1e-6, high)) * sd / np.sqrt(n)


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
        kind, not of other seeds.
    """
    difference = np.asarray(nats_a, np.float64) - np.asarray(nats_b, np.float64)
    tokens = np.asarray(tokens, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(tokens), (resamples, len(tokens)))
    ratios = difference[chosen].sum(1) / tokens[chosen].sum(1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference.sum() / tokens.sum()), float(low), float(high)
