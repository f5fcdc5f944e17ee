"""K-mers as numbers, two bits a base, first base highest: A 0, C 1, G 2, T 3, so that ~code is the complement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.sequences import UNKNOWN

BATCH = 1 << 22  # bases read at once
LONGEST = 32  # bases that fit 64 bits
_SWAPS = (  # masks and shifts that reverse a word's pairs of bits, from neighbours to halves
    (0x3333333333333333, 2),
    (0x0F0F0F0F0F0F0F0F, 4),
    (0x00FF00FF00FF00FF, 8),
    (0x0000FFFF0000FFFF, 16),
    (0x00000000FFFFFFFF, 32),
)


def two_bits(bases: np.ndarray) -> np.ndarray:
    """Known bases (codes of `sequences`, soft-masked or not) as (n,) uint8 numbers 0 to 3.

    Raises:
        SequenceError: a base is not known.
    """
    letters = np.bitwise_and(bases, 7, dtype=np.uint8) - np.uint8(1)
    if (letters > 3).any():
        place = int((letters > 3).argmax())
        what = "not known (N)" if bases[place] & 7 == UNKNOWN else f"{int(bases[place])}, no base's code"
        raise SequenceError(f"base {place} of a stretch is {what}: cut sequences at N (`known_stretches`) first")
    return letters


def kmer_codes(letters: np.ndarray, k: int) -> np.ndarray:
    """All k-mers of (n,) letters 0 to 3, (n - k + 1,) in the smallest unsigned type; none if n < k.

    Words of 1, 2, 4, ... letters are made by doubling, so that 32 letters take six steps and not 32.

    Raises:
        ValueError: k is not between 1 and 32.
    """
    if not 1 <= k <= LONGEST:
        raise ValueError(f"k-mers have 1 to {LONGEST} bases, got {k}")
    count = max(0, len(letters) - k + 1)
    done, made = np.zeros(len(letters) + 1, np.uint8), 0  # words of `made` letters
    word, width = letters, 1
    while True:
        if k & width:
            size = _type(made + width)
            end = max(0, len(letters) - made - width + 1)
            done = (done[:end].astype(size) << size(2 * width)) | word[made : made + end] if made else word
            made += width
        if made == k:
            return done[:count].astype(_type(k), copy=False)
        size = _type(2 * width)
        word = (word[:-width].astype(size) << size(2 * width)) | word[width:]
        width *= 2


def _type(width: int) -> type[np.unsignedinteger]:
    """The smallest type that holds `width` letters."""
    sizes = (np.uint8, np.uint16, np.uint32, np.uint64)
    return next(size for size in sizes if 4 * np.dtype(size).itemsize >= width)


def reverse_complements(codes: np.ndarray, k: int) -> np.ndarray:
    """The other strand of k-mers, any shape, uint64."""
    words = ~codes.astype(np.uint64)
    for mask, shift in _SWAPS:
        words = ((words >> np.uint64(shift)) & np.uint64(mask)) | ((words & np.uint64(mask)) << np.uint64(shift))
    return words >> np.uint64(64 - 2 * k)


def kmer_batches(stretches: Iterable[np.ndarray], k: int, batch: int = BATCH) -> Iterator[np.ndarray]:
    """The k-mers of known stretches in order, none across two of them, about `batch` at a time.

    Args:
        stretches: (n,) uint8 base codes each, without N; as many and as long as there are.

    Raises:
        SequenceError: a stretch holds N.
    """
    waiting: list[np.ndarray] = []
    size = 0

    def joined() -> np.ndarray:
        codes = kmer_codes(np.concatenate(waiting), k)
        borders = np.cumsum([len(part) for part in waiting[:-1]], dtype=np.int64)
        if not len(borders):
            return codes
        kept = np.ones(len(codes), bool)
        across = (borders[:, None] - np.arange(1, k)).ravel()
        kept[across[(across >= 0) & (across < len(codes))]] = False
        return codes[kept]

    for stretch in stretches:
        for start in range(0, len(stretch) - k + 1, batch):
            letters = two_bits(stretch[start : start + batch + k - 1])
            waiting.append(letters)
            size += len(letters)
            if size >= batch:
                yield joined()
                waiting, size = [], 0
    if waiting:
        yield joined()
