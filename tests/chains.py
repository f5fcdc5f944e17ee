"""A Markov chain that is asked as a model of DNA is, and small genomes and variants to ask it of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from seqpope.domains.genome.sequences import ArrayGenome
from seqpope.domains.genome.vcf import Record

ORDER = 3


class Chain:
    """A Markov chain as a model. A base's nats depend on the ORDER bases before it in its row, fewer at its start.

    With `borders` they depend on its place in its token too, as a six-mer model's do.
    """

    def __init__(self, k: int = 6, length: int = 16, borders: bool = False, seed: int = 0) -> None:
        self.k, self.length, self.rows = k, length, 0
        random = np.random.default_rng(seed)
        tables = random.gamma(1.0, size=(k if borders else 1, 5**ORDER, 4))
        self.tables = -np.log(tables / tables.sum(-1, keepdims=True))
        self.borders = borders

    def read(self, bases: np.ndarray, lead: int = 0) -> np.ndarray:
        padded = np.concatenate((np.zeros(ORDER, int), bases))
        past = sum(padded[i : i + len(bases)] * 5**i for i in range(ORDER))
        place = (np.arange(len(bases)) - lead) % self.k if self.borders else 0
        return self.tables[place, past, bases.astype(int) - 1]

    def begin(self, rows):
        self.rows += len(rows)
        for row in rows:
            assert row.bases.dtype == np.uint8
            assert set(row.bases.tolist()) <= {1, 2, 3, 4}
            assert 0 <= row.lead < self.k
            assert 0 <= row.context <= len(row.bases) <= self.k * self.length
        nats = [self.read(row.bases, row.lead)[row.context :].astype(np.float32) for row in rows]
        return SimpleNamespace(result=lambda: SimpleNamespace(nats=nats))


def codes(text: str) -> np.ndarray:
    return np.array(["NACGT".index(letter) for letter in text.upper()], np.uint8)


def letters(bases: np.ndarray) -> str:
    return "".join("NACGT"[base & 7] for base in bases)


def genome_of(bases: np.ndarray | str) -> ArrayGenome:
    return ArrayGenome({"c": codes(bases) if isinstance(bases, str) else bases})


def record(position: int, ref: str, *alts: str, contig: str = "c") -> Record:
    """Position from 0."""
    text = f"{contig}\t{position + 1}\t.\t{ref}\t{','.join(alts) or '.'}\t.\t.\t."
    return Record(1, contig, position, ".", ref, alts, text)
