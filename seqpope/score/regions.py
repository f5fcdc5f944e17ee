"""Regions of a genome -> rows to score -> numbers of bases and regions.

On each strand token boundaries and blocks are anchored to the contig's own 5' end on that strand, never to a
region. With distances counted from there, phase p has boundaries where the distance is p mod k, and block i
holds tokens [i x stride, (i + 1) x stride) of it, read with up to window - stride tokens of context before them.
Rows are cut at N: a stretch's first token is predicted from padding, and the bases before its first boundary are
its row's lead. So what a base costs depends on the contig alone, whatever else is asked for, and every known base
is scored once a strand and phase. What lies behind the last base wanted in a block is not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from seqpope.domains.genome.sequences import UNKNOWN, Genome, known_stretches, other_strand
from seqpope.errors import SeqpopeError
from seqpope.score.likelihood import Likelihood, Pending, Row, Scores

STRANDS = {"both": "+-", "+": "+", "-": "-"}


@dataclass(frozen=True)
class Reading:
    """How a genome is read.

    Args:
        k: bases in a token.
        window: tokens read at once, at most; stride: tokens scored of them.
        strands: "both", "+" or "-".
        phases: how many places of the token boundaries, spread evenly over the k.
    """

    k: int
    window: int
    stride: int
    strands: Literal["both", "+", "-"] = "both"
    phases: int = 6

    def __post_init__(self) -> None:
        if self.strands not in STRANDS:
            raise SeqpopeError(f"the strand must be both, + or -, it is {self.strands!r}")
        if not 1 <= self.phases <= self.k:
            raise SeqpopeError(
                f"a model whose tokens are {self.k} {'bases' if self.k > 1 else 'base'} has 1 to {self.k} phases, "
                f"{self.phases} were asked for"
            )
        if not 1 <= self.stride <= self.window:
            raise SeqpopeError(
                f"expected 1 <= stride <= window tokens, they are {self.stride} and {self.window}: a stride of "
                "half the window leaves every token at least that much context"
            )

    @property
    def passes(self) -> list[tuple[str, int]]:
        """Strand and phase of each time that a base is scored."""
        return list(product(STRANDS[self.strands], (i * self.k // self.phases for i in range(self.phases))))

    @property
    def reach(self) -> int:
        """Bases that are enough on each side of what is wanted."""
        return self.k * (self.window + 2)


class Placed(NamedTuple):
    """A row, the distance of its first scored base, and that of the first base that is context of a later one."""

    row: Row
    start: int
    opens: int


def rows_of_pass(
    reading: Reading, phase: int, bases: np.ndarray, origin: int, wanted: np.ndarray
) -> Iterator[Placed]:
    """The rows that score what is wanted once; distances are from the contig's 5' end on the strand read.

    Args:
        bases: (n,) of that strand, from distance `origin` on; at least `reading.reach` before what is wanted, or
            all there is.
        wanted: (W, 2) intervals of distances, rising, that do not overlap.
    """
    k, stride = reading.k, reading.stride
    for first, last in known_stretches(bases, origin).tolist():
        boundary = first + (phase - first) % k
        opening = (boundary - phase) // k  # the stretch's first token
        blocks: dict[int, tuple[int, int]] = {}  # what is wanted of each, from first to last base
        inside = wanted[(wanted[:, 0] < last) & (wanted[:, 1] > first)]
        for low, high in np.clip(inside, first, last).tolist():
            tokens = (max(opening, (d - phase) // k) for d in (low, high - 1))
            begin, end = (token // stride for token in tokens)
            for block in range(begin, end + 1):
                # The lead goes with the first token's block, wherever its own token would lie.
                start = low if block == opening // stride else max(low, phase + k * block * stride)
                stop = min(high, phase + k * (block + 1) * stride)
                blocks[block] = (blocks[block][0] if block in blocks else start, stop)
        for block, (start, stop) in blocks.items():
            opens = phase + k * max(opening, block * stride - (reading.window - stride))
            begin = first if start < boundary else opens
            yield Placed(
                Row(bases[begin - origin : stop - origin], max(0, boundary - begin), start - begin), start, opens
            )


class Span(NamedTuple):
    """A piece of a contig with (W, 2) intervals wanted of it, rising, from its first base to its last."""

    contig: str
    wanted: np.ndarray

    @property
    def start(self) -> int:
        return int(self.wanted[0, 0])

    @property
    def end(self) -> int:
        return int(self.wanted[-1, 1])


class SpanScores:
    """What each base of a span costs in each pass.

    Attributes:
        values: (P, n) float32 nats; nan where the base is N, and maybe where it is not wanted.
        known: (n,) bool, whether the base is one.
        context: (P, n) int32 bases read before it, of its stretch and window.
    """

    def __init__(self, genome: Genome, span: Span, reading: Reading) -> None:
        self.span, self.reading = span, reading
        length = genome.contigs[span.contig]
        start, end = max(0, span.start - reading.reach), min(length, span.end + reading.reach)
        bases = genome.fetch(span.contig, start, end)
        self.known = (bases[span.start - start : span.end - start] & 7) != UNKNOWN
        # For each pass the rows with the place of their first scored base, in reading direction.
        self.rows: list[Row] = []
        self._places: list[tuple[int, int, int]] = []
        strands = {}
        for strand in STRANDS[reading.strands]:
            if strand == "+":
                strands[strand] = bases, start, span.wanted, span.start
            else:
                wanted = length - span.wanted[::-1, ::-1]
                strands[strand] = other_strand(bases), length - end, wanted, length - span.end
        for number, (strand, phase) in enumerate(reading.passes):
            letters, origin, wanted, first = strands[strand]
            for placed in rows_of_pass(reading, phase, letters, origin, wanted):
                self.rows.append(placed.row)
                self._places.append((number, placed.start - first, placed.opens - placed.start))
        self.values = np.full((len(reading.passes), span.end - span.start), np.nan, np.float32)
        self.context = np.zeros(self.values.shape, np.int32)

    def fill(self, nats: Sequence[np.ndarray]) -> None:
        """Put what the rows cost where their bases are."""
        for (number, start, opens), row, costs in zip(self._places, self.rows, nats, strict=True):
            size = len(costs)
            place = slice(start, start + size)
            self.values[number, place] = costs
            read = np.arange(-opens, size - opens)  # negative in the lead, whose own bases count there
            self.context[number, place] = np.where(read < 0, read + row.lead, read)
        for number, (strand, _) in enumerate(self.reading.passes):
            if strand == "-":
                self.values[number] = self.values[number, ::-1].copy()
                self.context[number] = self.context[number, ::-1].copy()

    def mean(self) -> np.ndarray:
        """Mean over strands and phases, (n,) fp64 nats."""
        return self.values.mean(0, dtype=np.float64)

    def spread(self) -> np.ndarray:
        """Standard deviation over strands and phases, (n,) fp64 nats; 0 with one of them."""
        return self.values.std(0, dtype=np.float64)

    def sums(self, intervals: np.ndarray) -> RegionSums:
        """Sums over (R, 2) intervals of the contig, each inside the span and wanted."""
        if not len(intervals):
            return RegionSums.zeros(0, len(self.values))
        starts, ends = (intervals - self.span.start).T
        wanted = np.zeros(len(self.known), bool)
        for start, end in self.span.wanted - self.span.start:
            wanted[start:end] = True
        # What nobody wants may never have been read: one nan of it would be in every running sum behind it.
        known = np.where(self.known & wanted, self.values, 0)

        def total(each: np.ndarray) -> np.ndarray:
            running = np.zeros((*each.shape[:-1], each.shape[-1] + 1))
            np.cumsum(each, -1, dtype=np.float64, out=running[..., 1:])
            return running[..., ends] - running[..., starts]

        counts = total(self.known.astype(np.float64)).astype(np.int64)
        context = np.where(self.known, self.context.sum(0, dtype=np.int64), 0)
        # reduceat wants its borders in one row and none at the end: one more that no minimum is of.
        lowest = np.append(np.where(self.known, self.context.min(0).astype(np.int64), NO_CONTEXT), NO_CONTEXT)
        least = np.minimum.reduceat(lowest, np.stack((starts, ends), 1).reshape(-1))[::2]
        return RegionSums(total(known).T, counts, ends - starts - counts, total(context), least)


def score_units(
    likelihood: Likelihood,
    genome: Genome,
    reading: Reading,
    units: Iterable[Sequence[Span]],
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[SpanScores], Scores]]:
    """Score units of spans one after the other; on a GPU while it computes one the next is read and planned.

    Args:
        progress: called after each batch with the bases scored in it, each counted once a strand and phase.

    Yields:
        each unit's spans, filled, and what was said of their rows.
    """
    waiting: deque[tuple[list[SpanScores], Pending]] = deque()
    ahead = likelihood.device.type != "cpu"  # where what has begun is done already

    def finished() -> tuple[list[SpanScores], Scores]:
        spans, pending = waiting.popleft()
        scores, place = pending.result(), 0
        for span in spans:
            span.fill(scores.nats[place : place + len(span.rows)])
            place += len(span.rows)
        return spans, scores

    for unit in units:
        spans = [SpanScores(genome, span, reading) for span in unit]
        waiting.append((spans, likelihood.begin([row for span in spans for row in span.rows], progress)))
        if len(waiting) > ahead:
            yield finished()
    while waiting:
        yield finished()


NO_CONTEXT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class RegionSums:
    """Sums over R regions that can be added up from the pieces of a region.

    nats: (R, P) fp64 of each strand and phase. scored, unknown: (R,) bases. context: (R,) fp64 bases read before
    each base, summed over bases, strands and phases; least: (R,) the least of them.
    """

    nats: np.ndarray
    scored: np.ndarray
    unknown: np.ndarray
    context: np.ndarray
    least: np.ndarray

    @classmethod
    def zeros(cls, regions: int, passes: int) -> RegionSums:
        """Of nothing yet."""
        scored, unknown = np.zeros((2, regions), np.int64)
        least = np.full(regions, NO_CONTEXT, np.int64)
        return cls(np.zeros((regions, passes)), scored, unknown, np.zeros(regions), least)

    def add(self, regions: np.ndarray, more: RegionSums) -> None:
        """Add sums of pieces to (M,) regions by number, of which one may come more than once."""
        for name in ("nats", "scored", "unknown", "context"):
            np.add.at(getattr(self, name), regions, getattr(more, name))
        np.minimum.at(self.least, regions, more.least)
