"""Performance -> picture: a piano roll with seconds to the right and velocity as shade."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from seqpope.domains.music.piano.codec import Performance
from seqpope.domains.music.pictures import BLACK_KEYS, DPI, GREY, LEFT, PALE, RIGHT, draw_header, printable
from seqpope.errors import SeqpopeError

# Lengths are inches.
WIDTH, NARROWEST, HEADER, FOOT, GAP = 13.0, 7.0, 0.72, 0.38, 0.44
SECONDS_A_ROW = (20, 30)  # up to two minutes, and beyond
TWO_MINUTES = 120.0
MAXIMUM_ROWS = 24
AFTERMATH = 0.5  # seconds at the end for which no other row is begun
SEMITONE, ROW_HEIGHT, LEAST_SEMITONES = 0.06, 3.0, 30
NARROWEST_NOTE = 0.002  # of a row: shorter notes are drawn as wide
SOFT, LOUD = (0.66, 0.86, 1.0), (0.03, 0.03, 0.25)  # at velocities 20 and below, 110 and above
SOFTEST, LOUDEST = 20, 110
BELOW = 0.06  # the pedal's line
PROMPT, PROMPT_EDGE, PEDAL = "#f6d55c", "#b8860b", "#7a9a5a"


def shade(velocity: np.ndarray) -> np.ndarray:
    """Colours (N, 3) of velocities (N,) 1..127: the louder the darker."""
    part = np.clip((np.asarray(velocity, float)[:, None] - SOFTEST) / (LOUDEST - SOFTEST), 0, 1)
    return np.array(SOFT) * (1 - part) + np.array(LOUD) * part


def draw_performance(
    played: Performance, *, prompt_seconds: float = 0.0, seconds: float | None = None, title: str = ""
) -> bytes:
    """The performance as a picture, PNG: a note is as long as its key is held, and as dark as it is loud.

    Rows of 20 seconds (30 beyond two minutes) follow each other as the systems of a score; what does not fit into
    24 rows is left out, and the picture says so. The sustain pedal, where there is one, is a line below.

    Args:
        prompt_seconds: so much at the start is shaded and called the prompt.
        seconds: how long the picture goes on; until the last key is released if None.
        title: the performance's name if empty.

    Raises:
        SeqpopeError: there is nothing to draw, or prompt_seconds is not within it.
    """
    length = max(played.seconds, seconds or 0.0)
    if length <= 0:
        raise SeqpopeError(f"performance {played.name!r} lasts no time: there is nothing to draw")
    if not 0 <= prompt_seconds <= length:
        raise SeqpopeError(
            f"prompt_seconds must be 0 to {length:g}, the length of the music, not {prompt_seconds}"
        )

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    at_most = SECONDS_A_ROW[length > TWO_MINUTES]
    shown = min(length, float(at_most * MAXIMUM_ROWS))
    rows = max(1, math.ceil((shown - AFTERMATH) / at_most))
    row_seconds = at_most if rows > 1 else max(2, math.ceil(shown))
    low, high = _range(played.pitch[played.onset < shown])
    row_height = min((high - low) * SEMITONE, ROW_HEIGHT)
    top = HEADER + (0.18 if prompt_seconds else 0.0)
    height = top + rows * row_height + (rows - 1) * GAP + FOOT
    width = max(NARROWEST, WIDTH * row_seconds / at_most)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for row in range(rows):
        bottom = height - top - row * (row_height + GAP) - row_height
        axes = figure.add_axes(
            (LEFT / width, bottom / height, (width - LEFT - RIGHT) / width, row_height / height)
        )
        axes.set_xlim(row * row_seconds, (row + 1) * row_seconds)
        axes.set_ylim(low - 0.5, high - 0.5)
        _draw_row(axes, played, shown, prompt_seconds)
    _draw_header(figure, canvas, played, title, shown, length)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _range(pitch: np.ndarray) -> tuple[int, int]:
    """Lowest pitch to draw and the one above the highest."""
    if len(pitch) == 0:
        return 48, 48 + LEAST_SEMITONES
    low, high = int(pitch.min()) - 2, int(pitch.max()) + 3
    missing = max(0, LEAST_SEMITONES - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _draw_row(axes: Any, played: Performance, length: float, prompt_seconds: float) -> None:
    """One row: keys, seconds, prompt, notes, pedal."""
    from matplotlib.collections import PatchCollection, PolyCollection
    from matplotlib.patches import Rectangle

    (first, end), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    last = min(end, length)
    low, high = round(bottom + 0.5), round(top + 0.5)
    black = [
        Rectangle((first, pitch - 0.5), last - first, 1) for pitch in range(low, high) if pitch % 12 in BLACK_KEYS
    ]
    axes.add_collection(PatchCollection(black, facecolor=PALE, linewidth=0, zorder=0))
    octaves = [pitch for pitch in range(low, high) if pitch % 12 == 0]
    axes.hlines([pitch - 0.5 for pitch in octaves], first, last, color="#bbbbbb", linewidth=0.7, zorder=1)
    whole = np.arange(math.ceil(first), math.floor(last) + 1)
    five = whole[whole % 5 == 0]
    axes.vlines(whole[whole % 5 != 0], bottom, top, color="#e2e2e2", linewidth=0.4, zorder=0.5)
    axes.vlines(five, bottom, top, color="#aaaaaa", linewidth=0.7, zorder=1)
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves], fontsize=8, color=GREY)
    axes.set_xticks(five, [_clock(second) for second in five.tolist()])
    axis_pad = 9 if len(played.pedal) else 2
    axes.tick_params(axis="x", length=0, pad=axis_pad, labelsize=8, labelcolor=GREY)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines[:].set_visible(False)

    if first < prompt_seconds:
        stop = min(prompt_seconds, last)
        axes.add_patch(
            Rectangle(
                (first, bottom), stop - first, top - bottom, facecolor=PROMPT, alpha=0.25, linewidth=0, zorder=0.6
            )
        )
        if prompt_seconds <= last:
            axes.vlines(stop, bottom, top, color=PROMPT_EDGE, linewidth=1.4, zorder=1.5, clip_on=False)
        if first == 0:
            place: dict[str, Any] = {"xycoords": "data", "textcoords": "offset points"}
            axes.annotate("prompt", (0, top), (1, 3), **place, fontsize=8, color="#8a6508", style="italic")

    here = (played.onset < last) & (played.end > first)
    if here.any():
        left, right = played.onset[here], played.end[here]
        right = np.clip(np.maximum(right, left + NARROWEST_NOTE * (end - first)), None, last)
        left = np.maximum(left, first)
        pitch = played.pitch[here].astype(float)
        under, over = pitch - 0.47, pitch + 0.47
        xs, ys = np.stack([left, right, right, left], 1), np.stack([under, under, over, over], 1)
        colours = shade(played.velocity[here])
        axes.add_collection(
            PolyCollection(
                list(np.stack([xs, ys], 2)),
                facecolors=list(colours),
                edgecolors=list(0.7 * colours),
                linewidth=0.4,
                zorder=3,
            )
        )
    pedal = played.pedal[(played.pedal[:, 0] < last) & (played.pedal[:, 1] > first)]
    if len(pedal):
        row_height = axes.get_position().height * axes.figure.get_figheight()
        below = np.full(len(pedal), bottom - BELOW / row_height * (top - bottom))
        pedal = np.clip(pedal, first, last)
        axes.hlines(below, pedal[:, 0], pedal[:, 1], color=PEDAL, linewidth=2.2, clip_on=False, zorder=2)


def _clock(second: float) -> str:
    return f"{int(second) // 60}:{int(second) % 60:02d}"


def _draw_header(figure: Any, canvas: Any, played: Performance, title: str, shown: float, length: float) -> None:
    """Title and facts on the first line, what shades mean on the second."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    facts = f"{len(played)} notes   {_clock(round(length))} min"
    if shown < length:
        facts = f"the first {_clock(round(shown))} of {facts}"
    levels = np.linspace(SOFTEST, LOUDEST, 4).astype(int)
    handles: list[Any] = [
        Patch(facecolor=tuple(colour), label=f"velocity {level}" if level == levels[0] else str(level))
        for level, colour in zip(levels.tolist(), shade(levels), strict=True)
    ]
    if len(played.pedal):
        handles.append(Line2D([], [], color=PEDAL, linewidth=2.2, label="sustain pedal"))
    draw_header(figure, canvas, printable(title) or printable(played.name), facts, handles)
