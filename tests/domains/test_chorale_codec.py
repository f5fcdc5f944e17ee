from __future__ import annotations

import contextlib
import json
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqpope.domains.music.chorales import codec
from seqpope.domains.music.chorales.codec import SILENCE, Chorale, CodecError
from seqpope.errors import SeqpopeError

TICKS = 480
STEP = TICKS // 4


def fuzz(examples: int):
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def midi_file(path: Path, tracks, *, ticks=TICKS, signature=None, kind=1) -> Path:
    """Write tracks of (name, channel, [(start tick, end tick, pitch)]) with mido, not with our own writer."""
    midi = mido.MidiFile(ticks_per_beat=ticks, type=kind)
    if signature:
        midi.tracks.append(
            mido.MidiTrack(
                [mido.MetaMessage("time_signature", numerator=signature[0], denominator=signature[1], time=0)]
            )
        )
    for name, channel, notes in tracks:
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name, time=0)] if name else [])
        events = sorted(
            [(end, 0, pitch) for _, end, pitch in notes] + [(start, 1, pitch) for start, _, pitch in notes]
        )
        now = 0
        for tick, is_on, pitch in events:
            kind_of = "note_on" if is_on else "note_off"
            velocity = 80 if is_on else 0
            track.append(mido.Message(kind_of, channel=channel, note=pitch, velocity=velocity, time=tick - now))
            now = tick
        midi.tracks.append(track)
    midi.save(path)
    return path


def note(start, length, pitch):
    return (round(start * STEP), round((start + length) * STEP), pitch)


# ---------------------------------------------------------------- Chorale


def test_chorale_is_frozen_and_compares_by_content():
    given = np.full((3, 4), 60)
    chorale = Chorale(given, "a")
    given[0, 0] = 61
    assert chorale.pitches[0, 0] == 60
    assert chorale.pitches.dtype == np.int16
    with pytest.raises(ValueError, match="read-only"):
        chorale.pitches[0, 0] = 1
    assert chorale == Chorale(np.full((3, 4), 60), "a")
    assert hash(chorale) == hash(Chorale(np.full((3, 4), 60), "a"))
    assert chorale != Chorale(given, "a")
    assert chorale != Chorale(np.full((3, 4), 60), "b")


@pytest.mark.parametrize(
    ("pitches", "message"),
    [
        (np.zeros((3, 3), int), "shape"),
        (np.zeros(12, int), "shape"),
        (np.zeros((2, 4)), "float64"),
        (np.array([[60, 60, 60, 60], [60, 60, 128, 60]]), "step 1, Tenor: pitch 128"),
        (np.array([[60, -2, 60, 60]]), "step 0, Alto: pitch -2"),
    ],
)
def test_chorale_refuses(pitches, message):
    with pytest.raises(CodecError, match=message):
        Chorale(pitches, "x")


# ---------------------------------------------------------------- JSON


def json_file(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


GOOD = {
    "train": [[[72, 67, 64, 48], [72, -1, 64, 48]], [[60, 55, 52, 36]]],
    "valid": [[[70, 65, 62, 46]]],
    "test": [[[-1, -1, -1, -1]]],
}


def test_read_json(tmp_path):
    splits = codec.read_json(json_file(tmp_path / "a.json", GOOD))
    assert list(splits) == ["train", "validation", "test"]
    assert [chorale.name for chorale in splits["train"]] == ["jsb-train-000", "jsb-train-001"]
    assert splits["validation"][0].name == "jsb-validation-000"
    assert splits["train"][0].pitches.tolist() == GOOD["train"][0]
    assert splits["test"][0].pitches.tolist() == [[SILENCE] * 4]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ([60, 60, 60], r"valid\[0\], step 1: expected four pitches, found 3 values"),
        ([60, 60, 60, 60, 60], "found 5 values"),
        ("abcd", "found str"),
        ([60, 60, 60, 128], "step 1, Bass: .* found 128"),
        ([60, -2, 60, 60], "step 1, Alto: .* found -2"),
        ([60, 60, 60.5, 60], "step 1, Tenor: .* found 60.5"),
        ([60, 60, 60.0, 60], "step 1, Tenor: .* found 60.0"),
        ([True, 60, 60, 60], "step 1, Soprano: .* found True"),
        ([None, 60, 60, 60], "found None"),
        ([float("nan"), 60, 60, 60], "found nan"),
        ([10**30, 60, 60, 60], "Soprano"),
    ],
)
def test_read_json_names_piece_and_step(tmp_path, step, message):
    content = {**GOOD, "valid": [[[60, 60, 60, 60], step]]}
    with pytest.raises(CodecError, match=message):
        codec.read_json(json_file(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "keys"),
        ({"train": [], "test": []}, "keys train, valid, test"),
        ({**GOOD, "more": []}, "more"),
        ({**GOOD, "test": []}, "'test' should be a list of pieces"),
        ({**GOOD, "test": [[]]}, r"test\[0\]: expected a list of steps"),
        ({**GOOD, "test": {}}, "'test' should be a list"),
        ("[" * 100_000, "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_read_json_refuses(tmp_path, content, message):
    with pytest.raises(CodecError, match=message):
        codec.read_json(json_file(tmp_path / "a.json", content))


def test_read_json_missing(tmp_path):
    with pytest.raises(CodecError, match="cannot be read"):
        codec.read_json(tmp_path / "none.json")


@fuzz(60)
@given(cut=st.integers(0, len(json.dumps(GOOD)) - 1))
def test_truncated_json_is_refused(tmp_path, cut):
    with pytest.raises(CodecError):
        codec.read_json(json_file(tmp_path / "a.json", json.dumps(GOOD)[:cut]))


@fuzz(60)
@given(content=st.binary(max_size=200))
def test_garbage_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CodecError):
        codec.read_json(tmp_path / "a.json")


# ---------------------------------------------------------------- MIDI: round trip


def assert_round_trip(chorale: Chorale, path: Path, **options) -> None:
    codec.write_midi(chorale, path, **options)
    assert np.array_equal(codec.read_midi(path).pitches, chorale.pitches), chorale.name


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_midi_round_trip_of_chorales(chorales, tmp_path, every):
    for number, chorale in enumerate(chorales[::every]):
        assert_round_trip(chorale, tmp_path / "a.mid", tempo=40 + 0.43 * number, merge_repeats=number % 2 == 0)


pitches = st.one_of(st.just(SILENCE), st.integers(0, 127))


@fuzz(60)
@given(
    grid=st.lists(st.lists(pitches, min_size=4, max_size=4), min_size=1, max_size=40),
    tempo=st.floats(4, 1000),
    merge_repeats=st.booleans(),
)
def test_midi_round_trip_of_anything(tmp_path, grid, tempo, merge_repeats):
    """Crossing voices, unisons, silence at both ends and nothing but silence all come back."""
    assert_round_trip(Chorale(np.array(grid)), tmp_path / "a.mid", tempo=tempo, merge_repeats=merge_repeats)


def test_written_midi_has_named_tracks_tempo_and_held_notes(tmp_path):
    grid = np.repeat([[72, 67, 64, 48]], 8, axis=0)
    codec.write_midi(Chorale(grid), tmp_path / "held.mid", tempo=100, voice_program=[0, 1, 2, 3])
    codec.write_midi(Chorale(grid), tmp_path / "struck.mid", merge_repeats=False)
    held, struck = (mido.MidiFile(tmp_path / name) for name in ("held.mid", "struck.mid"))
    assert [track.name for track in held.tracks[1:]] == ["Soprano", "Alto", "Tenor", "Bass"]
    tempos = [message.tempo for message in held.tracks[0] if message.type == "set_tempo"]
    assert mido.tempo2bpm(tempos[0]) == pytest.approx(100, abs=0.01)
    signature = next(message for message in held.tracks[0] if message.type == "time_signature")
    assert (signature.numerator, signature.denominator) == (4, 4)
    programs = [m.program for track in held.tracks for m in track if m.type == "program_change"]
    assert programs == [0, 1, 2, 3]
    onsets = [
        sum(m.type == "note_on" and m.velocity > 0 for t in midi.tracks for m in t) for midi in (held, struck)
    ]
    assert onsets == [4, 32]


def test_write_midi_refuses(tmp_path):
    chorale = Chorale(np.full((4, 4), 60), "x")
    with pytest.raises(CodecError, match="no steps"):
        codec.write_midi(Chorale(np.zeros((0, 4), int)), tmp_path / "a.mid")
    with pytest.raises(CodecError, match="tempo"):
        codec.write_midi(chorale, tmp_path / "a.mid", tempo=0)
    with pytest.raises(CodecError, match="tempo"):
        codec.write_midi(chorale, tmp_path / "a.mid", tempo=float("nan"))
    with pytest.raises(CodecError, match="voice_program"):
        codec.write_midi(chorale, tmp_path / "a.mid", voice_program=128)
    (tmp_path / "file").write_text("")
    with pytest.raises(CodecError, match="cannot be written"):
        codec.write_midi(chorale, tmp_path / "file" / "a.mid")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


# ---------------------------------------------------------------- MIDI: others' files


def test_unnamed_tracks_become_voices_by_mean_pitch(tmp_path):
    lines = {48: 3, 72: 0, 55: 2, 64: 1}
    tracks = [("", channel, [note(0, 4, pitch)]) for channel, pitch in enumerate(lines)]
    chorale = codec.read_midi(midi_file(tmp_path / "a.mid", tracks))
    assert chorale.pitches.tolist() == [[72, 64, 55, 48]] * 4


def test_named_tracks_stay_voices_though_they_cross(tmp_path):
    tracks = [("Bass", 0, [note(0, 2, 70)]), ("Tenor", 1, [note(0, 2, 50)])]
    assert codec.read_midi(midi_file(tmp_path / "a.mid", tracks)).pitches.tolist() == [[-1, -1, 50, 70]] * 2


def test_melody_is_the_soprano(tmp_path):
    path = midi_file(tmp_path / "a.mid", [("Flute", 0, [note(0, 2, 70), note(3, 1, 71)])])
    assert codec.read_midi(path).pitches[:, 0].tolist() == [70, 70, -1, 71]
    assert (codec.read_midi(path).pitches[:, 1:] == SILENCE).all()


def test_polyphonic_track_is_assigned_top_down(tmp_path):
    notes = [note(0, 4, pitch) for pitch in (48, 72, 55, 64)] + [note(4, 2, 50), note(4, 2, 60)]
    chorale = codec.read_midi(midi_file(tmp_path / "a.mid", [("Piano", 0, notes)]))
    assert chorale.pitches.tolist() == [[72, 64, 55, 48]] * 4 + [[60, 50, -1, -1]] * 2


def test_four_named_voices_are_taken_from_a_larger_score(tmp_path):
    tracks = [
        (name, channel, [note(0, 2, 72 - 5 * channel)])
        for channel, name in enumerate(("Soprano", "Alto", "Tenor", "Bass", "Horn 1"))
    ]
    with pytest.warns(UserWarning, match="left out Horn 1"):
        chorale = codec.read_midi(midi_file(tmp_path / "a.mid", tracks))
    assert chorale.pitches.tolist() == [[72, 67, 62, 57]] * 2


def test_five_notes_at_once_are_refused_with_bar_and_beat(tmp_path):
    notes = [note(14, 2, 60 + 3 * k) for k in range(5)]
    path = midi_file(tmp_path / "a.mid", [("", 0, notes)], signature=(3, 4))
    with pytest.raises(CodecError, match=r"bar 2, beat 1.5: 5 notes sound together"):
        codec.read_midi(path)


@pytest.mark.parametrize("start", [1 + 1 / 3, 2 / 3, 4.5])
def test_triplets_and_32nds_are_refused(tmp_path, start):
    path = midi_file(tmp_path / "a.mid", [("", 0, [note(start, 1, 60)])])
    beat = rf"{start / 4 + 1:.4g}" if start < 4 else r"2\.125"
    with pytest.raises(CodecError, match=rf"bar 1, beat {beat}.*quantise"):
        codec.read_midi(path)


def test_slight_shifts_and_shortened_notes_are_taken(tmp_path):
    path = midi_file(tmp_path / "a.mid", [("", 0, [note(0.1, 3.6, 60), note(3.9, 0.3, 62)])])
    assert codec.read_midi(path).pitches[:, 0].tolist() == [60, 60, 60, 60, 62]


@pytest.mark.parametrize("ticks", [24, 96, 220, 1024])
def test_grid_is_of_ticks_not_seconds(tmp_path, ticks):
    tracks = [("", 0, [(0, ticks, 60), (ticks, ticks * 3 // 2, 62)])]
    path = midi_file(tmp_path / "a.mid", tracks, ticks=ticks)
    midi = mido.MidiFile(path)
    midi.tracks[0].insert(0, mido.MetaMessage("set_tempo", tempo=333_333))
    midi.tracks[0].insert(3, mido.MetaMessage("set_tempo", tempo=1_234_567))
    midi.save(path)
    assert codec.read_midi(path).pitches[:, 0].tolist() == [60] * 4 + [62] * 2


def test_drums_are_skipped_and_drums_alone_refused(tmp_path):
    drums = ("Kit", 9, [note(0.5, 1, 36)])
    both = midi_file(tmp_path / "a.mid", [drums, ("", 0, [note(0, 1, 60)])])
    assert codec.read_midi(both).pitches.tolist() == [[60, -1, -1, -1]]
    with pytest.raises(CodecError, match="no notes but drums"):
        codec.read_midi(midi_file(tmp_path / "b.mid", [drums]))


def test_empty_midi_is_refused(tmp_path):
    with pytest.raises(CodecError, match="has no notes"):
        codec.read_midi(midi_file(tmp_path / "a.mid", [("", 0, [])]))
    with pytest.raises(CodecError, match="there is no file"):
        codec.read_midi(tmp_path / "none.mid")


def test_endless_midi_is_refused(tmp_path):
    path = midi_file(tmp_path / "a.mid", [("", 0, [(0, 2**27, 60)])], ticks=1)
    with pytest.raises(CodecError, match="cut the file"):
        codec.read_midi(path)


@fuzz(80)
@given(content=st.binary(max_size=300), header=st.booleans())
def test_garbage_midi_gives_a_chorale_or_an_error(tmp_path, content, header):
    start = b"MThd\0\0\0\6\0\1\0\2\1\xe0MTrk" + len(content).to_bytes(4, "big") if header else b""
    (tmp_path / "a.mid").write_bytes(start + content)
    with contextlib.suppress(SeqpopeError):
        assert isinstance(codec.read_midi(tmp_path / "a.mid"), Chorale)


@fuzz(80)
@given(where=st.floats(0, 1), value=st.integers(0, 255), cut=st.floats(0, 1))
def test_damaged_midi_gives_a_chorale_or_an_error(tmp_path, where, value, cut):
    codec.write_midi(Chorale(np.array([[72, 67, 64, 48], [71, 67, -1, 50]])), tmp_path / "a.mid")
    content = bytearray((tmp_path / "a.mid").read_bytes())
    content[int(where * (len(content) - 1))] = value
    (tmp_path / "a.mid").write_bytes(content[: int(cut * len(content))])
    with contextlib.suppress(SeqpopeError):
        assert isinstance(codec.read_midi(tmp_path / "a.mid"), Chorale)


# ---------------------------------------------------------------- MusicXML and Humdrum

KERN = """**kern\t**kern\t**kern\t**kern
*M4/4\t*M4/4\t*M4/4\t*M4/4
=1\t=1\t=1\t=1
4C\t4E\t8G\t4cc
.\t.\t8A\t.
4D\t4F\t[4B\t16dd
.\t.\t.\t16ee
.\t.\t.\t8ff
4E\t4r\t4B]\t4cc
4C\t4E\t4G\t4cc
==\t==\t==\t==
*-\t*-\t*-\t*-
"""


def test_humdrum(tmp_path):
    (tmp_path / "a.krn").write_text(KERN)
    chorale = codec.read_score(tmp_path / "a.krn")
    soprano, alto, tenor, bass = chorale.pitches.T.tolist()
    assert soprano == [72] * 4 + [74, 76, 77, 77] + [72] * 8
    assert alto == [55, 55, 57, 57] + [59] * 8 + [55] * 4
    assert tenor == [52] * 4 + [53] * 4 + [-1] * 4 + [52] * 4
    assert bass == [48] * 4 + [50] * 4 + [52] * 4 + [48] * 4
    assert chorale.name == "a"


def musicxml(tmp_path, parts) -> Path:
    from music21 import stream

    score = stream.Score()
    for part in parts:
        score.insert(0, part)
    path = tmp_path / "a.musicxml"
    score.write("musicxml", path)
    return path


def part_of(name, notes, instrument=None):
    from music21 import meter, stream
    from music21 import note as m21note

    part = stream.Part(id=name)
    part.partName = name
    if instrument is not None:
        part.insert(0, instrument)
    part.append(meter.TimeSignature("4/4"))
    for pitch, quarters in notes:
        part.append(m21note.Note(pitch, quarterLength=quarters) if pitch else m21note.Rest(quarterLength=quarters))
    return part


def test_musicxml_voices_rests_and_trailing_silence(tmp_path):
    parts = [
        part_of("Soprano", [(72, 1), (None, 2), (None, 1)]),
        part_of("Bass", [(48, 0.5), (50, 0.25), (None, 3.25)]),
    ]
    chorale = codec.read_score(musicxml(tmp_path, parts))
    assert chorale.pitches.shape == (16, 4)
    assert chorale.pitches[:5].tolist() == [
        [72, -1, -1, 48],
        [72, -1, -1, 48],
        [72, -1, -1, 50],
        [72, -1, -1, -1],
        [-1, -1, -1, -1],
    ]


def test_musicxml_is_read_at_sounding_pitch(tmp_path):
    from music21 import instrument

    part = part_of("Clarinet", [(62, 4)], instrument.Clarinet())
    part.atSoundingPitch = False
    chorale = codec.read_score(musicxml(tmp_path, [part]))
    assert chorale.pitches[:, 0].tolist() == [60] * 16


def test_musicxml_triplets_are_refused_with_bar(tmp_path):
    from fractions import Fraction

    third = Fraction(1, 3)
    part = part_of("Soprano", [(60, 4), (60, 1), (62, third), (64, third), (65, third), (60, 2)])
    with pytest.raises(CodecError, match=r"bar 2, beat 2.333 .*'Soprano'.*quantise"):
        codec.read_score(musicxml(tmp_path, [part]))


def test_musicxml_with_too_many_notes_is_refused(tmp_path):
    from music21 import chord

    part = part_of("Piano", [])
    part.append(chord.Chord([48, 52, 55, 60, 64], quarterLength=4))
    with pytest.raises(CodecError, match=r"bar 1, beat 1 .*5 notes sound together"):
        codec.read_score(musicxml(tmp_path, [part]))


def test_musicxml_without_notes_is_refused(tmp_path):
    with pytest.raises(CodecError, match="no notes"):
        codec.read_score(musicxml(tmp_path, [part_of("Soprano", [(None, 4)])]))


@pytest.mark.parametrize("suffix", [".musicxml", ".xml", ".mxl", ".krn"])
@pytest.mark.parametrize(
    "content", [b"", b"\0\1\2", b"<score-partwise><part>", b"PK\3\4 no archive", b"**kern\n4"]
)
def test_garbage_scores_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CodecError):
        codec.read_score(path)


def test_unknown_suffix_and_missing_file(tmp_path):
    with pytest.raises(CodecError, match=r"'\.wav' is not one of \.mid"):
        codec.read_score(tmp_path / "a.wav")
    with pytest.raises(CodecError, match="there is no file"):
        codec.read_score(tmp_path / "a.mxl")
