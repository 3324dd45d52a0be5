"""The benchmark of the server: its clients know right from wrong, and the whole of it runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from serving import answer, connected, posted, serving, song

from notewave import Synthesizer
from notewave.benchmarks import clients
from notewave.benchmarks.clients import KINDS, REFUSED, RIGHT, Request, Wrong
from notewave.benchmarks.serve import requests
from notewave.cli import main


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.mark.parametrize("form", ["wav", "flac", "s16le", "f32le"])
def test_one_wrong_sample_is_seen(singer: Synthesizer, form: str) -> None:
    query = {"format": form, "rate": "16000", "steps": "1", "guidance": "1"}
    true = Request(song(), query, singer.render(song(), steps=1, guidance=1.0).samples)
    with serving(singer) as (server, _):
        address = (server.host, server.port)
        told = clients.plain(address, true, random.Random(0))
        assert told.what == RIGHT and told.first_s is not None
        other = true.samples.copy()
        other[20000] += 1e-3
        with pytest.raises(Wrong, match="samples that are not those"):
            clients.plain(address, Request(song(), query, other), random.Random(0))
        with pytest.raises(Wrong, match="400"):
            clients.plain(address, Request(b"no song", query, other), random.Random(0))
        with connected(server) as whole:
            whole.sendall(posted(true.path, song(), "Connection: close"))
            _, _, body = answer(whole)
        if form != "flac":
            true.check(body)
            with pytest.raises(Wrong):
                true.check(body[:-4])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n",
        b"SSH-2.0\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_or_not_whole_is_wrong(data: bytes) -> None:
    with pytest.raises(Wrong):
        clients._parsed(data)


def test_an_answer_in_chunks_is_joined() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert clients._parsed(head + b"4\r\nfour\r\nA\r\n0123456789\r\n0\r\n\r\n") == (200, b"four0123456789")


def test_every_kind_of_client_is_answered(singer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "HALTED_SECONDS", 0.5)
    monkeypatch.setattr(clients, "SLOW_SECONDS", 0.5)
    query = {"format": "wav", "rate": "16000", "steps": "1", "guidance": "1"}
    asked = Request(song(), query, singer.render(song(), steps=1, guidance=1.0).samples)
    with serving(singer) as (server, client):
        for kind in KINDS:
            for seed in range(3):
                told = kind((server.host, server.port), asked, random.Random(seed))
                assert told.what != REFUSED or kind not in (clients.plain, clients.slow)
        assert client.get("/health").status_code == 200


def test_what_must_be_heard_is_rendered_in_every_form(singer: Synthesizer) -> None:
    made = requests(singer)
    assert {request.query["format"] for request in made} == {"wav", "flac", "s16le", "f32le"}
    assert all(np.isfinite(request.samples).all() and len(request.samples) for request in made)
    (part,) = [request for request in made if "end" in request.query and request.query["format"] == "s16le"][:1]
    assert len(part.samples) == round(6.5 * 44100)


def test_the_whole_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "HALTED_SECONDS", 0.5)
    words = ["--minutes", "0.05", "--clients", "4", "--backend", "cpu", "--json", str(tmp_path / "serve.json")]
    assert main(["bench", "serve", *words]) == 0
    assert "all was right" in capsys.readouterr().out
    cases = json.loads((tmp_path / "serve.json").read_text())["cases"]
    assert [case["settings"]["client"] for case in cases] == [*(kind.__name__ for kind in KINDS), "the server"]
    assert cases[0]["figures"]["wrong"]["median"] == 0
