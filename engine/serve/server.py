"""A server: it listens, serves, and ends when it is told to, after what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import Mapping
from typing import Any, cast

import uvicorn

from notewave.checks import quoted
from notewave.errors import ArgumentError
from notewave.serve.app import App
from notewave.serve.connection import Connection, Door, LiveConnection
from notewave.serve.settings import Settings
from notewave.synthesizer import Synthesizer

HEAD_BYTES = 16 << 10  # of a request, at most
MESSAGE_BYTES = 4 << 10  # of what a client says when it plays, at most
KEEP_ALIVE_S = 5  # that a connection may wait for its next request
LAST_SECONDS = 1  # in which connections are closed at the end
LOOK_SECONDS = 0.05  # between two looks whether all is done


class _Uvicorn(uvicorn.Server):
    """One that leaves signals to whoever runs it."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Nothing."""
        return contextlib.nullcontext()


class Server:
    """Voices over HTTP at an address, from ``run`` to ``stop``."""

    def __init__(self, settings: Settings, singers: Mapping[str, Synthesizer]) -> None:
        """Listen. singers: by the names that requests have for them, the default one first.

        Raises ArgumentError where nobody can listen there.
        """
        self._settings, self._singers = settings, singers
        self._socket = _listen(settings)
        self.host, self.port = self._socket.getsockname()[:2]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stops = 0  # how often it was told to stop

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"

    def run(self) -> None:
        """Serve until ``stop``."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Take nothing new, finish what is under way and end; told again, end at once. From any thread or signal."""
        self._stops += 1
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._news.set)

    async def _run(self) -> None:
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        app, door = App(self._settings, self._singers), Door(self._settings.connections, self._settings.stall)
        server = _Uvicorn(self._config(app, door))
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        watching = asyncio.create_task(door.watch())
        try:
            while not self._stops:  # told before the loop was there, it has no news
                await self._news.wait()
            self._news.clear()
            app.end()
            await self._drain(app, door)
            door.shut()
            server.should_exit = True
            await serving
        finally:
            watching.cancel()
            await asyncio.to_thread(app.close)

    async def _drain(self, app: App, door: Door) -> None:
        """Wait until what is under way is done, for so long as that may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain):
                while self._stops < 2 and not (app.is_idle and door.is_quiet):
                    await asyncio.sleep(LOOK_SECONDS)

    def _config(self, app: App, door: Door) -> uvicorn.Config:
        return uvicorn.Config(
            cast(Any, app),
            http=cast(Any, functools.partial(Connection, door)),
            ws=cast(Any, functools.partial(LiveConnection, door)),
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES,
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_SECONDS,
            backlog=self._settings.connections,
        )


def _listen(settings: Settings) -> socket.socket:
    """A socket at the address that is asked for."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)  # asyncio sends at once only where the protocol is named
        try:
            if os.name == "posix":  # elsewhere it would let others listen there too
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(settings.connections)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(
            f"nobody can listen at {quoted(settings.host)}, port {settings.port}: {reason}. Choose another --port (0 "
            "for any that is free) or --host."
        ) from error
