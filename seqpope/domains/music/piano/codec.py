"""MIDI file <-> piano performance: when each key was struck and released, how hard, and the sustain pedal.

Times are seconds in fp64: ticks and tempo changes are gone after reading, so that a beat-based tokenization
sees real time at 120 quarters a minute (on tempo bins without 120 decoded music drifts by a percent or two).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seqpope.errors import SeqpopeError
from seqpope.files import write_bytes

LOWEST_KEY, HIGHEST_KEY = 21, 108
PIANO_PROGRAMS = range(8)  # General MIDI: grand pianos, electric pianos, harpsichord, clavinet
TEMPO = 120.0
TICKS_PER_QUARTER = 960
TICKS_PER_SECOND = 1920  # of files that are written
MAXIMUM_SECONDS = 4 * 3600.0  # more is a damaged file; the longest performance of MAESTRO takes 44 minutes


class CodecError(SeqpopeError):
    """A file is not a piano performance, or cannot be read or written."""


def _no_pedal() -> np.ndarray:
    return np.zeros((0, 2))


@dataclass(frozen=True, eq=False)
class Performance:
    """Notes in the order they were struck; arrays are copied and read-only.

    `onset` (N,) fp64 seconds, rising; `duration` (N,) fp64 seconds, how long the key was held; `pitch` (N,)
    uint8, 0..127; `velocity` (N,) uint8, 1..127; `pedal` (K, 2) fp64 seconds, when the sustain pedal went
    down and up. `skipped` counts ids without meaning, for a performance that was decoded from tokens.

    Raises:
        CodecError: arrays of unlike length, times that are no finite numbers from 0 on or do not rise,
            pitches or velocities out of range, or a pedal that goes up before it goes down.
    """

    onset: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    pedal: np.ndarray = field(default_factory=_no_pedal)
    name: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        onset, duration = (np.array(given, np.float64).reshape(-1) for given in (self.onset, self.duration))
        pitch, velocity = (np.array(given).reshape(-1) for given in (self.pitch, self.velocity))
        pedal = np.array(self.pedal, np.float64).reshape(-1, 2)
        if len({len(onset), len(duration), len(pitch), len(velocity)}) > 1:
            raise CodecError(
                f"performance {self.name!r}: onset, duration, pitch and velocity must be of one length, they "
                f"have {len(onset)}, {len(duration)}, {len(pitch)} and {len(velocity)} notes"
            )
        for title, times in (("onset", onset), ("duration", duration), ("pedal", pedal)):
            if not (np.isfinite(times) & (times >= 0)).all():
                raise CodecError(f"performance {self.name!r}: {title} must be seconds from 0 on")
        if (np.diff(onset) < 0).any():
            raise CodecError(f"performance {self.name!r}: onsets must not fall: sort the notes first")
        if (pedal[:, 1] < pedal[:, 0]).any():
            raise CodecError(f"performance {self.name!r}: the pedal goes up before it goes down")
        for title, values, low in (("pitch", pitch, 0), ("velocity", velocity, 1)):
            wrong = np.flatnonzero((values < low) | (values > 127))
            if len(wrong):
                raise CodecError(
                    f"performance {self.name!r}, note {wrong[0]}: {title} {values[wrong[0]]} is outside {low}..127"
                )
        arrays: tuple[np.ndarray, ...] = (
            onset,
            duration,
            pitch.astype(np.uint8),
            velocity.astype(np.uint8),
            pedal,
        )
        for key, array in zip(("onset", "duration", "pitch", "velocity", "pedal"), arrays, strict=True):
            array.setflags(write=False)
            object.__setattr__(self, key, array)

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def end(self) -> np.ndarray:
        """When each key was released, (N,) seconds."""
        return self.onset + self.duration

    @property
    def seconds(self) -> float:
        """Length in seconds, from 0 to the last release of a key."""
        return float(self.end.max(initial=0.0))

    def stretched(self, factor: float) -> Performance:
        """The same notes and pedal with all times, lengths too, multiplied by `factor`: above 1 is slower.

        Raises:
            CodecError: `factor` is no finite number above 0.
        """
        if not 0 < factor < np.inf:
            raise CodecError(f"performance {self.name!r} cannot be stretched by {factor}: expected more than 0")
        return replace(self, onset=self.onset * factor, duration=self.duration * factor, pedal=self.pedal * factor)

    def sounding(self) -> Performance:
        """The same notes as long as they sound, without a pedal.

        A key released while the sustain pedal is down sounds on until the pedal goes up. Striking a key
        again ends the note before, pedal or not: a string cannot sound twice.
        """
        end = self.end
        if len(self.pedal):
            down, up = _union(self.pedal)
            at = np.searchsorted(down, end, side="right") - 1
            end = np.where((at >= 0) & (end < up[at]), up[at], end)
        end = np.minimum(end, next_onset(self.onset, self.pitch))
        return Performance(
            self.onset, np.maximum(end - self.onset, 0), self.pitch, self.velocity, _no_pedal(), self.name
        )


def _union(intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the union of (K, 2) intervals, rising and apart."""
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ordered[:, 1])
    new = np.concatenate([[True], ordered[1:, 0] > reached[:-1]])
    last = np.concatenate([new[1:], [True]])
    return ordered[new, 0], reached[last]


def next_onset(onset: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """When each note's key is struck again, in the unit of `onset`; infinity if never."""
    order = np.lexsort((np.arange(len(onset)), pitch))
    following = np.full(len(onset), np.inf)
    same = pitch[order[1:]] == pitch[order[:-1]]
    following[order[:-1][same]] = onset[order[1:][same]]
    return following


# ---------------------------------------------------------------- reading


def read_midi(path: Path) -> Performance:
    """Read a performance from a MIDI file; its tempo changes are resolved to seconds.

    Raises:
        CodecError: as `parse_midi`, or the file cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CodecError(f"{path} cannot be read ({error.strerror or error})") from error
    return parse_midi(content, path.name)


def parse_midi(content: bytes, name: str = "") -> Performance:
    """The performance in the bytes of a MIDI file: all its tracks together, called `name`.

    Raises:
        CodecError: no or a damaged MIDI file; SMPTE time; no notes, drums only, or other instruments than
            pianos (programs 0..7); longer than MAXIMUM_SECONDS.
    """
    from symusic import Score

    score: Any  # symusic's types do not say which unit of time a score has
    try:
        score = Score.from_midi(content)
    except Exception as error:  # symusic lets RuntimeError, ValueError and others through
        raise CodecError(
            f"{name} is not a MIDI file that can be read ({error}): expected a whole standard MIDI file of "
            f"type 0 or 1, found {len(content)} bytes; it is damaged or cut short"
        ) from error
    if not 0 < score.ticks_per_quarter < 0x8000:
        raise CodecError(f"{name} counts SMPTE frames: expected ticks a quarter, export it again")
    tracks = [track for track in score.tracks if len(track.notes)]
    pitched = [track for track in tracks if not track.is_drum]
    if not pitched:
        found = "drums only" if tracks else "no notes"
        raise CodecError(f"{name} has {found}: expected a piano performance")
    others = sorted({int(track.program) for track in pitched if track.program not in PIANO_PROGRAMS})
    if others or len(pitched) < len(tracks):
        instruments = [f"program {program}" for program in others] + ["drums"] * (len(pitched) < len(tracks))
        raise CodecError(
            f"{name} has notes of other instruments ({', '.join(instruments)}): expected pianos alone "
            "(programs 0 to 7), remove the other tracks"
        )
    tempos = score.tempos.numpy()
    notes = _joined([track.notes.numpy() for track in pitched], ("time", "duration", "pitch", "velocity"))
    # As symusic sorts each track; what several tracks hold must not come in another order than what one holds.
    order = np.lexsort((notes["duration"], notes["pitch"], notes["time"]))
    notes = {key: values[order] for key, values in notes.items()}
    pedals = _joined([track.pedals.numpy() for track in pitched], ("time", "duration"))

    def elapsed(ticks: np.ndarray) -> np.ndarray:
        return _elapsed(ticks, tempos["time"], tempos["mspq"])

    # Whole numbers are subtracted, seconds only then made: a duration of half a grid step is exactly that.
    per_second = 1e6 * score.ticks_per_quarter
    onset, end = elapsed(notes["time"]), elapsed(notes["time"] + notes["duration"])
    if end.max() / per_second > MAXIMUM_SECONDS:
        raise CodecError(
            f"{name} lasts {end.max() / per_second:.0f} seconds, more than the {MAXIMUM_SECONDS:.0f} that a "
            "performance may: cut it into shorter ones"
        )
    pedal = np.stack([elapsed(pedals["time"]), elapsed(pedals["time"] + pedals["duration"])], axis=1) / per_second
    audible = notes["velocity"] > 0
    return Performance(
        onset[audible] / per_second,
        (end - onset)[audible] / per_second,
        notes["pitch"][audible],
        notes["velocity"][audible],
        pedal[np.argsort(pedal[:, 0], kind="stable")],
        name,
    )


def _joined(parts: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]).astype(np.int64) for key in keys}


def _elapsed(ticks: np.ndarray, changes: np.ndarray, microseconds: np.ndarray) -> np.ndarray:
    """Time at ticks (N,), int64, in microseconds times ticks a quarter.

    `microseconds` are those of a quarter from each of the rising ticks `changes` on; half a second before the
    first.
    """
    start = np.concatenate([[0], np.asarray(changes, np.int64)])
    length = np.concatenate([[500_000], np.asarray(microseconds, np.int64)])
    at_start = np.concatenate([[0], np.cumsum(np.diff(start) * length[:-1])])
    section = np.searchsorted(start, ticks, side="right") - 1
    return at_start[section] + (ticks - start[section]) * length[section]


# ---------------------------------------------------------------- writing


def write_midi(performance: Performance, path: Path) -> None:
    """Write a MIDI file, atomically: a grand piano at 120 quarters a minute, 1,920 ticks a second.

    A key that is struck again before its note ended cannot be told apart in one MIDI channel. Such notes go
    to further tracks, so that reading the file gives every note back.

    Raises:
        CodecError: the performance has no notes, or the file cannot be written.
    """
    import pretty_midi

    path = Path(path)
    if len(performance) == 0:
        raise CodecError(f"performance {performance.name!r} has no notes: there is nothing to write to {path}")
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_QUARTER, initial_tempo=TEMPO)
    midi.time_signature_changes.append(pretty_midi.TimeSignature(4, 4, 0.0))
    start = np.rint(performance.onset * TICKS_PER_SECOND).astype(np.int64)
    stop = start + np.maximum(np.rint(performance.duration * TICKS_PER_SECOND).astype(np.int64), 1)
    layers = _layers(start, stop, performance.pitch)
    for layer in range(int(layers.max()) + 1):
        track = pretty_midi.Instrument(program=0, name="Piano" if layer == 0 else f"Piano {layer + 1}")
        for note in np.flatnonzero(layers == layer).tolist():
            track.notes.append(
                pretty_midi.Note(
                    velocity=int(performance.velocity[note]),
                    pitch=int(performance.pitch[note]),
                    start=start[note] / TICKS_PER_SECOND,
                    end=stop[note] / TICKS_PER_SECOND,
                )
            )
        if layer == 0:
            for down, up in performance.pedal.tolist():
                track.control_changes.append(pretty_midi.ControlChange(64, 127, down))
                track.control_changes.append(pretty_midi.ControlChange(64, 0, up))
        midi.instruments.append(track)
    buffer = io.BytesIO()
    midi.write(buffer)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise CodecError(f"{path} cannot be written ({error.strerror or error})") from error


def _layers(start: np.ndarray, stop: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """For each note the first track in which its key is free, (N,) int64."""
    layers = np.zeros(len(start), np.int64)
    # Few notes overlap one of their own key: only keys with such notes are walked through.
    for key in np.unique(pitch[next_onset(start, pitch) < stop]):
        free: list[int] = []
        for note in np.flatnonzero(pitch == key).tolist():
            layer = next((index for index, until in enumerate(free) if until <= start[note]), len(free))
            free[layer : layer + 1] = [int(stop[note])]
            layers[note] = layer
    return layers
