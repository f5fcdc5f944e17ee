"""What files say about one region: scores a base (bedGraph, bigWig), features (BED), scored variants (VCF).

Contigs may go by any name that the genome knows; positions count from 0, intervals are half-open.
"""

from __future__ import annotations

import codecs
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.sequences import Genome

Report = Callable[[int, int], None]
DELTA = "SP_DLL"  # the field of INFO in which a scored VCF has one number an alternative allele
_BIGWIG = {b"\x26\xfc\x8f\x88", b"\x88\x8f\xfc\x26"}
_BIGBED = {b"\xeb\xf2\x89\x87", b"\x87\x89\xf2\xeb"}
_EVERY = 1 << 17  # lines between two reports of progress


class TrackError(SequenceError):
    """A region that is not there, or a file that says nothing of it."""


class Place(NamedTuple):
    """A stretch of a contig, by the genome's own name for it."""

    contig: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.contig}:{self.start + 1:,}-{self.end:,}"


class Feature(NamedTuple):
    """A line of a BED file, cut to the region; `start` and `end` of the whole are kept in `whole`.

    `thick` is the thicker part (of a gene its coding part), `blocks` are the exons; None and () without.
    """

    start: int
    end: int
    name: str
    score: str
    strand: str
    thick: tuple[int, int] | None
    colour: str
    blocks: tuple[tuple[int, int], ...]
    whole: tuple[int, int]


class Variant(NamedTuple):
    """An alternative allele; `delta` is log p(alternative) - log p(reference) in nats, None if not scored."""

    position: int
    name: str
    reference: str
    alternative: str
    delta: float | None


def parse_place(text: str, genome: Genome) -> Place:
    """The place that `chr17:43,044,295-43,050,000` means, first and last base from 1; a name alone is a contig.

    Raises:
        TrackError: it is no region, or not inside the contig.
        SequenceError: there is no such contig.
    """
    parts = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text.strip())
    if parts is None:
        try:
            contig = genome.resolve(text.strip())
        except SequenceError as error:
            # To samtools it is all from there on, to browsers that base: neither is guessed.
            one = re.fullmatch(r"(.+):([\d,]+)", text.strip())
            why = f"for one base write {one[1]}:{one[2]}-{one[2]}" if one else str(error)
            raise TrackError(
                f"{text!r} is no region: expected one like chr17:43,044,295-43,050,000 or a contig's name; {why}"
            ) from None
        return Place(contig, 0, genome.contigs[contig])
    contig = genome.resolve(parts[1])
    first, last = (int(number.replace(",", "") or 0) for number in parts.groups()[1:])
    if not 1 <= first <= last <= genome.contigs[contig]:
        raise TrackError(
            f"{text} is not inside {contig}: expected first and last base from 1 to {genome.contigs[contig]:,}, "
            "the first not after the last"
        )
    return Place(contig, first - 1, last)


class _Names:
    """Which of a file's contig names mean the region's contig; what else was seen is kept to be told."""

    def __init__(self, genome: Genome, contig: str) -> None:
        self.genome, self.contig = genome, contig
        self.known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        if name not in self.known:
            try:
                self.known[name] = self.genome.resolve(name) == self.contig
            except SequenceError:
                self.known[name] = False
        return self.known[name]

    def told(self) -> str:
        """The names that were seen."""
        names = list(self.known)
        return (", ".join(names[:5]) + (" ..." if len(names) > 5 else "")) if names else "no contig at all"


def _opened(path: Path) -> tuple[IO[bytes], IO[bytes]]:
    """The file as lines of bytes, unpacked if need be, and the file itself."""
    raw = open(path, "rb")  # noqa: SIM115 - the caller closes it
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return (io.BufferedReader(gzip.GzipFile(fileobj=raw)) if zipped else raw), raw


def _lines(path: Path, place: Place, names: _Names, report: Report | None) -> Iterator[tuple[int, list[str]]]:
    """The columns of the lines on the region's contig, with their number (0 where an index led there).

    With a tabix index beside the file only the region's lines are read. Lines of no contig (track, browser, #)
    come with the number and one column, the text.

    Raises:
        TrackError: the file cannot be read, is cut short, or is no text.
    """
    try:
        if Path(f"{path}.tbi").is_file():
            yield from _indexed(path, place, names)
            return
        file, raw = _opened(path)
        size = max(1, path.stat().st_size)
        with raw:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if report is not None and number % _EVERY == 0:
                    report(raw.tell() >> 20, size >> 20)
                if line[:1] == b"#" or line.startswith((b"track", b"browser")):
                    yield number, [line.decode().rstrip("\r\n")]
                elif line.strip():
                    # Most lines are of other contigs: their name alone is looked at.
                    name, tab, _ = line.partition(b"\t")
                    if names((name if tab else line.split(maxsplit=1)[0]).decode()):
                        text = line.decode().rstrip("\r\n")
                        yield number, text.split("\t") if "\t" in text else text.split()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TrackError(f"{path} is cut short or damaged ({error}): copy it again") from error
    except UnicodeDecodeError as error:
        raise TrackError(f"{path} is no text: expected bedGraph, BED or VCF, plain or gzipped") from error
    except OSError as error:
        raise TrackError(f"{path} cannot be read ({error.strerror or error})") from error


def _indexed(path: Path, place: Place, names: _Names) -> Iterator[tuple[int, list[str]]]:
    import pysam

    with pysam.TabixFile(str(path)) as file:
        for line in file.header:
            yield 0, [line]
        for name in file.contigs:
            if names(name):
                for line in file.fetch(name, place.start, place.end):
                    yield 0, line.split("\t")


def _where(path: Path, number: int) -> str:
    return f"{path}, line {number}" if number else str(path)


def read_scores(
    path: Path, genome: Genome, place: Place, report: Report | None = None
) -> tuple[np.ndarray, dict[str, str]]:
    """A file's value of each base of a region, (end - start,) fp64, nan where it has none; and its header's words.

    bedGraph is read in its order, up to the region's end: sort it, or give an index (.tbi) or a bigWig, which are
    read at once wherever the region is.

    Raises:
        TrackError: the file is neither, is out of order, has two values for a base, or none in the region.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise TrackError(f"{path} cannot be read ({error.strerror or error})") from error
    if magic in _BIGBED:
        raise TrackError(f"{path} is a bigBed: expected scores as bedGraph or bigWig; features go with --bed")
    names = _Names(genome, place.contig)
    header: dict[str, str] = {}
    if magic in _BIGWIG:
        values = _read_bigwig(path, place, names)
    else:
        values, header = _read_bedgraph(path, place, names, report)
    if np.isinf(values).any():
        raise TrackError(f"{path} has an infinite value in {place}: expected finite numbers, or none (nan)")
    if np.isnan(values).all():
        why = "it has that contig" if any(names.known.values()) else f"it has {names.told()}"
        raise TrackError(f"{path} has no value in {place} ({why}): score that region, or name another")
    return values, header


def _read_bigwig(path: Path, place: Place, names: _Names) -> np.ndarray:
    import pyBigWig

    values = np.full(place.end - place.start, np.nan)
    try:
        with pyBigWig.open(str(path)) as file:
            for name, length in file.chroms().items():
                end = min(place.end, length)
                if names(name) and place.start < end:
                    read = np.asarray(file.values(name, place.start, end), np.float64)
                    values[: len(read)] = read  # none at all of a file without a value
    except RuntimeError as error:
        raise TrackError(f"{path} cannot be read as bigWig ({error}): make it anew") from error
    return values


def _read_bedgraph(
    path: Path, place: Place, names: _Names, report: Report | None
) -> tuple[np.ndarray, dict[str, str]]:
    values = np.full(place.end - place.start, np.nan)
    header: dict[str, str] = {}
    before = -1
    for number, columns in _lines(path, place, names, report):
        if len(columns) == 1 and columns[0].startswith(("#", "track", "browser")):
            header |= _header_words(columns[0])
            continue
        try:
            start, end, value = int(columns[1]), int(columns[2]), float(columns[3])
        except (IndexError, ValueError):
            raise TrackError(
                f"{_where(path, number)} is no bedGraph: expected contig, start, end and a number, it is "
                f"{' '.join(columns)[:60]!r}"
            ) from None
        if start < before or end <= start:
            raise TrackError(
                f"{_where(path, number)}: {start}-{end} comes after {before}: expected intervals in order, "
                "sort them"
            )
        before = start
        if start >= place.end:
            break
        if end > place.start:
            cut = slice(max(start, place.start) - place.start, min(end, place.end) - place.start)
            if not np.isnan(values[cut]).all():
                raise TrackError(f"{_where(path, number)}: a base of {start}-{end} has two values: keep one")
            values[cut] = value
    return values, header


def _header_words(line: str) -> dict[str, str]:
    """What a track line (name="PoPE" ...) or a comment (# key: value) says."""
    if line.startswith("#"):
        key, colon, value = line.lstrip("# ").partition(":")
        return {key.strip(): value.strip()} if colon and value.strip() and len(key) < 40 else {}
    words = re.findall(r"""(\w+)=(?:"([^"]*)"|'([^']*)'|(\S+))""", line)
    return {key: a or b or c for key, a, b, c in words if key in ("name", "description")}


def read_features(path: Path, genome: Genome, place: Place, report: Report | None = None) -> list[Feature]:
    """The features of a BED file (3 to 12 columns) that overlap a region, cut to it, in order.

    The fifth column may be any word, it is kept as it stands.

    Raises:
        TrackError: the file is no BED, or has nothing on the contig by any of its names.
    """
    path = Path(path)
    names = _Names(genome, place.contig)
    found = []
    for number, columns in _lines(path, place, names, report):
        if len(columns) == 1:
            continue
        try:
            feature = _feature(columns, place)
        except (IndexError, ValueError):
            raise TrackError(
                f"{_where(path, number)} is no BED: expected contig, start, end and more, it is "
                f"{' '.join(columns)[:60]!r}"
            ) from None
        if feature is not None:
            found.append(feature)
    if not any(names.known.values()):
        raise TrackError(
            f"{path} has nothing on {place.contig}, it has {names.told()}: expected features of the same genome"
        )
    return sorted(found)


def _feature(columns: list[str], place: Place) -> Feature | None:
    def cut(start: int, end: int) -> tuple[int, int] | None:
        start, end = max(start, place.start), min(end, place.end)
        return (start, end) if start < end else None

    start, end = int(columns[1]), int(columns[2])
    if not 0 <= start <= end:
        raise ValueError
    inside = cut(start, end)
    if inside is None:
        return None
    more = [("" if word == "." else word) for word in columns[3:]] + [""] * 9
    name, score, strand, thick_start, thick_end, colour, _, sizes, starts = more[:9]
    if strand not in ("+", "-"):
        strand = ""
    thick = cut(int(thick_start), int(thick_end)) if thick_start and thick_end else None
    blocks = []
    if sizes and starts:
        for size, offset in zip(sizes.strip(",").split(","), starts.strip(",").split(","), strict=True):
            block = cut(start + int(offset), start + int(offset) + int(size))
            blocks += [block] if block else []
    rgb = colour if re.fullmatch(r"\d{1,3},\d{1,3},\d{1,3}", colour) and colour != "0,0,0" else ""
    return Feature(*inside, name, score, strand, thick, rgb, tuple(blocks), (start, end))


def read_variants(path: Path, genome: Genome, place: Place, report: Report | None = None) -> list[Variant]:
    """The alternative alleles of a scored VCF whose first base lies in a region, in order.

    Raises:
        TrackError: the file is no VCF or was not scored, or has nothing on the contig by any of its names.
    """
    path = Path(path)
    names = _Names(genome, place.contig)
    found = []
    header = scored = False
    for number, columns in _lines(path, place, names, report):
        if len(columns) == 1 and columns[0].startswith("#"):
            header |= columns[0].startswith("##fileformat=VCF")
            scored |= columns[0].startswith(f"##INFO=<ID={DELTA},")
            continue
        if not header:
            raise TrackError(f"{path} is no VCF: expected ##fileformat=VCFv4 in its first line")
        if not scored:
            raise TrackError(f"{path} has no {DELTA} in its header: score the variants first, then give that file")
        try:
            position, alternatives = int(columns[1]) - 1, columns[4].split(",")
            fields = dict(word.partition("=")[::2] for word in columns[7].split(";"))
            deltas = [_number(word) for word in fields.get(DELTA, ".").split(",")]
        except (IndexError, ValueError):
            raise TrackError(
                f"{_where(path, number)} is no line of a VCF: expected eight columns or more, it is "
                f"{' '.join(columns)[:60]!r}"
            ) from None
        if not place.start <= position < place.end or alternatives == ["."]:
            continue
        if len(deltas) != len(alternatives):
            if fields.get(DELTA, ".") != ".":
                raise TrackError(
                    f"{_where(path, number)}: {len(alternatives)} alternatives and {len(deltas)} values "
                    f"of {DELTA}: expected one each, score the file again"
                )
            deltas = [None] * len(alternatives)
        name = "" if columns[2] == "." else columns[2]
        found += [
            Variant(position, name, columns[3], alternative, delta)
            for alternative, delta in zip(alternatives, deltas, strict=True)
        ]
    if not any(names.known.values()):
        raise TrackError(
            f"{path} has nothing on {place.contig}, it has {names.told()}: expected variants of the same genome"
        )
    return sorted(found, key=lambda variant: variant.position)


def _number(word: str) -> float | None:
    """A number of INFO; None where it is missing or not finite."""
    if word in ("", "."):
        return None
    number = float(word)
    return number if math.isfinite(number) else None


def runs_above(values: np.ndarray, threshold: float) -> np.ndarray:
    """The maximal runs of values above a threshold (nan is not), (R, 2) starts and ends from 0."""
    above = np.concatenate(([False], values > threshold, [False]))
    return np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)
