"""Which bases of a test set also stand in the training sequences: those inside a 32-mer that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from seqpope.domains.genome.kmers import BATCH, kmer_batches, kmer_codes, reverse_complements, two_bits

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

    The test's k-mers are held, sorted, and a bitmap of their hashes on both strands: of a training k-mer mostly one
    bit is looked at. Memory: 8 bytes a base of the test set, bitmap of up to 512 MB, chunks of training.

    Args:
        test: (n,) uint8 base codes each, without N.
        training: the same; read once.
        k: bases of a word, 1 to 32.
        progress: called with training bases read.

    Raises:
        SequenceError: a stretch holds N.
        ValueError: k is not between 1 and 32.
    """
    distinct = np.unique(np.concatenate([*(_words(s, k) for s in test), np.zeros(0, np.uint64)]))
    found = np.zeros(len(distinct), bool)
    # 16 bits for each hash that is set: a sixteenth of what is not there goes on to be looked up.
    bits = int(np.clip(np.ceil(np.log2(32 * max(1, len(distinct)))), _SMALLEST, _LARGEST))
    bitmap = np.zeros(1 << (bits - 3), np.uint8)
    for start in range(0, len(distinct), BATCH):
        part = distinct[start : start + BATCH]
        for strand in (part, reverse_complements(part, k)):
            hashes = _hash(strand, bits)
            np.bitwise_or.at(bitmap, hashes >> 3, (1 << (hashes & 7)).astype(np.uint8))

    done = 0

    def counted() -> Iterable[np.ndarray]:
        nonlocal done
        for stretch in training:
            yield stretch
            done += len(stretch)
            if progress is not None:
                progress(done)

    for codes in kmer_batches(counted(), k):
        codes = codes.astype(np.uint64, copy=False)
        hashes = _hash(codes, bits)
        left = codes[(bitmap[hashes >> 3] >> (hashes & 7).astype(np.uint8)) & 1 > 0]
        if len(left) and len(distinct):
            left = np.unique(_canonical(left, k))
            at = np.minimum(np.searchsorted(distinct, left), len(distinct) - 1)
            found[at[distinct[at] == left]] = True
    masks, words, shared = [], 0, 0
    for stretch in test:
        hit = found[np.searchsorted(distinct, _words(stretch, k))]
        words += len(hit)
        shared += int(hit.sum())
        # A base is inside a hit if one starts at it or at one of the k - 1 before it.
        edges = np.zeros(len(stretch) + 1, np.int64)
        if len(hit):
            edges[: len(hit)] += hit
            edges[k : k + len(hit)] -= hit
        masks.append(np.cumsum(edges[:-1]) > 0)
    return Leakage(k, words, shared, masks)


def _words(stretch: np.ndarray, k: int) -> np.ndarray:
    """The canonical k-mers of known bases, (n - k + 1,) uint64."""
    return _canonical(kmer_codes(two_bits(stretch), k), k)


def _canonical(codes: np.ndarray, k: int) -> np.ndarray:
    """Of each k-mer and its reverse complement the smaller, uint64."""
    return np.minimum(codes.astype(np.uint64, copy=False), reverse_complements(codes, k))


def _hash(codes: np.ndarray, bits: int) -> np.ndarray:
    """The product's highest bits, (n,) int64."""
    return ((codes * _ODD) >> np.uint64(64 - bits)).astype(np.int64)
