"""Letters of DNA: IUPAC codes, the other strand, text or bytes read as numbers and nothing passed over unseen."""

from __future__ import annotations

from collections import Counter

import numpy as np

from seqpope.errors import SeqpopeError

IUPAC = {
    "A": "A",
    "C": "C",
    "G": "G",
    "T": "T",
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
BASES = "ACGT"
_COMPLEMENT = dict(zip("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN", strict=True))
_COMPLEMENT_TABLE = str.maketrans({**_COMPLEMENT, **{a.lower(): b.lower() for a, b in _COMPLEMENT.items()}})
_AMBIGUOUS, _FOREIGN = 254, 255


class SequenceError(SeqpopeError):
    """Something that is no DNA."""


def reverse_complement(text: str) -> str:
    """The other strand, read in its own direction; IUPAC codes and lower case are kept as such.

    Raises:
        SequenceError: a letter is no IUPAC code.
    """
    for position, letter in enumerate(text):
        if letter.upper() not in IUPAC:
            raise SequenceError(
                f"cannot complement {letter!r} at position {position} (from 0): "
                f"expected the IUPAC codes {''.join(IUPAC)}, remove what is no DNA"
            )
    return text.translate(_COMPLEMENT_TABLE)[::-1]


def gc_content(text: str) -> float:
    """The share of G and C among the letters A, C, G and T, upper or lower case; nan if there are none."""
    text = text.upper()
    strong = text.count("G") + text.count("C")
    known = strong + text.count("A") + text.count("T")
    return strong / known if known else float("nan")


def as_letters(sequence: str | bytes | np.ndarray) -> np.ndarray:
    """A sequence's letters as (L,) uint8 ASCII; arrays are those already and are not copied.

    Raises:
        SequenceError: a letter of a text is not ASCII, or an array is no (L,) of uint8.
    """
    if isinstance(sequence, str):
        try:
            sequence = sequence.encode("ascii")
        except UnicodeEncodeError as error:
            raise SequenceError(_told(error.object[error.start], error.start)) from None
    if isinstance(sequence, np.ndarray):
        if sequence.ndim != 1 or sequence.dtype != np.uint8:
            raise SequenceError(
                f"expected a sequence as text, bytes or uint8 letters of shape (L,), it is {sequence.dtype} of "
                f"shape {sequence.shape}"
            )
        return sequence
    return np.frombuffer(sequence, np.uint8)


def letter_codes(
    sequence: str | bytes | np.ndarray, order: str, replaced: Counter[str] | None = None
) -> np.ndarray:
    """Each letter's place in `order`, (L,) uint8; lower case (soft-masked in genomes) counts as upper case.

    Args:
        order: The letters that have a number, in upper case; N must be one of them.
        replaced: IUPAC codes other than those become N if this is given, and are counted in it by upper-case
            letter. Without it they are refused: nothing is replaced unseen.

    Raises:
        SequenceError: a letter that cannot be read, named with its position; no code of IUPAC (such as U or -),
            or one that `order` lacks without `replaced`.
    """
    letters = as_letters(sequence)
    table = bytearray([_FOREIGN] * 256)
    for number, letter in [*((_AMBIGUOUS, code) for code in IUPAC), *enumerate(order)]:
        table[ord(letter)] = table[ord(letter.lower())] = number
    codes = np.frombuffer(bytearray(letters.tobytes().translate(table)), np.uint8)
    wrong = codes == _FOREIGN
    if replaced is None:
        wrong |= codes == _AMBIGUOUS
    if wrong.any():
        position = int(wrong.argmax())
        raise SequenceError(_told(chr(letters[position]), position))
    ambiguous = np.flatnonzero(codes == _AMBIGUOUS)
    if len(ambiguous) and replaced is not None:
        for letter, count in zip(*np.unique(letters[ambiguous] & 0xDF, return_counts=True), strict=True):
            replaced[chr(letter)] += int(count)
        codes[ambiguous] = order.index("N")
    return codes


def _told(letter: str, position: int) -> str:
    """What a letter that cannot be read is told with."""
    where = f"{letter!r} at position {position} (from 0)"
    if letter.upper() in IUPAC:
        return (
            f"{where} stands for several bases: expected A, C, G, T or N; pass a Counter as `replaced` to have "
            "such letters become N, counted"
        )
    return f"{where} {no_dna(letter)}"


def no_dna(letter: str) -> str:
    """What is said of a letter that no IUPAC code is, and what to do."""
    advice = {"U": "this is RNA, write T for U", "-": "take gaps out", ">": "read FASTA as FASTA"}
    if letter.upper() in "EFILPQXZ":
        advice[letter.upper()] = "this may be a protein"
    more = advice.get(letter.upper(), "take it out")
    return f"is no DNA: expected A, C, G, T, N or another IUPAC code; {more}"
