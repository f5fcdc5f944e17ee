from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqpope.data.shards import fingerprint
from seqpope.domains.music.chorales.codec import Chorale
from seqpope.domains.music.chorales.tokenizer import ChoraleTokenizer, TokenError

TOKENIZER = ChoraleTokenizer()


def test_order_and_ids():
    """Voices from the soprano down, then time; padding 0, silence 1, pitch p -> p - 19."""
    ids = TOKENIZER.encode(Chorale(np.array([[108, 60, -1, 21], [72, 61, 48, 36]])))
    assert ids.tolist() == [89, 41, 1, 2, 53, 42, 29, 17]
    assert ids.dtype == np.uint8


def test_attributes_agree_with_ids():
    assert TOKENIZER.vocabulary_size == 90
    assert TOKENIZER.padding_id == 0
    assert TOKENIZER.shift_range == (2, 89)
    assert TOKENIZER.units == {"time step": 0.25}
    assert TOKENIZER.tokens_per_bar == 16 * TOKENIZER.alignment


def test_transposing_ids_transposes_pitches():
    grid = np.array([[72, 67, -1, 48]])
    ids = TOKENIZER.encode(Chorale(grid)).astype(int)
    low, high = TOKENIZER.shift_range
    ids[(ids >= low) & (ids <= high)] += 3
    assert TOKENIZER.decode(ids).pitches.tolist() == [[75, 70, -1, 51]]


def test_fingerprint_is_that_of_the_specification_and_stays():
    """Checkpoints carry it: a change of ids must change it, and nothing else may."""
    assert TOKENIZER.fingerprint == fingerprint(TOKENIZER.specification) == ChoraleTokenizer().fingerprint
    assert TOKENIZER.fingerprint == "2387e5d5736695e45507dd964b04644ed5a7812da1f8782ece305421a82be432"


def test_round_trip_over_the_corpus(chorales):
    for chorale in chorales:
        ids = TOKENIZER.encode(chorale)
        assert len(ids) == 4 * len(chorale)
        assert ids.min() > TOKENIZER.padding_id
        assert TOKENIZER.decode(ids, chorale.name) == chorale


@pytest.mark.parametrize("pitch", [20, 109, 0, 127])
def test_pitches_outside_the_piano_are_refused(pitch):
    with pytest.raises(TokenError, match=rf"'x', step 1, Tenor: pitch {pitch} is .*transpose"):
        TOKENIZER.encode(Chorale(np.array([[60, 60, 60, 60], [60, 60, pitch, 60]]), "x"))


def test_step_that_lacks_voices_is_left_out():
    assert TOKENIZER.decode([41, 41, 41, 41, 50, 50, 50]).pitches.tolist() == [[60, 60, 60, 60]]
    assert len(TOKENIZER.decode([41, 41, 41])) == 0
    assert len(TOKENIZER.decode([])) == 0


def test_padding_at_the_end_is_left_out():
    assert TOKENIZER.decode([41, 41, 41, 41, 0, 0, 0]).pitches.tolist() == [[60, 60, 60, 60]]
    assert len(TOKENIZER.decode([0, 0, 0, 0])) == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([41, 0, 41, 41], "token 1 is padding"),
        ([0, 41, 41, 41], "token 0 is padding"),
        ([41, 41, 90, 41], "token 2 is 90, outside"),
        ([41, -1], "token 1 is -1, outside"),
        ([1.5, 2.0], "list of integers, they are float64"),
        ([[41, 41]], "shape"),
        (["a"], "list of integers"),
    ],
)
def test_ids_that_are_no_music_are_refused(ids, message):
    with pytest.raises(TokenError, match=message):
        TOKENIZER.decode(ids)


@settings(max_examples=500, deadline=None)
@given(ids=st.one_of(st.lists(st.integers(-3, 95), max_size=40), st.lists(st.integers(1, 89), max_size=40)))
def test_any_ids_give_a_chorale_or_an_error(ids):
    """What a sampler that never draws padding gives is music, wherever it stops."""
    while ids and ids[-1] == 0:
        ids.pop()
    if all(1 <= number <= 89 for number in ids):
        assert TOKENIZER.encode(TOKENIZER.decode(ids)).tolist() == ids[: len(ids) - len(ids) % 4]
    else:
        with pytest.raises(TokenError, match="token"):
            TOKENIZER.decode(ids)
