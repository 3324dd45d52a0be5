"""Who may use a server, and from where."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from serving import answer, connected, sentence, serving, song
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from notewave import ArgumentError, Synthesizer
from notewave.serve.server import Server
from notewave.serve.settings import Settings

TOKEN = "a-secret-of-16ch"


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.fixture(scope="module")
def served(singer: Synthesizer) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(singer, live=0) as server:
        yield server


@pytest.fixture(scope="module")
def known(singer: Synthesizer) -> Iterator[tuple[Server, httpx.Client]]:
    """A server with a token, and a client that knows it."""
    with serving(singer, live=0, token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "localhost:{port}", "LOCALHOST:1", "127.0.0.1:{port}"]
)
def test_this_machine_s_own_names_are_served(served: tuple[Server, httpx.Client], host: str) -> None:
    server, client = served
    assert client.get("/voices", headers={"Host": host.format(port=server.port)}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
        "10.0.0.1",
    ],
)
def test_another_host_is_refused_as_when_a_name_was_bound_anew(served: tuple[Server, httpx.Client], host: str) -> None:
    server, client = served
    for path in ("/", "/voices", "/health"):
        refused = client.get(path, headers={"Host": host})
        assert refused.status_code == 403 and "another host" in sentence(refused)
    with connected(server) as old:
        old.sendall(b"GET /voices HTTP/1.0\r\n\r\n")
        assert answer(old)[0] == 403, "none is none of ours"
    refused_live(server, host)


def refused_live(server: Server, host: str) -> None:
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
    with connected(server) as foreign:
        foreign.sendall(
            f"GET /live HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode()
        )
        status, _, body = answer(foreign)
        assert status == 403 and b"another host" in body


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1", "file://", ""]
)
def test_another_site_s_page_is_refused(served: tuple[Server, httpx.Client], origin: str) -> None:
    server, client = served
    refused = client.post("/render", content=song(), headers={"Origin": origin})
    assert refused.status_code == 403 and "another site's page" in sentence(refused)
    assert not any(name.startswith("access-control") for name in refused.headers)
    with pytest.raises(InvalidStatus) as error, connect(live(server), origin=origin):  # type: ignore[arg-type]
        pass
    assert error.value.response.status_code == 403
    assert b"another site's page" in error.value.response.body


def test_its_own_page_is_served(served: tuple[Server, httpx.Client]) -> None:
    server, client = served
    origin = server.address.rstrip("/")
    assert client.get("/voices", headers={"Origin": origin}).status_code == 200
    assert client.get("/voices", headers={"Origin": origin.upper().replace("HTTP", "http")}).status_code == 200


@pytest.mark.parametrize(
    "said", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", f"Bearer {TOKEN}é"]
)
def test_without_the_token_only_the_page_and_health_are_served(
    known: tuple[Server, httpx.Client], said: str | None
) -> None:
    server, _ = known
    headers = {} if said is None else {"Authorization": said.encode("latin-1")}
    with httpx.Client(base_url=server.address, headers=headers) as stranger:  # type: ignore[arg-type]
        for path in ("/", "/page/api.js", "/health"):
            assert stranger.get(path).status_code == 200
        for path in ("/voices", "/metrics", "/openapi.json", "/nothing"):
            refused = stranger.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert TOKEN not in refused.text
        for path in ("/notes", "/midi", "/render", "/stems"):
            assert stranger.post(path, content=song()).status_code == 401
        assert stranger.get(f"/voices?token={TOKEN}").status_code == 401, "an address is kept and shown by many"
    for word in ("", "?token=", "?token=wrong", "?rate=16000"):
        with pytest.raises(InvalidStatus) as error, connect(live(server) + word):
            pass
        assert error.value.response.status_code == 401


def test_with_the_token_all_is_served_under_any_name(known: tuple[Server, httpx.Client]) -> None:
    server, client = known
    assert client.get("/voices", headers={"Host": "music.example"}).status_code == 200
    origin = {"Host": "music.example", "Origin": "https://music.example"}
    assert client.get("/voices", headers=origin).status_code == 200
    assert client.get("/voices", headers={**origin, "Origin": "https://evil.example"}).status_code == 403
    assert client.post("/notes", content=song()).status_code == 200
    assert client.get("/openapi.json").json()["security"] == [{"token": []}]
    with connect(f"{live(server)}?token={TOKEN}") as played, pytest.raises(ConnectionClosed) as closed:
        played.recv(timeout=60)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013, "it was let in: there is room for none"


@pytest.mark.parametrize("token", ["short", "", "with spaces in it", "späßchen-ist-das", "x" * 8 + "\n"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ArgumentError, match="the token must be 8 characters or more") as error:
        Settings(token=token)
    assert not token or token not in str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_a_host_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ArgumentError, match="can be reached from other machines"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).host == host


@pytest.mark.parametrize(
    "given",
    [
        {"port": -1},
        {"port": 65536},
        {"together": 0},
        {"queue": -1},
        {"max_bytes": 0},
        {"max_time": 0},
        {"stall": float("nan")},
    ],
    ids=str,
)
def test_what_no_setting_can_be_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="--"):
        Settings(**given)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_refused_with_a_cure(served: tuple[Server, httpx.Client], singer: Synthesizer) -> None:
    with pytest.raises(ArgumentError, match=r"nobody can listen at '127.0.0.1', port \d+: .*Choose another --port"):
        Server(Settings(port=served[0].port), {"band": singer})


def live(server: Server) -> str:
    """Where it is played."""
    return server.address.replace("http", "ws") + "live"
