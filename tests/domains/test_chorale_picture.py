from __future__ import annotations

import io
import sys
from itertools import combinations

import numpy as np
import pytest
from chorale_pieces import held
from PIL import Image

from seqpope.domains.music.chorales import picture
from seqpope.domains.music.chorales.codec import SILENCE, Chorale
from seqpope.domains.music.pictures import DPI
from seqpope.errors import SeqpopeError


@pytest.fixture
def figures(monkeypatch):
    """The figures behind the pictures that a test draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = []
    original = FigureCanvasAgg.print_png

    def keep(self, *words, **options):
        drawn.append(self.figure)
        return original(self, *words, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return drawn


def image(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pixels(png: bytes, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image(png) - wanted).max(-1) <= 2).sum())


def texts(figure) -> dict[str, list]:
    """All that is written, with where it is."""
    from matplotlib.text import Text

    found: dict[str, list] = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            found.setdefault(text.get_text(), []).append(text.get_window_extent())
    return found


def assert_legible(figure) -> None:
    boxes = [box for several in texts(figure).values() for box in several]
    assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(
        box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes
    )


def tune(bars: float, name: str = "tune") -> Chorale:
    steps = np.arange(round(16 * bars)) // 4
    return Chorale(np.stack([72 + steps % 5, 67 - steps % 3, 60 - steps % 4, 48 + steps % 7], 1), name)


def test_piano_roll_shows_voices_prompt_and_facts(figures):
    png = picture.draw_piano_roll(tune(16), prompt_steps=40, given=(0, 3), title="A title", tempo=80)
    written = texts(figures[0])
    assert {"A title", "prompt", "Soprano (given)", "Alto", "Tenor", "Bass (given)", "C4", "C5"} <= set(written)
    assert any("16 bars" in text and "80" in text and "0:48" in text for text in written)
    assert {str(bar) for bar in range(1, 17)} <= set(written)
    assert_legible(figures[0])
    assert len(figures[0].axes) == 2
    # Voices that were made are in full colour, those given only in the frame and hatching of their notes.
    assert pixels(png, picture.COLOURS[1]) > 5000
    assert pixels(png, picture.COLOURS[2]) > 5000
    assert pixels(png, picture.COLOURS[0]) == pixels(png, picture.COLOURS[3]) == 0
    part = picture.draw_piano_roll(tune(16), given=(0, 3), given_steps=(40, 150))
    assert (
        2000
        < pixels(part, picture.COLOURS[0])
        < 0.8 * pixels(picture.draw_piano_roll(tune(16)), picture.COLOURS[0])
    )
    del figures[1:]
    plain = picture.draw_piano_roll(tune(16))
    assert "tune" in texts(figures[1])
    assert "prompt" not in texts(figures[1])
    assert all(pixels(plain, colour) > 5000 for colour in picture.COLOURS)


@pytest.mark.parametrize("bars", [1 / 16, 1, 3.2, 12, 25])
def test_piano_roll_of_any_length_is_legible(figures, bars):
    chorale = tune(bars, "A name that is far too long for the room that a picture has for it, " * 3)
    png = picture.draw_piano_roll(chorale, prompt_steps=1, given=(0, 1, 2, 3), tempo=1000)
    assert_legible(figures[0])
    assert image(png).shape[1] <= 1440
    bars_drawn = [text for text in texts(figures[0]) if text.isdecimal()]
    assert len(bars_drawn) == int(np.ceil(bars))


def test_piano_roll_of_a_very_long_piece_is_cut_and_says_so(figures, monkeypatch):
    monkeypatch.setattr(picture, "MAXIMUM_ROWS", 6)
    monkeypatch.setattr(picture, "PICTURE_HEIGHT", 12.0)
    chorale = Chorale(np.tile([[127, 60, 48, 0]], (400 * 16, 1)))
    height, width, _ = image(picture.draw_piano_roll(chorale)).shape
    assert any("bars 1\N{EN DASH}72 of 400" in text for text in texts(figures[0]))
    assert height <= 12 * DPI + 1
    assert width <= 13 * DPI + 1


def test_piano_roll_of_silence_says_so(figures):
    picture.draw_piano_roll(held([SILENCE] * 4, steps=16), tempo=60)
    assert "silence" in texts(figures[0])
    assert_legible(figures[0])


def test_unisons_show_every_voice():
    png = picture.draw_piano_roll(held([60, 60, 60, 60], steps=64))
    in_legend = [pixels(picture.draw_piano_roll(held([SILENCE] * 4, steps=64)), c) for c in picture.COLOURS]
    assert all(pixels(png, c) > 400 + n for c, n in zip(picture.COLOURS, in_legend, strict=True))


def test_piano_roll_title_is_words_not_mathematics(figures):
    picture.draw_piano_roll(tune(4), title="$x_ \\frac\n\x07")
    assert any(text.startswith("$x_ \\frac") for text in texts(figures[0]))


def test_piano_roll_leaves_pyplot_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    assert image(picture.draw_piano_roll(tune(1))).size


@pytest.mark.parametrize(
    ("chorale", "options", "message"),
    [
        (Chorale(np.zeros((0, 4), int)), {}, "no steps"),
        (tune(1), {"prompt_steps": 17}, "prompt_steps must be 0 to 16"),
        (tune(1), {"prompt_steps": -1}, "prompt_steps must be"),
        (tune(1), {"given": (4,)}, "given must be voices 0"),
        (tune(1), {"tempo": 0.0}, "tempo must be"),
    ],
)
def test_draw_piano_roll_refuses(chorale, options, message):
    with pytest.raises(SeqpopeError, match=message):
        picture.draw_piano_roll(chorale, **options)
