"""Rules of chorales: kept, and never a state without a token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from seqpope.domains.music.chorales.codec import SILENCE, Chorale
from seqpope.domains.music.chorales.constraints import (
    DOMINANT,
    FINAL,
    FREE,
    TRIADS,
    ChoraleConstraint,
    Row,
    find_key,
    parallel,
    runs_parallel,
)
from seqpope.domains.music.chorales.metrics import RANGES
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer
from seqpope.errors import SeqpopeError

TOKENIZER = ChoraleTokenizer()


def walk(constraint, steps, prompts=((),), seed=0, choose=None):
    """Random chorales that keep to a constraint: grids (steps, 4), and the last state."""
    generator = np.random.default_rng(seed)
    state = constraint.begin([np.array(prompt, int) for prompt in prompts], 4 * steps)
    tokens = []
    for _ in range(4 * steps):
        allowed = constraint.allowed(state)
        assert allowed.any(-1).all()
        if choose is None:
            drawn = np.array([generator.choice(np.flatnonzero(row)) for row in allowed])
        else:
            drawn = np.array([np.flatnonzero(row)[choose] for row in allowed])
        tokens.append(drawn)
        state = constraint.advance(state, drawn)
    return [TOKENIZER.decode(row).pitches.astype(int) for row in np.stack(tokens, 1)], state


def count_parallels(grid):
    return sum(runs_parallel(a, b) for a, b in itertools.pairwise(grid.tolist()))


@pytest.mark.parametrize(
    ("before_a", "after_a", "before_b", "after_b", "expected"),
    [
        (67, 69, 60, 62, True),  # fifths, both up
        (67, 69, 48, 50, True),  # an octave between
        (72, 71, 60, 59, True),  # octaves, both down
        (60, 62, 60, 62, True),  # unisons
        (67, 67, 60, 60, False),  # held
        (67, 69, 60, 60, False),  # one holds
        (67, 72, 60, 53, False),  # contrary
        (65, 67, 60, 62, False),  # fourths
        (67, 69, 60, 61, False),  # a fifth, then a sixth
        (60, 62, 67, 69, True),  # crossed
        (-1, 69, 60, 62, False),
        (67, -1, 60, 62, False),
    ],
)
def test_parallel(before_a, after_a, before_b, after_b, expected):
    assert parallel(before_a, after_a, before_b, after_b) is expected
    assert parallel(before_b, after_b, before_a, after_a) is expected
    if min(before_a, after_a, before_b, after_b) >= 0:
        assert parallel(*(x + 5 for x in (before_a, after_a, before_b, after_b))) is expected


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("mode", [0, 1])
def test_key(tonic, mode):
    """A scale with its tonic triad leant on is in its key."""
    scale = (0, 2, 4, 5, 7, 9, 11) if mode == 0 else (0, 2, 3, 5, 7, 8, 11)
    weights = np.zeros(12)
    weights[[(tonic + each) % 12 for each in scale]] = 1
    weights[[(tonic + each) % 12 for each in TRIADS[mode]]] += 1
    assert find_key(weights) == (tonic, mode)
    assert find_key(np.zeros(12)) == (0, 0)


class TestRules:
    def test_ranges(self):
        grids, _ = walk(ChoraleConstraint(), 60, prompts=[()] * 3)
        for grid in grids:
            for voice, (low, high) in zip(grid.T, RANGES, strict=True):
                sounding = voice[voice >= 0]
                assert low <= sounding.min() <= sounding.max() <= high
            assert (grid < 0).any()

    def test_rests(self):
        grids, _ = walk(ChoraleConstraint(allow_rests=False), 30)
        assert (grids[0] >= 0).all()

    def test_nothing_asked_is_nothing_forbidden_but_padding(self):
        constraint = ChoraleConstraint(ranges=None)
        allowed = constraint.allowed(constraint.begin([np.zeros(0, int)], 4))
        assert allowed.sum() == TOKENIZER.vocabulary_size - 1
        assert not allowed[0, TOKENIZER.padding_id]

    @pytest.mark.parametrize("choose", [None, 0, -1])
    @pytest.mark.parametrize("rests", [True, False])
    def test_parallels(self, choose, rests):
        """Also where the first or the last token is always taken."""
        grids, _ = walk(
            ChoraleConstraint(forbid_parallels=True, allow_rests=rests), 80, prompts=[()] * 4, choose=choose
        )
        assert [count_parallels(grid) for grid in grids] == [0] * 4

    def test_parallels_would_come_otherwise(self):
        grids, _ = walk(ChoraleConstraint(allow_rests=False), 300)
        assert count_parallels(grids[0]) > 5

    def test_given_voices(self):
        generator = np.random.default_rng(0)
        given = np.full((40, 4), FREE)
        given[:, 0] = generator.integers(55, 85, 40)  # beyond the range: given is given
        given[:30, 3] = generator.integers(36, 64, 30)
        given[5:9, 0] = SILENCE
        grids, _ = walk(ChoraleConstraint(given=given, forbid_parallels=True), 50, prompts=[()] * 2)
        for grid in grids:
            known = given != FREE
            assert (grid[:40][known] == given[known]).all()
            free = [(a, b) for a, b in itertools.combinations(range(4), 2) if (a, b) != (0, 3)]
            for before, after in itertools.pairwise(grid.tolist()):
                assert not any(parallel(before[a], after[a], before[b], after[b]) for a, b in free)

    def test_a_free_voice_keeps_clear_of_one_given_below_it(self):
        """What is given of a chord counts before it is sung; else the alto would be stuck with what came of it."""
        generator = np.random.default_rng(1)
        given = np.full((120, 4), FREE)
        given[:, 3] = generator.integers(40, 60, 120)
        grids, _ = walk(ChoraleConstraint(given=given, forbid_parallels=True, allow_rests=False), 120, [()] * 3)
        assert [count_parallels(grid) for grid in grids] == [0] * 3

    def test_a_last_chord_is_held_under_a_rest(self):
        given = np.full((32, 4), FREE)
        given[-FINAL:, 0] = SILENCE
        grids, _ = walk(ChoraleConstraint(cadence=True, given=given, allow_rests=False), 32, [()] * 4)
        for grid in grids:
            assert (grid[-FINAL:] == grid[-1]).all()

    def test_an_opening_counts(self):
        """A parallel with the opening's last chord is one too, and the key is heard in it."""
        opening = Chorale(np.array([[72, 67, 64, 48]] * 16, np.int16))
        prompt = TOKENIZER.encode(opening).astype(int)
        grids, _ = walk(ChoraleConstraint(forbid_parallels=True), 30, prompts=[prompt, prompt])
        for grid in grids:
            assert not runs_parallel([72, 67, 64, 48], grid[0].tolist())

    @pytest.mark.parametrize("parallels", [True, False])
    @pytest.mark.parametrize("seed", range(3))
    def test_cadence(self, parallels, seed):
        constraint = ChoraleConstraint(cadence=True, forbid_parallels=parallels, allow_rests=False)
        grids, state = walk(constraint, 24, prompts=[()] * 8, seed=seed)
        for grid, row in zip(grids, state.rows, strict=True):
            heard = np.bincount(grid[: -FINAL - DOMINANT].reshape(-1) % 12, minlength=12)
            tonic, mode = find_key(heard.astype(float))
            assert row.key == (tonic, mode)
            last = {(tonic + each) % 12 for each in TRIADS[mode]}
            assert (grid[-FINAL:] == grid[-1]).all()
            assert set((grid[-1] % 12).tolist()) <= last
            assert grid[-1, 3] % 12 == tonic
            before = grid[-FINAL - DOMINANT : -FINAL]
            assert (before[:, 3] % 12 == (tonic + 7) % 12).all()
            assert set((before % 12).reshape(-1).tolist()) <= {(tonic + each) % 12 for each in (7, 11, 2, 5)}
            assert not parallels or count_parallels(grid) == 0
            assert (tonic + TRIADS[mode][1]) % 12 in grid[-1] % 12
            assert all((tonic + 11) % 12 in chord for chord in before % 12)

    def test_a_cadence_leaves_given_voices_alone(self):
        given = np.full((32, 4), FREE)
        given[:, 0] = 61 + np.arange(32) % 7
        grids, _ = walk(ChoraleConstraint(cadence=True, given=given, allow_rests=False), 32)
        assert (grids[0][:, 0] == given[:, 0]).all()


def test_every_chord_can_go_on_to_a_cadence():
    """From 3,000 chords, within and at the edge of the ranges, into both chords of a cadence, in all keys."""
    constraint = ChoraleConstraint(cadence=True, forbid_parallels=True, allow_rests=False)
    generator = np.random.default_rng(0)
    for trial in range(3000):
        edge = generator.random(4) < 0.5
        chord = tuple(
            int(generator.choice(bounds)) if at_edge else int(generator.integers(bounds[0], bounds[1] + 1))
            for bounds, at_edge in zip(RANGES, edge, strict=True)
        )
        key = (trial % 12, trial // 12 % 2)
        left = FINAL if trial % 3 else FINAL + DOMINANT
        row = Row(100 - left, chord, (), (0,) * 12, key)
        for _ in range(4):
            options = constraint._cadence_pitches(row, left, (FREE,) * 4, len(row.now))
            assert options
            row = row._replace(now=(*row.now, int(generator.choice(options))))
        assert not runs_parallel(chord, row.now), (chord, row.now, key)
        third = key[0] + (TRIADS[key[1]][1] if left == FINAL else 11)
        assert third % 12 in [pitch % 12 for pitch in row.now]


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"ranges": [(60, 50), *RANGES[1:]]}, "the soprano's range 60..50 must lie in 21..108"),
            ({"ranges": [(0, 50), *RANGES[1:]]}, "the soprano's range 0..50"),
            (
                {"ranges": [*RANGES[:3], (40, 48)], "cadence": True},
                "the bass's range 40..48 is narrower than an octave",
            ),
            ({"given": np.zeros((3, 3), int)}, r"integers \(steps, 4\), they are int64 \(3, 3\)"),
            ({"given": np.array([[60.0, 50, 45, 40]])}, "must be integers"),
            ({"given": np.array([[60, 50, 45, 12]])}, "the given bass has pitch 12 at step 0"),
        ],
        ids=str,
    )
    def test_settings(self, settings, message):
        with pytest.raises(SeqpopeError, match=message):
            ChoraleConstraint(**settings)

    @pytest.mark.parametrize(
        ("settings", "prompt", "count", "message"),
        [
            ({}, [2, 3], 8, "whole chords of 4 tokens: not after"),
            ({}, [], 9, "nor 9 at once"),
            ({"cadence": True}, [], 60, "a cadence needs a bar of 16 steps and 15 are to be drawn"),
            ({"given": np.full((5, 4), FREE)}, [], 16, "5 steps are given but 4 are to be drawn"),
        ],
        ids=str,
    )
    def test_lengths(self, settings, prompt, count, message):
        with pytest.raises(SeqpopeError, match=message):
            ChoraleConstraint(**settings).begin([np.array(prompt, int)], count)


def test_rows_can_be_taken_apart():
    constraint = ChoraleConstraint(forbid_parallels=True)
    _, state = walk(constraint, 5, prompts=[()] * 3)
    again = constraint.take(state, np.array([2, 0, 2]))
    assert again.rows == (state.rows[2], state.rows[0], state.rows[2])
    assert (constraint.allowed(again)[0] == constraint.allowed(again)[2]).all()
