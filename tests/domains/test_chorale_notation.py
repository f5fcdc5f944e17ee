from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chorale_pieces import CHORD, files, held
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqpope.domains.music.chorales import codec, notation
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError


def assert_round_trip(chorale: Chorale, path: Path, **options) -> None:
    notation.write_musicxml(chorale, path, **options)
    assert np.array_equal(codec.read_score(path).pitches, chorale.pitches)


@pytest.mark.parametrize("merge_repeats", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5, 15, 16, 17, 33])
def test_musicxml_round_trip_of_any_length(tmp_path, steps, merge_repeats):
    assert_round_trip(held(CHORD, steps=steps), tmp_path / "a.musicxml", merge_repeats=merge_repeats)


def test_musicxml_keeps_silence_at_both_ends_and_voices_that_never_sing(tmp_path):
    rest = [SILENCE] * 4
    assert_round_trip(held(rest, [72, -1, 64, -1], [-1, -1, 64, -1], rest, steps=7), tmp_path / "a.xml")


voice_runs = st.lists(
    st.tuples(st.one_of(st.just(SILENCE), st.integers(0, 127)), st.integers(1, 20)), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(voices=st.tuples(*[voice_runs] * 4), fifths=st.none() | st.integers(-7, 7), merge_repeats=st.booleans())
def test_musicxml_round_trip_of_anything(tmp_path, voices, fifths, merge_repeats):
    """Crossing voices, unisons, extreme pitches in extreme keys and notes over bar lines all come back."""
    columns = [np.repeat([p for p, _ in runs], [n for _, n in runs]) for runs in voices]
    steps = min(map(len, columns))
    grid = np.stack([column[:steps] for column in columns], axis=1)
    if (grid == SILENCE).all():
        grid[0, 0] = 60
    assert_round_trip(Chorale(grid), tmp_path / "a.musicxml", key_fifths=fifths, merge_repeats=merge_repeats)


def test_musicxml_of_nothing_but_silence_is_a_score_of_rests(tmp_path):
    from music21 import converter

    notation.write_musicxml(held([SILENCE] * 4, steps=20), tmp_path / "a.musicxml")
    score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
    assert len(score.parts) == 4
    assert score.parts[0].highestTime == 5
    with pytest.raises(CodecError, match="no notes"):
        codec.read_score(tmp_path / "a.musicxml")


def test_musicxml_has_what_a_reader_of_scores_wants(tmp_path):
    from music21 import converter

    # D major: four bars less a quarter; the alto's half note begins on the last beat of the first bar.
    grid = np.repeat([[74, 69, 66, 50], [73, 69, 64, 57], [74, 66, 62, 50]], 20, axis=0)
    grid[:12, 1] = SILENCE
    notation.write_musicxml(Chorale(grid, "Dir, dir\x00 <&> Jehova"), tmp_path / "a.musicxml", tempo=72)
    score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
    assert score.metadata.bestTitle == "Dir, dir  <&> Jehova"
    assert score.metadata.composer == "seqpope"
    assert [part.partName for part in score.parts] == ["Soprano", "Alto", "Tenor", "Bass"]
    clefs = [part.recurse().getElementsByClass("Clef").first() for part in score.parts]
    assert [(clef.sign, clef.octaveChange) for clef in clefs] == [("G", 0), ("G", 0), ("G", -1), ("F", 0)]
    for part in score.parts:
        measures = list(part.getElementsByClass("Measure"))
        assert [float(measure.highestTime) for measure in measures] == [4, 4, 4, 3]
        assert measures[0].timeSignature.ratioString == "4/4"
        assert measures[0].keySignature.sharps == 2
        assert measures[-1].rightBarline.type == "final"
    tempo = score.recurse().getElementsByClass("MetronomeMark").first()
    assert tempo.number == 72
    soprano = [note.pitch.nameWithOctave for note in score.parts[0].recurse().notes if note.pitch.midi == 73]
    assert set(soprano) == {"C#5"}
    alto = list(score.parts[1].recurse().notesAndRests)
    assert [(element.isRest, float(element.quarterLength)) for element in alto[:4]] == [
        (True, 2),
        (True, 1),
        (False, 1),
        (False, 4),
    ]
    assert [element.tie.type for element in alto[2:4]] == ["start", "continue"]
    text = (tmp_path / "a.musicxml").read_text()
    assert 'print-object="no"' not in text  # music21's hidden rests
    assert "<accidental>" not in text  # nothing that the key signature does not say


def test_musicxml_strikes_repeated_notes_when_told_to(tmp_path):
    from music21 import converter

    counts = []
    for merge_repeats in (True, False):
        notation.write_musicxml(held(CHORD), tmp_path / "a.musicxml", merge_repeats=merge_repeats)
        score = converter.parseFile(tmp_path / "a.musicxml", forceSource=True, storePickle=False)
        counts.append([len(part.recurse().notes) for part in score.parts])
        assert not any(note.tie for note in score.recurse().notes)
    assert counts == [[1] * 4, [4] * 4]


def test_the_same_piece_is_the_same_file(tmp_path):
    written = []
    for name in ("a.musicxml", "b.musicxml"):
        notation.write_musicxml(held(CHORD), tmp_path / name)
        lines = (tmp_path / name).read_text().splitlines()
        written.append([line for line in lines if "encoding-date" not in line])  # midnight may lie between
    assert written[0] == written[1]


@pytest.mark.parametrize("fifths", range(-7, 8))
@pytest.mark.parametrize("mode", [None, "minor"])
def test_every_pitch_is_spelled_as_itself_and_the_scale_by_the_signature(fifths, mode):
    from music21 import key, pitch

    spelled = notation.spell(fifths, mode)
    assert [pitch.Pitch(name, octave=octave).ps for name, octave in spelled] == list(range(128))
    scale = {p.name for p in key.KeySignature(fifths).asKey("major").pitches}
    assert scale <= {name for name, _ in spelled}


def test_spelling_of_leading_notes():
    names = dict(enumerate(name for name, _ in notation.spell(0, "minor")[60:72]))
    assert (names[8], names[6], names[3], names[10]) == ("G#", "F#", "D#", "B-")
    names = dict(enumerate(name for name, _ in notation.spell(-3, "minor")[60:72]))
    assert (names[11], names[8], names[3], names[6]) == ("B", "A-", "E-", "F#")


@pytest.mark.parametrize(("tonic", "fifths"), [(0, 0), (2, 2), (4, 4), (5, -1), (7, 1), (9, 3), (10, -2), (3, -3)])
def test_estimated_key_of_a_cadence(tonic, fifths):
    cadence = np.array([[72, 67, 64, 48], [72, 69, 65, 53], [71, 67, 62, 55], [72, 67, 64, 48]])
    assert notation.estimate_key(held(*(cadence + tonic))) == (fifths, "major")


def test_a_given_key_signature_spells(tmp_path):
    from music21 import converter

    for fifths, name in ((4, "G#4"), (-4, "A-4")):
        notation.write_musicxml(held([68, -1, -1, -1]), tmp_path / "a.xml", key_fifths=fifths)
        score = converter.parseFile(tmp_path / "a.xml", forceSource=True, storePickle=False)
        assert [note.pitch.nameWithOctave for note in score.recurse().notes] == [name]
        assert {key.sharps for key in score.recurse().getElementsByClass("KeySignature")} == {fifths}


def test_estimated_key_needs_next_to_nothing():
    assert notation.estimate_key(held([SILENCE] * 4)) == (0, "major")
    fifths, mode = notation.estimate_key(held([61, -1, -1, -1], steps=1))
    assert -6 <= fifths <= 6
    assert mode in ("major", "minor")


@pytest.mark.parametrize("rest", [True, False])
def test_notes_are_cut_into_what_one_sign_writes(rest):
    for start in range(16):
        for end in range(start + 1, start + 70):
            pieces = list(notation._pieces(start, end, rest))
            assert [pieces[0][0], *(last for _, last in pieces)] == [*(first for first, _ in pieces), end]
            for first, last in pieces:
                assert last - first in (1, 2, 3, 4, 6, 8, 12, 16)
                assert first // 16 == (last - 1) // 16


@pytest.mark.parametrize(
    ("start", "end", "lengths"),
    [
        (0, 6, [6]),  # dotted quarter
        (4, 12, [8]),  # half note on the second beat
        (2, 6, [4]),  # syncopation within half a bar
        (6, 10, [2, 2]),  # the middle of the bar is seen
        (0, 5, [4, 1]),
        (12, 36, [4, 16, 4]),
    ],
)
def test_notes_are_cut_by_custom(start, end, lengths):
    assert [last - first for first, last in notation._pieces(start, end, rest=False)] == lengths


@pytest.mark.parametrize(
    ("chorale", "name", "options", "message"),
    [
        (Chorale(np.zeros((0, 4), int)), "a.xml", {}, "no steps"),
        (held(CHORD), "a.mid", {}, r"ends in \.musicxml or \.xml, not '\.mid'"),
        (held(CHORD), "a.xml", {"tempo": 0}, "tempo must be 4 to 1000"),
        (held(CHORD), "a.xml", {"tempo": float("nan")}, "tempo must be"),
        (held(CHORD), "a.xml", {"key_fifths": 8}, "key_fifths must be -7"),
    ],
)
def test_write_musicxml_refuses(tmp_path, chorale, name, options, message):
    with pytest.raises(CodecError, match=message):
        notation.write_musicxml(chorale, tmp_path / name, **options)
    assert files(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("seqpope.files.os.replace", full)
    with pytest.raises(CodecError, match=r"cannot be written .No space left"):
        notation.write_musicxml(held(CHORD), path)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.xml"]
