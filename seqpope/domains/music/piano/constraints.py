"""Rules for sampled performances, as masks over the next token that leave a token in every state.

Both tokenizations have a grammar, which is what their encoders write: what is drawn decodes with nothing
skipped. On top of it keys, polyphony and length may be limited. Times are seconds from the first token's on.

Why none is ever stuck. REMI: `Bar` may come wherever no note is begun, and a position only where fewer notes
than the limit will sound: what sounds there is known from durations, and only falls. Performance tokens: time
may pass after every event; after a time shift that does not reach a whole second something must happen, and
something can: a key that sounds may be released, and if none sounds, every key of the range may be struck. When
no more tokens are left than it takes to end, nothing but the end is allowed: a model that lets no time pass has
it pass then.

Prompts need not keep to the rules. A note that a prompt has begun is finished whatever its key. Where a prompt
has more notes sounding than the limit, none is struck until fewer sound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from seqpope.domains.music.piano.codec import HIGHEST_KEY, LOWEST_KEY
from seqpope.domains.music.piano.tokenizer import (
    BAR_ID,
    CHORD_IDS,
    CHORDS,
    DURATION_IDS,
    DURATIONS,
    KEYS,
    LEVEL_ID,
    LONGEST_STEPS,
    MOST_SHIFT,
    OFF_ID,
    ON_ID,
    PITCH_IDS,
    POSITION_IDS,
    SHIFT_ID,
    SHIFTS_PER_SECOND,
    STEPS_PER_BAR,
    STEPS_PER_SECOND,
    TEMPO_ID,
    VELOCITY_BINS,
    VELOCITY_IDS,
    PerformanceTokenizer,
    RemiTokenizer,
)
from seqpope.errors import SeqpopeError

NEVER = 1 << 40  # a time that is not reached, in steps


@dataclass(frozen=True, eq=False)
class PianoConstraint:
    """What both tokenizations may be held to. See `Constraint` in seqpope.sampling for the five functions.

    Args:
        keys: lowest and highest MIDI pitch that is struck.
        polyphony: a note is struck only where fewer sound, by the durations or note-offs that the tokens say;
            None sets no limit.
        starts: nothing happens before so many seconds; 0 leaves that to the prompt.
        ends: the music reaches so many seconds and is done; no note is struck then and none sounds on. There is
            a note before, the prompt's or a drawn one. None draws on until so few tokens are left that another
            could not be finished.
    """

    keys: tuple[int, int] = (LOWEST_KEY, HIGHEST_KEY)
    polyphony: int | None = None
    starts: float = 0.0
    ends: float | None = None

    STEPS_PER_SECOND: ClassVar[int] = 1000  # of the tokens' grid

    def __post_init__(self) -> None:
        low, high = self.keys
        if not LOWEST_KEY <= low <= high <= HIGHEST_KEY:
            raise SeqpopeError(
                f"the keys {low}-{high} must lie in a piano's {LOWEST_KEY}-{HIGHEST_KEY}, the lower one first"
            )
        if self.polyphony is not None and self.polyphony < 1:
            raise SeqpopeError(f"the polyphony must be at least 1, it is {self.polyphony}")
        if not 0 <= self.starts < math.inf:
            raise SeqpopeError(f"the music must start at 0 seconds or later, not at {self.starts}")
        if self.ends is not None and not (math.isfinite(self.ends) and self.first_step < self.last_step < NEVER):
            raise SeqpopeError(
                f"the music must end at least {1 / self.STEPS_PER_SECOND:g} s after {self.starts:g} s, where "
                f"it starts, not at {self.ends:g}"
            )

    @property
    def first_step(self) -> int:
        """The first step of the tokens' grid on which something may happen."""
        return math.ceil(round(self.starts * self.STEPS_PER_SECOND, 6))

    @property
    def last_step(self) -> int:
        """The step at which the music is over."""
        return NEVER if self.ends is None else math.floor(round(self.ends * self.STEPS_PER_SECOND, 6))

    def _share(self, step: np.ndarray) -> np.ndarray:
        """How much of the music is there when a step is reached, from 0 to 1; there is an end."""
        return np.clip((step - self.first_step) / (self.last_step - self.first_step), 0.0, 1.0)

    def _check_length(self, reached: int, needed: int, count: int) -> None:
        """Raise SeqpopeError if a prompt's last step is not before the end, or the end needs more tokens."""
        if reached >= self.last_step:
            raise SeqpopeError(
                f"the prompt reaches {reached / self.STEPS_PER_SECOND:g} s and the music is to end at "
                f"{self.ends:g} s: ask for a later end or shorten the prompt"
            )
        if needed > count:
            raise SeqpopeError(
                f"{count} tokens are too few: to end, the music needs {needed}; draw more, or end it sooner"
            )


def _checked(prompt: np.ndarray, size: int) -> np.ndarray:
    """A prompt's ids as (L,) int64."""
    ids = np.asarray(prompt).astype(np.int64).reshape(-1)
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        raise SeqpopeError(f"the prompt has ids {ids.min()} to {ids.max()}: expected 0 to {size - 1}")
    return ids


# ---------------------------------------------------------------- REMI

# What the last token was. The first three are the head of a performance: nothing, Bar, and Bar with position 0.
START, HEAD_BAR, HEAD_POSITION, BAR, POSITION, TEMPO, CHORD, PITCH, VELOCITY, DURATION = range(10)
# Tokens that a phase needs until no note, and no head, is left unfinished.
PENDING = np.array([3, 2, 1, 0, 3, 0, 3, 2, 1, 0])
MOST_OF_A_NOTE = 6  # position, chord, pitch, velocity, duration, and one to spare
FIRST_NOTE = 4  # the same without a chord
AHEAD = STEPS_PER_BAR + LONGEST_STEPS  # steps of which it is known what will sound, from the bar line on


def _remi_phases() -> np.ndarray:
    """The phase that each token leads to, (V,); tokens that are never drawn leave a finished note behind."""
    phases = np.full(RemiTokenizer.vocabulary_size, DURATION)
    phases[BAR_ID], phases[TEMPO_ID] = BAR, TEMPO
    spans = ((POSITION_IDS, POSITION), (CHORD_IDS, CHORD), (PITCH_IDS, PITCH), (VELOCITY_IDS, VELOCITY))
    for (first, last), phase in spans:
        phases[first : last + 1] = phase
    return phases


REMI_PHASES = _remi_phases()
FREE = np.isin(np.arange(10), (BAR, TEMPO, DURATION))  # phases in which time may pass
STRIKING = np.isin(np.arange(10), (TEMPO, DURATION))  # or a note come
OPENED = np.isin(np.arange(10), (POSITION, CHORD))  # in which one must
BEGUN = np.isin(np.arange(10), (CHORD, PITCH, VELOCITY))
PITCHES, CHORD_SLICE, VELOCITY_SLICE, DURATION_SLICE, POSITIONS = (
    slice(first, last + 1) for first, last in (PITCH_IDS, CHORD_IDS, VELOCITY_IDS, DURATION_IDS, POSITION_IDS)
)
INSIDE, PLACES = np.arange(STEPS_PER_BAR), np.arange(AHEAD)


class RemiState(NamedTuple):
    """A batch of performances in the making; `left` tokens may be drawn, the rest is (B, ...)."""

    phase: np.ndarray
    bar: np.ndarray  # its number, from 0
    position: np.ndarray  # in it; -1 after a bar line
    struck: np.ndarray  # (B, 88) bool, keys struck at this position
    sounding: np.ndarray  # (B, AHEAD) notes that sound at steps from the bar line on; (B, 0) without a limit
    silent: np.ndarray  # there is no note, and there must be one
    left: int


@dataclass(frozen=True, eq=False)
class RemiConstraint(PianoConstraint):
    """REMI as `RemiTokenizer.encode` writes it, within limits (`PianoConstraint`).

    A performance begins with Bar, Position_0 and the tempo of 120. Positions rise inside a bar and have a note,
    a note is pitch, velocity and duration, and one chord may stand before the first. A key is struck once at a
    position (1 in 10,000 notes of MAESTRO is struck again within its 62.5 ms). A chord is allowed where the
    limits leave room for its notes, whether they come or not. The bar or position that reaches the end is drawn
    and has nothing after it.
    """

    STEPS_PER_SECOND: ClassVar[int] = STEPS_PER_SECOND

    def begin(self, prompts: Sequence[np.ndarray], count: int) -> RemiState:
        """See `Constraint`."""
        rows = [self._read(_checked(prompt, RemiTokenizer.vocabulary_size)) for prompt in prompts]
        state = RemiState._make([*(np.stack(parts) for parts in zip(*rows, strict=True)), count])
        needed = self._needed(state) + PENDING[state.phase]
        self._check_length(int(self._step(state).max()), int(needed.max()), count)
        return state

    def _read(self, ids: np.ndarray) -> tuple[Any, ...]:
        """Phase, bar, position, struck keys and what sounds after a prompt, which is read as decoding does."""
        struck, sounding = np.zeros(KEYS, bool), np.zeros(0 if self.polyphony is None else AHEAD, np.int16)
        head = (BAR_ID, POSITION_IDS[0], TEMPO_ID)
        if len(ids) < len(head) and tuple(ids) == head[: len(ids)]:
            return (
                START + len(ids),
                min(0, len(ids) - 1),
                max(-1, len(ids) - 2),
                struck,
                sounding,
                self.ends is not None,
            )
        phases = REMI_PHASES[ids]
        phase = phases[-1]
        if phase == VELOCITY and (len(ids) < 2 or phases[-2] != PITCH):
            phase = DURATION
        bars, marks = ids == BAR_ID, (ids == BAR_ID) | (phases == POSITION)
        notes = np.flatnonzero(
            (phases[:-2] == PITCH) & (phases[1:-1] == VELOCITY) & (ids[2:] >= DURATION_IDS[0])
            & (ids[2:] <= DURATION_IDS[1])
        )  # fmt: skip
        timed = np.union1d(np.flatnonzero(marks), notes)
        count = np.cumsum(bars) - int(len(timed) > 0 and bars[timed[0]])
        latest = np.maximum.accumulate(np.where(marks, np.arange(len(ids)), -1))
        position = np.where((latest >= 0) & (phases[latest] == POSITION), ids[latest] - POSITION_IDS[0], -1)
        step = (count * STEPS_PER_BAR + np.maximum(position, 0))[notes]
        struck[ids[(phases == PITCH) & (latest == latest[-1])] - PITCH_IDS[0]] = True
        if len(sounding):
            begin = step - count[-1] * STEPS_PER_BAR
            end = begin + DURATIONS[ids[notes + 2] - DURATION_IDS[0]]
            for first, last in zip(begin[end > 0].tolist(), end[end > 0].tolist(), strict=True):
                sounding[max(0, first) : last] += 1
        silent = self.ends is not None and len(notes) == 0 and phase not in (PITCH, VELOCITY)
        return phase, count[-1], position[-1], struck, sounding, silent

    def _step(self, state: RemiState) -> np.ndarray:
        return state.bar * STEPS_PER_BAR + np.maximum(state.position, 0)

    def _needed(self, state: RemiState) -> np.ndarray:
        """Bar tokens until the end is reached and those of a note where there must be one, (B,)."""
        if self.ends is None:
            return np.zeros(len(state.bar), np.int64)
        return np.maximum(-(-self.last_step // STEPS_PER_BAR) - state.bar, 0) + FIRST_NOTE * state.silent

    def _hurried(self, state: RemiState) -> np.ndarray:
        """(B,) bool: rows that must not begin another note, or too few tokens would be left to end."""
        return state.left <= self._needed(state) + MOST_OF_A_NOTE

    @functools.cached_property
    def _grammar(self) -> np.ndarray:
        """What may follow a phase, (10, V) bool, but for pitches and positions."""
        table = np.zeros((10, RemiTokenizer.vocabulary_size), bool)
        table[[START, BAR, TEMPO, DURATION], BAR_ID] = True
        table[HEAD_BAR, POSITION_IDS[0]] = True
        table[HEAD_POSITION, TEMPO_ID] = True
        table[PITCH, VELOCITY_SLICE] = True
        table[VELOCITY, DURATION_SLICE] = True
        low, high = self.keys
        fits = [
            high - low >= chord[-1] and (self.polyphony is None or self.polyphony >= len(chord))
            for chord in CHORDS
        ]
        table[POSITION, CHORD_SLICE] = table[TEMPO, CHORD_SLICE] = fits
        return table

    @functools.cached_property
    def _range(self) -> np.ndarray:
        keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1)
        return (keys >= self.keys[0]) & (keys <= self.keys[1])

    def allowed(self, state: RemiState) -> np.ndarray:
        """(B, V) bool."""
        phase, position = state.phase, state.position
        allowed = self._grammar[phase]
        step = state.bar * STEPS_PER_BAR + np.maximum(position, 0)
        opened = OPENED[phase]
        keys = self._range > state.struck
        here = (step >= self.first_step) & keys.any(1)
        if self.polyphony is not None:
            here &= state.sounding[np.arange(len(phase)), np.maximum(position, 0)] < self.polyphony
        hurried = self._hurried(state)
        allowed[:, CHORD_SLICE] &= (here > hurried)[:, None]
        hurried &= ~state.silent
        strike = here & (opened | (STRIKING[phase] > hurried))
        allowed[:, PITCHES] = keys & strike[:, None]
        # Only a prompt ends at a position where nothing may be struck: time passes then.
        passing = FREE[phase] | (opened > here)
        allowed[:, BAR_ID] |= passing
        moving = passing > hurried
        base = (state.bar * STEPS_PER_BAR)[:, None]
        if state.silent.any():
            allowed[:, BAR_ID] &= ~state.silent | (base[:, 0] + STEPS_PER_BAR < self.last_step)
        if moving.any():
            possible = self.first_step - base <= INSIDE
            if self.polyphony is not None:
                possible &= state.sounding[:, :STEPS_PER_BAR] < self.polyphony
            if self.ends is not None:
                over = self.last_step - base <= INSIDE
                possible = np.where(state.silent[:, None], possible & ~over, possible | over)
            allowed[:, POSITIONS] |= possible & (position[:, None] < INSIDE) & moving[:, None]
        if self.ends is not None:
            # Notes end with the music, the shortest whatever it does.
            allowed[:, DURATION_SLICE] &= np.maximum(self.last_step - step, 1)[:, None] >= DURATIONS
        return allowed

    def done(self, state: RemiState) -> np.ndarray:
        """(B,) bool."""
        if self.ends is None:
            return self._hurried(state) & (PENDING[state.phase] == 0)
        return (self._step(state) >= self.last_step) > BEGUN[state.phase]

    def share(self, state: RemiState) -> np.ndarray:
        """(B,) from 0 to 1, how much of the music is there; `ends` is given."""
        return self._share(self._step(state))

    def advance(self, state: RemiState, tokens: np.ndarray) -> RemiState:
        """One more token a row; rows that are done stay as they are."""
        going = ~self.done(state)
        phase = np.where(state.phase < HEAD_POSITION, state.phase + 1, REMI_PHASES[tokens])
        phase = np.where(going, phase, state.phase)
        line = (tokens == BAR_ID) & going
        at = ((phase == POSITION) | (phase == HEAD_POSITION)) & going
        position = np.where(at, tokens - POSITION_IDS[0], state.position)
        position[line] = -1
        struck, sounding = state.struck > (line | at)[:, None], state.sounding
        rows = np.flatnonzero((phase == PITCH) & going)
        struck[rows, tokens[rows] - PITCH_IDS[0]] = True
        if self.polyphony is not None:
            if line.any():
                later = np.zeros_like(sounding)
                later[:, :-STEPS_PER_BAR] = sounding[:, STEPS_PER_BAR:]
                sounding = np.where(line[:, None], later, sounding)
            held = np.flatnonzero((phase == DURATION) & going)
            if len(held):
                begin = np.maximum(position[held], 0)[:, None]
                end = begin + DURATIONS[tokens[held] - DURATION_IDS[0]][:, None]
                sounding = sounding.copy()
                sounding[held] += (begin <= PLACES) & (end > PLACES)
        silent = state.silent > (phase == PITCH)
        return RemiState(phase, state.bar + line, position, struck, sounding, silent, state.left - 1)

    def take(self, state: RemiState, rows: np.ndarray) -> RemiState:
        """Rows repeated or left out."""
        return RemiState._make([*(part[rows] for part in state[:-1]), state.left])


# ---------------------------------------------------------------- performance tokens

# What the last token was: nothing, a shift of less than a second, one of a second, note-off, note-on, velocity.
NOTHING, SHIFT, SECOND, OFF, ON, LEVEL = range(6)
MOST_OF_A_STRIKE = 4  # velocity, note-on, the note-off it will need, and one to spare
KEY = np.arange(KEYS)
OFFS, ONS = slice(OFF_ID, OFF_ID + KEYS), slice(ON_ID, ON_ID + KEYS)
SHIFTS, LEVELS = slice(SHIFT_ID, SHIFT_ID + MOST_SHIFT), slice(LEVEL_ID, LEVEL_ID + VELOCITY_BINS)


LEVEL_NUMBERS, SPANS = np.arange(VELOCITY_BINS), np.arange(1, MOST_SHIFT + 1)


def _by_token(otherwise: int, **values: Any) -> np.ndarray:
    """A number for each token, (V,), given for each kind."""
    table = np.full(PerformanceTokenizer.vocabulary_size, otherwise)
    for kind, value in values.items():
        table[{"ons": ONS, "offs": OFFS, "shifts": SHIFTS, "levels": LEVELS}[kind]] = value
    return table


PERFORMANCE_PHASES = _by_token(
    NOTHING, ons=ON, offs=OFF, levels=LEVEL, shifts=np.where(SPANS == MOST_SHIFT, SECOND, SHIFT)
)
SHIFT_OF, LEVEL_OF = _by_token(0, shifts=SPANS), _by_token(-1, levels=LEVEL_NUMBERS)
KEY_OF, NOTES_OF = _by_token(0, ons=KEY, offs=KEY), _by_token(0, ons=1, offs=-1)
# The highest key released and struck at the time after a token; no key is released once one is to be struck.
RELEASED_OF, STRUCK_OF = _by_token(-1, ons=KEYS, levels=KEYS, offs=KEY), _by_token(-1, ons=KEY)


class PerformanceState(NamedTuple):
    """A batch of performances in the making; `left` tokens may be drawn, the rest is (B, ...)."""

    phase: np.ndarray
    time: np.ndarray  # in shifts
    end: np.ndarray  # when the music is over
    level: np.ndarray  # -1 before any velocity
    sounding: np.ndarray  # (B, 88) bool
    notes: np.ndarray  # how many those are
    released: np.ndarray  # the highest key released at this time, -1 if none; all keys once one is struck
    struck: np.ndarray  # the highest key struck at this time, -1 if none
    silent: np.ndarray  # there is no note, and there must be one
    hurried: np.ndarray  # nothing but the end may come, or too few tokens would be left for it
    done: np.ndarray
    left: int


@dataclass(frozen=True, eq=False)
class PerformanceConstraint(PianoConstraint):
    """Events as `PerformanceTokenizer.encode` writes them, within limits (`PianoConstraint`).

    At one time keys that sound are released, then keys that are silent are struck, each rising in pitch. A
    velocity stands before a note-on where it changes, and a time shift of less than a second has an event after
    it. At the end the keys that still sound are released.
    """

    STEPS_PER_SECOND: ClassVar[int] = SHIFTS_PER_SECOND

    def begin(self, prompts: Sequence[np.ndarray], count: int) -> PerformanceState:
        """See `Constraint`."""
        rows = [self._read(_checked(prompt, PerformanceTokenizer.vocabulary_size)) for prompt in prompts]
        parts = (np.stack(parts) for parts in zip(*rows, strict=True))
        state = PerformanceState._make([*parts, *np.zeros((2, len(rows)), bool), count])
        reached = int(state.time.max())
        self._check_length(reached, int(self._needed(state).max()), count)
        return self._judged(state)

    def _read(self, ids: np.ndarray) -> tuple[Any, ...]:
        shifts = (ids >= SHIFT_ID) & (ids < LEVEL_ID)
        levels, ons, offs = ids >= LEVEL_ID, (ids >= ON_ID) & (ids < OFF_ID), (ids >= OFF_ID) & (ids < SHIFT_ID)
        sounding = np.zeros(KEYS, bool)
        released, struck = -1, -1
        last = int(np.flatnonzero(shifts)[-1]) if shifts.any() else -1
        for event in ids[ons | offs].tolist():
            sounding[(event - ON_ID) % KEYS] = event < OFF_ID
        now = ids[last + 1 :]
        if len(struck_now := now[(now >= ON_ID) & (now < OFF_ID)]):
            released, struck = KEYS, int(struck_now.max()) - ON_ID
        elif len(released_now := now[(now >= OFF_ID) & (now < SHIFT_ID)]):
            released = int(released_now.max()) - OFF_ID
        level = int(ids[levels][-1]) - LEVEL_ID if levels.any() else -1
        phase = NOTHING
        if len(ids):
            token = int(ids[-1])
            # What a prompt leaves open need not be settled: time may pass after its last shift or velocity.
            phase = SECOND if SHIFT_ID <= token < LEVEL_ID else OFF if OFF_ID <= token < SHIFT_ID else ON
            if token >= LEVEL_ID:
                released = KEYS
        time = int((ids[shifts] - SHIFT_ID + 1).sum())
        silent = self.ends is not None and not ons.any()
        return phase, time, self.last_step, level, sounding, sounding.sum(), released, struck, silent

    def _needed(self, state: PerformanceState) -> np.ndarray:
        """Tokens that it takes at least to end, (B,): time shifts and note-offs."""
        wait = state.end - state.time
        if self.ends is None:
            wait = np.where(state.end == NEVER, np.maximum(1, self.first_step - state.time), wait)
        return -(-wait // MOST_SHIFT) + state.notes + MOST_OF_A_STRIKE * state.silent

    def _judged(self, state: PerformanceState) -> PerformanceState:
        """The state with `hurried` as it is; without an end that was asked for, it is the next moment then."""
        hurried = state.left <= self._needed(state) + MOST_OF_A_STRIKE
        if self.ends is None and hurried.any():
            now = hurried & (state.end == NEVER) & (state.phase != LEVEL)
            end = np.where(now, np.maximum(state.time + 1, self.first_step), state.end)
            state = state._replace(end=end)
        over = state.time >= state.end
        return state._replace(hurried=hurried | over, done=over & (state.notes == 0))

    @functools.cached_property
    def _range(self) -> np.ndarray:
        keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1)
        return (keys >= self.keys[0]) & (keys <= self.keys[1])

    @functools.cached_property
    def _grammar(self) -> np.ndarray:
        """Velocities and time shifts that may follow a phase, (6, V) bool."""
        table = np.zeros((6, PerformanceTokenizer.vocabulary_size), bool)
        table[:LEVEL, LEVELS] = True
        table[[NOTHING, SECOND, OFF, ON], SHIFTS] = True
        return table

    def allowed(self, state: PerformanceState) -> np.ndarray:
        """(B, V) bool."""
        phase, time, hurried = state.phase, state.time, state.hurried
        allowed = self._grammar[phase]
        bound = phase == LEVEL
        started = time >= self.first_step
        begun = started > hurried
        room = begun | bound | (state.silent & started)
        if self.polyphony is not None:
            room &= state.notes < self.polyphony
        ons = ((self._range > state.sounding) & (state.struck[:, None] < KEY)) & room[:, None]
        allowed[:, LEVELS] &= ons.any(1)[:, None] & (state.level[:, None] != LEVEL_NUMBERS)
        allowed[:, ONS] = ons & (state.level >= 0)[:, None]
        offs = state.sounding & (state.released[:, None] < KEY)
        allowed[:, OFFS] = offs & (begun > bound)[:, None]
        wait = (state.end - time - state.silent)[:, None]
        missing = (self.first_step - time)[:, None]
        shifts = (wait >= SPANS) & (missing <= SPANS)
        shifts[:, -1:] |= missing > MOST_SHIFT
        allowed[:, SHIFTS] &= shifts
        if hurried.any():
            last = (hurried > bound)[:, None]
            longest = np.where(state.silent[:, None], np.maximum(missing, 0), wait)
            allowed[:, SHIFTS] = np.where(last, np.minimum(longest, MOST_SHIFT) == SPANS, allowed[:, SHIFTS])
            # What sounds at the end is released from below.
            over = last & (wait <= 0)
            allowed[:, OFFS] |= over & offs & (np.cumsum(offs, axis=1) == 1)
        return allowed

    def done(self, state: PerformanceState) -> np.ndarray:
        """(B,) bool."""
        return state.done

    def share(self, state: PerformanceState) -> np.ndarray:
        """(B,) from 0 to 1, how much of the music is there; `ends` is given."""
        return self._share(state.time)

    def advance(self, state: PerformanceState, tokens: np.ndarray) -> PerformanceState:
        """One more token a row; rows that are done stay as they are."""
        phase, key, notes = PERFORMANCE_PHASES[tokens], KEY_OF[tokens], NOTES_OF[tokens]
        rows = np.arange(len(tokens))
        sounding = state.sounding.copy()
        sounding[rows, key] = np.where(notes == 0, sounding[rows, key], notes > 0)
        level = phase == LEVEL
        after = PerformanceState(
            phase,
            state.time + SHIFT_OF[tokens],
            state.end,
            np.where(level, LEVEL_OF[tokens], state.level),
            sounding,
            state.notes + notes,
            RELEASED_OF[tokens],
            np.where(level, state.struck, STRUCK_OF[tokens]),
            state.silent & (phase != ON),
            state.hurried,
            state.done,
            state.left - 1,
        )
        if state.done.any():
            going = np.where(state.done, rows + len(rows), rows)
            both = (np.concatenate(pair)[going] for pair in zip(after[:-1], state[:-1], strict=True))
            after = PerformanceState._make([*both, after.left])
        return self._judged(after)

    def take(self, state: PerformanceState, rows: np.ndarray) -> PerformanceState:
        """Rows repeated or left out."""
        return PerformanceState._make([*(part[rows] for part in state[:-1]), state.left])
