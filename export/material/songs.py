"""Training data: songs rendered by FluidSynth, stored with their log-mel and tokens.

One ``.npz`` a song of S segments: ``samples`` int16 [S * 81920], mono at 16 kHz (32767 is full scale), ``mel`` float16
[S, T, M], the log-mel of those samples, ``tokens`` int32 [sum N] of all segments one after the other, and
``token_counts`` int32 [S]. Segment i is seconds 5.12 i to 5.12 (i + 1) of each.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.export.material.fluidsynth import check_fluidsynth, fluidsynth
from notewave.export.material.pieces import PIANO, as_notes, band, compose
from notewave.export.material.scores import HELD_OUT_SCORES, medley, music21, score_notes
from notewave.files import atomic_file
from notewave.song.codec import MAX_TOKENS, PROGRAM, encode_notes
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, HOP, MELS, log_mel

log = logging.getLogger(__name__)

SEGMENT_SAMPLES = FRAMES * HOP
HELD_OUT_SECONDS = 41.0
TRAINED_TOKENS = 900  # of a segment, at most: the few longer ones would take most of the time


@dataclass(frozen=True)
class Data:
    """The rendered songs."""

    songs: int = 400  # for training
    held_out_songs: int = 8
    seconds: float = 160.0  # of a song
    seed: int = 0
    bands: float = 0.0  # share of the songs that a band plays; a piano plays the others


@dataclass(frozen=True)
class Song:
    """One rendered song: S segments."""

    samples: NDArray[np.int16]
    mel: NDArray[np.float16]
    tokens: list[NDArray[np.int32]]


def render_song(notes: Notes) -> Song:
    """Audio, log-mel and tokens of one song, cut or padded with silence to whole segments."""
    tokens = encode_notes(notes)
    audio = np.zeros(len(tokens) * SEGMENT_SAMPLES, np.float32)
    rendered = fluidsynth(notes)[: len(audio)]
    audio[: len(rendered)] = rendered
    samples = np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    mel = log_mel(samples.astype(np.float64) / 32767).reshape(len(tokens), FRAMES, MELS)
    return Song(samples, mel.astype(np.float16), tokens)


def save_song(song: Song, path: Path) -> None:
    """Write a song's arrays, in the form that the module's docstring gives."""
    counts = np.array([len(tokens) for tokens in song.tokens], np.int32)
    with atomic_file(path) as temporary:
        np.savez(temporary, samples=song.samples, mel=song.mel, tokens=np.concatenate(song.tokens), token_counts=counts)


def load_song(path: Path, with_samples: bool = True) -> Song:
    """Read a song's arrays; without samples they are empty."""
    with np.load(path) as arrays:
        tokens = np.split(arrays["tokens"], np.cumsum(arrays["token_counts"])[:-1])
        samples = arrays["samples"] if with_samples else np.zeros(0, np.int16)
        return Song(samples, arrays["mel"], tokens)


def make_song(index: int, seed: int, seconds: float, bands: float = 0.0) -> Notes:
    """Song number ``index`` of a training set: three of five are procedural, the others from scores.

    A share ``bands`` of the songs is played by a band of random instruments, the others by a piano.
    """
    rng = np.random.default_rng((seed, index))
    ensemble = band(rng) if bands and rng.random() < bands else PIANO
    return compose(rng, ensemble, seconds) if index % 5 < 3 else medley(rng, seconds, ensemble)


def held_out(index: int, seconds: float, bands: bool = False) -> Notes:
    """Songs never trained on: the held-out scores on a piano, then procedural pieces from a random stream of their own.

    The procedural pieces are played by bands if there are any.
    """
    rng = np.random.default_rng((7, index))
    if index < len(HELD_OUT_SCORES):
        return as_notes([row for row in score_notes(HELD_OUT_SCORES[index], rng) if row[0] < seconds])
    return compose(rng, band(rng) if bands else PIANO, seconds)


def make_data(folder: Path, data: Data, processes: int = 1) -> None:
    """Render the songs that the folder still lacks, as ``train-00000.npz`` ... and ``heldout-00000.npz`` ...

    Raises ToolError where FluidSynth, its soundfont or music21 is missing, before anything is rendered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(folder / f"heldout-{index:05d}.npz", index, True) for index in range(data.held_out_songs)]
    wanted += [(folder / f"train-{index:05d}.npz", index, False) for index in range(data.songs)]
    missing = [song for song in wanted if not song[0].exists()]
    if missing:
        check_fluidsynth()
        music21()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for (path, _, _), said in zip(missing, pool.map(partial(_make_file, data), missing), strict=True):
            log.info("%s: %s", path.name, said)


def _make_file(data: Data, wanted: tuple[Path, int, bool]) -> str:
    """Render one song to its file; returns what to say of it."""
    path, index, is_held_out = wanted
    if is_held_out:
        notes = held_out(index, HELD_OUT_SECONDS, bands=data.bands > 0)
    else:
        notes = make_song(index, data.seed, data.seconds, data.bands)
    song = render_song(notes)
    save_song(song, path)
    return f"{len(song.tokens)} segments, peak {np.abs(song.samples.astype(np.int32)).max() / 32767:.2f}"


class Segments:
    """All segments of a folder's songs in memory, as training draws them.

    Only songs with a number below ``songs`` count, so that a set that is still growing keeps its order.
    """

    def __init__(self, folder: Path, kind: str = "train", songs: int = 1 << 30) -> None:
        paths = [path for path in sorted(folder.glob(f"{kind}-*.npz")) if int(path.stem.split("-")[1]) < songs]
        self.mels: list[NDArray[np.float16]] = []
        self.tokens: list[NDArray[np.int32]] = []
        self.first: list[bool] = []  # has no segment before it
        for path in paths:
            song = load_song(path, with_samples=False)
            for index, tokens in enumerate(song.tokens):
                self.mels.append(song.mel[index])
                self.tokens.append(tokens[:MAX_TOKENS])
                self.first.append(index == 0)
        short = [index for index, tokens in enumerate(self.tokens) if len(tokens) <= TRAINED_TOKENS]
        self.drawn = np.array(short or range(len(self.tokens)))  # those that batches are made of
        self.is_piano = np.array([tokens.max() <= PROGRAM for tokens in self.tokens], bool)  # by a piano alone

    def __len__(self) -> int:
        return len(self.tokens)

    def draw(self, rng: np.random.Generator, count: int, pianos: float | None = None) -> NDArray[np.int64]:
        """Numbers of segments, none twice where they suffice; a share ``pianos`` by a piano alone, None as it comes."""
        alone = self.is_piano[self.drawn]
        chances = None
        if pianos is not None and alone.any() and not alone.all():
            chances = np.where(alone, pianos / alone.sum(), (1 - pianos) / (~alone).sum())
        return rng.choice(self.drawn, count, replace=len(self.drawn) < count, p=chances)
