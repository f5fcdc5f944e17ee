"""The Indirect Indexing task (arXiv 2509.10534, section 4): examples drawn from a seed, a token a character.

An example is `<string>, <letter>, <shift>, <target>`: a string of 20 to 40 different letters, one of them, a shift
from -15 to 15, and the letter that stands so many places behind it (before it if negative). Only the target is
scored. To solve it a model must find a letter by what it is, then another by where it stands.

The paper says no more than that. Here lengths are uniform, the letter's place in the string is, and of the shifts
that stay in the string each is as likely as any other. A shift above 0 has no sign. The paper's block of 40 tokens
holds no string of 40 letters: the longest example is `LONGEST` tokens, and all are read whole.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from seqpope.data import shards
from seqpope.errors import SeqpopeError

SHORTEST_STRING, LONGEST_STRING, LARGEST_SHIFT = 20, 40, 15
LONGEST = LONGEST_STRING + len(", a, -15, b")  # 51 tokens
LETTERS = string.ascii_uppercase + string.ascii_lowercase
CHARACTERS = LETTERS + string.digits + "-, "  # ids 1, 2, ...
PADDING_ID = 0
_AT_ONCE = 1 << 16  # examples


class IndexingTokenizer:
    """66 tokens: padding 0 (at the model's input it stands in for BOS), A-Z, a-z, 0-9, minus, comma, space."""

    vocabulary_size = 1 + len(CHARACTERS)
    padding_id = PADDING_ID

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a text becomes, as plain data."""
        return {
            "name": "indirect indexing",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "padding_id": PADDING_ID,
            "characters": CHARACTERS,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(self, text: str) -> np.ndarray:
        """Token ids (L,) uint8 of a text.

        Raises:
            SeqpopeError: it has a character that no example has.
        """
        unknown = sorted(set(text) - set(CHARACTERS))
        if unknown:
            raise SeqpopeError(f"expected letters, digits, minus, comma and space, {unknown[0]!r} came")
        return np.array([CHARACTERS.index(character) + 1 for character in text], np.uint8)

    def decode(self, ids: np.ndarray) -> str:
        """The text of token ids (L,); padding is left out.

        Raises:
            SeqpopeError: an id is outside the vocabulary.
        """
        if len(ids) and not 0 <= int(np.min(ids)) <= int(np.max(ids)) < self.vocabulary_size:
            raise SeqpopeError(
                f"expected ids from 0 to {self.vocabulary_size - 1}, {int(np.min(ids))} to {int(np.max(ids))} came"
            )
        return "".join(CHARACTERS[int(token) - 1] for token in ids if token != PADDING_ID)


def draw(seed: int, split: int, count: int) -> np.ndarray:
    """Examples of a split, (count, LONGEST) uint8 token ids, each followed by padding."""
    parts = [
        _draw(np.random.default_rng([seed, split, start]), min(_AT_ONCE, count - start))
        for start in range(0, count, _AT_ONCE)
    ]
    return np.concatenate([np.zeros((0, LONGEST), np.uint8), *parts])


def draw_parts(
    random: np.random.Generator, count: int, *, letters: int, shortest: int, longest: int, largest_shift: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What examples of any size are made of.

    Returns:
        Different letters from 0 (count, longest), of which a string has the first; its length, the place in it of
        the letter asked about and the shift from there, (count,) each.
    """
    chosen = random.random((count, letters)).argsort(1)[:, :longest]
    length = random.integers(shortest, longest + 1, count)
    place = random.integers(0, length)
    lowest, highest = np.maximum(-largest_shift, -place), np.minimum(largest_shift, length - 1 - place)
    return chosen, length, place, random.integers(lowest, highest + 1)


def _draw(random: np.random.Generator, count: int) -> np.ndarray:
    chosen, length, place, shift = draw_parts(
        random,
        count,
        letters=len(LETTERS),
        shortest=SHORTEST_STRING,
        longest=LONGEST_STRING,
        largest_shift=LARGEST_SHIFT,
    )
    letters = chosen.astype(np.uint8) + 1
    row = np.arange(count)
    examples = np.zeros((count, LONGEST), np.uint8)
    examples[:, :LONGEST_STRING] = np.where(np.arange(LONGEST_STRING) < length[:, None], letters, PADDING_ID)
    end = length.copy()

    def write(tokens: np.ndarray | int, where: np.ndarray | None = None) -> None:
        rows = row if where is None else row[where]
        examples[rows, end[rows]] = tokens if isinstance(tokens, int) else tokens[rows]
        end[rows] += 1

    comma, space, minus, zero = (CHARACTERS.index(character) + 1 for character in ", -0")
    for what in (letters[row, place], "shift", letters[row, place + shift]):
        write(comma)
        write(space)
        if isinstance(what, str):
            size = np.abs(shift)
            write(minus, shift < 0)
            write((zero + size // 10).astype(np.uint8), size >= 10)
            write((zero + size % 10).astype(np.uint8))
        else:
            write(what)
    return examples
