"""FASTA of any size -> one byte a base on disk, a block at a time; stretches, counts and a digest on the way.

Plain, gzipped or bgzipped; lines of any length, ending as on Unix or on Windows. Holes: pages of N alone are
never written, so that they take no room where the file system has sparse files.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np

from seqpope.domains.genome.bases import SequenceError, no_dna
from seqpope.domains.genome.sequences import SOFT_MASKED, UNKNOWN, joined, known_stretches

BLOCK = 1 << 20  # bytes of text at once; what is made of them stays in a processor's cache
PAGE = 1 << 16  # bytes; a page of N alone becomes a hole
LONGEST_HEADER = 1 << 16  # bytes
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
AMBIGUOUS, FOREIGN = 16, 255  # codes from 16 on are no bases: letters of IUPAC, then what is no DNA
_CODES = {letter: AMBIGUOUS * (1 + number) for number, letter in enumerate("RYSWKMBDHV")}
_CODES |= {"N": UNKNOWN, "A": 1, "C": 2, "G": 3, "T": 4}
_LETTERS = {code: letter for letter, code in _CODES.items() if code >= AMBIGUOUS}


def _table() -> bytes:
    table = bytearray([FOREIGN] * 256)
    for letter, code in _CODES.items():
        table[ord(letter)], table[ord(letter.lower())] = code, code | SOFT_MASKED
    return bytes(table)


TABLE = _table()


@dataclass
class Contig:
    """What is in a contig, in bases.

    `counts` of A, C, G, T and N, where N is all that is not known, replaced codes among it; `soft_masked` of A, C,
    G and T in lower case; `replaced` other IUPAC codes read as N, by letter.
    """

    name: str
    length: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys("ACGTN", 0))
    soft_masked: int = 0
    replaced: dict[str, int] = field(default_factory=dict)


@dataclass
class Ingested:
    """A whole FASTA: its contigs, known stretches of all (S, 3) int64 (number of the contig, start, end), and a
    SHA-256 over names, lengths, stretches and known bases, the same however the file is compressed or wrapped.
    """

    contigs: list[Contig]
    stretches: np.ndarray
    digest: str


def ingest(source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> Ingested:
    """Write the bases of a FASTA to `target`, contigs end to end.

    Args:
        progress: called with megabytes of the source read, and in all.

    Raises:
        SequenceError: it is no FASTA of DNA, empty, damaged or cut short, or two contigs have one name; contig,
            line and position are named.
        OSError: the target cannot be written.
    """
    with open(target, "wb", buffering=0) as file:
        reader = _Reader(Path(source), file)
        try:
            for block in _blocks(Path(source), progress):
                reader.take(block)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SequenceError(f"{source} is cut short or damaged ({error}): copy it again") from error
        return reader.finish()


def _blocks(source: Path, progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    try:
        raw = open(source, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise SequenceError(f"{source} cannot be read ({error.strerror or error})") from error
    with raw:
        total = os.fstat(raw.fileno()).st_size
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        if zipped and is_bgzipped(source) and not has_end(source):
            raise SequenceError(
                f"{source} is cut short (the mark at a bgzipped file's end is missing): copy it again"
            )
        text = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
        while block := text.read(BLOCK):
            yield block
            if progress is not None:
                progress(_megabytes(raw.tell()), _megabytes(total))


def is_bgzipped(path: Path) -> bool:
    """Whether a file is gzipped in blocks, as bgzip does it: then it can be read from anywhere."""
    with open(path, "rb") as file:
        head = file.read(18)
    return head[:4] == b"\x1f\x8b\x08\x04" and head[12:16] == b"BC\x02\x00"


def has_end(path: Path) -> bool:
    """Whether a bgzipped file has the empty block that ends it, so that nothing is missing behind."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - len(BGZF_END)))
        return file.read() == BGZF_END


def _megabytes(size: int) -> int:
    return max(1, size // 1_000_000)


class _Reader:
    """FASTA in blocks, cut anywhere."""

    def __init__(self, source: Path, file: IO[bytes]) -> None:
        self.source, self.file = source, file
        self.contigs: list[Contig] = []
        self.names: set[str] = set()
        self.line, self.fresh = 1, True  # the line that comes next, whether at its start
        self.carry = b""  # the beginning of a header
        self.at = 0  # bases of all contigs so far
        self.stretches: list[np.ndarray] = []  # of this contig, those still open at a block's end cut there
        self.found: list[np.ndarray] = []  # of all contigs before
        self.digest = hashlib.sha256()

    def take(self, block: bytes) -> None:
        """Read on."""
        block, self.carry = self.carry + block, b""
        place = 0
        while place < len(block):
            if self.fresh and block[place] == ord(">"):
                end = block.find(b"\n", place)
                if end < 0:
                    if len(block) - place > LONGEST_HEADER:
                        raise SequenceError(
                            f"{self.source}, line {self.line}: a header without an end, no FASTA; "
                            "lines must end with a line feed"
                        )
                    self.carry = block[place:]
                    return
                self._begin(block[place + 1 : end])
                self.line += 1
                place = end + 1
                continue
            following = block.find(b"\n>", place)
            end = len(block) if following < 0 else following + 1
            self._add(block[place:end])
            self.fresh = block[end - 1] == ord("\n")
            place = end

    def finish(self) -> Ingested:
        """What was read, the file being as long as it has to be."""
        if self.carry:
            self._begin(self.carry[1:])
        if not self.contigs:
            raise SequenceError(f"{self.source} is empty: expected a FASTA, a line with > and a name first")
        self._end()
        if not self.at:
            raise SequenceError(f"{self.source} has headers, but not one base: expected sequences below them")
        self.file.truncate(self.at)
        return Ingested(self.contigs, np.concatenate(self.found), self.digest.hexdigest())

    def _begin(self, header: bytes) -> None:
        where = f"{self.source}, line {self.line}"
        if b"\r" in header.rstrip():
            raise SequenceError(
                f"{where}: lines that end with a carriage return alone, expected a line feed at each one's end: "
                "convert them (tr '\\r' '\\n')"
            )
        try:
            words = header.decode("ascii").split()
        except UnicodeDecodeError as error:
            raise SequenceError(
                f"{where}: the header has the byte {header[error.start]:#x}, names must be ASCII: rename it"
            ) from None
        if not words or header[:1].isspace():
            raise SequenceError(f"{where}: a header without a name, expected > and a name: name the sequence")
        if words[0] in self.names:
            raise SequenceError(f"{where}: a second sequence called {words[0]!r}: rename one")
        self._end()
        self.names.add(words[0])
        self.contigs.append(Contig(words[0]))

    def _end(self) -> None:
        """Close the contig that is open, if one is."""
        if not self.contigs:
            return
        contig = self.contigs[-1]
        edges = joined(self.stretches)
        stretches = np.column_stack((np.full(len(edges), len(self.contigs) - 1), edges))
        self.found.append(stretches)
        self.stretches = []
        self.digest.update(f">{contig.name} {contig.length}\n".encode())
        self.digest.update(edges.astype("<i8").tobytes())

    def _add(self, text: bytes) -> None:
        """Bases of the contig that is open."""
        codes = np.frombuffer(text.translate(TABLE, b"\r\n"), np.uint8)
        if not self.contigs:
            if len(codes):
                raise SequenceError(
                    f"{self.source} is no FASTA: expected a line with > and a name first, it begins with "
                    f"{text.lstrip()[:20]!r}"
                )
            self.line += text.count(b"\n")
            return
        contig = self.contigs[-1]
        highest = int(codes.max(initial=0))
        if highest >= AMBIGUOUS:
            codes = self._replace(text, codes)
        if highest == UNKNOWN:
            contig.counts["N"] += len(codes)
        else:
            self._count(contig, codes)
            self._write(codes)
        self.line += text.count(b"\n")
        contig.length += len(codes)
        self.at += len(codes)

    def _replace(self, text: bytes, codes: np.ndarray) -> np.ndarray:
        """Codes of IUPAC become N, counted; the first letter that is none is told."""
        contig = self.contigs[-1]
        wrong = np.flatnonzero(codes == FOREIGN)
        if len(wrong):
            letters = np.frombuffer(text, np.uint8)
            place = int(np.flatnonzero((letters != 10) & (letters != 13))[wrong[0]])
            line = self.line + text.count(b"\n", 0, place)
            raise SequenceError(
                f"{self.source}, contig {contig.name}, line {line}, base {contig.length + int(wrong[0]) + 1} "
                f"(from 1): {chr(letters[place])!r} {no_dna(chr(letters[place]))}"
            )
        ambiguous = np.flatnonzero(codes >= AMBIGUOUS)
        codes = codes.copy()
        for code, count in zip(*np.unique(codes[ambiguous] & 0xF0, return_counts=True), strict=True):
            letter = _LETTERS[int(code)]
            contig.replaced[letter] = contig.replaced.get(letter, 0) + int(count)
        codes[ambiguous] &= SOFT_MASKED
        return codes

    def _count(self, contig: Contig, codes: np.ndarray) -> None:
        known = 0
        for code, letter in enumerate("ACGT", 1):
            upper, lower = (int(np.count_nonzero(codes == c)) for c in (code, code | SOFT_MASKED))
            contig.counts[letter] += upper + lower
            contig.soft_masked += lower
            known += upper + lower
        contig.counts["N"] += len(codes) - known
        stretches = np.array([[0, len(codes)]]) if known == len(codes) else known_stretches(codes)
        if known:
            self.stretches.append(stretches + contig.length)
            for start, end in stretches:
                self.digest.update(codes[start:end].data)

    def _write(self, codes: np.ndarray) -> None:
        """The pages that hold anything, at their place; runs of them at once."""
        edges = np.array([0, *range(-self.at % PAGE or PAGE, len(codes), PAGE), len(codes)])
        filled = np.concatenate(([False], np.maximum.reduceat(codes, edges[:-1]) > 0, [False]))
        for first, last in np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2):
            start, end = int(edges[first]), int(edges[last])
            self.file.seek(self.at + start)
            left = codes[start:end].data
            while left:
                left = left[cast(int, self.file.write(left)) :]
