"""What the page about piano asks of the server: performances read and written as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI, Request, Response

from seqpope.errors import SeqpopeError
from seqpope.studio import requests

if TYPE_CHECKING:
    from seqpope.studio.server import Studio

CONTENT_TYPES = {"mid": "audio/midi", "png": "image/png"}


def add(app: FastAPI, studio: Studio) -> None:
    """Add the routes under /api/piano."""

    @app.post("/api/piano/read")
    async def read(name: str, request: Request) -> Any:
        content = await request.body()
        if not content:
            raise SeqpopeError("the file is empty")
        return await studio.ask_clerk("piano.read", {"suffix": Path(name).suffix.lower()[:12], "content": content})

    @app.post("/api/piano/convert")
    async def convert(body: Annotated[Any, Body()]) -> Response:
        asked = requests.checked("piano.convert", requests.CLERICAL, body)
        made = await studio.ask_clerk("piano.convert", asked)
        return Response(made, media_type=CONTENT_TYPES[asked.format])  # type: ignore[attr-defined]
