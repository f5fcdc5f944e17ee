"""A plain reader of plain chorales: music21 takes most of a minute for its 433 files, this one a few seconds.

It reads four parts named as the voices, of one melody each, and counts parts where they are not four. All that is
less plain, such as grace notes, chords, a second voice or transposing instruments, is left to the codec.
"""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from seqpope.domains.music.chorales.codec import SILENCE, Chorale

SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
NOT_PLAIN = ("note/grace", "note/chord", "note/unpitched", "backup", "forward", "attributes/transpose")
VOICES = ["soprano", "alto", "tenor", "bass"]


def quick_chorale(path: Path) -> Chorale | str | None:
    """The chorale in a compressed MusicXML file, or why it is none in the codec's words; None if not plain."""
    if path.suffix != ".mxl":
        return None
    with zipfile.ZipFile(path) as files:
        name = next(name for name in files.namelist() if "/" not in name and name.endswith("xml"))
        root = ElementTree.fromstring(files.read(name))
    parts = root.findall("part")
    names = [(part.findtext("part-name") or "").strip().lower() for part in root.findall("part-list/score-part")]
    if root.find("part/measure/attributes/staves") is not None:
        return None
    if len(parts) != 4:
        return f"{path.name} has {len(parts)} parts: expected 4"
    if names != VOICES:
        return None
    columns = []
    for part in parts:
        column: list[int] = []
        time, steps = Fraction(0), Fraction(0)
        for measure in part.findall("measure"):
            if any(measure.find(tag) is not None for tag in NOT_PLAIN):
                return None
            for divisions in measure.iterfind("attributes/divisions"):
                steps = Fraction(4, int(divisions.text or 0))
            for note in measure.iterfind("note"):
                time += int(note.findtext("duration") or 0) * steps
                if time.denominator != 1:
                    return None
                pitch = note.find("pitch")
                if pitch is None:
                    value = SILENCE
                else:
                    octave, alter = int(pitch.findtext("octave") or 0), float(pitch.findtext("alter") or 0)
                    value = 12 * octave + 12 + SEMITONES[pitch.findtext("step") or ""] + int(alter)
                column += [value] * (int(time) - len(column))
        columns.append(column)
    if len({len(column) for column in columns}) != 1:
        return None
    return Chorale(np.array(columns).T, path.name)
