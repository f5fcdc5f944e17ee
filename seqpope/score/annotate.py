"""The variants of a VCF scored, and written to it again or to a table: `seqpope score --vcf`.

A VCF is gone over three times: to check it whole before anything is computed, to score it in parts, and to write
it. Each part's scores are kept in a file beside the output until that is written, so that an interrupted start
goes on; and several processes may each score some of the parts.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seqpope.domains.genome.sequences import Genome
from seqpope.domains.genome.vcf import Field, Record, VcfFile, made_header, with_info, write_vcf
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes
from seqpope.score.variants import STRANDS, WHY, Contigs, Likelihoods, Score, reach, score_records

T = TypeVar("T")
FORMAT = 1  # of part files, raised too when scores come to mean something else
ENDINGS = (".vcf", ".vcf.gz", ".tsv", ".parquet")
SHORTEST = 4  # tokens of a window: a base at least behind the longest allele
BATCH = 32  # records whose windows are read together
MOST_PARTS = 2000
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
        mismatches: those of them where it differs.
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
            f"REF is not what the genome has in {self.mismatches} of {self.checked} records "
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
    written: bool = True

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
        found.checked += why in ("", "ref_mismatch")
        if why == "ref_mismatch":
            found.mismatches += 1
            if len(found.wrong) < TOLD:
                found.wrong.append(f"line {record.line}, {record.contig}:{record.position + 1} {record.ref[:20]}")
    ranks = _ranks(file, contigs, found.contigs)
    found.in_order &= list(found.contigs) == sorted(found.contigs, key=ranks.__getitem__)
    return found


def score_vcf(
    vcf: Path,
    genome: Genome,
    likelihood: Likelihoods,
    out: Path,
    *,
    made: Mapping[str, str],
    window: int | None = None,
    phases: Sequence[int] | None = None,
    strands: str = "both",
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] = print,
) -> Summary:
    """Score a VCF's variants and write them to `out`, sorted by contig and position.

    Args:
        out: .vcf or .vcf.gz (bgzipped, with its index): the VCF with fields in INFO. .tsv or .parquet: a row an
            allele.
        made: what the scores depend on beside this function's arguments, such as fingerprints of model and
            genome; it stands in the header, and parts that were scored with something else are not used.
        window: tokens read at once, the model's training length if None.
        phases: bases of a token before a variant, all from 0 to k - 1 if None.
        strands: both, + or -.
        shard: (i, n): score every n-th part from the i-th on; the output is written by whoever scores the last.
        progress: called with variants done and variants in all.

    Raises:
        SeqpopeError: the VCF cannot be used, is another assembly's, or `out` cannot be written.
    """
    out, file, contigs = Path(out), VcfFile(vcf), Contigs(genome)
    ending = next((ending for ending in ENDINGS[::-1] if out.name.lower().endswith(ending)), None)
    if ending is None:
        raise SeqpopeError(f"{out}: expected a file that ends in {', '.join(ENDINGS)}")
    if out.exists() and out.resolve() == file.path.resolve():
        raise SeqpopeError(f"{out} is what is read: give another name to write to")
    chosen = range(likelihood.k) if phases is None else sorted(set(phases))
    if strands not in STRANDS or not chosen or not set(chosen) <= set(range(likelihood.k)):
        raise SeqpopeError(
            f"expected strands of {', '.join(STRANDS)} and phases from 0 to {likelihood.k - 1}, "
            f"got {strands!r} and {list(chosen)}"
        )
    window = likelihood.length if window is None else window
    if window < SHORTEST:
        raise SeqpopeError(f"expected a window of at least {SHORTEST} tokens, got {window}")
    if not 0 <= shard[0] < shard[1]:
        raise SeqpopeError(f"expected a shard i of n with 0 <= i < n, got {shard[0]} of {shard[1]}")
    found = survey(file, contigs)
    if found.another_assembly:
        if found.mismatches >= DOUBTED:
            raise SeqpopeError(f"{file.path}: {found.another_assembly}")
        tell(f"{file.path}: {found.another_assembly}")
    before, after, longest = reach(likelihood.k, window)
    options = {
        **made,
        "bases_before": str(before),
        "bases_from_variant_on": str(after),
        "longest_allele": str(longest),
        "phases": " ".join(map(str, chosen)),
        "strands": strands,
    }
    size = max(BATCH, math.ceil(found.records / MOST_PARTS / BATCH) * BATCH)
    reading: Any = {"window": window, "phases": chosen, "strands": STRANDS[strands]}
    parts = Parts(out, size, {"format": FORMAT, "vcf": _sha256(file.path), **options})
    count = math.ceil(found.records / size)
    done = found.records - sum(
        min(size, found.records - part * size) for part in range(count) if not parts.has(part)
    )
    for part, records in enumerate(_batched(file, size)):
        if part % shard[1] != shard[0] or parts.has(part):
            continue
        scores: list[list[Score]] = []
        waiting = None  # while a GPU reads some windows the next ones are made
        for some in (*_batched(records, BATCH), None):
            asked = None
            if some is not None:
                asked = score_records(some, contigs, likelihood, **reading)
            if waiting is not None:
                scores += waiting()
                if progress is not None:
                    progress(done + len(scores), found.records)
            waiting = asked
        parts.write(part, scores)
        done += len(scores)
    summary = Summary()
    if not all(parts.has(part) for part in range(count)):
        summary.written = False
        return summary
    rows = _in_order(file, parts, found, contigs, summary)
    if ending.startswith(".vcf"):
        line = ",".join(f'{key}="{value}"' for key, value in options.items())
        header = made_header(file, FIELDS, found.contigs, [f"##seqpope=<ID=score,{line}>"])
        longest = max((length or 0 for length in found.contigs.values()), default=0)
        write_vcf(out, header, (with_info(record.text, _info(scores)) for record, scores in rows), longest)
    else:
        _write_table(out, rows)
    parts.remove()
    return summary


class Parts:
    """Scores of consecutive records, a file a part, in a hidden folder beside the output.

    Args:
        size: records in a part.
        key: all that scores depend on; parts of another key are other parts.
    """

    def __init__(self, out: Path, size: int, key: Mapping[str, Any]) -> None:
        self.size = size
        self.name = f".{out.name}.parts-"
        text = json.dumps({"size": size, **key}, sort_keys=True)
        self.folder = out.parent / (self.name + hashlib.sha256(text.encode()).hexdigest()[:12])

    def _file(self, part: int) -> Path:
        return self.folder / f"{part}.npz"

    def has(self, part: int) -> bool:
        return self._file(part).is_file()

    def write(self, part: int, scores: Sequence[Sequence[Score]]) -> None:
        """Keep the scores of a part's records."""
        flat = [score for each in scores for score in each]
        content = io.BytesIO()
        np.savez(
            content,
            alleles=[len(each) for each in scores],
            numbers=np.array([score[:4] for score in flat], np.float64).reshape(-1, 4),
            why=np.array([score.why for score in flat], "U16"),
        )
        write_bytes(self._file(part), content.getvalue())

    def read(self, part: int) -> list[list[Score]]:
        """The scores of a part's records."""
        with np.load(self._file(part)) as kept:
            flat = iter(
                [
                    Score(delta, corrected, sd, int(windows), why)
                    for (delta, corrected, sd, windows), why in zip(
                        kept["numbers"].tolist(), kept["why"].tolist(), strict=True
                    )
                ]
            )
            return [list(itertools.islice(flat, count)) for count in kept["alleles"].tolist()]

    def remove(self) -> None:
        """Remove the parts of this output, those of other keys too, which nobody will go on with."""
        for folder in self.folder.parent.iterdir():
            if folder.name.startswith(self.name):
                shutil.rmtree(folder, ignore_errors=True)


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


def _in_order(
    file: VcfFile, parts: Parts, found: Survey, contigs: Contigs, summary: Summary
) -> Iterator[tuple[Record, list[Score]]]:
    """Each record with its alleles' scores, sorted by contig and position; a file in that order is not held."""

    def read() -> Iterator[tuple[Record, list[Score]]]:
        kept: Iterator[list[Score]] = iter(())
        for number, record in enumerate(file):
            if number % parts.size == 0:
                kept = iter(parts.read(number // parts.size))
            scores = next(kept)
            summary.add(record, scores)
            yield record, scores

    if found.in_order:
        return read()
    ranks = _ranks(file, contigs, found.contigs)
    return iter(sorted(read(), key=lambda each: (ranks[each[0].contig], each[0].position)))


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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
