"""Raw data and official split -> pieces: the chorales that music21 ships, and the tunes they are set to.

Bach set many tunes more than once, and many settings are in the collections twice, transposed. Both let a
model do well on a test piece by memory, so the split made here keeps whatever shares a tune together, and
a piece of a foreign split can be marked as having a tune that no other split has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.data.shards import SPLITS
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError, read_musicxml
from seqpope.errors import SeqpopeError
from seqpope.processes import worker_pool

SPLIT_FILE = "split.json"
SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}

OPENING_STEPS = 64  # four bars of 4/4
# Chosen on music21's chorales so that groups stay tunes: with fewer, chance joins most pieces into one group.
OPENING_INTERVALS = 8
SHARED_INTERVALS = 16
SHARED_CHORDS = 10
ALIGNED_BEATS, ALIGNED_SHARE = 32, 0.6
REST = 999  # far from every interval


class CorpusError(SeqpopeError):
    """The corpus is not there, or is not the one that the split was made from."""


# ---------------------------------------------------------------- music21's files


def _read_one(path: Path) -> Chorale | str:
    """The chorale in one file, or why it is none; runs in a worker."""
    if path.suffix not in (".mxl", ".xml", ".krn"):
        return "an analysis without notes"
    try:
        chorale = read_musicxml(path, parts_wanted=4)
    except CodecError as error:
        return str(error)
    return Chorale(chorale.pitches, path.name)  # with suffix: bwv277 is there as .krn and as .mxl


def music21_files() -> list[Path]:
    """Paths of the Bach files that music21 ships, in order of their names.

    Raises:
        CorpusError: music21 is missing or came without its corpus.
    """
    try:
        from music21 import corpus
    except ImportError as error:
        raise CorpusError("the embedded chorales need music21: pip install music21") from error
    files = sorted((Path(path) for path in corpus.getComposer("bach")), key=lambda path: path.name)
    if not files:
        raise CorpusError("this music21 came without its corpus: install it from PyPI again")
    return files


def music21_chorales(
    progress: Callable[[int, int], None] | None = None, processes: int | None = None
) -> tuple[list[Chorale], dict[str, str]]:
    """Parse the four-part Bach chorales that music21 ships.

    Args:
        progress: called with the number of files done and of all files.
        processes: worker processes, as many as there are CPUs (8 at most) if None; 1 parses here.

    Returns:
        Chorales in order of their names (those of the files), and for each file left out the reason.

    Raises:
        CorpusError: music21 or its corpus is missing.
    """
    files = music21_files()
    count = min(os.cpu_count() or 1, 8) if processes is None else processes
    read: list[Chorale | str] = []

    def collect(results: Iterable[Chorale | str]) -> None:
        for result in results:
            read.append(result)
            if progress is not None:
                progress(len(read), len(files))

    if count > 1:
        try:
            with worker_pool(count) as pool:
                collect(pool.map(_read_one, files, chunksize=4))
        except (BrokenProcessPool, OSError):  # no workers to be had here, as in a script without a main guard
            read.clear()
    if not read:
        collect(map(_read_one, files))
    chorales = [result for result in read if isinstance(result, Chorale)]
    skipped = {path.name: reason for path, reason in zip(files, read, strict=True) if isinstance(reason, str)}
    return chorales, skipped


# ---------------------------------------------------------------- tunes


def _changes(values: np.ndarray) -> np.ndarray:
    """`values` (n, ...) without those equal to the one before."""
    if len(values) < 2:
        return values
    different = (values[1:] != values[:-1]).reshape(len(values) - 1, -1).any(axis=1)
    return values[np.concatenate([[True], different])]


def opening(chorale: Chorale) -> Hashable | None:
    """The soprano's first 64 steps relative to its first note: equal for one tune in one rhythm in any key.

    None for a shorter piece or a silent soprano.
    """
    soprano = chorale.pitches[:OPENING_STEPS, 0].astype(int)
    sounding = soprano[soprano != SILENCE]
    if len(soprano) < OPENING_STEPS or not len(sounding):
        return None
    return tuple(np.where(soprano == SILENCE, REST, soprano - sounding[0]).tolist())


def tune_marks(chorale: Chorale) -> set[Hashable]:
    """Marks of a setting that another has too, most likely, only if it sets the same tune.

    All are the same in any key, and rests are left out, so that a pickup's notation does not matter. The
    soprano is taken in three ways: all its notes; its notes on the beat, so that passing notes between do
    not matter; its changes on the beat, so that neither does a doubled length. Of each way, the first eight
    intervals are a mark, and so are any sixteen in a row. Any ten successive different chords are one too.
    """
    soprano = chorale.pitches[:, 0].astype(int)
    every, beats = soprano[soprano != SILENCE], soprano[::4][soprano[::4] != SILENCE]
    marks: set[Hashable] = set()
    for kind, notes in enumerate((_changes(every), beats, _changes(beats))):
        intervals = np.diff(notes).tolist()
        if len(intervals) >= OPENING_INTERVALS:
            marks.add((kind, "opening", *intervals[:OPENING_INTERVALS]))
        for start in range(len(intervals) - SHARED_INTERVALS + 1):
            marks.add((kind, *intervals[start : start + SHARED_INTERVALS]))
    chords = _changes(chorale.pitches.astype(int))
    for start in range(len(chords) - SHARED_CHORDS + 1):
        run = chords[start : start + SHARED_CHORDS]
        if (run != SILENCE).any():
            marks.add(np.where(run == SILENCE, REST, run - run.max()).astype(np.int16).tobytes())
    return marks


def aligned_openings(chorales: Sequence[Chorale], slack: int = 4) -> np.ndarray:
    """How much of the sopranos' first 32 beats agrees, (pieces, pieces) in 0..1.

    The best over transpositions of up to an octave and shifts of up to `slack` beats: finds a tune that is
    varied in its first notes or begins with another pickup.
    """
    width = ALIGNED_BEATS + 2 * slack
    grid = np.full((len(chorales), width), REST)
    for row, chorale in zip(grid, chorales, strict=True):
        beats = chorale.pitches[: 4 * ALIGNED_BEATS : 4, 0]
        row[slack : slack + len(beats)] = np.where(beats == SILENCE, REST, beats)
    agreeing = np.zeros((len(chorales), len(chorales)), int)
    for shift in range(-slack, slack + 1):
        shifted = np.full_like(grid, -REST)  # far from every pitch and from REST: agrees with nothing
        into, out = slice(max(0, shift), width + min(0, shift)), slice(max(0, -shift), width - max(0, shift))
        shifted[:, into] = np.where(grid[:, out] == REST, -REST, grid[:, out])
        for index, row in enumerate(shifted):
            difference = grid - row
            for interval in range(-12, 13):
                np.maximum(agreeing[index], (difference == interval).sum(1), out=agreeing[index])
    return agreeing / ALIGNED_BEATS


def related(chorales: Sequence[Chorale]) -> np.ndarray:
    """Which pieces set the same tune, most likely: (pieces, pieces) bool, symmetric, false on the diagonal.

    Two pieces are related if they share a mark of `tune_marks`, or if their openings agree by three fifths
    (on music21's chorales different tunes reach about a half). Now and then two tunes that begin alike are
    taken for one, which costs a split nothing; a tune in another metre may be missed.
    """
    matrix = aligned_openings(chorales) >= ALIGNED_SHARE
    matrix |= matrix.T
    having: dict[Hashable, list[int]] = defaultdict(list)
    for index, chorale in enumerate(chorales):
        for mark in tune_marks(chorale):
            having[mark].append(index)
    for indices in having.values():
        if len(indices) > 1:
            matrix[np.ix_(indices, indices)] = True
    np.fill_diagonal(matrix, False)
    return matrix


def tune_groups(chorales: Sequence[Chorale]) -> list[list[int]]:
    """Indices of `chorales` in groups: the connected components of `related`, in order of first index."""
    matrix = related(chorales)
    groups, left = [], set(range(len(chorales)))
    while left:
        group, waiting = set(), [min(left)]
        while waiting:
            index = waiting.pop()
            if index not in group:
                group.add(index)
                waiting += np.flatnonzero(matrix[index]).tolist()
        left -= group
        groups.append(sorted(group))
    return groups


def shares_opening(splits: dict[str, list[Chorale]]) -> dict[str, list[bool]]:
    """For each piece whether its `opening` is also that of a piece in another split.

    JSB's official split: 21 of the 77 test pieces.
    """
    openings = {name: [opening(chorale) for chorale in pieces] for name, pieces in splits.items()}
    elsewhere = {
        name: {key for other in splits if other != name for key in openings[other]} - {None} for name in splits
    }
    return {name: [key in elsewhere[name] for key in openings[name]] for name in splits}


def shares_tune(splits: dict[str, list[Chorale]]) -> dict[str, list[bool]]:
    """For each piece whether a piece of another split is `related` to it.

    Much stricter than `shares_opening`: a tune in another rhythm or ornamented otherwise is found too.
    """
    chorales = [chorale for pieces in splits.values() for chorale in pieces]
    label = np.repeat(np.arange(len(splits)), [len(pieces) for pieces in splits.values()])
    shared = (related(chorales) & (label[:, None] != label)).any(axis=1)
    return {name: shared[label == number].tolist() for number, name in enumerate(splits)}


# ---------------------------------------------------------------- the split


def make_split(chorales: Sequence[Chorale]) -> dict[str, list[str]]:
    """Divide chorales into train, validation and test, about 70/15/15 by piece, by whole tune groups.

    Groups come in the order of a hash of their names and go where the largest part of the share is still
    missing: the same chorales are always divided alike.
    """
    groups = [sorted(chorales[index].name for index in group) for group in tune_groups(chorales)]
    groups.sort(key=lambda names: hashlib.sha256("\n".join(names).encode()).hexdigest())
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for names in groups:
        wanted = min(SPLITS, key=lambda name: len(split[name]) / (SHARES[name] * len(chorales)))
        split[wanted] += names
    return {name: sorted(names) for name, names in split.items()}


def load_split() -> dict[str, Any]:
    """The split that is part of this package: names by split, and the music21 version it was made from."""
    content: dict[str, Any] = json.loads(resources.files(__package__).joinpath(SPLIT_FILE).read_text())
    return content


def split_chorales(
    chorales: Sequence[Chorale], skipped: dict[str, str]
) -> tuple[dict[str, list[Chorale]], dict[str, str]]:
    """Chorales by the fixed split; those it does not name join the skipped, with the reason.

    Raises:
        CorpusError: a chorale of the split is missing, so that figures would not be comparable.
    """
    split = load_split()
    by_name = {chorale.name: chorale for chorale in chorales}
    missing = sorted({name for key in SPLITS for name in split[key]} - by_name.keys())
    if missing:
        raise CorpusError(
            f"{len(missing)} chorales of the fixed split are not in this music21's corpus "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}): "
            f"the split was made from music21 {split['music21']}, install that version"
        )
    pieces = {key: [by_name.pop(name) for name in split[key]] for key in SPLITS}
    return pieces, skipped | dict.fromkeys(by_name, "not part of the fixed split")
