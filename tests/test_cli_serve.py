"""``notewave serve`` as a shell starts it: what it says, whom it serves, and how it ends."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from command import command, start
from serving import PATIENCE_S, sentence, song
from websockets.sync.client import connect

from notewave.voice.library import bundled_voices

LONG = "steps=20&guidance=1&format=s16le"  # seconds of work a segment


@contextlib.contextmanager
def started(*words: object, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command, and the address that it says."""
    with start("serve", "--port", "0", "--backend", "cpu", *words, env=env) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().decode()
            found = re.fullmatch(r"serving on (http://\S+:\d+/)(, to whoever knows the token)?; Ctrl-C ends it\n", said)
            assert found, said + (process.communicate()[1].decode() if not said else "")
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Exit code, and what was said after the address."""
    out, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_is_under_way_is_done(number: signal.Signals) -> None:
    with started() as (process, address):
        with httpx.stream("POST", f"{address}render?{LONG}", content=song(4), timeout=PATIENCE_S) as response:
            parts = response.iter_raw()
            body = next(parts)
            process.send_signal(number)
            while httpx.get(f"{address}health").status_code == 200:
                pass
            assert httpx.get(f"{address}health").json() == {"status": "draining"}
            assert httpx.post(f"{address}render", content=song()).status_code == 503
            body += b"".join(parts)
        assert len(body) == 2 * 4 * 81920
        assert ended(process) == (0, b"", b"")


@pytest.mark.parametrize(("words", "is_told_again"), [(["--drain", "0.2"], False), (["--drain", "600"], True)])
def test_what_takes_too_long_is_cut_and_a_second_signal_cuts_it_at_once(words: list[str], is_told_again: bool) -> None:
    query = "steps=20&guidance=1&format=s16le"
    with started(*words) as (process, address):
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{address}render?{query}", content=song(100), timeout=PATIENCE_S) as response,
        ):
            process.send_signal(signal.SIGTERM)
            if is_told_again:
                while httpx.get(f"{address}health").status_code == 200:
                    pass
                process.send_signal(signal.SIGTERM)
            response.read()
        assert ended(process) == (0, b"", b"")


def test_it_ends_while_somebody_plays() -> None:
    with (
        started() as (process, address),
        connect(address.replace("http", "ws") + "live?hop=3", open_timeout=60) as live,
    ):
        live.recv(timeout=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, b"", b"")


def test_a_token_comes_from_the_environment_and_is_not_said() -> None:
    with started(env={"NOTEWAVE_TOKEN": "a-secret-of-16ch"}) as (process, address):
        assert httpx.get(f"{address}voices").status_code == 401
        known = {"Authorization": "Bearer a-secret-of-16ch"}
        assert httpx.get(f"{address}voices", headers=known).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, out, errors = ended(process)
        assert b"secret" not in out + errors


def test_verbose_says_a_line_a_request_and_otherwise_nothing_is_said() -> None:
    for words, lines in ((), 0), (("-v",), 2):
        with start(*words, "serve", "--port", "0", "--backend", "cpu") as process:
            assert process.stdout is not None
            address = process.stdout.readline().decode().split()[2].rstrip(";")
            httpx.post(f"{address}notes?strict=0", content=song()[:-10])  # is mended, which is the client's affair
            httpx.get(f"{address}no%0athing%1b[31m")
            process.send_signal(signal.SIGTERM)
            _, out, errors = ended(process)
        said = [line for line in errors.decode().splitlines() if re.search("GET|POST", line)]
        assert len(said) == lines and not out
        assert lines or not errors
        if lines:
            assert re.fullmatch(r"notewave: POST /notes: 200 in \d+\.\d\d s", said[0])
            assert r"GET /no\nthing\x1b[31m: 404" in said[1]


def test_several_voices_are_named_by_requests(tmp_path: Path) -> None:
    choir = shutil.copytree(bundled_voices()["band"], tmp_path / "choir")
    with started("--voice", choir, "--voice", "band", "--threads", "1") as (_, address):
        told = httpx.get(f"{address}voices").json()["voices"]
        assert [(voice["name"], voice["default"]) for voice in told] == [("choir", True), ("band", False)]
        for query, name in ("", "choir"), ("&voice=band", "band"):
            answer = httpx.post(f"{address}render?steps=1{query}", content=song(), timeout=PATIENCE_S)
            assert answer.headers["x-notewave-voice"] == name
        refused = httpx.post(f"{address}render?voice={choir}", content=song())
        assert refused.status_code == 400 and "it must be one of choir, band" in sentence(refused)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--token", "short"], "the token must be 8 characters or more"),
        (["--max-seconds", "0"], "--max-seconds is 0.0; it must be a number of seconds above 0."),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid", "--token", "a-secret-of-16ch"], "nobody can listen at"),
        (["--voice", "band", "--voice", "band"], "there are two voices 'band'"),
        (["--voice", "nobody"], "nobody"),
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else "",
)
def test_what_cannot_be_served_is_refused_at_once(words: list[str], message: str) -> None:
    code, out, errors = command("serve", "--backend", "cpu", "--port", "0", *words)
    assert (code, out) == (1, b"") and message in errors.decode()
    assert errors.decode().count("\n") == 1


def test_help_names_every_limit() -> None:
    _, out, _ = command("serve", "--help")
    for word in ("--token", "--together", "--queue", "--max-seconds", "--max-bytes", "--drain", "NOTEWAVE_TOKEN"):
        assert word in out.decode()
