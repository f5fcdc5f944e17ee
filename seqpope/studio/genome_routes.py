"""What the page about genomes asks of the server: igv.js, which genes and places there are."""

from __future__ import annotations

import gzip
import threading
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request, Response

from seqpope.domains.genome.bases import SequenceError
from seqpope.domains.genome.bed import bed_lines
from seqpope.domains.genome.sequences import Genome
from seqpope.domains.genome.store import open_genome
from seqpope.domains.genome.tracks import Place, TrackError, parse_place, read_features
from seqpope.errors import SeqpopeError
from seqpope.studio import requests
from seqpope.track import ASSETS, IGV

if TYPE_CHECKING:
    from seqpope.studio.server import Studio

SUGGESTED = 20
CONTIGS = 100  # that are named
EXAMPLE = 4000  # bases
MOST_FEATURES = 5000
Named = Annotated[str, Query(max_length=requests.LONGEST_REGION)]  # cut off it would name another place
MOST_LOOKED_AT = 2_000_000  # bases whose features are looked for


class Gene(NamedTuple):
    """A line of the genes' BED; `key` is what is compared with what was typed."""

    key: str
    name: str
    contig: str
    start: int
    end: int

    @property
    def place(self) -> str:
        """As in chr17:43,044,295-43,170,245."""
        return str(Place(self.contig, self.start, self.end))


def read_genes(path: Path) -> list[Gene]:
    """Genes of a BED file, sorted by name; lines of one name on a contig that overlap are one.

    Raises:
        SeqpopeError: it cannot be read, or a line has no name.
    """
    found: list[Gene] = []
    for number, words in bed_lines(path):
        if len(words) < 4 or not (words[1].isdecimal() and words[2].isdecimal()):
            raise SeqpopeError(f"{path}, line {number}: expected contig, start, end and the gene's name")
        found.append(Gene(words[3].upper(), words[3], words[0], int(words[1]), int(words[2])))
    genes: list[Gene] = []
    for gene in sorted(found):
        last = genes[-1] if genes else None
        if last and last[:3] == gene[:3] and gene.start <= last.end:
            genes[-1] = last._replace(end=max(last.end, gene.end))
        else:
            genes.append(gene)
    return genes


class Readings:
    """The genes and the genome that were asked about last, read again when they change."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._lock = threading.Lock()
        self._genes: tuple[int, list[Gene]] = (0, [])
        self._genome: tuple[Path, int, Genome] | None = None

    def genes(self) -> list[Gene]:
        """Sorted by their names in upper case; none if the studio was given no file of them.

        Raises:
            SeqpopeError: they cannot be read.
        """
        path = self.studio.settings.genes
        if path is None:
            return []
        try:
            changed = Path(path).stat().st_mtime_ns
        except OSError as error:
            raise SeqpopeError(f"the file of genes cannot be read ({error.strerror})") from error
        with self._lock:
            if self._genes[0] != changed:
                self._genes = changed, read_genes(Path(path))
            return self._genes[1]

    def genome(self, name: str) -> Genome:
        """A prepared genome by its id.

        Raises:
            SeqpopeError: there is none, or it is damaged.
        """
        folder = self.studio.catalogue.genome(name)
        changed = (folder / "bases.u8").stat().st_mtime_ns
        with self._lock:
            if self._genome is None or self._genome[:2] != (folder, changed):
                self._genome = folder, changed, open_genome(folder)
            return self._genome[2]

    def beginning_with(self, prefix: str, most: int = SUGGESTED) -> list[Gene]:
        """Genes by what their names begin with, in either case."""
        genes, key = self.genes(), prefix.strip().upper()
        start = bisect_left(genes, key, key=lambda gene: gene.key)
        chosen = genes[start : start + most]
        return [gene for gene in chosen if gene.key.startswith(key)] if key else []

    def find(self, genome: Genome, text: str) -> tuple[Place, str]:
        """The place that a region or a gene's name means, and the gene's name, "" if it is none.

        Raises:
            SeqpopeError: there is neither.
        """
        try:
            return parse_place(text, genome), ""
        except SequenceError as error:
            key = text.strip().upper()
            genes = [gene for gene in self.beginning_with(text) if gene.key == key]
            for gene in genes:
                try:
                    contig = genome.resolve(gene.contig)
                except SequenceError:
                    continue
                if gene.end <= genome.contigs[contig]:
                    return Place(contig, gene.start, gene.end), gene.name
            if genes:
                raise TrackError(f"{genes[0].name} lies at {genes[0].place}, which this genome has not") from None
            if ":" not in text:
                more = "nor a gene of that name" if self.genes() else "start the studio with --genes to find genes"
                raise TrackError(f"{error}; {more}") from error
            raise


@lru_cache(1)
def _igv() -> bytes:
    return (ASSETS / "igv.min.js.gz").read_bytes()


def example(genome: Genome) -> str:
    """A region to begin with: of the first stretch that is long enough its first known bases."""
    for contig in genome.contigs:
        stretches = np.asarray(genome.stretches(contig))
        long = stretches[stretches[:, 1] - stretches[:, 0] >= EXAMPLE] if len(stretches) else stretches
        for start, end in (long if len(long) else stretches)[:1].tolist():
            return str(Place(contig, start, min(end, start + EXAMPLE)))
    return ""


def add(app: FastAPI, studio: Studio) -> None:
    """Add /igv.js and the routes under /api/genome."""
    readings = Readings(studio)

    @app.get("/igv.js")
    def igv(request: Request) -> Response:
        tag = f'"igv-{IGV}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(gzip.decompress(_igv()), media_type="text/javascript", headers=headers)
        return Response(_igv(), media_type="text/javascript", headers=headers | {"Content-Encoding": "gzip"})

    @app.get("/api/genome/about")
    def about(genome: str) -> dict[str, Any]:
        opened = readings.genome(genome)
        contigs = [{"name": name, "length": length} for name, length in opened.contigs.items()]
        return {
            "contigs": contigs[:CONTIGS],
            "more": max(0, len(contigs) - CONTIGS),
            "example": example(opened),
            "genes": len(readings.genes()),
            "limits": {
                "scored": requests.MAXIMUM_SCORED,
                "mutated": requests.MAXIMUM_MUTATED,
                "drawn": requests.MAXIMUM_DRAWN,
            },
        }

    @app.get("/api/genome/genes")
    def genes(prefix: str) -> list[dict[str, str]]:
        return [{"name": gene.name, "place": gene.place} for gene in readings.beginning_with(prefix[:60])]

    @app.get("/api/genome/place")
    def place(genome: str, text: Named) -> dict[str, Any]:
        opened = readings.genome(genome)
        found, gene = readings.find(opened, text)
        known = sum(end - start for start, end in np.asarray(opened.stretches(*found)).tolist())
        return {**found._asdict(), "region": str(found), "gene": gene, "known": known}

    @app.get("/api/genome/features")
    def features(genome: str, region: Named) -> list[dict[str, Any]]:
        """Of the genes' file, those in a region, as igv.js draws them."""
        opened, path = readings.genome(genome), studio.settings.genes
        found = parse_place(region, opened)
        if path is None or found.end - found.start > MOST_LOOKED_AT:
            return []
        try:
            read = read_features(path, opened, found)
        except TrackError:  # nothing on this contig
            return []
        return [
            {"start": each.start, "end": each.end, "name": each.name, "strand": each.strand}
            for each in read[:MOST_FEATURES]
        ]
