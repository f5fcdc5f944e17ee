"""What of a sampled chorale a training piece has too: the longest span in any key, of all voices or one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqpope.domains.music.chorales.codec import SILENCE, STEPS_PER_BAR, Chorale

COPY_CHANGES = 8  # a span of as many chord changes that is in a training piece is called a copy


@dataclass(frozen=True)
class Copy:
    """A span of a sample that a training piece has too.

    Attributes:
        changes: chord changes within it, the one that begins it not counted (for the soprano: its notes less
            one). What tells a copy: a held chord matches any other.
        steps: its length in the sample.
        piece, index: name of the training piece, and its place among them.
        start, piece_start: its first step in the sample and in the piece.
        transposition: the sample's pitches less the piece's.
    """

    changes: int
    steps: int
    piece: str
    index: int
    start: int
    piece_start: int
    transposition: int

    @property
    def bars(self) -> float:
        return self.steps / STEPS_PER_BAR


def copied(sample: Chorale, training: Sequence[Chorale], transposed: bool = True) -> Copy | None:
    """The span of a sample with the most chord changes that occurs in a training piece, step for step.

    All four voices must agree at every step, up to one transposition of all if `transposed`. Of spans with
    as many changes it is the longest in steps, then the first. If several places of the training pieces
    have it, one in the sample's key comes first, then the first piece. A span begins where a voice sounds.
    None if not one chord of the sample is in the training pieces.
    """
    return copies([sample], training, transposed)[0]


def copied_soprano(sample: Chorale, training: Sequence[Chorale], transposed: bool = True) -> Copy | None:
    """The most successive notes of a sample's soprano that successive notes of a training soprano equal.

    Durations and rests do not matter, and repeated notes are one, with a rest between them too. The `Copy` has
    one change less than notes, and its steps are from the first one's start to the last one's end. Choices
    are made as in `copied`.
    """
    return soprano_copies([sample], training, transposed)[0]


def copies(samples: Sequence[Chorale], training: Sequence[Chorale], transposed: bool = True) -> list[Copy | None]:
    """`copied` of each sample, at little more than the cost of one."""
    names = [piece.name for piece in training]
    found = _longest([s.pitches for s in samples], [t.pitches for t in training], transposed)
    return [
        None if match is None else Copy(match.changes, match.rows, names[match.piece], *match.places())
        for match in found
    ]


def soprano_copies(
    samples: Sequence[Chorale], training: Sequence[Chorale], transposed: bool = True
) -> list[Copy | None]:
    """`copied_soprano` of each sample, at little more than the cost of one."""
    sung = [_soprano_notes(sample) for sample in samples]
    known = [_soprano_notes(piece) for piece in training]
    found = _longest([notes[:, 2:] for notes in sung], [notes[:, 2:] for notes in known], transposed)
    result: list[Copy | None] = []
    for notes, match in zip(sung, found, strict=True):
        if match is None:
            result.append(None)
            continue
        start, end = notes[match.start, 0], notes[match.start + match.rows - 1, 1]
        result.append(
            Copy(
                changes=match.changes,
                steps=int(end - start),
                piece=training[match.piece].name,
                index=match.piece,
                start=int(start),
                piece_start=int(known[match.piece][match.piece_start, 0]),
                transposition=match.transposition,
            )
        )
    return result


def _soprano_notes(chorale: Chorale) -> np.ndarray:
    """Notes of the soprano, (notes, 3): first step, end (exclusive), pitch, which is never that of the last."""
    line = chorale.pitches[:, 0]
    sounding = np.flatnonzero(line != SILENCE)
    begins = np.diff(line[sounding], prepend=np.int16(SILENCE)) != 0
    ends = np.concatenate([begins[1:], np.ones(min(1, len(begins)), bool)])
    return np.stack([sounding[begins], sounding[ends] + 1, line[sounding[begins]]], axis=1)


@dataclass(frozen=True)
class _Match:
    """Rows `start` to `start + rows` of a sample are rows `piece_start` and on of a piece."""

    changes: int
    rows: int
    piece: int
    start: int
    piece_start: int
    transposition: int

    def places(self) -> tuple[int, int, int, int]:
        return self.piece, self.start, self.piece_start, self.transposition


def _symbols(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """Rows of pitches (steps, voices) as integers, such that equal integers are equal rows.

    Transposed, there are two a row: its pitches below its highest one, and between rows the motion of that
    highest pitch. n rows, the first of which sounds, are those of another piece transposed if and only if their
    2n - 1 integers agree. A row in silence has the highest pitch of the last that sounded.
    """
    sounding = rows != SILENCE
    top = np.where(sounding, rows, SILENCE).max(axis=1, initial=SILENCE).astype(np.int64)
    shifts = 8 * np.arange(rows.shape[1])
    if not transposed:
        return ((rows.astype(np.int64) + 1) << shifts).sum(axis=1)
    symbols = np.zeros(max(0, 2 * len(rows) - 1), np.int64)
    symbols[::2] = (np.where(sounding, top[:, None] - rows, 255) << shifts).sum(axis=1)
    latest = np.maximum.accumulate(np.where(top != SILENCE, np.arange(len(top)), 0))
    symbols[1::2] = np.diff(top[latest]) - (1 << 10)  # negative: never taken for a row
    return symbols


def _longest(samples: list[np.ndarray], training: list[np.ndarray], transposed: bool) -> list[_Match | None]:
    """For each sample the match with training rows that has the most changes; arrays are (rows, voices).

    All sequences end to end, each closed by a symbol of its own, have their suffixes sorted by prefix
    doubling. What a sample's suffix shares with any training suffix it shares with one of the two nearest in
    order. The longest match from a start has all the changes that any match from there has.
    """
    per_row = 2 if transposed else 1
    sequences = [_symbols(rows, transposed) for rows in [*training, *samples]]
    lengths = np.array([len(sequence) + 1 for sequence in sequences], int)
    first = np.cumsum(lengths) - lengths
    size = int(lengths.sum())
    text = np.full(size, -1, np.int64)
    for start, sequence in zip(first, sequences, strict=True):
        text[start : start + len(sequence)] = sequence
    text[first + lengths - 1] = (1 << 40) + np.arange(len(sequences))
    trained = int(lengths[: len(training)].sum())

    longest = int(lengths[len(training) :].max(initial=1))
    ranks = [np.unique(text, return_inverse=True)[1]]  # of all substrings of 1, 2, 4, ... symbols
    while 1 << (len(ranks) - 1) < longest:
        half = 1 << (len(ranks) - 1)
        second = np.zeros(size, np.int64)
        second[: size - half] = ranks[-1][half:] + 1
        ranks.append(np.unique(ranks[-1] * (size + 1) + second, return_inverse=True)[1])
    order = np.argsort(ranks[-1], kind="stable")
    place = np.empty(size, int)
    place[order] = np.arange(size)
    known = order < trained
    below = np.maximum.accumulate(np.where(known, np.arange(size), -1))
    above = np.minimum.accumulate(np.where(known, np.arange(size), size)[::-1])[::-1]

    result: list[_Match | None] = []
    for number, rows in enumerate(samples, len(training)):
        starts = np.flatnonzero((rows != SILENCE).any(axis=1))
        here = first[number] + per_row * starts
        shared = np.zeros(len(starts), int)
        for neighbour in (below[place[here]], above[place[here]]):
            exists = (neighbour >= 0) & (neighbour < size)
            there = order[np.where(exists, neighbour, 0)]
            shared = np.maximum(shared, np.where(exists, _common(ranks, here, there), 0))
        count = (shared + per_row - 1) // per_row  # in rows
        if not len(starts) or not count.max():
            result.append(None)
            continue
        changed = np.cumsum(np.concatenate([[False], (rows[1:] != rows[:-1]).any(axis=1)]))
        changes = np.where(count > 0, changed[starts + np.maximum(count, 1) - 1] - changed[starts], -1)
        best = np.lexsort((starts, -count, -changes))[0]
        start, length = int(starts[best]), int(count[best])
        symbols = text[here[best] : here[best] + per_row * (length - 1) + 1]
        found = np.flatnonzero(text[:trained] == symbols[0])
        for offset, symbol in enumerate(symbols[1:], 1):
            found = found[text[found + offset] == symbol]
        pieces = np.searchsorted(first[: len(training)], found, side="right") - 1
        places = (found - first[pieces]) // per_row
        shifts = [
            int(rows[start].max()) - int(training[piece][row].max())
            for piece, row in zip(pieces, places, strict=True)
        ]
        chosen = next((index for index, shift in enumerate(shifts) if not shift), 0)
        result.append(
            _Match(int(changes[best]), length, int(pieces[chosen]), start, int(places[chosen]), shifts[chosen])
        )
    return result


def _common(ranks: list[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many symbols agree from positions `a` and from `b` on, pair by pair; closing symbols never do."""
    shared = np.zeros(len(a), int)
    for level in range(len(ranks) - 1, -1, -1):
        rank = ranks[level]
        i, j = a + shared, b + shared
        inside = (i < len(rank)) & (j < len(rank))
        i, j = np.where(inside, i, 0), np.where(inside, j, 0)
        shared += np.where(inside & (rank[i] == rank[j]), 1 << level, 0)
    return shared
