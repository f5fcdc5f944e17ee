"""Any genome as six-mers: FASTA -> token store (`python -m data_prep.genome --source FASTA --out data/genome`).

Sequences are cut at N; each stretch is tokenized from its first base and cut into documents. Of each sequence the
first 90% of its documents train, the next validate, the last test, with a gap of one document between.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.download import sha256_of
from data_prep.stores import finished, locked, run, write
from seqpope.data.baselines import count_baseline
from seqpope.data.shards import SCORED, SPLITS, Manifest, Split, pack
from seqpope.domains.genome.bases import SequenceError, letter_codes
from seqpope.domains.genome.codec import read_fasta
from seqpope.domains.genome.tokenizer import K, SixMerTokenizer
from seqpope.errors import SeqpopeError

PREPARATION = 1
DOCUMENT = 2_000  # six-mers, 12 kb
LEAST = 20  # six-mers of a stretch between two N; shorter ones are left out
SHARES = {"validation": 0.05, "test": 0.05}
SOFT_MASKED = 2  # flag of the first stratum: most letters are lower case, repeats as genomes mark them
FEWEST = 12  # documents that can be divided


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the token store of a FASTA file's sequences to `folder`; a complete one of that file is left alone.

    IUPAC codes other than A, C, G, T and N become N, counted in the manifest.

    Raises:
        SeqpopeError: there is no source, it is no FASTA of DNA or too short, or the store cannot be written.
    """
    folder, began = Path(folder), time.monotonic()
    if source is None or not Path(source).is_file():
        what = f"there is no file {source}" if source is not None else "no genome is downloaded"
        raise SeqpopeError(f"{what}: give a FASTA file, plain or gzipped, by --source FILE")
    source = Path(source)
    tokenizer, sha256 = SixMerTokenizer(), sha256_of(source)
    with locked(folder, progress):
        same = {"preparation": PREPARATION, "sha256": sha256}
        manifest = finished(folder, "genome", tokenizer.fingerprint, **same)
        if not force and manifest is not None:
            progress(f"{folder} is already prepared (--force prepares it again)")
            return manifest
        replaced: Counter[str] = Counter()
        splits, counts = _divide(source, tokenizer, replaced)
        manifest = Manifest(
            domain="genome",
            dataset="genome",
            tokenizer=tokenizer.specification,
            fingerprint=tokenizer.fingerprint,
            vocabulary_size=tokenizer.vocabulary_size,
            padding_id=tokenizer.padding_id,
            units=dict(tokenizer.units),  # exact: documents hold whole six-mers alone
            strata=["soft-masked"],
            baselines={
                "unigram": count_baseline(splits, tokenizer.vocabulary_size, tokenizer.padding_id),
                "bigram": count_baseline(splits, tokenizer.vocabulary_size, tokenizer.padding_id, lags=(1,)),
            },
            provenance={
                "source": source.name,
                **same,
                "sequences": counts,
                "IUPAC codes read as N": dict(replaced),
                "split": f"each sequence's documents of {DOCUMENT} six-mers in order: 90% train, 5% validation, "
                "5% test, one left out between",
            },
        )
        write(folder, manifest, splits, progress)
    progress(f"{folder}: prepared in {time.monotonic() - began:.1f} s")
    return manifest


def _divide(
    source: Path, tokenizer: SixMerTokenizer, replaced: Counter[str]
) -> tuple[dict[str, Split], dict[str, Any]]:
    """Splits, and how many bases of each sequence are in them."""
    documents: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    flags: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    names: dict[str, list[str]] = {name: [] for name in SPLITS}
    counts: dict[str, Any] = {}
    for record in read_fasta(source):
        letters = np.frombuffer(record.sequence.encode("ascii"), np.uint8)
        try:
            pieces = list(_documents(letters, tokenizer, replaced))
        except SequenceError as error:
            raise SeqpopeError(f"{source}, sequence {record.name}: {error}") from error
        counts[record.name] = {"bases": len(letters), "used": K * sum(len(ids) for _, ids, _ in pieces)}
        for part, (start, ids, flag) in zip(_parts(len(pieces)), pieces, strict=True):
            if part:
                documents[part].append(ids)
                flags[part].append(flag)
                names[part].append(f"{record.name}:{start + 1}-{start + K * len(ids)}")
    empty = [name for name in SPLITS if not documents[name]]
    if empty:
        raise SeqpopeError(
            f"{source}: its {len(counts)} sequences leave nothing for {' and '.join(empty)}: one of at least "
            f"{FEWEST * DOCUMENT * K / 1000:g} kb of A, C, G and T is the least, give more"
        )
    return {name: pack(documents[name], flags[name], names[name], np.uint16) for name in SPLITS}, counts


def _documents(
    letters: np.ndarray, tokenizer: SixMerTokenizer, replaced: Counter[str]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each document's first base from 0, its six-mers (T,) and their flags (T,)."""
    unknown = np.concatenate(([True], letter_codes(letters, "ACGTN", replaced) == 4, [True]))
    for first, last in np.flatnonzero(unknown[1:] != unknown[:-1]).reshape(-1, 2):
        for start in range(first, last, DOCUMENT * K):
            size = min(DOCUMENT, (last - start) // K)
            if size < LEAST:
                continue
            part = letters[start : start + size * K]
            masked = (part >= ord("a")).reshape(-1, K).sum(1) > K // 2
            yield (
                int(start),
                tokenizer.encode(part),
                np.where(masked, SCORED | SOFT_MASKED, SCORED).astype(np.uint8),
            )


def _parts(count: int) -> list[str]:
    """Which split each of a sequence's documents is in, "" for those left out."""
    if count < FEWEST:
        return ["train"] * count
    sizes = {name: max(1, round(share * count)) for name, share in SHARES.items()}
    held = ["", *["validation"] * sizes["validation"], "", *["test"] * sizes["test"]]
    return ["train"] * (count - len(held)) + held


if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/genome"), __doc__ or "", takes_source=True))
