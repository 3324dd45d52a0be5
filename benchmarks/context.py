"""A song that goes on from a sound: does the voice take that sound's level and timbre up?

Of each song the second segment is sung, and the third, after FluidSynth's own sound of the first as their context; and
again after that sound changed: softer, duller or brighter, or played by another program. What is taken up is the part
of the context's change that the sung segment's mean spectrum shows: 1 for all of it, 0 for none.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.judges import best_level
from notewave.benchmarks.quality import Judge
from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.songs import PlayedSong, play_notes
from notewave.errors import ArgumentError
from notewave.export.material.fluidsynth import SOUNDFONT
from notewave.song.edits import cut
from notewave.sound.distance import DB, mel_error
from notewave.sound.mel import FRAMES, SEGMENT_SECONDS, FloatArray, log_mel, mel_centres
from notewave.synthesizer import DEFAULT_VOICE, Synthesizer

SEGMENTS = 3  # the context's, and two that are sung
PIVOT_HZ = 1000.0  # that a tilt leaves as it is
OTHER_PROGRAM = {0: 4}  # a piano's place is taken by an electric piano, that of other programs by the one beside them

_Spectrum = NDArray[np.float64]


def _tilt(db_per_octave: float) -> Callable[[FloatArray], FloatArray]:
    octaves = np.log2(mel_centres() / PIVOT_HZ)
    return lambda mel: (mel + np.float32(DB) * (db_per_octave * octaves)).astype(np.float32)


CHANGES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "6 dB louder": lambda mel: mel + np.float32(6 * DB),
    "6 dB softer": lambda mel: mel - np.float32(6 * DB),
    "12 dB softer": lambda mel: mel - np.float32(12 * DB),
    "3 dB an octave brighter": _tilt(3.0),
    "3 dB an octave duller": _tilt(-3.0),
}
OTHER = "another program"


def measure(singer: Synthesizer, judge: Judge) -> list[Case]:
    """A case for each change of the context, over all of a judge's songs; the first is the context as it is."""
    found: dict[str, list[dict[str, float]]] = {}
    for song in judge.songs:
        if len(song.tokens) < SEGMENTS:
            raise ArgumentError(f"A song has {len(song.tokens)} segments; {SEGMENTS} are needed. Choose longer songs.")
        context = song.mel[:FRAMES]
        contexts = {name: change(context) for name, change in CHANGES.items()} | {OTHER: _by_another_program(song)}
        usual, true = _sing(singer, song, context), song.mel[FRAMES : SEGMENTS * FRAMES]
        for name, sung in (("its own", usual), ("none", _sing(singer, song, None))):
            level = best_level([sung], [true])
            found.setdefault(name, []).append({"mel_error": mel_error(sung, true, level), "level_db": -level / DB})
        for name, changed in contexts.items():
            sung = _sing(singer, song, changed)
            taken = [_taken(context, changed, usual[part], sung[part]) for part in (slice(FRAMES), slice(FRAMES, None))]
            found.setdefault(name, []).append({"taken_up": taken[0], "taken_up_later": taken[1]})
    return [
        Case({"context": name}, {key: Spread.of([song[key] for song in songs]) for key in songs[0]})
        for name, songs in found.items()
    ]


def _sing(singer: Synthesizer, song: PlayedSong, context: FloatArray | None) -> FloatArray:
    """The mel of a song's second and third segment."""
    return singer.spectrogram(song.tokens[1:SEGMENTS], context=context)


def _by_another_program(song: PlayedSong) -> FloatArray:
    """The mel of a song's first segment, as other instruments of its families play it."""
    notes = cut(song.notes, 0.0, SEGMENT_SECONDS)
    program = np.array([OTHER_PROGRAM.get(own, own ^ 1) for own in notes.program.tolist()])
    return log_mel(play_notes(dataclasses.replace(notes, program=program), 1, SOUNDFONT))


def _taken(context: FloatArray, changed: FloatArray, usual: FloatArray, sung: FloatArray) -> float:
    """The part of a context's change that what was sung after it shows."""
    given, shown = _spectrum(changed) - _spectrum(context), _spectrum(sung) - _spectrum(usual)
    return float(given @ shown / (given @ given))


def _spectrum(mel: FloatArray) -> _Spectrum:
    """The mean log-mel [M] of the frames that sound, of [T, M]."""
    loud = mel.mean(axis=1)
    mean: _Spectrum = mel[loud > np.median(loud) - 1.0].mean(axis=0, dtype=np.float64)
    return mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench context``."""
    parser.add_argument("--voice", default=DEFAULT_VOICE, help="a bundled name or a folder")
    parser.add_argument("--song", nargs="+", default=["piano"], help="MIDI files, or held-out sets (default piano)")
    parser.add_argument("--songs", type=int, default=5, help="how many of them at most (default 5)")
    parser.add_argument("--backend", default="auto")
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench context`` with parsed options."""
    check_counts(songs=options.songs)
    facts = machine()
    singer = Synthesizer(options.voice, backend=options.backend)
    judge = Judge(options.song, options.songs, SEGMENTS, singer.voice.dialect)
    result = Result("context", facts, voice_sums([singer.voice]), measure(singer, judge))
    finish(result, options, result.table(), save_context_plot)


def save_context_plot(result: Result, path: str) -> None:
    """Draw how much of each change is taken up."""
    figure = new_figure(8, 4)
    axis = figure.subplots()
    changes = [case for case in result.cases if "taken_up" in case.figures]
    for offset, name in enumerate(("taken_up", "taken_up_later")):
        heights = [case.figures[name].median for case in changes]
        axis.bar(np.arange(len(heights)) + 0.4 * offset, heights, 0.4, label=name.replace("_", " "))
    axis.set_xticks(np.arange(len(changes)) + 0.2, [str(case.settings["context"]) for case in changes])
    axis.tick_params(axis="x", labelrotation=20)
    axis.legend()
    save_plot(figure, path)
