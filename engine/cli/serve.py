"""``notewave serve``: voices over HTTP, until Ctrl-C or SIGTERM, which is the end that is meant."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import notewave
from notewave.checks import quoted, shown
from notewave.errors import ArgumentError
from notewave.serve.server import Server
from notewave.serve.settings import Settings
from notewave.synthesizer import DEFAULT_VOICE

TOKEN_VARIABLE = "NOTEWAVE_TOKEN"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")  # the last one is Windows'


_LIMITS = {  # those of ``Settings`` that are numbers: what is counted, and what of
    "max_bytes": ("N", "of a song's file"),
    "max_seconds": ("S", "of a song"),
    "max_steps": ("N", "denoising steps that a client may ask for, or those of a voice if more"),
    "queue": ("N", "songs that wait for those that are made"),
    "live": ("N", "live sessions at once"),
    "connections": ("N", "at once"),
    "max_spool": ("N", "bytes of sound that may wait to be taken by clients"),
    "max_time": ("S", "from a request to the end of its answer"),
    "stall": ("S", "in which a client takes nothing before it is let go"),
    "drain": ("S", "for what is under way when the server ends"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave serve``, but for voices and the machine."""
    usual = Settings()
    beyond = "beyond this machine only with a token"
    parser.add_argument("--host", default=usual.host, help=f"where to listen; {beyond} (default {usual.host})")
    parser.add_argument("--port", type=int, default=usual.port, help=f"0 for any that is free (default {usual.port})")
    parser.add_argument("--token", help=f"what clients must know; fewer see it in {TOKEN_VARIABLE}")
    parser.add_argument(
        "--together", metavar="N", type=int, help="songs that are made side by side (default: by the voices' size)"
    )
    for name, (counted, says) in _LIMITS.items():
        value = getattr(usual, name)
        word, default = "--" + name.replace("_", "-"), f"(default {value:.12g})"
        parser.add_argument(word, metavar=counted, type=type(value), default=value, help=f"{says} {default}")


def serve(options: argparse.Namespace) -> int:
    """Serve until told to end; then what is under way is finished, and nothing new is taken."""
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    chosen["token"] = options.token or os.environ.get(TOKEN_VARIABLE) or None
    settings = Settings(**chosen)  # what may be refused at once comes before the voices, which take longer
    server = Server(settings, _singers(options))
    known = "" if settings.token is None else ", to whoever knows the token"
    with _quiet(options.verbose), _told_to_end(server.stop):
        print(f"serving on {shown(server.address)}{known}; Ctrl-C ends it", flush=True)
        server.run()
    return 0


def _singers(options: argparse.Namespace) -> dict[str, notewave.Synthesizer]:
    """The voices that are asked for, by their names."""
    singers: dict[str, notewave.Synthesizer] = {}
    for voice in options.voice or [DEFAULT_VOICE]:
        name = Path(voice).name
        if name in singers:
            raise ArgumentError(f"there are two voices {quoted(name)}. Requests name voices by that: give each once.")
        singers[name] = notewave.Synthesizer(voice, backend=options.backend, threads=options.threads)
        _warm(singers[name])
    return singers


def _warm(singer: notewave.Synthesizer) -> None:
    """Sing a segment of silence, so that the first client does not wait for what is only done once."""
    if singer.voice.vocoder is not None:
        singer.render([singer.voice.dialect.silence], steps=None if singer.voice.is_autoregressive else 1)


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Say nothing of what strangers' songs are like, unless asked to."""
    songs = logging.getLogger("notewave.song")
    before = songs.level
    songs.setLevel(before if verbose else logging.ERROR)
    try:
        yield
    finally:
        songs.setLevel(before)


@contextlib.contextmanager
def _told_to_end(stop: Callable[[], None]) -> Iterator[None]:
    """Let signals that end the command do so by ``stop`` in the block."""

    def told(number: int, frame: FrameType | None) -> None:
        stop()

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, told) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
