"""Sites in DNA: what enzymes recognise, by name through Bio.Restriction, and where it lies, by plain search."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from seqpope.domains.genome.bases import IUPAC, reverse_complement
from seqpope.errors import SeqpopeError


class ConstraintError(SeqpopeError):
    """Rules that make no sense, or that nothing can satisfy."""


class Site(NamedTuple):
    """A site found: its leftmost base counted from 0, what was looked for, and +1 or -1 for the strand."""

    position: int
    name: str
    strand: int


@functools.cache
def resolve_site(text: str) -> tuple[tuple[str, str], ...]:
    """What a forbidden site is called and its IUPAC sequence; a few enzymes have more than one.

    Upper-case IUPAC codes are a sequence; anything else is the name of a restriction enzyme (Bio.Restriction's,
    which is imported here and only here), case aside if need be; failing that, IUPAC codes in any case.

    Raises:
        ConstraintError: it is none of these (the message names enzymes spelled alike), or biopython is missing.
    """
    if text and set(text) <= set(IUPAC):
        return ((text, text),)
    try:
        from Bio.Restriction.Restriction_Dictionary import rest_dict
    except ImportError as error:
        raise ConstraintError(
            f"forbidden site {text!r} is no sequence of IUPAC codes ({''.join(IUPAC)}), and to look it up as a "
            "restriction enzyme takes biopython: pip install 'biopython>=1.84', or write the recognition sequence"
        ) from error
    folded = {name.lower(): name for name in rest_dict}
    name = text if text in rest_dict else folded.get(text.lower())
    if name is not None:
        return tuple((f"{name} ({site})", site) for site in str(rest_dict[name]["site"]).split("|"))
    if text and set(text.upper()) <= set(IUPAC):
        return ((text.upper(), text.upper()),)
    close = [folded[match] for match in difflib.get_close_matches(text.lower(), folded, n=5, cutoff=0.6)]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise ConstraintError(
        f"unknown forbidden site {text!r}: expected the name of a restriction enzyme{hint} or a sequence of the "
        f"IUPAC codes {''.join(IUPAC)}"
    )


def find_sites(sequence: str, sites: Sequence[str]) -> list[Site]:
    """Every place where one of `sites` (names or IUPAC sequences) lies, on either strand, by plain search.

    Overlapping places all count; a site that is its own reverse complement is found once, on strand +1. Case does
    not matter. A code such as N in `sequence` stands for any of its bases: a site that could be there is found.
    """
    found = []
    for text in sites:
        for name, pattern in resolve_site(text):
            for strand, word in ((1, pattern), (-1, reverse_complement(pattern))):
                if strand == -1 and word == pattern:
                    continue
                places = re.finditer(_expression(word), sequence.upper())
                found += [Site(match.start(), name, strand) for match in places]
    return sorted(found)


@functools.cache
def _expression(word: str) -> str:
    classes = ("".join(letter for letter in IUPAC if may_be(letter, code)) for code in word)
    return "(?=" + "".join(f"[{letters}]" for letters in classes) + ")"


def may_be(letter: str, code: str) -> bool:
    """Whether two IUPAC codes have a base in common."""
    return not set(IUPAC[letter]).isdisjoint(IUPAC[code])
