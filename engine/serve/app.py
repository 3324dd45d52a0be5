"""The application: which path is answered how, and what every answer has in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router, WebSocketRoute
from starlette.types import Receive, Scope, Send

from notewave.checks import shown
from notewave.errors import NotewaveError
from notewave.sampling.samplers import SAMPLERS
from notewave.serve import orders
from notewave.serve.exchange import Exchange, Sent, body_of
from notewave.serve.files import page_files
from notewave.serve.guard import Guard
from notewave.serve.live import PATH, Stage
from notewave.serve.metrics import CONTENT_TYPE, Metrics
from notewave.serve.openapi import description
from notewave.serve.query import Table
from notewave.serve.refusal import Gone, Refusal, refusal_of
from notewave.serve.settings import Settings
from notewave.serve.spool import Budget, Spool
from notewave.serve.stems import stems
from notewave.serve.workshop import Song, Workshop, side_by_side
from notewave.song.parts import titles
from notewave.sound.mel import SAMPLE_RATE
from notewave.synthesizer import Synthesizer

log = logging.getLogger(__name__)

T = TypeVar("T")
BODIES = 16  # of the largest size, that may be held at once
LARGE_BYTES = 64 << 10  # of a song's file: most songs have less
RETRY_ENDING_S = 30.0  # after which another server may be there
OPEN = ("/", "/health")  # what needs no token, beside the page's files
_ENDING = "the server ends: it takes nothing new. Try again when it runs again."
_FAILED = "the server failed at this request, by a fault of its own. Tell whoever runs it; its log says more."


class App:
    """An ASGI application on voices that were opened."""

    def __init__(self, settings: Settings, singers: Mapping[str, Synthesizer]) -> None:
        """singers: by the names that requests have for them, the default one first."""
        self._settings, self._singers = settings, singers
        self.metrics = Metrics()
        self._guard = Guard(settings)
        together = settings.together or side_by_side(singers.values())
        self._workshop = Workshop(together, settings.queue, self.metrics)
        # One song at a time, since reading takes memory; a large file, which takes seconds, holds up no small one.
        self._reading = {is_large: ThreadPoolExecutor(1, "notewave reading") for is_large in (False, True)}
        self._bodies, self._spools = Budget(BODIES * settings.max_bytes), Budget(settings.max_spool)
        most_steps = max(settings.max_steps, *(singer.voice.sampling.steps for singer in singers.values()))
        self._table = Table(settings, singers, most_steps)
        self._stage = Stage(settings.live, singers, self._table, self.metrics)
        self._requests = 0  # that are worked at
        self.is_ending = False
        self._page = page_files()
        told: dict[str, Callable[..., Any]] = {
            "/health": self._health,
            "/voices": JSONResponse(self._voices(most_steps)),
            "/metrics": self._metrics,
            "/openapi.json": JSONResponse(description(self._table, settings)),
        }
        made = {"/notes": self._notes, "/midi": self._midi, "/render": self._render, "/stems": self._stems}
        self._router = Router(redirect_slashes=False, default=_nothing)
        self._router.routes += [Route(path, get, methods=["GET"]) for path, get in (told | self._page).items()]
        self._router.routes += [Route(path, post, methods=["POST"]) for path, post in made.items()]
        self._router.routes += [WebSocketRoute(PATH, self._stage.serve)]
        self._named = {*told, *made, PATH}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: a request, a connection of WebSocket, or the life of the server around it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        began, exchange = time.monotonic(), Exchange(scope, receive, send)
        method, path = scope.get("method", "WebSocket"), scope["path"]
        self._requests += method == "POST"
        try:
            async with exchange.attended():
                await self._served(exchange, scope)
        except Gone:
            exchange.abort()
        finally:
            self._requests -= method == "POST"
            status = "gone" if exchange.status is None else str(exchange.status)
            self.metrics.requests.labels(self._route(path), status).inc()
            log.info("%s %s: %s in %.2f s", method, shown(path[:100]), status, time.monotonic() - began)

    @property
    def is_idle(self) -> bool:
        """Whether no request is worked at, and nobody plays."""
        return not self._requests and self._stage.is_empty

    def end(self) -> None:
        """Take nothing new; whoever plays is told that it is over."""
        self.is_ending = True
        self._stage.end()

    def close(self) -> None:
        """Stop working; waits for what cannot be broken off."""
        self._workshop.close()
        for reading in self._reading.values():
            reading.shutdown(cancel_futures=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        """End when the server does."""
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        self.end()
        await asyncio.to_thread(self.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _served(self, exchange: Exchange, scope: Scope) -> None:
        """Answer a request, whatever comes. Raises Gone where nobody is to be answered."""
        path, most_s = scope["path"], self._settings.max_time
        scope["app"] = self  # so the router raises HTTPException for a method, instead of an answer of its own
        try:
            self._guard.check(HTTPConnection(scope), path in OPEN or path in self._page)
            async with asyncio.timeout(most_s if scope["type"] == "http" else None):
                await self._router(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except NotewaveError as error:
            await exchange.refuse(refusal_of(error))
        except HTTPException as error:
            allowed = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
            sentence = f"{path} takes {allowed}, not {shown(scope['method'][:20])}."
            await exchange.refuse(Refusal(error.status_code, sentence, allow=allowed))
        except TimeoutError:
            await exchange.refuse(Refusal(503, f"this took longer than {most_s:g} s, the most. Try again.", retry_s=60))
        except Gone:
            raise
        except Exception as error:
            log.error("%s failed: %r", self._route(path), error)
            await exchange.refuse(Refusal(500, _FAILED))

    def _route(self, path: str) -> str:
        """A path as it is counted: none that a client makes up."""
        return path if path in self._named else "page" if path in self._page else "other"

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "draining"}, 503) if self.is_ending else JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    def _voices(self, most_steps: int) -> dict[str, Any]:
        first = next(iter(self._singers))
        voices = [
            {
                "name": name,
                "default": name == first,
                "dialect": {name: getattr(singer.voice.dialect, name) for name in ("velocities", "programs")},
                "sampling": vars(singer.voice.sampling),
                "has_vocoder": singer.voice.vocoder is not None,
            }
            for name, singer in self._singers.items()
        ]
        settings = self._settings
        limits = {"max_bytes": settings.max_bytes, "max_seconds": settings.max_seconds, "max_steps": most_steps}
        return {"voices": voices, "samplers": list(SAMPLERS), "programs": list(titles()), "limits": limits}

    async def _notes(self, request: Request) -> Response:
        return await self._made(request, "/notes", lambda score: JSONResponse(score.described()))

    async def _midi(self, request: Request) -> Response:
        headers = {"content-type": "audio/midi", "content-disposition": 'attachment; filename="song.mid"'}
        return await self._made(request, "/midi", lambda score: Response(score.file(), headers=headers))

    async def _made(self, request: Request, route: str, made: Callable[[orders.Score], Response]) -> Response:
        """An answer that is made of the song that is sent."""
        values, most = self._table.read(route, request.scope["query_string"]), self._settings.max_seconds
        whole = await self._read(request, lambda body: made(orders.Score.of(body, values, most)))
        with contextlib.ExitStack() as held:
            spool = held.enter_context(contextlib.closing(Spool()))  # whoever takes it slowly keeps no memory
            spool.write(bytes(whole.body))
            spool.finish()
            return Sent(spool.parts(), held.pop_all(), whole.headers)

    async def _render(self, request: Request) -> Response:
        return await self._sung(request, "/render", orders.rendering)

    async def _stems(self, request: Request) -> Response:
        return await self._sung(request, "/stems", stems)

    async def _sung(self, request: Request, route: str, order: Callable[..., orders.Rendering]) -> Response:
        """The sound of the song that is sent, as it is made."""
        values, most = self._table.read(route, request.scope["query_string"]), self._settings.max_seconds
        singer = self._singers[values["voice"]]
        if singer.voice.vocoder is None:
            raise Refusal(400, f"voice {values['voice']!r} has no vocoder: it makes no sound. Take another.")
        with contextlib.ExitStack() as held:
            spool = held.enter_context(contextlib.closing(Spool()))
            asked = await self._read(request, lambda body: order(body, values, singer, most, spool))
            song = Song(asked.steps, asked.count, spool)
            held.enter_context(self._held(asked.size))
            self._workshop.put(song)
            held.callback(self._workshop.drop, song)
            return Sent(spool.parts(), held.pop_all(), _told(asked, values))

    async def _read(self, request: Request, work: Callable[[bytes], T]) -> T:
        """Do what takes a while, but not long, with a request's body, beside the event loop."""
        if self.is_ending:
            self.metrics.refused.labels("ending").inc()
            raise Refusal(503, _ENDING, retry_s=RETRY_ENDING_S)
        async with body_of(request, self._settings.max_bytes, self._bodies) as body:
            reading = self._reading[len(body) > LARGE_BYTES]
            return await asyncio.get_running_loop().run_in_executor(reading, work, body)

    @contextlib.contextmanager
    def _held(self, size: int) -> Iterator[None]:
        """Keep room for so many bytes of sound in the block. Raises Refusal where there is none."""
        if size > self._settings.max_spool:
            raise Refusal(413, f"this comes to {size} bytes of sound, more than is kept here. Ask for less at once.")
        if not self._spools.take(size):
            self.metrics.refused.labels("spool").inc()
            raise Refusal(503, "too much sound waits to be taken by clients. Try again.", retry_s=30)
        try:
            yield
        finally:
            self._spools.give(size)


async def _nothing(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise Refusal(404, f"there is no {shown(scope['path'][:100])} here. GET /openapi.json says what there is.")


def _told(asked: orders.Rendering, values: Mapping[str, Any]) -> dict[str, str]:
    """What an answer's headers say of its sound."""
    told = {
        "content-type": asked.kind,
        "x-notewave-seconds": f"{asked.samples / SAMPLE_RATE:.6g}",
        "x-notewave-rate": str(values["rate"]),
        "x-notewave-voice": values["voice"],
        "x-notewave-seed": str(values["seed"]),
        "content-disposition": f'attachment; filename="{asked.filename}"',
    }
    return {**told, "content-length": str(asked.size)} if asked.is_exact else told
