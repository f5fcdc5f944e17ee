"""Which regions are asked for: a BED file's, one by its coordinates, or all that is known of a genome.

Of a BED file, plain or gzipped, comments, `track` and `browser` lines and a header are passed over; lines may
be in any order. A line that is no interval (fewer than three columns, no numbers, start beyond end) has the file
refused: it is not what it was taken for. Lines of no base, on contigs that the genome lacks, or past their
contig's end are left out, counted and named: a value for what is not there would be wrong.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.bed import bed_lines
from seqpope.domains.genome.sequences import Genome
from seqpope.domains.genome.tracks import parse_place
from seqpope.errors import SeqpopeError

PIECE = 100_000  # bases: a whole genome is told in pieces between multiples of this
SHOWN = 3  # lines that a message names
KEPT = 20  # lines that a sidecar names


@dataclass(frozen=True)
class Regions:
    """R regions in the order asked for: contig's number in the genome's order and interval, (R,) int64 each; BED's
    name and strand columns, "" where it has none. `skipped`: lines of a BED file that were left out, by reason."""

    contig: np.ndarray
    start: np.ndarray
    end: np.ndarray
    names: list[str]
    strands: list[str]
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.contig)


@dataclass
class Skipped:
    """Lines left out for one reason: how many, and the first of them."""

    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.count += 1
        if len(self.lines) < KEPT:
            self.lines.append(line)


def read_bed(path: Path, genome: Genome) -> Regions:
    """The regions of a BED file.

    Raises:
        SeqpopeError: it cannot be read, has lines that are no intervals, or no region is left.
    """
    numbers = {name: number for number, name in enumerate(genome.contigs)}
    lengths = list(genome.contigs.values())
    known: dict[str, int | None] = {}
    rows: list[tuple[int, int, int]] = []
    names, strands = [], []
    bad = Skipped()
    skipped = {reason: Skipped() for reason in ("unknown contig", "past the contig's end", "no base")}
    first = True
    for number, words in bed_lines(path):
        header, first = first, False
        whole = len(words) >= 3 and words[1].isdecimal() and words[2].isdecimal()
        if not whole and header and len(words) >= 3 and not any(c.isdigit() for c in words[1] + words[2]):
            continue
        if not whole or int(words[1]) > int(words[2]):
            bad.add(f"line {number}: {' '.join(words)[:60]!r}")
            continue
        name, start, end = words[0], int(words[1]), int(words[2])
        if name not in known:
            try:
                known[name] = numbers[genome.resolve(name)]
            except SequenceError:
                known[name] = None
        contig, told = known[name], f"line {number}: {name}:{start}-{end}"
        if contig is None:
            skipped["unknown contig"].add(told)
        elif end > lengths[contig]:
            skipped["past the contig's end"].add(f"{told} of {lengths[contig]} bases")
        elif start == end:
            skipped["no base"].add(told)
        else:
            rows.append((contig, start, end))
            names.append(words[3] if len(words) > 3 else "")
            strands.append(words[5] if len(words) > 5 else "")
    if bad.count:
        raise SeqpopeError(
            f"{path} has {bad.count} lines that are no intervals ({'; '.join(bad.lines[:SHOWN])}): expected "
            "contig, start from 0 and end, start at most end, with tabs between; mend or remove them"
        )
    contigs, starts, ends = np.array(rows, np.int64).reshape(-1, 3).T
    regions = Regions(contigs, starts, ends, names, strands, skipped)
    if not rows:
        raise SeqpopeError(
            f"{path} leaves no region to score{': ' + told_skipped(regions) if told_skipped(regions) else ''}; "
            f"the genome has {', '.join(list(genome.contigs)[:5])} ..."
        )
    return regions


def told_skipped(regions: Regions) -> str:
    """The lines left out in words, "" if there are none."""
    return "; ".join(
        f"{some.count} left out ({reason}): {', '.join(some.lines[:SHOWN])}{' ...' if some.count > SHOWN else ''}"
        for reason, some in regions.skipped.items()
        if some.count
    )


def parse_region(text: str, genome: Genome) -> Regions:
    """The one region that text such as chr7:5,500,000-5,600,000 means, or a whole contig by its name alone.

    Bases count from 1 and the last is in it.

    Raises:
        SeqpopeError: it is no region, or not inside the genome.
    """
    place = parse_place(text, genome)
    contig, start, end = np.array([[list(genome.contigs).index(place.contig)], [place.start], [place.end]])
    return Regions(contig, start, end, [""], [""])


def whole_genome(genome: Genome) -> Regions:
    """All known stretches, cut where a contig's position is a multiple of PIECE."""
    parts = []
    for number, name in enumerate(genome.contigs):
        for start, end in np.asarray(genome.stretches(name)).tolist():
            cuts = [start, *range(start - start % PIECE + PIECE, end, PIECE), end]
            parts.append(np.array([(number, a, b) for a, b in itertools.pairwise(cuts)]))
    if not parts:
        raise SeqpopeError("the genome has no known base to score: it is all N")
    contig, start, end = np.concatenate(parts).T
    return Regions(contig, start, end, [""] * len(contig), [""] * len(contig))
