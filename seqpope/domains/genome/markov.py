"""Markov models of bases: the floors that a genome model has to beat, in nats/base.

A model of order k predicts a base from the k before it. Counts n are exact, of the training stretches alone, on
both strands; orders are interpolated as a hierarchical Dirichlet model does (MacKay and Peto, Natural Language
Engineering 1, 1995, with one weight an order):

    p_j(base | c) = (n(c, base) + w_j p_(j-1)(base | c without its first base)) / (n(c) + w_j),   p_(-1) = 1/4

for contexts c of j bases. w_j is that of `baselines.BACKOFF_WEIGHTS` which is best for p_j on validation, order by
order from 0 up. A base with fewer than k before it in its stretch is predicted by the order it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from seqpope.data.baselines import BACKOFF_WEIGHTS
from seqpope.domains.genome.kmers import BATCH, kmer_batches, kmer_codes, two_bits

HIGHEST = 13  # order; its counts take 1 GB
CHOOSING = 1_000_000  # validation bases that weights are chosen on
_BLOCK = 4**10  # contexts turned into probabilities at once
_UINT32 = 2**32 - 1


def count_bases(
    stretches: Iterable[np.ndarray], order: int, progress: Callable[[int], None] | None = None
) -> list[np.ndarray]:
    """How often each word of 1 to order + 1 bases occurs, on both strands, none across two stretches.

    Words are counted once, at the highest order; those of the lower ones are sums over the first base, and what
    stands too near a stretch's start to be the end of a longer word. Memory: 4^(order + 1) counters, twice.

    Args:
        stretches: (n,) uint8 base codes each, without N.
        progress: called with bases read.

    Returns:
        For j = 0..order counts (4^j, 4): context, base. uint32 where they fit, else uint64.

    Raises:
        SequenceError: a stretch holds N.
        ValueError: the order is not 0 to 13.
    """
    if not 0 <= order <= HIGHEST:
        raise ValueError(f"Markov models have orders 0 to {HIGHEST}, got {order}")
    starts: list[np.ndarray] = []  # the first up to `order` letters of each stretch and of its other strand
    done = 0

    def noting() -> Iterator[np.ndarray]:
        nonlocal done
        for stretch in stretches:
            edge = min(order, len(stretch))
            for letters in (two_bits(stretch[:edge]), 3 - two_bits(stretch[len(stretch) - edge :])[::-1]):
                starts.append(np.pad(letters, (0, order - edge), constant_values=255))
            yield stretch
            done += len(stretch)
            if progress is not None:
                progress(done)

    words = np.zeros(4 ** (order + 1), np.uint32)
    read = 0
    for codes in kmer_batches(noting(), order + 1):
        read += len(codes)
        if read > _UINT32 and words.dtype == np.uint32:
            words = words.astype(np.uint64)
        # An index of numpy's own type, or add.at takes three times as long.
        np.add.at(words, codes.astype(np.intp), words.dtype.type(1))
    tables = [_both_strands(words, order + 1).reshape(-1, 4)]
    first = np.array(starts, np.uint8).reshape(len(starts), order)
    for j in range(order - 1, -1, -1):
        shorter = tables[0].reshape(4, -1).sum(0, dtype=np.uint64)
        whole = first[first[:, j] < 4, : j + 1].astype(np.int64)
        codes = whole @ 4 ** np.arange(j, -1, -1)
        shorter += np.bincount(codes, minlength=len(shorter)).astype(np.uint64)
        size = np.uint32 if shorter.max(initial=0) <= _UINT32 else np.uint64
        tables.insert(0, shorter.astype(size).reshape(-1, 4))
    return tables


def _both_strands(words: np.ndarray, length: int) -> np.ndarray:
    """Counts (4^length,) of words plus those of their reverse complements."""
    if words.max(initial=0) > _UINT32 // 2:
        words = words.astype(np.uint64)
    a = length // 2  # a word is `a` bases, then b: its reverse complement is that of the b, then that of the a
    b = length - a
    of_a, of_b = (np.arange(4**n)[::-1].reshape((4,) * n).T.reshape(-1) for n in (a, b))
    both = words.copy()
    turned, halves = both.reshape(4**b, 4**a), words.reshape(4**a, 4**b)
    for start in range(0, 4**a, 64):
        turned[:, start : start + 64] += halves[of_a[start : start + 64]].T[of_b]
    return both


class Markov:
    """Interpolated Markov models of all orders up to one.

    Attributes:
        order: the highest.
        weights: w_j of each order.
        probabilities: for j = 0..order p_j (4^j, 4) float32: context, base.
    """

    def __init__(self, counts: list[np.ndarray], validation: Sequence[np.ndarray]) -> None:
        """Choose weights and turn counts of `count_bases` into probabilities; the list is emptied on the way.

        Args:
            validation: (n,) base codes each; of more than CHOOSING bases evenly spread stretches are taken.

        Raises:
            SequenceError: a stretch holds N.
            ValueError: there is no validation base.
        """
        if not any(map(len, validation)):
            raise ValueError("weights are chosen on validation bases: expected some, got none")
        self.order = len(counts) - 1
        self.weights: list[float] = []
        self.probabilities: list[np.ndarray] = []
        step = max(1, sum(map(len, validation)) // CHOOSING)
        codes, place = _words(validation[::step], self.order)
        below = np.full((1, 4), 0.25, np.float32)
        for j in range(self.order + 1):
            table = counts.pop(0)
            seen = codes[place >= j] & (4 ** (j + 1) - 1)
            # fp32 is three times as fast, and weights are a factor of sqrt(2) apart.
            found, prior = (x.reshape(-1)[seen & (x.size - 1)].astype(np.float32) for x in (table, below))
            total = _totals(table, seen >> 2)

            def nats(
                w: float, found: np.ndarray = found, total: np.ndarray = total, prior: np.ndarray = prior
            ) -> float:
                return float(-np.log((found + w * prior) / (total + w)).sum(dtype=np.float64))

            self.weights.append(min(BACKOFF_WEIGHTS, key=nats))
            below = _interpolated(table, below, self.weights[-1])
            self.probabilities.append(below)
            del table

    def nats(self, stretches: Sequence[np.ndarray], orders: Sequence[int]) -> np.ndarray:
        """Nats of every base of stretches laid end to end, by each order, (orders, N) float32.

        Raises:
            SequenceError: a stretch holds N.
            ValueError: an order is not there.
        """
        if any(not 0 <= order <= self.order for order in orders):
            raise ValueError(f"there are orders 0 to {self.order}, asked for {list(orders)}")
        out = np.empty((len(orders), sum(map(len, stretches))), np.float32)
        done = 0
        for part in _gathered(stretches):
            codes, place = _words(part, self.order)
            for row, order in enumerate(orders):
                p = self.probabilities[order].reshape(-1)[codes & (4 ** (order + 1) - 1)]
                for j in range(order):  # too near a stretch's start
                    early = place == j
                    if early.any():
                        p[early] = self.probabilities[j].reshape(-1)[codes[early] & (4 ** (j + 1) - 1)]
                out[row, done : done + len(codes)] = -np.log(p)
            done += len(codes)
        return out


def _words(stretches: Sequence[np.ndarray], order: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each base the word of order + 1 bases that it ends, (N,) int64, and its place in its stretch (N,).

    Near a stretch's start a word begins in the one before: only its last place + 1 bases mean something.
    """
    letters = [two_bits(stretch) for stretch in stretches]
    codes = kmer_codes(np.concatenate([np.zeros(order, np.uint8), *letters]), order + 1).astype(np.int64)
    sizes = np.array([len(stretch) for stretch in stretches], np.int64)
    starts = np.cumsum(sizes) - sizes
    return codes, np.arange(len(codes)) - np.repeat(starts, sizes)


def _gathered(stretches: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Stretches in groups of about BATCH bases."""
    group: list[np.ndarray] = []
    size = 0
    for stretch in stretches:
        group.append(stretch)
        size += len(stretch)
        if size >= BATCH or len(group) >= 4096:
            yield group
            group, size = [], 0
    if group:
        yield group


def _totals(table: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """How often each context occurs, (N,) float32."""
    if len(table) <= _BLOCK:
        return table.sum(1, dtype=np.float64)[contexts].astype(np.float32)
    rows = table[contexts]
    return (rows[:, 0].astype(np.float64) + rows[:, 1] + rows[:, 2] + rows[:, 3]).astype(np.float32)


def _interpolated(counts: np.ndarray, below: np.ndarray, weight: float) -> np.ndarray:
    """p_j (4^j, 4) float32 from its counts and p_(j-1)."""
    p = np.empty(counts.shape, np.float32)
    # A context without its first base is its number modulo 4^(j-1): blocks of `below` repeat.
    for start in range(0, len(counts), _BLOCK):
        n = counts[start : start + _BLOCK].astype(np.float64)
        total = n[:, 0] + n[:, 1] + n[:, 2] + n[:, 3] + weight
        if len(below) >= len(n):
            prior = below[start % len(below) :][: len(n)]
        else:
            prior = np.tile(below, (len(n) // len(below), 1))
        p[start : start + _BLOCK] = (n + weight * prior) / total[:, None]
    return p
