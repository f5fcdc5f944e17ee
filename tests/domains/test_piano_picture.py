"""The picture of a performance, by its pixels."""

from __future__ import annotations

import functools
import io

import matplotlib.image
import numpy as np
import pytest
from piano_pieces import random_performance

from seqpope.domains.music.piano.codec import Performance
from seqpope.domains.music.piano.picture import (
    FOOT,
    GAP,
    HEADER,
    LEFT,
    MAXIMUM_ROWS,
    RIGHT,
    draw_performance,
    shade,
)
from seqpope.domains.music.pictures import DPI
from seqpope.errors import SeqpopeError


def pixels(played, **options):
    """(height, width, 3) from 0 to 1."""
    return matplotlib.image.imread(io.BytesIO(draw_performance(played, **options)), format="png")[..., :3]


def inside(picture):
    """The one row of a picture without its prompt's word: what lies between the margins."""
    top, bottom = round(HEADER * DPI), round(FOOT * DPI)
    return picture[top:-bottom, round(LEFT * DPI) : -round(RIGHT * DPI)]


def steady(velocity, pitch=60):
    return Performance([2.0], [4.0], [pitch], [velocity])


class TestNotes:
    def test_lie_where_they_sound(self):
        """Of 8 seconds the second quarter and third are dark, in the row of the pitch alone."""
        row = inside(pixels(steady(100), seconds=8.0))
        dark = row.sum(2) < 1.2
        columns = np.flatnonzero(dark.any(0)) / row.shape[1]
        assert columns.min() == pytest.approx(0.25, abs=0.01)
        assert columns.max() == pytest.approx(0.75, abs=0.01)
        lines = np.flatnonzero(dark.any(1))
        assert len(lines) == lines.max() - lines.min() + 1 < row.shape[0] / 15

    def test_higher_is_above(self):
        places = []
        for pitch in (50, 70):
            both = Performance([0, 2], [1, 1], [60, pitch], [20, 120])
            places.append(np.flatnonzero((inside(pixels(both, seconds=4.0)).sum(2) < 0.8).any(1)).mean())
        assert places[0] > places[1]

    def test_louder_is_darker(self):
        assert (np.diff(shade(np.arange(20, 111)).sum(1)) < 0).all()
        sums = [inside(pixels(steady(velocity), seconds=8.0)).min(axis=(0, 1)).sum() for velocity in (30, 70, 110)]
        assert sums[0] > sums[1] > sums[2]

    def test_short_ones_are_seen(self):
        played = Performance([5.0], [0.001], [60], [110])
        assert (inside(pixels(played, seconds=20.0)).sum(2) < 1.0).any()

    def test_that_go_on_in_the_next_row(self):
        """A note over the border of two rows is in both."""
        picture = pixels(Performance([15.0], [10.0], [60], [110]), seconds=40.0)
        half = round(HEADER * DPI) + (picture.shape[0] - round((HEADER + FOOT) * DPI)) // 2
        for part in (picture[round(HEADER * DPI) : half], picture[half:]):
            assert (part.sum(2) < 0.8).sum() > 100


class TestMarks:
    def test_the_prompt_is_shaded(self):
        """Yellow, that is little blue, in the first half of the row and nowhere behind."""
        picture = pixels(steady(100), seconds=8.0, prompt_seconds=4.0)
        row = picture[-round((FOOT + 0.5) * DPI) : -round(FOOT * DPI), round(LEFT * DPI) : -round(RIGHT * DPI)]
        yellow = (row[..., 0] - row[..., 2] > 0.05).mean(0)
        half = row.shape[1] // 2
        assert (yellow[:half] > 0.9).mean() > 0.95  # but for the lines of seconds
        assert (yellow[half + 4 :] == 0).all()

    def test_the_pedal_is_a_line_below(self):
        green = []
        for pedal in ([], [[1.0, 2.0]]):
            picture = pixels(Performance([0], [4], [60], [64], pedal), seconds=4.0)[-round(FOOT * DPI) :]
            green.append(int(((picture[..., 1] - picture[..., 0] > 0.1) & (picture[..., 1] < 0.8)).sum()))
        assert green[0] == 0 < green[1]


class TestSize:
    @staticmethod
    @functools.cache
    def height_of_a_row() -> float:
        played = Performance([0, 1], [1, 1], [40, 80], [64, 64])
        return pixels(played, seconds=5.0).shape[0] / DPI - HEADER - FOOT

    @pytest.mark.parametrize(
        ("seconds", "rows"), [(5, 1), (20.4, 1), (21, 2), (60, 3), (120, 6), (121, 5), (300, 10)]
    )
    def test_rows(self, seconds, rows):
        played = Performance([0, 1], [1, 1], [40, 80], [64, 64])
        one = self.height_of_a_row()
        height = pixels(played, seconds=float(seconds)).shape[0] / DPI
        assert height == pytest.approx(HEADER + FOOT + rows * one + (rows - 1) * GAP, abs=0.05)

    def test_more_than_fits_is_left_out(self):
        longest = pixels(steady(64), seconds=MAXIMUM_ROWS * 30.0)
        assert pixels(steady(64), seconds=4000.0).shape == longest.shape

    def test_of_many_notes(self):
        played = random_performance(0, 2000)
        assert draw_performance(played, title="a $title$ with \x00 signs " * 20)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("played", "options", "message"),
    [
        (Performance([], [], [], []), {}, "lasts no time: there is nothing to draw"),
        (steady(64), {"prompt_seconds": 7.0}, "prompt_seconds must be 0 to 6, the length of the music, not 7"),
        (steady(64), {"prompt_seconds": -1.0}, "prompt_seconds must be 0 to 6"),
    ],
)
def test_refused(played, options, message):
    with pytest.raises(SeqpopeError, match=message):
        draw_performance(played, **options)


def test_silence_has_a_picture():
    assert draw_performance(Performance([], [], [], []), seconds=5.0)[:4] == b"\x89PNG"
