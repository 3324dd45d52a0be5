"""The application of ``notewave serve`` on a server that is not ours: plain uvicorn's, as Ray Serve runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from serving import song

from notewave import Synthesizer
from notewave.serve.app import App
from notewave.serve.settings import Settings
from notewave.sound.audio import pcm16


@pytest.fixture(scope="module")
def singer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu")


@pytest.fixture
def server(singer: Synthesizer) -> Iterator[tuple[uvicorn.Server, threading.Thread]]:
    """A server that has begun; in the end it is told to end, if that was not done."""
    config = uvicorn.Config(App(Settings(), {"voice": singer}), port=0, lifespan="on", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield server, thread
    server.should_exit = True
    thread.join()


def workshops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "notewave workshop"]


def test_songs_are_served_and_its_threads_end_with_the_server(
    server: tuple[uvicorn.Server, threading.Thread], singer: Synthesizer
) -> None:
    serving, thread = server
    port = serving.servers[0].sockets[0].getsockname()[1]
    before = len(workshops())
    assert before >= 1
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        answer = client.post("/render?format=s16le&steps=2&seed=3", content=song(2))
        assert answer.status_code == 200 and client.post("/render", content=b"none").status_code == 400
        assert client.get("/health").status_code == 200
    expected = pcm16(singer.render(song(2), steps=2, seed=3).samples)
    assert np.array_equal(np.frombuffer(answer.content, "<i2"), expected)
    serving.should_exit = True
    thread.join()
    assert len(workshops()) == before - 1


def test_an_answer_that_breaks_off_is_seen_as_broken(
    server: tuple[uvicorn.Server, threading.Thread], monkeypatch: pytest.MonkeyPatch, singer: Synthesizer
) -> None:
    port = server[0].servers[0].sockets[0].getsockname()[1]
    vocoder, runs = singer._backend.networks["vocoder"], list[None]()
    sound = vocoder.run

    def fail_later(inputs: Any) -> Any:
        runs.append(None)
        if len(runs) == 3:
            raise RuntimeError("the vocoder fell over")
        return sound(inputs)

    monkeypatch.setattr(vocoder, "run", fail_later)
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("POST", "/render?format=s16le&steps=1", content=song(5)) as answer,
    ):
        assert answer.status_code == 200
        for _ in answer.iter_bytes():
            pass
