"""The studio's server: static files, jobs and their events, uploads. It imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import traceback
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import seqpope
from seqpope.errors import SeqpopeError
from seqpope.studio import genome_routes, models_routes, requests
from seqpope.studio.catalogue import Catalogue
from seqpope.studio.jobs import Jobs
from seqpope.studio.worker import Worker

STATIC = Path(__file__).resolve().parent / "static"
MEMORY, FILE = 6 << 30, 1 << 26  # bytes that what reads uploads may take, and write
CLERK_SECONDS = 30.0
MOST_CLERICAL = 12  # files that are read or written, the one at hand and those that wait
GRACE_SECONDS = 2  # that requests have to end when the server does
POSTS_A_MINUTE = 240  # of one address: a person dragging sliders stays below
LARGEST_BODY = 1 << 20
COOKIE = "seqpope_token"
NO_NUMBERS = "the model gives no numbers (nan): its weights are damaged, or its training went wrong"
LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
FAMILIES = {"music": "chorales", "piano": "piano", "genome": "dna"}  # kinds of models (`domains.base.KINDS`)
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
        # Who waits for the clerk waits in no thread that other requests need.
        self._counter = ThreadPoolExecutor(1, "studio clerk")
        self._clerical = 0
        self._posts: dict[str, deque[float]] = defaultdict(deque)

    def start(self) -> None:
        """Have both processes ready, so that the first wish need not wait for their imports."""
        for worker in (self.computer, self.clerk):
            with contextlib.suppress(SeqpopeError):
                worker.start()

    def close(self) -> None:
        """End the processes."""
        self.computer.close()
        self.clerk.close()

    def prepared(self, kind: str, raw: Any) -> Any:
        """What the computing process is given: arguments, and the file of the model that they name."""
        arguments = requests.checked(kind, requests.COMPUTED, raw)
        made: dict[str, Any] = {"arguments": arguments}
        if hasattr(arguments, "model"):
            family = FAMILIES[kind.split(".")[0]]
            made["file"] = str(self.catalogue.model(arguments.model, family).file)
        if getattr(arguments, "genome", None) is not None:
            made["genome"] = str(self.catalogue.genome(arguments.genome))  # type: ignore[attr-defined]
        return made

    async def ask_clerk(self, kind: str, arguments: Any) -> Any:
        """Have something read or written by the process under limits.

        Raises:
            SeqpopeError: it cannot be done, in words; or too much waits to be done.
        """
        if self._clerical >= MOST_CLERICAL:
            raise SeqpopeError(f"{MOST_CLERICAL} files are being read or written already: try again in a moment")
        said: list[tuple[str, Any]] = []
        heard = lambda name, data: said.append((name, data))  # noqa: E731
        work = partial(self.clerk.run, kind, arguments, heard, lambda: False)
        self._clerical += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._counter, work)
        finally:
            self._clerical -= 1
        name, data = said[-1]
        if name != "result":
            raise SeqpopeError(str(data))
        return data

    async def read(self, kind: str, name: str, request: Request) -> Any:
        """What an uploaded file of that name holds.

        Raises:
            SeqpopeError: it cannot be read, in words.
        """
        content = await request.body()
        if not content:
            raise SeqpopeError("the file is empty")
        return await self.ask_clerk(kind, {"suffix": Path(name).suffix.lower()[:12], "content": content})

    async def convert(self, kind: str, raw: Any) -> Response:
        """What was asked for as a file.

        Raises:
            SeqpopeError: it cannot be written, in words.
        """
        asked = requests.checked(kind, requests.CLERICAL, raw)
        made = await self.ask_clerk(kind, asked)
        return Response(made, media_type=CONTENT_TYPES[asked.format])  # type: ignore[attr-defined]

    def refuse(self, request: Request) -> Response | None:
        """Why a request is refused, as an answer; None if it is not."""
        host = request.headers.get("host", "").lower()
        name, _, port = host.rpartition(":")
        name = name if port.isdecimal() else host
        if name not in map(str.lower, self.settings.hosts):
            return told(f"this studio does not answer to the name {name[:80]!r}: start it with --host", 421)
        origin = request.headers.get("origin")
        if origin is not None and origin.lower().split("//", 1)[-1] != host:
            return told("requests from other pages are refused", 403)
        token = self.settings.token
        if token is not None:
            # Either will do: a cookie of an earlier start does not stand in the way of the address with the token.
            shown = (request.cookies.get(COOKIE) or "", request.query_params.get("token") or "")
            if not any([hmac.compare_digest(one.encode(), token.encode()) for one in shown]):
                return told("open the studio by the address with its token, which the terminal shows", 401)
        if request.method not in ("GET", "HEAD"):
            length = request.headers.get("content-length", "0" if request.method == "DELETE" else "")
            # A chunked body has no length that could be known, whatever else it claims.
            small = length.isdecimal() and len(length) < 10 and int(length) <= LARGEST_BODY
            if not small or "transfer-encoding" in request.headers:
                return told(f"more than {LARGEST_BODY >> 20} MiB, or no length told: it cannot be sent so", 413)
            posts = self._posts[request.client.host if request.client else ""]
            now = time.monotonic()
            while posts and now - posts[0] > 60:
                posts.popleft()
            if len(posts) >= POSTS_A_MINUTE:
                return told(f"more than {POSTS_A_MINUTE} wishes a minute: wait a little", 429)
            posts.append(now)
        return None


def _add_files(app: FastAPI, studio: Studio, page: str) -> None:
    """Add the routes by which a page's files are read and written."""

    @app.post(f"/api/{page}/read")
    async def read(name: str, request: Request) -> Any:
        return await studio.read(f"{page}.read", name, request)

    @app.post(f"/api/{page}/convert")
    async def convert(body: Annotated[Any, Body()]) -> Response:
        return await studio.convert(f"{page}.convert", body)


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
        try:
            answer = studio.refuse(request) or await call_next(request)
        except Exception as error:  # here, since an answer made farther out would lack the headers
            traceback.print_exc()
            answer = told(f"a mistake of seqpope's ({type(error).__name__}): the terminal has more", 500)
        for name, value in HEADERS.items():
            answer.headers[name] = value
        if request.url.path.startswith("/api/"):
            answer.headers["Cache-Control"] = "no-store"
        elif request.url.path.startswith("/static/"):  # or a browser would go on with an older version's page
            answer.headers["Cache-Control"] = "no-cache"
        if settings.token is not None and request.query_params.get("token") and answer.status_code < 400:
            answer.set_cookie(COOKIE, settings.token, httponly=True, samesite="strict")
        return answer

    @app.exception_handler(SeqpopeError)
    async def in_words(_: Request, error: SeqpopeError) -> Response:
        return told(str(error))

    @app.exception_handler(RequestValidationError)
    async def misfit(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return told(f"{'.'.join(str(part) for part in first['loc'])[:80]}: {first['msg']}"[:200])

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return told(str(error.detail)[:200], error.status_code)

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
        said = request.headers.get("last-event-id", "")
        last = int(said) if said.isdecimal() and len(said) < 10 else 0

        async def lines() -> AsyncIterator[str]:
            async for number, kind, data in studio.jobs.events(job, last):
                try:
                    text = json.dumps(data, allow_nan=False)
                except ValueError:  # nan is no JSON: the page could not read it
                    yield f"id: {number}\nevent: error\ndata: {json.dumps(NO_NUMBERS)}\n\n"
                    return
                yield f"id: {number}\nevent: {kind}\ndata: {text}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    for name in ("music", "piano"):
        _add_files(app, studio, name)
    genome_routes.add(app, studio)
    models_routes.add(app, studio)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def run(settings: Settings, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C.

    Raises:
        SeqpopeError: the address is taken, or the page's files are not there.
    """
    import signal
    import socket

    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.studio.jobs.closing = True  # pages that listen are let go, or it would wait for them
            super().handle_exit(sig, frame)

    if not (STATIC / "index.html").is_file():
        raise SeqpopeError(f"the studio's page is not built: in app/, npm ci && npm run build ({STATIC} is empty)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio sends at once (TCP_NODELAY); else every answer's end waits for 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # before the address is told: who is quick waits instead of being refused
    except OSError as error:
        raise SeqpopeError(
            f"{host}:{port} cannot be had ({error.strerror or error}): choose another --port, 0 for any"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    query = f"/?token={settings.token}" if settings.token else "/"
    say(f"the studio is at http://{shown}:{listening.getsockname()[1]}{query}  (Ctrl-C ends it)")
    app = make_app(settings)
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=GRACE_SECONDS)
    # uvicorn raises its signals again when it is done: TERM would then end this process before it has tidied up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listening])
