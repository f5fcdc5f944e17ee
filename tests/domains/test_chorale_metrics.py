from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from chorale_pieces import REST, chorale, fuzz, melody, moved, pieces, random_piece
from hypothesis import given
from hypothesis import strategies as st

from seqpope.domains.music.chorales import constraints, metrics
from seqpope.domains.music.chorales.codec import VOICES, Chorale
from seqpope.errors import SeqpopeError

_ = REST


# ---------------------------------------------------------------- voice leading

NOTHING = dict.fromkeys(metrics.voice_leading(chorale()), 0)
# fmt: off
CASES = {
    "parallel fifth": ([67, 60, _, _], [69, 62, _, _], {"parallel_fifths": 1}),
    "parallel twelfth, soprano and bass": ([67, _, _, 48], [69, _, _, 50], {"parallel_fifths": 1}),
    "fifth to twelfth, the same way": ([67, 60, _, _], [81, 62, _, _],
                                       {"parallel_fifths": 1, "spacing": 1, "wide_leaps": 1}),
    "fifth to twelfth, contrary": ([67, _, 60, _], [69, _, 50, _], {}),
    "held fifth": ([67, 60, 55, _], [67, 60, 57, _], {}),
    "fifth of which one voice moves": ([67, 60, _, _], [72, 60, _, _], {}),
    "fifth to a diminished fifth": ([67, 60, _, _], [69, 63, _, _], {}),
    "fifth out of a rest": ([_, 60, _, _], [69, 62, _, _], {}),
    "parallel fifth between inner voices": ([_, 67, 60, _], [_, 69, 62, _], {"parallel_fifths": 1}),
    "parallel octave": ([72, _, _, 60], [74, _, _, 62], {"parallel_octaves": 1}),
    "parallel unison": ([_, 60, 60, _], [_, 62, 62, _], {"parallel_octaves": 1, "overlaps": 1}),
    "unison to octave, the same way": ([60, _, 60, _], [76, _, 64, _],
                                       {"parallel_octaves": 1, "wide_leaps": 1}),
    "octaves in contrary motion": ([72, _, _, 60], [74, _, _, 50], {}),
    "held unison": ([60, 60, _, 50], [60, 60, _, 52], {}),
    "two pairs at once": ([72, 67, 60, _], [74, 69, 62, _], {"parallel_octaves": 1, "parallel_fifths": 1}),
    "direct fifth": ([64, _, _, 48], [69, _, _, 50], {"direct_fifths": 1}),
    "direct octave": ([64, _, _, 57], [72, _, _, 60], {"direct_octaves": 1}),
    "direct fifth, soprano by step": ([67, _, _, 45], [69, _, _, 50], {}),
    "direct fifth, contrary": ([67, _, _, 52], [72, _, _, 41], {}),
    "direct fifth, not of outer voices": ([64, _, 48, _], [69, _, 50, _], {}),
    "crossing": ([67, 64, _, _], [67, 69, _, _], {"crossings": 1}),
    "crossing of voices that are no neighbours": ([67, _, 60, _], [67, _, 69, _], {"crossings": 1}),
    "unison is no crossing": ([67, 64, _, _], [67, 67, _, _], {}),
    "overlap upwards": ([65, 62, _, _], [72, 67, _, _], {"overlaps": 1}),
    "overlap downwards": ([72, 67, _, _], [65, 62, _, _], {"overlaps": 1}),
    "to where the neighbour was": ([65, 62, _, _], [69, 65, _, _], {}),
    "overlap of voices that are no neighbours": ([65, _, 62, _], [72, _, 67, _], {}),
    "spacing of soprano and alto": ([72, 62, _, _], [72, 59, _, _], {"spacing": 1}),
    "spacing of alto and tenor": ([_, 62, 52, _], [_, 64, 51, _], {"spacing": 1}),
    "spacing of tenor and bass is free": ([_, _, 62, 52], [_, _, 64, 40], {}),
    "an octave is not too far": ([72, 62, _, _], [72, 60, _, _], {}),
    "leap of an octave": ([60, _, _, _], [72, _, _, _], {}),
    "leap over an octave": ([60, _, _, _], [46, _, _, _], {"wide_leaps": 1}),
    "tritone leap": ([_, _, _, 53], [_, _, _, 47], {"tritone_leaps": 1}),
    "no leap over a rest": ([60, _, _, 48], [_, _, _, 48], {}),
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_voice_leading(case):
    before, after, errors = CASES[case]
    found = metrics.voice_leading(chorale(before, after))
    assert found == NOTHING | {"changes": 1} | errors
    # held chords are no changes, and nothing happens from the last step to the first
    assert metrics.voice_leading(chorale(before, after, each=3)) == found


def test_direct_ones_are_an_option():
    counts = metrics.voice_leading(chorale([64, _, _, 48], [69, _, _, 50]), direct=False)
    assert not {"direct_fifths", "direct_octaves"} & counts.keys()


def test_rates_are_of_chord_changes():
    piece = chorale(
        [67, 60, _, _], [69, 62, _, _], [69, 62, _, _], [69, 60, _, _], [69, 60, 55, _], [69, 60, 57, _]
    )
    assert metrics.chord_changes(piece).tolist() == [False, True, False, True, True, True]
    assert metrics.measure(piece)["parallel_fifths"] == 25
    assert metrics.measure(chorale([67, 60, _, _], each=9))["parallel_fifths"] is None


def naive_voice_leading(piece: Chorale) -> dict[str, int]:
    """The docstring of `voice_leading`, pair by pair."""
    n = dict(NOTHING)
    for before, after in itertools.pairwise(piece.pitches.tolist()):
        if before == after:
            continue
        n["changes"] += 1
        motion = [b - a if min(a, b) >= 0 else 0 for a, b in zip(before, after, strict=True)]
        n["wide_leaps"] += sum(abs(m) > 12 for m in motion)
        n["tritone_leaps"] += sum(abs(m) == 6 for m in motion)
        for u, v in itertools.combinations(range(4), 2):
            if min(after[u], after[v]) < 0:
                continue
            n["crossings"] += after[u] < after[v]
            n["spacing"] += v == u + 1 < 3 and after[u] - after[v] > 12
            if min(before[u], before[v]) < 0:
                continue
            old, new = abs(before[u] - before[v]) % 12, abs(after[u] - after[v]) % 12
            if motion[u] * motion[v] > 0:
                for size, name in (7, "fifths"), (0, "octaves"):
                    n[f"parallel_{name}"] += old == new == size
                    n[f"direct_{name}"] += (u, v) == (0, 3) and abs(motion[0]) > 2 and old != new == size
            if v == u + 1 and before[u] >= before[v] and after[u] >= after[v]:
                n["overlaps"] += after[u] < before[v] or after[v] > before[u]
    return n


@fuzz
@given(piece=pieces())
def test_voice_leading_is_what_is_written(piece):
    assert metrics.voice_leading(piece) == naive_voice_leading(piece)


# ---------------------------------------------------------------- histograms and chords


def test_histograms_of_a_few_notes():
    piece = chorale([72, _, 60, 43], [72, _, 60, 43], [74, _, _, 43], [72, _, _, 57])
    assert metrics.pitch_class_histogram(piece).tolist() == [5, 0, 1, 0, 0, 0, 0, 3, 0, 1, 0, 0]
    melodic = metrics.melodic_histogram(piece)
    soprano, bass = melodic[0], melodic[3]
    assert np.flatnonzero(soprano).tolist() == [12 - 2, 12 + 2]
    assert np.flatnonzero(bass).tolist() == [24]  # 14 semitones count as 12
    assert melodic.sum() == 3
    harmonic = metrics.harmonic_histogram(piece)
    assert {k: int(v) for k, v in enumerate(harmonic) if v} == {0: 2, 5: 4, 7: 1, 3: 1}


def test_no_interval_across_a_rest():
    assert metrics.melodic_histogram(melody(60, _, 62, 62)).sum() == 0


@pytest.mark.parametrize(
    ("pitches", "quality"),
    [
        ([72, 67, 64, 48], "major"),
        ([76, 72, 67, 52], "major"),  # first inversion
        ([72, 64, 60, 48], "major"),  # without its fifth
        ([72, 67, 63, 48], "minor"),
        ([_, _, 63, 48], "minor"),
        ([72, 66, 63, 48], "diminished"),
        ([70, 67, 64, 48], "dominant seventh"),
        ([70, 64, 60, 48], "dominant seventh"),
        ([70, 67, 63, 48], "minor seventh"),
        ([70, 63, 60, 48], "minor seventh"),
        ([70, 66, 63, 48], "half-diminished seventh"),
        ([71, 67, 64, 48], "major seventh"),
        ([69, 66, 63, 48], "diminished seventh"),
        ([72, 68, 64, 48], None),  # augmented
        ([72, 67, 60, 48], None),  # a bare fifth
        ([72, 67, 65, 48], None),  # a suspended fourth
        ([72, 60, _, 48], None),
        ([72, 67, 62, 52], None),  # a ninth too many
    ],
)
def test_qualities(pitches, quality):
    names = [*metrics.QUALITIES, None]
    for shift in range(12):
        counts = metrics.chord_histogram(moved(chorale(pitches), shift))
        assert [names[index] for index in np.flatnonzero(counts)] == [quality]


def test_share_of_chords_leaves_silence_out():
    piece = chorale([72, 67, 64, 48], [72, 67, 62, 48], [_, _, _, _])
    assert metrics.measure(piece)["tonal"] == 0.5
    assert metrics.measure(chorale([_, _, _, _]))["tonal"] is None


def test_scale_is_counted_from_its_tonic():
    piece = melody(62, 64, 66, 67, 69, 71, 73, 74, 63)  # D major and a foreign note
    assert metrics.scale_histogram(piece).tolist() == [2, 1, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1]
    assert metrics.measure(piece)["in_scale"] == pytest.approx(8 / 9)


def test_divergence():
    assert metrics.divergence(np.array([1, 3]), np.array([2, 6])) == 0
    assert metrics.divergence(np.array([1, 0]), np.array([0, 5])) == 1
    assert metrics.divergence(np.array([0, 0]), np.array([0, 5])) is None
    expected = (math.log2(1 / 0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)) / 2
    assert metrics.divergence(np.array([4, 0]), np.array([1, 1])) == pytest.approx(expected)
    rows = metrics.divergence(np.array([[4, 0], [0, 0], [1, 1]]), np.array([[1, 1], [1, 1], [1, 1]]))
    assert rows == pytest.approx(expected / 2)


# ---------------------------------------------------------------- ranges and rhythm


def test_ranges():
    piece = chorale([60, 53, 47, _], [81, 75, 69, _], [82, 74, _, _], [59, 60, 60, _])
    assert metrics.compass(piece) == {"Soprano": (59, 82), "Alto": (53, 75), "Tenor": (47, 69), "Bass": None}
    assert metrics.outside_range(piece) == {"Soprano": 0.5, "Alto": 0.25, "Tenor": 1 / 3, "Bass": None}
    assert metrics.outside_range(piece, [(59, 82)] * 4)["Soprano"] == 0


def test_rhythm():
    soprano = [60] * 4 + [62] * 2 + [64] * 2 + [_] * 4 + [64] * 4  # a quarter, two eighths, a rest, a quarter
    bass = [48] * 7 + [50] * 9
    piece = Chorale(np.array([soprano, [_] * 16, [_] * 16, bass]).T)
    assert metrics.rhythm(piece) == {
        "notes_per_bar_soprano": 4,
        "notes_per_bar_alto": 0,
        "notes_per_bar_tenor": 0,
        "notes_per_bar_bass": 2,
        "changes": 5 / 15,
        "changes_on_1": 3 / 5,
        "changes_on_2": 0,
        "changes_on_3": 1 / 5,
        "changes_on_4": 1 / 5,
    }
    half = Chorale(piece.pitches[:8])
    assert metrics.rhythm(half)["notes_per_bar_soprano"] == 6


# ---------------------------------------------------------------- all together


@fuzz
@given(piece=pieces(), other=pieces(), shift=st.integers(-24, 24))
def test_values_do_not_depend_on_the_key(piece, other, shift):
    def values(piece):
        result = metrics.examine([piece], [other], [other])["samples"]["pieces"][0]["values"]
        return {k: v for k, v in result.items() if not k.startswith("outside") and not k.endswith("in_key")}

    assert values(moved(piece, shift)) == values(piece)
    assert metrics.voice_leading(moved(piece, shift)) == metrics.voice_leading(piece)
    turned = np.roll(metrics.pitch_class_histogram(piece), shift)
    assert metrics.pitch_class_histogram(moved(piece, shift)).tolist() == turned.tolist()


@fuzz
@given(samples=st.lists(pieces(), min_size=1, max_size=3), reference=st.lists(pieces(), max_size=3))
def test_whatever_is_examined_is_plain_data_and_a_table(samples, reference):
    result = metrics.examine(samples, reference[:1], reference)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len({line.count("|") for line in metrics.render(result).splitlines() if line.startswith("|")}) == 1


def test_examine_says_what_is_measured_of_each_and_of_all():
    a, b = random_piece(1, 20, "a"), random_piece(2, 30, "b")
    result = metrics.examine([a, b], [b], [a, b, random_piece(3, 20, "c")])
    samples = result["samples"]
    assert [piece["name"] for piece in samples["pieces"]] == ["a", "b"]
    values = [piece["values"] for piece in samples["pieces"]]
    assert values[0].items() >= metrics.measure(a).items()
    assert samples["mean"]["crossings"] == pytest.approx((values[0]["crossings"] + values[1]["crossings"]) / 2)
    assert samples["sd"]["crossings"] == pytest.approx(
        abs(values[0]["crossings"] - values[1]["crossings"]) / 2**0.5
    )
    low = min(metrics.compass(piece)["Alto"][0] for piece in (a, b))
    assert samples["range"]["Alto"][0] == low
    assert samples["pieces"][1]["copied"]["changes"] == values[1]["copied_changes"] == 29
    histogram = metrics.harmonic_histogram(a) + metrics.harmonic_histogram(b)
    assert samples["histograms"]["harmonic"] == histogram.tolist()
    assert result["training_pieces"] == 1


def test_a_reference_piece_is_compared_with_the_others():
    a, b = random_piece(1, 20), random_piece(2, 30)
    result = metrics.examine([a], reference=[a, b])
    expected = metrics.divergence(metrics.harmonic_histogram(a), metrics.harmonic_histogram(b))
    assert result["reference"]["pieces"][0]["values"]["distance_harmonic"] == expected
    assert result["samples"]["pieces"][0]["values"]["distance_harmonic"] < expected
    alone = metrics.examine([a], reference=[a])["reference"]["mean"]
    assert alone["distance_harmonic"] is None


def test_a_copy_is_told_in_words():
    source = random_piece(1, 20, "jsb-train-000")
    part = Chorale(moved(source, 1).pitches[4:13])
    free = random_piece(2, 20, "free")
    text = metrics.render(metrics.examine([free, part], [source], [source, free]))
    assert "**Sample 2 copies jsb-train-000**: 8 chord changes" in text
    assert "all of it, are that piece's from step 4, 1 semitone higher." in text
    assert "Sample 1" not in text
    assert "Of the 2 reference pieces 1 shares as many" in text
    shorter = Chorale(part.pitches[:-1])
    text = metrics.render(metrics.examine([free, shorter], [source]))
    assert "No sample shares 8 chord changes" in text
    assert "the longest span shared has 7" in text
    assert "reference" not in text
    assert "Copies were not looked for" in metrics.render(metrics.examine([free]))


def test_no_samples_are_refused():
    with pytest.raises(SeqpopeError, match="no sample"):
        metrics.examine([])


def test_every_value_has_a_row():
    result = metrics.examine([random_piece(1, 9)], [random_piece(2, 9)], [random_piece(3, 9)] * 2)
    assert set(result["samples"]["mean"]) == {key for _label, key, *_scale in metrics.ROWS}
    text = metrics.render(result)
    assert all(f"| {label} " in text for label, *_rest in metrics.ROWS)
    assert all(f"{voice}: lowest to highest" in text for voice in VOICES)


def test_parallels_are_what_the_rule_against_them_forbids():
    """The scalar rule that sampling keeps and the vectorised count of reports are one definition."""
    random = np.random.default_rng(3)
    pitches = random.integers(55, 68, (4000, 4))
    pitches[random.random(pitches.shape) < 0.05] = -1
    found = metrics.voice_leading(Chorale(pitches.astype(np.int16)))
    pairs = sum(
        constraints.parallel(before[a], after[a], before[b], after[b])
        for before, after in itertools.pairwise(pitches.tolist())
        for a, b in itertools.combinations(range(4), 2)
    )
    assert pairs > 100
    assert found["parallel_fifths"] + found["parallel_octaves"] == pairs
