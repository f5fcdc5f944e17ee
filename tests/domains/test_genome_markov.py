from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from seqpope.data.baselines import BACKOFF_WEIGHTS
from seqpope.domains.genome.bases import SequenceError, reverse_complement
from seqpope.domains.genome.kmers import kmer_batches, kmer_codes, reverse_complements, two_bits
from seqpope.domains.genome.markov import HIGHEST, Markov, count_bases
from seqpope.domains.genome.sequences import as_text

SIZES = (0, 1, 2, 3, 4, 5, 7, 40, 333)


def drawn(size, seed=0, masked=True):
    """Bases of uneven composition with memory, some soft-masked."""
    random = np.random.default_rng(seed)
    bases = random.choice(4, size, p=[0.4, 0.1, 0.2, 0.3])
    bases[2::3] = (bases[:-2:3] + 1) % 4 if size > 2 else bases[2::3]
    soft = 8 * (random.random(size) < 0.3) if masked else 0
    return (bases + 1 + soft).astype(np.uint8)


def text_of(bases):
    return as_text(bases).upper()


def number(word):
    return sum("ACGT".index(letter) * 4 ** (len(word) - 1 - i) for i, letter in enumerate(word))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 31, 32])
def test_codes_are_those_of_each_word(k):
    for size in (0, k - 1, k, k + 1, 50):
        text = text_of(drawn(size, k))
        codes = kmer_codes(two_bits(drawn(size, k)), k)
        assert codes.tolist() == [number(text[i : i + k]) for i in range(size - k + 1)]
        other = reverse_complements(codes, k)
        assert other.tolist() == [number(reverse_complement(text[i : i + k])) for i in range(size - k + 1)]


@pytest.mark.parametrize("batch", [1, 3, 7, 64, 10_000])
@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_batches_hold_every_word_once_and_none_across_stretches(k, batch):
    stretches = [drawn(size, size) for size in SIZES]
    expected = [number(text_of(s)[i : i + k]) for s in stretches for i in range(len(s) - k + 1)]
    assert np.concatenate(list(kmer_batches(stretches, k, batch))).tolist() == expected


def naive_counts(stretches, j):
    found = Counter()
    for stretch in stretches:
        for text in (text_of(stretch), reverse_complement(text_of(stretch))):
            found.update(text[i : i + j + 1] for i in range(len(text) - j))
    return [[found["".join((*c, b))] for b in "ACGT"] for c in itertools.product("ACGT", repeat=j)]


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_counts_are_exact_at_every_order_and_at_stretches_ends(order):
    stretches = [drawn(size, size) for size in SIZES]
    tables = count_bases(iter(stretches), order)
    assert len(tables) == order + 1
    for j, table in enumerate(tables):
        assert table.tolist() == naive_counts(stretches, j)


def test_both_strands_count_alike():
    stretch = drawn(500, masked=False)
    other = (5 - stretch[::-1]).astype(np.uint8)
    for one, two in zip(count_bases([stretch], 5), count_bases([other], 5), strict=True):
        assert (one == two).all()


def naive_probability(counts, weights, text, position, order):
    """By the formula of the module, recursively."""

    def p(j, context, base):
        if j < 0:
            return 0.25
        row = counts[j][number(context)] if j else counts[0][0]
        prior = p(j - 1, context[1:], base)
        return (float(row["ACGT".index(base)]) + weights[j] * prior) / (float(sum(map(int, row))) + weights[j])

    j = min(order, position)
    return p(j, text[position - j : position], text[position])


def test_probabilities_are_those_of_the_formula():
    training, validation = [drawn(900, 1), drawn(50, 2)], [drawn(400, 3)]
    counts = count_bases(training, 4)
    kept = [table.copy() for table in counts]
    model = Markov(counts, validation)
    assert counts == []
    stretches = [drawn(size, 100 + size) for size in SIZES]
    orders = (4, 0, 2)
    nats = model.nats(stretches, orders)
    assert nats.shape == (3, sum(SIZES))
    for row, order in zip(nats, orders, strict=True):
        expected = [
            -np.log(naive_probability(kept, model.weights, text_of(s), i, order))
            for s in stretches
            for i in range(len(s))
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_weights_are_the_best_on_validation():
    training, validation = [drawn(3000, 1)], [drawn(900, 3), drawn(100, 4)]
    model = Markov(count_bases(training, 3), validation)
    best = model.nats(validation, [3])[0]
    late = np.concatenate([np.arange(len(s)) >= 3 for s in validation])
    for other in BACKOFF_WEIGHTS:
        counts = count_bases(training, 3)
        worse = Markov(counts, validation)
        worse.weights[3] = other
        table, below = count_bases(training, 3)[3].astype(float), model.probabilities[2]
        p = (table + other * np.tile(below, (4, 1))) / (table.sum(1, keepdims=True) + other)
        worse.probabilities[3] = p.astype(np.float32)
        assert worse.nats(validation, [3])[0][late].sum() >= best[late].sum() - 1e-3


@pytest.mark.parametrize("order", [0, 3, 7])
def test_every_context_has_a_distribution(order):
    model = Markov(count_bases([drawn(2000)], order), [drawn(300, 1)])
    for j, p in enumerate(model.probabilities):
        assert p.shape == (4**j, 4)
        assert (p > 0).all()
        np.testing.assert_allclose(p.sum(1, dtype=np.float64), 1, atol=1e-6)


def test_a_source_of_order_two_is_found_and_noise_is_not_believed():
    random = np.random.default_rng(0)
    source = random.dirichlet(np.full(4, 0.5), 16)
    letters = [0, 1]
    for u in random.random(60_000):
        row = source[4 * letters[-2] + letters[-1]].cumsum()
        letters.append(min(3, int(np.searchsorted(row, u))))
    bases = (np.array(letters) + 1).astype(np.uint8)
    training, validation, test = bases[:30_000], bases[30_000:40_000], bases[40_000:]
    # Counts are of both strands, and the other one is another source: a mixture, which longer words tell apart.
    model = Markov(count_bases([training], 6), [validation])
    by_order = model.nats([test], range(7)).mean(1)
    entropy = -np.mean(
        np.log([source[4 * a + b, c] for a, b, c in zip(test - 1, test[1:] - 1, test[2:] - 1, strict=False)])
    )
    assert entropy - 0.01 < by_order[6] <= by_order[2] < by_order[1] < by_order[0] < np.log(4) + 0.05
    # On noise, order 6 of few counts learns to keep to the lower ones.
    noise = [(random.integers(0, 4, 4000) + 1).astype(np.uint8) for _ in range(3)]
    deep = Markov(count_bases(noise[:1], 6), noise[1:2])
    assert deep.weights[6] == BACKOFF_WEIGHTS[-1]
    assert abs(deep.nats(noise[2:], [6]).mean() - np.log(4)) < 0.01


def test_soft_masking_changes_nothing():
    bases = drawn(700)
    model = Markov(count_bases([bases], 3), [bases])
    other = Markov(count_bases([bases & 7], 3), [bases & 7])
    assert model.weights == other.weights
    assert (model.nats([bases], [3]) == other.nats([bases & 7], [3])).all()


def test_long_stretches_are_cut_without_a_trace(monkeypatch):
    monkeypatch.setattr("seqpope.domains.genome.markov.BATCH", 64)
    stretches = [drawn(size, size) for size in (*SIZES, 200)]
    model = Markov(count_bases(stretches, 4), stretches)
    apart = np.concatenate([model.nats([s], [4])[0] for s in stretches])
    assert (model.nats(stretches, [4])[0] == apart).all()


def test_what_cannot_be_counted_is_told():
    known = drawn(20)
    with pytest.raises(SequenceError, match="base 1 of a stretch is not known"):
        count_bases([np.array([1, 0, 3], np.uint8)], 1)
    with pytest.raises(SequenceError, match="no base's code"):
        count_bases([np.array([1, 7, 3], np.uint8)], 1)
    with pytest.raises(ValueError, match="orders 0 to"):
        count_bases([known], HIGHEST + 1)
    with pytest.raises(ValueError, match="validation bases: expected some"):
        Markov(count_bases([known], 1), [])
    with pytest.raises(ValueError, match="asked for"):
        Markov(count_bases([known], 1), [known]).nats([known], [2])
    assert Markov(count_bases([known], 1), [known]).nats([], [1]).shape == (1, 0)
