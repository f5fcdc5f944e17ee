"""MIDI -> sound: WAV through the command fluidsynth and a SoundFont that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from seqpope.errors import SeqpopeError

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
