"""Piano performance <-> token ids, in two ways: REMI on a grid of sixteenths of a second, and expressive timing.

Both decoders are total: whatever ids a model writes, they are a performance; ids that mean nothing where
they stand are skipped and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from seqpope.data import shards
from seqpope.domains.music.piano.codec import HIGHEST_KEY, LOWEST_KEY, Performance, next_onset
from seqpope.errors import SeqpopeError

KEYS = HIGHEST_KEY - LOWEST_KEY + 1
PARTS = ("time", "pitch", "velocity", "duration")  # of a note, that tokens tell


class TokenError(SeqpopeError):
    """A performance that the vocabulary cannot hold, ids that are none, or a MidiTok with another vocabulary."""


def _check_keys(performance: Performance) -> None:
    pitch = performance.pitch
    wrong = np.flatnonzero((pitch < LOWEST_KEY) | (pitch > HIGHEST_KEY))
    if len(wrong):
        where = f"performance {performance.name!r}, at {performance.onset[wrong[0]]:.2f} s"
        raise TokenError(
            f"{where}: pitch {pitch[wrong[0]]} is "
            f"outside a piano's {LOWEST_KEY}..{HIGHEST_KEY} ({len(wrong)} such notes): transpose or remove them"
        )


def _checked_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Ids as (length,) int64."""
    given = np.asarray(ids)
    if given.size == 0:
        return np.zeros(0, np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise TokenError(f"token ids must be a list of integers, they are {given.dtype} of shape {given.shape}")
    return given.astype(np.int64)


def _round(values: np.ndarray) -> np.ndarray:
    """Nearest integer, halves up, as symusic rounds when MidiTok puts a score on its grid."""
    return np.floor(values + 0.5).astype(np.int64)


# ---------------------------------------------------------------- REMI

STEPS_PER_SECOND = 16  # 8 positions a quarter at 120 quarters a minute: a grid of 62.5 ms
STEPS_PER_BAR = 32
LONGEST_STEPS = 96  # 12 quarters: 6 seconds

# Ids, as MidiTok lays them out; `vocabulary_sha256` holds it to that.
PADDING_ID, BAR_ID = 0, 4
PITCH_IDS, VELOCITY_IDS, DURATION_IDS, POSITION_IDS = (5, 92), (93, 124), (125, 188), (189, 220)
CHORD_IDS, TEMPO_ID = (282, 295), 312  # Tempo_120.0

# MidiTok's chord qualities in the order of their ids: semitones above the chord's first note.
CHORDS = (
    *((0, 3, 7), (0, 4, 7), (0, 3, 6), (0, 4, 8), (0, 2, 7), (0, 5, 7)),
    *((0, 4, 7, 10), (0, 3, 7, 10), (0, 4, 7, 11), (0, 3, 6, 10), (0, 3, 6, 9), (0, 4, 8, 11)),
    *((0, 4, 7, 10, 14), (0, 4, 7, 10, 13)),
)
CHORD_NOTES = 10  # MidiTok looks at so many notes at a time
HALF_BEAT = 4  # steps

# The order of notes within a position, which is the order they were struck in, is part of what the tokens say.
# Files are read sorted by time, pitch and duration, so a note out of that order is decoded a tick (0.52 ms) after
# the one before. No more ticks than still round to the same position.
TICKS_PER_STEP = 120
MOST_TICKS = 58


def miditok_configuration() -> Any:
    """MidiTok's configuration with exactly the paper's 328 entries (imports MidiTok).

    Tempos are 40 to 195 in steps of 5, so that 120 is among them and decoded music does not drift. The pedal,
    rests, programs and time signatures are off.
    """
    from miditok import TokenizerConfig

    return TokenizerConfig(
        pitch_range=(LOWEST_KEY, HIGHEST_KEY),
        drums_pitch_range=(27, 87),
        beat_res={(0, 4): 8, (4, 12): 4},
        num_velocities=32,
        special_tokens=["PAD", "BOS", "EOS", "MASK"],
        use_chords=True,
        use_rests=False,
        use_tempos=True,
        use_time_signatures=False,
        use_programs=False,
        num_tempos=32,
        tempo_range=(40, 195),
    )


def _nearest(values: np.ndarray, size: int) -> np.ndarray:
    """For 0..size-1 the index of the nearest of `values`, the higher of two as near (MidiTok's rule)."""
    distance = np.abs(np.arange(size)[:, None] - values)
    return len(values) - 1 - np.argmin(distance[:, ::-1], axis=1)


VELOCITIES = np.linspace(0, 127, 33).astype(np.int64)[1:]
DURATIONS = np.concatenate([np.arange(1, 32), np.arange(32, 96, 2), [LONGEST_STEPS]])
VELOCITY_OF = _nearest(VELOCITIES, 128) + VELOCITY_IDS[0]
DURATION_OF = _nearest(DURATIONS, LONGEST_STEPS + 1) + DURATION_IDS[0]


class RemiTokenizer:
    """MidiTok's REMI with the paper's 328 tokens: bar, position, then pitch, velocity and duration of each note.

    Real time at 120 quarters a minute: a position is 62.5 ms, a bar 2 s. Durations are how long keys are
    held, to 62.5 ms (125 ms from 2 s on) and 6 s at most. The pedal is lost: in MAESTRO more than half of the
    notes end under it and are decoded shorter than they sound. 97 of the entries cannot occur (drums, other
    tempos, special tokens): they are the paper's.

    `encode` does in NumPy what MidiTok does in Python, thirty times as fast; `encode_with_miditok` is the
    reference that tests hold it to. Imports MidiTok.

    Raises:
        TokenError: the installed MidiTok builds another vocabulary from the configuration.
    """

    vocabulary_size = 328
    vocabulary_sha256 = "d93b1ca2d1e46e190ac71d9ec4e98608621c9eed3763cc433004f5a5da1f0df6"
    padding_id = PADDING_ID
    alignment = 1
    steps_per_second = STEPS_PER_SECOND
    shift_range = PITCH_IDS
    kinds: ClassVar[dict[str, tuple[tuple[int, int], ...]]] = {
        "time": ((BAR_ID, BAR_ID), POSITION_IDS),
        "pitch": (PITCH_IDS,),
        "velocity": (VELOCITY_IDS,),
        "duration": (DURATION_IDS,),
    }

    def __init__(self) -> None:
        import miditok

        self.units: dict[str, float] = {}  # notes and seconds are counted for each performance
        self._miditok = miditok.REMI(miditok_configuration())
        entries = self._miditok.vocab
        self.vocabulary = sorted(entries, key=entries.get)
        found = hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()
        if found != self.vocabulary_sha256:
            raise TokenError(
                f"miditok {version('miditok')} builds a REMI vocabulary of {len(self.vocabulary)} entries "
                f"(SHA-256 {found[:12]}), expected {self.vocabulary_size} ({self.vocabulary_sha256[:12]}): "
                "ids would mean something else; install miditok 3.1.0"
            )

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a performance becomes, as plain data."""
        return {
            "name": "REMI",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "vocabulary_sha256": self.vocabulary_sha256,
            "padding_id": PADDING_ID,
            "steps_per_second": STEPS_PER_SECOND,
            "pitch_ids": list(PITCH_IDS),
            "pedal": "dropped",
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(self, performance: Performance) -> np.ndarray:
        """Token ids of a performance, (length,) uint16: MidiTok's exactly.

        Raises:
            TokenError: a pitch lies outside the piano's 21..108.
        """
        _check_keys(performance)
        count = len(performance)
        step = _round(performance.onset * STEPS_PER_SECOND)
        held = np.clip(_round(performance.duration * STEPS_PER_SECOND), 1, LONGEST_STEPS)
        duration = DURATION_OF[held]
        pitch = performance.pitch.astype(np.int64) - LOWEST_KEY + PITCH_IDS[0]
        # The tempo's own position stands for notes at 0.
        previous = np.concatenate([[0], step[:-1]])[:count]
        new = step != previous
        chord_at, chord_id = _chords(step, DURATIONS[duration - DURATION_IDS[0]], pitch)
        chords = np.bincount(chord_at, minlength=count)
        bars = step // STEPS_PER_BAR - previous // STEPS_PER_BAR
        head = np.array([BAR_ID, POSITION_IDS[0], TEMPO_ID])
        place = len(head) + np.cumsum(bars + new + chords) + 3 * np.arange(count)  # of each note's pitch
        ids = np.full(len(head) + 3 * count + int((bars + new + chords).sum()), BAR_ID, np.uint16)
        ids[: len(head)] = head
        ids[place] = pitch
        ids[place + 1] = VELOCITY_OF[performance.velocity]
        ids[place + 2] = duration
        ids[(place - chords - 1)[new]] = step[new] % STEPS_PER_BAR + POSITION_IDS[0]
        if len(chord_at):
            rank = np.arange(len(chord_at)) - np.searchsorted(chord_at, chord_at)
            ids[place[chord_at] - chords[chord_at] + rank] = chord_id
        return ids

    def encode_with_miditok(self, performance: Performance) -> np.ndarray:
        """Token ids as MidiTok itself makes them, (length,) uint16: the slow reference of `encode`.

        Raises:
            TokenError: a pitch lies outside the piano's 21..108.
        """
        from symusic import Note, Score, Tempo, Track

        _check_keys(performance)
        # Finer than any file, and dividing MAESTRO's 1/768 and 1/960 s, so that nothing is rounded twice.
        per_second = 3840
        score: Any = Score(per_second // 2)
        score.tempos.append(Tempo(0, 120.0))
        track: Any = Track(program=0)
        track.notes = Note.from_numpy(
            _round(performance.onset * per_second).astype(np.int32),
            _round(performance.duration * per_second).astype(np.int32),
            performance.pitch.astype(np.int8),
            performance.velocity.astype(np.int8),
        )
        score.tracks.append(track)
        return np.array(self._miditok.encode(score)[0].ids, np.uint16)

    def decode(self, ids: Sequence[int] | np.ndarray, name: str = "") -> Performance:
        """The performance that token ids (length,) say; what has no meaning where it stands is skipped.

        A note is a pitch, a velocity and a duration in a row; a position before any bar is in the first one,
        and a note after a bar without a position stands at its start. Chords and the tempo of 120 repeat what
        the notes say; special tokens, drums and other tempos count as skipped.

        Raises:
            TokenError: ids are no integers.
        """
        given = _checked_ids(ids)
        timed, step, at = self._placed(given)
        step = step[at]
        late = np.minimum(_ticks_late(step, given[at + 2], given[at]), MOST_TICKS)
        meant = timed | _among(given, CHORD_IDS) | (given == TEMPO_ID)
        return Performance(
            (step * TICKS_PER_STEP + late) / (TICKS_PER_STEP * STEPS_PER_SECOND),
            DURATIONS[given[at + 2] - DURATION_IDS[0]] / STEPS_PER_SECOND,
            given[at] - PITCH_IDS[0] + LOWEST_KEY,
            VELOCITIES[given[at + 1] - VELOCITY_IDS[0]],
            name=name,
            skipped=len(given) - int(meant.sum()) - 3 * len(at),
        )

    def _placed(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which ids (L,) are bars or positions, at which step each is, and where notes begin, in their order."""
        bar, position = given == BAR_ID, _among(given, POSITION_IDS)
        note = np.zeros(len(given), bool)
        note[:-2] = (
            _among(given[:-2], PITCH_IDS) & _among(given[1:-1], VELOCITY_IDS) & _among(given[2:], DURATION_IDS)
        )
        timed = np.flatnonzero(bar | position | note)
        first_bar = 1 if len(timed) and bar[timed[0]] else 0
        marks = np.maximum.accumulate(np.where(bar | position, np.arange(len(given)), -1))
        inside = np.where((marks >= 0) & position[marks], given[marks] - POSITION_IDS[0], 0)
        step = (np.cumsum(bar) - first_bar) * STEPS_PER_BAR + inside
        at = np.flatnonzero(note)
        return bar | position, step, at[np.argsort(step[at], kind="stable")]  # positions may go back

    def reached(self, ids: Sequence[int] | np.ndarray) -> float:
        """The second that token ids (length,) have come to: a note behind them begins there or later."""
        step = self._placed(_checked_ids(ids))[1]
        return max(0, int(step[-1])) / STEPS_PER_SECOND if len(step) else 0.0

    def owners(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which note of `decode` each token tells of, -1 if of none, and which of its PARTS, both (length,) int64.

        Pitch, velocity and duration are the note's own; all that stands between it and the note before (bars,
        positions, chords, the tempo) is its time. What comes behind the last note is of none.
        """
        given = _checked_ids(ids)
        at = self._placed(given)[2]
        rank = np.append(np.argsort(at), -1)  # of the notes in the order of their tokens; then none
        at = np.sort(at)
        note, part = rank[np.searchsorted(at, np.arange(len(given)))], np.zeros(len(given), np.int64)
        for place in range(3):
            note[at + place], part[at + place] = rank[:-1], place + 1
        return note, part

    def numbers(self, performance: Performance) -> np.ndarray:
        """Each note's number among those that `encode` writes, (N,): all, as they come."""
        return np.arange(len(performance))


def _among(values: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return (values >= span[0]) & (values <= span[1])


def _ticks_late(step: np.ndarray, held: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """How many notes of the same step, up to each one (N,), do not rise in pitch, then duration."""
    sort_key = pitch * 1024 + held
    falls = np.diff(step, prepend=-1) == 0
    falls[1:] &= np.diff(sort_key) <= 0
    total = np.cumsum(falls)
    return total - total[np.searchsorted(step, step)]


def _chords(step: np.ndarray, held: np.ndarray, pitch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chords as MidiTok finds them: index of the first note at the chord's step, rising, and the chord's id.

    It walks through the notes: those within one step of the current one, ten at most, are a group, which is
    passed over if their ends differ by more than half a beat. Of short notes only those of the same step
    count. A group of three to five notes that rise like a known chord, in the order given, is one.
    """
    count = len(step)
    if count < 3:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    index = np.arange(count)
    end = step + held
    near = np.minimum(np.searchsorted(step, step + 1, side="right") - index, CHORD_NOTES)
    same = np.minimum(np.searchsorted(step, step, side="right") - index, near)
    mixed = np.zeros(count, bool)
    for later in range(1, CHORD_NOTES):
        mixed[:-later] |= (near[:-later] > later) & (np.abs(end[later:] - end[:-later]) > HALF_BEAT)
    size = np.where(held <= HALF_BEAT, same, near)
    quality = np.full(count, -1)
    for number, chord in enumerate(CHORDS):
        if (length := len(chord)) <= count:
            fits = (size == length)[: count - length + 1]
            for later, interval in enumerate(chord):
                fits = fits & (pitch[later : count - length + 1 + later] - pitch[: count - length + 1] == interval)
            quality[: count - length + 1][fits] = number
    advance = np.where(mixed, near, size).tolist()
    # -2: the group is passed over, and leaves no trace
    last = np.where(mixed, -2, step[index + size - 1]).tolist()
    quality[mixed] = -1
    steps, qualities = step.tolist(), quality.tolist()
    found, note, previous = [], 0, -1
    while note < count:
        if steps[note] == previous:
            note += 1
            continue
        if qualities[note] >= 0:
            found.append(note)
        if last[note] != -2:
            previous = last[note]
        note += advance[note]
    at = np.array(found, np.int64)
    return np.searchsorted(step, step[at]), quality[at] + CHORD_IDS[0]


# ---------------------------------------------------------------- expressive timing

SHIFTS_PER_SECOND = 100
MOST_SHIFT = 100  # one token reaches a second
VELOCITY_BINS, VELOCITY_WIDTH = 32, 4
ON_ID, OFF_ID, SHIFT_ID, LEVEL_ID = 1, 1 + KEYS, 1 + 2 * KEYS, 1 + 2 * KEYS + MOST_SHIFT


class PerformanceTokenizer:
    """Events as in Oore et al. 2018 and the MAESTRO papers: note-on, note-off, time shift, velocity; 309 tokens.

    Time shifts are 10 ms to 1 s; a velocity (32 bins) stands before a note-on where it changes. Notes are
    encoded as long as they sound: the pedal extends them until it goes up or the key is struck again, as in
    those papers, so that decoded music sounds as played without a pedal (the pedal itself, and what it does
    to other strings, is lost). Note-offs rather than durations: a sounding note lasts up to half a minute, which
    would take several duration tokens, and figures in this vocabulary are the published ones.

    At one time note-offs come first, and each kind rises in pitch: one performance, one sequence.
    """

    vocabulary_size = LEVEL_ID + VELOCITY_BINS
    padding_id = PADDING_ID
    alignment = 1
    steps_per_second = SHIFTS_PER_SECOND
    # Every document has a note-off for each note-on, so that what keeps its note-ons above the lowest and its
    # note-offs below the highest id keeps both kinds apart.
    shift_range = (ON_ID, SHIFT_ID - 1)
    kinds: ClassVar[dict[str, tuple[tuple[int, int], ...]]] = {
        "time": ((SHIFT_ID, LEVEL_ID - 1),),
        "note-on": ((ON_ID, OFF_ID - 1),),
        "note-off": ((OFF_ID, SHIFT_ID - 1),),
        "velocity": ((LEVEL_ID, LEVEL_ID + VELOCITY_BINS - 1),),
    }

    def __init__(self) -> None:
        self.units: dict[str, float] = {}  # notes and seconds are counted for each performance

    @property
    def specification(self) -> dict[str, Any]:
        """All that decides which ids a performance becomes, as plain data."""
        return {
            "name": "performance",
            "version": 1,
            "vocabulary_size": self.vocabulary_size,
            "padding_id": PADDING_ID,
            "keys": [LOWEST_KEY, HIGHEST_KEY],
            "ids": {"note-on": ON_ID, "note-off": OFF_ID, "time shift": SHIFT_ID, "velocity": LEVEL_ID},
            "shifts_per_second": SHIFTS_PER_SECOND,
            "longest_shift": MOST_SHIFT,
            "velocity_bins": VELOCITY_BINS,
            "pedal": "extends notes",
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification."""
        return shards.fingerprint(self.specification)

    def encode(self, performance: Performance) -> np.ndarray:
        """Token ids of a performance, (length,) uint16.

        Of notes of one key within the same 10 ms only the last is kept.

        Raises:
            TokenError: a pitch lies outside the piano's 21..108.
        """
        _check_keys(performance)
        kept, key, on, off = self._timed(performance)
        level = (performance.velocity[kept].astype(np.int64) - 1) // VELOCITY_WIDTH
        time = np.concatenate([off, on])
        event = np.concatenate([key + OFF_ID, key + ON_ID])
        starts = np.repeat([False, True], len(key))
        order = np.lexsort((event, starts, time))
        time, event, starts = time[order], event[order], starts[order]
        levels = np.concatenate([np.zeros(len(key), np.int64), level])[order]
        changed = np.zeros(len(event), bool)
        struck = np.flatnonzero(starts)
        changed[struck] = np.diff(levels[struck], prepend=-1) != 0
        wait = np.diff(time, prepend=0)
        shifts = -(-wait // MOST_SHIFT)
        place = np.cumsum(shifts + changed + 1) - 1  # of each event
        ids = np.full(int(place[-1]) + 1 if len(place) else 0, SHIFT_ID + MOST_SHIFT - 1, np.uint16)
        ids[place] = event
        ids[(place - 1)[changed]] = levels[changed] + LEVEL_ID
        waits = wait > 0
        ids[(place - changed - 1)[waits]] = (wait[waits] - 1) % MOST_SHIFT + SHIFT_ID
        return ids

    def _timed(self, performance: Performance) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which notes are kept, (N,) bool; of those the key, and when it is struck and released, in shifts."""
        sounding = performance.sounding()
        key = sounding.pitch.astype(np.int64) - LOWEST_KEY
        on = _round(sounding.onset * SHIFTS_PER_SECOND)
        again = next_onset(on, key)
        off = np.minimum(np.maximum(_round(sounding.end * SHIFTS_PER_SECOND), on + 1), again)
        kept = off > on
        return kept, key[kept], on[kept], off[kept].astype(np.int64)

    def numbers(self, performance: Performance) -> np.ndarray:
        """Each note's number among those that `encode` writes, (N,); -1 of one that is dropped.

        Notes of one time are written from the lowest on.
        """
        kept, key, on, _ = self._timed(performance)
        numbers = np.full(len(performance), -1)
        numbers[np.flatnonzero(kept)[np.lexsort((key, on))]] = np.arange(len(key))
        return numbers

    def decode(self, ids: Sequence[int] | np.ndarray, name: str = "") -> Performance:
        """The performance that token ids (length,) say; what has no meaning where it stands is skipped.

        Striking a sounding key again ends its note; what sounds at the end ends there, one shift long at
        least. A note-off of a silent key, padding and unknown ids count as skipped. Notes before any velocity
        get a middle one.

        Raises:
            TokenError: ids are no integers.
        """
        given = _checked_ids(ids)
        shift = (given >= SHIFT_ID) & (given < LEVEL_ID)
        time = np.cumsum(np.where(shift, given - SHIFT_ID + 1, 0))
        leveled = (given >= LEVEL_ID) & (given < self.vocabulary_size)
        marks = np.maximum.accumulate(np.where(leveled, np.arange(len(given)), -1))
        at, key, starts, linked = self._linked(given)
        until = np.full(len(at), time[-1] if len(time) else 0)
        until[:-1][linked[:-1]] = time[at[1:][linked[:-1]]]
        stray = ~starts
        stray[1:] &= ~(linked[:-1] & starts[:-1])
        note, end = at[starts], until[starts]
        order = np.argsort(note)
        note, end = note[order], end[order]
        mark = marks[note]
        level = np.where(mark >= 0, given[mark] - LEVEL_ID, VELOCITY_BINS // 2)
        begin = time[note]
        return Performance(
            begin / SHIFTS_PER_SECOND,
            np.maximum(end - begin, 1) / SHIFTS_PER_SECOND,
            key[starts][order] + LOWEST_KEY,
            level * VELOCITY_WIDTH + 2,
            name=name,
            skipped=len(given) - int(shift.sum() + leveled.sum()) - len(at) + int(stray.sum()),
        )

    def _linked(self, given: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Note-ons and note-offs among ids, key by key: where they are, their key, which are note-ons, and whether
        the one after each is of the same key."""
        at = np.flatnonzero((given >= ON_ID) & (given < SHIFT_ID))
        at = at[np.argsort((given[at] - ON_ID) % KEYS, kind="stable")]
        key, starts = (given[at] - ON_ID) % KEYS, given[at] < OFF_ID
        linked = np.zeros(len(at), bool)
        linked[:-1] = key[1:] == key[:-1]
        return at, key, starts, linked

    def reached(self, ids: Sequence[int] | np.ndarray) -> float:
        """The second that token ids (length,) have come to: a note behind them begins there or later."""
        given = _checked_ids(ids)
        shifts = given[(given >= SHIFT_ID) & (given < LEVEL_ID)]
        return float((shifts - SHIFT_ID + 1).sum()) / SHIFTS_PER_SECOND

    def owners(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which note of `decode` each token tells of, -1 if of none, and which of its PARTS, both (length,) int64.

        A note-on is its note's pitch, the velocity before it its velocity, a note-off the duration of the note
        that it ends. Time shifts go with the event they lead to: with a note-on they are its note's time, with a
        note-off its note's duration. Shifts and velocities that no event follows, a note-off of a silent key, and
        what has no meaning are of none.
        """
        given = _checked_ids(ids)
        count = len(given)
        at, _, starts, linked = self._linked(given)
        of = np.full(count + 1, -1)  # the note of each event; of none behind the last
        of[np.sort(at[starts])] = np.arange(int(starts.sum()))
        ends = np.flatnonzero(linked[:-1] & starts[:-1] & ~starts[1:])
        of[at[ends + 1]] = of[at[ends]]
        event = np.append(np.zeros(count, bool), True)
        event[at] = True
        struck = np.append((given >= ON_ID) & (given < OFF_ID), True)
        # The next event, and the next note-on, from each token on.
        following, striking = (
            np.minimum.accumulate(np.where(mask, np.arange(count + 1), count)[::-1])[::-1]
            for mask in (event, struck)
        )
        shift = (given >= SHIFT_ID) & (given < LEVEL_ID)
        leveled = (given >= LEVEL_ID) & (given < self.vocabulary_size)
        place = np.arange(count)
        note = np.where(shift, of[following[:-1]], np.where(leveled, of[striking[:-1]], of[place]))
        part = np.where(shift, np.where(struck[following[:-1]], 0, 3), np.where(leveled, 2, 3))
        part[struck[:-1]] = 1
        return note, part
