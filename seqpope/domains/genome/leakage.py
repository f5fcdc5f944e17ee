"""Which bases of a test set also stand in the training sequences: those inside a 32-mer that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from seqpope.domains.genome.kmers import BATCH, kmer_batches, reverse_complements

K = 32
_SMALLEST, _LARGEST = 16, 32  # bits of a hash
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hashing


@dataclass(frozen=True)
class Leakage:
    """What a test set shares with training sequences on either strand.

    Attributes:
        k: bases of a word.
        words: k-mers of the test stretches, each place one.
        shared: how many of them occur in the training stretches.
        masks: for each test stretch (n,) bool, bases inside a shared k-mer.
    """

    k: int
    words: int
    shared: int
    masks: list[np.ndarray]

    @property
    def share(self) -> float:
        """Shared k-mers as a share of all; nan if there are none."""
        return self.shared / self.words if self.words else float("nan")


def find_shared(
    test: Sequence[np.ndarray],
    training: Iterable[np.ndarray],
    k: int = K,
    progress: Callable[[int], None] | None = None,
) -> Leakage:
    """Find the k-mers of test stretches that occur on either strand of training stretches, exactly.

    The test's k-mers are held, sorted, and a bitmap of their hashes on both strands: of a training k-mer mostly
    one bit is looked at. Memory: 20 bytes a base of the test set, a bitmap of at most 512 MB, chunks of training.

    Args:
        test: (n,) uint8 base codes each, without N.
        training: the same; read once.
        k: bases of a word, 1 to 32.
        progress: called with training bases read.

    Raises:
        SequenceError: a stretch holds N.
        ValueError: k is not between 1 and 32.
    """
    held = _Words(_distinct([_canonical(codes, k) for codes in kmer_batches(test, k)]), k)
    found = np.zeros(len(held.words), bool)
    done = 0

    def counted() -> Iterable[np.ndarray]:
        nonlocal done
        for stretch in training:
            yield stretch
            done += len(stretch)
            if progress is not None:
                progress(done)

    for codes in kmer_batches(counted(), k):
        found[held.find(codes)[1]] = True
    both = _Words(held.words[found], k)
    masks, words, shared = [], 0, 0
    for stretch in test:
        hit = np.zeros(max(0, len(stretch) - k + 1), bool)
        done = 0
        for codes in kmer_batches([stretch], k):
            hit[done + both.find(codes)[0]] = True
            done += len(codes)
        words += len(hit)
        shared += int(hit.sum())
        # A base is inside a hit if one starts at it or at one of the k - 1 before it.
        edges = np.zeros(len(stretch) + 1, np.int64)
        if len(hit):
            edges[: len(hit)] += hit
            edges[k : k + len(hit)] -= hit
        masks.append(np.cumsum(edges[:-1]) > 0)
    return Leakage(k, words, shared, masks)


class _Words:
    """A set of k-mers, both strands of each: sorted, with a bitmap of hashes that dismisses most others.

    `words` (n,) uint64 are canonical, distinct and in order.
    """

    def __init__(self, words: np.ndarray, k: int) -> None:
        self.words, self.k = words, k
        # 16 bits for each hash that is set: a sixteenth of what is not there goes on to be looked up.
        self.bits = int(np.clip(np.ceil(np.log2(32 * max(1, len(words)))), _SMALLEST, _LARGEST))
        self.bitmap = np.zeros(1 << (self.bits - 3), np.uint8)
        for start in range(0, len(words), BATCH):
            part = words[start : start + BATCH]
            for strand in (part, reverse_complements(part, k)):
                hashes = _hash(strand, self.bits)
                np.bitwise_or.at(self.bitmap, hashes >> 3, (1 << (hashes & 7)).astype(np.uint8))

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the k-mers are in the set, as indices, and the place in `words` of each of these."""
        hashes = _hash(codes.astype(np.uint64, copy=False), self.bits)
        left = np.flatnonzero((self.bitmap[hashes >> 3] >> (hashes & 7).astype(np.uint8)) & 1)
        if not len(left) or not len(self.words):
            return left[:0], left[:0]
        canonical = _canonical(codes[left], self.k)
        order = np.argsort(canonical)  # sorted ones are found thirty times as fast: caches
        canonical = canonical[order]
        places = np.minimum(np.searchsorted(self.words, canonical), len(self.words) - 1)
        inside = self.words[places] == canonical
        return left[order[inside]], places[inside]


def _distinct(words: list[np.ndarray]) -> np.ndarray:
    """The distinct ones in order; np.unique hashes, which is eighty times as slow on 64 bits."""
    every = np.sort(np.concatenate([*words, np.zeros(0, np.uint64)]))
    return every[np.append(True, every[1:] != every[:-1])] if len(every) else every


def _canonical(codes: np.ndarray, k: int) -> np.ndarray:
    """Of each k-mer and its reverse complement the smaller, uint64."""
    return np.minimum(codes.astype(np.uint64, copy=False), reverse_complements(codes, k))


def _hash(codes: np.ndarray, bits: int) -> np.ndarray:
    """The product's highest bits, (n,) int64."""
    return ((codes * _ODD) >> np.uint64(64 - bits)).astype(np.int64)
