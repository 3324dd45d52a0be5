"""Live play by WebSocket: keys in, sound out by the clock, one client a session."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.websockets import WebSocket

from notewave.checks import quoted
from notewave.errors import NotewaveError
from notewave.live.live import Live
from notewave.serve.exchange import ABORT
from notewave.serve.metrics import Metrics
from notewave.serve.query import Table
from notewave.serve.refusal import Refusal
from notewave.sound.audio import pcm16
from notewave.synthesizer import Synthesizer

log = logging.getLogger(__name__)

PATH = "/live"
BEHIND_SECONDS = 2.0  # that a client may be with taking its sound
MESSAGES_A_SECOND = 1000  # that a client may send: ten fingers send less
_GOING_AWAY, _TOO_MANY, _FAILED, _BUSY = 1001, 1008, 1011, 1013  # codes with which a connection is closed
_KNOWN = {  # what can be done: its fields, and those that must be there
    "note_on": ({"pitch": int, "velocity": int, "program": int, "drum": bool}, {"pitch"}),
    "note_off": ({"pitch": int, "program": int, "drum": bool}, {"pitch"}),
    "pedal": ({"down": bool, "program": int}, {"down"}),
    "all_off": ({}, set[str]()),
}


class Stage:
    """Where live sessions are; to be used in the event loop."""

    def __init__(self, most: int, singers: Mapping[str, Synthesizer], table: Table, metrics: Metrics) -> None:
        """most: sessions at once."""
        self._most, self._singers, self._table, self._metrics = most, singers, table, metrics
        self._sessions: set[asyncio.Task[Any]] = set()
        self._is_over = False

    @property
    def is_empty(self) -> bool:
        """Whether nobody plays."""
        return not self._sessions

    def end(self) -> None:
        """Tell all who play that it is over."""
        self._is_over = True
        for session in self._sessions:
            session.cancel()

    async def serve(self, websocket: WebSocket) -> None:
        """Let a client play, where there is room, until one of both ends it. Raises Refusal before it is let in."""
        values = self._table.read(PATH, websocket.scope["query_string"])
        reason = "the server ends" if self._is_over else "others play; try again later"
        if self._is_over or len(self._sessions) >= self._most:
            self._metrics.refused.labels("live").inc()
            await websocket.accept()
            await _close(websocket, _BUSY, reason)
            return
        session = asyncio.current_task()
        assert session is not None
        self._sessions.add(session)
        self._metrics.live.set(len(self._sessions))
        try:
            async with self._opened(values) as played:
                await websocket.accept()
                await _Session(played, websocket).play()
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            session.uncancel()
            await _close(websocket, _GOING_AWAY, "the server ends")
        finally:
            self._sessions.discard(session)
            self._metrics.live.set(len(self._sessions))

    @contextlib.asynccontextmanager
    async def _opened(self, values: Mapping[str, Any]) -> AsyncIterator[Live]:
        """A voice that can be played. It is opened and closed beside the event loop: both take a while."""
        singer, options = self._singers[values["voice"]], {"rate": values["rate"], "hop": values.get("hop")}
        opening = asyncio.ensure_future(asyncio.to_thread(lambda: singer.live(**options)))
        try:
            played = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        except NotewaveError as error:
            raise Refusal(400, str(error)) from error
        try:
            yield played
        finally:
            await asyncio.shield(asyncio.to_thread(played.close))


class _Session:
    """A client that plays."""

    def __init__(self, played: Live, websocket: WebSocket) -> None:
        self._played, self._websocket = played, websocket

    async def play(self) -> None:
        """Send sound and heed keys until the client goes away, or is too slow."""
        played = self._played
        told = {"sample_rate": played.sample_rate, "hop_samples": played.hop_samples, "latency_s": played.latency}
        try:
            await self._tell(told)
            tasks = [asyncio.create_task(part()) for part in (self._sound, self._heed)]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
        except TimeoutError:
            self._websocket.scope[ABORT]()  # it takes nothing: no farewell either
        except NotewaveError as error:
            log.error("live play failed: %s", error)
            await _close(self._websocket, _FAILED, "the voice failed")

    async def _sound(self) -> None:
        """Send the sound, hop by hop, by the clock. Raises TimeoutError where the client does not take it."""
        clock, played = asyncio.get_running_loop().time, self._played
        hop_s, due = played.hop_samples / played.sample_rate, clock()
        while True:
            samples = played.read().samples
            played.check()
            async with asyncio.timeout(BEHIND_SECONDS):
                await self._websocket.send_bytes(pcm16(samples).astype("<i2").tobytes())
            due = max(due + hop_s, clock() - BEHIND_SECONDS)
            await asyncio.sleep(due - clock())

    async def _heed(self) -> None:
        """Do what the client says, until it goes away or says too much."""
        clock = asyncio.get_running_loop().time
        second, count = math.floor(clock()), 0
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            if (now := math.floor(clock())) != second:
                second, count = now, 0
            count += 1
            if count > MESSAGES_A_SECOND:
                await _close(self._websocket, _TOO_MANY, "too many messages")
                return
            try:
                do(self._played, message.get("text"))
            except (NotewaveError, ValueError) as error:
                await self._tell({"error": str(error)})

    async def _tell(self, value: Any) -> None:
        async with asyncio.timeout(BEHIND_SECONDS):
            await self._websocket.send_json(value)


def do(played: Live, text: str | None) -> None:
    """Do what a message says. Raises ValueError, ArgumentError for one that says nothing that can be done."""
    try:
        said = json.loads(text or "")
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ValueError('the message is no JSON object. Send one, as {"do": "note_on", "pitch": 60}.')
    deed = said.pop("do", None)
    if not isinstance(deed, str) or deed not in _KNOWN:
        raise ValueError(f"there is nothing to do as {quoted(deed)}. Say {', '.join(_KNOWN)}.")
    fields, needed = _KNOWN[deed]
    if unknown := said.keys() - fields.keys():
        raise ValueError(f"{deed} has no {quoted(min(unknown))}. It has {', '.join(fields) or 'nothing'}.")
    if missing := needed - said.keys():
        raise ValueError(f"{deed} needs {', '.join(missing)}.")
    for name, kind in fields.items():
        if name in said and type(said[name]) is not kind:
            raise ValueError(f"{name} is {quoted(said[name])}; it must be {_WORDS[kind]}.")
    getattr(played, deed)(**said)


_WORDS = {int: "a whole number", bool: "true or false"}


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close a connection; one that is gone already is let be."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(BEHIND_SECONDS):
            await websocket.close(code, reason)


def _close_opened(opening: asyncio.Future[Live]) -> None:
    """Close a voice that nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
