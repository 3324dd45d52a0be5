"""Songs that a voice is judged on: what its tokens say, as FluidSynth plays it, as the voice sings it.

FluidSynth plays the tokens' 10 ms grid and their programs, dry, and the middle of their bins of velocities, or one
velocity for all notes where they tell none. A voice that had learned everything would so score as FluidSynth does.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.judges import PitchedNotes, Transcriber
from notewave.errors import MidiError
from notewave.export.material.excerpts import DRUM_SECONDS, HELD_OUT, held_out_notes
from notewave.export.material.fluidsynth import fluidsynth
from notewave.export.material.pieces import VELOCITY
from notewave.export.material.songs import SEGMENT_SAMPLES
from notewave.sampling.options import SamplingOptions
from notewave.song.codec import decode_tokens
from notewave.song.dialect import PUBLISHED, Dialect, Tokens, dialect_of
from notewave.song.midi import read, tokenize
from notewave.song.notes import Notes
from notewave.sound.mel import log_mel
from notewave.synthesizer import Synthesizer

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PlayedSong:
    """A song as FluidSynth plays it."""

    tokens: list[Tokens]
    notes: Notes  # what the tokens say
    written: PitchedNotes  # those of them that can be heard as notes
    samples: _Floats  # [n], as long as the segments
    mel: _Floats  # [T, M]


@dataclass(frozen=True, eq=False)
class Rendering:
    """A song as the voice sings it."""

    mel: _Floats  # [T, M], the diffusion's
    samples: _Floats  # [n]
    audio_mel: _Floats  # [T, M], of the samples
    heard: PitchedNotes  # in the samples
    seconds: float  # of work, up to the samples


def song_notes(songs: Sequence[str | os.PathLike[str]]) -> dict[str, Notes]:
    """Notes by each song's name, of MIDI files and of the held-out sets. Raises MidiError."""
    named: list[tuple[str, Notes]] = []
    for song in (os.fspath(song) for song in songs):
        if song in HELD_OUT:
            named += [(excerpt.name, held_out_notes(excerpt)) for excerpt in HELD_OUT[song]]
        else:
            named.append((Path(song).stem, read(song)))
    if not named or len(dict(named)) < len(named):
        raise MidiError("There are no songs, or two of one name, which a report cannot tell apart. Name each once.")
    return dict(named)


def song_tokens(songs: Sequence[str | os.PathLike[str]], dialect: Dialect = PUBLISHED) -> dict[str, list[Tokens]]:
    """Tokens of each song by its name. Raises MidiError."""
    return {name: tokenize(notes, dialect=dialect) for name, notes in song_notes(songs).items()}


def play_song(tokens: list[Tokens], soundfont: Path) -> PlayedSong:
    """A song as FluidSynth plays what its tokens say."""
    notes = decode_tokens(tokens)
    velocity = _middle_velocities(dialect_of(tokens[0]))[notes.velocity]
    samples = play_notes(dataclasses.replace(notes, velocity=velocity), len(tokens), soundfont)
    return PlayedSong(tokens, notes, PitchedNotes.of(notes), samples, log_mel(samples))


def play_notes(notes: Notes, segments: int, soundfont: Path) -> _Floats:
    """What FluidSynth plays of notes in so many segments; drums, of which tokens tell no length, get one."""
    offset_s = np.where(notes.is_drum, notes.onset_s + DRUM_SECONDS, notes.offset_s)
    samples = np.zeros(segments * SEGMENT_SAMPLES, np.float32)
    sound = fluidsynth(dataclasses.replace(notes, offset_s=offset_s), soundfont)[: len(samples)]
    samples[: len(sound)] = sound
    return samples


def _middle_velocities(dialect: Dialect) -> NDArray[np.int64]:
    """By MIDI velocity [128] the middle of its bin, which in a song of all velocities is nearer than its top."""
    if dialect.velocities == 1:
        return np.full(128, VELOCITY)
    tops = [dialect.bin_velocity(number) for number in range(dialect.velocities + 1)]
    middles = [0, *((low + 1 + high) // 2 for low, high in itertools.pairwise(tops))]
    return np.array(middles)[dialect.velocity_bin(np.arange(128))]


def sing(
    synthesizer: Synthesizer, transcriber: Transcriber, tokens: list[Tokens], options: SamplingOptions
) -> Rendering:
    """A song as the voice sings it, and what is heard in that."""
    start = CLOCK.now()
    mel = synthesizer.spectrogram(tokens, **options)
    samples = synthesizer.vocode(mel).samples
    seconds = CLOCK.now() - start
    return Rendering(mel, samples, log_mel(samples), transcriber(samples), seconds)
