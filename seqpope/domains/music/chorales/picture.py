"""Chorale -> picture: a piano roll, rows of bars as the systems of a score, a colour a voice."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import numpy as np

from seqpope.domains.music.chorales.codec import SILENCE, STEPS_PER_BAR, STEPS_PER_QUARTER, VOICES, Chorale, runs
from seqpope.domains.music.pictures import BLACK_KEYS, DPI, GREY, LEFT, PALE, RIGHT, draw_header, printable
from seqpope.errors import SeqpopeError

COLOURS = ("#cc5f9b", "#e69f00", "#009e73", "#0072b2")  # told apart by colour-blind eyes too
BARS_A_ROW = 12
MAXIMUM_ROWS = 24
ROW_HEIGHT, PICTURE_HEIGHT = 4.2, 50.0  # at most; inches, as all lengths of the picture
SEMITONE = 0.09
WIDTH = 13.0
FOOT, GAP = 0.34, 0.34
HEADER = 0.68


def draw_piano_roll(
    chorale: Chorale,
    *,
    prompt_steps: int = 0,
    given: tuple[int, ...] = (),
    given_steps: tuple[int, int] | None = None,
    title: str = "",
    tempo: float | None = None,
) -> bytes:
    """The piece as a picture, PNG: time to the right, pitch upwards, a colour a voice.

    Up to 12 bars make a row, and rows follow each other as the systems of a score; what does not fit into
    24 rows is left out, and the picture says so. Voices in unison share the height of their pitch. Repeated
    notes are drawn as held ones, as the grid has them.

    Args:
        prompt_steps: so many steps at the start are shaded and called the prompt.
        given: voices (0 soprano to 3 bass) that were given; hatched, and named so in the legend.
        given_steps: from which step to which they were; the whole piece if None.
        title: the chorale's name if empty.
        tempo: quarters a minute; shown, with how long the piece lasts.

    Raises:
        SeqpopeError: the chorale has no steps, prompt_steps is not within it, or given or tempo is out of range.
    """
    steps = len(chorale)
    if steps == 0:
        raise SeqpopeError(f"chorale {chorale.name!r} has no steps: there is nothing to draw")
    if not 0 <= prompt_steps <= steps:
        raise SeqpopeError(f"prompt_steps must be 0 to {steps}, the length of the piece, it is {prompt_steps}")
    if not set(given) <= set(range(len(VOICES))):
        raise SeqpopeError(f"given must be voices 0 (soprano) to 3 (bass), it is {given}")
    if tempo is not None and not 4 <= tempo <= 1000:
        raise SeqpopeError(f"the tempo must be 4 to 1000 quarters a minute, it is {tempo}")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = math.ceil(steps / STEPS_PER_BAR)
    shown = min(bars, BARS_A_ROW * MAXIMUM_ROWS)
    rows = math.ceil(shown / BARS_A_ROW)
    row_bars = math.ceil(shown / rows)  # rows of equal length: 13 bars are 7 and 6
    low, high = _pitch_range(chorale.pitches[: shown * STEPS_PER_BAR])
    top = HEADER + (0.2 if prompt_steps else 0.0)
    room = (PICTURE_HEIGHT - top - FOOT - (rows - 1) * GAP) / rows
    row_height = min((high - low) * SEMITONE, ROW_HEIGHT, room)
    height = top + rows * row_height + (rows - 1) * GAP + FOOT
    # A bar is about as wide in every picture; a few bars only are wider, for the header needs the room.
    width = max(7.0, WIDTH * row_bars / BARS_A_ROW)

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for row in range(rows):
        bottom = height - top - row * (row_height + GAP) - row_height
        box = (LEFT / width, bottom / height, (width - LEFT - RIGHT) / width, row_height / height)
        axes = figure.add_axes(box)
        first = row * row_bars * STEPS_PER_BAR
        last = min(first + row_bars * STEPS_PER_BAR, steps)
        axes.set_xlim(first, first + row_bars * STEPS_PER_BAR)
        axes.set_ylim(low - 0.5, high - 0.5)
        _draw_row(axes, chorale, first, last, prompt_steps, given, given_steps or (0, steps))
    _draw_header(figure, canvas, chorale, given, title, tempo, shown, bars)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _pitch_range(pitches: np.ndarray) -> tuple[int, int]:
    """Lowest MIDI pitch to draw and the one above the highest, two octaves apart at least."""
    sounding = pitches[pitches != SILENCE]
    if sounding.size == 0:
        return 48, 73
    low, high = int(sounding.min()) - 2, int(sounding.max()) + 3
    missing = max(0, 25 - (high - low))
    return low - missing // 2, high + missing - missing // 2


def _draw_row(
    axes: Any,
    chorale: Chorale,
    first: int,
    last: int,
    prompt_steps: int,
    given: tuple[int, ...],
    given_steps: tuple[int, int],
) -> None:
    """One row of the picture: keys, bar lines, prompt, notes of the steps [first, last)."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Polygon, Rectangle

    low, high = (round(bound + 0.5) for bound in axes.get_ylim())
    keys = [
        Rectangle((first, pitch - 0.5), last - first, 1) for pitch in range(low, high) if pitch % 12 in BLACK_KEYS
    ]
    axes.add_collection(PatchCollection(keys, facecolor=PALE, linewidth=0, zorder=0))
    octaves = [pitch for pitch in range(low, high) if pitch % 12 == 0]
    axes.hlines([pitch - 0.5 for pitch in octaves], first, last, color="#bbbbbb", linewidth=0.7, zorder=1)
    bar_starts = range(first, last, STEPS_PER_BAR)
    axes.vlines(
        [*bar_starts, last], low - 0.5, high - 0.5, color="#9a9a9a", linewidth=0.8, zorder=1, clip_on=False
    )
    beats = [step for step in range(first, last, STEPS_PER_QUARTER) if step % STEPS_PER_BAR]
    axes.vlines(beats, low - 0.5, high - 0.5, color="#dddddd", linewidth=0.4, zorder=0.5)
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves], fontsize=8, color=GREY)
    axes.set_xticks(list(bar_starts), [str(start // STEPS_PER_BAR + 1) for start in bar_starts])
    axes.tick_params(axis="x", length=0, pad=2, labelsize=8, labelcolor=GREY)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines[:].set_visible(False)

    if first < prompt_steps:
        stop = min(prompt_steps, last)
        axes.add_patch(
            Rectangle((first, low - 0.5), stop - first, high - low, facecolor="#f6d55c", alpha=0.28, zorder=0.6)
        )
        if stop == prompt_steps < len(chorale):
            axes.vlines(stop, low - 0.5, high - 0.5, color="#b8860b", linewidth=1.4, zorder=1.5, clip_on=False)
        if first == 0:
            place: dict[str, Any] = {"xycoords": "data", "textcoords": "offset points"}
            axes.annotate("prompt", (0, high - 0.5), (1, 3), **place, fontsize=8, color="#8a6508", style="italic")

    pitches = chorale.pitches[first:last]
    same = pitches[:, :, None] == pitches[:, None, :]  # (steps, voice, other voice)
    sharing = same.sum(2)
    above = np.tril(same, -1).sum(2)  # how many of those that share the pitch are higher voices
    heights = 0.86 / sharing
    tops = pitches + 0.43 - heights * above
    for voice, colour in enumerate(COLOURS):
        notes: dict[bool, list[Polygon]] = {False: [], True: []}
        for start, end, _ in runs(pitches[:, voice]):
            is_given = voice in given and given_steps[0] <= first + start < given_steps[1]
            outline = _outline(first, start, end, tops[:, voice], heights[:, voice])
            notes[is_given].append(Polygon(outline, closed=True))
        for is_given, some in notes.items():
            if some:
                axes.add_collection(PatchCollection(some, **_look(voice, colour, is_given), zorder=3))
    if (chorale.pitches == SILENCE).all() and first == 0:
        place = {"ha": "center", "va": "center", "fontsize": 11, "color": GREY}
        axes.text((first + last) / 2, (low + high) / 2, "silence", **place)


def _outline(first: int, start: int, end: int, tops: np.ndarray, heights: np.ndarray) -> list[tuple[float, float]]:
    """Corners of a note, a bar that narrows where other voices sing its pitch too; tops and heights by step."""
    cuts = [
        start,
        *(t for t in range(start + 1, end) if (tops[t], heights[t]) != (tops[t - 1], heights[t - 1])),
        end,
    ]
    upper, lower = [], []
    for left, right in pairwise(cuts):
        ends = (first + left + 0.06 * (left == start), first + right - 0.06 * (right == end))
        upper += [(x, float(tops[left])) for x in ends]
        lower += [(x, float(tops[left] - heights[left])) for x in ends]
    return upper + lower[::-1]


def _look(voice: int, colour: str, given: bool) -> dict[str, Any]:
    """How the notes of a voice are painted: full, or pale and hatched if the voice was given."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    dark = (0.6 * red, 0.6 * green, 0.6 * blue)
    if not given:
        return {"facecolor": colour, "edgecolor": dark, "linewidth": 0.5}
    pale = tuple(1 - 0.35 * (1 - part) for part in (red, green, blue))
    return {"facecolor": pale, "edgecolor": dark, "linewidth": 0.9, "hatch": "//////"}


def _draw_header(
    figure: Any,
    canvas: Any,
    chorale: Chorale,
    given: tuple[int, ...],
    title: str,
    tempo: float | None,
    shown: int,
    bars: int,
) -> None:
    """Title and facts on the first line, legend on the second."""
    from matplotlib.patches import Patch

    facts = [f"{bars} bar{'s' * (bars != 1)}"]
    if shown < bars:
        facts = [f"bars 1\N{EN DASH}{shown} of {bars}"]
    if tempo is not None:
        seconds = round(len(chorale) / STEPS_PER_QUARTER * 60 / tempo)
        facts += [f"\N{QUARTER NOTE} = {tempo:g}", f"{seconds // 60}:{seconds % 60:02d} min"]
    handles = [
        Patch(**_look(voice, COLOURS[voice], voice in given), label=name + " (given)" * (voice in given))
        for voice, name in enumerate(VOICES)
    ]
    draw_header(figure, canvas, printable(title) or printable(chorale.name), "   ".join(facts), handles)
