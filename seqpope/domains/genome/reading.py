"""Bases of a store (`sequences`) read as a tokenizer's tokens, many at once, by tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from seqpope.data.shards import StoreError
from seqpope.domains.genome.sequences import SOFT_MASKED
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer

_CHUNK = 3 << 14  # bases at once; their temporaries then stay in the cache
_DIGITS = "TACG"
_LAST_BITS = np.uint64(0x0303_0303_0303)
_PAIRED = np.uint64(4 << 8 | 1)
_EACH_SECOND = np.uint64(0x0F00_0F00_0F00)
_GATHERED = np.uint64(1 << 52 | 1 << 32 | 1 << 12)
_TO_THE_END = np.uint64(52)
_MASKED = np.uint64(0x0808_0808_0808)
_SUMMED = np.uint64(0x0101_0101_0101)
_TO_THE_SUM = np.uint64(43)


class Reading:
    """How a tokenizer reads known bases, k to a token.

    Words of k bases are numbered with the last two bits of a base as digits, T being 0, A 1, C 2 and G 3.

    Attributes:
        k: bases in a token, 1 or 6.
        dtype: of ids on disk and in splits.
        forward: (4^k,) int64 the id of each word.
        reverse: (4^k,) the id of its reverse complement.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.k = tokenizer, round(tokenizer.units["base"])
        if self.k not in (1, 6):
            raise ValueError(f"a token of 1 or 6 bases was expected, one of {self.k} came")
        words = ["".join(word) for word in itertools.product(_DIGITS, repeat=self.k)]
        number = np.arange(len(words))
        self.forward = np.asarray(tokenizer.encode("".join(words)), np.int64)
        # The other strand's digits are those of the other bases of the pairs TA and CG, in reverse order.
        other = np.zeros_like(number)
        for place in range(self.k):
            other = 4 * other + ((number >> (2 * place)) % 4 ^ 1)
        self.reverse = self.forward[other]
        self.dtype = np.uint16 if tokenizer.vocabulary_size > 256 else np.uint8

    def numbers(self, bases: np.ndarray) -> np.ndarray:
        """The number of each word: (k T,) uint8 bases, contiguous -> (T,) int64. With N wrong, but in range."""
        if self.k == 1:
            return (bases & 3).astype(np.int64)
        words = _words(bases)
        words &= _LAST_BITS
        # A digit times four is added to the next one: each second byte holds two digits then.
        words *= _PAIRED
        words &= _EACH_SECOND
        # Those of bytes 1, 3 and 5 come to stand side by side in the highest twelve bits, where nothing else does.
        words *= _GATHERED
        words >>= _TO_THE_END
        return words.view(np.int64)

    def soft(self, bases: np.ndarray) -> np.ndarray:
        """How many bases of each word are soft-masked: (k T,) uint8 -> (T,) uint8."""
        if self.k == 1:
            return (bases & SOFT_MASKED) >> 3
        out = np.empty(len(bases) // 6, np.uint8)
        for place in range(0, len(bases), _CHUNK):
            words = _words(bases[place : place + _CHUNK])
            words &= _MASKED
            words *= _SUMMED  # the sixth byte is the sum of all six
            words >>= _TO_THE_SUM
            out[place // 6 : place // 6 + len(words)] = words
        out &= 7
        return out

    def ids(self, bases: np.ndarray) -> np.ndarray:
        """Token ids of known bases, (k T,) uint8 -> (T,) of `dtype`."""
        table = self.forward.astype(self.dtype)
        out = np.empty(len(bases) // self.k, self.dtype)
        for place in range(0, len(bases), _CHUNK):
            some = np.ascontiguousarray(bases[place : place + _CHUNK])
            out[place // self.k : (place + len(some)) // self.k] = table.take(self.numbers(some))
        return out


def _words(bases: np.ndarray) -> np.ndarray:
    """The six bytes of each word in the low ones of an integer, the first lowest: (6 T,) uint8 -> (T,) uint64.

    The high two bytes are the next word's.
    """
    room = np.empty(len(bases) + 8, np.uint8)
    room[: len(bases)] = bases
    return np.ndarray((len(bases) // 6,), "<u8", room, 0, (6,)).copy()


def reading_of(fingerprint: str) -> Reading:
    """How the tokenizer of that fingerprint reads.

    Raises:
        StoreError: this version has none of it.
    """
    for tokenizer in (SixMerTokenizer(), BaseTokenizer()):
        if tokenizer.fingerprint == fingerprint:
            return Reading(tokenizer)
    raise StoreError(
        f"this version has no DNA tokenizer with the fingerprint {fingerprint[:12]}: prepare the data again"
    )
