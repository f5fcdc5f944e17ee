"""What the page about models asks of the server: runs with curves and figures, cards of shipped models."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from seqpope.checkpoint import WEIGHTS
from seqpope.studio.runs import Library

if TYPE_CHECKING:
    from seqpope.studio.server import Studio


def add(app: FastAPI, studio: Studio) -> None:
    """Add the routes under /api/runs and /api/cards."""
    library = Library(studio.settings.runs)

    @app.get("/api/runs")
    async def runs(since: str = "") -> Response:
        return _unless_known(await asyncio.to_thread(library.overview), since)

    @app.get("/api/runs/{name}")
    async def experiment(name: str, since: str = "") -> Response:
        return _unless_known(await asyncio.to_thread(library.experiment, name), since)

    @app.get("/api/runs/{name}/figures/{figure}")
    async def figure(name: str, figure: str) -> Response:
        return FileResponse(await asyncio.to_thread(library.figure, name, figure), media_type="image/png")

    @app.get("/api/cards")
    async def cards() -> list[dict[str, Any]]:
        return [card(WEIGHTS / f"{entry.id}.md", entry.id) for entry in studio.catalogue.shipped()]


def _unless_known(told: dict[str, Any], since: str) -> Response:
    """As JSON with a version; the version alone if the page has it already."""
    content = json.dumps(told, allow_nan=False)
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    body = '"unchanged": true}' if since == version else content[1:]
    return Response(f'{{"version": "{version}", {body}', media_type="application/json")


def card(file: Path, name: str) -> dict[str, Any]:
    """A shipped model's card: title, the rows of its table, paragraphs around it."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {
        "id": name,
        "title": next((line[2:] for line in lines if line.startswith("# ")), name),
        "rows": [row for row in rows if len(row) == 2 and row[0]],
        "text": [line for line in lines if line and line[0] not in "#|"],
    }
