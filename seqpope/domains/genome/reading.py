"""Bases of a store (`sequences`) read as a tokenizer's tokens, many at once, by tables."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from seqpope.data.shards import StoreError
from seqpope.domains.genome.sequences import SOFT_MASKED
from seqpope.domains.genome.tokenizer import BaseTokenizer, SixMerTokenizer

_CHUNK = 3 << 14  # bases at once; their temporaries then stay in the cache


class Reading:
    """How a tokenizer reads known bases, k to a token.

    Attributes:
        k: bases in a token, 1 or 6.
        dtype: of ids on disk and in splits.
        forward: (4^k,) int64 the id of each word; words are numbered with A, C, G, T as the digits 0 to 3.
        reverse: (4^k,) the id of its reverse complement.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.k = tokenizer, round(tokenizer.units["base"])
        if self.k not in (1, 6):
            raise ValueError(f"a token of 1 or 6 bases was expected, one of {self.k} came")
        words = ["".join(word) for word in itertools.product("ACGT", repeat=self.k)]
        number = np.arange(len(words))
        self.forward = np.asarray(tokenizer.encode("".join(words)), np.int64)
        # The other strand's digits are 3 - digit, in reverse order.
        other = np.zeros_like(number)
        for place in range(self.k):
            other = 4 * other + (3 - (number >> (2 * place)) % 4)
        self.reverse = self.forward[other]
        self.dtype = np.uint16 if tokenizer.vocabulary_size > 256 else np.uint8

    def numbers(self, bases: np.ndarray) -> np.ndarray:
        """The number of each word: (k T,) uint8 bases, contiguous -> (T,) uint16. With N wrong, but in range."""
        if self.k == 1:
            return ((bases - 1) & 3).astype(np.uint16)
        # Two bases of 16 bits at once, the first in the low byte: each less one, in two bits, the first above.
        pairs = bases.view("<u2") & 0x0707
        pairs -= 0x0101
        second = pairs >> 8
        pairs <<= 2
        pairs |= second
        pairs &= 15
        numbers = pairs[0::3] << 8
        numbers |= pairs[1::3] << 4
        numbers |= pairs[2::3]
        return numbers

    def soft(self, bases: np.ndarray) -> np.ndarray:
        """How many bases of each word are soft-masked: (k T,) uint8 -> (T,) uint8."""
        if self.k == 1:
            return (bases & SOFT_MASKED) >> 3
        out = np.empty(len(bases) // 6, np.uint8)
        for place in range(0, len(bases), _CHUNK):
            some = np.ascontiguousarray(bases[place : place + _CHUNK])
            pairs = (some.view("<u2") >> 3) & 0x0101
            pairs = (pairs + (pairs >> 8)) & 3
            out[place // 6 : (place + len(some)) // 6] = pairs[0::3] + pairs[1::3] + pairs[2::3]
        return out

    def ids(self, bases: np.ndarray) -> np.ndarray:
        """Token ids of known bases, (k T,) uint8 -> (T,) of `dtype`."""
        table = self.forward.astype(self.dtype)
        out = np.empty(len(bases) // self.k, self.dtype)
        for place in range(0, len(bases), _CHUNK):
            some = np.ascontiguousarray(bases[place : place + _CHUNK])
            out[place // self.k : (place + len(some)) // self.k] = table.take(self.numbers(some))
        return out


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
