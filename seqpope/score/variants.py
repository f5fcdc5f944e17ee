"""Variants scored by what they change of a sequence's log-likelihood.

Two haplotypes are read, equal outside the variant: the reference's and the one with the allele. With W bases in a
window of the model's training length, a haplotype is read from W / 2 bases before the variant to as many after it
as the window holds beside the longer allele, so that both end at the same coordinate of the genome, and

    delta = log P(bases from the variant on | bases before it; ALT) - the same of REF,    nats.

Bases before the variant are the same in both and have the same context, so they cancel. A token may begin at any
of k places relative to the variant (six-mers: k = 6) and either strand may be read: delta is the mean over all
these windows.

Behind an insertion or deletion tokens begin elsewhere than in the reference, unless its length is a multiple of k.
How a few hundred bases fall into tokens is worth several nats, which have nothing to do with the variant and
cancel only in the mean over all k phases: so such variants are always read in all of them. The standard deviation
over windows, which says how far the model agrees with itself, is that of what is left if costs of the allele are
compared at the same phase before the variant, and costs of what follows at the same phase behind it.

A longer haplotype has more bases to pay for. The length-corrected delta takes the difference in bases at the mean
rate of both haplotypes, m nats/base over all that is scored of them and the latter half of what is read before:

    corrected = delta + (bases of ALT - bases of REF) m,    so that both negate when REF and ALT are exchanged.

A variant is first brought into its normal form: bases that REF and ALT share at their ends are taken off, and an
insertion or deletion is moved as far against the reading direction as it goes (on either strand by that strand's
direction). Hence the score is the same wherever a repeat's unit is written as inserted or deleted, whatever anchor
base stands before it, and on a reverse-complemented genome. Windows are placed by the variant alone: what else is
in a file does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from seqpope.domains.genome.bases import IUPAC, SequenceError
from seqpope.domains.genome.sequences import UNKNOWN, Genome, other_strand
from seqpope.domains.genome.vcf import Record
from seqpope.score.likelihood import Row

WHY = {
    "no_contig": "the genome has no such contig",
    "other_length": "the header has another length of its contig than the genome",
    "outside": "it lies outside its contig",
    "ref_mismatch": "REF is not what the genome has there",
    "ref_unknown": "REF or the genome there has N or another code of several bases",
    "no_alt": "ALT is a dot",
    "symbolic": "ALT is symbolic, a breakend or *",
    "alt_unknown": "ALT has N or another code of several bases",
    "not_dna": "REF or ALT has a letter that is no code of IUPAC",
    "too_long": "REF or ALT is longer than a quarter of the model's window",
}
STRANDS = {"both": (False, True), "+": (False,), "-": (True,)}  # which are read reversed
_CHUNK = 1024  # bases looked at together for how far an indel can be moved
_CODES = np.zeros(256, np.uint8)
for _code, _letter in enumerate("ACGT", 1):
    _CODES[[ord(_letter), ord(_letter.lower())]] = _code


class Asked(Protocol):
    """Rows that are being scored (`likelihood.Pending`)."""

    def result(self) -> Any: ...


class Likelihoods(Protocol):
    """What is asked of a model (`likelihood.Likelihood`): bases in a token, tokens in a window, nats of rows."""

    k: int
    length: int

    def begin(self, rows: Sequence[Row]) -> Asked: ...


class Score(NamedTuple):
    """An allele's score, nats. `windows` is how many were averaged; `why` (of WHY) says that it has none.

    Attributes:
        sd: standard deviation over the windows (n - 1); nan with fewer than two.
    """

    delta: float
    corrected: float
    sd: float
    windows: int
    why: str = ""


UNCHANGED = Score(0.0, 0.0, 0.0, 0)  # ALT is REF


def refused(why: str) -> Score:
    """What an allele has that is not scored."""
    return Score(math.nan, math.nan, math.nan, 0, why)


class Contigs:
    """Names of contigs as a VCF has them -> those of the genome, each looked up once.

    Args:
        lengths: what the VCF's header says of contigs by its own names.
    """

    def __init__(self, genome: Genome, lengths: Mapping[str, int | None] | None = None) -> None:
        self.genome, self._lengths = genome, lengths or {}
        self._known: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The genome's contig of a name, None if there is none."""
        if name not in self._known:
            try:
                self._known[name] = self.genome.resolve(name)
            except SequenceError:
                self._known[name] = None
        return self._known[name]

    def why_not(self, record: Record) -> str:
        """Why no allele of a record can be scored (of WHY), "" if REF is what the genome has."""
        contig = self.find(record.contig)
        if contig is None:
            return "no_contig"
        if self._lengths.get(record.contig) not in (None, self.genome.contigs[contig]):
            return "other_length"
        start, end = record.position, record.position + len(record.ref)
        if start < 0 or end > self.genome.contigs[contig]:
            return "outside"
        if not _is_dna(record.ref):
            return "not_dna"
        written, here = _codes(record.ref), self.genome.fetch(contig, start, end) & 7
        known = (written != UNKNOWN) & (here != UNKNOWN)
        if (written != here)[known].any():
            return "ref_mismatch"
        return "" if known.all() else "ref_unknown"


def why_not_allele(ref: str, alt: str, longest: int) -> str:
    """Why an allele cannot be scored (of WHY), "" if it can; `longest` bases of REF or ALT are scored."""
    if alt == "*" or set(alt) & set("<>[]") or alt[0] == "." or alt[-1] == ".":
        return "symbolic"
    if not _is_dna(alt):
        return "not_dna"
    if (_codes(alt) == UNKNOWN).any():
        return "alt_unknown"
    first, last = _trimmed(ref.upper(), alt.upper())
    return "too_long" if max(len(ref), len(alt)) - first - last > longest else ""


class Change(NamedTuple):
    """Bases [start, start + len(ref)) of a strand, in its reading direction, become `alt`; codes 1 to 4."""

    start: int
    ref: np.ndarray
    alt: np.ndarray


class Strand:
    """A contig in one reading direction; places count from the first base read."""

    def __init__(self, genome: Genome, contig: str, reverse: bool) -> None:
        self.genome, self.contig, self.reverse = genome, contig, reverse
        self.length = genome.contigs[contig]

    def read(self, start: int, end: int) -> np.ndarray:
        """Bases [start, end), (end - start,) uint8 0 to 4."""
        if not self.reverse:
            return self.genome.fetch(self.contig, start, end) & 7
        return other_strand(self.genome.fetch(self.contig, self.length - end, self.length - start) & 7)

    def normal(self, position: int, ref: str, alt: str) -> Change:
        """The normal form on this strand of a variant as a VCF has it, `position` from 0 on the forward strand."""
        before, after = _trimmed(ref.upper(), alt.upper())
        old, new = _codes(ref)[before : len(ref) - after], _codes(alt)[before : len(alt) - after]
        start = position + before
        if self.reverse:
            start, old, new = self.length - start - len(old), other_strand(old), other_strand(new)
        if len(old) and len(new):
            return Change(start, old, new)
        moved = self._room(start, old if len(old) else new)
        return Change(start - moved, *(np.roll(bases, moved) for bases in (old, new)))

    def _room(self, start: int, unit: np.ndarray) -> int:
        """How far a unit inserted before `start`, or deleted from there on, can be moved towards place 0."""
        moved = 0
        while start - moved > 0:
            some = self.read(max(0, start - moved - _CHUNK), start - moved)[::-1]
            same = some == unit[::-1][(moved + np.arange(len(some))) % len(unit)]
            if not same.all():
                return moved + int(same.argmin())
            moved += len(some)
        return moved


class Pair(NamedTuple):
    """The two haplotypes of a window; `before` of the bases scored lie before the variant."""

    ref: Row
    alt: Row
    before: int


class Reach(NamedTuple):
    """Bases of a window before the variant, bases from it on, and how many of an allele are scored at most."""

    before: int
    after: int
    longest: int


def reach(k: int, window: int) -> Reach:
    """How `window` tokens of k bases are divided: half before the variant, a quarter at least behind it."""
    before = window // 2 * k
    after = window * k - before
    return Reach(before, after, after // 2)


def pairs(strand: Strand, change: Change, k: int, window: int, phases: Sequence[int]) -> Iterator[Pair]:
    """The windows of a variant on a strand, one for each phase: bases of a token that lie before the variant.

    N and the contig's ends cut windows. A phase whose token then has no beginning is read as a token's end.
    Where lengths differ, half of the bases before the variant are scored too.
    """
    most, after, _ = reach(k, window)
    start, old, new = change
    end = start + len(old)
    left = strand.read(max(0, start - most), start)
    left = left[np.flatnonzero(np.append([UNKNOWN], left) == UNKNOWN)[-1] :]
    right = strand.read(end, min(strand.length, end + after - max(len(old), len(new))))
    right = right[: np.flatnonzero(np.append(right, UNKNOWN) == UNKNOWN)[0]]
    for phase in phases:
        lead = (len(left) - phase) % k  # to the first token's beginning
        read = left[lead if lead <= len(left) else 0 :]
        before = 0 if len(old) == len(new) else (len(read) + 1) // 2
        ref, alt = (
            Row(np.concatenate((read, allele, right)), lead if lead > len(left) else 0, len(read) - before)
            for allele in (old, new)
        )
        yield Pair(ref, alt, before)


class Costs(NamedTuple):
    """What a haplotype costs in a window, nats: all that is scored of it, how many bases that are, the allele's
    bases and those behind it."""

    scored: float
    bases: int
    allele: float
    behind: float


def costs(nats: np.ndarray, before: int, size: int) -> Costs:
    """Sums of the nats (n,) of bases, of which `before` and then `size` of the allele come first."""
    parts = nats[:before], nats[before : before + size], nats[before + size :]
    first, allele, behind = (float(part.sum(dtype=np.float64)) for part in parts)
    return Costs(first + allele + behind, len(nats), allele, behind)


def deltas(ref: Sequence[Costs], alt: Sequence[Costs], shift: int) -> list[tuple[float, float]]:
    """Delta and length-corrected delta of each window of a strand, in the order of phases.

    Args:
        shift: behind the allele tokens begin in ALT's window i + shift where they do in the reference's window i.
            Other than 0 only if there are all phases.
    """
    found = []
    for i, (old, new) in enumerate(zip(ref, alt, strict=True)):
        total = old.allele - new.allele + old.behind - alt[(i + shift) % len(alt)].behind
        grown = new.bases - old.bases
        rate = (old.scored + new.scored) / (old.bases + new.bases) if grown else 0.0
        found.append((total, total + grown * rate))
    return found


class Planned(NamedTuple):
    """An allele's windows on a strand: numbers of rows and bases scored before the variant, by phase."""

    windows: list[tuple[int, int, int]]
    old: int
    new: int


def score_records(
    records: Iterable[Record],
    contigs: Contigs,
    likelihood: Likelihoods,
    *,
    window: int,
    phases: Sequence[int],
    strands: Sequence[bool],
) -> Callable[[], list[list[Score]]]:
    """Start to score records; what is returned waits for the scores of each one's alleles.

    Where ALT is a dot a record has one score, which says so. Windows that are the same are read once: alleles of
    one length share the reference's.

    Args:
        window: tokens that are read at once, at most.
        phases: of 0 to k - 1; all for alleles behind which tokens begin elsewhere.
        strands: which are read, False forward and True reverse.
    """
    k, longest = likelihood.k, reach(likelihood.k, window).longest
    numbers: dict[tuple[bytes, int, int], int] = {}
    rows: list[Row] = []

    def number(row: Row) -> int:
        found = numbers.setdefault((row.bases.tobytes(), row.lead, row.context), len(rows))
        if found == len(rows):
            rows.append(row)
        return found

    def plan(record: Record, alt: str, why: str) -> Score | list[Planned]:
        why = why or (why_not_allele(record.ref, alt, longest) if alt else "no_alt")
        if why:
            return refused(why)
        if alt.upper() == record.ref.upper():
            return UNCHANGED
        found = []
        for reverse in strands:
            strand = Strand(contigs.genome, contigs.find(record.contig) or "", reverse)
            change = strand.normal(record.position, record.ref, alt)
            old, new = len(change.ref), len(change.alt)
            read = pairs(strand, change, k, window, range(k) if (old - new) % k else phases)
            found.append(Planned([(number(p.ref), number(p.alt), p.before) for p in read], old, new))
        return found

    plans = []
    for record in records:
        why = contigs.why_not(record)
        plans.append([plan(record, alt, why) for alt in record.alts or ("",)])
    asked = likelihood.begin(rows) if rows else None

    def result() -> list[list[Score]]:
        nats = asked.result().nats if asked is not None else []

        def scored(planned: Score | list[Planned]) -> Score:
            if isinstance(planned, Score):
                return planned
            found = []
            for windows, old, new in planned:
                ref = [costs(nats[row], before, old) for row, _, before in windows]
                alt = [costs(nats[row], before, new) for _, row, before in windows]
                found += deltas(ref, alt, (old - new) % k)
            return _averaged(found)

        return [[scored(planned) for planned in each] for each in plans]

    return result


def _averaged(values: Sequence[tuple[float, float]]) -> Score:
    each = np.array(values)  # (windows, 2)
    mean, corrected = each.mean(0).tolist()
    return Score(mean, corrected, float(each[:, 0].std(ddof=1)) if len(each) > 1 else math.nan, len(each))


def _is_dna(text: str) -> bool:
    return text.isascii() and set(text.upper()) <= IUPAC.keys()


def _codes(text: str) -> np.ndarray:
    """Bases of a text of IUPAC codes, (L,) uint8 0 to 4."""
    return _CODES[np.frombuffer(text.encode("ascii"), np.uint8)]


def _trimmed(ref: str, alt: str) -> tuple[int, int]:
    """How many bases REF and ALT share at their starts and at their ends, none counted twice."""
    most = min(len(ref), len(alt))
    after = next((n for n in range(most) if ref[-1 - n] != alt[-1 - n]), most)
    before = next((n for n in range(most - after) if ref[n] != alt[n]), most - after)
    return before, after
