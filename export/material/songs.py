"""Training data: songs rendered by FluidSynth, stored with their log-mel and notes.

One ``.npz`` a song of S segments: ``mel`` uint8 [S, T, M], the log-mel in steps of MEL_STEP from LOG_MIN on, ``notes``
float64 [n, 6], the columns of ``Notes``, and, unless it was packed without, ``samples`` int16 [S * 81920], mono at
16 kHz (32767 is full scale). Segment i is seconds 5.12 i to 5.12 (i + 1) of each. A mel so stored takes 6.4 kB a second
and is off by 0.015 nats on average.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.checks import shown
from notewave.errors import OutputError
from notewave.export.material.dynamics import with_dynamics
from notewave.export.material.ensembles import PIANO, Ensemble, Instrument, general_midi, piano_alone
from notewave.export.material.fluidsynth import check_fluidsynth, fluidsynth
from notewave.export.material.pieces import as_notes, compose, one_after_another, sustain
from notewave.export.material.scores import HELD_OUT_SCORES, PART_MUSIC, medley, music21, score_notes
from notewave.files import atomic_file
from notewave.song.codec import MAX_TOKENS, encode_notes
from notewave.song.dialect import PUBLISHED, Dialect, Tokens
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, HOP, LOG_MAX, LOG_MIN, MELS, FloatArray, log_mel

log = logging.getLogger(__name__)

SEGMENT_SAMPLES = FRAMES * HOP
HELD_OUT_SECONDS = 41.0
MEL_STEP = (LOG_MAX - LOG_MIN) / 255  # nats
ENSEMBLES: dict[str, Ensemble] = {"piano": piano_alone, "general-midi": general_midi}
SUSTAINED = 6  # of so many songs of General MIDI's one has long notes alone
RESTS = 0.25  # chance that a player of General MIDI sits out a section


@dataclass(frozen=True)
class Data:
    """The rendered songs."""

    songs: int = 400  # for training
    held_out_songs: int = 8
    seconds: float = 160.0  # of a song
    seed: int = 0
    ensemble: str = "piano"  # who plays: a name in ENSEMBLES; General MIDI's players have dynamics
    most_tokens: int = 900  # of a segment to train on: the few longer ones would take most of the time


@dataclass(frozen=True)
class Song:
    """One rendered song: S segments."""

    samples: NDArray[np.int16]
    mel: NDArray[np.uint8]
    notes: Notes

    def tokens(self, dialect: Dialect = PUBLISHED) -> list[Tokens]:
        """Tokens of its segments."""
        return [dialect.tokens(tokens[:MAX_TOKENS]) for tokens in encode_notes(self.notes, dialect)][: len(self.mel)]


def pack_mel(mel: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Log-mel [..., M] in 8 bits."""
    return np.rint((np.clip(mel, LOG_MIN, LOG_MAX) - LOG_MIN) / MEL_STEP).astype(np.uint8)


def unpack_mel(packed: NDArray[np.uint8]) -> FloatArray:
    """Log-mel float32 [..., M] of 8 bits, the inverse of ``pack_mel`` within half a MEL_STEP."""
    return packed * np.float32(MEL_STEP) + np.float32(LOG_MIN)


def render_song(notes: Notes) -> Song:
    """Audio, log-mel and notes of one song, cut or padded with silence to whole segments."""
    count = len(encode_notes(notes))
    audio = np.zeros(count * SEGMENT_SAMPLES, np.float32)
    rendered = fluidsynth(notes)[: len(audio)]
    audio[: len(rendered)] = rendered
    samples = np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    mel = log_mel(samples.astype(np.float64) / 32767).reshape(count, FRAMES, MELS)
    return Song(samples, pack_mel(mel), notes)


def save_song(song: Song, path: Path) -> None:
    """Write a song's arrays, in the form that the module's docstring gives."""
    with atomic_file(path) as temporary:
        np.savez(temporary, samples=song.samples, mel=song.mel, notes=notes_to_array(song.notes))


def load_song(path: Path, with_samples: bool = True) -> Song:
    """Read a song's arrays; without samples they are empty."""
    with np.load(path) as arrays:
        samples = arrays["samples"] if with_samples else np.zeros(0, np.int16)
        return Song(samples, arrays["mel"], notes_from_array(arrays["notes"]))


def notes_to_array(notes: Notes) -> NDArray[np.float64]:
    """Notes as an array [n, 6] of their columns."""
    return np.stack([column.astype(np.float64) for column in vars(notes).values()], axis=1)


def notes_from_array(table: NDArray[np.float64]) -> Notes:
    """The inverse of ``notes_to_array``."""
    return Notes(*table.reshape(-1, 6).T)


def make_song(index: int, data: Data) -> Notes:
    """Song number ``index`` of a training set: three of five pieces are procedural, the others from scores.

    A piano plays one piece; General MIDI's ensembles take turns, each with dynamics of its own, in some songs with
    notes that are held for long.
    """
    rng = np.random.default_rng((data.seed, index))
    if data.ensemble == "piano":
        return compose(rng, PIANO, data.seconds) if index % 5 < 3 else medley(rng, data.seconds)
    is_sustained = index % SUSTAINED == SUSTAINED - 1

    def piece(seconds: float) -> Notes:
        players = ENSEMBLES[data.ensemble](rng)
        return with_dynamics(sustain(rng, players, 2 * seconds), rng) if is_sustained else _piece(rng, seconds, players)

    return one_after_another(piece, rng, data.seconds)


def _piece(rng: np.random.Generator, seconds: float, players: Sequence[Instrument]) -> Notes:
    scored = rng.random() < 0.4 and not all(player.is_drum for player in players)
    notes = medley(rng, seconds, players, PART_MUSIC) if scored else compose(rng, players, seconds, RESTS)
    return with_dynamics(notes, rng)


def held_out(index: int, seconds: float, data: Data) -> Notes:
    """Songs never trained on: held-out scores on a piano, then procedural pieces from a random stream of their own.

    Of General MIDI's ensembles all are procedural.
    """
    rng = np.random.default_rng((7, index))
    if data.ensemble != "piano":
        return one_after_another(lambda length: _composed(rng, length, ENSEMBLES[data.ensemble]), rng, seconds)
    if index < len(HELD_OUT_SCORES):
        return as_notes([row for row in score_notes(HELD_OUT_SCORES[index], rng) if row[0] < seconds])
    return compose(rng, PIANO, seconds)


def _composed(rng: np.random.Generator, seconds: float, ensemble: Ensemble) -> Notes:
    return with_dynamics(compose(rng, ensemble(rng), seconds, RESTS), rng)


def make_data(folder: Path, data: Data, processes: int = 1) -> None:
    """Render the songs that the folder still lacks, as ``train-00000.npz`` ... and ``heldout-00000.npz`` ...

    Raises ToolError where FluidSynth, its soundfont or music21 is missing, OutputError where the folder cannot be made,
    before anything is rendered.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{shown(folder)} was not made: {reason}. Choose another folder for the songs.") from error
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
    notes = held_out(index, HELD_OUT_SECONDS, data) if is_held_out else make_song(index, data)
    song = render_song(notes)
    save_song(song, path)
    return f"{len(song.mel)} segments, peak {np.abs(song.samples.astype(np.int32)).max() / 32767:.2f}"
