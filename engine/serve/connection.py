"""Connections that are watched: how many there are, and whether each one's client still says and takes something."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import time
from typing import Any, Protocol, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from notewave.serve.exchange import ABORT

HEAD_SECONDS = 10.0  # in which a request's head must be there, from the connection on or since the last answer
LOOK_SECONDS = 0.5  # between two looks
LIVE_BUFFER = 32 << 10  # bytes that the system may hold of live sound: what waits there comes late
_NO_REQUEST = "this is no request of HTTP that can be read. Send one by HTTP/1.1."
_FULL = "the server has as many connections as it takes. Try again in a few seconds."


class _Watched(Protocol):
    transport: asyncio.Transport

    def waiting_since(self) -> float | None:
        """Since when it is the client's turn to say something; None where it is not."""


class Door:
    """Counts connections and looks after them, in the event loop."""

    def __init__(self, most: int, stall: float) -> None:
        """most: connections at once. stall: seconds in which a client takes nothing, after which it is let go."""
        self._most, self._stall = most, stall
        self._there: dict[_Watched, _Seen] = {}

    def enter(self, connection: _Watched) -> bool:
        """A connection is there; whether there is room for it."""
        self._there[connection] = _Seen(time.monotonic())
        return len(self._there) <= self._most

    def leave(self, connection: _Watched) -> None:
        """It is there no longer."""
        self._there.pop(connection, None)

    async def watch(self) -> None:
        """Look at all connections for ever, and end those that are stuck."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for connection, seen in list(self._there.items()):
                if seen.is_stuck(connection, now, self._stall):
                    connection.transport.abort()

    @property
    def is_quiet(self) -> bool:
        """Whether all that was to be sent was taken."""
        return not any(connection.transport.get_write_buffer_size() for connection in self._there)

    def shut(self) -> None:
        """End all connections at once."""
        for connection in list(self._there):
            connection.transport.abort()


class _Seen:
    """What was seen of a connection."""

    def __init__(self, now: float) -> None:
        self._size, self._moved = 0, now  # bytes that wait to be taken, and when that changed last

    def is_stuck(self, connection: _Watched, now: float, stall: float) -> bool:
        """Whether a client takes nothing, or says nothing when it should."""
        size = connection.transport.get_write_buffer_size()
        if size == 0 or size != self._size:
            self._size, self._moved = size, now
        since = None if size else connection.waiting_since()
        return now - self._moved > stall or (since is not None and now - since > HEAD_SECONDS)


class Connection(H11Protocol):
    """A connection of HTTP."""

    def __init__(self, door: Door, **given: Any) -> None:
        super().__init__(**given)
        self._door, self._turned = door, time.monotonic()
        self.app = cast(Any, _abortable(cast(ASGIApp, self.app), self))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, or say that there are too many."""
        super().connection_made(transport)
        if not self._door.enter(self):
            _dismiss(transport, "503 Service Unavailable\r\nretry-after: 5", _FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._door.leave(self)
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """From now on it is a ``LiveConnection``."""
        self._door.leave(self)
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Say that it is no request, as everything else is said."""
        _dismiss(self.transport, "400 Bad Request", _NO_REQUEST)

    def on_response_complete(self) -> None:
        """It is the client's turn again."""
        self._turned = time.monotonic()
        super().on_response_complete()

    def waiting_since(self) -> float | None:
        """Since when no request is under way."""
        return self._turned if self.cycle is None or self.cycle.response_complete else None


class LiveConnection(WebSocketsSansIOProtocol):
    """A connection of WebSocket."""

    def __init__(self, door: Door, **given: Any) -> None:
        super().__init__(**given)
        self._door, self._made = door, time.monotonic()
        self.app = cast(Any, _abortable(cast(ASGIApp, self.app), self))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it in; there was room for it when it was one of HTTP."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LIVE_BUFFER)
        self.transport.set_write_buffer_limits(LIVE_BUFFER)
        self._door.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._door.leave(self)
        super().connection_lost(exc)

    def waiting_since(self) -> float | None:
        """Since when there is no handshake; after it uvicorn's own pings see whether somebody is there."""
        return None if self.handshake_initiated else self._made


def _dismiss(transport: asyncio.Transport, status: str, message: str) -> None:
    """Answer what has not come to the application, and end the connection."""
    body = json.dumps({"error": message}).encode("ascii")
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
    transport.close()


def _abortable(app: ASGIApp, connection: _Watched) -> ASGIApp:
    """An application that is told how to end its connection."""

    @functools.wraps(app)
    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT] = connection.transport.abort
        await app(scope, receive, send)

    return told
