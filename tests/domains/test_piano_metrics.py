"""What is measured of performances: by hand on small ones, copies against a plain search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from piano_pieces import random_performance

from seqpope.domains.music.piano.codec import Performance
from seqpope.domains.music.piano.corpus import stretched_name
from seqpope.domains.music.piano.metrics import (
    COPY_NOTES,
    between,
    copies,
    examine,
    excerpts,
    harmonic_histogram,
    measure,
    melodic_histogram,
    pitch_class_histogram,
    render,
    sounding,
)
from seqpope.errors import SeqpopeError

CHORD = Performance([0, 0, 0.5, 2], [1, 1, 0.25, 1], [60, 67, 64, 72], [40, 60, 80, 100], name="chord")


def played(seed, notes=200):
    """Random notes on a grid of 16 steps a second."""
    random = np.random.default_rng(seed)
    onset = np.cumsum(random.integers(0, 4, notes)) / 16
    parts = (random.integers(1, 9, notes) / 16, random.integers(40, 80, notes), random.integers(1, 32, notes) * 4)
    return Performance(onset, *parts, name=f"piece {seed}")


def joined(*pieces):
    """One performance after another, a second apart."""
    onset, begin = [], 0.0
    for piece in pieces:
        onset.append(piece.onset - piece.onset[0] + begin)
        begin = onset[-1][-1] + 1
    parts = ("duration", "pitch", "velocity")
    return Performance(
        np.concatenate(onset), *(np.concatenate([getattr(piece, part) for piece in pieces]) for part in parts)
    )


def moved(piece, semitones):
    return Performance(piece.onset, piece.duration, piece.pitch.astype(int) + semitones, piece.velocity)


class TestMeasures:
    def test_by_hand(self):
        assert sounding(CHORD).tolist() == [2, 2, 3, 1]
        assert melodic_histogram(CHORD).nonzero()[0].tolist() == [24 - 3, 24 + 7, 24 + 8]
        # 67 over 60; 64 over 60 and under 67.
        counts = harmonic_histogram(CHORD)
        assert {int(i): int(counts[i]) for i in counts.nonzero()[0]} == {3: 1, 4: 1, 7: 1}
        values = measure(CHORD, 4.0)
        assert values == pytest.approx(
            {
                "notes_per_second": 1.0, "polyphony": 2.0, "most_sounding": 3.0, "together": 1 / 3,
                "velocity": 70.0, "velocity_sd": np.std([40, 60, 80, 100]), "duration": 1.0, "pitch": 65.75,
                "in_scale": 1.0,
            }
        )  # fmt: skip

    def test_the_key_does_not_matter(self):
        for shift in range(1, 12):
            assert np.array_equal(pitch_class_histogram(CHORD), pitch_class_histogram(moved(CHORD, shift)))

    def test_between_and_excerpts(self):
        assert between(CHORD, 0.5, 2).pitch.tolist() == [64]
        pieces = [played(seed) for seed in range(5)]
        cuts = excerpts(pieces, 3.0)
        assert len(cuts) == 5
        for cut, piece in zip(cuts, pieces, strict=True):
            assert 0 <= cut.onset.min() <= cut.onset.max() < 3
            assert any(
                np.array_equal(cut.pitch, piece.pitch[i : i + len(cut)]) for i in range(len(piece) - len(cut) + 1)
            )
        assert [len(cut) for cut in excerpts(pieces, 1e4)] == [200] * 5


class TestCopies:
    def slowly(self, sample, training, exact):
        """The longest run by trying all starts, and notes of it."""

        def same(a, i, b, j):
            steps = [round((x.onset[k + 1] - x.onset[k]) * 16) for x, k in ((a, i), (b, j))]
            ways = [int(x.pitch[k + 1]) - int(x.pitch[k]) for x, k in ((a, i), (b, j))]
            if steps[0] != steps[1] or ways[0] != ways[1]:
                return False
            parts = (
                (a.duration[i + 1], a.velocity[i + 1], a.pitch[i]),
                (b.duration[j + 1], b.velocity[j + 1], b.pitch[j]),
            )
            return not exact or parts[0] == parts[1]

        best = 0
        for piece in training:
            for i in range(len(sample) - 1):
                for j in range(len(piece) - 1):
                    size = 0
                    while (
                        i + size < len(sample) - 1
                        and j + size < len(piece) - 1
                        and same(sample, i + size, piece, j + size)
                    ):
                        size += 1
                    best = max(best, size)
        return best + 1 if best else None

    @pytest.mark.parametrize("exact", [False, True])
    def test_are_what_a_plain_search_finds(self, exact):
        random = np.random.default_rng(0)

        def dull(notes):
            """Few pitches and times, so that much recurs."""
            onset = np.cumsum(random.integers(0, 2, notes)) / 16
            pitch = random.integers(60, 63, notes)
            return Performance(onset, np.full(notes, 1 / 16), pitch, np.full(notes, 64))

        training, samples = [dull(60) for _ in range(3)], [dull(30) for _ in range(8)]
        found = copies(samples, training, 16, exact)
        assert [copy and copy.notes for copy in found] == [self.slowly(s, training, exact) for s in samples]
        assert max(copy.notes for copy in found if copy) > 4
        for copy, sample in zip(found, samples, strict=True):
            piece = training[copy.piece]
            a = sample.pitch[copy.start : copy.start + copy.notes].astype(int)
            b = piece.pitch[copy.piece_start : copy.piece_start + copy.notes].astype(int)
            assert np.array_equal(a, b + copy.transposition)

    @pytest.mark.parametrize("length", [2, 3, 31, 32, 33, 100])
    def test_one_that_was_put_in(self, length):
        training = [played(seed) for seed in range(4)]
        part = Performance(
            *(getattr(training[2], k)[50 : 50 + length] for k in ("onset", "duration", "pitch", "velocity"))
        )
        sample = joined(played(10, 40), part, played(11, 40))
        [exact] = copies([sample], training, 16, exact=True)
        assert (exact.notes, exact.start, exact.piece, exact.piece_start, exact.transposition) == (
            length,
            40,
            2,
            50,
            0,
        )
        [other] = copies([moved(sample, 5)], training, 16)
        if length > 4:
            assert (other.notes, other.start, other.piece, other.transposition) == (length, 40, 2, 5)
        [none] = copies([moved(sample, 5)], training, 16, exact=True)
        assert none is None or none.notes < max(4, length)

    def test_none(self):
        low = Performance(np.arange(5) * 9.0, np.ones(5), np.array([30, 31, 33, 36, 40]), np.full(5, 64))
        assert copies([low, CHORD], [played(0)], 16, exact=True) == [None, None]
        assert copies([CHORD], [], 16) == [None]


class TestExamine:
    def test_whole(self):
        training = [played(seed, 400) for seed in range(4)]
        samples = [played(20), joined(played(21, 30), between(training[3], 1.0, 12.0))]
        samples[1] = Performance(
            samples[1].onset, samples[1].duration, samples[1].pitch, samples[1].velocity, name="thief"
        )
        reference = excerpts([played(seed) for seed in (30, 31)], 10.0)
        result = examine(samples, [18.0, 20.0], training, reference, rate=16)
        own, copied = result["samples"]["pieces"]
        assert own["values"]["copied_notes"] < COPY_NOTES <= copied["values"]["copied_notes_exact"]
        assert copied["copied"]["piece_name"] == "piece 3"
        assert own["values"]["notes_per_second"] == pytest.approx(200 / 18)
        assert 0 < own["values"]["distance_melodic"] < 1
        assert sum(result["samples"]["histograms"]["velocities"]) == len(samples[0]) + len(samples[1])
        text = render(result)
        assert "**thief copies piece 3**" in text
        assert "piece 20** copies" not in text
        assert "Of the 2 reference excerpts 0 share as many" in text

    def test_stretched_copies_of_the_training_split_are_counted_apart(self):
        training = [replace(played(0, 100), name="a.mid"), replace(played(1, 100), name="b.mid")]
        slow = replace(training[0].stretched(1.5), name=stretched_name("a.mid", 1.5))
        sample = replace(between(slow, 3.0), name="thief")
        result = examine([sample], [20.0], [*training, slow], rate=768)
        assert (result["training_pieces"], result["training_stretched"]) == (2, 1)
        assert "**thief copies a.mid [x1.5]**" in render(result)
        text = render(examine([played(20)], [18.0], [*training, slow], rate=768))
        assert "with the 2 training performances and stretched copies of them (1), in whatever key" in text
        text = render(examine([played(20)], [18.0], training, rate=768))
        assert "with the 2 training performances, in whatever key" in text

    def test_alone(self):
        text = render(examine([random_performance(0)], [60.0]))
        assert "notes / s" in text
        assert "bits from" not in text
        assert "Copies were not looked for" in text

    def test_refused(self):
        with pytest.raises(SeqpopeError, match="no sample to examine"):
            examine([], [])
        with pytest.raises(SeqpopeError, match="quiet has no notes to examine"):
            examine([Performance([], [], [], [], name="quiet")], [1.0])
