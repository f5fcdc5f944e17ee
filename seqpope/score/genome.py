"""The genome that a path means."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from seqpope.domains.genome.bases import letter_codes
from seqpope.domains.genome.codec import read_fasta
from seqpope.domains.genome.sequences import SOFT_MASKED, ArrayGenome, Genome


def open_genome(path: Path) -> Genome:
    """A FASTA file's sequences.

    Raises:
        SeqpopeError: it cannot be read as FASTA of DNA.
    """
    sequences = {}
    for record in read_fasta(path):
        letters = np.frombuffer(record.sequence.encode("ascii"), np.uint8)
        masked = np.where(letters >= ord("a"), SOFT_MASKED, 0).astype(np.uint8)
        codes = letter_codes(letters, "NACGT", Counter())
        sequences[record.name] = codes | np.where(codes > 0, masked, 0).astype(np.uint8)
    return ArrayGenome(sequences)


def identity(genome: Genome) -> str:
    """SHA-256 over names and bases."""
    digest = hashlib.sha256()
    for name, length in genome.contigs.items():
        digest.update(f"{name}\t{length}\n".encode())
        for start in range(0, length, 1 << 24):
            digest.update(genome.fetch(name, start, min(length, start + (1 << 24))) & 7)
    return digest.hexdigest()
