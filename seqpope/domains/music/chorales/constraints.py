"""Rules for sampled chorales, as masks over the next token that leave a token in every state.

Why none is ever stuck. A voice that is free may hold its pitch: what holds makes no parallel. Where it was
silent, or stands outside its range because it was given there, every pitch of its range is open but those that
would run parallel to one of three other voices: at most six of twelve pitch classes, and a range has all twelve.
At a cadence chords are looked at whole: a pitch is open only if the voices still to come can complete a chord
with it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seqpope.domains.music.chorales.codec import SILENCE, STEPS_PER_BAR, VOICES
from seqpope.domains.music.chorales.metrics import RANGES
from seqpope.domains.music.chorales.tokenizer import (
    HIGHEST_PITCH,
    LOWEST_PITCH,
    LOWEST_PITCH_ID,
    SILENCE_ID,
    ChoraleTokenizer,
)
from seqpope.errors import SeqpopeError

FREE = -2  # in a grid of given pitches: the model's to choose
FINAL, DOMINANT = 8, 4  # sixteenths of a cadence's last chord, and of the one before it
# Krumhansl & Kessler (1982): how well each pitch class, counted from the tonic, fits a major and a minor key.
PROFILES = (
    np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]),
    np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]),
)
TRIADS = ((0, 4, 7), (0, 3, 7))  # of the tonic, major and minor
DOMINANTS = (7, 11, 2, 5)  # above the tonic: the dominant seventh, whose third is the leading note in minor too


def find_key(weights: np.ndarray) -> tuple[int, int]:
    """Tonic (pitch class) and mode (0 major, 1 minor) that correlate best with 12 pitch-class weights."""
    scores = []
    for mode, profile in enumerate(PROFILES):
        for tonic in range(12):
            turned = np.roll(profile, tonic)
            spread = weights.std() * turned.std()
            score = ((weights - weights.mean()) * (turned - turned.mean())).mean() / spread if spread > 0 else 0.0
            scores.append((score, tonic, mode))
    best = max(scores, key=lambda item: item[0])
    return best[1], best[2]


def parallel(before_a: int, after_a: int, before_b: int, after_b: int) -> bool:
    """Whether two voices run in parallel fifths, octaves or unisons: both move, the same way, and keep that
    interval.

    Compound intervals count as simple ones; a silence moves nowhere.
    """
    if min(before_a, after_a, before_b, after_b) < 0:
        return False
    a, b = after_a - before_a, after_b - before_b
    if a * b <= 0:
        return False
    interval = abs(before_a - before_b) % 12
    return interval in (0, 7) and abs(after_a - after_b) % 12 == interval


class Row(NamedTuple):
    """One chorale in the making."""

    step: int  # of the drawn part
    before: tuple[int, ...]  # the last whole chord, silence at the start
    now: tuple[int, ...]  # the chord in the making, soprano first, as far as it is
    heard: tuple[int, ...]  # how often each pitch class has sounded
    key: tuple[int, int] | None  # tonic and mode of the cadence, once it is needed


class State(NamedTuple):
    """A batch of them; all draw `steps`."""

    rows: tuple[Row, ...]
    steps: int


@dataclass(frozen=True, eq=False)
class ChoraleConstraint:
    """What a sampled chorale must keep to. See `Constraint` in seqpope.sampling for the four functions.

    Args:
        ranges: lowest and highest MIDI pitch of each voice, soprano first; None leaves them free.
        given: (steps, 4) pitches of the drawn part, SILENCE for rests, FREE where the model chooses; given
            pitches need not keep to the ranges. Beyond its end everything is free.
        forbid_parallels: no parallel fifths, octaves or unisons with or between voices that are not given.
        cadence: the last bar ends with a dominant seventh of a quarter and the tonic triad of a half note, both
            in root position, in the key of what came before. Given voices are left as they are.
        allow_rests: free voices may fall silent.
    """

    ranges: Sequence[tuple[int, int]] | None = RANGES
    given: np.ndarray | None = None
    forbid_parallels: bool = False
    cadence: bool = False
    allow_rests: bool = True

    def __post_init__(self) -> None:
        for voice, (low, high) in zip(VOICES, self.ranges or (), strict=self.ranges is not None):
            if not LOWEST_PITCH <= low <= high <= HIGHEST_PITCH:
                raise SeqpopeError(
                    f"the {voice.lower()}'s range {low}..{high} must lie in {LOWEST_PITCH}..{HIGHEST_PITCH}, "
                    "the lower pitch first"
                )
            if (self.forbid_parallels or self.cadence) and high - low < 11:
                raise SeqpopeError(
                    f"the {voice.lower()}'s range {low}..{high} is narrower than an octave: with parallels "
                    "forbidden or a cadence a voice might have no pitch left; widen it to 12 pitches"
                )
        if self.given is not None:
            given = np.asarray(self.given)
            if given.ndim != 2 or given.shape[1] != len(VOICES) or given.dtype.kind not in "iu":
                raise SeqpopeError(
                    f"given pitches must be integers (steps, 4), they are {given.dtype} {given.shape}"
                )
            wrong = np.argwhere(
                (given < LOWEST_PITCH) & (given != SILENCE) & (given != FREE) | (given > HIGHEST_PITCH)
            )
            if len(wrong):
                step, column = (int(index) for index in wrong[0])
                raise SeqpopeError(
                    f"the given {VOICES[column].lower()} has pitch {given[step, column]} at step {step}, outside "
                    f"the vocabulary's {LOWEST_PITCH}..{HIGHEST_PITCH}: transpose it"
                )

    def begin(self, prompts: Sequence[np.ndarray], count: int) -> State:
        """See `Constraint`; prompts are whole chords and so is what is drawn."""
        voices = len(VOICES)
        odd = [len(prompt) for prompt in prompts if len(prompt) % voices]
        if odd or count % voices:
            raise SeqpopeError(
                f"chorales are drawn in whole chords of {voices} tokens: not after {odd or [0]} tokens, "
                f"nor {count} at once"
            )
        steps = count // voices
        if self.cadence and steps < STEPS_PER_BAR:
            raise SeqpopeError(
                f"a cadence needs a bar of {STEPS_PER_BAR} steps and {steps} are to be drawn: draw more, or leave "
                "the cadence out"
            )
        if self.given is not None and len(self.given) > steps:
            raise SeqpopeError(f"{len(self.given)} steps are given but {steps} are to be drawn: draw as many")
        rows = []
        for prompt in prompts:
            pitches = ChoraleTokenizer().decode(prompt).pitches.astype(int)
            before = tuple(pitches[-1].tolist()) if len(pitches) else (SILENCE,) * voices
            heard = tuple(np.bincount(pitches[pitches >= 0] % 12, minlength=12).tolist())
            rows.append(Row(0, before, (), heard, None))
        return State(tuple(rows), steps)

    def allowed(self, state: State) -> np.ndarray:
        """(B, V) bool: the pitches that each row's next voice may take."""
        return np.stack([self._mask(row, state.steps) for row in state.rows])

    def done(self, state: State) -> np.ndarray:
        """(B,) bool: no row, all are of one length."""
        return np.zeros(len(state.rows), bool)

    def advance(self, state: State, tokens: np.ndarray) -> State:
        """One more voice of each row's chord."""
        return State(
            tuple(
                self._after(
                    row, SILENCE if token == SILENCE_ID else int(token) - LOWEST_PITCH_ID + LOWEST_PITCH, state
                )
                for row, token in zip(state.rows, tokens.tolist(), strict=True)
            ),
            state.steps,
        )

    def take(self, state: State, rows: np.ndarray) -> State:
        """Rows repeated or left out."""
        return State(tuple(state.rows[row] for row in rows.tolist()), state.steps)

    # What one chorale may go on with ----------------------------------------------------------------------------

    @functools.cached_property
    def _free(self) -> tuple[np.ndarray, ...]:
        """For each voice what it may sing where no other rule speaks, (V,) bool."""
        masks = []
        for low, high in self.ranges or [(LOWEST_PITCH, HIGHEST_PITCH)] * len(VOICES):
            mask = np.zeros(ChoraleTokenizer.vocabulary_size, bool)
            mask[low - LOWEST_PITCH + LOWEST_PITCH_ID : high - LOWEST_PITCH + LOWEST_PITCH_ID + 1] = True
            mask[SILENCE_ID] = self.allow_rests
            masks.append(mask)
        return tuple(masks)

    def _given_at(self, step: int) -> tuple[int, ...]:
        if self.given is None or step >= len(self.given):
            return (FREE,) * len(VOICES)
        return tuple(self.given[step].tolist())

    def _mask(self, row: Row, steps: int) -> np.ndarray:
        voice, given = len(row.now), self._given_at(row.step)
        if given[voice] != FREE:
            return _only([given[voice]])
        left = steps - row.step
        if self.cadence and left <= FINAL + DOMINANT:
            return _only(self._cadence_pitches(row, left, given, voice))
        if not self.forbid_parallels:
            return self._free[voice]
        known = [*row.now, FREE, *given[voice + 1 :]]
        mask = self._free[voice].copy()
        for other, after in enumerate(known):
            if after != FREE:
                mask &= ~_parallel_with(row.before[voice], row.before[other], after)
        return mask

    def _after(self, row: Row, pitch: int, state: State) -> Row:
        now, heard, key = (*row.now, pitch), row.heard, row.key
        if self.cadence:
            if not row.now and state.steps - row.step == FINAL + DOMINANT:
                key = self._key(row)
            if pitch >= 0:
                heard = tuple(count + (pitch % 12 == each) for each, count in enumerate(heard))
        if len(now) < len(VOICES):
            return row._replace(now=now, heard=heard, key=key)
        return Row(row.step + 1, now, (), heard, key)

    def _key(self, row: Row) -> tuple[int, int]:
        return row.key if row.key is not None else find_key(np.array(row.heard, float))

    def _cadence_pitches(self, row: Row, left: int, given: tuple[int, ...], voice: int) -> list[int]:
        """Pitches of a free voice in the last two chords, such that the voices behind it can complete one."""
        tonic, mode = self._key(row)
        final = left <= FINAL
        if left < FINAL and row.before[voice] >= 0:
            return [row.before[voice]]  # the last chord is held
        classes = TRIADS[mode] if final else DOMINANTS
        chord = {(tonic + interval) % 12 for interval in classes}
        root = (tonic + (0 if final else 7)) % 12
        third = (tonic + (TRIADS[mode][1] if final else 11)) % 12
        options: list[list[int]] = []
        for each, (low, high) in enumerate(self.ranges or [(36, 84)] * len(VOICES)):
            if each < len(row.now):
                options.append([row.now[each]])
            elif given[each] != FREE:
                options.append([given[each]])
            else:
                wanted = {root} if each == len(VOICES) - 1 else chord
                options.append([pitch for pitch in range(low, high + 1) if pitch % 12 in wanted])
        before = row.before if self.forbid_parallels else (SILENCE,) * len(VOICES)
        for needed in (third, None):  # without its third only where given voices leave none
            good = [pitch for pitch in options[voice] if _completes(before, [*row.now, pitch], options, needed)]
            if good:
                return good
        return options[voice]  # given voices run parallel, or a later one is bound to


def _completes(before: Sequence[int], chord: list[int], options: list[list[int]], needed: int | None) -> bool:
    """Whether a chord begun from the top can be completed out of `options`: no parallels, `needed` in it."""
    last = len(chord) - 1
    if any(parallel(before[voice], chord[voice], before[last], chord[last]) for voice in range(last)):
        return False
    if len(chord) == len(VOICES):
        return needed is None or any(pitch >= 0 and pitch % 12 == needed for pitch in chord)
    return any(_completes(before, [*chord, pitch], options, needed) for pitch in options[len(chord)])


def runs_parallel(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether any two voices of two chords do."""
    return any(
        parallel(before[a], after[a], before[b], after[b])
        for a, b in itertools.combinations(range(len(VOICES)), 2)
    )


@functools.lru_cache(maxsize=4096)
def _parallel_with(before: int, other_before: int, other_after: int) -> np.ndarray:
    """Tokens (V,) by which a voice would run parallel to one that moves so."""
    mask = np.zeros(ChoraleTokenizer.vocabulary_size, bool)
    for pitch in range(LOWEST_PITCH, HIGHEST_PITCH + 1):
        mask[pitch - LOWEST_PITCH + LOWEST_PITCH_ID] = parallel(before, pitch, other_before, other_after)
    mask.setflags(write=False)
    return mask


def _only(pitches: Sequence[int]) -> np.ndarray:
    mask = np.zeros(ChoraleTokenizer.vocabulary_size, bool)
    for pitch in pitches:
        mask[SILENCE_ID if pitch == SILENCE else pitch - LOWEST_PITCH + LOWEST_PITCH_ID] = True
    return mask
