"""DNA <-> token ids: the Nucleotide Transformer's six-mers, and single bases beside them.

Both take text, bytes or uint8 letters (a memory-mapped genome, say) and read lower case as upper case. IUPAC codes
other than A, C, G, T and N are refused unless the caller has them counted; they then become N
(`bases.letter_codes`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from seqpope.data import shards
from seqpope.domains.genome.bases import SequenceError, as_letters, letter_codes

K = 6
ORDER = "ATCGN"  # the Nucleotide Transformer's
LETTERS = 4 + 4**K  # the id of A alone; T, C, G and N follow
_SEVERAL = 0x4000  # above every id: what a pair of letters outside ACGT adds
_CHUNK = 1 << 14  # tokens at once; their temporaries then stay in the cache


class TokenError(SequenceError):
    """Ids that are no DNA."""


def _pair_tables() -> tuple[np.ndarray, ...]:
    """What each two bytes of a six-mer, read as little-endian uint16, add to its id."""
    values = np.full(256, 4, np.uint16)
    for value, base in enumerate(ORDER[:4]):
        values[[ord(base), ord(base.lower())]] = value
    first, second = np.tile(values, 256), np.repeat(values, 256)  # the low byte comes first
    pairs, known = 4 * first + second, (first < 4) & (second < 4)
    return tuple(np.where(known, pairs * 16**place + 4 * (place == 0), _SEVERAL) for place in (2, 1, 0))


_BASE_LETTERS = np.frombuffer(b"ACGT", np.uint8)
_PAIRS = tuple(table.astype(np.uint16) for table in _pair_tables())


def _join(letters: np.ndarray) -> np.ndarray:
    """Ids of six-mers, (6 T,) uint8 letters -> (T,) uint16; `_SEVERAL` or more where a letter is not of ACGT."""
    pairs = np.ascontiguousarray(letters).view("<u2").reshape(-1, 3)
    ids = np.empty(len(pairs), np.uint16)
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK].astype(np.intp)
        part = _PAIRS[0].take(some[:, 0])
        part += _PAIRS[1].take(some[:, 1])
        part += _PAIRS[2].take(some[:, 2])
        ids[start : start + len(part)] = part
    return ids


class SixMerTokenizer:
    """4107 tokens, the Nucleotide Transformer's first version.

    <unk>, <pad>, <mask>, <cls> are 0 to 3, AAAAAA is 4 and GGGGGG 4099, in the order of ATCG, the last base
    fastest; A, T, C, G, N alone are 4100 to 4104; <eos> is 4105 and <bos> 4106. Of the specials only padding is
    used: it stands in for BOS at the model's input.

    Attributes:
        strings: each id's letters, "" for specials.
        bases_of: (4107,) int64, how many that are; N counts as one.
        units: bases in a token. Exact for six-mers alone; what a sequence has is `bases_of[ids].sum()`.
    """

    vocabulary_size = LETTERS + len(ORDER) + 2
    padding_id = 1
    n_id = LETTERS + 4
    alignment = 1
    shift_range = None

    def __init__(self) -> None:
        self.units = {"base": float(K)}
        words = ["".join(word) for word in itertools.product(ORDER[:4], repeat=K)]
        self.strings: tuple[str, ...] = ("", "", "", "", *words, *ORDER, "", "")
        self.bases_of = np.array([len(text) for text in self.strings])

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a sequence becomes, as plain data."""
        return {
            "name": "nucleotide transformer v1",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "k": K,
            "order": ORDER,
            "split": "at N, six-mers from the left, what remains as letters",
            "specials": {"<unk>": 0, "<pad>": 1, "<mask>": 2, "<cls>": 3, "<eos>": 4105, "<bos>": 4106},
            "padding_id": self.padding_id,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(
        self,
        sequence: str | bytes | np.ndarray,
        replaced: Counter[str] | None = None,
        *,
        align: Literal["start", "end"] = "start",
    ) -> np.ndarray:
        """Token ids of a sequence of L bases, (T,) uint16 with L / 6 <= T <= L.

        It is split at N, each N one token. A stretch between is read in six-mers from the left; the up to five
        bases that remain before an N or the end are letters.

        Args:
            replaced: counts IUPAC codes that become N; without it they are refused.
            align: "end" has the letters of the last stretch before its six-mers instead of after them, so that
                the sequence's end is a six-mer's and what follows goes on in six-mers.

        Raises:
            SequenceError: a letter that cannot be read, named with its position.
        """
        letters = as_letters(sequence)
        if align == "start" or len(letters) % K == 0:  # mostly there is no N
            whole = len(letters) - len(letters) % K
            ids = _join(letters[:whole])
            rest = letters[whole:]
            if ids.max(initial=0) < _SEVERAL and np.isin(rest & 0xDF, _BASE_LETTERS).all():
                more = letter_codes(rest, ORDER).astype(np.uint16) + LETTERS
                return np.concatenate((ids, more)) if len(rest) else ids
        codes = letter_codes(letters, ORDER, replaced)
        # Stretches and runs of N by turns: a stretch [a, b), then N to the next one's start.
        unknown = np.concatenate(([True], codes == 4, [True]))
        edges = np.flatnonzero(unknown[1:] != unknown[:-1]).reshape(-1, 2)  # (S, 2)
        lengths = edges[:, 1] - edges[:, 0]
        sixes, rests = lengths // K, lengths % K
        gaps = np.append(edges[1:, 0], len(codes)) - edges[:, 1]
        # Pieces in the order in which they stand: N at the start; of each stretch letters (if it is the last and
        # aligned to its end), six-mers, letters; and the N after it. Kinds: 0 six-mers, 1 letters.
        before = np.zeros_like(rests)
        if align == "end" and len(rests):
            before[-1], rests[-1] = rests[-1], 0
        kinds = np.concatenate(([1], np.tile([1, 0, 1, 1], len(edges))))
        tokens = np.column_stack((before, sixes, rests, gaps)).reshape(-1)
        tokens = np.concatenate(([edges[0, 0] if len(edges) else len(codes)], tokens))
        of_six = np.repeat(kinds == 0, np.where(kinds == 0, K * tokens, tokens))  # (L,)
        ids = np.empty(int(tokens.sum()), np.uint16)
        places = np.repeat(kinds == 0, tokens)
        ids[places] = _join(letters[of_six])
        ids[~places] = codes[~of_six].astype(np.uint16) + LETTERS
        return ids

    def encode_prompt(
        self, sequence: str | bytes | np.ndarray, replaced: Counter[str] | None = None
    ) -> tuple[np.ndarray, int]:
        """Ids of a sequence that is to be continued, and how many bases at its start they leave out.

        The sequence's end is a six-mer's, so that what is drawn goes on in six-mers as the model was trained. Up
        to five bases at the start are left out: as letters they would be tokens that a model trained on six-mers
        has not seen there. Measured on a small model, such letters cost 0.05 nats in the next six-mer after 6 to
        11 bases, 0.19 after fewer and nothing after 120; letters at the end instead, six-mers being read from the
        left, cost 0.15 to 0.27 after any number. After an N they are letters all the same: nothing can be left
        out inside.

        Raises:
            SequenceError: a letter that cannot be read, named with its position.
        """
        codes = letter_codes(sequence, ORDER, replaced)
        dropped = 0 if (codes == 4).any() else len(codes) % K
        return self.encode(np.frombuffer(ORDER.encode(), np.uint8)[codes[dropped:]], align="end"), dropped

    def encode_batch(
        self, windows: np.ndarray, replaced: Counter[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of B windows of one length, and how many each has: (B, L) uint8 letters -> (B, T) uint16,
        padded on the right, and (B,) int64.

        Raises:
            SequenceError: as `encode`, with the window's number.
        """
        if windows.ndim != 2 or windows.dtype != np.uint8:
            raise SequenceError(
                f"expected windows as uint8 letters of shape (B, L), they are {windows.dtype} of shape "
                f"{windows.shape}"
            )
        count, length = windows.shape
        ids = _join(windows.reshape(-1)).reshape(count, -1) if length % K == 0 and count else None
        left = np.arange(count) if ids is None else np.flatnonzero((ids >= _SEVERAL).any(1))
        lengths = np.full(count, length // K)
        if ids is not None and not len(left):
            return ids, lengths
        rows = {}
        for number in left.tolist():
            try:
                rows[number] = self.encode(windows[number], replaced)
            except SequenceError as error:
                raise SequenceError(f"window {number}: {error}") from None
            lengths[number] = len(rows[number])
        padded = np.full((count, int(lengths.max(initial=0))), self.padding_id, np.uint16)
        if ids is not None:
            padded[:, : ids.shape[1]] = ids
        for number, row in rows.items():
            padded[number, : len(row)] = row
            padded[number, len(row) :] = self.padding_id
        return padded, lengths

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The letters that token ids (T,) say; padding at the end is left out.

        Raises:
            TokenError: ids are no integers, one is outside the vocabulary, or a special.
        """
        return _decode(ids, self.strings, self.padding_id)


class BaseTokenizer:
    """6 tokens: padding 0 (which stands in for BOS at the model's input), A 1, C 2, G 3, T 4, N 5.

    Attributes: as `SixMerTokenizer`.
    """

    order = "ACGTN"
    vocabulary_size = 6
    padding_id = 0
    n_id = 5
    alignment = 1
    shift_range = None

    def __init__(self) -> None:
        self.units = {"base": 1.0}
        self.strings: tuple[str, ...] = ("", *self.order)
        self.bases_of = np.array([len(text) for text in self.strings])

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a sequence becomes, as plain data."""
        return {
            "name": "single bases",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "order": self.order,
            "padding_id": self.padding_id,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(self, sequence: str | bytes | np.ndarray, replaced: Counter[str] | None = None) -> np.ndarray:
        """Token ids of a sequence, (L,) uint8.

        Args:
            replaced: counts IUPAC codes that become N; without it they are refused.

        Raises:
            SequenceError: a letter that cannot be read, named with its position.
        """
        return letter_codes(sequence, self.order, replaced) + np.uint8(1)

    def encode_prompt(
        self, sequence: str | bytes | np.ndarray, replaced: Counter[str] | None = None
    ) -> tuple[np.ndarray, int]:
        """As `SixMerTokenizer.encode_prompt`; nothing is left out."""
        return self.encode(sequence, replaced), 0

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The letters that token ids (T,) say; padding at the end is left out.

        Raises:
            TokenError: ids are no integers, one is outside the vocabulary, or padding stands before a letter.
        """
        return _decode(ids, self.strings, self.padding_id)


def _decode(ids: Sequence[int] | np.ndarray, strings: tuple[str, ...], padding_id: int) -> str:
    given = np.asarray(ids)
    if given.size == 0:
        return ""
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise TokenError(f"token ids must be a list of integers, they are {given.dtype} of shape {given.shape}")
    wrong = np.flatnonzero((given < 0) | (given >= len(strings)))
    if len(wrong):
        raise TokenError(
            f"token {int(wrong[0])} is {given[wrong[0]]}, outside the vocabulary's 0..{len(strings) - 1}: these "
            "are another tokenizer's ids"
        )
    kept = np.flatnonzero(given != padding_id)
    given = given[: int(kept[-1]) + 1 if len(kept) else 0]
    texts = [strings[token] for token in given.tolist()]
    if "" in texts:
        place = texts.index("")
        raise TokenError(
            f"token {place} is {given[place]}, a special that stands for no bases: padding may only follow the "
            "last base, and other specials have no place; forbid them when sampling"
        )
    return "".join(texts)
