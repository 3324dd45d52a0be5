"""Rendered songs packed small into one file, to be trained on where there is no FluidSynth.

A zip archive, compressed by LZMA, with two arrays a song: ``NAME.mel``, uint8 [M, S T], the mel in 7 bits (steps of
two MEL_STEP: 0.03 nats of error on average) as differences from frame to frame, modulo 256, and ``NAME.notes``, as
``songs`` stores them.
"""

from __future__ import annotations

import lzma
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.errors import MidiError, TrainingError
from notewave.export.material.songs import Song, load_song, notes_from_array, notes_to_array
from notewave.files import atomic_file
from notewave.sound.mel import FRAMES, MELS

LOST_BITS = 1
MAX_ARRAY_BYTES = 1 << 27  # of a song's mel: 5 hours


def pack_songs(folder: Path, out: Path, songs: int | None = None) -> int:
    """Pack a folder's songs, the held-out ones and the first ``songs`` to train on; returns how many there are.

    Raises TrainingError where the folder has none, OutputError where the file cannot be written.
    """
    paths = [*sorted(folder.glob("heldout-*.npz")), *sorted(folder.glob("train-*.npz"))[:songs]]
    if not paths:
        raise TrainingError(f"{folder} has no songs to pack. Render them first: notewave train does.")
    with atomic_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for path in paths:
            song = load_song(path, with_samples=False)
            frames = song.mel.reshape(-1, MELS) >> LOST_BITS
            changes = np.diff(frames, axis=0, prepend=np.zeros_like(frames[:1]))
            arrays = {"mel": np.ascontiguousarray(changes.T), "notes": notes_to_array(song.notes)}
            for kind, array in arrays.items():
                with archive.open(f"{path.stem}.{kind}", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    return len(paths)


def packed_songs(pack: Path, kind: str) -> Iterator[tuple[int, Song]]:
    """The songs of a kind ("train", "heldout") with their numbers, without samples.

    Raises TrainingError where the file is no such pack.
    """
    try:
        with zipfile.ZipFile(pack) as archive:
            for name in archive.namelist():
                stem, _, array = name.rpartition(".")
                if array == "mel" and stem.startswith(f"{kind}-"):
                    yield int(stem.split("-")[1]), _unpack(archive, stem)
    except (OSError, ValueError, KeyError, EOFError, MidiError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{pack} is no pack of songs: {error}. Pack them again.") from error


def _unpack(archive: zipfile.ZipFile, stem: str) -> Song:
    changes, table = (_array(archive, f"{stem}.{kind}") for kind in ("mel", "notes"))
    frames = np.cumsum(changes.T, axis=0, dtype=np.uint8) << np.uint8(LOST_BITS)
    return Song(np.zeros(0, np.int16), frames.reshape(-1, FRAMES, MELS), notes_from_array(table))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array of the archive, of no more bytes than a song has. Raises ValueError for others."""
    with archive.open(name) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if math.prod(shape) * dtype.itemsize > MAX_ARRAY_BYTES:
            raise ValueError(f"{name} has the shape {shape}: no song is so long")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)
