"""Chorale -> score (MusicXML), sound (WAV through fluidsynth) and picture (piano roll); MIDI is the codec's.

Steps are sixteenths and bars are in 4/4, 16 steps, whatever the piece was in: the grid does not know.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.domains.music.chorales.codec import (
    SILENCE,
    STEPS_PER_QUARTER,
    VOICES,
    Chorale,
    CodecError,
    runs,
)
from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes

STEPS_PER_BAR = 4 * STEPS_PER_QUARTER
SCORE_ENDINGS = (".musicxml", ".xml")

SOUNDFONT_VARIABLE = "SOUNDFONT"
SOUNDFONT_SUFFIXES = (".sf2", ".sf3")
SOUNDFONT_FOLDERS = (
    "~/.local/share/soundfonts",
    "~/.local/share/sounds/sf2",
    "/usr/share/sounds/sf2",
    "/usr/share/sounds/sf3",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "/usr/local/share/sounds/sf2",
    "/usr/local/share/fluid-synth/sf2",
    "/opt/homebrew/share/soundfonts",
    "/opt/homebrew/share/sounds/sf2",
    "/opt/homebrew/share/fluid-synth/sf2",
    "~/Library/Audio/Sounds/Banks",
)
# General MIDI sets, the better known first: a folder may also hold a lone piano or synthesiser effects.
SOUNDFONT_NAMES = ("default-gm", "fluidr3_gm", "fluidr3", "generaluser", "timgm6mb", "freepats")
INSTALL = (
    'install it with "apt install fluidsynth timgm6mb-soundfont" (Debian, Ubuntu) or '
    '"brew install fluid-synth" (macOS)'
)
RATES = (8000, 96000)  # hertz, what fluidsynth takes
QUIETEST = 32  # of 32768: fluidsynth's dither alone reaches a few units
GAIN = 0.8  # fluidsynth's own 0.2 is for dense orchestras; four voices stay far from clipping

COLOURS = ("#cc5f9b", "#e69f00", "#009e73", "#0072b2")  # told apart by colour-blind eyes too
INK, GREY, PALE = "#222222", "#666666", "#f1f1f1"
BARS_A_ROW = 12
MAXIMUM_ROWS = 24
ROW_HEIGHT, PICTURE_HEIGHT = 4.2, 50.0  # at most; inches, as all lengths of the picture
SEMITONE = 0.09
DPI = 110
WIDTH = 13.0
LEFT, RIGHT, FOOT, GAP = 0.5, 0.2, 0.34, 0.34
HEADER = 0.68
BLACK_KEYS = (1, 3, 6, 8, 10)


# ---------------------------------------------------------------- MusicXML


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


def printable(text: str) -> str:
    """Text without what neither XML nor a picture can hold: control characters, halves of surrogate pairs."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


# ---------------------------------------------------------------- WAV


def find_fluidsynth() -> str:
    """The command fluidsynth.

    Raises:
        SeqpopeError: it is not on the PATH.
    """
    program = shutil.which("fluidsynth")
    if program is None:
        raise SeqpopeError(f"the command fluidsynth, which makes sound of MIDI, is not on the PATH: {INSTALL}")
    return program


def find_soundfont(given: Path | None = None) -> Path:
    """The SoundFont given, else the one that the variable SOUNDFONT names, else one in the usual places.

    Raises:
        SeqpopeError: the one given or named is missing or no SoundFont, or there is none anywhere.
    """
    variable = os.environ.get(SOUNDFONT_VARIABLE)
    for named, by in ((given, ""), (variable, f", which the variable {SOUNDFONT_VARIABLE} names,")):
        if named is None or named == "":
            continue
        path = Path(os.path.expanduser(named))
        if not path.is_file():
            raise SeqpopeError(
                f"the SoundFont {path}{by} is no file: give an .sf2 file, or none to use one that is installed"
            )
        if not _is_soundfont(path):
            raise SeqpopeError(f"{path}{by} is not a SoundFont that can be read: give an .sf2 or .sf3 file")
        return path
    found = [
        file
        for folder in SOUNDFONT_FOLDERS
        for file in sorted(_listed(Path(os.path.expanduser(folder))))
        if file.suffix.lower() in SOUNDFONT_SUFFIXES and _is_soundfont(file)
    ]

    def rank(file: Path) -> int:
        name = file.name.lower()
        return next((i for i, known in enumerate(SOUNDFONT_NAMES) if name.startswith(known)), len(SOUNDFONT_NAMES))

    if not found:
        raise SeqpopeError(
            f"no SoundFont found in {', '.join(SOUNDFONT_FOLDERS)}: {INSTALL}, or name an .sf2 file in the "
            f"variable {SOUNDFONT_VARIABLE}"
        )
    return min(found, key=rank)  # the first of equals, so the order of folders counts


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # most of the usual places are not on this machine
        return []


def _is_soundfont(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:] == b"sfbk"


def write_wav(midi: Path, out: Path, *, soundfont: Path | None = None, rate: int = 44100) -> None:
    """Render a MIDI file to a WAV file (16 bits, stereo) with the command fluidsynth, atomically.

    Args:
        out: ends in .wav.
        soundfont: as `find_soundfont` takes it.
        rate: samples a second and channel, 8000 to 96000.

    Raises:
        SeqpopeError: fluidsynth or a SoundFont is missing, the MIDI file cannot be read, an argument is out of
            range, fluidsynth fails, what it wrote is no WAV, too short, or silent though the MIDI file has
            notes, or out cannot be written.
    """
    midi, out = Path(midi).absolute(), Path(out).absolute()  # a name that begins with a dash is no option then
    if out.suffix.lower() != ".wav":
        raise SeqpopeError(f"{out.name}: expected a file that ends in .wav, not {out.suffix!r}")
    if not RATES[0] <= rate <= RATES[1]:
        raise SeqpopeError(f"the rate must be {RATES[0]} to {RATES[1]} samples a second, it is {rate}")
    notes, seconds = _notes_and_seconds(midi)
    program = find_fluidsynth()
    font = find_soundfont(soundfont).absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.stem}.", suffix=".wav", dir=out.parent)
        os.close(handle)
    except OSError as error:
        raise SeqpopeError(f"{out} cannot be written ({error.strerror or error})") from error
    rendered = Path(name)
    try:
        # Without the first setting a font that cannot be loaded is silently replaced by the system's own.
        settings = ["-ni", "-q", "-o", "synth.default-soundfont=", "-g", str(GAIN)]
        settings += ["-r", str(rate), "-O", "s16", "-T", "wav"]
        said = _run([program, *settings, "-F", str(rendered), str(font), str(midi)], timeout=60 + seconds)
        _check_wav(rendered, rate, notes, seconds, f"{midi.name} with the SoundFont {font.name}", said)
        try:
            with open(rendered, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(rendered, 0o644)
            os.replace(rendered, out)
        except OSError as error:
            raise SeqpopeError(f"{out} cannot be written ({error.strerror or error})") from error
    finally:
        rendered.unlink(missing_ok=True)


def _notes_and_seconds(midi: Path) -> tuple[int, float]:
    """How many notes a MIDI file has, and when the last of its events is."""
    import mido

    if not midi.is_file():
        raise SeqpopeError(f"there is no file {midi}")
    try:
        file = mido.MidiFile(str(midi), clip=True)
        notes = sum(m.type == "note_on" and m.velocity > 0 for track in file.tracks for m in track)
        return notes, float(file.length)
    except Exception as error:  # mido lets IndexError, EOFError, KeyError and others through
        raise SeqpopeError(
            f"{midi.name} is not a MIDI file that can be played ({type(error).__name__}: {error})"
        ) from error


def _run(command: list[str], timeout: float) -> str:
    """Run fluidsynth; what it said, for error messages. `timeout` in seconds."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise SeqpopeError(
            f"fluidsynth was not done after {timeout:.0f} s and was stopped: try a shorter piece or another "
            "SoundFont"
        ) from error
    except OSError as error:
        raise SeqpopeError(f"{command[0]} cannot be run ({error.strerror or error}): {INSTALL}") from error
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split())[:400]
    if done.returncode != 0:
        raise SeqpopeError(f"fluidsynth failed with status {done.returncode}: {said or 'it said nothing'}")
    return said


def _check_wav(path: Path, rate: int, notes: int, seconds: float, what: str, said: str) -> None:
    """fluidsynth ends with status 0 whatever happened, so its file is looked at."""
    also = f"; fluidsynth said: {said}" if said else ""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2 or file.getframerate() != rate:
                raise SeqpopeError(
                    f"fluidsynth wrote {8 * file.getsampwidth()} bits at {file.getframerate()} Hz for {what}: "
                    f"expected 16 bits at {rate} Hz{also}"
                )
            peak, frames = 0, 0
            while block := file.readframes(1 << 20):
                samples = np.frombuffer(block[: len(block) // 2 * 2], "<i2").astype(np.int32)
                peak = max(peak, int(np.abs(samples).max(initial=0)))
                frames += len(block) // (2 * file.getnchannels())
    except (wave.Error, EOFError, OSError) as error:
        raise SeqpopeError(f"fluidsynth wrote no WAV file for {what} ({error or 'it is empty'}){also}") from error
    if notes and peak < QUIETEST:
        raise SeqpopeError(
            f"fluidsynth made silence of the {notes} notes of {what}: try another SoundFont, a General MIDI one"
            f"{also}"
        )
    if frames < (seconds - 1) * rate:
        raise SeqpopeError(
            f"fluidsynth wrote {frames / rate:.1f} s of sound for {what}, which lasts {seconds:.1f} s: "
            f"is the disk full?{also}"
        )


# ---------------------------------------------------------------- piano roll


def draw_piano_roll(
    chorale: Chorale,
    *,
    prompt_steps: int = 0,
    given: tuple[int, ...] = (),
    given_steps: tuple[int, int] | None = None,
    title: str = "",
    tempo: float | None = None,
) -> bytes:
    """The piece as a picture, PNG: time to the right, pitch upwards, a colour a voice.

    Up to 12 bars make a row, and rows follow each other as the systems of a score; what does not fit into
    24 rows is left out, and the picture says so. Voices in unison share the height of their pitch. Repeated
    notes are drawn as held ones, as the grid has them.

    Args:
        prompt_steps: so many steps at the start are shaded and called the prompt.
        given: voices (0 soprano to 3 bass) that were given; hatched, and named so in the legend.
        given_steps: from which step to which they were; the whole piece if None.
        title: the chorale's name if empty.
        tempo: quarters a minute; shown, with how long the piece lasts.

    Raises:
        SeqpopeError: the chorale has no steps, prompt_steps is not within it, or given or tempo is out of range.
    """
    steps = len(chorale)
    if steps == 0:
        raise SeqpopeError(f"chorale {chorale.name!r} has no steps: there is nothing to draw")
    if not 0 <= prompt_steps <= steps:
        raise SeqpopeError(f"prompt_steps must be 0 to {steps}, the length of the piece, it is {prompt_steps}")
    if not set(given) <= set(range(len(VOICES))):
        raise SeqpopeError(f"given must be voices 0 (soprano) to 3 (bass), it is {given}")
    if tempo is not None and not 4 <= tempo <= 1000:
        raise SeqpopeError(f"the tempo must be 4 to 1000 quarters a minute, it is {tempo}")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = math.ceil(steps / STEPS_PER_BAR)
    shown = min(bars, BARS_A_ROW * MAXIMUM_ROWS)
    rows = math.ceil(shown / BARS_A_ROW)
    row_bars = math.ceil(shown / rows)  # rows of equal length: 13 bars are 7 and 6
    low, high = _pitch_range(chorale.pitches[: shown * STEPS_PER_BAR])
    top = HEADER + (0.2 if prompt_steps else 0.0)
    room = (PICTURE_HEIGHT - top - FOOT - (rows - 1) * GAP) / rows
    row_height = min((high - low) * SEMITONE, ROW_HEIGHT, room)
    height = top + rows * row_height + (rows - 1) * GAP + FOOT
    # A bar is about as wide in every picture; a few bars only are wider, for the header needs the room.
    width = max(7.0, WIDTH * row_bars / BARS_A_ROW)

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for row in range(rows):
        bottom = height - top - row * (row_height + GAP) - row_height
        box = (LEFT / width, bottom / height, (width - LEFT - RIGHT) / width, row_height / height)
        axes = figure.add_axes(box)
        first = row * row_bars * STEPS_PER_BAR
        last = min(first + row_bars * STEPS_PER_BAR, steps)
        axes.set_xlim(first, first + row_bars * STEPS_PER_BAR)
        axes.set_ylim(low - 0.5, high - 0.5)
        _draw_row(axes, chorale, first, last, prompt_steps, given, given_steps or (0, steps))
    _draw_header(figure, canvas, chorale, given, title, tempo, shown, bars)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _pitch_range(pitches: np.ndarray) -> tuple[int, int]:
    """Lowest MIDI pitch to draw and the one above the highest, two octaves apart at least."""
    sounding = pitches[pitches != SILENCE]
    if sounding.size == 0:
        return 48, 73
    low, high = int(sounding.min()) - 2, int(sounding.max()) + 3
    missing = max(0, 25 - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _draw_row(
    axes: Any,
    chorale: Chorale,
    first: int,
    last: int,
    prompt_steps: int,
    given: tuple[int, ...],
    given_steps: tuple[int, int],
) -> None:
    """One row of the picture: keys, bar lines, prompt, notes of the steps [first, last)."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Polygon, Rectangle

    low, high = (round(bound + 0.5) for bound in axes.get_ylim())
    keys = [
        Rectangle((first, pitch - 0.5), last - first, 1) for pitch in range(low, high) if pitch % 12 in BLACK_KEYS
    ]
    axes.add_collection(PatchCollection(keys, facecolor=PALE, linewidth=0, zorder=0))
    octaves = [pitch for pitch in range(low, high) if pitch % 12 == 0]
    axes.hlines([pitch - 0.5 for pitch in octaves], first, last, color="#bbbbbb", linewidth=0.7, zorder=1)
    bar_starts = range(first, last, STEPS_PER_BAR)
    axes.vlines(
        [*bar_starts, last], low - 0.5, high - 0.5, color="#9a9a9a", linewidth=0.8, zorder=1, clip_on=False
    )
    beats = [step for step in range(first, last, STEPS_PER_QUARTER) if step % STEPS_PER_BAR]
    axes.vlines(beats, low - 0.5, high - 0.5, color="#dddddd", linewidth=0.4, zorder=0.5)
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves], fontsize=8, color=GREY)
    axes.set_xticks(list(bar_starts), [str(start // STEPS_PER_BAR + 1) for start in bar_starts])
    axes.tick_params(axis="x", length=0, pad=2, labelsize=8, labelcolor=GREY)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines[:].set_visible(False)

    if first < prompt_steps:
        stop = min(prompt_steps, last)
        axes.add_patch(
            Rectangle((first, low - 0.5), stop - first, high - low, facecolor="#f6d55c", alpha=0.28, zorder=0.6)
        )
        if stop == prompt_steps < len(chorale):
            axes.vlines(stop, low - 0.5, high - 0.5, color="#b8860b", linewidth=1.4, zorder=1.5, clip_on=False)
        if first == 0:
            place: dict[str, Any] = {"xycoords": "data", "textcoords": "offset points"}
            axes.annotate("prompt", (0, high - 0.5), (1, 3), **place, fontsize=8, color="#8a6508", style="italic")

    pitches = chorale.pitches[first:last]
    same = pitches[:, :, None] == pitches[:, None, :]  # (steps, voice, other voice)
    sharing = same.sum(2)
    above = np.tril(same, -1).sum(2)  # how many of those that share the pitch are higher voices
    heights = 0.86 / sharing
    tops = pitches + 0.43 - heights * above
    for voice, colour in enumerate(COLOURS):
        notes: dict[bool, list[Polygon]] = {False: [], True: []}
        for start, end, _ in runs(pitches[:, voice]):
            is_given = voice in given and given_steps[0] <= first + start < given_steps[1]
            outline = _outline(first, start, end, tops[:, voice], heights[:, voice])
            notes[is_given].append(Polygon(outline, closed=True))
        for is_given, some in notes.items():
            if some:
                axes.add_collection(PatchCollection(some, **_look(voice, colour, is_given), zorder=3))
    if (chorale.pitches == SILENCE).all() and first == 0:
        place = {"ha": "center", "va": "center", "fontsize": 11, "color": GREY}
        axes.text((first + last) / 2, (low + high) / 2, "silence", **place)


def _outline(first: int, start: int, end: int, tops: np.ndarray, heights: np.ndarray) -> list[tuple[float, float]]:
    """Corners of a note, a bar that narrows where other voices sing its pitch too; tops and heights by step."""
    cuts = [
        start,
        *(t for t in range(start + 1, end) if (tops[t], heights[t]) != (tops[t - 1], heights[t - 1])),
        end,
    ]
    upper, lower = [], []
    for left, right in pairwise(cuts):
        ends = (first + left + 0.06 * (left == start), first + right - 0.06 * (right == end))
        upper += [(x, float(tops[left])) for x in ends]
        lower += [(x, float(tops[left] - heights[left])) for x in ends]
    return upper + lower[::-1]


def _look(voice: int, colour: str, given: bool) -> dict[str, Any]:
    """How the notes of a voice are painted: full, or pale and hatched if the voice was given."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    dark = (0.6 * red, 0.6 * green, 0.6 * blue)
    if not given:
        return {"facecolor": colour, "edgecolor": dark, "linewidth": 0.5}
    pale = tuple(1 - 0.35 * (1 - part) for part in (red, green, blue))
    return {"facecolor": pale, "edgecolor": dark, "linewidth": 0.9, "hatch": "//////"}


def _draw_header(
    figure: Any,
    canvas: Any,
    chorale: Chorale,
    given: tuple[int, ...],
    title: str,
    tempo: float | None,
    shown: int,
    bars: int,
) -> None:
    """Title and facts on the first line, legend on the second."""
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    facts = [f"{bars} bar{'s' * (bars != 1)}"]
    if shown < bars:
        facts = [f"bars 1\N{EN DASH}{shown} of {bars}"]
    if tempo is not None:
        seconds = round(len(chorale) / STEPS_PER_QUARTER * 60 / tempo)
        facts += [f"\N{QUARTER NOTE} = {tempo:g}", f"{seconds // 60}:{seconds % 60:02d} min"]
    line = 1 - 0.12 / height
    right = figure.text(
        1 - RIGHT / width, line, "   ".join(facts), ha="right", va="top", fontsize=9, color=GREY, parse_math=False
    )
    words = (printable(title) or printable(chorale.name))[:200]
    left = figure.text(
        LEFT / width, line, words, va="top", fontsize=12, color=INK, weight="bold", parse_math=False
    )
    room = right.get_window_extent(canvas.get_renderer()).x0 - 15
    while words and left.get_window_extent(canvas.get_renderer()).x1 > room:
        words = words[:-1].rstrip()
        left.set_text(words + "\N{HORIZONTAL ELLIPSIS}")

    handles = [
        Patch(**_look(voice, COLOURS[voice], voice in given), label=name + " (given)" * (voice in given))
        for voice, name in enumerate(VOICES)
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(LEFT / width, 1 - 0.36 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        columnspacing=1.4,
        borderaxespad=0,
        borderpad=0.2,
    )
