"""A request of HTTP and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from notewave.serve.asgi import ABORT, Receive, Scope, Send, header, header_lines
from notewave.serve.refusal import Gone, Refusal
from notewave.serve.spool import Budget

BODY_SECONDS = 30.0  # in which a body must be there
LINGER_BYTES, LINGER_SECONDS = 1 << 20, 1.0  # of a body that was refused, which are still taken: else none reads why
_KINDS = ("multipart/", "text/", "application/json")  # of bodies that hold no MIDI, or not alone
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Exchange:
    """A request under way: its body is read once, then it is answered once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.method, self.path, self.query = scope["method"], scope["path"], scope["query_string"]
        self.status: int | None = None  # of the answer, once it has begun
        self._is_done = False
        self._has_body = any(self.header(name) not in (None, "0") for name in (b"content-length", b"transfer-encoding"))

    def header(self, name: bytes) -> str | None:
        """A header of the request."""
        return header(self._scope, name)

    @contextlib.asynccontextmanager
    async def body(self, most: int, budget: Budget) -> AsyncIterator[bytes]:
        """The request's body, held in the block. Raises Refusal where it is no song's, too large or too slow."""
        self._check_kind()
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > most:
            raise _too_large(most)
        data = bytearray()
        try:
            await self._read(data, most, budget)
            yield bytes(data)
        finally:
            budget.give(len(data))

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Break off the block where the client goes away: Gone. The body must have been read."""
        task, is_gone = asyncio.current_task(), False
        assert task is not None

        async def watch() -> None:
            nonlocal is_gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self._is_done:
                is_gone = True
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if is_gone:
                task.uncancel()
                raise Gone from None
            raise
        finally:
            watcher.cancel()

    async def answer(self, data: bytes, kind: str, status: int = 200, **headers: str) -> None:
        """Answer with all of it at once. headers: more of them, _ for -."""
        sized = {"content-type": kind, "content-length": str(len(data))}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        is_unread = self._has_body
        if is_unread:  # what is left of it is no next request
            more["connection"] = "close"
        await self._begin(status, {**sized, **more})
        await self._send({"type": "http.response.body", "body": data, "more_body": is_unread})
        if is_unread:
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer_json(self, value: Any, status: int = 200, **headers: str) -> None:
        """Answer with a value as JSON."""
        await self.answer(to_json(value), "application/json", status, **headers)

    async def stream(self, parts: AsyncIterator[bytes], kind: str, size: int | None, **headers: str) -> None:
        """Answer with parts as they come, ``size`` bytes in all where that is known.

        What fails before the first part is raised, so that it can be answered otherwise.
        """
        first = await anext(parts, b"")
        sized = {"content-type": kind} | ({} if size is None else {"content-length": str(size)})
        await self._begin(200, sized | {name.replace("_", "-"): value for name, value in headers.items()})
        await self._send({"type": "http.response.body", "body": first, "more_body": True})
        async for part in parts:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        self._is_done = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        """Answer that it is not served, and why; where an answer has begun, break it off."""
        if self.status is not None:
            self.abort()
            return
        extra = {name.replace("-", "_"): value for name, value in refusal.headers.items()}
        await self.answer_json({"error": str(refusal)}, refusal.status, **extra)

    def abort(self) -> None:
        """End the connection at once."""
        self._scope[ABORT]()

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        headers = {**_SECURITY, "cache-control": "no-store", **headers}
        await self._send({"type": "http.response.start", "status": status, "headers": header_lines(headers)})

    def _check_kind(self) -> None:
        kind = (self.header(b"content-type") or "").strip().lower()
        if kind.startswith(_KINDS) or self.header(b"content-encoding") not in (None, "identity"):
            raise Refusal(
                415,
                "the body is no plain MIDI file. Send the file's own bytes as they are: curl --data-binary @song.mid",
            )

    async def _read(self, data: bytearray, most: int, budget: Budget) -> None:
        """Add the body to data."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while self._has_body:
                    part = await self._part()
                    if len(data) + len(part) > most:
                        raise _too_large(most)
                    if not budget.take(len(part)):
                        raise Refusal(503, "the server reads too many songs at once. Try again.", retry_s=5)
                    data += part
        except TimeoutError:
            raise Refusal(408, f"the song was not there within {BODY_SECONDS:g} s. Send it faster.") from None

    async def _part(self) -> bytes:
        """The next part of the body. Raises Gone where the client goes away."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self._has_body = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _linger(self) -> None:
        """Take a little more of a body that nobody wants: a client that still sends may not read the answer before."""
        taken = 0
        with contextlib.suppress(Gone, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._has_body and taken < LINGER_BYTES:
                    taken += len(await self._part())


def to_json(value: Any) -> bytes:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _too_large(most: int) -> Refusal:
    return Refusal(
        413, f"the song's file is larger than {most} bytes, the most that is taken here. Send a smaller one."
    )
