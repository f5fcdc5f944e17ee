from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piano_pieces import chords, random_performance

from seqpope.domains.music.piano import tokenizer
from seqpope.domains.music.piano.codec import Performance, read_midi, write_midi
from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer, RemiTokenizer, TokenError

REMI, EVENTS = RemiTokenizer(), PerformanceTokenizer()
BOTH = pytest.mark.parametrize("tokens", [REMI, EVENTS], ids=["remi", "performance"])
PIECES = [random_performance(seed, rate=rate) for seed in range(4) for rate in (768, 960)] + [chords()]
SOME_IDS = st.one_of(
    st.lists(st.integers(-3, 340), max_size=60),
    st.lists(st.sampled_from([4, 45, 46, 100, 130, 189, 200, 288, 312]), max_size=60),
    st.lists(st.sampled_from([40, 41, 128, 129, 177, 276, 280, 308]), max_size=60),
)


def words(ids):
    return [REMI.vocabulary[i].removesuffix("_None") for i in ids]


def shifted(tokens, ids, semitones):
    low, high = tokens.shift_range
    ids = ids.astype(int)
    ids[(ids >= low) & (ids <= high)] += semitones
    return ids


class TestRemi:
    def test_vocabulary(self):
        """All 328 entries in order: ids of checkpoints and stores mean these."""
        expected = ["PAD_None", "BOS_None", "EOS_None", "MASK_None", "Bar_None"]
        expected += [f"Pitch_{p}" for p in range(21, 109)] + [f"Velocity_{v}" for v in range(3, 128, 4)]
        expected += [f"Duration_{b}.{p}.8" for b in range(4) for p in range(8)][1:]
        expected += [f"Duration_{b}.{p}.4" for b in range(4, 12) for p in range(4)] + ["Duration_12.0.4"]
        expected += [f"Position_{p}" for p in range(32)] + [f"PitchDrum_{p}" for p in range(27, 88)]
        expected += [f"Chord_{c}" for c in ("min", "maj", "dim", "aug", "sus2", "sus4", "7dom", "7min", "7maj")]
        expected += [f"Chord_{c}" for c in ("7halfdim", "7dim", "7aug", "9maj", "9min")]
        expected += [f"Tempo_{t}.0" for t in range(40, 196, 5)]
        assert REMI.vocabulary == expected
        assert len(expected) == REMI.vocabulary_size == 328
        assert REMI.vocabulary[tokenizer.TEMPO_ID] == "Tempo_120.0"

    def test_another_vocabulary_is_refused(self, monkeypatch):
        configuration = tokenizer.miditok_configuration()
        configuration.use_rests = True
        monkeypatch.setattr(tokenizer, "miditok_configuration", lambda: configuration)
        with pytest.raises(TokenError, match=r"miditok .* builds a REMI vocabulary of \d+ .*expected 328"):
            RemiTokenizer()

    def test_example(self):
        played = Performance([0, 0.5, 2.03], [0.25, 7, 0.01], [60, 21, 108], [64, 1, 127])
        assert words(REMI.encode(played)) == [
            *("Bar", "Position_0", "Tempo_120.0", "Pitch_60", "Velocity_63", "Duration_0.4.8"),
            *("Position_8", "Pitch_21", "Velocity_3", "Duration_12.0.4"),
            *("Bar", "Position_0", "Pitch_108", "Velocity_127", "Duration_0.1.8"),
        ]

    @pytest.mark.parametrize("played", PIECES, ids=lambda played: played.name)
    def test_ids_are_those_of_miditok(self, played):
        assert REMI.encode(played).tolist() == REMI.encode_with_miditok(played).tolist()

    def test_chords_are_found(self):
        """Of MidiTok's 14 all, where nothing else sounds: the test above is no test of chords otherwise."""
        assert {word for word in words(REMI.encode(chords())) if word.startswith("Chord")} == {
            word for word in REMI.vocabulary if word.startswith("Chord")
        }

    def test_no_notes(self):
        empty = Performance([], [], [], [])
        assert REMI.encode(empty).tolist() == REMI.encode_with_miditok(empty).tolist() == [4, 189, 312]

    def test_grid(self):
        """The stated grid: onsets to half of 62.5 ms, no drift, durations to half a step up to 6 s."""
        for played in PIECES:
            again = REMI.decode(REMI.encode(played))
            assert np.array_equal(again.pitch, played.pitch)
            late = again.onset - played.onset
            assert np.abs(late).max() <= 1 / 32 + 10 / 1920  # and a tick a note of a chord
            held = np.minimum(played.duration, 6)
            assert (np.abs(again.duration - np.maximum(held, 1 / 16)) <= np.where(held < 2, 1 / 32, 3 / 32)).all()

    def test_decoding_is_what_miditok_decodes(self):
        for played in PIECES:
            ids = REMI.encode(played)
            score = REMI._miditok.decode([ids.tolist()])
            theirs = score.tracks[0].notes.numpy()
            ours = REMI.decode(ids)
            assert score.ticks_per_quarter == 8
            assert np.array_equal(np.floor(ours.onset * 16 + 0.5), theirs["time"])
            assert np.array_equal(ours.duration * 16, theirs["duration"])
            assert np.array_equal(ours.pitch, theirs["pitch"])
            assert np.array_equal(ours.velocity, theirs["velocity"])

    @pytest.mark.parametrize(
        ("text", "notes", "skipped"),
        [
            ("Position_8 Pitch_60 Velocity_63 Duration_0.4.8", [(0.5, 60)], 0),
            ("Pitch_60 Velocity_63 Duration_0.4.8 Bar Pitch_61 Velocity_63 Duration_0.4.8", [(0, 60), (2, 61)], 0),
            ("Bar Position_8 Bar Pitch_60 Velocity_63 Duration_0.4.8", [(2, 60)], 0),
            ("Bar Position_8 Pitch_60 Velocity_63 Position_4", [], 2),
            ("Bar Pitch_60 Pitch_61 Velocity_63 Duration_0.4.8 Duration_0.4.8", [(0, 61)], 2),
            ("Bar Tempo_120.0 Tempo_60.0 Chord_maj EOS PitchDrum_40", [], 3),
            ("Bar Position_9 Pitch_60 Velocity_63 Duration_0.4.8 Position_8 Pitch_61 Velocity_63 Duration_0.4.8",
             [(0.5, 61), (0.5625, 60)], 0),
        ],
    )  # fmt: skip
    def test_decoding_what_no_encoder_writes(self, text, notes, skipped):
        ids = [REMI.vocabulary.index(w if "_" in w else f"{w}_None") for w in text.split()]
        played = REMI.decode(ids)
        assert list(zip(played.onset.tolist(), played.pitch.tolist(), strict=True)) == notes
        assert played.skipped == skipped


class TestPerformanceTokens:
    def test_example(self):
        """60 sounds under the pedal until it is struck again; two seconds and a bit take three shifts."""
        played = Performance([0, 0.5, 2.53], [0.1, 0.1, 0.2], [60, 64, 60], [64, 65, 66], [[0.05, 1.0]])
        on, off, shift, level = 1 - 21, 89 - 21, 176, 277
        assert EVENTS.encode(played).tolist() == [
            *(level + 15, on + 60, shift + 50, level + 16, on + 64, shift + 50, off + 60, off + 64),
            *(shift + 100, shift + 53, on + 60, shift + 20, off + 60),
        ]

    def test_grid(self):
        """Onsets to 5 ms; durations are those that sound; of a key struck twice in 10 ms one note is kept."""
        for played in PIECES:
            again = EVENTS.decode(EVENTS.encode(played))
            sounding = played.sounding()
            step = np.floor(sounding.onset * 100 + 0.5)
            last = {(s, p): i for i, (s, p) in enumerate(zip(step.tolist(), played.pitch.tolist(), strict=True))}
            kept = sorted(last.values(), key=lambda i: (step[i], played.pitch[i]))
            assert np.array_equal(again.pitch, played.pitch[kept])
            assert np.abs(again.onset - played.onset[kept]).max() <= 0.005 + 1e-9
            assert np.abs(again.duration - np.maximum(sounding.duration[kept], 0.01)).max() <= 0.01 + 1e-9
            assert np.abs(again.velocity.astype(int) - played.velocity[kept]).max() <= 2

    @pytest.mark.parametrize(
        ("ids", "notes", "skipped"),
        [
            ([40], [(0, 0.01, 60)], 0),  # never ended
            ([40, 276], [(0, 1.0, 60)], 0),
            ([128], [], 1),  # an off without its on
            ([40, 276, 128, 128], [(0, 1.0, 60)], 1),
            ([40, 276, 40, 276, 128], [(0, 1.0, 60), (1, 1.0, 60)], 0),  # struck again
            ([0, 400, -1, 277], [], 3),
            ([41, 40, 177, 128, 129], [(0, 0.01, 61), (0, 0.01, 60)], 0),
        ],
    )
    def test_decoding_what_no_encoder_writes(self, ids, notes, skipped):
        played = EVENTS.decode(ids)
        found = zip(played.onset.tolist(), played.duration.tolist(), played.pitch.tolist(), strict=True)
        assert list(found) == notes
        assert played.skipped == skipped


@BOTH
class TestBoth:
    def test_tokens_to_midi_to_tokens(self, tmp_path, tokens):
        for played in PIECES:
            ids = tokens.encode(played)
            decoded = tokens.decode(ids)
            assert decoded.skipped == 0
            assert np.array_equal(tokens.encode(decoded), ids)
            write_midi(decoded, tmp_path / "a.mid")
            assert np.array_equal(tokens.encode(read_midi(tmp_path / "a.mid")), ids)

    def test_notes_of_one_time_keep_their_order(self, tmp_path, tokens):
        """In a file of one track, which no key that overlaps itself makes several: a lower note may be longer."""
        played = Performance([0, 0, 0, 1, 1], [0.5, 1, 0.25, 0.5, 1], [50, 55, 60, 64, 62], [60, 70, 80, 90, 99])
        ids = tokens.encode(played)
        write_midi(tokens.decode(ids), tmp_path / "a.mid")
        assert np.array_equal(tokens.encode(read_midi(tmp_path / "a.mid")), ids)

    def test_attributes_agree(self, tokens):
        assert tokens.padding_id == 0
        spans = [span for spans in tokens.kinds.values() for span in spans]
        assert len({i for low, high in spans for i in range(low, high + 1)}) == sum(
            high + 1 - low for low, high in spans
        )
        assert max(high for _, high in spans) < tokens.vocabulary_size
        for played in PIECES:
            ids = tokens.encode(played)
            assert ids.dtype == np.uint16
            assert 0 < ids.min() <= ids.max() < tokens.vocabulary_size

    @pytest.mark.parametrize("semitones", [-3, 2])
    def test_transposing_ids_transposes_pitches(self, tokens, semitones):
        for seed in range(3):
            played = random_performance(seed)
            inside = (played.pitch > 24) & (played.pitch < 105)
            played = Performance(
                *(getattr(played, key)[inside] for key in ("onset", "duration", "pitch", "velocity"))
            )
            ids = tokens.encode(played)
            there, here = tokens.decode(shifted(tokens, ids, semitones)), tokens.decode(ids)
            assert np.array_equal(there.pitch.astype(int), here.pitch.astype(int) + semitones)
            assert np.array_equal(there.duration, here.duration)

    def test_extreme_keys_stay_apart(self, tokens):
        """The most that a document's ids may move is what its pitches may move."""
        ids = tokens.encode(Performance([0, 1], [0.5, 0.5], [23, 105], [64, 64]))
        low, high = tokens.shift_range
        movable = ids[(ids >= low) & (ids <= high)].astype(int)
        down, up = low - movable.min(), high - movable.max()
        assert (down, up) == (-2, 3)
        assert tokens.decode(shifted(tokens, ids, down)).pitch.tolist() == [21, 103]
        assert tokens.decode(shifted(tokens, ids, up)).pitch.tolist() == [26, 108]

    @pytest.mark.parametrize("pitch", [20, 109])
    def test_pitches_outside_the_piano_are_refused(self, tokens, pitch):
        with pytest.raises(TokenError, match=rf"'x', at 1.00 s: pitch {pitch} is outside a piano's.*transpose"):
            tokens.encode(Performance([0, 1], [1, 1], [60, pitch], [64, 64], name="x"))

    @pytest.mark.parametrize("ids", [[1.5], ["a"], [[1, 2]]])
    def test_ids_that_are_no_integers(self, tokens, ids):
        with pytest.raises(TokenError, match="list of integers"):
            tokens.decode(ids)

    def test_no_ids(self, tokens):
        assert len(tokens.decode([])) == 0

    @settings(max_examples=300, deadline=None)
    @given(ids=SOME_IDS)
    def test_any_ids_are_a_performance(self, tokens, ids):
        played = tokens.decode(ids)
        assert 0 <= played.skipped <= len(ids)
        assert (played.duration > 0).all()
        once = tokens.encode(played)
        assert np.array_equal(tokens.encode(tokens.decode(once)), once)


def remi_owners(ids):
    """(note, part) of each id, walking: a bar after the first timed id is a new one."""
    found, starts, bar, inside, timed = [(-1, 0)] * len(ids), [], 0, 0, False
    waiting, i = [], 0
    while i < len(ids):
        token = ids[i]
        whole = len(ids) - i > 2 and 125 <= ids[i + 2] <= 188 and 93 <= ids[i + 1] <= 124 and 5 <= token <= 92
        if token == 4:
            bar, inside = bar + timed, 0
        elif 189 <= token <= 220:
            inside = token - 189
        timed = timed or token == 4 or 189 <= token <= 220 or whole
        waiting.append(i)
        if whole:
            starts.append((32 * bar + inside, len(starts), [(place, 0) for place in waiting[:-1]], i))
            waiting, i = [], i + 2
        i += 1
    for number, (_, _, before, i) in enumerate(sorted(starts)):
        for place, part in [*before, (i, 1), (i + 1, 2), (i + 2, 3)]:
            found[place] = number, part
    return found


def event_owners(ids):
    """(note, part) of each id, walking: events take the shifts before them, note-ons the velocities."""
    found, sounding, shifts, levels, count = [(-1, 0)] * len(ids), {}, [], [], 0
    for i, token in enumerate(ids):
        if 1 <= token <= 88:
            sounding[token] = count
            for place, part in [*((j, 0) for j in shifts), *((j, 2) for j in levels), (i, 1)]:
                found[place] = count, part
            count, shifts, levels = count + 1, [], []
        elif 89 <= token <= 176:
            note = sounding.pop(token - 88, -1)
            for place in [*shifts, i]:
                found[place] = note, 3
            shifts = []
        elif 177 <= token <= 276:
            shifts.append(i)
        elif 277 <= token <= 308:
            levels.append(i)
    return found


@BOTH
class TestOwners:
    """Which token is of which note: every one of one note or of none."""

    def check(self, tokens, ids):
        note, part = tokens.owners(ids)
        walked = {REMI: remi_owners, EVENTS: event_owners}[tokens](ids)
        assert note.tolist() == [one for one, _ in walked]
        assert part[note >= 0].tolist() == [of for one, of in walked if one >= 0]
        played = tokens.decode(ids)
        assert len(played) == note.max(initial=-1) + 1
        for number in range(len(played)):
            [pitch] = np.flatnonzero((note == number) & (part == 1))
            assert played.pitch[number] == (ids[pitch] + 16 if tokens is REMI else ids[pitch] + 20)
        return note, part

    @settings(max_examples=300, deadline=None)
    @given(ids=SOME_IDS)
    def test_of_any_ids(self, tokens, ids):
        self.check(tokens, ids)

    def test_of_performances_no_token_is_left(self, tokens):
        for played in PIECES:
            note, part = self.check(tokens, tokens.encode(played).astype(int).tolist())
            assert (note >= 0).all()
            assert set(part.tolist()) == {0, 1, 2, 3}
            assert {3} <= set(part[note == len(played) // 2].tolist())

    def test_numbers_lead_from_notes_to_tokens(self, tokens):
        for played in PIECES:
            numbers, decoded = tokens.numbers(played), tokens.decode(tokens.encode(played))
            kept = numbers >= 0
            assert sorted(numbers[kept].tolist()) == list(range(len(decoded)))
            assert np.array_equal(decoded.pitch[numbers[kept]], played.pitch[kept])
            assert decoded.onset[numbers[kept]] == pytest.approx(played.onset[kept], abs=0.07)
            assert kept.all() or tokens is EVENTS

    def test_reached_is_when_the_next_note_may_begin(self, tokens):
        ids = tokens.encode(PIECES[0]).astype(int).tolist()
        onset = tokens.decode(ids).onset
        note, part = tokens.owners(ids)
        begins = {int(number): i for i, number in enumerate(note) if part[i] == 1}
        for number in range(0, len(onset), 7):
            reached = tokens.reached(ids[: begins[number]])
            assert onset[number] - 0.06 < reached <= onset[number]
        assert tokens.reached([]) == 0


def test_fingerprints_stay():
    """Checkpoints and stores carry them: a change of ids must change them, and nothing else may."""
    assert REMI.fingerprint == "2388c32123f8d9f349fb4f1cbac3bf9cf08f257819bc401b9bb6c9690e208e73"
    assert EVENTS.fingerprint == "b9a467832f12e777abea98c85a8e73fc1dff7d40daf08dd2305d848f39b1b5ef"


def test_performance_tokens_need_no_miditok():
    code = (
        "import sys; from seqpope.domains.music.piano.tokenizer import PerformanceTokenizer; "
        "PerformanceTokenizer().decode([40]); "
        "assert not {'miditok', 'symusic', 'torch', 'pretty_midi'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
