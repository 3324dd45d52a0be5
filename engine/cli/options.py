"""What a command was told, as the library takes it."""

from __future__ import annotations

import argparse
import sys
from typing import Any, BinaryIO

from notewave.errors import MidiError

STANDARD = "-"  # in the place of a path: standard input, or standard output


def synthesizer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``Synthesizer``, beside its voice."""
    return {"backend": options.backend, "threads": options.threads, "vocoder": options.vocoder}


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of its ``stream``, beside the song."""
    return {name: getattr(options, name) for name in ("sampler", "steps", "guidance", "seed")}


def song_source(song: str) -> str | BinaryIO:
    """What a song that was named is read from. Raises MidiError where there is no standard input."""
    if song != STANDARD:
        return song
    if sys.stdin is None:
        raise MidiError("standard input cannot be read: it is closed. Send it a MIDI file, or name one.")
    return sys.stdin.buffer
