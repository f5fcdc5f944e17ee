"""A FASTA file read at any place, plain or bgzipped, through pyfaidx's index."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.domains.genome.bases import SequenceError, no_dna
from seqpope.domains.genome.ingest import AMBIGUOUS, FOREIGN, TABLE, has_end, is_bgzipped
from seqpope.domains.genome.names import Names
from seqpope.domains.genome.sequences import SOFT_MASKED, joined, known_stretches

_DAMAGED = (RuntimeError, ValueError, EOFError, struct.error, zlib.error)  # what reading broken blocks ends in
_PART = 1 << 22  # bases at once where a whole contig is read


class FastaGenome:
    """The contigs of a FASTA file; each process opens it for itself.

    Its index (.fai, for bgzipped files .gzi too) is taken from beside it or made there, in the user's cache where
    nothing can be written. Making it takes minutes for a mammal's genome: a prepared store is made faster and
    read faster.

    Raises:
        SequenceError: it is missing, gzipped otherwise than by bgzip, no FASTA, its lines are of unequal length,
            or two contigs have one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open: tuple[int, Any] | None = None
        self.contigs: Mapping[str, int] = {name: record.rlen for name, record in self._handle().index.items()}
        if not any(self.contigs.values()):
            raise SequenceError(f"{self.path} has not one base: expected sequences below its headers")
        self._names = Names(self.contigs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def resolve(self, name: str) -> str:
        return self._names.resolve(name)

    def fetch(self, contig: str, start: int, end: int) -> np.ndarray:
        contig = self._names.interval(contig, start, end)
        if start == end:
            return np.zeros(0, np.uint8)
        try:
            text = self._handle().fetch(contig, start + 1, end).encode("utf-8", "surrogateescape")
        except _DAMAGED as error:
            raise SequenceError(
                f"{self.path} is damaged at {contig}:{start + 1}-{end} ({error}): copy it again"
            ) from error
        if len(text) != end - start:
            raise SequenceError(
                f"{self.path} gave {len(text)} bases for {contig}:{start + 1}-{end}: another file's index, "
                "delete the .fai and .gzi beside it"
            )
        codes = np.frombuffer(bytearray(text.translate(TABLE)), np.uint8)
        if int(codes.max()) >= AMBIGUOUS:
            wrong = np.flatnonzero(codes == FOREIGN)
            if len(wrong):
                letter = chr(text[wrong[0]])
                raise SequenceError(
                    f"{self.path}, contig {contig}, base {start + int(wrong[0]) + 1} (from 1): {letter!r} "
                    f"{no_dna(letter)}"
                )
            codes[codes >= AMBIGUOUS] &= SOFT_MASKED
        return codes

    def stretches(self, contig: str, start: int = 0, end: int | None = None) -> np.ndarray:
        """As the protocol has it; the bases are read for it, a part at a time."""
        end = self.contigs[self.resolve(contig)] if end is None else end
        found = [
            known_stretches(self.fetch(contig, place, min(place + _PART, end)), place)
            for place in range(start, end, _PART)
        ]
        return joined(found)

    def _handle(self) -> Any:
        """pyfaidx's own, opened in this process: a file's place is shared with those that fork."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), _opened(self.path))
        return self._open[1]


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise SequenceError(f"there is no file {path}: expected a FASTA, plain or bgzipped")
    if not os.access(path, os.R_OK):
        raise SequenceError(f"{path} cannot be read: look at its permissions")
    with open(path, "rb") as file:
        first = file.read(1)
    zipped = is_bgzipped(path)
    if first == b"\x1f" and not zipped:
        raise SequenceError(
            f"{path} is gzipped as a whole and can only be read from its start: bgzip it (gunzip -c FILE | "
            "bgzip), or prepare it with `seqpope prepare genome --source FILE`"
        )
    if zipped != (path.suffix in (".gz", ".bgz")):  # pyfaidx goes by it
        named = "bgzipped but not named so: call it .fa.gz" if zipped else "named .gz but not gzipped: call it .fa"
        raise SequenceError(f"{path} is {named}")
    if not first or (not zipped and first not in (b">", b"\n", b"\r")):
        told = f"it begins with {first!r}" if first else "it is empty"
        raise SequenceError(f"{path} is no FASTA: expected a line with > and a name first, {told}")
    if zipped and not has_end(path):
        raise SequenceError(f"{path} is cut short (the mark at a bgzipped file's end is missing): copy it again")
    suffixes = (".fai", ".gzi") if zipped else (".fai",)
    places = [path, _cached(path)]
    made = next((place for place in places if _fresh(path, place, suffixes)), None)
    if made is None:
        made = _index(path, places, suffixes)
    return _faidx(path, made)


def _fresh(path: Path, index: Path, suffixes: tuple[str, ...]) -> bool:
    files = [Path(f"{index}{suffix}") for suffix in suffixes]
    return all(file.is_file() and file.stat().st_mtime >= path.stat().st_mtime for file in files)


def _cached(path: Path) -> Path:
    """Where a file's index lies whose own folder cannot be written to, without suffix."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqpope"
    return folder / path.resolve().as_posix().replace("/", "%")


def _index(path: Path, places: list[Path], suffixes: tuple[str, ...]) -> Path:
    """Make the index at the first place that can be written to; whole or not at all, whoever else makes it."""
    refused: OSError | None = None
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as folder:
                fresh = Path(folder) / "index"
                _faidx(path, fresh).close()
                for suffix in reversed(suffixes):
                    os.replace(f"{fresh}{suffix}", f"{place}{suffix}")
            return place
        except OSError as error:
            refused = error
    raise SequenceError(
        f"the index of {path} can be written neither beside it nor to {places[-1].parent} ({refused})"
    )


def _faidx(path: Path, index: Path) -> Any:
    from pyfaidx import Faidx, FastaIndexingError, UnsupportedCompressionFormat

    try:
        return Faidx(str(path), f"{index}.fai", as_raw=True, gzi_indexname=f"{index}.gzi")
    except (RuntimeError, struct.error, zlib.error) as error:
        raise SequenceError(f"{path} is damaged ({error}): copy it again") from error
    except (FastaIndexingError, UnsupportedCompressionFormat, ValueError, EOFError) as error:
        raise SequenceError(
            f"{path} cannot be read as an indexed FASTA ({error}): lines of a sequence must be equally long "
            "and names differ; `seqpope prepare genome --source FILE` takes lines of any length"
        ) from error
