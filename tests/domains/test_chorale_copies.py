"""What is copied from training pieces, against trying all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from chorale_pieces import REST, chorale, fuzz, melody, moved, pieces, random_piece
from hypothesis import given
from hypothesis import strategies as st

from seqpope.domains.music.chorales import copies
from seqpope.domains.music.chorales.codec import SILENCE, Chorale
from seqpope.domains.music.chorales.copies import Copy

_ = REST


def test_whole_copy_in_any_key():
    training = [random_piece(seed, 30, f"piece {seed}", each=2) for seed in range(5)]
    for shift in (0, 3, -4):
        sample = moved(training[3], shift)
        whole = Copy(29, 60, "piece 3", 3, 0, 0, shift)
        assert copies.copied(sample, training) == whole
        assert whole.bars == 3.75
        tune = copies.copied_soprano(sample, training)
        assert tune is not None
        assert (tune.steps, tune.index, tune.start, tune.transposition) == (60, 3, 0, shift)
        if shift:
            assert getattr(copies.copied(sample, training, transposed=False), "changes", 0) < 5


def test_part_of_a_piece_inside_a_sample():
    piece = random_piece(1, 40, "source")
    quoted = moved(Chorale(piece.pitches[10:25]), -2).pitches
    sample = Chorale(np.concatenate([random_piece(2, 7).pitches, quoted, random_piece(3, 5).pitches]))
    training = [random_piece(4, 50, "other"), piece]
    assert copies.copied(sample, training) == Copy(14, 15, "source", 1, 7, 10, -2)


def test_copies_are_judged_by_changes_not_by_steps():
    held = chorale([72, 67, 64, 48], each=50, name="held")
    lively = random_piece(5, 6, "lively")
    sample = Chorale(np.concatenate([held.pitches, lively.pitches]))
    found = copies.copied(sample, [held, lively])
    assert found == Copy(5, 6, "lively", 1, 50, 0, 0)


def test_one_altered_voice_ends_a_copy():
    piece = random_piece(6, 20)
    altered = piece.pitches.copy()
    altered[12, 2] += 1
    found = copies.copied(Chorale(altered), [piece])
    assert found is not None
    assert (found.start, found.steps) == (0, 12)


def test_copies_do_not_run_from_one_piece_into_the_next():
    whole = random_piece(7, 20)
    halves = [Chorale(whole.pitches[:9], "a"), Chorale(whole.pitches[9:], "b")]
    found = copies.copied(whole, halves)
    assert found is not None
    assert (found.piece, found.start, found.steps) == ("b", 9, 11)
    assert copies.copied(halves[0], [whole]) == Copy(8, 9, "", 0, 0, 0, 0)


def test_a_change_of_transposition_ends_a_copy_even_in_a_rest():
    piece = chorale([72, 67, 64, 48], [74, 67, 65, 47], [_, _, _, _], [72, 67, 64, 48], [71, 65, 62, 43])
    sample = chorale([72, 67, 64, 48], [74, 67, 65, 47], [_, _, _, _], [73, 68, 65, 49], [72, 66, 63, 44])
    found = copies.copied(sample, [piece])
    assert found is not None
    assert (found.changes, found.steps, found.start) == (2, 3, 0)


def test_rests_are_copied_in_any_key():
    piece = chorale([72, 67, 64, 48], [_, _, _, _], [_, 67, 65, _], [_, _, _, _], [_, _, _, _], [71, _, 62, 43])
    for shift in (0, 3, -4):
        assert copies.copied(moved(piece, shift), [piece]) == Copy(4, 6, "", 0, 0, 0, shift)
    # a span begins where a voice sounds
    assert copies.copied(Chorale(piece.pitches[1:]), [piece]) == Copy(2, 4, "", 0, 1, 2, 0)


def test_the_same_key_comes_first():
    piece = random_piece(8, 10, "first")
    found = copies.copied(piece, [moved(piece, 1), moved(piece, 2), piece])
    assert found is not None
    assert (found.index, found.transposition) == (2, 0)
    found = copies.copied(piece, [moved(piece, 1), moved(piece, 2)])
    assert found is not None
    assert (found.index, found.transposition) == (0, -1)


def test_soprano_copies_are_of_notes():
    training = [melody(60, 61, name="x"), melody(55, 67, 69, 71, 72, 50, name="tune", each=4)]
    # other lengths, a repeated note, a rest
    sample = melody(40, 69, 71, 71, _, 71, 73, 73, 74, 41)
    assert copies.copied_soprano(sample, training) == Copy(3, 8, "tune", 1, 1, 4, 2)
    assert copies.copied_soprano(sample, training, transposed=False) == Copy(1, 5, "tune", 1, 1, 8, 0)


def test_nothing_to_copy():
    silent, sounding = chorale([_] * 4, each=5), chorale([72, 67, 64, 48], [74, 67, 62, 47])
    for search in (copies.copied, copies.copied_soprano):
        for sample, training in [
            (sounding, []),
            (sounding, [silent]),
            (sounding, [chorale()]),
            (silent, [silent, sounding]),
            (chorale(), [sounding]),
        ]:
            assert search(sample, training) is None
            assert search(sample, training, transposed=False) is None
    assert copies.copied(sounding, [chorale([72, _, _, _])]) is None


def naive_copied(sample: Chorale, training: Sequence[Chorale], transposed: bool) -> tuple[int, int, int] | None:
    """Changes, steps and negative start of the best span, by trying all."""
    best = None
    a = sample.pitches.tolist()
    for piece in training:
        b = piece.pitches.tolist()
        for i, j in itertools.product(range(len(a)), range(len(b))):
            shift = max(a[i]) - max(b[j]) if transposed else 0
            length = 0
            while i + length < len(a) and j + length < len(b):
                if a[i + length] != [p if p == SILENCE else p + shift for p in b[j + length]]:
                    break
                length += 1
            if length and max(a[i]) != SILENCE:
                span = a[i : i + length]
                found = sum(x != y for x, y in itertools.pairwise(span)), length, -i
                best = found if best is None else max(best, found)
    return best


small = pieces((SILENCE, 60, 61, 62), longest=9)
chords = [(60, 60, 60, 60), (61, 61, 61, 61), (62, 62, 62, 62), (62, 60, 60, 60), (_, 60, 60, 60), (_, _, _, _)]
few_chords = st.lists(st.sampled_from(chords), max_size=14).map(lambda rows: chorale(*rows))


@fuzz
@given(sample=few_chords | small, training=st.lists(few_chords | small, max_size=4), transposed=st.booleans())
def test_copies_are_the_best_that_trying_all_finds(sample, training, transposed):
    found = copies.copied(sample, training, transposed)
    expected = naive_copied(sample, training, transposed)
    assert (None if found is None else (found.changes, found.steps, -found.start)) == expected
    if found is not None:
        source = training[found.index].pitches[found.piece_start : found.piece_start + found.steps]
        span = sample.pitches[found.start : found.start + found.steps]
        assert np.array_equal(span, moved(Chorale(source), found.transposition).pitches)


@fuzz
@given(sample=few_chords, training=st.lists(few_chords, min_size=1, max_size=3), shift=st.integers(-12, 12))
def test_copies_do_not_depend_on_the_key(sample, training, shift):
    for search in (copies.copied, copies.copied_soprano):
        a, b = search(sample, training), search(moved(sample, shift), training)
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert (a.changes, a.steps, a.start) == (b.changes, b.steps, b.start)


def test_many_samples_at_once_are_each_alone():
    training = [random_piece(seed, 12, str(seed)) for seed in range(4)]
    samples = [moved(training[2], 5), chorale(), Chorale(training[1].pitches[3:9]), random_piece(9, 8)]
    for many, one in (copies.copies, copies.copied), (copies.soprano_copies, copies.copied_soprano):
        assert many(samples, training) == [one(sample, training) for sample in samples]
