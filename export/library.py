"""Voices into the user's voice folder: voices are fetched, which needs no PyTorch, and checkpoints exported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError, OutputError, VoiceError
from notewave.export.hub import MAX_BYTES, check_sizes, list_files, reaching
from notewave.files import atomic_folder
from notewave.inputs import open_regular
from notewave.voice.folder import DESCRIPTION_MAX_BYTES, Voice
from notewave.voice.library import DESCRIPTION, PLAIN_NAME, voices, voices_folder

BLOCK = 1 << 20  # bytes copied at once

Fetch = Callable[[str], Path]  # the name of a voice's file -> where its bytes can be read, checked or not


def add_voice(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    model_config: Path | None = None,
    precision: str = "fp32",
    vocoder: Path | None = None,
) -> Voice:
    """Put a voice into the voice folder, whole or not at all, where ``Voice.load(name)`` finds it.

    The source is a voice (a local folder or a repository id of the Hugging Face hub, with a ``voice.json``), which is
    taken as it is, or a checkpoint, which is exported with ``model_config``, ``precision`` and ``vocoder`` as by
    ``export_checkpoint``.
    The name is the last part of the source if none is given; nothing that has it is replaced.

    Raises ArgumentError when the name cannot be one, OutputError when it is taken or the folder cannot be written,
    VoiceError when the source cannot be used.
    """
    folder = _local(source)
    target = _place(_plain(folder.name if folder else str(source)) if name is None else name)
    found = _local_voice(folder) if folder else _hub_voice(str(source))
    if found is None:
        from notewave.export.convert import export_checkpoint

        return export_checkpoint(
            folder or source, target, model_config=model_config, precision=precision, vocoder=vocoder
        )
    voice, fetch = found
    if precision not in ("fp32", voice.precision) or vocoder is not None or model_config is not None:
        raise VoiceError(
            f"{quoted(str(source))} is a voice, in {voice.precision}, not a checkpoint: it is taken as it is. Add it "
            "so, then make another of it with `notewave export`."
        )
    with atomic_folder(target) as temporary:
        _copy(fetch(DESCRIPTION), temporary / DESCRIPTION, DESCRIPTION_MAX_BYTES)
        for file, record in voice.files.items():
            _copy(fetch(file), temporary / file, record.bytes)
        try:
            voice = Voice.load(temporary)
        except VoiceError as error:
            raise VoiceError(f"{quoted(str(source))} was not added: {error}") from error
    return replace(voice, folder=target)


def _local(source: str | os.PathLike[str]) -> Path | None:
    """The source's whole path, if something is there."""
    try:
        path = Path(source).resolve()
        return path if path.exists() else None
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # too long, a circle of links, no path at all
        raise VoiceError(f"there is no voice at {quoted(source)}: {error}. Give a folder or a hub id.") from error


def _plain(source: str) -> str:
    """The last part of a source, with nothing in it that a name cannot have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", source.rpartition("/")[2]).strip(".-")[:100]


def _place(name: str) -> Path:
    """Where a voice of that name will be, if the name is free."""
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise ArgumentError(
            f"{quoted(name)} cannot be a voice's name: that has up to 100 of A-Z, a-z, 0-9, _, . and -, and begins "
            "with none of the last two. Give another (--name)."
        )
    target = voices_folder() / name
    taken = voices().get(name, target)
    if taken.exists() or taken.is_symlink():
        raise OutputError(
            f"The name {name!r} is taken by {taken}, which is not replaced. Give another (--name), or remove that "
            "folder if it is your own."
        )
    return target


def _local_voice(folder: Path) -> tuple[Voice, Fetch] | None:
    """A voice in a folder, with all its files checked, if it is one."""
    try:
        os.close(open_regular(folder / DESCRIPTION))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise VoiceError(
            f"{folder / DESCRIPTION} cannot be read: {error.strerror or error}. Check what stands there."
        ) from error
    return Voice.load(folder), folder.joinpath


def _hub_voice(repository: str) -> tuple[Voice, Fetch] | None:
    """A voice on the Hugging Face hub, of its newest revision, if it is one; its files have the sizes that it says."""
    revision, sizes = list_files(repository)

    def fetch(file: str) -> Path:
        with reaching(repository):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(repository, file, revision=revision))

    if DESCRIPTION not in sizes:
        return None
    if not is_integer(sizes[DESCRIPTION], 0, DESCRIPTION_MAX_BYTES):
        raise _crooked(repository, DESCRIPTION, f"has {sizes[DESCRIPTION]} bytes, over {DESCRIPTION_MAX_BYTES}")
    voice = Voice.describe(fetch(DESCRIPTION).parent)
    for file, record in voice.files.items():
        if not PLAIN_NAME.fullmatch(file):
            raise _crooked(repository, quoted(file), "is listed, which is no plain name of a file")
        if not is_integer(record.bytes, 0, MAX_BYTES) or sizes.get(file) != record.bytes:
            raise _crooked(
                repository, file, f"has {sizes.get(file, 'no')} bytes where {DESCRIPTION} says {quoted(record.bytes)}"
            )
    check_sizes(repository, {file: sizes[file] for file in voice.files})
    return voice, fetch


def _crooked(repository: str, file: str, fault: str) -> VoiceError:
    return VoiceError(f"the voice {repository!r} on the hub is not what it says: {file} {fault}. Do not trust it.")


def _copy(source: Path, target: Path, most: int) -> None:
    """Copy a regular file's bytes, and no more than so many. Raises OSError and VoiceError."""
    try:
        descriptor = open_regular(source)
    except OSError as error:
        raise VoiceError(f"{source} cannot be read: {error.strerror or error}. Copy the voice again.") from error
    with open(descriptor, "rb") as read, target.open("xb") as write:  # noqa: PTH123
        while block := read.read(min(most, BLOCK)):
            most -= write.write(block)
