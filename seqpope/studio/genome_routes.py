"""What the page about genomes asks of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from seqpope.studio.server import Studio


def add(app: FastAPI, studio: Studio) -> None:
    """Add the routes under /api/genome."""
