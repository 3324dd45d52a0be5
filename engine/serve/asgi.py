"""The words of ASGI that are used here: what a server and an application say to each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

ABORT = "notewave.abort"  # in a scope: ends the connection at once, whatever waits to be sent


def header(scope: Scope, name: bytes) -> str | None:
    """A request's header; None where it has none, the first of several."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def header_lines(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """An answer's headers, as ASGI has them."""
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
