"""Rendered songs as training reads them: all their segments in memory, from a folder or a pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.errors import TrainingError
from notewave.export.material.packing import packed_songs
from notewave.export.material.songs import Data, Song, load_song, unpack_mel
from notewave.song.dialect import Dialect, Tokens
from notewave.sound.mel import FloatArray, to_network


def read_songs(source: Path, kind: str, count: int) -> Iterator[Song]:
    """The songs of a kind ("train", "heldout") with a number below ``count``, without samples, in their order."""
    if source.is_file():
        yield from (song for number, song in packed_songs(source, kind) if number < count)
        return
    for path in sorted(source.glob(f"{kind}-*.npz")):
        if int(path.stem.split("-")[1]) < count:
            yield load_song(path, with_samples=False)


class Segments:
    """All segments of a folder's or pack's songs to train on, as batches draw them.

    Only songs with a number below ``data.songs`` count, so that a set that is still growing keeps its order. Raises
    TrainingError where there are none.
    """

    def __init__(self, source: Path, dialect: Dialect, data: Data) -> None:
        self.mels: list[NDArray[np.uint8]] = []
        self.tokens: list[Tokens] = []
        self.first: list[bool] = []  # has no segment before it
        for song in read_songs(source, "train", data.songs):
            self.mels += list(song.mel)
            self.tokens += song.tokens(dialect)
            self.first += [index == 0 for index in range(len(song.mel))]
        if not self.mels:
            raise TrainingError(f"{source} has no songs to train on. Render them, or name another folder.")
        short = [index for index, tokens in enumerate(self.tokens) if len(tokens) <= data.most_tokens]
        self.drawn = np.array(short or range(len(self.tokens)))  # those that batches are made of

    def __len__(self) -> int:
        return len(self.tokens)

    def mel(self, index: int) -> FloatArray:
        """Log-mel float32 [T, M] of a segment, in the networks' range."""
        return to_network(unpack_mel(self.mels[index]))

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Numbers of segments, none twice where they suffice."""
        return rng.choice(self.drawn, count, replace=len(self.drawn) < count)
