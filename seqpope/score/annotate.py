"""The variants of a VCF scored, and written to it again or to a table: `seqpope score --vcf`.

A VCF is gone over three times: to check it whole before anything is computed, to score it in units, and to write
it. Units are kept and shared out as those of regions are (`work`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

import seqpope
from seqpope.checkpoint import find_checkpoint, load_checkpoint, read_info
from seqpope.domains.genome.sequences import Genome
from seqpope.domains.genome.store import identity, open_genome
from seqpope.domains.genome.vcf import Field, Record, VcfFile, made_header, with_info, write_vcf
from seqpope.errors import SeqpopeError
from seqpope.files import sha256_of, write_bytes, write_text
from seqpope.progress import Progress
from seqpope.score.likelihood import Likelihood, tokenizer_of
from seqpope.score.variants import STRANDS, WHY, Contigs, Likelihoods, Score, reach, score_records
from seqpope.score.work import made_of, run

T = TypeVar("T")
FORMAT = 2  # of part files, raised too when scores come to mean something else
ENDINGS = (".vcf", ".vcf.gz", ".tsv", ".parquet")
SHORTEST = 4  # tokens of a window: a base at least behind the longest allele
UNIT = 8  # records, at least, whose scores are kept as soon as they are known
# Records whose windows are read together; 32 take minutes of a CPU, of which nothing would be seen.
TOGETHER = {"cuda": 32, "cpu": 4}
MOST_UNITS = 2000
TOLD = 5  # line numbers that are named
DOUBTED = 10  # mismatches of REF, if they are most records, that make it useless to go on

FIELDS = (
    Field(
        "SP_DLL",
        "A",
        "Float",
        "log P(ALT) - log P(REF) of the bases from the variant on, in nats, mean of SP_N windows",
    ),
    Field("SP_DLLC", "A", "Float", "SP_DLL corrected for bases that ALT has more or fewer than REF, in nats"),
    Field("SP_SD", "A", "Float", "Standard deviation of SP_DLL over windows (token phases, strands)"),
    Field("SP_N", "A", "Integer", "Windows that were averaged"),
    Field(
        "SP_WHY",
        ".",
        "String",
        "Why an ALT was not scored, one for each ALT: " + "; ".join(f"{key} {text}" for key, text in WHY.items()),
    ),
)
TABLE = ("contig", "position", "id", "ref", "alt", "delta", "delta_corrected", "sd", "windows", "why")


@dataclass
class Survey:
    """What is in a VCF: what goes through it first finds out.

    Attributes:
        records: how many.
        contigs: names of contigs in the order in which they come, with their lengths in the genome, None if it
            has none of the name.
        in_order: whether the records are as they will be written.
        checked: records whose REF could be compared with the genome.
        mismatches: those of them where it differs, or where the header's length of the contig does.
        wrong: lines of the first of these, as text.
    """

    records: int = 0
    contigs: dict[str, int | None] = field(default_factory=dict)
    in_order: bool = True
    checked: int = 0
    mismatches: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def another_assembly(self) -> str:
        """What to say if most records differ from the genome, else ""."""
        if 2 * self.mismatches <= self.checked:
            return ""
        return (
            f"REF or the contig's length in the header is not the genome's in {self.mismatches} of "
            f"{self.checked} records "
            f"({'; '.join(self.wrong)}): this looks like another assembly; lift the variants over, or give the "
            "genome they were called on"
        )


@dataclass
class Summary:
    """What was scored, and for each reason of `WHY` how many alleles were not, with the first lines of them."""

    records: int = 0
    scored: int = 0
    why: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, record: Record, scores: Sequence[Score]) -> None:
        self.records += 1
        for score in scores:
            if not score.why:
                self.scored += 1
                continue
            self.why[score.why] += 1
            lines = self.lines.setdefault(score.why, [])
            if len(lines) < TOLD and record.line not in lines:
                lines.append(record.line)

    def __str__(self) -> str:
        words = [f"{self.records} records, {self.scored} alleles scored, {self.why.total()} not"]
        for why, count in self.why.most_common():
            lines = ", ".join(map(str, self.lines[why])) + (" ..." if count > len(self.lines[why]) else "")
            words.append(f"  {why}: {count} ({WHY[why]}; line {lines})")
        return "\n".join(words)


def survey(file: VcfFile, contigs: Contigs) -> Survey:
    """Go through a VCF once and compare each REF with the genome.

    Raises:
        VcfError: lines are malformed.
    """
    found = Survey()
    last: tuple[str, int] | None = None
    for record in file:
        found.records += 1
        if record.contig not in found.contigs:
            contig = contigs.find(record.contig)
            found.contigs[record.contig] = None if contig is None else contigs.genome.contigs[contig]
        elif last is not None:
            found.in_order &= last[0] == record.contig and last[1] <= record.position
        last = record.contig, record.position
        why = contigs.why_not(record)
        found.checked += why in ("", "ref_mismatch", "other_length")
        if why in ("ref_mismatch", "other_length"):
            found.mismatches += 1
            if len(found.wrong) < TOLD:
                found.wrong.append(f"line {record.line}, {record.contig}:{record.position + 1} {record.ref[:20]}")
    ranks = _ranks(file, contigs, found.contigs)
    found.in_order &= list(found.contigs) == sorted(found.contigs, key=ranks.__getitem__)
    return found


class Annotation:
    """The scoring of a VCF in units of consecutive records, whose scores are kept in files until all are there.

    Attributes:
        found: what is in the VCF.
        units: how many there are.
        parts: the folder of their files. A file's name has all in it that scores depend on, so that what was
            scored otherwise is not taken.
    """

    def __init__(
        self,
        vcf: Path,
        genome: Genome,
        out: Path,
        *,
        k: int,
        window: int,
        phases: int | None = None,
        strand: str = "both",
        made: Mapping[str, str],
        tell: Callable[[str], None] = print,
    ) -> None:
        """
        Args:
            out: .vcf or .vcf.gz (bgzipped, with its index): the VCF with fields in INFO. .tsv or .parquet: a row
                an allele.
            k: bases of a token.
            window: tokens read at once.
            phases: how many places of token boundaries before a variant, spread evenly over the k; k if None.
            strand: both, + or -.
            made: what scores depend on beside this, such as fingerprints of model and genome; it stands in the
                header.

        Raises:
            SeqpopeError: the VCF cannot be used or is another assembly's, or an option is out of range.
        """
        self.out, self.file = Path(out), VcfFile(vcf)
        self.contigs = Contigs(genome, self.file.contig_lengths())
        self.ending = next((e for e in ENDINGS if self.out.name.lower().endswith(e)), "")
        if not self.ending or self.out.is_dir():
            raise SeqpopeError(f"{out}: expected the name of a file that ends in {', '.join(ENDINGS)}")
        phases = k if phases is None else phases
        if strand not in STRANDS or not 1 <= phases <= k or window < SHORTEST:
            raise SeqpopeError(
                f"expected a strand of {', '.join(STRANDS)}, 1 to {k} phases and a window of at least {SHORTEST} "
                f"tokens, got {strand!r}, {phases} and {window}"
            )
        self.found = survey(self.file, self.contigs)
        if self.found.another_assembly:
            if self.found.mismatches >= DOUBTED:
                raise SeqpopeError(f"{vcf}: {self.found.another_assembly}")
            tell(f"{vcf}: {self.found.another_assembly}")
        if self.found.records and not any(self.found.contigs.values()):
            tell(
                f"{vcf}: the genome has none of its contigs ({', '.join(list(self.found.contigs)[:TOLD])}), it "
                f"has {', '.join(list(genome.contigs)[:TOLD])}: nothing will be scored"
            )
        chosen = [i * k // phases for i in range(phases)]
        self.window = window
        self._reading: Any = {"window": window, "phases": chosen, "strands": STRANDS[strand]}
        before, after, longest = reach(k, window)
        self.options = {
            **made,
            "bases_before": str(before),
            "bases_from_variant_on": str(after),
            "longest_allele": str(longest),
            "phases": " ".join(map(str, chosen)),
            "strand": strand,
        }
        self.size = max(UNIT, math.ceil(self.found.records / MOST_UNITS))  # records of a unit
        self.units = math.ceil(self.found.records / self.size)
        said = json.dumps([FORMAT, self.size, sha256_of(self.file.path), self.options])
        self._key = hashlib.sha256(said.encode()).hexdigest()[:16]
        self.parts = self.out.parent / f".{self.out.name}.parts"

    def part(self, unit: int) -> Path:
        """Where a unit's scores go."""
        return self.parts / f"unit-{unit:06}-{self._key}.npz"

    def missing(self) -> list[int]:
        """Units that are still to be scored."""
        return [unit for unit in range(self.units) if not self.part(unit).is_file()]

    def records(self, units: Sequence[int]) -> int:
        """How many records units have."""
        return sum(min(self.size, self.found.records - unit * self.size) for unit in units)

    def compute(
        self,
        units: Sequence[int],
        likelihood: Likelihoods,
        progress: Callable[[int], None] | None = None,
        *,
        together: int = 2,
    ) -> None:
        """Score units and keep what comes out.

        Args:
            progress: called with the records done.
            together: records whose windows are read at once.
        """
        wanted, done = sorted(set(units)), 0
        left = deque((unit, self.records([unit])) for unit in wanted)
        scores: list[list[Score]] = []  # those of the units in `left`, as far as they are known
        waiting = None  # while a GPU reads some windows the next ones are made
        for some in itertools.chain(_batched(self._records_of(wanted), together), [None]):
            asked = None
            if some is not None:
                asked = score_records(some, self.contigs, likelihood, **self._reading)
            if waiting is not None:
                found = waiting()
                scores += found
                done += len(found)
                while left and len(scores) >= left[0][1]:
                    unit, count = left.popleft()
                    write_bytes(self.part(unit), _packed(scores[:count]))
                    del scores[:count]
                if progress is not None:
                    progress(done)
            waiting = asked

    def _records_of(self, units: Sequence[int]) -> Iterator[Record]:
        """Those of units in rising order; what is behind the last one is not read."""
        left = deque(units)
        batches = enumerate(_batched(self.file, self.size))
        while left:
            unit, records = next(batches)
            if unit == left[0]:
                left.popleft()
                yield from records

    def write(self) -> Summary:
        """Write the output from all units' scores."""
        summary = Summary()
        rows = self._rows(summary)
        if self.ending.startswith(".vcf"):
            options = ",".join(f'{key}="{value}"' for key, value in self.options.items())
            header = made_header(self.file, FIELDS, self.found.contigs, [f"##seqpope=<ID=score,{options}>"])
            longest = max((length or 0 for length in self.found.contigs.values()), default=0)
            lines = (with_info(record.text, _info(scores)) for record, scores in rows)
            write_vcf(self.out, header, lines, longest)
        else:
            _write_table(self.out, rows)
        return summary

    def _rows(self, summary: Summary) -> Iterator[tuple[Record, list[Score]]]:
        """Each record with its alleles' scores, sorted by contig and position; a file in order is not held."""

        def read() -> Iterator[tuple[Record, list[Score]]]:
            kept: Iterator[list[Score]] = iter(())
            for number, record in enumerate(self.file):
                if number % self.size == 0:
                    kept = iter(_unpacked(self.part(number // self.size)))
                scores = next(kept)
                summary.add(record, scores)
                yield record, scores

        if self.found.in_order:
            return read()
        ranks = _ranks(self.file, self.contigs, self.found.contigs)
        return iter(sorted(read(), key=lambda each: (ranks[each[0].contig], each[0].position)))


@dataclass(frozen=True)
class Request:
    """What is to be scored and how; see `work.Request` and `Annotation`."""

    checkpoint: Path
    fasta: Path
    out: Path
    vcf: Path
    strand: Literal["both", "+", "-"] = "both"
    phases: int | None = None
    window: int | None = None
    device: str = "auto"
    devices: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = 16384
    compile: bool = False


def score_variants(request: Request) -> dict[str, Any] | None:
    """Score a VCF's variants and write them; what the sidecar says, None in a process that is not the first.

    Raises:
        SeqpopeError: the request cannot be met.
    """
    return run(Job(request))


class Job(Annotation):
    """A request with all that it means, for `work.run`.

    Raises:
        SeqpopeError: something of the request is not there or does not fit.
    """

    def __init__(self, request: Request) -> None:
        for path in (request.fasta, request.vcf, request.checkpoint):
            if request.out.resolve() == path.resolve():
                raise SeqpopeError(f"{path} is what is read: writing there would destroy it, choose another --out")
        if request.devices < 1 or request.batch_tokens < 1:
            raise SeqpopeError(
                "expected devices and batch_tokens of at least 1, they are "
                f"{request.devices} and {request.batch_tokens}"
            )
        self.request = request
        self.checkpoint = find_checkpoint(request.checkpoint)
        self.info = read_info(self.checkpoint)
        self.weights = sha256_of(self.checkpoint)
        genome = open_genome(request.fasta)
        self.identity = identity(genome)
        super().__init__(
            request.vcf,
            genome,
            request.out,
            k=int(tokenizer_of(self.info).units["base"]),
            window=self.info.length if request.window is None else request.window,
            phases=request.phases,
            strand=request.strand,
            made={
                "version": seqpope.__version__,
                "model": self.weights[:16],
                "tokens": self.info.fingerprint[:16],
                "genome": self.identity[:16],
                "precision": request.precision,
            },
            tell=_say,
        )

    def score(self, units: Sequence[int], device: str, *, among: Sequence[int], quiet: bool = False) -> None:
        """Score units and keep their scores.

        Args:
            among: units that this command scores by all of its processes, taken to be as far as this one.
        """
        if not units:
            return
        model, info = load_checkpoint(self.checkpoint, device)
        request, total = self.request, self.found.records
        likelihood = Likelihood(
            model,
            info,
            device=device,
            precision=request.precision,
            batch_tokens=request.batch_tokens,
            compile=request.compile,
        )
        likelihood.bulk = self.window
        own, left = self.records(units), self.records(among)
        already = total - left
        if already and not quiet:
            _say(f"{self.out.name}: going on, {already} of {total} variants are there")
        shown = Progress(self.out.name, "variants", already=already)
        self.compute(
            units,
            likelihood,
            None if quiet else lambda done: shown(already + left * done // own, total),
            together=TOGETHER[likelihood.device.type],
        )

    def merge(self) -> dict[str, Any]:
        """Write the output from all units' scores, and the sidecar; what is in it."""
        summary, request = self.write(), self.request
        _say(f"{self.file.path}: {summary}")
        result = {
            **made_of(self),
            "asked": {"vcf": str(request.vcf)},
            "records": summary.records,
            "alleles_scored": summary.scored,
            "alleles_not_scored": {
                why: {"count": count, "lines": summary.lines[why]} for why, count in summary.why.items()
            },
        }
        write_text(self.out.with_name(self.out.name + ".json"), json.dumps(result, indent=1) + "\n")
        return result


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _packed(scores: Sequence[Sequence[Score]]) -> bytes:
    flat = [score for each in scores for score in each]
    content = io.BytesIO()
    np.savez(
        content,
        alleles=[len(each) for each in scores],
        numbers=np.array([score[:4] for score in flat], np.float64).reshape(-1, 4),
        why=np.array([score.why for score in flat], "U16"),
    )
    return content.getvalue()


def _unpacked(path: Path) -> list[list[Score]]:
    with np.load(path) as kept:
        numbers, why, alleles = (kept[name].tolist() for name in ("numbers", "why", "alleles"))
    flat = (Score(a, b, sd, int(n), reason) for (a, b, sd, n), reason in zip(numbers, why, strict=True))
    return [list(itertools.islice(flat, count)) for count in alleles]


def _ranks(file: VcfFile, contigs: Contigs, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """What names of contigs are sorted by: the header's order, then the genome's, then the file's."""
    header = {name: place for place, name in enumerate(file.contig_lengths())}
    genome = {name: place for place, name in enumerate(contigs.genome.contigs)}
    ranks = {}
    for place, name in enumerate(names):
        contig = contigs.find(name)
        rank = len(header) + (len(genome) if contig is None else genome[contig])
        ranks[name] = header.get(name, rank), place
    return ranks


def _info(scores: Sequence[Score]) -> dict[str, str | None]:
    """The fields of a record; where no allele is scored, only the reasons."""

    def each(values: Iterable[float], form: str) -> str:
        return ",".join(
            "." if score.why or math.isnan(value) else format(value, form)
            for score, value in zip(scores, values, strict=True)
        )

    some = not all(score.why for score in scores)
    delta, corrected, sd, windows, why = zip(*scores, strict=True)
    return {
        "SP_DLL": each(delta, "z.4f") if some else None,
        "SP_DLLC": each(corrected, "z.4f") if some else None,
        "SP_SD": each(sd, "z.4f") if some else None,
        "SP_N": each(windows, "d") if some else None,
        "SP_WHY": ",".join(reason or "." for reason in why) if any(why) else None,
    }


def _write_table(out: Path, rows: Iterator[tuple[Record, list[Score]]]) -> None:
    """A row an allele, as TSV or Parquet; what is not known is NA or null."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        beside = Path(folder) / out.name
        flat = (
            (record.contig, record.position + 1, record.name, record.ref, alt, *score)
            for record, scores in rows
            for alt, score in zip(record.alts or (".",), scores, strict=True)
        )
        if out.suffix.lower() == ".tsv":
            with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.write("\t".join(TABLE) + "\n")
                for row in flat:
                    file.write("\t".join(map(_word, row)) + "\n")
        else:
            _write_parquet(beside, flat)
        os.replace(beside, out)


def _word(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "NA" if math.isnan(value) else format(value, ".10g")


def _write_parquet(path: Path, rows: Iterator[tuple[Any, ...]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float64()
    kinds = (text, pa.int64(), text, text, text, number, number, number, pa.int32(), text)
    schema = pa.schema(list(zip(TABLE, kinds, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        for some in _batched(rows, 1 << 16):
            columns = [
                pa.array(column, kind, from_pandas=True)  # nan becomes null
                for column, kind in zip(zip(*some, strict=True), kinds, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last as many as there are left."""
    left = iter(items)
    while some := list(itertools.islice(left, size)):
        yield some
