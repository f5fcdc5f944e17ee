"""A prepared genome: bases on disk, memory-mapped, and what training and evaluation read of them.

A store is a folder:

    bases.u8          a byte a base, contigs end to end; long runs of N are holes of the file
    stretches.npy     (S, 3) int64 known stretches: number of the contig, start, end
    strata.npy        (I, 4) int64 intervals of strata from BED files: stratum, number of the contig, start, end
    manifest.json     that of every store (`shards.Manifest`), and under "genome" contigs and splits

A split is a list of intervals. Its documents are the known stretches within them, cut into `DOCUMENT` bases and
read in whole tokens from each stretch's first base, made as they are asked for; N is never a token. Training draws
windows instead (`windows`).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.data.shards import SCORED, Manifest, Split, StoreError, prepare_again
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.indexed import FastaGenome
from seqpope.domains.genome.ingest import Contig
from seqpope.domains.genome.names import Names
from seqpope.domains.genome.reading import Reading, reading_of
from seqpope.domains.genome.sequences import Genome, joined
from seqpope.domains.genome.windows import GenomeWindows

BASES, STRETCHES, STRATA, MANIFEST = "bases.u8", "stretches.npy", "strata.npy", "manifest.json"
FORMAT = 1  # of the part under "genome"
DOCUMENT = 12_000  # bases, 2,000 six-mers
LEAST = 120  # bases of a document; the rest of a stretch that is shorter is left out
SOFT, UNIQUE, FIRST_FILE = (
    1,
    2,
    3,
)  # flag bits: mostly lower case, mostly upper case, strata of BED files from here
MOST_FILES = 8 - FIRST_FILE
_AT_ONCE = 1000 * DOCUMENT  # bases


class GenomeStore:
    """A prepared genome opened for reading: a `Genome`, and a store as `TokenStore` is one.

    It may be used in many processes at once; each maps the bases for itself when it first reads them.

    Attributes:
        contigs: length of each contig, in the file's order.
        statistics: a dict for each contig: its bases by letter, N all that is not known; soft_masked; replaced
            (other IUPAC codes read as N); aliases.
        intervals: (I, 3) int64 number of the contig, start and end, for each split.
        digest: of the bases (`ingest`).

    Raises:
        StoreError: nothing is there, a file is missing or damaged, or the format is unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        again = prepare_again(self.folder, self.folder.name)
        try:
            raw = json.loads((self.folder / MANIFEST).read_text())
            again = prepare_again(self.folder, str(raw["dataset"]))
            about = raw["genome"]
            if about["format"] != FORMAT:
                raise StoreError(
                    f"{self.folder} has genome format {about['format']!r}, this version reads {FORMAT}: {again}"
                )
            known = {f.name for f in fields(Manifest)}
            self.manifest = Manifest(**{key: value for key, value in raw.items() if key in known})
            self.statistics: dict[str, dict[str, Any]] = {contig["name"]: contig for contig in about["contigs"]}
            self.contigs: Mapping[str, int] = {name: told["length"] for name, told in self.statistics.items()}
            self.document: int = about["document"]
            self.digest: str = about["bases"]
            self._lengths = np.array([*self.contigs.values()], np.int64)
            self._offsets = np.concatenate(([0], np.cumsum(self._lengths)))
            self.intervals = {
                name: np.array(rows, np.int64).reshape(-1, 3) for name, rows in about["splits"].items()
            }
            self._stretches = np.load(self.folder / STRETCHES, allow_pickle=False).reshape(-1, 3)
            self._strata = np.load(self.folder / STRATA, allow_pickle=False).reshape(-1, 4)
            size = os.path.getsize(self.folder / BASES)
        except FileNotFoundError as error:
            raise StoreError(
                f"no prepared genome in {self.folder} ({Path(error.filename).name} is missing): {again}"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
            raise StoreError(f"{self.folder} cannot be read as a prepared genome ({error!r}): {again}") from error
        if size != self._offsets[-1]:
            raise StoreError(
                f"{self.folder / BASES} should have {self._offsets[-1]} bases, it has {size}: {again}"
            )
        self.reading: Reading = reading_of(self.manifest.fingerprint)
        self._numbers = {name: number for number, name in enumerate(self.contigs)}
        self._names = Names(self.contigs)
        self._first = np.searchsorted(self._stretches[:, 0], np.arange(len(self.contigs) + 1))
        strata = len(self.manifest.strata) - (FIRST_FILE - 1)
        self._first_of_strata = np.searchsorted(
            self._strata[:, 0] * len(self.contigs) + self._strata[:, 1], np.arange(strata * len(self.contigs) + 1)
        )
        self._mapped: tuple[int, np.ndarray] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return GenomeStore, (self.folder,)

    @property
    def bases(self) -> np.ndarray:
        """All contigs end to end, (N,) uint8, memory-mapped and read-only."""
        if self._mapped is None or self._mapped[0] != os.getpid():
            with open(self.folder / BASES, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped = (os.getpid(), np.frombuffer(mapped, np.uint8))
        return self._mapped[1]

    def resolve(self, name: str) -> str:
        return self._names.resolve(name)

    def fetch(self, contig: str, start: int, end: int) -> np.ndarray:
        first = int(self._offsets[self._numbers[self._names.interval(contig, start, end)]])
        return self.bases[first + start : first + end]

    def stretches(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        number = self._numbers[self.resolve(contig)]
        self._names.interval(contig, start, start if end is None else end)
        return self._between(number, start, int(self._lengths[number]) if end is None else end)

    def _between(self, number: int, start: int, end: int) -> np.ndarray:
        found = self._stretches[self._first[number] : self._first[number + 1], 1:]
        first = np.searchsorted(found[:, 1], start, side="right")
        last = np.searchsorted(found[:, 0], end, side="left")
        return np.clip(found[first : max(first, last)], start, end)

    def known(self, split: str) -> np.ndarray:
        """The known stretches within a split, (P, 3) int64 number of the contig, start, end, in order.

        Raises:
            StoreError: the store has no such split.
        """
        if split not in self.intervals:
            raise StoreError(f"{self.folder} has the splits {', '.join(self.intervals)}; {split!r} was asked for")
        parts = [np.zeros((0, 3), np.int64)]
        for number, start, end in self.intervals[split].tolist():
            edges = self._between(number, start, end)
            parts.append(np.column_stack((np.full(len(edges), number), edges)))
        return np.concatenate(parts)

    def documents(self, split: str, at_least: int = 0) -> np.ndarray:
        """The documents of a split, (D, 3) int64: number of the contig, first base and end, whole tokens alone.

        Args:
            at_least: tokens of a document where its stretch has as many and `DOCUMENT` bases are fewer.
        """
        size = max(self.document, at_least * self.reading.k)
        return cut(self.known(split), size, self.reading.k)

    def pieces(self, split: str, at_least: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The documents of a split a few thousand at a time: their ids (T,), flags (T,) uint8, and tokens (D,)."""
        documents, k = self.documents(split, at_least), self.reading.k
        # Runs of documents that lie side by side are read together.
        ends = np.cumsum(documents[:, 2] - documents[:, 1])
        apart = (np.diff(documents[:, 0]) != 0) | (documents[1:, 1] != documents[:-1, 2])
        breaks = np.append(np.flatnonzero(apart) + 1, len(documents))
        place = 0
        # Read, not mapped: a whole genome's pages would count as this process's memory.
        with open(self.folder / BASES, "rb", buffering=0) as file:
            while place < len(documents):
                number = documents[place, 0]
                before = ends[place - 1] if place else 0
                stop = max(place + 1, int(np.searchsorted(ends, before + _AT_ONCE, side="right")))
                some = documents[place : min(stop, int(breaks[np.searchsorted(breaks, place, side="right")]))]
                place += len(some)
                start, end = int(some[0, 1]), int(some[-1, 2])
                file.seek(int(self._offsets[number]) + start)
                bases = np.fromfile(file, np.uint8, end - start)
                yield (
                    self.reading.ids(bases),
                    self._flags(int(number), start, bases),
                    np.diff(some[:, 1:])[:, 0] // k,
                )

    def _flags(self, number: int, start: int, bases: np.ndarray) -> np.ndarray:
        k = self.reading.k
        soft = self.reading.soft(bases)
        flags = np.full(len(soft), SCORED, np.uint8)
        flags |= (2 * soft > k).astype(np.uint8) << SOFT
        flags |= (2 * soft < k).astype(np.uint8) << UNIQUE
        for stratum in range(len(self.manifest.strata) - (FIRST_FILE - 1)):
            low, high = self._first_of_strata[stratum * len(self.contigs) + number :][:2]
            chosen = self._strata[low:high, 2:]
            first = np.searchsorted(chosen[:, 1], start, side="right")
            last = np.searchsorted(chosen[:, 0], start + len(bases), side="left")
            edges = np.clip(chosen[first : max(first, last)] - start, 0, len(bases))
            # Intervals neither meet nor touch (`joined`), so no two edges fall together.
            change = np.zeros(len(bases) + 1, np.int8)
            change[edges[:, 0]] = 1
            change[edges[:, 1]] = -1
            inside = np.cumsum(change[:-1], dtype=np.int8).reshape(-1, k).sum(1)
            flags |= (2 * inside > k).astype(np.uint8) << (FIRST_FILE + stratum)
        return flags

    def split(self, name: str, at_least: int = 0) -> Split:
        """One split as documents, made now; a document is named contig:first-last, counted from 1.

        Args:
            at_least: as in `documents`: to read further than a document usually goes.

        Raises:
            StoreError: the store has no such split.
        """
        documents, contigs = self.documents(name, at_least), list(self.contigs)
        tokens, flags = [np.zeros(0, self.reading.dtype)], [np.zeros(0, np.uint8)]
        for ids, flag, _ in self.pieces(name, at_least):
            tokens.append(ids)
            flags.append(flag)
        sizes = (documents[:, 2] - documents[:, 1]) // self.reading.k
        starts = np.concatenate(([0], np.cumsum(sizes)))
        names = [f"{contigs[number]}:{start + 1}-{end}" for number, start, end in documents.tolist()]
        return Split(np.concatenate(tokens), starts, np.concatenate(flags), names)

    def windows(
        self,
        split: str,
        *,
        length: int,
        batch_size: int,
        seed: int,
        reverse_complement: bool = True,
        soft_mask_weight: float = 1.0,
    ) -> GenomeWindows:
        """Windows drawn from a split to train on.

        Raises:
            StoreError: the store has no such split, or it has not one token.
        """
        known = self.known(split)
        known = known[known[:, 2] - known[:, 1] >= max(LEAST, self.reading.k)]
        if not len(known):
            raise StoreError(f"split {split!r} of {self.folder} is empty: prepare the data again")
        return GenomeWindows(
            self,
            known[:, 1:] + self._offsets[known[:, :1]],
            length=length,
            batch_size=batch_size,
            seed=seed,
            reverse_complement=reverse_complement,
            soft_mask_weight=soft_mask_weight,
        )


def cut(known: np.ndarray, size: int, k: int) -> np.ndarray:
    """Stretches (P, 3) cut into documents (D, 3) of `size` bases, the last of each shorter: in whole tokens of k
    bases from the stretch's start, and left out if it is shorter than `LEAST` bases.
    """
    lengths = (known[:, 2] - known[:, 1]) // k * k
    counts = lengths // size
    counts += lengths - counts * size >= max(LEAST, k)
    part = np.repeat(np.arange(len(known)), counts)
    place = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = known[part, 1] + place * size
    ends = np.minimum(starts + size, known[part, 1] + lengths[part])
    return np.column_stack((known[part, 0], starts, ends))


def write_genome(
    folder: Path,
    manifest: Manifest,
    contigs: Sequence[Contig],
    digest: str,
    stretches: np.ndarray,
    splits: Mapping[str, Sequence[tuple[int, int, int]]],
    strata: Sequence[np.ndarray] = (),
) -> GenomeStore:
    """Complete a folder that holds the bases already, and open it; splits are counted and `content` is filled.

    Args:
        manifest: without splits and content; its strata are "soft-masked", "unique" and one for each of `strata`.
        digest: of the bases (`ingest`).
        splits: intervals of each split: number of the contig, start, end.
        strata: intervals (I, 3) of each file's stratum, in order, neither meeting nor touching.
    """
    numbered = [np.column_stack((np.full(len(rows), k), rows)) for k, rows in enumerate(strata)]
    table = np.concatenate([np.zeros((0, 4), np.int64), *numbered])
    np.save(folder / STRETCHES, stretches.astype(np.int64))
    np.save(folder / STRATA, table)
    names = Names({contig.name: contig.length for contig in contigs})
    counts = np.bincount(stretches[:, 0].astype(np.int64), minlength=len(contigs)).tolist()
    about = {
        "format": FORMAT,
        "bases": digest,
        "document": DOCUMENT,
        "contigs": [
            {
                **asdict(contig),
                "stretches": count,
                "aliases": names.aliases[contig.name],
            }
            for contig, count in zip(contigs, counts, strict=True)
        ],
        "splits": {name: [list(row) for row in rows] for name, rows in splits.items()},
    }
    said = [about["format"], digest, DOCUMENT, about["splits"], manifest.fingerprint, manifest.strata]
    content = hashlib.sha256(json.dumps(said).encode())
    content.update(table.astype("<i8").tobytes())
    manifest.content = content.hexdigest()
    _write_manifest(folder, manifest, about)
    store = GenomeStore(folder)
    for name in splits:
        documents = store.documents(name)
        bases = int((documents[:, 2] - documents[:, 1]).sum())
        tokens = bases // store.reading.k
        manifest.splits[name] = {"documents": len(documents), "tokens": tokens, "scored": tokens, "bases": bases}
    return complete(store, manifest)


def complete(store: GenomeStore, manifest: Manifest) -> GenomeStore:
    """Write the manifest of a store anew, what is said of its genome staying, and open it."""
    about = json.loads((store.folder / MANIFEST).read_text())["genome"]
    _write_manifest(store.folder, manifest, about)
    return GenomeStore(store.folder)


def _write_manifest(folder: Path, manifest: Manifest, about: dict[str, Any]) -> None:
    text = json.dumps({**asdict(manifest), "genome": about}, indent=1)
    (folder / MANIFEST).write_text(text + "\n")


def merged(rows: np.ndarray) -> np.ndarray:
    """Intervals (I, 3) of contigs in any order, sorted, those that meet or touch as one."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))].astype(np.int64)
    parts = [np.zeros((0, 3), np.int64)]
    numbers, first = np.unique(rows[:, 0], return_index=True)
    for number, edges in zip(numbers, np.split(rows[:, 1:], first)[1:], strict=True):
        edges = edges[edges[:, 1] > edges[:, 0]]
        # What begins inside what came before is cut to what it adds.
        furthest = np.maximum.accumulate(edges[:, 1])
        edges[1:, 0] = np.where(edges[1:, 0] > furthest[:-1], edges[1:, 0], furthest[:-1])
        edges[:, 1] = furthest
        whole = joined([edges[edges[:, 1] >= edges[:, 0]]])
        parts.append(np.column_stack((np.full(len(whole), number), whole)))
    return np.concatenate(parts)


def is_genome_store(folder: Path) -> bool:
    """Whether a folder's manifest says that it is a prepared genome."""
    try:
        return "genome" in json.loads((Path(folder) / MANIFEST).read_text())
    except (OSError, ValueError, TypeError):
        return False


def open_genome(path: Path) -> Genome:
    """A genome to read from: a prepared store's folder, or a FASTA file, plain or bgzipped.

    Raises:
        SequenceError: it is neither.
        StoreError: the store is damaged or holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise SequenceError(f"there is no {path}: expected a prepared genome's folder or a FASTA file")
    if not path.is_dir():
        return FastaGenome(path)
    if (path / MANIFEST).is_file() and not is_genome_store(path):
        raise StoreError(f"{path} is a store of tokens, no genome: expected what `seqpope prepare genome` makes")
    return GenomeStore(path)


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
