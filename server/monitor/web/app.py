"""The monitor's routes. All of them read: the guard refuses any other method, and a test enumerates them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.middleware.gzip import GZipMiddleware

from server.monitor.codes import explanations
from server.monitor.view import StudyView
from server.monitor.web.events import search
from server.monitor.web.guard import Guard
from server.monitor.web.source import Source
from server.monitor.web.wire import Sender, finite, packed, round_whole

STATIC = {
    "monitor.css": "text/css", "icon.svg": "image/svg+xml",
    **dict.fromkeys(("main.js", "dom.js", "words.js", "charts.js", "strip.js", "study.js", "sites.js", "privacy.js",
                     "rounds.js", "events.js", "compare.js", "member.js"), "text/javascript"),
}  # fmt: skip
LOOK_S = 1.0
KEEP_ALIVE_S = 15.0
MAX_STREAMS = 100  # readers at one time

Metrics = Callable[[Sequence[StudyView]], bytes]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Name = Annotated[str, Query(max_length=200)]
Cursor = Annotated[str | None, Query(max_length=40)]


def create_app(
    runs: Source, *, hosts: Collection[str], token: str | None = None, secure: bool = False,
    metrics: Metrics | None = None, look_s: float = LOOK_S, ending: Callable[[], bool] = lambda: False,
) -> FastAPI:  # fmt: skip
    """The app over the studies of `runs`.

    Args:
        hosts, token, secure: see `Guard`.
        metrics: renders all studies for Prometheus, served as `/metrics`.
        look_s: seconds between looks at a journal that somebody watches.
        ending: whether the server is on its way out, so that streams end.
    """

    def over(stream: Request) -> Callable[[], Awaitable[bool]]:
        async def gone() -> bool:
            return ending() or await stream.is_disconnected()

        return gone

    app = FastAPI(title="MammoFed monitor", docs_url=None, redoc_url=None, openapi_url=None)
    streams = asyncio.Semaphore(MAX_STREAMS)

    @app.get("/")
    def page() -> Response:
        return Response(static("index.html"), media_type="text/html")

    @app.get("/static/{name}")
    def asset(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        return Response(static(name), media_type=STATIC[name])

    @app.get("/api/runs")
    def listed() -> JSONResponse:
        names, member = runs.names(), runs.member
        return JSONResponse({"first": runs.first or (names[0] if names else None),
                             "runs": [_line(runs, name) for name in names],
                             "member": asdict(member) if member is not None else None})  # fmt: skip

    @app.get("/api/view")
    def view(run: Name, since: Cursor = None) -> JSONResponse:
        return JSONResponse(Sender().message(_known(runs.read(run, since))))

    @app.get("/api/round")
    def one_round(run: Name, number: Annotated[int, Query(ge=0, le=1_000_000)]) -> JSONResponse:
        found = [one for one in _known(runs.whole(run)).rounds if one.number == number]
        return JSONResponse(round_whole(_known(found[0] if found else None)))

    @app.get("/api/events")
    def events(
        run: Name, text: Annotated[str, Query(max_length=200)] = "",
        severity: Annotated[str, Query(max_length=20)] = "", before: Annotated[int, Query(ge=0)] = 0,
    ) -> JSONResponse:  # fmt: skip
        found = _known(runs.whole(run)).events
        return JSONResponse(finite(search(found, text=text, severity=severity, before=before)))

    @app.get("/api/codes")
    def codes() -> JSONResponse:
        return JSONResponse(explanations())

    @app.get("/api/stream")
    async def stream(request: Request, run: Name, since: Cursor = None) -> Response:
        _known(run if run in await asyncio.to_thread(runs.names) else None)
        if streams.locked():
            raise HTTPException(503, "too many readers")
        cursor = request.headers.get("last-event-id") or since
        body = _follow(runs, run, cursor, over=over(request), streams=streams, look_s=look_s)
        return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @app.get("/metrics")
    def scraped() -> Response:
        if metrics is None:
            raise HTTPException(404, "no metrics here")
        return Response(metrics(runs.all()), media_type=METRICS_TYPE)

    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)  # leaves event streams as they are
    app.add_middleware(Guard, hosts=hosts, token=token, secure=secure)
    return app


@cache
def static(name: str) -> bytes:
    """A file of the page."""
    return files("server.monitor.web").joinpath("static", name).read_bytes()


async def _follow(
    runs: Source, run: str, cursor: str | None, *, over: Callable[[], Awaitable[bool]], streams: asyncio.Semaphore,
    look_s: float,
) -> AsyncIterator[bytes]:  # fmt: skip
    """One reader's stream: what is new, as soon as it is in the journal; a comment now and then, so that a line that
    is dead is noticed. The id of a message is the cursor with which a browser that was cut off comes back. An event
    `runs` names all studies, at the beginning and when one came or went: a coordinator's next study is seen at once."""
    sender, quiet_s, known = Sender(), 0.0, frozenset[str]()
    async with streams:
        while not await over():
            view = await asyncio.to_thread(runs.read, run, cursor)
            if view is None:
                return
            cursor, message = view.cursor, sender.message(view)
            if message is not None:
                quiet_s = 0.0
                yield b"id: %b\ndata: %b\n\n" % (cursor.encode(), packed(message))
            elif quiet_s >= KEEP_ALIVE_S:
                quiet_s = 0.0
                yield b": still here\n\n"
            names = await asyncio.to_thread(runs.names)
            if known != frozenset(names):  # their order is no news: a member's changes all the time
                known = frozenset(names)
                yield b"event: runs\ndata: %b\n\n" % json.dumps(list(names)).encode()
            quiet_s += look_s
            await asyncio.sleep(look_s)


def _line(runs: Source, name: str) -> dict[str, Any]:
    """One study in the list."""
    view = runs.head(name)
    if view is None:
        return {"run": name}
    return {"run": name, "name": view.name, "status": view.status, "sentence": view.sentence, "started": view.started}


def _known(found: Any) -> Any:
    if found is None:
        raise HTTPException(404, "no such study or round")
    return found
