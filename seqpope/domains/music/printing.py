"""What scores and pictures of both musics are printed with: ink, dots an inch, titles."""

from __future__ import annotations

INK, GREY, PALE = "#222222", "#666666", "#f1f1f1"
DPI = 110
BLACK_KEYS = (1, 3, 6, 8, 10)  # pitch classes


def printable(text: str) -> str:
    """Text without what neither XML nor a picture can hold: control characters, halves of surrogate pairs."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
