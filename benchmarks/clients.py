"""Clients of a server, good and bad ones: each asks once, and says whether what it was answered is right."""

from __future__ import annotations

import contextlib
import io
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
import soundfile
from numpy.typing import NDArray

from notewave.sound.audio import pcm16
from notewave.sound.mel import FloatArray

PATIENCE_S = 120.0  # for any one answer
SLOW_BYTES, SLOW_SECONDS = 16 << 10, 6.0  # that a slow client takes at once, and in which it takes all
HALTED_SECONDS = 12.0  # that a client waits in the midst of what it says: longer than a server should
FULL, RIGHT, REFUSED, LEFT = "full", "right", "refused", "left"  # what became of a request


class Wrong(Exception):
    """An answer is not what it must be."""


@dataclass(frozen=True)
class Request:
    """A song to be sung, and what it must sound like."""

    body: bytes
    query: dict[str, str]
    samples: FloatArray  # [n] at the query's rate

    @property
    def path(self) -> str:
        """What is asked for."""
        return f"/render?{urlencode(self.query)}"

    def check(self, data: bytes) -> None:
        """Raise Wrong where a file of sound is not this song's, sample by sample."""
        form = self.query["format"]
        given: NDArray[Any]
        true: NDArray[Any]
        if form == "f32le":
            given, true = np.frombuffer(data, "<f4"), self.samples
        elif form == "s16le":
            given, true = np.frombuffer(data, "<i2"), pcm16(self.samples)
        else:
            try:
                sound, rate = soundfile.read(io.BytesIO(data), dtype="int16")
            except soundfile.LibsndfileError as error:
                raise Wrong(f"{form}: {error}") from error
            if rate != int(self.query["rate"]):
                raise Wrong(f"{form}: its rate is {rate} Hz")
            given, true = sound, pcm16(self.samples)
        if not np.array_equal(given, true):
            raise Wrong(f"{self.path}: {len(given)} samples that are not those {len(true)} of the song")


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    what: str
    first_s: float | None = None  # until its first byte, where it was answered


Client = Callable[[tuple[str, int], Request, random.Random], Answer]


def plain(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Ask and read."""
    return _sung(address, request, pause_s=0.0)


def slow(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Ask, and read a little at a time."""
    return _sung(address, request, pause_s=SLOW_SECONDS * SLOW_BYTES / (4 * len(request.samples)))


def gone(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Ask, and go away: in the midst of the song, before an answer, or in its midst."""
    with _connected(address) as connection:
        said = _post(request.path, request.body)
        where = chance.randrange(3)
        connection.sendall(said[: chance.randrange(len(said))] if where == 0 else said)
        if where == 1:
            time.sleep(chance.uniform(0.0, 1.0))
        elif where == 2:
            connection.recv(4096)
    return Answer(LEFT)


def garbage(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Send what is no song: noise, or a song with noise in it, which may be mended."""
    if chance.random() < 0.5:
        return _refused(address, "/render", chance.randbytes(chance.randrange(10_000)), (400,))
    body = bytearray(request.body)
    for _ in range(chance.randrange(1, 50)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return _refused(address, chance.choice(["/notes", "/midi"]), bytes(body), (200, 400, 413))


def wrong_options(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Ask for what there is not."""
    name = chance.choice(["voice", "format", "rate", "seed", "steps", "guidance", "sampler", "strict", "solo", "x"])
    value = chance.choice(["-", "-1e3", "nan", "1e999", "9" * 300, "../../etc/passwd", "\0", "ÿ", "a=b&c", "' or 1"])
    return _refused(address, f"/render?{urlencode({name: value})}", request.body, (400,))


def too_much(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Say that very much comes, or send it unannounced."""
    if chance.random() < 0.5:
        said = b"POST /render HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\nMThd"
    else:
        said = b"POST /render HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        said += (b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 64
    with _connected(address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(said)
        return _expect(connection, (413,), may_be_cut=True)


def halted(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Stop in the midst of a head or of a song, for longer than there is time for it; or say it very slowly."""
    said = _post("/render", request.body)
    end = time.monotonic() + HALTED_SECONDS
    with _connected(address) as connection, contextlib.suppress(ConnectionError):
        at = chance.randrange(len(said) // 2)
        connection.sendall(said[:at])
        while time.monotonic() < end and at < len(said):
            time.sleep(0.2)
            if chance.random() < 0.5:
                connection.sendall(said[at : at + 1])
                at += 1
    return Answer(LEFT)


def no_http(address: tuple[str, int], request: Request, chance: random.Random) -> Answer:
    """Send what is no request."""
    with _connected(address) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(chance.choice([b"\x16\x03\x01", b"GET ", b""]) + chance.randbytes(500) + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
        return _expect(connection, (400,), may_be_cut=True)


KINDS: dict[Client, int] = {
    plain: 8,
    slow: 3,
    gone: 3,
    garbage: 2,
    wrong_options: 2,
    too_much: 1,
    halted: 1,
    no_http: 1,
}


def _sung(address: tuple[str, int], request: Request, pause_s: float) -> Answer:
    began = time.monotonic()
    with _connected(address) as connection:
        connection.sendall(_post(request.path, request.body))
        data = bytearray(connection.recv(4096))
        first_s = time.monotonic() - began
        while part := connection.recv(SLOW_BYTES):
            data += part
            if pause_s:
                time.sleep(pause_s)
    status, body = _parsed(bytes(data))
    if status == 503:
        return Answer(FULL, first_s)
    if status != 200:
        raise Wrong(f"{request.path}: {status} {body[:200]!r}")
    request.check(body)
    return Answer(RIGHT, first_s)


def _refused(address: tuple[str, int], path: str, body: bytes, statuses: tuple[int, ...]) -> Answer:
    with _connected(address) as connection:
        connection.sendall(_post(path, body))
        return _expect(connection, statuses)


def _expect(connection: socket.socket, statuses: tuple[int, ...], may_be_cut: bool = False) -> Answer:
    """Read an answer that must be one of these, or 503, in a sentence."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    if not data and may_be_cut:
        return Answer(LEFT)
    status, body = _parsed(bytes(data))
    if status not in (*statuses, 503):
        raise Wrong(f"{status} {body[:200]!r}, where {statuses} were due")
    try:
        is_told = status == 200 or bool(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        is_told = False
    if not is_told:
        raise Wrong(f"{status} without a sentence: {body[:200]!r}")
    return Answer(FULL if status == 503 else RIGHT if status == 200 else REFUSED)


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + body


def _connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=PATIENCE_S)


def _parsed(data: bytes) -> tuple[int, bytes]:
    """Status and body of an answer. Raises Wrong where it is none, or not whole."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    if not lines[0].startswith("http/1.1 "):
        raise Wrong(f"no answer: {data[:100]!r}")
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    elif len(body) != int(headers.get("content-length", -1)):
        raise Wrong(f"{len(body)} bytes of {headers.get('content-length')}")
    return int(lines[0].split()[1]), body


def _joined(chunks: bytes) -> bytes:
    """The body that was sent in chunks. Raises Wrong where it is not whole."""
    body, at = bytearray(), 0
    while True:
        end = chunks.find(b"\r\n", at)
        if end < 0:
            raise Wrong("an answer in chunks was broken off")
        size = int(chunks[at:end], 16)
        if size == 0:
            return bytes(body)
        body += chunks[end + 2 : end + 2 + size]
        at = end + size + 4
