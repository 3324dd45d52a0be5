"""What a server is told once, when it is started."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from notewave.checks import is_integer, is_number, quoted
from notewave.errors import ArgumentError

LEAST_TOKEN = 8  # characters
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")  # as a Host header has them
MAX_PORT = 65535


@dataclass(frozen=True)
class Settings:
    """Where a server listens, whom it serves, and how much of everything there may be."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    token: str | None = None  # what a client must know; None: nothing
    together: int | None = None  # songs that are made side by side; None: as many as ``ROOM`` holds
    queue: int = 32  # songs that wait for those
    live: int = 1  # live sessions at once
    connections: int = 256  # at once
    max_bytes: int = 1 << 20  # of a song's file
    max_seconds: float = 600.0  # of a song
    max_steps: int = 100  # denoising steps of a segment, beyond what a voice recommends
    max_spool: int = 2 << 30  # bytes of sound that may lie on the disk until clients take them
    max_time: float = 1800.0  # seconds from a request to the last byte of its answer
    stall: float = 30.0  # seconds in which a client takes or sends nothing, after which it is let go
    drain: float = 30.0  # seconds in which what is under way is finished when the server ends

    def __post_init__(self) -> None:
        """Refuse what cannot be, and a host that strangers reach without a token: ArgumentError."""
        for name, low, high in _WHOLE:
            value = getattr(self, name)
            if not is_integer(value, low, high) and (name, value) != ("together", None):
                raise ArgumentError(f"{_word(name)} is {quoted(value)}; it must be a whole number from {low} on.")
        for name, low_s in (("max_seconds", 0.0), ("max_time", 0.0), ("stall", 0.0), ("drain", -1.0)):
            if not is_number(value := getattr(self, name), low_s, math.inf) or value == low_s:
                raise ArgumentError(f"{_word(name)} is {quoted(value)}; it must be a number of seconds above 0.")
        if self.token is not None and not (
            isinstance(self.token, str)
            and len(self.token) >= LEAST_TOKEN
            and self.token.isascii()
            and _plain(self.token)
        ):
            raise ArgumentError(
                f"the token must be {LEAST_TOKEN} characters or more, letters, digits, - . _ and ~: whoever knows it "
                "may use this machine. Make one by: openssl rand -hex 16"
            )
        if self.token is None and not is_loopback(self.host):
            raise ArgumentError(
                f"the host {quoted(self.host)} can be reached from other machines, by whomever: no token is set. Set "
                "one in NOTEWAVE_TOKEN (or --token), or listen on 127.0.0.1."
            )


_WHOLE = (
    ("port", 0, MAX_PORT),
    ("together", 1, 1024),
    ("queue", 0, 1 << 16),
    ("live", 0, 1024),
    ("connections", 1, 1 << 16),
    ("max_bytes", 1, 1 << 30),
    ("max_steps", 1, 1 << 16),
    ("max_spool", 1, 1 << 50),
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _plain(token: str) -> bool:
    return all(char.isalnum() or char in "-._~" for char in token)


def _word(name: str) -> str:
    return "--" + name.replace("_", "-")
