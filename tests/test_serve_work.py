"""How a server works: who waits, who is turned away, what ends the work, and that one client never holds up others."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from serving import PATIENCE_S, Braked, answer, connected, metrics, posted, sentence, serving, song, wait_for_metric

from notewave import Audio, Synthesizer, VoiceError
from notewave.serve import connection, exchange
from notewave.serve.server import Server

QUERY = "steps=1&guidance=1&format=s16le"
SEGMENT_BYTES = 2 * 81920


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.fixture
def braked() -> Braked:
    return Braked("band", backend="cpu", threads=1)


class Asked(threading.Thread):
    """A request that somebody else makes."""

    def __init__(self, server: Server, segments: int = 1, query: str = QUERY) -> None:
        super().__init__()
        self._address, self._segments, self._query = server.address, segments, query
        self.first = threading.Event()  # something came
        self.body = b""
        self.start()

    def run(self) -> None:
        with (
            httpx.Client(base_url=self._address, timeout=PATIENCE_S) as client,
            client.stream("POST", f"/render?{self._query}", content=song(self._segments)) as response,
        ):
            self.status = response.status_code
            for part in response.iter_raw():
                self.first.set()
                self.body += part

    def end(self) -> int:
        """Wait for the answer; its status."""
        self.join(PATIENCE_S)
        return self.status


def test_a_song_that_comes_later_is_heard_before_the_first_is_done(braked: Braked) -> None:
    with serving(braked) as (server, client):
        long = Asked(server, 6)
        braked.wait(1)
        short = Asked(server, 2)
        wait_for_metric(client, "notewave_songs_under_way", 2)
        braked.let(1)  # the long one's first
        assert long.first.wait(PATIENCE_S)
        braked.wait(2)  # and now the other one's
        braked.let(1)
        assert short.first.wait(PATIENCE_S)
        assert braked.made <= 3
        braked.let()
        assert (long.end(), short.end()) == (200, 200)
    assert (len(long.body), len(short.body)) == (6 * SEGMENT_BYTES, 2 * SEGMENT_BYTES)


def test_songs_side_by_side_are_what_they_are_alone(singer: Synthesizer) -> None:
    true = singer.render(song(3), steps=1, guidance=1.0).samples
    with serving(singer, together=3) as (server, _):
        asked = [Asked(server, 3, "steps=1&guidance=1&format=f32le") for _ in range(8)]
        assert [one.end() for one in asked] == [200] * 8
    for one in asked:
        np.testing.assert_array_equal(np.frombuffer(one.body, "<f4"), true)


def test_songs_wait_for_a_place_and_those_that_are_too_many_are_told_when_to_come_again(braked: Braked) -> None:
    with serving(braked, together=1, queue=1) as (server, client):
        first = Asked(server, 3)
        braked.wait(1)
        second = Asked(server)
        wait_for_metric(client, "notewave_songs_waiting", 1)
        refused = client.post(f"/render?{QUERY}", content=song())
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert "the server is full: 1 songs are being made and 1 wait. Try again in about" in sentence(refused)
        assert metrics(client)["notewave_refused_total{queue}"] == 1
        assert client.post("/notes", content=song()).status_code == 200, "what needs no place goes on"
        assert not second.first.is_set()
        braked.let()
        assert (first.end(), second.end()) == (200, 200)


def test_work_ends_when_its_client_goes_away(braked: Braked) -> None:
    with serving(braked) as (server, client):
        with connected(server) as gone:
            gone.sendall(posted(f"/render?{QUERY}", song(6)))
            braked.wait(1)
        wait_for_metric(client, "notewave_requests_total{/render,gone}", 1)
        braked.let()
        wait_for_metric(client, "notewave_cancelled_total", 1)
        wait_for_metric(client, "notewave_songs_under_way", 0)
        assert braked.made == 1


def test_work_ends_when_its_client_goes_away_in_the_midst_of_the_answer(braked: Braked) -> None:
    with serving(braked) as (server, client):
        with connected(server) as gone:
            gone.sendall(posted(f"/render?{QUERY}", song(6)))
            braked.let(1)
            assert gone.recv(1000).startswith(b"HTTP/1.1 200")
            braked.wait(2)
        wait_for_metric(client, "notewave_requests_total{/render,200}", 1)
        braked.let()
        wait_for_metric(client, "notewave_cancelled_total", 1)
        assert braked.made == 2


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(braked: Braked) -> None:
    with serving(braked, together=1) as (server, client):
        first = Asked(server)
        braked.wait(1)
        with connected(server) as gone:
            gone.sendall(posted(f"/render?{QUERY}", song(6)))
            wait_for_metric(client, "notewave_songs_waiting", 1)
        wait_for_metric(client, "notewave_songs_waiting", 0)
        assert metrics(client)["notewave_cancelled_total"] == 1
        braked.let()
        assert first.end() == 200 and braked.made == 1


@contextlib.contextmanager
def slow(server: Server, query: str, body: bytes) -> Iterator[socket.socket]:
    """A client that has asked, and reads when it likes."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        client.connect((server.host, server.port))
        client.sendall(posted(f"/render?{query}", body, "Connection: close"))
        yield client


MUCH = "steps=1&guidance=1&format=f32le&rate=192000"  # more than systems keep for a client


def test_a_client_that_reads_slowly_holds_up_nobody(singer: Synthesizer) -> None:
    with serving(singer, together=1) as (server, client), slow(server, MUCH, song(2)) as reader:
        wait_for_metric(client, "notewave_sound_seconds_total", 10.24)
        wait_for_metric(client, "notewave_songs_under_way", 0)
        assert client.post(f"/render?{QUERY}", content=song()).status_code == 200
        assert "notewave_requests_total{/render,200}" in (now := metrics(client))
        assert now["notewave_requests_total{/render,200}"] == 1, "the other is not done"
        status, headers, body = answer(reader)
        assert status == 200 and len(body) == int(headers["content-length"]) == 2 * 4 * 81920 * 12
        assert np.isfinite(np.frombuffer(body, "<f4")).all()


def test_a_client_that_takes_nothing_is_let_go(singer: Synthesizer) -> None:
    with serving(singer, stall=0.5) as (server, client), slow(server, MUCH, song(2)) as reader:
        wait_for_metric(client, "notewave_requests_total{/render,200}", 1)
        _, headers, body = answer(reader)
        assert len(body) < int(headers["content-length"])


def test_a_file_that_is_too_large_is_refused_before_it_is_there(singer: Synthesizer) -> None:
    with serving(singer, max_bytes=1000) as (server, client):
        assert client.post("/notes", content=song()).status_code == 200
        with connected(server) as declared:
            declared.sendall(b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nMThd")
            status, headers, body = answer(declared)
        assert (status, headers["connection"]) == (413, "close")
        assert b"larger than 1000 bytes, the most that is taken here" in body
        with connected(server) as chunked:
            chunked.sendall(b"POST /notes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    chunked.sendall(b"3e8\r\n" + bytes(1000) + b"\r\n")
            assert answer(chunked)[0] == 413


@pytest.mark.parametrize(
    ("settings", "query", "status", "message"),
    [
        ({"max_seconds": 5.0}, "", 413, "the song lasts 7 s: 5 s are the most that is sung here"),
        ({"max_seconds": 8.0}, "tempo=0.5", 413, "the song lasts 13 s"),
        ({"max_seconds": 8.0}, "tempo=0.5&end=3", 200, ""),
        ({"max_steps": 5}, "steps=6", 400, "steps is '6'; it must be a whole number from 1 to 5"),
        ({"max_spool": 100_000}, "", 413, "this comes to 327724 bytes of sound, more than is kept here"),
    ],
)
def test_what_is_too_much_is_refused(
    singer: Synthesizer, settings: dict[str, Any], query: str, status: int, message: str
) -> None:
    words = f"guidance=1&{query}" if "steps" in query else f"guidance=1&steps=1&{query}"
    with serving(singer, **settings) as (_, client):
        response = client.post(f"/render?{words}", content=song(2))
        assert response.status_code == status
        assert status == 200 or message in sentence(response)


def test_sound_that_waits_to_be_taken_has_its_bounds(braked: Braked) -> None:
    with serving(braked, max_spool=3 * SEGMENT_BYTES) as (server, client):
        first = Asked(server, 2)
        braked.wait(1)
        refused = client.post(f"/render?{QUERY}", content=song(2))
        assert refused.status_code == 503 and "too much sound waits" in sentence(refused)
        braked.let()
        assert first.end() == 200
        assert client.post(f"/render?{QUERY}", content=song(2)).status_code == 200, "what was taken waits no longer"


def test_more_connections_than_there_may_be_are_told_so(singer: Synthesizer) -> None:
    with serving(singer, connections=2) as (server, client):
        assert client.get("/health").status_code == 200
        with connected(server), connected(server) as third:
            status, headers, body = answer(third)
            assert (status, headers["retry-after"]) == (503, "5") and b"as many connections as it takes" in body
        wait_until(lambda: client.get("/health").status_code == 200)
        assert httpx.get(f"{server.address}health").status_code == 200, "there is room again"


def test_a_song_that_takes_too_long_is_given_up(braked: Braked) -> None:
    with serving(braked, max_time=0.5) as (_, client):
        refused = client.post(f"/render?{QUERY}", content=song())
        assert refused.status_code == 503 and "this took longer than 0.5 s" in sentence(refused)
        braked.let()
        wait_for_metric(client, "notewave_cancelled_total", 1)


def test_an_answer_that_takes_too_long_is_broken_off(braked: Braked) -> None:
    with serving(braked, max_time=1.0) as (_, client):
        braked.let(1)
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("POST", f"/render?{QUERY}", content=song(2)) as response,
        ):
            assert response.status_code == 200
            response.read()


def test_a_head_or_a_body_that_comes_too_slowly_ends(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.5)
    with serving(singer) as (server, client):
        for said in (b"", b"POST /notes HT", b"POST /notes HTTP/1.1\r\nHost: localhost\r\nX-"):
            with connected(server) as halted:
                halted.sendall(said)
                assert halted.recv(1) == b""
        with connected(server) as halted:
            halted.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert halted.recv(1000).startswith(b"HTTP/1.1 200")
            halted.sendall(b"GET /hea")
            while halted.recv(1000):
                pass
        with connected(server) as halted:
            halted.sendall(posted("/notes", song(), "Connection: close")[:-10])
            status, _, body = answer(halted)
        assert status == 408 and b"was not there within 0.5 s" in body
        assert client.get("/health").status_code == 200


def test_what_is_no_http_is_answered_or_let_go_and_the_server_goes_on(singer: Synthesizer) -> None:
    random = np.random.default_rng(0)
    heads = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.bytes(200) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%ff%00 HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n",
        b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nMThd",
        b"POST /notes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /notes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    with serving(singer) as (server, client):
        for head in heads:
            with connected(server) as hostile, contextlib.suppress(ConnectionError):
                hostile.sendall(head)
                hostile.shutdown(socket.SHUT_WR)
                got = hostile.recv(1000)
                assert got == b"" or got.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), head
            with connected(server) as hostile:  # reset in the midst
                hostile.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                hostile.sendall(head[:20])
        assert client.get("/health").status_code == 200
        assert metrics(client).get("notewave_requests_total{/notes,500}", 0) == 0


class Failing(Synthesizer):
    """A voice that fails after so many segments."""

    after = 0

    def stream(self, song: Any, **options: Any) -> Any:
        chunks = super().stream(song, **options)

        def failing() -> Iterator[Audio]:
            for number, chunk in enumerate(chunks):
                if number == self.after:
                    raise VoiceError("voice 'band' gave values that are no finite numbers.")
                yield chunk

        return failing()


def test_a_voice_that_fails_is_told_and_its_sound_broken_off() -> None:
    failing = Failing("band", backend="cpu", threads=1)
    with serving(failing) as (_, client):
        failed = client.post(f"/render?{QUERY}", content=song(3))
        assert failed.status_code == 500 and "no finite numbers" in sentence(failed)
        failing.after = 2
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(f"/render?{QUERY}", content=song(3))
        failing.after = 3
        assert client.post(f"/render?{QUERY}", content=song(3)).status_code == 200


def test_a_server_that_ends_finishes_what_is_under_way_and_takes_nothing_new(braked: Braked) -> None:
    with serving(braked, together=1) as (server, client):
        under_way = Asked(server, 2)
        braked.wait(1)
        waiting = Asked(server, 1)
        wait_for_metric(client, "notewave_songs_waiting", 1)
        server.stop()
        wait_until(lambda: client.get("/health").status_code == 503)
        assert client.get("/health").json() == {"status": "draining"}
        refused = httpx.post(f"{server.address}render", content=song())
        assert refused.status_code == 503 and refused.headers["retry-after"] == "30"
        assert "the server ends" in refused.json()["error"]
        braked.let()
        assert (under_way.end(), waiting.end()) == (200, 200)
    assert (len(under_way.body), len(waiting.body)) == (2 * SEGMENT_BYTES, SEGMENT_BYTES)


def test_a_server_that_ends_cuts_what_takes_too_long(braked: Braked) -> None:
    with serving(braked, drain=0.2) as (server, _):
        braked.let(1)
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{server.address}render?{QUERY}", content=song(3)) as response,
        ):
            server.stop()
            response.read()


def wait_until(happens: Callable[[], bool]) -> None:
    """Ask until it is so."""
    end = threading.Event()
    for _ in range(int(PATIENCE_S * 50)):
        if happens():
            return
        end.wait(0.02)
    raise AssertionError("it never was so")
