"""A server on a real socket, in a thread of the test's process; and a voice whose steps wait for leave."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from prometheus_client.parser import text_string_to_metric_families

from notewave import Synthesizer
from notewave.serve.server import Server
from notewave.serve.settings import Settings
from notewave.song.notes import Notes
from notewave.song.writing import to_midi
from notewave.sound.mel import SEGMENT_SECONDS

PATIENCE_S = 60.0
BAND = (Path(__file__).parents[1] / "engine" / "bundled" / "songs" / "band.mid").read_bytes()


def song(segments: int = 1, pitch: int = 60) -> bytes:
    """A MIDI file of so many segments: a piano note in each, with a drum under it."""
    onset = np.arange(segments) * SEGMENT_SECONDS + 0.5
    count = len(onset)
    piano = (onset, onset + 1.0, np.full(count, pitch), np.full(count, 90), np.zeros(count), np.zeros(count))
    drums = (onset, onset + 0.1, np.full(count, 38), np.full(count, 90), np.zeros(count), np.ones(count))
    return to_midi(Notes(*map(np.concatenate, zip(piano, drums, strict=True))))


class Braked(Synthesizer):
    """A real voice that makes a denoising step only when it may."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._news = threading.Condition()
        self._may, self.made = 0.0, 0  # steps

    def let(self, steps: float = float("inf")) -> None:
        """Let it make so many steps more."""
        with self._news:
            self._may += steps
            self._news.notify_all()

    def stream(self, song: Any, **options: Any) -> Any:
        step = options.pop("on_step")

        def on_step() -> None:
            step()
            with self._news:
                self.made += 1
                self._news.notify_all()
                assert self._news.wait_for(lambda: self.made <= self._may, PATIENCE_S)
            step()

        return super().stream(song, **options, on_step=on_step)

    def wait(self, steps: int) -> None:
        """Wait until so many steps were begun to be waited for."""
        with self._news:
            assert self._news.wait_for(lambda: self.made >= steps, PATIENCE_S)


@contextlib.contextmanager
def serving(*singers: Synthesizer, **settings: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """A server, and a client of it."""
    server = Server(Settings(port=0, **settings), {singer.voice.name: singer for singer in singers})
    thread = threading.Thread(target=server.run)
    thread.start()
    headers = {"Authorization": f"Bearer {settings['token']}"} if "token" in settings else {}
    try:
        with httpx.Client(base_url=server.address, headers=headers, timeout=PATIENCE_S) as client:
            yield server, client
    finally:
        for singer in singers:
            if isinstance(singer, Braked):
                singer.let()
        server.stop()
        server.stop()  # without waiting for what a test left
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def metrics(client: httpx.Client) -> dict[str, float]:
    """What a server counts: values by their names, with labels as name{value,value}."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def wait_for_metric(client: httpx.Client, name: str, value: float) -> None:
    """Ask a server until it has counted so."""
    end = time.monotonic() + PATIENCE_S
    while (now := metrics(client).get(name)) != value:
        assert time.monotonic() < end, f"{name} is {now}, not {value}"
        time.sleep(0.02)


def decoded(data: bytes) -> tuple[np.ndarray[Any, Any], int]:
    """The 16-bit samples of a sound file, and its rate."""
    return soundfile.read(io.BytesIO(data), dtype="int16")


@contextlib.contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    """A bare connection to a server."""
    with socket.create_connection((server.host, server.port), timeout=PATIENCE_S) as connection:
        yield connection


def posted(path: str, body: bytes, *headers: str) -> bytes:
    """A request as bytes."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """All that a server answers until it ends the connection: the status, headers and body of the first answer."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def sentence(response: httpx.Response) -> str:
    """The sentence of a refusal."""
    return str(json.loads(response.content)["error"])
