"""The application: which path is answered how, and what every answer has in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from notewave.checks import shown
from notewave.errors import NotewaveError
from notewave.sampling.samplers import SAMPLERS
from notewave.serve import orders
from notewave.serve.asgi import Receive, Scope, Send
from notewave.serve.exchange import Exchange, to_json
from notewave.serve.files import page_files
from notewave.serve.guard import Guard
from notewave.serve.live import Stage
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
        self._page = page_files()
        self._requests = 0  # that are worked at
        self.is_ending = False
        self._routes: dict[str, dict[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/health": {"GET": self._health},
            "/voices": {"GET": self._constant(self._voices(most_steps))},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._constant(description(self._table, settings))},
            "/notes": {"POST": self._notes},
            "/midi": {"POST": self._midi},
            "/render": {"POST": self._render},
            "/stems": {"POST": self._stems},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: a request, or a connection of WebSocket."""
        if scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send), scope)
        elif scope["type"] == "websocket":
            await self._stage.serve(scope, receive, send, self._guard)

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

    async def _answer(self, exchange: Exchange, scope: Scope) -> None:
        began, route = time.monotonic(), self._route(exchange.path)
        self._requests += exchange.method == "POST"
        try:
            await self._served(exchange, scope)
        except Gone:
            exchange.abort()
        finally:
            self._requests -= exchange.method == "POST"
            status = "gone" if exchange.status is None else str(exchange.status)
            self.metrics.requests.labels(route, status).inc()
            seconds = time.monotonic() - began
            log.info("%s %s: %s in %.2f s", exchange.method, shown(exchange.path[:100]), status, seconds)

    async def _served(self, exchange: Exchange, scope: Scope) -> None:
        """Answer a request, whatever comes. Raises Gone where nobody is to be answered."""
        try:
            self._guard.check(scope, exchange.path in OPEN or exchange.path in self._page)
            handler = self._handler(exchange)
            async with asyncio.timeout(self._settings.max_time):
                await handler(exchange)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except NotewaveError as error:
            await exchange.refuse(refusal_of(error))
        except TimeoutError:
            await exchange.refuse(
                Refusal(503, f"this took longer than {self._settings.max_time:g} s, the most. Try again.", retry_s=60)
            )
        except Gone:
            raise
        except Exception as error:
            log.error("%s %s failed: %r", exchange.method, self._route(exchange.path), error)
            await exchange.refuse(Refusal(500, _FAILED))

    def _route(self, path: str) -> str:
        """A path as it is counted: none that a client makes up."""
        return path if path in self._routes else "page" if path in self._page else "other"

    def _handler(self, exchange: Exchange) -> Callable[[Exchange], Awaitable[None]]:
        if exchange.path in self._page:
            methods: Mapping[str, Callable[[Exchange], Awaitable[None]]] = {"GET": self._page_file}
        elif (methods := self._routes.get(exchange.path, {})) == {}:
            raise Refusal(404, f"there is no {shown(exchange.path[:100])} here. GET /openapi.json says what there is.")
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            allowed = ", ".join(methods)
            raise Refusal(405, f"{exchange.path} takes {allowed}, not {shown(exchange.method[:20])}.", allow=allowed)
        if method == "POST" and self.is_ending:
            self.metrics.refused.labels("ending").inc()
            raise Refusal(503, _ENDING, retry_s=RETRY_ENDING_S)
        return methods[method]

    async def _page_file(self, exchange: Exchange) -> None:
        data, kind = self._page[exchange.path]
        await exchange.answer(data, kind, cache_control="no-cache")

    @staticmethod
    def _constant(value: Any) -> Callable[[Exchange], Awaitable[None]]:
        data = to_json(value)

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(data, "application/json")

        return answer

    async def _health(self, exchange: Exchange) -> None:
        if self.is_ending:
            await exchange.answer_json({"status": "draining"}, 503)
        else:
            await exchange.answer_json({"status": "ok"})

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.answer(self.metrics.text(), CONTENT_TYPE)

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

    async def _notes(self, exchange: Exchange) -> None:
        values = self._table.read("/notes", exchange.query)
        await self._send_made(exchange, values, lambda score: to_json(score.described()), "application/json")

    async def _midi(self, exchange: Exchange) -> None:
        values = self._table.read("/midi", exchange.query)
        named = 'attachment; filename="song.mid"'
        await self._send_made(exchange, values, orders.Score.file, "audio/midi", content_disposition=named)

    async def _send_made(
        self,
        exchange: Exchange,
        values: Mapping[str, Any],
        made: Callable[[orders.Score], bytes],
        kind: str,
        **headers: str,
    ) -> None:
        """Answer with what is made of the song that is sent."""
        most = self._settings.max_seconds
        data = await self._read(exchange, lambda body: made(orders.Score.of(body, values, most)))
        with _spool() as spool:  # whoever takes it slowly keeps no memory
            spool.write(data)
            size = len(data)
            del data
            spool.finish()
            async with exchange.attended():
                await exchange.stream(spool.parts(), kind, size, **headers)

    async def _render(self, exchange: Exchange) -> None:
        await self._sing(exchange, "/render", orders.rendering)

    async def _stems(self, exchange: Exchange) -> None:
        await self._sing(exchange, "/stems", stems)

    async def _sing(self, exchange: Exchange, route: str, order: Callable[..., orders.Rendering]) -> None:
        """Answer with the sound of the song that is sent, as it is made."""
        values = self._table.read(route, exchange.query)
        singer = self._singers[values["voice"]]
        if singer.voice.vocoder is None:
            raise Refusal(400, f"voice {values['voice']!r} has no vocoder: it makes no sound. Take another.")
        with _spool() as spool:
            most = self._settings.max_seconds
            asked = await self._read(exchange, lambda body: order(body, values, singer, most, spool))
            song = Song(asked.steps, asked.count, spool)
            with self._held(asked.size):
                self._workshop.put(song)
                try:
                    async with exchange.attended():
                        size = asked.size if asked.is_exact else None
                        await exchange.stream(spool.parts(), asked.kind, size, **_told(asked, values))
                finally:
                    self._workshop.drop(song)

    async def _read(self, exchange: Exchange, work: Callable[[bytes], T]) -> T:
        """Do what takes a while, but not long, with a request's body, beside the event loop."""
        async with exchange.body(self._settings.max_bytes, self._bodies) as body, exchange.attended():
            reading = self._reading[len(body) > LARGE_BYTES]
            return await asyncio.get_running_loop().run_in_executor(reading, work, body)

    @contextlib.contextmanager
    def _held(self, size: int) -> Any:
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


@contextlib.contextmanager
def _spool() -> Any:
    spool = Spool()
    try:
        yield spool
    finally:
        spool.close()


def _told(asked: orders.Rendering, values: Mapping[str, Any]) -> dict[str, str]:
    """What an answer's headers say of its sound."""
    return {
        "x_notewave_seconds": f"{asked.samples / SAMPLE_RATE:.6g}",
        "x_notewave_rate": str(values["rate"]),
        "x_notewave_voice": values["voice"],
        "x_notewave_seed": str(values["seed"]),
        "content_disposition": f'attachment; filename="{asked.filename}"',
    }
