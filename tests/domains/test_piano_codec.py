from __future__ import annotations

import numpy as np
import pretty_midi
import pytest
from piano_pieces import midi_bytes, note, random_performance, wait

from seqpope.domains.music.piano.codec import CodecError, Performance, parse_midi, read_midi, write_midi


def tempo(microseconds, before=0):
    return wait(before) + b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


class TestReading:
    @pytest.mark.parametrize("ticks", [96, 384, 480, 960])
    def test_times_are_seconds(self, ticks):
        played = parse_midi(midi_bytes(note(60, ticks, before=3 * ticks), ticks=ticks))
        assert (played.onset.tolist(), played.duration.tolist()) == ([1.5], [0.5])
        assert (played.pitch.tolist(), played.velocity.tolist()) == ([60], [64])

    def test_tempo_changes_within_notes(self):
        """One quarter of a second each, then of half a second: a note across the change is 1.5 s long."""
        played = parse_midi(midi_bytes(tempo(1_000_000) + tempo(500_000, 960), note(60, 960, before=480)))
        assert (played.onset.tolist(), played.duration.tolist()) == ([1.0], [1.5])

    def test_half_a_grid_step_is_exact(self):
        """840 ticks of 1/768 s are 17.5 sixteenths of a second; a difference of floats says a little less."""
        played = parse_midi(midi_bytes(note(62, 840, before=49045), ticks=384))
        assert played.duration[0] * 16 == 17.5

    def test_pedal(self):
        events = note(60, 480) + wait(0) + b"\xb0\x40\x7f" + wait(960) + b"\xb0\x40\x00" + note(62, 480)
        assert parse_midi(midi_bytes(events)).pedal.tolist() == [[0.5, 1.5]]

    def test_tracks_and_channels_are_one_performance(self):
        played = parse_midi(
            midi_bytes(note(60, 100, before=10), note(50, 100, channel=3) + note(70, 5, channel=4))
        )
        assert played.pitch.tolist() == [50, 60, 70]

    def test_notes_come_in_one_order_whatever_tracks_they_are_in(self):
        """By time, then pitch, then duration."""
        chord = [(60, 300), (50, 400), (55, 100)]
        apart = midi_bytes(*[note(pitch, length, before=10) for pitch, length in chord])
        down = b"".join(wait(10 * (not index)) + bytes([0x90, p, 64]) for index, (p, _) in enumerate(chord))
        up = wait(100) + b"\x80\x37\x00" + wait(200) + b"\x80\x3c\x00" + wait(100) + b"\x80\x32\x00"
        for content in (apart, midi_bytes(down + up)):
            assert parse_midi(content).pitch.tolist() == [50, 55, 60]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"x\.mid is not a MIDI file .*found 0 bytes"),
            (b"RIFF" + bytes(100), r"x\.mid is not a MIDI file"),
            (midi_bytes(note(60, 480))[:-9], "cut short"),
            (midi_bytes(note(60, 480), ticks=0xE728), r"x\.mid is not a MIDI file|SMPTE"),
            (midi_bytes(b""), r"x\.mid has no notes: expected a piano performance"),
            (midi_bytes(note(36, 10, channel=9)), r"x\.mid has drums only"),
            (midi_bytes(b"\x00\xc0\x28" + note(60, 10)), r"program 40\): expected pianos alone.*remove"),
            (midi_bytes(note(60, 10), note(36, 10, channel=9)), r"drums\): expected pianos alone"),
            (midi_bytes(note(60, 10) + note(60, 10, before=0x0FFFFFFF)), "lasts 279.* seconds.*cut it"),
        ],
    )
    def test_files_that_are_no_piano(self, content, message):
        with pytest.raises(CodecError, match=message):
            parse_midi(content, "x.mid")

    def test_no_file(self, tmp_path):
        with pytest.raises(CodecError, match=r"none\.mid cannot be read \(No such file"):
            read_midi(tmp_path / "none.mid")


class TestPerformance:
    def test_what_it_refuses(self):
        with pytest.raises(CodecError, match="one length, they have 2, 1, 1 and 1"):
            Performance([0, 1], [1], [60], [64])
        with pytest.raises(CodecError, match="onset must be seconds from 0 on"):
            Performance([-1], [1], [60], [64])
        with pytest.raises(CodecError, match="duration must be seconds"):
            Performance([0], [np.nan], [60], [64])
        with pytest.raises(CodecError, match="onsets must not fall"):
            Performance([1, 0], [1, 1], [60, 60], [64, 64])
        with pytest.raises(CodecError, match=r"note 1: pitch 128 is outside 0\.\.127"):
            Performance([0, 1], [1, 1], [60, 128], [64, 64])
        with pytest.raises(CodecError, match=r"velocity 0 is outside 1\.\.127"):
            Performance([0], [1], [60], [0])
        with pytest.raises(CodecError, match="up before it goes down"):
            Performance([0], [1], [60], [64], [[2, 1]])

    def test_arrays_are_its_own_and_stay(self):
        onset = np.array([0.0])
        played = Performance(onset, [1], [60], [64])
        onset[0] = 5
        assert played.onset.tolist() == [0.0]
        with pytest.raises(ValueError, match="read-only"):
            played.pitch[0] = 61

    def test_seconds(self):
        assert Performance([0, 1], [9, 2], [60, 61], [1, 1]).seconds == 9
        assert Performance([], [], [], []).seconds == 0

    def test_stretched(self):
        played = Performance([0, 1, 1], [2, 0.5, 3], [60, 60, 64], [1, 2, 3], [[0.25, 4]], "x", 5)
        slow = played.stretched(1.5)
        assert (slow.onset.tolist(), slow.duration.tolist()) == ([0, 1.5, 1.5], [3, 0.75, 4.5])
        assert slow.pedal.tolist() == [[0.375, 6]]
        assert (slow.pitch.tolist(), slow.velocity.tolist()) == ([60, 60, 64], [1, 2, 3])
        assert (slow.name, slow.skipped, slow.seconds) == ("x", 5, 6)
        assert played.onset.tolist() == [0, 1, 1]
        for factor in (0, -1, float("nan"), float("inf")):
            with pytest.raises(CodecError, match="'x' cannot be stretched by"):
                played.stretched(factor)

    @pytest.mark.parametrize(
        ("pedal", "sounds"),
        [
            ([], 1.0),
            ([[0.5, 3.0]], 3.0),
            ([[1.0, 3.0]], 3.0),  # down as the key goes up
            ([[1.1, 3.0]], 1.0),  # down too late
            ([[0.2, 1.0]], 1.0),  # up with the key
            ([[0.2, 2.0], [1.5, 4.0]], 4.0),  # of two pedals
        ],
    )
    def test_pedal_extends_notes(self, pedal, sounds):
        assert Performance([0], [1], [60], [64], pedal).sounding().duration.tolist() == [sounds]

    def test_striking_again_ends_a_note(self):
        played = Performance([0, 1, 2, 3], [5, 0.1, 0.1, 0.1], [60, 61, 60, 60], [64] * 4, [[0, 9]])
        assert played.sounding().end.tolist() == [2, 9, 3, 9]
        assert len(played.sounding().pedal) == 0


class TestWriting:
    def test_notes_and_pedal_come_back(self, tmp_path):
        played = random_performance(1, rate=960)
        write_midi(played, tmp_path / "a.mid")
        again = read_midi(tmp_path / "a.mid")
        for key in ("onset", "duration", "pedal"):
            assert np.allclose(getattr(again, key), getattr(played, key), atol=1e-9), key
        assert np.array_equal(again.pitch, played.pitch)
        assert np.array_equal(again.velocity, played.velocity)

    def test_overlapping_notes_of_a_key_come_back(self, tmp_path):
        """In one channel the first note-off could end either note."""
        played = Performance([0, 0.25, 0.5, 0.5], [1, 0.25, 1, 2], [60] * 4, [10, 20, 30, 40])
        write_midi(played, tmp_path / "a.mid")
        again = read_midi(tmp_path / "a.mid")
        assert again.duration.tolist() == [1, 0.25, 1, 2]
        assert again.velocity.tolist() == [10, 20, 30, 40]

    def test_others_can_read_it(self, tmp_path):
        played = Performance([0.5], [2], [60], [77], [[0, 1]])
        write_midi(played, tmp_path / "a.mid")
        (track,) = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid")).instruments
        assert (track.program, track.is_drum, track.name) == (0, False, "Piano")
        (only,) = track.notes
        assert (only.start, only.end, only.pitch, only.velocity) == (0.5, 2.5, 60, 77)
        assert [(c.number, c.value, c.time) for c in track.control_changes] == [(64, 127, 0), (64, 0, 1)]

    def test_nothing_to_write(self, tmp_path):
        with pytest.raises(CodecError, match="has no notes"):
            write_midi(Performance([], [], [], []), tmp_path / "a.mid")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        with pytest.raises(CodecError, match="cannot be written"):
            write_midi(random_performance(0), tmp_path / "file" / "a.mid")
