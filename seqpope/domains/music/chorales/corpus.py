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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.data.shards import SPLITS
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError, read_musicxml
from seqpope.errors import SeqpopeError

SPLIT_FILE = "split.json"
SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}

OPENING_STEPS = 64  # four bars of 4/4
OPENING_INTERVALS = 8  # about a line of verse
SHARED_CHORDS = 10  # successive different chords: unrelated settings of a tune share up to eight by chance


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
            # spawn: a forked copy of a process that runs torch's threads may hang
            with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
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
    return tuple(np.where(soprano == SILENCE, 999, soprano - sounding[0]).tolist())


def opening_variants(chorale: Chorale) -> list[Hashable]:
    """Descriptions of the soprano's opening; two pieces that share any are settings of one tune, most likely.

    Each is the first eight intervals of the soprano: of all its notes; of its notes on the beat, so that
    passing notes between do not matter; of its notes on the beat where they change, so that neither does a
    doubled length. Rests are left out, so that a pickup's notation does not matter, and intervals are the
    same in any key. None of a kind where the soprano has too few notes.
    """
    soprano = chorale.pitches[:, 0].astype(int)
    every, beats = soprano[soprano != SILENCE], soprano[::4][soprano[::4] != SILENCE]
    kinds = {"notes": _changes(every), "beats": beats, "changes on the beat": _changes(beats)}
    return [
        (kind, *np.diff(notes)[:OPENING_INTERVALS].tolist())
        for kind, notes in kinds.items()
        if len(notes) > OPENING_INTERVALS
    ]


def chord_runs(chorale: Chorale, length: int = SHARED_CHORDS) -> set[Hashable]:
    """All runs of `length` successive different chords, the same in any key and rhythm."""
    chords = _changes(chorale.pitches.astype(int))
    runs: set[Hashable] = set()
    for start in range(len(chords) - length + 1):
        run = chords[start : start + length]
        if (run != SILENCE).any():
            runs.add(np.where(run == SILENCE, 999, run - run.max()).astype(np.int16).tobytes())
    return runs


def tune_groups(chorales: Sequence[Chorale]) -> list[list[int]]:
    """Indices of `chorales` in groups: pieces share a group if they share an opening or ten chords in a row.

    Sharing is carried on (union-find): if a shares with b and b with c, all three are one group. Groups and
    their members are in order of first index.
    """
    parent = list(range(len(chorales)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    seen: dict[Hashable, int] = {}
    for index, chorale in enumerate(chorales):
        for key in [*opening_variants(chorale), *chord_runs(chorale)]:
            one, other = sorted((root(seen.setdefault(key, index)), root(index)))
            parent[other] = one
    groups = defaultdict(list)
    for index in range(len(chorales)):
        groups[root(index)].append(index)
    return list(groups.values())


def shared_tunes(
    splits: dict[str, list[Chorale]], describe: Callable[[Chorale], Iterable[Hashable]]
) -> dict[str, list[bool]]:
    """For each piece whether a description of it also describes a piece of another split."""
    described = {name: [set(describe(chorale)) for chorale in pieces] for name, pieces in splits.items()}
    whole = {name: set().union(*keys) for name, keys in described.items()}
    elsewhere = {name: set().union(*(whole[other] for other in splits if other != name)) for name in splits}
    return {name: [bool(keys & elsewhere[name]) for keys in described[name]] for name in splits}


def shares_opening(splits: dict[str, list[Chorale]]) -> dict[str, list[bool]]:
    """For each piece whether its `opening` is also that of a piece in another split.

    JSB's official split: 21 of the 77 test pieces.
    """
    return shared_tunes(splits, lambda chorale: [key for key in [opening(chorale)] if key is not None])


def shares_variant(splits: dict[str, list[Chorale]]) -> dict[str, list[bool]]:
    """For each piece whether any of its `opening_variants` or `chord_runs` is in another split.

    The rule of `tune_groups`, and much stricter than `shares_opening`: it also finds a tune in another
    rhythm or ornamented otherwise, and now and then another tune that begins alike.
    """
    return shared_tunes(splits, lambda chorale: [*opening_variants(chorale), *chord_runs(chorale)])


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
