"""VCF read line by line and written again with fields added to INFO, sorted, compressed and indexed through pysam.

Lines are kept as they stand: what a column, field or sample means is not this module's to know, so nothing is lost
or rewritten. (Of the format: https://samtools.github.io/hts-specs/VCFv4.3.pdf.)
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from seqpope.domains.genome.bases import SequenceError

COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
TOLD = 5  # lines that an error names
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_LAST = (1 << 31) - 1  # the format's last position
_TBI_LIMIT = 1 << 29  # the longest contig that a .tbi can index


class VcfError(SequenceError):
    """Something that is no VCF."""


class Record(NamedTuple):
    """One line's variant. `line` counts from 1, `position` from 0 (POS - 1); `alts` is () where ALT is a dot."""

    line: int
    contig: str
    position: int
    name: str
    ref: str
    alts: tuple[str, ...]
    text: str


class Field(NamedTuple):
    """What the header says of a field of INFO."""

    name: str
    number: str
    type: str
    description: str

    def __str__(self) -> str:
        return (
            f"##INFO=<ID={self.name},Number={self.number},Type={self.type},"
            f'Description="{self.description}",Source="seqpope">'
        )


class VcfFile:
    """A VCF, plain, gzipped or bgzipped; going over it again reads it again.

    Attributes:
        meta: the header's lines that begin with ##, as they stand.
        columns: the names of the columns.

    Raises:
        VcfError: it is no VCF, cannot be read or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.meta: list[str] = []
        self.columns: list[str] = []
        with self._opened() as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if number == 1:
                    line = self._first(line)
                if not line.startswith("##"):
                    self._header = number
                    self._set_columns(line)
                    return
                self.meta.append(line)
        raise VcfError(
            f"{self.path} is empty: expected a VCF"
            if not self.meta
            else f"{self.path} ends in its header: expected the line {' '.join(COLUMNS)} after those with ##"
        )

    def __iter__(self) -> Iterator[Record]:
        """The records in the file's order. Malformed lines are passed over, and told of when all is read.

        Raises:
            VcfError: lines are malformed, named with their numbers, or the file is cut short.
        """
        wrong: list[str] = []
        count = 0
        with self._opened() as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\r\n")
                if number <= self._header or not text:
                    continue
                record = self._parse(number, text)
                if isinstance(record, Record):
                    yield record
                    continue
                count += 1
                if len(wrong) < TOLD:
                    wrong.append(f"line {number} ({record})")
        if count:
            raise VcfError(
                f"{self.path} has {count} malformed line{'s' * (count > 1)}: {', '.join(wrong)}"
                f"{' ...' if count > TOLD else ''}; mend or remove {'them' if count > 1 else 'it'}"
            )

    def contig_lengths(self) -> dict[str, int | None]:
        """Contigs that the header names, in its order, with their lengths where it has them."""
        found: dict[str, int | None] = {}
        for line in self.meta:
            if line.startswith("##contig=<"):
                fields = dict(word.split("=", 1) for word in line[10:].rstrip(">").split(",") if "=" in word)
                if "ID" in fields:
                    found[fields["ID"]] = int(fields["length"]) if fields.get("length", "").isdigit() else None
        return found

    def _first(self, line: str) -> str:
        line = line.removeprefix("\ufeff")
        if line.startswith("##fileformat=VCF"):
            return line
        if line.startswith("BCF"):
            raise VcfError(f"{self.path} is BCF: turn it into VCF first, `bcftools view FILE -Oz -o FILE.vcf.gz`")
        begins = line[:30].encode("unicode_escape", "replace").decode()
        raise VcfError(f"{self.path} is no VCF: expected ##fileformat=VCF... first, it begins with {begins!r}")

    def _set_columns(self, line: str) -> None:
        self.columns = line.split("\t")
        if tuple(self.columns[: len(COLUMNS)]) != COLUMNS:
            raise VcfError(
                f"{self.path}, line {self._header}: expected the columns {' '.join(COLUMNS)}, with tabs between, "
                f"got {line[:60]!r}"
            )

    def _parse(self, number: int, text: str) -> Record | str:
        """A line's record, or what is wrong with it."""
        fields = text.split("\t")
        if len(fields) != len(self.columns):
            return f"{len(fields)} columns of {len(self.columns)}"
        contig, position, name, ref, alt = fields[:5]
        if not (position.isascii() and position.isdigit() and int(position) <= _LAST):
            return f"POS {position[:20]!r}"
        if not contig or not ref or not all(alt.split(",")):
            return "CHROM, REF or ALT empty"
        alts = () if alt == "." else tuple(alt.split(","))
        return Record(number, contig, int(position) - 1, name, ref, alts, text)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        try:
            with open(self.path, "rb") as raw:
                head = raw.read(16)
                if head[:2] == b"\x1f\x8b":
                    if head[12:14] == b"BC":  # htslib only warns of this, and the rest would be missing unseen
                        raw.seek(max(0, os.fstat(raw.fileno()).st_size - len(_BGZF_END)))
                        if raw.read() != _BGZF_END:
                            raise VcfError(f"{self.path} is cut short (its last block is missing): copy it again")
                    raw.seek(0)
                    binary: IO[bytes] = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
                else:
                    raw.seek(0)
                    binary = raw
                # Whatever bytes a line has, it is written with the same.
                yield io.TextIOWrapper(binary, "utf-8", "surrogateescape", newline="\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise VcfError(f"{self.path} is cut short or damaged ({error}): copy it again") from error
        except OSError as error:
            raise VcfError(f"{self.path} cannot be read ({error.strerror or error})") from error


def made_header(
    file: VcfFile, fields: Sequence[Field], contigs: Mapping[str, int | None], more: Sequence[str]
) -> list[str]:
    """The header's lines of a VCF with fields added: what stood there, less earlier definitions of those fields.

    Args:
        contigs: names and, where known, lengths of contigs; those that the header does not name are added.
        more: lines to come last; earlier lines with the same ##key= are left out.
    """
    own = tuple(f"##INFO=<ID={field.name}," for field in fields) + tuple(line.split("=")[0] + "=" for line in more)
    named = file.contig_lengths()
    added = [
        f"##contig=<ID={name}>" if length is None else f"##contig=<ID={name},length={length}>"
        for name, length in contigs.items()
        if name not in named
    ]
    kept = [line for line in file.meta if not line.startswith(own)]
    return [*kept, *added, *map(str, fields), *more, "\t".join(file.columns)]


def with_info(text: str, values: Mapping[str, str | None]) -> str:
    """A line with these fields in INFO instead of any of those names; None leaves a field out."""
    columns = text.split("\t")
    kept = [word for word in columns[7].split(";") if word not in ("", ".") and word.split("=")[0] not in values]
    kept += [f"{name}={value}" for name, value in values.items() if value is not None]
    columns[7] = ";".join(kept) or "."
    return "\t".join(columns)


def write_vcf(path: Path, header: Iterable[str], lines: Iterable[str], longest: int = 0) -> None:
    """Write lines, sorted already, beside `path` and rename; bgzipped and indexed if its name ends in .gz.

    Args:
        longest: the longest contig's length: beyond 2^29 the index is .csi instead of .tbi.

    Raises:
        VcfError: the lines cannot be indexed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        if path.suffix != ".gz":
            with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                file.writelines(line + "\n" for line in itertools.chain(header, lines))
            os.replace(beside, path)
            return
        import pysam

        with pysam.BGZFile(str(beside), "wb", None) as packed:
            for line in itertools.chain(header, lines):
                packed.write((line + "\n").encode("utf-8", "surrogateescape"))
        csi = longest >= _TBI_LIMIT
        try:
            pysam.tabix_index(str(beside), preset="vcf", force=True, csi=csi)
        except OSError as error:
            raise VcfError(f"{path} cannot be indexed ({error})") from error
        index = beside.with_name(beside.name + (".csi" if csi else ".tbi"))
        for ending in (".csi", ".tbi"):  # no index of another file may stay
            path.with_name(path.name + ending).unlink(missing_ok=True)
        os.replace(beside, path)
        os.replace(index, path.with_name(index.name))
