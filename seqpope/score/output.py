"""What scoring writes: a table of regions (TSV, parquet) or a track with one value a base (bedGraph, bigWig)."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from seqpope.errors import SeqpopeError
from seqpope.score.places import Regions
from seqpope.score.regions import NO_CONTEXT, RegionSums

TABLES = (".tsv", ".tsv.gz", ".parquet")
TRACKS = (".bedgraph", ".bedgraph.gz", ".bw", ".bigwig")
ROWS = 65_536  # of a table that are written at once
LN2 = math.log(2)


class Piece(NamedTuple):
    """Values of a stretch of known bases, (n,) float32 from `start` on."""

    contig: str
    start: int
    values: np.ndarray


def ending(out: Path) -> str:
    """Which of the known endings a file has.

    Raises:
        SeqpopeError: none of them.
    """
    name = out.name.lower()
    found = [end for end in (*TABLES, *TRACKS) if name.endswith(end) and len(name) > len(end)]
    if not found:
        raise SeqpopeError(
            f"{out}: expected a file that ends in {', '.join(TABLES)} for a row a region, or in "
            f"{', '.join(TRACKS)} for a value a base"
        )
    return found[0]


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A path beside `out` that takes its place if the block succeeds and is removed if not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        os.chmod(fresh, 0o644)
        os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _text(fresh: Path, out: Path) -> Iterator[IO[str]]:
    """`fresh` to write text to, gzipped if `out` is to be; of the same text always the same bytes."""
    with contextlib.ExitStack() as opened:
        file: Any = opened.enter_context(open(fresh, "wb"))
        if ending(out).endswith(".gz"):  # neither the time nor the passing name in it
            file = opened.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        yield opened.enter_context(io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="\n"))


def columns(contigs: Sequence[str], regions: Regions, sums: RegionSums, rows: slice) -> dict[str, list[Any]]:
    """Columns of some rows of the table, None where there is no known base to say something of."""
    scored = sums.scored[rows]
    some = scored > 0
    passes = sums.nats.shape[1]
    count = np.where(some, scored, 1)
    nats = sums.nats[rows].mean(1)
    spread = (sums.nats[rows] / count[:, None]).std(1) / LN2

    def told(values: np.ndarray) -> list[Any]:
        return [value if known else None for value, known in zip(values.tolist(), some.tolist(), strict=True)]

    return {
        "contig": [contigs[number] for number in regions.contig[rows].tolist()],
        "start": regions.start[rows].tolist(),
        "end": regions.end[rows].tolist(),
        "name": regions.names[rows],
        "strand": regions.strands[rows],
        "nll": told(nats),
        "bits_per_base": told(nats / count / LN2),
        "spread_bits_per_base": told(spread),
        "scored_bases": scored.tolist(),
        "n_bases": sums.unknown[rows].tolist(),
        "context_least": told(np.where(sums.least[rows] == NO_CONTEXT, 0, sums.least[rows])),
        "context_mean": told(sums.context[rows] / count / passes),
    }


def write_table(out: Path, contigs: Sequence[str], regions: Regions, sums: RegionSums) -> None:
    """A row a region in their order: TSV (NA where there is no number) or parquet, by the ending."""
    blocks = (
        columns(contigs, regions, sums, slice(start, start + ROWS)) for start in range(0, len(regions), ROWS)
    )
    with written_beside(out) as fresh:
        if ending(out) == ".parquet":
            _write_parquet(fresh, blocks)
            return
        with _text(fresh, out) as file:
            for number, block in enumerate(blocks):
                if number == 0:
                    file.write("\t".join(block) + "\n")
                file.writelines("\t".join(map(_cell, row)) + "\n" for row in zip(*block.values(), strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return "NA"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _write_parquet(path: Path, blocks: Iterable[Mapping[str, list[Any]]]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    kinds = [text, whole, whole, text, text, real, real, real, whole, whole, whole, real]
    writer = None
    for block in blocks:
        schema = pa.schema(list(zip(block, kinds, strict=True)))
        writer = writer or ParquetWriter(path, schema)
        writer.write_table(pa.table(dict(block), schema=schema))
    if writer is not None:
        writer.close()


def write_track(out: Path, contigs: Mapping[str, int], pieces: Iterable[Piece]) -> None:
    """A value a base where one is known: bedGraph or bigWig, by the ending.

    Args:
        pieces: in the order of contigs and positions, without overlaps.
    """
    with written_beside(out) as fresh:
        if ending(out) in (".bw", ".bigwig"):
            _write_bigwig(fresh, contigs, pieces)
            return
        with _text(fresh, out) as file:
            for contig, start, values in pieces:
                numbered = enumerate(values.tolist(), start)
                file.writelines(f"{contig}\t{at}\t{at + 1}\t{value:.7g}\n" for at, value in numbered)


def _write_bigwig(path: Path, contigs: Mapping[str, int], pieces: Iterable[Piece]) -> None:
    import pyBigWig

    file = pyBigWig.open(str(path), "w")
    try:
        file.addHeader(list(contigs.items()))
        for contig, start, values in pieces:
            file.addEntries(contig, start, values=values.astype(np.float64).tolist(), span=1, step=1)
    finally:
        file.close()
