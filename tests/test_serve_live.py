"""Live play by WebSocket: keys in, sound out; and every way in which it ends."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from serving import PATIENCE_S, metrics, serving, wait_for_metric
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from notewave import Synthesizer
from notewave.live import fit
from notewave.serve import live as live_play
from notewave.serve.server import Server


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.fixture(scope="module", autouse=True)
def measured_briefly() -> Iterator[None]:
    """What this machine can is measured whenever somebody begins to play: here not for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "MANY_TOKENS", (256,))
        patch.setattr(fit, "WARM", 1)
        patch.setattr(fit, "TIMED", 2)
        yield


@pytest.fixture(scope="module")
def served(singer: Synthesizer) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(singer) as server:
        yield server


@pytest.fixture
def alone(served: tuple[Server, httpx.Client]) -> Server:
    """The server, where nobody plays."""
    wait_for_metric(served[1], "notewave_live_sessions", 0)
    return served[0]


def opened(server: Server, query: str = "hop=8") -> ClientConnection:
    return connect(server.address.replace("http", "ws") + f"live?{query}", open_timeout=PATIENCE_S)


def say(played: ClientConnection, **message: Any) -> None:
    played.send(json.dumps(message))


def told(played: ClientConnection) -> dict[str, Any]:
    """The next message that is no sound."""
    while isinstance(message := played.recv(timeout=PATIENCE_S), bytes):
        pass
    return dict(json.loads(message))


def hop(played: ClientConnection) -> np.ndarray[Any, Any]:
    """The next samples."""
    message = played.recv(timeout=PATIENCE_S)
    assert isinstance(message, bytes), message
    return np.frombuffer(message, "<i2")


def until(played: ClientConnection, sounds: bool) -> None:
    """Listen until it sounds, or is silent."""
    for _ in range(500):
        if hop(played).any() == sounds:
            return
    raise AssertionError("it never did")


@pytest.mark.parametrize("rate", [16000, 48000])
def test_keys_are_heard_and_end(alone: Server, rate: int) -> None:
    with opened(alone, f"hop=8&rate={rate}&voice=band") as played:
        first = told(played)
        assert first.keys() == {"sample_rate", "hop_samples", "latency_s"}
        assert (first["sample_rate"], first["hop_samples"]) == (rate, 8 * rate // 50)
        assert 0.16 <= first["latency_s"] < 2
        assert len(hop(played)) == first["hop_samples"] and not hop(played).any()
        say(played, do="note_on", pitch=60, velocity=90, program=0, drum=False)
        until(played, sounds=True)
        say(played, do="note_off", pitch=60)
        until(played, sounds=False)
        say(played, do="pedal", down=True)
        say(played, do="note_on", pitch=64)
        say(played, do="note_off", pitch=64)
        until(played, sounds=True)
        say(played, do="all_off")
        until(played, sounds=False)


WRONG = [
    ("no JSON", "no JSON object"),
    ("[" * 4000, "no JSON object"),
    ("[]", "no JSON object"),
    ('{"pitch": 60}', "there is nothing to do as None. Say note_on, note_off, pedal, all_off."),
    ('{"do": "close"}', "there is nothing to do as 'close'"),
    ('{"do": ["note_on"]}', "there is nothing to do as"),
    ('{"do": "note_on"}', "note_on needs pitch"),
    ('{"do": "note_on", "pitch": 128}', "pitch is 128; it must be a whole number from 0 to 127"),
    ('{"do": "note_on", "pitch": 60.5}', "pitch is 60.5; it must be a whole number"),
    ('{"do": "note_on", "pitch": true}', "pitch is True; it must be a whole number"),
    ('{"do": "note_on", "pitch": 60, "at": 1e9}', "note_on has no 'at'. It has pitch, velocity, program, drum."),
    ('{"do": "pedal", "down": 1}', "down is 1; it must be true or false"),
    ('{"do": "all_off", "x": 1}', "all_off has no 'x'. It has nothing."),
    (b"\x90\x3c\x5a", "no JSON object"),
]


def test_a_message_that_says_nothing_is_told_so_and_play_goes_on(alone: Server) -> None:
    with opened(alone) as played:
        told(played)
        for message, error in WRONG:
            played.send(message)
            assert error in told(played)["error"], message
            assert len(hop(played))


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("rate=16001", "rate"),
        ("rate=x", "rate is 'x'; it must be a whole number"),
        ("hop=0", "hop is '0'; it must be a whole number from 1 to"),
        ("voice=other", "voice is 'other'; it must be one of band"),
        ("backend=cuda", "there is no option 'backend' of /live. Known: voice, rate, hop, token."),
    ],
)
def test_what_cannot_be_played_is_refused_before(alone: Server, query: str, error: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(alone, query):
        pass
    assert refused.value.response.status_code == 400
    assert error in json.loads(refused.value.response.body)["error"]


def test_another_path_is_none_to_play_on(alone: Server) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(alone.address.replace("http", "ws") + "render"):
        pass
    assert refused.value.response.status_code == 404


def test_who_comes_while_another_plays_is_told_to_come_later(
    alone: Server, served: tuple[Server, httpx.Client]
) -> None:
    with opened(alone) as played:
        told(played)
        assert metrics(served[1])["notewave_live_sessions"] == 1
        with opened(alone) as other, pytest.raises(ConnectionClosed) as closed:
            other.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "others play; try again later")
        assert len(hop(played)), "the first goes on"
    wait_for_metric(served[1], "notewave_live_sessions", 0)
    with opened(alone) as played:
        told(played)


def test_a_session_ends_when_its_client_vanishes(alone: Server, served: tuple[Server, httpx.Client]) -> None:
    with opened(alone) as played:
        told(played)
        played.socket.shutdown(socket.SHUT_RDWR)
        wait_for_metric(served[1], "notewave_live_sessions", 0)


def test_who_leaves_before_the_voice_is_open_leaves_nothing_behind(singer: Synthesizer) -> None:
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
    head = "GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade"
    with serving(singer) as (server, client):
        with socket.create_connection((server.host, server.port)) as hasty:
            hasty.sendall(f"{head}\r\n{key}\r\n\r\n".encode())
        wait_for_metric(client, "notewave_requests_total{/live,gone}", 1)
        wait_for_metric(client, "notewave_live_sessions", 0)


def test_a_client_that_does_not_take_its_sound_is_let_go(
    alone: Server, served: tuple[Server, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_play, "BEHIND_SECONDS", 0.2)
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((alone.host, alone.port))
        head = "GET /live?hop=8&rate=192000 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade"
        deaf.sendall(f"{head}\r\n{key}\r\n\r\n".encode())
        wait_for_metric(served[1], "notewave_live_sessions", 1)
        wait_for_metric(served[1], "notewave_live_sessions", 0)
        deaf.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionError):
            while deaf.recv(1 << 16):  # it ends
                pass


def test_a_client_that_says_too_much_is_let_go(alone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_play, "MESSAGES_A_SECOND", 50)
    with opened(alone) as played, pytest.raises(ConnectionClosed) as closed:
        for _ in range(1000):
            say(played, do="all_off")
        while True:
            played.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008


def test_a_message_that_is_too_long_ends_the_session(alone: Server) -> None:
    with opened(alone) as played, pytest.raises(ConnectionClosed) as closed:
        played.send("x" * 100_000)
        while True:
            played.recv(timeout=PATIENCE_S)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_who_plays_when_the_server_ends_is_told_so(singer: Synthesizer) -> None:
    with serving(singer) as (server, _), opened(server) as played:
        told(played)
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                played.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the server ends")
