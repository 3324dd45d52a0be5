"""Which song goes where: settled, and refused if need be, before any work."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from notewave.checks import shown
from notewave.cli.options import STANDARD
from notewave.errors import ArgumentError, OutputError
from notewave.files import STANDARD_OUTPUT, check_writable, descriptor_of, identity, is_stream
from notewave.sound.audio import check_sound
from notewave.sound.plot import check_picture
from notewave.stems import MIX

_HERE = ""
_SEPARATORS = ("/", os.sep)


@dataclass(frozen=True)
class Task:
    """A song, and what becomes of it."""

    song: str  # a path, or STANDARD
    out: str | None  # its sound's path; None where it is only played
    plot: str | None  # its picture's
    stems: str | None = None  # the folder of its parts, as as_folder says it
    midi: str | None = None  # of the notes as they are sung

    @property
    def name(self) -> str:
        """The song's, for whoever looks at a terminal."""
        return "standard input" if self.song == STANDARD else shown(Path(self.song).name)


def plan(options: argparse.Namespace) -> list[Task]:
    """The task of each song that ``notewave render`` was given.

    Raises ArgumentError where songs and outputs do not go together, OutputError for what cannot be written, or would be
    written over a song or over another output.
    """
    songs, out, stems = options.songs, options.out, as_folder(options.stems)
    if out is None and not options.play and options.stems is None:
        out = STANDARD if songs == [STANDARD] else _HERE
    for option, given in (("-o", out), ("--plot", options.plot), ("--midi-out", options.midi_out)):
        if given is not None and len(songs) > 1 and not _is_folder(given):
            raise ArgumentError(
                f"{len(songs)} songs do not go into one file, {given} of {option}. Give a folder, which ends with "
                f"{os.sep} unless it is there."
            )
    out = STANDARD_OUTPUT if out == STANDARD else out
    tasks = [
        Task(
            song,
            _place(out, song, ".wav"),
            _place(options.plot, song, ".png"),
            _place(stems, song, os.sep) if len(songs) > 1 else stems,
            _place(options.midi_out, song, ".mid"),
        )
        for song in songs
    ]
    _check_apart(tasks, [*options.merge, *[options.context] * (options.context is not None)])
    for task in tasks:
        _check(task, options.rate)
    return tasks


@contextlib.contextmanager
def folders(*paths: str | None) -> Iterator[None]:
    """Make the folders among outputs that are not there yet; those that stay empty are taken away in the end."""
    made = []
    try:
        for path in paths:
            if path is not None and path.endswith(_SEPARATORS) and not _is_folder(path.rstrip("".join(_SEPARATORS))):
                try:
                    Path(path).mkdir()
                except (OSError, ValueError) as error:  # ValueError: no name of a file
                    reason = getattr(error, "strerror", None) or error
                    raise OutputError(f"{path} was not made: {reason}. Choose another folder.") from error
                made.append(Path(path))
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def as_folder(path: str | None) -> str | None:
    """A path that is meant as a folder's, so that it says it."""
    return path if path is None or path.endswith(_SEPARATORS) else path + os.sep


def is_shown(task: Task) -> bool:
    """Whether a task's output is standard output, where nothing else must then be printed."""
    return any(descriptor_of(path) == 1 for path in (task.out, task.plot, task.midi) if path is not None)


def _place(given: str | None, song: str, suffix: str) -> str | None:
    """Where an option says that a song's output goes: a path, or a folder, where the song's name says it."""
    if given is None or not _is_folder(given):
        return given
    stem = "stdin" if song == STANDARD else Path(song).stem or "song"
    return os.path.join(given, stem + suffix)  # noqa: PTH118


def _is_folder(path: str) -> bool:
    """Whether a path is a folder's, or is to be."""
    with contextlib.suppress(OSError):  # a name too long
        return path.endswith(_SEPARATORS) or Path(path).is_dir()
    return False


def _check_apart(tasks: Sequence[Task], others: Sequence[str]) -> None:
    """Refuse outputs that are one of the songs or other inputs, or each other."""
    taken = {identity(other): f"{other} is read" for other in others}
    taken |= {identity(task.song): f"it is the song {task.song}" for task in tasks if task.song != STANDARD}
    for task in tasks:
        for path, what in ((task.out, "sound"), (task.plot, "picture"), (task.midi, "notes"), (task.stems, "parts")):
            if path is None or is_stream(path):
                continue
            if (key := identity(path)) in taken:
                raise OutputError(
                    f"{path} was not written: {taken[key]}. Give each song a name, and each output a path, of its own."
                )
            taken[key] = f"the {what} of {task.song} goes there"


def _check(task: Task, rate: int) -> None:
    """Raise what writing a task's outputs would raise later."""
    if is_shown(task):
        if sys.__stdout__ is None:
            raise OutputError("standard output was not written: it is closed. Give the path of a file by -o.")
        if os.isatty(1):
            raise ArgumentError("standard output is a terminal, which is not for sound. Give the path of a file by -o.")
    if task.out is not None:
        check_sound(task.out, rate)
    if task.plot is not None:
        check_picture(task.plot)
    if task.midi is not None:
        check_writable(task.midi)
    if task.stems is not None and Path(task.stems).is_dir():
        check_writable(Path(task.stems, MIX))
