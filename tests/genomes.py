"""Small made-up genomes for tests: FASTA as bytes, bgzipped too, and prepared stores."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from seqpope.data.shards import Manifest
from seqpope.domains.genome.ingest import BGZF_END, ingest
from seqpope.domains.genome.store import BASES, GenomeStore, merged, write_genome
from seqpope.domains.genome.tokenizer import SixMerTokenizer


def random_dna(bases, seed=0, letters="ACGTacgt"):
    table = np.frombuffer(letters.encode(), np.uint8)
    return table[np.random.default_rng(seed).integers(0, len(table), bases)].tobytes().decode()


def fasta(sequences, line=60, end=b"\n"):
    parts = []
    for name, text in sequences.items():
        parts.append(f">{name} described".encode() + end)
        parts += [text[i : i + line].encode() + end for i in range(0, len(text), line)]
    return b"".join(parts)


def bgzip(data, block=60_000):
    """As bgzip does it: a gzip member a block, its size in an extra field, and an empty one at the end."""
    members = []
    for place in range(0, len(data), block):
        part = data[place : place + block]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(part) + packer.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff\x06\x00BC\x02\x00" + struct.pack("<H", len(packed) + 25)
        members.append(head + packed + struct.pack("<II", zlib.crc32(part), len(part)))
    return b"".join(members) + BGZF_END


def make_store(folder, sequences, splits, tokenizer=None, strata=None, **changes) -> GenomeStore:
    """A prepared store; splits name intervals as (contig, start, end), strata too."""
    tokenizer = tokenizer or SixMerTokenizer()
    folder.mkdir(parents=True)
    source = folder / "source.fa"
    source.write_bytes(fasta(sequences))
    found = ingest(source, folder / BASES)
    source.unlink()
    numbers = {contig.name: n for n, contig in enumerate(found.contigs)}
    strata = strata or {}

    def rows(intervals):
        return [(numbers[name], start, end) for name, start, end in intervals]

    values = {
        "domain": "genome",
        "dataset": folder.name,
        "tokenizer": tokenizer.specification,
        "fingerprint": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "padding_id": tokenizer.padding_id,
        "units": dict(tokenizer.units),
        "strata": ["soft-masked", "unique", *strata],
    }
    return write_genome(
        folder,
        Manifest(**{**values, **changes}),
        found.contigs,
        found.digest,
        found.stretches,
        {name: rows(intervals) for name, intervals in splits.items()},
        [merged(np.array(rows(intervals)).reshape(-1, 3)) for intervals in strata.values()],
    )
