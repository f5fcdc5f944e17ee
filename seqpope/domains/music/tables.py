"""Tables of what `examine` found in sets of pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqpope.markdown import table

Row = tuple[str, str, float, int]  # label, name of the number, what it is multiplied by, digits


def table_of(
    sets: Mapping[str, Mapping[str, Any]], rows: Sequence[Row], more: Sequence[Sequence[str]] = ()
) -> str:
    """A column a set, "mean" ± "sd" of its "pieces" in each row; rows of which no set knows a mean are left out.

    Args:
        more: finished rows that come last.
    """
    lines = []
    for label, name, scale, digits in rows:
        cells = []
        for found in sets.values():
            mean, sd = found["mean"].get(name), found["sd"].get(name)
            spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
            cells.append("" if mean is None else f"{scale * mean:.{digits}f}{spread}")
        if any(cells):
            lines.append([label, *cells])
    head = ["", *[f"{name} ({len(found['pieces'])})" for name, found in sets.items()]]
    return table(head, [*lines, *more], aligned=True)
