"""Chorales written as rows of pitches, soprano first, drawn at random, or by hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from seqpope.domains.music.chorales.codec import SILENCE as REST
from seqpope.domains.music.chorales.codec import Chorale

CHORD = [72, 67, 64, 48]
fuzz = settings(max_examples=60, deadline=None)


def chorale(*rows: Sequence[int], name: str = "", each: int = 1) -> Chorale:
    return Chorale(np.repeat(np.array(rows, np.int16).reshape(-1, 4), each, axis=0), name)


def melody(*pitches: int, name: str = "", each: int = 1) -> Chorale:
    return chorale(*([pitch, REST, REST, REST] for pitch in pitches), name=name, each=each)


def moved(piece: Chorale, semitones: int) -> Chorale:
    pitches = piece.pitches
    return Chorale(np.where(pitches == REST, REST, pitches + semitones), piece.name)


def random_piece(seed: int, steps: int, name: str = "", each: int = 1) -> Chorale:
    rows = np.random.default_rng(seed).integers((60, 53, 48, 36), (82, 75, 70, 65), (steps, 4))
    return chorale(*rows, name=name, each=each)


def pieces(pitches: Sequence[int] = (REST, *range(40, 76)), longest: int = 12) -> st.SearchStrategy[Chorale]:
    row = st.lists(st.sampled_from(list(pitches)), min_size=4, max_size=4)
    return st.lists(row, max_size=longest).map(lambda rows: chorale(*rows))


def held(*chords, steps: int = 4, name: str = "x") -> Chorale:
    return Chorale(np.repeat(np.array(chords), steps, axis=0), name)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
