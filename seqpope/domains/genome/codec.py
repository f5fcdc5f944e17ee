"""FASTA <-> sequences, through Biopython."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqpope.domains.genome.bases import SequenceError, letter_codes

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz")
LINE = 60  # bases


class Record(NamedTuple):
    """One sequence of a FASTA file: the header's first word, the rest of the header, and the letters."""

    name: str
    description: str
    sequence: str

    @property
    def fields(self) -> dict[str, str]:
        """The description's words of the form key=value."""
        return dict(word.split("=", 1) for word in self.description.split() if "=" in word)


def is_fasta(path: Path) -> bool:
    """Whether a file's name ends as those of FASTA files do."""
    return path.name.lower().endswith(FASTA_SUFFIXES)


def read_fasta(path: Path) -> Iterator[Record]:
    """The sequences of a FASTA file, plain or gzipped, one after the other; their letters are as they stand.

    Raises:
        SequenceError: it cannot be read as FASTA, is empty or cut short, or two sequences have one name.
    """
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    names: set[str] = set()
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="ascii") if zipped else open(path, encoding="ascii") as file:
            first = file.readline()
            if not first.startswith(">"):
                raise SequenceError(
                    f"{path} is no FASTA: expected a line with > and a name first, "
                    f"it {'is empty' if not first else f'begins with {first[:20].strip()!r}'}"
                )
            file.seek(0)
            for title, sequence in SimpleFastaParser(file):
                name, _, description = title.partition(" ")
                if name in names:
                    raise SequenceError(f"{path} has two sequences called {name!r}: rename one")
                names.add(name)
                yield Record(name, description.strip(), sequence)
    except (EOFError, gzip.BadGzipFile) as error:
        raise SequenceError(f"{path} is cut short or damaged ({error}): copy it again") from error
    except UnicodeDecodeError as error:
        raise SequenceError(
            f"{path} is no FASTA: expected text, it has the byte {error.object[error.start]:#x}"
        ) from (error)
    except OSError as error:
        raise SequenceError(f"{path} cannot be read ({error.strerror or error})") from error


def write_fasta(path: Path, records: Sequence[Record]) -> None:
    """Write sequences, 60 bases a line."""
    from Bio.Seq import Seq
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    made = [SeqRecord(Seq(r.sequence), id=r.name, name=r.name, description=r.description) for r in records]
    write(made, str(path), "fasta")


def read_prompt(text: str) -> tuple[str, Path | None]:
    """The bases that a prompt means, in upper case, and its file: a FASTA file of one sequence, or the bases.

    Raises:
        SequenceError: there is no such file, it holds none or several sequences or an empty one, or a letter is no
            code of IUPAC.
    """
    path, where, sequence = None, "the prompt", text
    if text and (Path(text).exists() or is_fasta(Path(text)) or "/" in text):
        path, where = Path(text), f"the prompt {text}"
        if not path.is_file():
            raise SequenceError(f"{where} is no file: expected a FASTA file of one sequence, or bases")
        records = list(read_fasta(path))
        if len(records) != 1:
            raise SequenceError(
                f"{where} holds {len(records)} sequences ({', '.join(r.name for r in records[:3])} ...): expected "
                "one, put the one to continue into a file of its own"
            )
        sequence = records[0].sequence
    if not sequence:
        raise SequenceError(f"{where} is empty: give bases to continue, or leave it out to begin with nothing")
    try:
        letter_codes(sequence, "ACGTN", Counter())
    except SequenceError as error:
        raise SequenceError(f"{where}: {error}") from None
    return sequence.upper(), path


def as_array(sequence: str) -> np.ndarray:
    """A sequence as (L,) uint8 numbers: A, C, G, T are 0 to 3, whatever else IUPAC has is 4.

    Raises:
        SequenceError: a letter is no code of IUPAC.
    """
    return letter_codes(sequence, "ACGTN", Counter())
