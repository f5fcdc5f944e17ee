"""Intervals against SciPy's own tests, power and coverage against simulation, laws of paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from seqpope.statistics import (
    Estimate,
    bootstrap_difference,
    detectable_effect,
    equal_rates,
    estimate,
    rate_interval,
)

values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


class TestEstimate:
    def test_by_hand(self):
        # sd of 1, 2, 3 is 1; t of 2 degrees of freedom at 97.5% is 4.302653; half = 4.302653 / sqrt(3)
        e = estimate([1.0, 2.0, 3.0])
        assert (e.mean, e.sd, e.n) == (2.0, 1.0, 3)
        assert e.low == pytest.approx(2 - 2.484138, abs=1e-6)
        assert e.high == pytest.approx(2 + 2.484138, abs=1e-6)

    @given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
    def test_interval_is_that_of_the_t_test(self, x, confidence):
        e = estimate(x, confidence)
        assert e.mean == pytest.approx(np.mean(x))
        assert e.sd == pytest.approx(np.std(x, ddof=1))
        if e.sd > 1e-9:
            theirs = stats.ttest_1samp(x, 0).confidence_interval(confidence)
            assert (e.low, e.high) == pytest.approx((theirs.low, theirs.high))

    @pytest.mark.parametrize("true", [0.0, 1.7])
    def test_coverage(self, true):
        random = np.random.default_rng(0)
        drawn = [estimate(random.normal(true, 0.3, 3)) for _ in range(2000)]
        assert np.mean([e.low <= true <= e.high for e in drawn]) == pytest.approx(0.95, abs=0.015)

    def test_one_value_has_no_spread(self):
        assert estimate([0.4]) == Estimate(0.4, 1, sd=None, low=None, high=None)

    @pytest.mark.parametrize("bad", [[], [0.1, float("nan")], [float("inf")]])
    def test_refusals(self, bad):
        with pytest.raises(ValueError, match="at least one value and only finite"):
            estimate(bad)


class TestDetectableEffect:
    @pytest.mark.parametrize("n", [4, 10, 30, 100])
    def test_power_by_the_noncentral_t(self, n):
        shift = detectable_effect(1.0, n) * np.sqrt(n)
        critical = stats.t.ppf(0.975, n - 1)
        power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        assert power == pytest.approx(0.8, abs=1e-8)

    @pytest.mark.parametrize("n", [2, 3, 5])
    @pytest.mark.parametrize("power", [0.5, 0.8])
    def test_a_t_test_finds_it_so_often(self, n, power):
        effect = detectable_effect(0.02, n, power)
        drawn = np.random.default_rng(n).normal(effect, 0.02, (20000, n))
        found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(power, abs=0.012)

    def test_scales_with_spread_and_falls_with_pairs(self):
        effects = [detectable_effect(1.0, n) for n in range(2, 9)]
        assert effects == sorted(effects, reverse=True)
        assert detectable_effect(0.03, 4) == pytest.approx(0.03 * effects[2])
        assert detectable_effect(0.0, 4) == 0  # seeds that agree exactly

    def test_strict_power_and_small_level_have_answers(self):
        assert detectable_effect(1.0, 2, power=0.99, alpha=0.001) > detectable_effect(1.0, 2, power=0.99) > 20

    @pytest.mark.parametrize(
        "bad", [{"n": 1}, {"sd": -1.0}, {"sd": float("nan")}, {"power": 0.01}, {"power": 1.0}]
    )
    def test_refusals(self, bad):
        with pytest.raises(ValueError, match=r"pairs|standard deviation|power"):
            detectable_effect(**{"sd": 1.0, "n": 3, **bad})


class TestBootstrap:
    def test_ratio_of_sums_not_mean_of_ratios(self):
        # Pieces differ by 1 and 0 nats/token; by tokens that is (10 + 0) / 100.
        mean, low, high = bootstrap_difference(np.array([20.0, 90.0]), np.array([10.0, 90.0]), np.array([10, 90]))
        assert mean == pytest.approx(0.1)
        assert (low, high) == (0.0, 1.0)  # resampling two pieces: either twice has a chance of a quarter

    def test_same_difference_everywhere_leaves_no_width(self):
        tokens = np.array([10, 20, 500])
        result = bootstrap_difference(tokens * 0.7, tokens * 0.9, tokens)
        assert result == pytest.approx((-0.2, -0.2, -0.2))

    def test_pairs_pieces(self):
        """Pieces differ a thousand times more among each other than the models do on any of them."""
        random = np.random.default_rng(1)
        tokens = random.integers(500, 1500, 60)
        hardness = random.uniform(0, 5, 60) * tokens
        gap = random.normal(0.01, 0.005, 60) * tokens
        mean, low, high = bootstrap_difference(hardness + gap, hardness, tokens)
        assert 0.005 < low < mean < high < 0.015
        assert (mean - low) == pytest.approx(1.96 * 0.005 / np.sqrt(60), rel=0.35)

    def test_swapping_models_mirrors_and_units_scale(self):
        random = np.random.default_rng(2)
        a, b, tokens = random.gamma(9, 50, 30), random.gamma(9, 50, 30), random.integers(100, 900, 30)
        mean, low, high = bootstrap_difference(a, b, tokens)
        assert bootstrap_difference(b, a, tokens) == pytest.approx((-mean, -high, -low))
        assert bootstrap_difference(2 * a, 2 * b, tokens) == pytest.approx((2 * mean, 2 * low, 2 * high))

    def test_is_the_same_each_time_and_its_seed_matters_little(self):
        random = np.random.default_rng(3)
        a, b, tokens = random.gamma(9, 50, 77), random.gamma(9, 50, 77), np.full(77, 900)
        first = bootstrap_difference(a, b, tokens)
        assert bootstrap_difference(a, b, tokens) == first
        other = bootstrap_difference(a, b, tokens, seed=1)
        assert other[0] == first[0]
        assert other[1:] != first[1:]
        assert other == pytest.approx(first, abs=0.05 * (first[2] - first[1]))

    def test_agrees_with_scipy(self):
        random = np.random.default_rng(4)
        tokens = random.integers(200, 2000, 77)
        difference = random.normal(-0.02, 0.05, 77) * tokens
        _, low, high = bootstrap_difference(difference, np.zeros(77), tokens)
        theirs = stats.bootstrap(
            (difference, tokens),
            lambda d, t, axis: d.sum(axis) / t.sum(axis),
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.04 * (high - low))

    def test_coverage(self):
        """Drawn again and again from a population of pieces, the interval holds its true ratio."""
        random = np.random.default_rng(6)
        held = []
        for _ in range(400):
            tokens = random.integers(300, 1500, 77)
            difference = tokens * (-0.01 + 0.02 * random.standard_normal(77))
            _, low, high = bootstrap_difference(difference, np.zeros(77), tokens, resamples=400)
            held.append(low <= -0.01 <= high)
        assert np.mean(held) == pytest.approx(0.94, abs=0.035)

    def test_many_documents_are_drawn_in_parts(self):
        random = np.random.default_rng(7)
        tokens = np.full(30000, 100)
        difference = tokens * random.normal(0.01, 0.1, 30000)
        mean, low, high = bootstrap_difference(difference, np.zeros(30000), tokens, resamples=300)
        half = 1.96 * 0.1 / np.sqrt(30000)
        assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.2)

    def test_pieces_without_scored_tokens_take_no_part(self):
        a, b, tokens = np.array([3.0, 0.0, 5.0]), np.array([2.0, 0.0, 5.0]), np.array([10, 0, 10])
        kept = tokens > 0
        assert bootstrap_difference(a, b, tokens) == bootstrap_difference(a[kept], b[kept], tokens[kept])

    def test_refusals(self):
        with pytest.raises(ValueError, match="at least one piece"):
            bootstrap_difference(np.zeros(2), np.zeros(2), np.zeros(2))
        with pytest.raises(ValueError, match="same pieces"):
            bootstrap_difference(np.zeros(3), np.zeros(3), np.ones(2))


class TestRates:
    def test_exact_intervals(self):
        assert rate_interval(0, 8) == (0.0, pytest.approx(1 - 0.025 ** (1 / 8)))
        assert rate_interval(8, 8) == (pytest.approx(0.025 ** (1 / 8)), 1.0)
        low, high = rate_interval(7, 8)
        assert (round(low, 4), round(high, 4)) == (0.4735, 0.9968)
        for wrong in ((0, 0), (3, 2), (-1, 2)):
            with pytest.raises(ValueError, match="a count from 0 to n"):
                rate_interval(*wrong)

    def test_two_counts(self):
        assert equal_rates((8, 8), (0, 8)) == pytest.approx(2 / 12870)
        assert equal_rates((1, 3), (1, 3)) == pytest.approx(1.0)
