"""Any genome as a store to train on and to read from (`python -m data_prep.genome --source FASTA`).

Four data sets share this module: `grch38` is downloaded, `genome` is any FASTA; `-bases` reads single bases, not
six-mers. A store of the same FASTA beside lends its bases: another split or tokenizer takes no second copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.download import download
from data_prep.intervals import FRACTION, NT, PRESETS, splits_of, strata_of
from data_prep.stores import locked, run
from seqpope.data.baselines import BACKOFF_WEIGHTS
from seqpope.data.shards import Manifest, StoreError, leftovers, replace_folder
from seqpope.domains.base import DATASETS, find_dataset
from seqpope.domains.genome.ingest import Contig, Ingested, ingest
from seqpope.domains.genome.store import (
    BASES,
    DOCUMENT,
    FIRST_FILE,
    LEAST,
    SOFT,
    STRETCHES,
    GenomeStore,
    complete,
    write_genome,
)
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of
from seqpope.progress import Progress

URL = "https://hgdownload.soe.ucsc.edu/goldenPath/hg38/bigZips/hg38.fa.gz"
SIZE = 983_659_424  # bytes; UCSC publishes the MD5 1c9dcaddfa41027f17cd8f7a82c7293b
SHA256 = "c1dd87068c254eb53d944f71e51d1311964fce8de24d6fc0effc9c61c01527d4"
DOWNLOADED = ("grch38", "grch38-bases")
PREPARATION = 2  # raised when bases, documents, flags or splits change, so that older stores are made again
_TOKENS_AT_ONCE = 1 << 22
_PAIRS_AT_ONCE = 1 << 20


def prepare(
    folder: Path,
    *,
    source: Path | None = None,
    force: bool = False,
    split: str = "",
    strata: str = "",
    dataset: str = "genome",
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Write the store of a genome to `folder`; a complete one of the same source, split and strata is left alone.

    IUPAC codes other than A, C, G, T and N become N: told, and counted for each contig in the manifest.

    Args:
        source: a FASTA file, plain, gzipped or bgzipped; `grch38` downloads UCSC's to `downloads` beside the
            folder if None.
        split: nt, paper, fraction, or a BED file (`intervals.splits_of`); empty is nt for GRCh38, else fraction.
        strata: BED files with commas between, each a stratum beside "soft-masked" and "unique": a token is in it
            if more than half of its bases are.
        dataset: which of the four.

    Raises:
        SeqpopeError: there is no source, it is no FASTA of DNA, split or strata do not fit it, or the store
            cannot be written.
    """
    folder, began = Path(folder), time.monotonic()
    tokenizer = find_dataset(dataset).load_tokenizer()
    if source is not None and not Path(source).is_file():
        what = f"{source} is a folder or a pipe" if Path(source).exists() else f"there is no file {source}"
        raise SeqpopeError(f"{what}: give a FASTA file, plain or gzipped, by --source FILE")
    if source is None and dataset not in DOWNLOADED:
        raise SeqpopeError("no genome is named: give a FASTA file, plain or gzipped, by --source FILE")
    split = split or (NT if dataset in DOWNLOADED else FRACTION)
    files = [Path(word.strip()) for word in strata.split(",") if word.strip()]
    for file in [*files, *([] if split in PRESETS else [Path(split)])]:
        if not file.is_file():
            raise SeqpopeError(f"there is no file {file}: expected a BED file, or as a split {', '.join(PRESETS)}")
    with locked(folder, progress):
        for place in leftovers(folder):  # the lock is held: a process that was killed left it
            shutil.rmtree(place, ignore_errors=True)
        sha256 = SHA256 if source is None else _sha256(Path(source))
        same = {
            "preparation": PREPARATION,
            "sha256": sha256,
            "split": split if split in PRESETS else Path(split).name,
            "split file": None if split in PRESETS else _sha256(Path(split)),
            "strata files": [{"name": file.name, "sha256": _sha256(file)} for file in files],
        }
        if not force and (manifest := _finished(folder, dataset, tokenizer.fingerprint, same)) is not None:
            progress(f"{folder} is already prepared (--force prepares it again)")
            return manifest
        fasta = source
        try:
            with replace_folder(folder) as fresh:
                found = None if force else _lent(folder, fresh, sha256, progress)
                if found is None:
                    if fasta is None:
                        target = folder.parent / "downloads" / URL.rsplit("/")[-1]
                        fasta = download(URL, target, SHA256, progress=progress)
                    found = ingest(Path(fasta), fresh / BASES, Progress(f"reading {Path(fasta).name}", "MB"))
                    progress(f"{sum(c.length for c in found.contigs)} bases in {time.monotonic() - began:.1f} s")
                manifest = _fill(fresh, found, dataset, tokenizer, split, files, same, source, progress)
        except OSError as error:
            raise SeqpopeError(
                f"the store {folder} cannot be written ({error.strerror or error}): it needs a byte a base of "
                "room and a folder that may be replaced"
            ) from error
    counts = ", ".join(
        f"{name} {told['bases']} bases in {told['documents']} documents" for name, told in manifest.splits.items()
    )
    progress(f"{folder}: {counts}; prepared in {time.monotonic() - began:.1f} s")
    for name, figures in manifest.baselines.items():
        progress(f"  {name}: {figures['test']:.4f} nats/token on test")
    return manifest


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise SeqpopeError(f"{path} cannot be read ({error.strerror}): look at its permissions") from error


def _fill(
    folder: Path,
    found: Ingested,
    dataset: str,
    tokenizer: Any,
    split: str,
    files: list[Path],
    same: dict[str, Any],
    source: Path | None,
    progress: Callable[[str], None],
) -> Manifest:
    """All of a store but its bases, which are there."""
    lengths = {contig.name: contig.length for contig in found.contigs}
    splits = splits_of(split, lengths, found.stretches)
    strata = strata_of(files, lengths)
    for stratum in strata:
        if stratum.elsewhere:
            progress(f"{stratum.name}: {stratum.elsewhere} rows of contigs that this genome lacks are left out")
    replaced: Counter[str] = Counter()
    for contig in found.contigs:
        replaced.update(contig.replaced)
    if replaced:
        letters = ", ".join(f"{count} {letter}" for letter, count in replaced.most_common())
        progress(f"read as N, each contig's in the manifest: {letters}")
    if not any(contig.soft_masked for contig in found.contigs):
        progress("no base is soft-masked: the strata soft-masked and unique say nothing here")
    manifest = Manifest(
        domain="genome",
        dataset=dataset,
        tokenizer=tokenizer.specification,
        fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        padding_id=tokenizer.padding_id,
        units=dict(tokenizer.units),  # exact: documents hold whole tokens alone
        strata=["soft-masked", "unique", *(stratum.name for stratum in strata)],
        provenance={
            "source": URL if source is None else Path(source).name,
            "official file": same["sha256"] == SHA256,
            **same,
            "split definition": PRESETS.get(split, "intervals of a BED file"),
            "documents": f"known stretches cut into {DOCUMENT} bases, what is shorter than {LEAST} left out",
            "strata rows of other contigs": {stratum.name: stratum.elsewhere for stratum in strata},
        },
    )
    rows = [stratum.rows for stratum in strata]
    store = write_genome(folder, manifest, found.contigs, found.digest, found.stretches, splits, rows)
    empty = [name for name, told in manifest.splits.items() if not told["tokens"]]
    if empty:
        raise SeqpopeError(
            f"the split {split} leaves {' and '.join(empty)} without a document: {LEAST} known bases in a row are "
            "the least, name other intervals"
        )
    manifest.baselines, counted = count(store, Progress("counting", "tokens"))
    for name, strata_counts in counted.items():
        manifest.splits[name]["strata"] = strata_counts
    return complete(store, manifest).manifest


def count(
    store: GenomeStore, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Nats/token of tables of counts on each split, and tokens of each stratum in each split.

    The tables are those of `baselines.count_baseline`: unigram, and bigram with padding before a document's first
    token. They are counted in one pass and constant memory here.
    """
    size = store.manifest.vocabulary_size
    total, done = sum(told["tokens"] for told in store.manifest.splits.values()), 0
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    strata: dict[str, dict[str, int]] = {}
    for name in store.manifest.splits:
        table: np.ndarray | None = None
        bits = np.zeros(8, np.int64)
        waiting: list[np.ndarray] = []
        held = 0
        for ids, flags, documents in store.pieces(name):
            before = np.empty(len(ids), np.int64)
            before[1:] = ids[:-1]
            before[np.cumsum(documents) - documents] = store.manifest.padding_id
            before *= size
            before += ids
            waiting.append(before)
            held, done = held + len(ids), done + len(ids)
            for bit in range(SOFT, FIRST_FILE + len(store.manifest.strata) - (FIRST_FILE - 1)):
                bits[bit] += np.count_nonzero(flags & (1 << bit))
            if held >= _TOKENS_AT_ONCE:
                more = np.bincount(np.concatenate(waiting), minlength=size * size)
                table = more if table is None else table + more
                waiting, held = [], 0
            if progress is not None:
                progress(done, total)
        last = np.concatenate([np.zeros(0, np.int64), *waiting])
        if table is None:
            pairs[name] = np.unique(last, return_counts=True)
        else:
            table += np.bincount(last, minlength=size * size)
            seen = np.flatnonzero(table)
            pairs[name] = (seen, table[seen])
        strata[name] = {label: int(bits[SOFT + k]) for k, label in enumerate(store.manifest.strata)}
    seen, counts = pairs["train"]
    unigram = np.bincount(seen % size, counts, minlength=size)
    prior = unigram + 1.0
    prior[store.manifest.padding_id] = 0.0
    prior /= prior.sum()
    contexts = np.bincount(seen // size, counts, minlength=size)

    together = {"train": counts}  # how often each split's pairs are there in training
    for name in pairs.keys() - together.keys():
        place = np.minimum(np.searchsorted(seen, pairs[name][0]), len(seen) - 1)
        together[name] = np.where(seen[place] == pairs[name][0], counts[place], 0)

    def reached(name: str, weight: float, bigram: bool) -> float:
        total = 0.0
        for first in range(0, len(together[name]), _PAIRS_AT_ONCE):
            some = slice(first, first + _PAIRS_AT_ONCE)
            keys, times = pairs[name][0][some], pairs[name][1][some]
            tokens = keys % size
            if bigram:
                found, alone = together[name][some], contexts[keys // size]
            else:
                found, alone = unigram[tokens], unigram.sum()
            total -= (times * np.log((found + weight * prior[tokens]) / (alone + weight))).sum()
        return float(total / pairs[name][1].sum())

    baselines = {}
    for label, bigram in (("unigram", False), ("bigram", True)):
        best = min(BACKOFF_WEIGHTS, key=lambda weight: reached("validation", weight, bigram))
        baselines[label] = {name: reached(name, best, bigram) for name in pairs}
    return baselines, strata


def _finished(folder: Path, dataset: str, fingerprint: str, same: dict[str, Any]) -> Manifest | None:
    """Manifest of a complete store in `folder` that preparing would make again, else None."""
    try:
        manifest = GenomeStore(folder).manifest
    except StoreError:
        return None
    alike = all(manifest.provenance.get(key) == value for key, value in same.items())
    return manifest if alike and (manifest.dataset, manifest.fingerprint) == (dataset, fingerprint) else None


def _stores(folder: Path) -> Iterator[GenomeStore]:
    """The store in `folder` and those of other genome data sets beside it."""
    beside = [entry.name for entry in DATASETS.values() if entry.domain == "genome" and entry.name != folder.name]
    for place in (folder, *(folder.parent / name for name in beside)):
        with contextlib.suppress(StoreError):
            yield GenomeStore(place)


def _lent(folder: Path, fresh: Path, sha256: str, progress: Callable[[str], None]) -> Ingested | None:
    """What another store has of the same source, its bases linked into `fresh`; None if none has or can."""
    for store in _stores(folder):
        made = store.manifest.provenance
        if made.get("sha256") != sha256 or made.get("preparation") != PREPARATION:
            continue
        try:
            os.link(store.folder / BASES, fresh / BASES)
            known = {field.name for field in fields(Contig)}
            told = [{k: v for k, v in row.items() if k in known} for row in store.statistics.values()]
            found = Ingested([Contig(**row) for row in told], np.load(store.folder / STRETCHES), store.digest)
        except OSError:  # no links on this file system, or replaced meanwhile
            (fresh / BASES).unlink(missing_ok=True)
            continue
        progress(f"the bases are those of {store.folder}")
        return found
    return None


if __name__ == "__main__":
    sys.exit(run(prepare, Path("data/genome"), __doc__ or "", takes_source=True))
