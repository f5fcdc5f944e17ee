"""Names of contigs: chr1, 1, NC_000001.11 and CM000663.2 are one chromosome of GRCh38."""

from __future__ import annotations

from collections.abc import Mapping

from seqpope.domains.genome.bases import SequenceError

# Length and version of the RefSeq accession of GRCh38's chromosomes 1 to 22, X and Y (NCBI, GCF_000001405.26 on).
_GRCH38 = (
    ("1", 248956422, 11),
    ("2", 242193529, 12),
    ("3", 198295559, 12),
    ("4", 190214555, 12),
    ("5", 181538259, 10),
    ("6", 170805979, 12),
    ("7", 159345973, 14),
    ("8", 145138636, 11),
    ("9", 138394717, 12),
    ("10", 133797422, 11),
    ("11", 135086622, 10),
    ("12", 133275309, 12),
    ("13", 114364328, 11),
    ("14", 107043718, 9),
    ("15", 101991189, 10),
    ("16", 90338345, 10),
    ("17", 83257441, 11),
    ("18", 80373285, 10),
    ("19", 58617616, 10),
    ("20", 64444167, 11),
    ("21", 46709983, 9),
    ("22", 50818468, 11),
    ("X", 156040895, 11),
    ("Y", 57227415, 10),
)
CHROMOSOMES = tuple(name for name, _, _ in _GRCH38)
_MITOCHONDRION = 16569  # bases of human's
_ACCESSIONS = {
    name: (length, f"NC_{number:06}.{version}", f"CM{662 + number:06}.2")
    for number, (name, length, version) in enumerate(_GRCH38, 1)
}
_ACCESSIONS["M"] = (_MITOCHONDRION, "NC_012920.1", "J01415.2")
_OF_ACCESSIONS = {accession: name for name, (_, *both) in _ACCESSIONS.items() for accession in both}


def aliases(contig: str, length: int) -> list[str]:
    """Other names of a contig, itself left out.

    chrN and N are one, chrM, M, MT and chrMT too. RefSeq and GenBank accessions are GRCh38's: a contig has them if
    it is as long as that chromosome, by which GRCh37's, say, are told apart.
    """
    bare = contig.removeprefix("chr")
    bare = _OF_ACCESSIONS.get(bare, bare)
    bare = "M" if bare == "MT" else bare
    names = ["chrM", "MT", "M", "chrMT"] if bare == "M" else [f"chr{bare}", bare]
    known, *accessions = _ACCESSIONS.get(bare, (0,))
    if length == known:
        names += accessions
    elif contig in accessions:  # by its name GRCh38's, by its length not
        names = []
    return [name for name in names if name != contig]


class Names:
    """The contigs of one genome by any of their names; a contig's own name comes before another's alias."""

    def __init__(self, contigs: Mapping[str, int]) -> None:
        self.contigs = contigs
        self.aliases = {contig: aliases(contig, length) for contig, length in contigs.items()}
        known: dict[str, list[str]] = {}
        for contig, others in self.aliases.items():
            for name in others:
                known.setdefault(name, []).append(contig)
        self._of = {name: found[0] for name, found in known.items() if len(found) == 1}
        self._of |= {contig: contig for contig in contigs}

    def resolve(self, name: str) -> str:
        """The contig that a name means.

        Raises:
            SequenceError: there is none; the names there are, are named.
        """
        if name not in self._of:
            there = list(self.contigs)
            more = f" and {len(there) - 8} more" if len(there) > 8 else ""
            raise SequenceError(
                f"there is no contig {name!r}: this genome has {', '.join(there[:8])}{more} (chr1 and 1 are one)"
            )
        return self._of[name]

    def interval(self, name: str, start: int, end: int) -> str:
        """The contig that a name means, [start, end) found inside it.

        Raises:
            SequenceError: there is no such contig, or the interval is not inside it.
        """
        contig = self.resolve(name)
        if not 0 <= start <= end <= self.contigs[contig]:
            raise SequenceError(
                f"{name}:{start}-{end} (from 0, half-open) is not inside {contig}, which has "
                f"{self.contigs[contig]} bases"
            )
        return contig
