"""Chorale -> score: MusicXML, with a key, spelled notes, and lengths that one sign can write.

Steps are sixteenths and bars are in 4/4, 16 steps, whatever the piece was in: the grid does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.domains.music.chorales.codec import (
    SILENCE,
    STEPS_PER_BAR,
    STEPS_PER_QUARTER,
    VOICES,
    Chorale,
    CodecError,
    runs,
)
from seqpope.domains.music.pictures import printable
from seqpope.files import write_bytes

SCORE_ENDINGS = (".musicxml", ".xml")


def write_musicxml(
    chorale: Chorale,
    path: Path,
    *,
    tempo: float = 80.0,
    merge_repeats: bool = True,
    key_fifths: int | None = None,
) -> None:
    """Write a MusicXML score, atomically: four staves, called Soprano, Alto, Tenor and Bass, in 4/4.

    The last bar is cut where the piece ends, so `codec.read_score` gives the identical grid; only a piece
    that is nothing but silence it refuses to read, for it has no notes.

    Args:
        path: ends in .musicxml or .xml.
        tempo: quarters a minute, 4 to 1000.
        merge_repeats: write a run of equal pitches as one held note; else every sixteenth as a note of its
            own (the data cannot tell a held note from a repeated one).
        key_fifths: key signature, sharps (flats if negative), -7 to 7; None estimates it. Accidentals are
            spelled by it.

    Raises:
        CodecError: the chorale has no steps, an argument is out of range, the path has another ending, or
            the file cannot be written.
    """
    path = Path(path)
    if len(chorale) == 0:
        raise CodecError(f"chorale {chorale.name!r} has no steps: there is nothing to write to {path}")
    if path.suffix.lower() not in SCORE_ENDINGS:
        raise CodecError(
            f"{path.name}: expected a file that ends in {' or '.join(SCORE_ENDINGS)}, not {path.suffix!r}"
        )
    if not 4 <= tempo <= 1000:
        raise CodecError(f"the tempo must be 4 to 1000 quarters a minute, it is {tempo}")
    if key_fifths is not None and not -7 <= key_fifths <= 7:
        raise CodecError(f"key_fifths must be -7 (seven flats) to 7 (seven sharps), it is {key_fifths}")

    from music21 import bar, clef, instrument, key, layout, metadata, meter, note, pitch, stream, tie
    from music21 import tempo as m21tempo
    from music21.musicxml.m21ToXml import GeneralObjectExporter

    mode: str | None
    fifths, mode = estimate_key(chorale)
    if key_fifths not in (None, fifths):
        fifths, mode = key_fifths, None
    clefs = (clef.TrebleClef, clef.TrebleClef, clef.Treble8vbClef, clef.BassClef)
    instruments = (instrument.Soprano, instrument.Alto, instrument.Tenor, instrument.Bass)
    spelled = spell(fifths, mode)

    score = stream.Score()
    score.metadata = metadata.Metadata()
    # music21 would fill empty fields with its own name.
    score.metadata.title = printable(chorale.name) or "Chorale"
    score.metadata.composer = "seqpope"
    for voice, name in enumerate(VOICES):
        part = stream.Part(id=name)
        part.partName = name
        part.partAbbreviation = name[0]
        sung = instruments[voice]()
        sung.partId, sung.instrumentId = f"P{voice + 1}", f"P{voice + 1}-I1"  # else random ones
        part.insert(0, sung)
        bars = [stream.Measure(number=number + 1) for number in range(math.ceil(len(chorale) / STEPS_PER_BAR))]
        bars[0].insert(0, clefs[voice]())
        signature = key.KeySignature(fifths)
        bars[0].insert(0, signature if mode is None else signature.asKey(mode))
        bars[0].insert(0, meter.TimeSignature("4/4"))
        if voice == 0:
            bars[0].insert(0, m21tempo.MetronomeMark(number=int(tempo) if tempo == int(tempo) else tempo))
        for start, end, midi in _filled(chorale.pitches[:, voice], merge_repeats):
            pieces = list(_pieces(start, end, rest=midi == SILENCE))
            for index, (first, last) in enumerate(pieces):
                quarters = (last - first) / STEPS_PER_QUARTER
                if midi == SILENCE:
                    bars[first // STEPS_PER_BAR].append(note.Rest(quarterLength=quarters))
                    continue
                spelling, octave = spelled[midi]
                # A pitch of its own for each note: music21 keeps in it whether its accidental is printed.
                sound = note.Note(pitch.Pitch(spelling, octave=octave), quarterLength=quarters)
                if len(pieces) > 1:
                    ends = {0: "start", len(pieces) - 1: "stop"}
                    sound.tie = tie.Tie(ends.get(index, "continue"))
                bars[first // STEPS_PER_BAR].append(sound)
        bars[-1].rightBarline = bar.Barline("final")
        # Else music21 fills the last bar with hidden rests.
        bars[-1].paddingRight = -len(chorale) % STEPS_PER_BAR / STEPS_PER_QUARTER
        part.append(bars)
        score.insert(0, part)
    score.insert(0, layout.StaffGroup(list(score.parts), symbol="bracket", barTogether=False))
    content = GeneralObjectExporter(score).parse()
    try:
        write_bytes(path, content)
    except OSError as error:
        raise CodecError(f"{path} cannot be written ({error.strerror or error})") from error


def estimate_key(chorale: Chorale) -> tuple[int, str]:
    """Sharps (flats if negative) and mode, major or minor, by music21's key analysis; C major for silence.

    The analysis weighs pitch classes by how long they sound, so twelve notes tell it as much as the score.
    """
    from music21 import note, stream

    sounding = chorale.pitches[chorale.pitches != SILENCE]
    counts = np.bincount(sounding % 12, minlength=12)
    if not counts.any():
        return 0, "major"
    summary: Any = stream.Stream()
    for pitch_class in np.flatnonzero(counts):
        length = float(counts[pitch_class]) / STEPS_PER_QUARTER
        summary.append(note.Note(60 + int(pitch_class), quarterLength=length))
    found = summary.analyze("key")
    # Enharmonic twins such as A sharp major: the one with fewer signs.
    return (found.sharps + 6) % 12 - 6, found.mode


def spell(fifths: int, mode: str | None = None) -> list[tuple[str, int]]:
    """Names in music21's manner (C#, B-) and octaves of the MIDI pitches 0..127 in a key of so many sharps.

    Flats are negative; middle C, 60, is in octave 4.

    Names are twelve neighbours on the line of fifths around the key's seven: in C major E flat to G sharp,
    in A minor B flat to D sharp, which has its leading notes.
    """
    lowest = fifths - (2 if mode == "minor" else 3)
    by_class = {}
    for place in range(lowest, lowest + 12):
        alter, letter = divmod(place + 1, 7)  # place 0 is C; F C G D A E B, then the same with a sharp
        by_class[place * 7 % 12] = ("FCGDAEB"[letter], alter)
    names = []
    for midi in range(128):
        name, alter = by_class[midi % 12]
        octave = (midi - alter) // 12 - 1  # the letter's own: B sharp 3 sounds as C4
        names.append((name + "#" * alter + "-" * -alter, octave))
    return names


def _filled(voice: np.ndarray, merge_repeats: bool) -> Iterator[tuple[int, int, int]]:
    """`runs` of one voice with the silence between them as runs of -1, which is never cut into sixteenths."""
    now = 0
    for start, end, midi in [*runs(voice, merge_repeats), (len(voice), len(voice), SILENCE)]:
        if start > now:
            yield now, start, SILENCE
        if end > start:
            yield start, end, midi
        now = end


def _pieces(start: int, end: int, rest: bool) -> Iterator[tuple[int, int]]:
    """Cut a note or rest at bar lines and where one sign cannot, or by custom does not, write it; in steps."""
    length, inside = end - start, start % STEPS_PER_BAR
    if rest:
        whole = length <= STEPS_PER_BAR and length & (length - 1) == 0 and start % length == 0
    else:
        # Where in its bar a note of a length may begin. Off-beat notes stop at the middle of the bar, which a
        # reader wants to see; half notes and dotted ones on the second beat are everyday.
        places = {
            1: range(16),
            2: [place for place in range(15) if place % 4 != 3],
            3: [place for place in range(16) if place % 4 < 2],
            4: [0, 2, 4, 8, 10, 12],
            6: [0, 2, 4, 8, 10],
            8: [0, 4, 8],
            12: [0, 4],
            16: [0],
        }
        whole = inside in places.get(length, ())
    if whole:
        yield start, end
        return
    # The strongest place within: the one that is divisible by the highest power of two, bar lines before all.
    power = STEPS_PER_BAR
    while (cut := (start // power + 1) * power) >= end:
        power //= 2
    yield from _pieces(start, cut, rest)
    yield from _pieces(cut, end, rest)
