"""What every request has in common, beside what starlette does: the headers of answers, unread bodies, lost clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from notewave.serve.refusal import Gone, Refusal
from notewave.serve.spool import Budget

ABORT = "notewave.abort"  # in a scope: ends the connection at once, whatever waits to be sent
BODY_SECONDS = 30.0  # in which a body must be there
LINGER_BYTES, LINGER_SECONDS = 1 << 20, 1.0  # of a body that was refused, which are still taken: else none reads why
_KINDS = ("multipart/", "text/", "application/json")  # of bodies that hold no MIDI, or not alone
_USUAL = {  # headers of an answer that has no others of the name
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Exchange:
    """A request under way, or a WebSocket: what is received and sent goes through here."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.status: int | None = None  # of the answer, once it has begun
        self._start: Message | None = None  # of an answer whose first bytes are not there: it may become another
        headers = Headers(scope=scope)
        self._is_unread = any(headers.get(name, "0") != "0" for name in ("content-length", "transfer-encoding"))
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher: asyncio.Task[None] | None = None  # from the end of the body to that of the answer
        self._is_gone = False

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Break off the block where the client goes away after its body was read: Gone."""
        try:
            yield
        except asyncio.CancelledError:
            if self._is_gone:
                self._task.uncancel()
                raise Gone from None
            raise
        finally:
            self._unwatch()

    async def receive(self) -> Message:
        """ASGI's. Raises Gone where the client of a request goes away."""
        message = await self._receive()
        self._is_unread = message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise Gone
        if message["type"] == "http.request" and not self._is_unread:
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        """ASGI's; the answer gets the headers that all have. Raises Gone where a WebSocket's client has gone away."""
        kind = message["type"].removeprefix("websocket.")
        if kind == "http.response.start":
            self._start = message
            return
        try:
            if kind == "http.response.body":
                await self._send_body(message)
            else:
                await self._send(message)
                if kind == "accept":
                    self.status = 101
        except OSError:
            raise Gone from None

    async def refuse(self, refusal: Refusal) -> None:
        """Answer that it is not served, and why; where an answer has begun, break it off."""
        if self.status is not None:
            self.abort()
            return
        answer = JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)
        await answer(self._scope, self.receive, self.send)

    def abort(self) -> None:
        """End the connection at once. A server that is not ours does so where its application fails: by Gone."""
        if ABORT in self._scope:
            self._scope[ABORT]()
        elif not self._is_gone:
            raise Gone

    async def _send_body(self, message: Message) -> None:
        if self._start is not None:
            await self._begin(self._start)
        if not (is_more := message.get("more_body", False)) and self._is_unread:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": message["type"], "body": b""}
        if not is_more:
            self._unwatch()
        await self._send(message)

    async def _begin(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        for name, value in _USUAL.items():
            headers.setdefault(name, value)
        if self._is_unread:  # what is left of the body is no next request
            headers["connection"] = "close"
        self._start, self.status = None, start["status"]
        await self._send(start)

    async def _linger(self) -> None:
        """Take a little more of a body that nobody wants: a client that still sends may not read the answer before."""
        taken = 0
        with contextlib.suppress(Gone, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._is_unread and taken < LINGER_BYTES:
                    taken += len((await self.receive()).get("body", b""))

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

    def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


class Sent(StreamingResponse):
    """An answer in parts, as they come; something is held until it is over. What fails before the first is raised."""

    def __init__(self, parts: AsyncIterator[bytes], held: contextlib.ExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(parts, headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's. The exchange sees whether the client goes away: starlette's own listener would be a second one."""
        with self._held:
            await self.stream_response(send)


@contextlib.asynccontextmanager
async def body_of(request: Request, most: int, budget: Budget) -> AsyncIterator[bytes]:
    """A request's body, held in the block. Raises Refusal where it is no song's, too large or too slow."""
    kind = request.headers.get("content-type", "").strip().lower()
    if kind.startswith(_KINDS) or request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(
            415,
            "the body is no plain MIDI file. Send the file's own bytes as they are: curl --data-binary @song.mid",
        )
    if int(request.headers.get("content-length", "0")) > most:
        raise _too_large(most)
    data = bytearray()
    try:
        await _read(request, data, most, budget)
        yield bytes(data)
    finally:
        budget.give(len(data))


async def _read(request: Request, data: bytearray, most: int, budget: Budget) -> None:
    """Add the body to data."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                if len(data) + len(part) > most:
                    raise _too_large(most)
                if not budget.take(len(part)):
                    raise Refusal(503, "the server reads too many songs at once. Try again.", retry_s=5)
                data += part
    except TimeoutError:
        raise Refusal(408, f"the song was not there within {BODY_SECONDS:g} s. Send it faster.") from None


def _too_large(most: int) -> Refusal:
    return Refusal(
        413, f"the song's file is larger than {most} bytes, the most that is taken here. Send a smaller one."
    )
