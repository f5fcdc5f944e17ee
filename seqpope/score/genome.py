"""The genome that a path means, and what tells it from others."""

from __future__ import annotations

import hashlib
import json

from seqpope.domains.genome.indexed import FastaGenome
from seqpope.domains.genome.sequences import Genome
from seqpope.domains.genome.store import GenomeStore, open_genome

__all__ = ["identity", "open_genome"]


def identity(genome: Genome) -> str:
    """SHA-256 over contigs and what stands for their bases: a store's digest; a file's size and time of change,
    since reading gigabytes takes longer than scoring a region; else the bases."""
    digest = hashlib.sha256(json.dumps([*genome.contigs.items()]).encode())
    if isinstance(genome, GenomeStore):
        digest.update(genome.manifest.content.encode())
    elif isinstance(genome, FastaGenome):
        status = genome.path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    else:
        for name, length in genome.contigs.items():
            digest.update(genome.fetch(name, 0, length).tobytes())
    return digest.hexdigest()
