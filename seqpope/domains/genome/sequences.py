"""Genomes to read from: bases as one byte each, contigs by any of their names, known stretches between N.

A base is 0 where it is not known (N, and any other IUPAC code), 1 to 4 for A, C, G and T, plus 8 where the FASTA
has lower case (soft-masked, mostly repeats). The strand that is not written runs backwards through 5 - base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from seqpope.domains.genome.bases import SequenceError

UNKNOWN, A, C, G, T = range(5)
SOFT_MASKED = 8
_LETTERS = np.frombuffer(b"NACGT...nacgt...", np.uint8)


class Genome(Protocol):
    """What can be read of a genome; positions count from 0, intervals are half-open.

    Attributes:
        contigs: length of each contig, in the file's order.
    """

    contigs: Mapping[str, int]

    def resolve(self, name: str) -> str:
        """The contig that a name means, aliases (chr1, 1, NC_000001.11) included.

        Raises:
            SequenceError: there is none; the names there are, are named.
        """
        ...

    def fetch(self, contig: str, start: int, end: int) -> np.ndarray:
        """Bases [start, end) of a contig, (end - start,) uint8.

        Raises:
            SequenceError: the contig is not there or the interval not inside it.
        """
        ...

    def stretches(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        """The maximal runs of known bases within [start, end), cut at its borders, (S, 2) int64 in order."""
        ...


def known_stretches(bases: np.ndarray, offset: int = 0) -> np.ndarray:
    """The maximal runs of known bases, (S, 2) int64 starts and ends, `offset` added."""
    unknown = np.concatenate(([True], (bases & 7) == UNKNOWN, [True]))
    return np.flatnonzero(unknown[1:] != unknown[:-1]).reshape(-1, 2) + offset


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Intervals (S, 2) int64 in order, of which those that touch become one."""
    edges = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    new = np.ones(len(edges) + 1, bool)
    new[1:-1] = edges[1:, 0] != edges[:-1, 1]
    return np.column_stack((edges[new[:-1], 0], edges[new[1:], 1]))


def other_strand(bases: np.ndarray) -> np.ndarray:
    """The reverse complement; soft-masking stays with its base."""
    letter = bases[::-1] & 7
    return np.where(letter == UNKNOWN, UNKNOWN, 5 - letter).astype(np.uint8) | (bases[::-1] & SOFT_MASKED)


def as_text(bases: np.ndarray) -> str:
    """The letters, lower case where soft-masked."""
    return _LETTERS[bases].tobytes().decode("ascii")


class ArrayGenome:
    """A genome held in memory: contig names to bases."""

    def __init__(self, sequences: Mapping[str, np.ndarray]) -> None:
        self._sequences = dict(sequences)
        self.contigs = {name: len(bases) for name, bases in self._sequences.items()}

    def resolve(self, name: str) -> str:
        if name not in self.contigs:
            raise SequenceError(f"there is no contig {name!r}: there are {', '.join(list(self.contigs)[:5])}")
        return name

    def fetch(self, contig: str, start: int, end: int) -> np.ndarray:
        length = self.contigs[self.resolve(contig)]
        if not 0 <= start <= end <= length:
            raise SequenceError(f"{contig}:{start}-{end} is not inside the contig's {length} bases")
        return self._sequences[contig][start:end]

    def stretches(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        end = self.contigs[contig] if end is None else end
        return known_stretches(self.fetch(contig, start, end), start)
