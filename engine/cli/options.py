"""What a command was told, as the library takes it."""

from __future__ import annotations

import argparse
import os
import select
import stat
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from notewave.errors import MidiError
from notewave.files import named_descriptor
from notewave.song.editing import EDITS, Edits

STANDARD = "-"  # in the place of a path: standard input, or standard output


def synthesizer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``Synthesizer``, beside its voice."""
    return {"backend": options.backend, "threads": options.threads, "vocoder": options.vocoder}


def making_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``export_checkpoint`` and ``add_voice``, beside the source and where the voice is to be."""
    return {name: getattr(options, name) for name in ("model_config", "precision", "vocoder")}


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of its ``stream``, beside the song."""
    return {name: getattr(options, name, None) for name in ("sampler", "steps", "guidance", "seed", "context")}


def edits_of(options: argparse.Namespace) -> Edits:
    """What is to be changed in the songs. Raises ArgumentError."""
    given = {name: getattr(options, name) for name in EDITS}
    return Edits.parse({name: words if isinstance(words, list) else [words] for name, words in given.items() if words})


def song_source(song: str) -> str | BinaryIO:
    """What a song that was named is read from: a path or, where a stream was handed over to be read, that.

    Those are standard input, as -, and open descriptors by their own names, /dev/stdin and /dev/fd/3, as a shell's
    <(command) is; no links to them, which a folder of songs may hold. Raises MidiError where standard input is closed.
    """
    if song == STANDARD and sys.stdin is None:
        raise MidiError("standard input cannot be read: it is closed. Send it a MIDI file, or name one.")
    number = 0 if song == STANDARD else named_descriptor(song)
    if number is None or (song != STANDARD and not _is_stream(number)):
        return song
    return cast(BinaryIO, _Stream(number))


@dataclass(frozen=True)
class _Stream:
    """An open descriptor, read as a file; waited for also where whoever opened it does not wait."""

    number: int

    def read(self, size: int) -> bytes:
        while True:
            try:
                return os.read(self.number, size)
            except BlockingIOError:
                select.select([self.number], [], [])


def _is_stream(number: int) -> bool:
    """Whether a descriptor is open, and on no file or folder, which has a path to be read by."""
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
