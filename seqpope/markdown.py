"""Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """A Markdown table; `aligned` pads its cells so that it also reads well as plain text."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    if not aligned:
        written = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([written[0], "|" + "---|" * len(head), *written[1:]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
