"""File <-> chorale: JSON of the JSB data set, MusicXML, Humdrum and MIDI in; MIDI out.

A chorale is a grid: one row a sixteenth, one column a voice, soprano first. Held and repeated notes cannot
be told apart in it, and neither ties, fermatas, grace notes, repeat signs nor tempo survive reading.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
SILENCE = -1
STEPS_PER_QUARTER = 4
STEPS_PER_BAR = 4 * STEPS_PER_QUARTER  # whatever the metre: the grid does not know
JSON_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
SCORE_SUFFIXES = (".mid", ".midi", ".musicxml", ".xml", ".mxl", ".krn")

# A triplet or a 32nd is at least a third of a step away from the grid; what a sequencer's rounding or a
# light human touch moves is less than a fifth.
ONSET_TOLERANCE = Fraction(1, 5)
MAXIMUM_STEPS = 1 << 16  # 68 minutes at 60 quarters a minute: more is a damaged file, not a chorale
TICKS_PER_QUARTER = 480
END_OF_PIECE = "seqpope: end of piece"


class CodecError(SeqpopeError):
    """A file is not a four-part piece on the grid of sixteenths, or cannot be read or written."""


@dataclass(frozen=True, eq=False)
class Chorale:
    """Four voices on a grid of sixteenths.

    `pitches` is (steps, 4) int16, read-only: MIDI pitches 0..127, soprano first, -1 for silence.

    Raises:
        CodecError: another shape, no integers, or a pitch outside -1..127.
    """

    pitches: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        given = np.asarray(self.pitches)
        if given.size == 0:
            given = np.zeros((0, len(VOICES)), np.int16)
        if given.ndim != 2 or given.shape[1] != len(VOICES) or given.dtype.kind not in "iu":
            raise CodecError(
                f"chorale {self.name!r}: pitches must be integers of shape (steps, 4), "
                f"they are {given.dtype} of shape {given.shape}"
            )
        wrong = np.argwhere((given < SILENCE) | (given > 127))
        if len(wrong):
            step, voice = (int(index) for index in wrong[0])
            raise CodecError(
                f"chorale {self.name!r}, step {step}, {VOICES[voice]}: pitch {given[step, voice]} is outside "
                "0..127 (-1 for silence)"
            )
        pitches = given.astype(np.int16)  # a copy, so that freezing it freezes nobody else's array
        pitches.setflags(write=False)
        object.__setattr__(self, "pitches", pitches)

    def __len__(self) -> int:
        return len(self.pitches)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chorale):
            return NotImplemented
        return self.name == other.name and np.array_equal(self.pitches, other.pitches)

    def __hash__(self) -> int:
        return hash((self.name, self.pitches.tobytes()))


# ---------------------------------------------------------------- JSON of the JSB data set


def read_json(path: Path) -> dict[str, list[Chorale]]:
    """Read Jsb16thSeparated.json: {"train" | "valid" | "test": [piece: [step: [four pitches, -1 silence]]]}.

    Returns pieces by our split names (train, validation, test), named jsb-train-000 and so on in file order.
    Source: github.com/czhuang/JSB-Chorales-dataset.

    Raises:
        CodecError: the file is missing or no JSON, a split is missing or unknown, or a step is not four
            integers of -1 or 0..127; the message names piece and step.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CodecError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CodecError(
            f"{path} is not valid JSON ({error}): it is damaged or cut short, download it again"
        ) from error
    if not isinstance(content, dict) or set(content) != set(JSON_SPLITS):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CodecError(
            f"{path}: expected an object with the keys {', '.join(JSON_SPLITS)}, it has {found}: "
            "this should be the file Jsb16thSeparated.json"
        )
    splits = {}
    for key, split in JSON_SPLITS.items():
        pieces = content[key]
        if not isinstance(pieces, list) or not pieces:
            raise CodecError(f"{path}: {key!r} should be a list of pieces and hold at least one")
        splits[split] = [
            Chorale(_json_piece(path, f"{key}[{index}]", piece), f"jsb-{split}-{index:03d}")
            for index, piece in enumerate(pieces)
        ]
    return splits


def _json_piece(path: Path, where: str, piece: Any) -> np.ndarray:
    """One piece of the JSON file as (steps, 4) int16, every value checked."""
    if not isinstance(piece, list) or not piece:
        raise CodecError(f"{path}, piece {where}: expected a list of steps that is not empty")
    for index, step in enumerate(piece):
        if not isinstance(step, list) or len(step) != len(VOICES):
            count = f"{len(step)} values" if isinstance(step, list) else type(step).__name__
            raise CodecError(f"{path}, piece {where}, step {index}: expected four pitches, found {count}")
        for voice, value in zip(VOICES, step, strict=True):
            # type() and not isinstance(): JSON's true is an int to Python
            if type(value) is not int or not (value == SILENCE or 0 <= value <= 127):
                raise CodecError(
                    f"{path}, piece {where}, step {index}, {voice}: expected an integer pitch "
                    f"0..127 or -1 for silence, found {value!r}"
                )
    return np.array(piece, np.int16)


# ---------------------------------------------------------------- lines of notes -> four voices


@dataclass
class _Line:
    """Notes of one track, part or voice: (start, end, pitch) in steps, end exclusive."""

    name: str
    notes: list[tuple[int, int, int]] = field(default_factory=list)

    def is_monophonic(self, legato: int) -> bool:
        """Whether no two notes overlap by more than `legato` steps or start together."""
        ordered = sorted(self.notes)
        return all(
            later[0] > earlier[0] and earlier[1] - later[0] <= legato for earlier, later in pairwise(ordered)
        )

    def mean_pitch(self) -> float:
        return sum((end - start) * pitch for start, end, pitch in self.notes) / sum(
            end - start for start, end, _ in self.notes
        )

    def voice(self) -> int | None:
        """The voice that the name says, by its first word: soprano or s, alto or a, tenor or t, bass or b."""
        word = re.match(r"[a-z]*", self.name.strip().lower())
        names = [voice.lower() for voice in VOICES]
        if word is None or not word.group():
            return None
        spelled = word.group()
        if len(spelled) == 1:
            return "satb".index(spelled) if spelled in "satb" else None
        return names.index(spelled) if spelled in names else None


def _assign_voices(
    lines: list[_Line], steps: int, name: str, where: Callable[[int], str], legato: int = 0
) -> Chorale:
    """Give every note a voice; missing voices are silent.

    Tracks that are called by the four voices' names are those voices (where all four are there, further
    tracks, such as an obbligato horn or a doubling continuo, are left out with a warning). Else up to four
    tracks without chords are the voices from the top, in descending order of mean pitch. Else all notes are
    pooled, and the notes that sound at a step go to the voices from the top, highest first.
    """
    lines = [line for line in lines if line.notes]
    if steps > MAXIMUM_STEPS:
        raise CodecError(
            f"{name}: {steps} sixteenths are more than the {MAXIMUM_STEPS} that a piece may have: "
            "cut the file into shorter ones"
        )
    named = {line.voice(): line for line in lines if line.voice() is not None}
    complete = len(named) == len(VOICES)
    distinct = len(named) == sum(line.voice() is not None for line in lines)
    if distinct and (complete or len(named) == len(lines)):
        left_out = [line.name for line in lines if line.voice() is None]
        if all(line.is_monophonic(legato) for line in named.values()):
            if left_out:
                warnings.warn(
                    f"{name}: took the tracks Soprano, Alto, Tenor and Bass and left out {', '.join(left_out)}",
                    stacklevel=3,
                )
            return Chorale(_paint({voice or 0: line for voice, line in named.items()}, steps), name)
    if len(lines) <= len(VOICES) and all(line.is_monophonic(legato) for line in lines):
        ordered = sorted(lines, key=lambda line: -line.mean_pitch())
        return Chorale(_paint(dict(enumerate(ordered)), steps), name)
    sounding: list[list[int]] = [[] for _ in range(steps)]
    for line in lines:
        # A pitch struck again before it ended is one note; the same pitch in two tracks is a unison.
        held = {(step, pitch) for start, end, pitch in line.notes for step in range(start, end)}
        for step, pitch in held:
            sounding[step].append(pitch)
    pitches = np.full((steps, len(VOICES)), SILENCE, np.int16)
    for step, chord in enumerate(sounding):
        if len(chord) > len(VOICES):
            raise CodecError(
                f"{name}, {where(step)}: {len(chord)} notes sound together, a chorale has four voices: "
                "remove the doubling or accompanying tracks"
            )
        pitches[step, : len(chord)] = sorted(chord, reverse=True)
    return Chorale(pitches, name)


def _paint(voices: dict[int, _Line], steps: int) -> np.ndarray:
    pitches = np.full((steps, len(VOICES)), SILENCE, np.int16)
    for voice, line in voices.items():
        for start, end, pitch in sorted(line.notes):  # in order, so that a later note cuts a legato one off
            pitches[start:end, voice] = pitch
    return pitches


def _bar_and_beat(quarters: Fraction, signatures: Sequence[tuple[Fraction, int, int]]) -> str:
    """Where a time lies, counting bars and beats from 1; signatures are (start in quarters, beats, unit)."""
    index = max(bisect_right([start for start, _, _ in signatures], quarters) - 1, 0)
    bar = 1
    for (start, beats, unit), (end, _, _) in pairwise(signatures[: index + 1]):
        bar += -(-(end - start) // Fraction(4 * beats, unit))
    start, beats, unit = signatures[index]
    whole, rest = divmod(quarters - start, Fraction(4 * beats, unit))
    return f"bar {bar + whole}, beat {float(rest * Fraction(unit, 4) + 1):.4g}"


def _off_grid(name: str, where: str, line: str, what: str) -> CodecError:
    return CodecError(
        f"{name}, {where}{f' of {line!r}' if line else ''}: a note {what} between two sixteenths; a chorale "
        "is written on a grid of sixteenths, without triplets and shorter notes: quantise the file"
    )


# ---------------------------------------------------------------- MusicXML and Humdrum


def read_musicxml(path: Path, *, parts_wanted: int | None = None) -> Chorale:
    """Read a MusicXML (.musicxml, .xml, .mxl) or Humdrum (.krn) score with music21, at sounding pitch.

    Each part, and each voice written within a part, is a line of notes; `_assign_voices` says how lines
    become the four voices. Grace notes are skipped, repeats are not played out, a pickup bar starts at step
    0, and a silence that all voices share to the end is kept. `parts_wanted` refuses a score with another
    number of parts.

    Raises:
        CodecError: the file cannot be read, has other parts than wanted or no notes, more than four notes
            sound together, or a note starts or ends between sixteenths.
    """
    from music21 import converter, meter, stream

    path = Path(path)
    if not path.is_file():
        raise CodecError(f"there is no file {path}")
    try:
        # No pickle: music21 would leave one in the temporary folder, and read it back for a changed file.
        score = converter.parseFile(path, forceSource=True, storePickle=False)
    except Exception as error:  # music21 lets whatever its parsers meet through
        raise CodecError(
            f"{path.name} is not a score that music21 can read "
            f"({type(error).__name__}: {error}): expected MusicXML or Humdrum"
        ) from error
    if isinstance(score, stream.Opus):
        raise CodecError(f"{path.name} holds {len(score.scores)} scores: expected one, split the file")
    parts = list(score.parts) if isinstance(score, stream.Score) else [score]
    if not parts:
        raise CodecError(f"{path.name} has no parts with notes (an analysis or an empty score)")
    if parts_wanted is not None and len(parts) != parts_wanted:
        raise CodecError(f"{path.name} has {len(parts)} parts: expected {parts_wanted}")
    if any(
        instrument.transposition is not None
        for part in parts
        for instrument in part.recurse().getElementsByClass("Instrument")
    ):
        parts = list(score.toSoundingPitch().parts)
    signatures = [
        (Fraction(signature.getOffsetInHierarchy(parts[0])), signature.numerator, signature.denominator)
        for signature in parts[0].recurse().getElementsByClass(meter.TimeSignature)
    ] or [(Fraction(0), 4, 4)]
    measures = [
        (Fraction(measure.offset), measure.number) for measure in parts[0].getElementsByClass(stream.Measure)
    ]

    def where(quarters: Fraction) -> str:
        index = bisect_right([start for start, _ in measures], quarters) - 1
        if index < 0:
            return _bar_and_beat(quarters, signatures)
        start, number = measures[index]
        return f"bar {number}, beat {float(quarters - start) + 1:.4g} (in quarters)"

    lines: list[_Line] = []
    end = Fraction(0)
    for part in parts:
        by_voice: dict[str, _Line] = {}
        name = str(part.partName or "")
        end = max(end, Fraction(part.highestTime))
        for note in part.recurse().notes:
            if note.duration.isGrace or not note.pitches:  # unpitched percussion has no pitches
                continue
            site = note.activeSite
            line = by_voice.setdefault(str(site.id) if isinstance(site, stream.Voice) else "", _Line(name))
            start = Fraction(note.getOffsetInHierarchy(part))
            stop = start + Fraction(note.quarterLength)
            for moment, what in ((start, "starts"), (stop, "ends")):
                if (moment * STEPS_PER_QUARTER).denominator != 1:
                    raise _off_grid(path.name, where(moment), name, what)
            first, last = int(start * STEPS_PER_QUARTER), int(stop * STEPS_PER_QUARTER)
            line.notes += [(first, last, int(pitch.midi)) for pitch in note.pitches if last > first]
        lines += by_voice.values()
    if not any(line.notes for line in lines):
        raise CodecError(f"{path.name} has no notes")
    steps = -(-end * STEPS_PER_QUARTER // 1)
    return _assign_voices(lines, int(steps), path.stem, lambda step: where(Fraction(step, STEPS_PER_QUARTER)))


# ---------------------------------------------------------------- MIDI


def read_midi(path: Path) -> Chorale:
    """Read a MIDI file on the grid of its ticks, so that the tempo plays no part.

    Each channel of each track is a line of notes (drums are skipped); `_assign_voices` says how lines become
    the four voices. A note may start up to a fifth of a sixteenth off the grid; its end goes to the nearest
    sixteenth, one after its start at least. The piece ends with its last note, or where `write_midi` marked
    its end.

    Raises:
        CodecError: the file is missing, damaged, of type 2 or without beats (SMPTE), has no notes (or drums
            only), more than four sound together, or one starts off the grid.
    """
    import mido

    path = Path(path)
    if not path.is_file():
        raise CodecError(f"there is no file {path}")
    try:
        midi = mido.MidiFile(str(path), clip=True)
    except Exception as error:  # mido lets IndexError, EOFError, KeyError and others through
        raise CodecError(
            f"{path.name} is not a MIDI file that can be read ({type(error).__name__}: {error}): "
            "it is damaged or cut short"
        ) from error
    ticks = midi.ticks_per_beat
    if ticks <= 0:
        raise CodecError(f"{path.name} counts SMPTE frames: expected ticks a quarter, export it again")
    if midi.type == 2:
        raise CodecError(f"{path.name} is a type 2 file (independent sequences): export it as type 1")

    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # ticks
    names: dict[int, str] = {}
    signatures: list[tuple[Fraction, int, int]] = []
    drums = 0
    end = -1
    for index, track in enumerate(midi.tracks):
        now = 0
        started: dict[tuple[int, int], int] = {}
        for message in track:
            now += message.time
            if message.type == "track_name":
                names.setdefault(index, message.name)
            elif message.type == "time_signature":
                signatures.append((Fraction(now, ticks), message.numerator, message.denominator))
            elif message.type == "text" and message.text == END_OF_PIECE:
                end = now
            elif message.type in ("note_on", "note_off"):
                if message.channel == 9:
                    drums += 1
                    continue
                key = (message.channel, message.note)
                start = started.pop(key, None)  # a note struck again ends the one before
                if start is not None:
                    found.setdefault((index, message.channel), []).append((start, now, message.note))
                if message.type == "note_on" and message.velocity > 0:
                    started[key] = now
        for (channel, pitch), start in started.items():  # never ended: to the end of its track
            found.setdefault((index, channel), []).append((start, now, pitch))
    signatures = sorted(signatures) or [(Fraction(0), 4, 4)]
    if signatures[0][0] > 0:
        signatures.insert(0, (Fraction(0), 4, 4))

    def where(step: Fraction | int) -> str:
        return _bar_and_beat(Fraction(step) / STEPS_PER_QUARTER, signatures)

    lines = []
    for (index, _), notes in found.items():
        line = _Line(names.get(index, ""))
        for start, stop, pitch in notes:
            exact = Fraction(start * STEPS_PER_QUARTER, ticks)
            first = round(exact)
            if abs(exact - first) > ONSET_TOLERANCE:
                raise _off_grid(path.name, where(exact), line.name, "starts")
            last = max(round(Fraction(stop * STEPS_PER_QUARTER, ticks)), first + 1)
            line.notes.append((first, last, pitch))
        lines.append(line)
    steps = max(
        [round(Fraction(end * STEPS_PER_QUARTER, ticks)) if end >= 0 else 0]
        + [last for line in lines for _, last, _ in line.notes]
    )
    if not lines and end < 0:
        raise CodecError(
            f"{path.name} has no notes{' but drums' if drums else ''}: expected up to four melodic voices"
        )
    return _assign_voices(lines, steps, path.stem, where, legato=1)


def write_midi(
    chorale: Chorale,
    path: Path,
    *,
    tempo: float = 90.0,
    merge_repeats: bool = True,
    voice_program: int | Sequence[int] = 19,
) -> None:
    """Write a MIDI file, atomically: one track a voice, called Soprano, Alto, Tenor and Bass, in 4/4.

    Args:
        tempo: quarters a minute, 4 to 1000.
        merge_repeats: write a run of equal pitches as one held note; else every sixteenth as a note of its
            own (the data cannot tell a held note from a repeated one).
        voice_program: General MIDI program 0..127 of all voices (19 is the church organ), or four of them.

    A text event marks the piece's end, so that silence at the end, or nothing but silence, is read back.

    Raises:
        CodecError: the chorale has no steps, an argument is out of range, or the file cannot be written.
    """
    import pretty_midi

    path = Path(path)
    if len(chorale) == 0:
        raise CodecError(f"chorale {chorale.name!r} has no steps: there is nothing to write to {path}")
    if not 4 <= tempo <= 1000:
        raise CodecError(f"the tempo must be 4 to 1000 quarters a minute, it is {tempo}")
    programs = [voice_program] * len(VOICES) if isinstance(voice_program, int) else list(voice_program)
    if len(programs) != len(VOICES) or not all(0 <= program <= 127 for program in programs):
        raise CodecError(f"voice_program must be one or four General MIDI programs 0..127, it is {voice_program}")
    seconds = 60.0 / tempo / STEPS_PER_QUARTER
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=tempo)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0.0))
    midi.text_events.append(pretty_midi.Text(END_OF_PIECE, len(chorale) * seconds))
    for voice, name in enumerate(VOICES):
        track = pretty_midi.Instrument(program=programs[voice], name=name)
        for start, end, pitch in runs(chorale.pitches[:, voice], merge_repeats):
            track.notes.append(
                pretty_midi.Note(velocity=80, pitch=pitch, start=start * seconds, end=end * seconds)
            )
        midi.instruments.append(track)
    buffer = io.BytesIO()
    midi.write(buffer)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise CodecError(f"{path} cannot be written ({error.strerror or error})") from error


def runs(voice: np.ndarray, merge_repeats: bool = True) -> list[tuple[int, int, int]]:
    """Notes of one voice (steps,) as (start, end, pitch) in steps, end exclusive; silence is left out."""
    if merge_repeats:
        starts = [step for step in range(len(voice)) if step == 0 or voice[step] != voice[step - 1]]
    else:
        starts = list(range(len(voice)))
    return [
        (start, end, int(voice[start]))
        for start, end in pairwise([*starts, len(voice)])
        if voice[start] != SILENCE
    ]


def read_score(path: Path) -> Chorale:
    """Read one piece of one to four voices from MIDI, MusicXML or Humdrum, by the file's suffix.

    Raises:
        CodecError: the suffix is unknown, or as `read_midi` and `read_musicxml`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SCORE_SUFFIXES:
        raise CodecError(
            f"{path.name}: the suffix {suffix!r} is not one of {', '.join(SCORE_SUFFIXES)}: "
            "export the piece as MIDI or MusicXML"
        )
    return read_midi(path) if suffix in (".mid", ".midi") else read_musicxml(path)
