"""The studio's server: static files, jobs and their events, uploads. It imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

import seqpope
from seqpope.errors import SeqpopeError
from seqpope.studio import genome_routes, models_routes, requests
from seqpope.studio.catalogue import Catalogue
from seqpope.studio.jobs import Jobs
from seqpope.studio.worker import Worker

STATIC = Path(__file__).resolve().parent / "static"
MEMORY, FILE = 6 << 30, 1 << 26  # bytes that what reads uploads may take, and write
CLERK_SECONDS = 30.0
POSTS_A_MINUTE = 240  # of one address: a person dragging sliders stays below
LARGEST_BODY = 1 << 20
COOKIE = "seqpope_token"
LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
CONTENT_TYPES = {
    "mid": "audio/midi",
    "musicxml": "application/vnd.recordare.musicxml+xml",
    "png": "image/png",
    "svg": "text/plain; charset=utf-8",
}
HEADERS = {
    # igv.js writes styles into the page; nothing but the studio's own files is run or fetched.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Settings:
    """What the studio is started with.

    Args:
        hosts: names by which browsers may call it: another site's page cannot then reach it by a name of its own.
        token: that browsers have to show, None for none.
    """

    runs: Path
    data: Path
    genes: Path | None = None
    hosts: tuple[str, ...] = LOCAL
    token: str | None = None


class Asked(BaseModel):
    """A job: its kind, and arguments that `requests` checks."""

    kind: str
    arguments: dict[str, Any] = {}


class Studio:
    """What routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.catalogue = Catalogue(settings.runs, settings.data)
        self.computer = Worker(setup="music.warm")
        self.clerk = Worker(limits=(MEMORY, FILE), seconds=CLERK_SECONDS)
        self.jobs = Jobs(self.computer)
        self._posts: dict[str, deque[float]] = defaultdict(deque)

    def start(self) -> None:
        """Have both processes ready, so that the first wish need not wait for their imports."""
        for worker in (self.computer, self.clerk):
            with contextlib.suppress(SeqpopeError):
                worker.start()

    def close(self) -> None:
        """End the processes."""
        self.computer.kill()
        self.clerk.kill()

    def prepared(self, kind: str, raw: Any) -> Any:
        """What the computing process is given: arguments, and the file of the model that they name."""
        arguments = requests.checked(kind, requests.COMPUTED, raw)
        made: dict[str, Any] = {"arguments": arguments}
        if hasattr(arguments, "model"):
            family = "chorales" if kind.startswith("music.") else "dna"
            made["file"] = str(self.catalogue.model(arguments.model, family).file)
        if getattr(arguments, "genome", None) is not None:
            made["genome"] = str(self.catalogue.genome(arguments.genome))  # type: ignore[attr-defined]
        return made

    async def ask_clerk(self, kind: str, arguments: Any) -> Any:
        """Have something read or written by the process under limits.

        Raises:
            SeqpopeError: it cannot be done, in words.
        """
        said: list[tuple[str, Any]] = []
        heard = lambda name, data: said.append((name, data))  # noqa: E731
        await asyncio.to_thread(self.clerk.run, kind, arguments, heard, lambda: False)
        name, data = said[-1]
        if name != "result":
            raise SeqpopeError(str(data))
        return data

    def refuse(self, request: Request) -> Response | None:
        """Why a request is refused, as an answer; None if it is not."""
        host = request.headers.get("host", "").rsplit(":", 1)[0] or ""
        if host not in self.settings.hosts:
            return told(f"this studio does not answer to the name {host[:80]!r}: start it with --host", 421)
        origin = request.headers.get("origin")
        if origin is not None and origin.split("//", 1)[-1] != request.headers.get("host"):
            return told("requests from other pages are refused", 403)
        token = self.settings.token
        if token is not None:
            shown = request.cookies.get(COOKIE) or request.query_params.get("token") or ""
            if not hmac.compare_digest(shown.encode(), token.encode()):
                return told("open the studio by the address with its token, which the terminal shows", 401)
        if request.method in ("POST", "DELETE"):
            length = request.headers.get("content-length", "")
            if request.method == "POST" and not (length.isdigit() and int(length) <= LARGEST_BODY):
                return told(f"more than {LARGEST_BODY >> 20} MiB cannot be sent at once", 413)
            posts = self._posts[request.client.host if request.client else ""]
            now = time.monotonic()
            while posts and now - posts[0] > 60:
                posts.popleft()
            if len(posts) >= POSTS_A_MINUTE:
                return told(f"more than {POSTS_A_MINUTE} wishes a minute: wait a little", 429)
            posts.append(now)
        return None


def told(message: str, status: int = 400) -> JSONResponse:
    """An error in words."""
    return JSONResponse({"error": message}, status)


def make_app(settings: Settings) -> FastAPI:
    """The application; its processes start with it."""
    studio = Studio(settings)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        begun = asyncio.create_task(asyncio.to_thread(studio.start))
        yield
        studio.close()
        begun.cancel()

    app = FastAPI(title="seqpope studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.state.studio = studio

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = studio.refuse(request) or await call_next(request)
        for name, value in HEADERS.items():
            answer.headers[name] = value
        if request.url.path.startswith("/api/"):
            answer.headers["Cache-Control"] = "no-store"
        if settings.token is not None and request.query_params.get("token") and answer.status_code < 400:
            answer.set_cookie(COOKIE, settings.token, httponly=True, samesite="strict")
        return answer

    @app.exception_handler(SeqpopeError)
    async def in_words(_: Request, error: SeqpopeError) -> Response:
        return told(str(error))

    @app.exception_handler(Exception)
    async def mistaken(_: Request, error: Exception) -> Response:
        return told(f"a mistake of seqpope's ({type(error).__name__}): the terminal has more", 500)

    @app.get("/")
    async def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        models = await asyncio.to_thread(studio.catalogue.models)
        genomes = await asyncio.to_thread(studio.catalogue.genomes)
        return {
            "version": seqpope.__version__,
            "models": [entry.described() for entry in models],
            "genomes": [{"id": name, "label": folder.name} for name, folder in genomes],
            "limits": {"steps": requests.MAXIMUM_STEPS, "upload": requests.MAXIMUM_UPLOAD},
        }

    @app.post("/api/jobs", status_code=202)
    async def submit(asked: Asked) -> dict[str, Any]:
        made = await asyncio.to_thread(studio.prepared, asked.kind, asked.arguments)
        job = studio.jobs.submit(asked.kind, made)
        return {"id": job.id, "before": studio.jobs.before(job)}

    @app.delete("/api/jobs/{name}")
    async def cancel(name: str) -> dict[str, str]:
        job = studio.jobs.find(name)
        studio.jobs.cancel(job)
        return {"state": job.state}

    @app.get("/api/jobs/{name}/events")
    async def events(name: str, request: Request) -> Response:
        job = studio.jobs.find(name)
        last = request.headers.get("last-event-id", "0")

        async def lines() -> AsyncIterator[str]:
            async for number, kind, data in studio.jobs.events(job, int(last) if last.isdigit() else 0):
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @app.post("/api/music/read")
    async def read(name: str, request: Request) -> Any:
        content = await request.body()
        if not content:
            raise SeqpopeError("the file is empty")
        return await studio.ask_clerk("music.read", {"suffix": Path(name).suffix.lower()[:12], "content": content})

    @app.post("/api/music/convert")
    async def convert(request: Request) -> Response:
        asked = requests.checked("music.convert", requests.CLERICAL, await json_of(request))
        made = await studio.ask_clerk("music.convert", asked)
        return Response(made, media_type=CONTENT_TYPES[asked.format])  # type: ignore[attr-defined]

    genome_routes.add(app, studio)
    models_routes.add(app, studio)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


async def json_of(request: Request) -> Any:
    """The body as JSON.

    Raises:
        SeqpopeError: it is none.
    """
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise SeqpopeError("expected JSON") from error


def run(settings: Settings, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C.

    Raises:
        SeqpopeError: the address is taken, or the page's files are not there.
    """
    import socket

    import uvicorn

    if not (STATIC / "index.html").is_file():
        raise SeqpopeError(f"the studio's page is not built: in app/, npm ci && npm run build ({STATIC} is empty)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # who reads the address below may come before uvicorn is ready: it waits, then
    except OSError as error:
        raise SeqpopeError(
            f"{host}:{port} cannot be had ({error.strerror or error}): choose another --port, 0 for any"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    query = f"/?token={settings.token}" if settings.token else "/"
    say(f"the studio is at http://{shown}:{listening.getsockname()[1]}{query}  (Ctrl-C ends it)")
    config = uvicorn.Config(partial(make_app, settings), factory=True, log_level="warning", lifespan="on")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
