"""What pictures of both musics have in common: ink, margins, the header; and titles, which scores print too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INK, GREY, PALE = "#222222", "#666666", "#f1f1f1"
DPI = 110
LEFT, RIGHT = 0.5, 0.2  # margins, inches
BLACK_KEYS = (1, 3, 6, 8, 10)  # pitch classes


def printable(text: str) -> str:
    """Text without what neither XML nor a picture can hold: control characters, halves of surrogate pairs."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def draw_header(figure: Any, canvas: Any, title: str, facts: str, handles: Sequence[Any]) -> None:
    """Title, cut where it would meet the facts, on the first line; a legend of `handles` on the second."""
    width, height = figure.get_size_inches()
    line = 1 - 0.12 / height
    right = figure.text(
        1 - RIGHT / width, line, facts, ha="right", va="top", fontsize=9, color=GREY, parse_math=False
    )
    words = title[:200]
    left = figure.text(
        LEFT / width, line, words, va="top", fontsize=12, color=INK, weight="bold", parse_math=False
    )
    room = right.get_window_extent(canvas.get_renderer()).x0 - 15
    while words and left.get_window_extent(canvas.get_renderer()).x1 > room:
        words = words[:-1].rstrip()
        left.set_text(words + "\N{HORIZONTAL ELLIPSIS}")
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(LEFT / width, 1 - 0.36 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        columnspacing=1.4,
        borderaxespad=0,
        borderpad=0.2,
    )
