"""What the page about piano asks of the server: performances read and written as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI, Request, Response

if TYPE_CHECKING:
    from seqpope.studio.server import Studio


def add(app: FastAPI, studio: Studio) -> None:
    """Add the routes under /api/piano."""

    @app.post("/api/piano/read")
    async def read(name: str, request: Request) -> Any:
        return await studio.read("piano.read", name, request)

    @app.post("/api/piano/convert")
    async def convert(body: Annotated[Any, Body()]) -> Response:
        return await studio.convert("piano.convert", body)
