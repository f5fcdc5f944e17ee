"""Which part of a genome trains, validates and tests, and which of it is in a stratum: presets and BED files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqpope.data.shards import SPLITS
from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.bed import bed_lines
from seqpope.domains.genome.names import CHROMOSOMES, Names
from seqpope.domains.genome.references import TAKEN, complement
from seqpope.domains.genome.store import MOST_FILES, merged
from seqpope.errors import SeqpopeError

NT, PAPER, FRACTION = "nt", "paper", "fraction"
PRESETS = {
    NT: "chr21 validates, chr22 tests, the other of chr1 to 22, X and Y train (the Nucleotide Transformer's)",
    PAPER: "as nt: the paper names no split; this is that of the data set whose tokenizer it uses",
    FRACTION: "of each contig's known bases 90% train, the next 5% validate, the last 5% test; with gaps",
}
HELD = 0.05  # of a contig's known bases, for validation and for test each
GAP = 12_000  # known bases between, at most a hundredth of the contig's
FEWEST = 20_000  # known bases of a contig that is divided; a smaller one trains
Rows = list[tuple[int, int, int]]  # number of the contig, start, end


class BedRow(NamedTuple):
    """A line of a BED file: its number, and what it says; `name` is "" if there is no fourth column."""

    line: int
    contig: str
    start: int
    end: int
    name: str


def read_bed(path: Path) -> Iterator[BedRow]:
    """The rows of a BED file, plain or gzipped; comments, blank lines, `track` and `browser` are passed over.

    Raises:
        SeqpopeError: it cannot be read, or a line is no row; the line is named.
    """
    for number, words in bed_lines(path):
        try:
            start, end = int(words[1]), int(words[2])
        except (IndexError, ValueError):
            raise SeqpopeError(
                f"{path}, line {number}: expected contig, start and end with tabs between, it is "
                f"{' '.join(words)[:60]!r}"
            ) from None
        if not 0 <= start < end:
            raise SeqpopeError(
                f"{path}, line {number}: expected 0 <= start < end (from 0, half-open), they are {start} and {end}"
            )
        yield BedRow(number, words[0], start, end, words[3] if len(words) > 3 else "")


def splits_of(name: str, contigs: Mapping[str, int], stretches: np.ndarray) -> dict[str, Rows]:
    """The intervals of each split.

    Args:
        name: nt, paper, fraction, or a BED file whose fourth column names train, validation or test.
        contigs: length of each.
        stretches: (S, 3) known ones: number of the contig, start, end.

    Raises:
        SeqpopeError: the split is not known, does not fit this genome, or leaves a split without known bases.
    """
    names = Names(contigs)
    if name in (NT, PAPER):
        splits = _by_chromosome(names)
    elif name == FRACTION:
        splits = _by_fraction(len(contigs), stretches)
    elif Path(name).is_file():
        splits = _by_bed(Path(name), names)
    else:
        raise SeqpopeError(
            f"unknown split {name!r}: expected {', '.join(PRESETS)} or a BED file, which is not there"
        )
    empty = [part for part in SPLITS if not splits[part]]
    if empty:
        advice = (
            f"a contig of at least {FEWEST / 1000:g} kb of A, C, G and T is the least, give more or name the "
            "splits in a BED file (--split FILE.bed)"
            if name == FRACTION
            else "name intervals of it"
        )
        raise SeqpopeError(f"the split {name} leaves nothing for {' and '.join(empty)}: {advice}")
    return splits


def _by_chromosome(names: Names) -> dict[str, Rows]:
    numbers = {contig: number for number, contig in enumerate(names.contigs)}
    found: dict[str, str] = {}
    for chromosome in CHROMOSOMES:
        try:
            found[chromosome] = names.resolve(chromosome)
        except SequenceError:
            continue
    lacking = [f"chr{chromosome}" for chromosome in ("21", "22") if chromosome not in found]
    if lacking or len(found) < 3:
        there = ", ".join(list(names.contigs)[:8])
        raise SeqpopeError(
            f"the split nt validates on chr21 and tests on chr22, and this genome lacks "
            f"{' and '.join(lacking) or 'the others'} (it has {there}): take --split fraction or a BED file"
        )
    part = {"21": "validation", "22": "test"}
    splits: dict[str, Rows] = {name: [] for name in SPLITS}
    for chromosome, contig in found.items():
        splits[part.get(chromosome, "train")].append((numbers[contig], 0, names.contigs[contig]))
    return {name: sorted(rows) for name, rows in splits.items()}


def _by_fraction(count: int, stretches: np.ndarray) -> dict[str, Rows]:
    splits: dict[str, Rows] = {name: [] for name in SPLITS}
    first_of = np.searchsorted(stretches[:, 0], np.arange(count + 1))
    for number in np.unique(stretches[:, 0]).tolist():
        edges = stretches[first_of[number] : first_of[number + 1], 1:]
        known = np.cumsum(edges[:, 1] - edges[:, 0])
        total = int(known[-1])
        first, last = int(edges[0, 0]), int(edges[-1, 1])
        if total < FEWEST:
            splits["train"].append((number, first, last))
            continue

        def place(done: int, edges: np.ndarray = edges, known: np.ndarray = known) -> int:
            """Where so many known bases have passed."""
            of = int(np.searchsorted(known, done, side="right"))
            return int(edges[of, 1] - (known[of] - done)) if of < len(edges) else int(edges[-1, 1])

        held, gap = round(HELD * total), min(GAP, total // 100)
        splits["train"].append((number, first, place(total - 2 * held - 2 * gap)))
        splits["validation"].append((number, place(total - 2 * held - gap), place(total - held - gap)))
        splits["test"].append((number, place(total - held), last))
    return splits


def _by_bed(path: Path, names: Names) -> dict[str, Rows]:
    numbers = {contig: number for number, contig in enumerate(names.contigs)}
    rows = []
    for row in read_bed(path):
        if row.name not in SPLITS:
            raise SeqpopeError(
                f"{path}, line {row.line}: expected {', '.join(SPLITS)} in the fourth column, it is {row.name!r}"
            )
        rows.append((numbers[_placed(path, row, names)], row.start, row.end, row.name, row.line))
    # In order, no interval may begin before those of another split that came before have ended.
    furthest: dict[str, tuple[int, int, int]] = {}
    for number, start, end, name, line in sorted(rows):
        for other, (contig, until, before) in furthest.items():
            if other != name and contig == number and until > start:
                raise SeqpopeError(
                    f"{path}: line {line} ({name}) overlaps line {before} ({other}): what is trained on must not "
                    "be tested on, cut one of them"
                )
        if name not in furthest or furthest[name][:2] < (number, end):
            furthest[name] = (number, end, line)
    splits: dict[str, Rows] = {}
    for part in SPLITS:
        chosen = np.array([row[:3] for row in rows if row[3] == part], np.int64).reshape(-1, 3)
        splits[part] = [(int(n), int(start), int(end)) for n, start, end in merged(chosen)]
    return splits


def _placed(path: Path, row: BedRow, names: Names) -> str:
    try:
        return names.interval(row.contig, row.start, row.end)
    except SequenceError as error:
        raise SeqpopeError(f"{path}, line {row.line}: {error}") from None


class Stratum(NamedTuple):
    """What a BED file says of a genome: (I, 3) int64 intervals, merged, and how many rows name no contig of it."""

    name: str
    rows: np.ndarray
    elsewhere: int


def strata_of(paths: Sequence[Path], contigs: Mapping[str, int]) -> list[Stratum]:
    """A stratum for each BED file, called as the file is.

    Rows of contigs that the genome lacks are counted: such files are of whole assemblies.

    Raises:
        SeqpopeError: there are too many, two have one name or one has a name of a report's, one cannot be read,
            says nothing of this genome or passes a contig's end.
    """
    if len(paths) > MOST_FILES:
        raise SeqpopeError(f"{len(paths)} files of strata were given, a token's flags have room for {MOST_FILES}")
    names = Names(contigs)
    numbers = {contig: number for number, contig in enumerate(contigs)}
    strata: list[Stratum] = []
    for path in paths:
        rows, elsewhere = [], 0
        for row in read_bed(path):
            try:
                names.resolve(row.contig)
            except SequenceError:
                elsewhere += 1
                continue
            rows.append((numbers[_placed(path, row, names)], row.start, row.end))
        if not rows:
            raise SeqpopeError(
                f"{path} says nothing of this genome: {elsewhere} rows name other contigs than "
                f"{', '.join(list(contigs)[:5])}"
            )
        strata.append(Stratum(stratum_name(path), merged(np.array(rows, np.int64)), elsewhere))
    called = [*TAKEN, *(name for stratum in strata for name in (stratum.name, complement(stratum.name)))]
    for path, stratum in zip(paths, strata, strict=True):
        if called.count(stratum.name) > 1:
            raise SeqpopeError(f"two strata of a report would be called {stratum.name!r}: rename the file {path}")
    return strata


def stratum_name(path: Path) -> str:
    """A file's name without what says that it is a BED file."""
    name = path.name.removesuffix(".gz").removesuffix(".bgz")
    return name.removesuffix(".bed") or path.name
