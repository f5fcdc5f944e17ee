"""What was found, as files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from seqpope.files import write_bytes, write_text
from seqpope.inspection.figures import draw_delta, draw_heads, draw_magnitudes
from seqpope.inspection.text import inspection_markdown


def inspect_to(out: Path, result: dict[str, Any]) -> list[Path]:
    """Write inspect.json, inspect.md and the figures into a folder, each whole or not at all.

    Returns:
        The files, inspect.json first.
    """
    pictures = {
        "magnitudes.png": draw_magnitudes(result),
        "heads-query.png": draw_heads(result, "query"),
        "heads-key.png": draw_heads(result, "key"),
        "delta.png": draw_delta(result),
    }
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in drawn.items():
        write_bytes(out / name, picture)
    write_text(out / "inspect.md", inspection_markdown(result, list(drawn)))
    write_text(out / "inspect.json", _as_json(result) + "\n")
    return [out / name for name in ("inspect.json", "inspect.md", *drawn)]


def _as_json(result: dict[str, Any]) -> str:
    """JSON with the numbers of a head on one line. A line break in it is never part of a string."""

    def one_line(found: re.Match[str]) -> str:
        return "[" + re.sub(r"\n\s+", " ", found[1]) + "]"

    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", one_line, json.dumps(result, indent=1))
