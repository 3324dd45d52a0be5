"""Live play: from note-on to sound, whether each hop comes in time, and how near it comes to what is sung at leisure.

Quality is judged on the sound itself, as heard, at one level: note-F1, mel error and the jump where hops join, beside
the same song rendered. By the clock a band is played in real time, while hops and memory are watched. Note-on to sound
is measured on a recording by JACK's dummy driver, FluidSynth's beside it, where jackd is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.jack import JackServer
from notewave.benchmarks.jack_latency import FLUIDSYNTH, Instrument, measure
from notewave.benchmarks.judges import best_level, seam_score
from notewave.benchmarks.live_play import HELD_SECONDS, SETTLED_SECONDS, beat, loudness_db, play, play_by_the_clock
from notewave.benchmarks.quality import Judge
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.scores import mean_scores, pitched_f1
from notewave.benchmarks.songs import song_notes
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.export.material.pieces import VELOCITY
from notewave.song.notes import Notes
from notewave.sound.distance import mel_error
from notewave.sound.mel import FRAME_SECONDS, FRAMES, SAMPLE_RATE, FloatArray, log_mel
from notewave.synthesizer import DEFAULT_VOICE, Synthesizer

HELD = {"piano": (0, 60), "strings": (48, 60), "organ": (16, 60)}  # program and pitch of notes held for long
AUDIBLE_DB = 45.0  # below a note's beginning, to where its loudness is compared
CARD_RATE, CARD_PERIOD = 48000, 256  # of the dummy driver
NOTES = 20  # struck to measure from note-on to sound


@dataclass(frozen=True)
class Way:
    """How live play is opened; None leaves it to the machine or the voice."""

    hop: int | None  # frames
    back: int | None = None  # frames
    steps: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``Synthesizer.live``, and settings of a case."""
        return dataclasses.asdict(self)


def sound_scores(judge: Judge, sounds: Sequence[FloatArray], frames: int) -> dict[str, float]:
    """What sounds [n] of a judge's songs score that are made of pieces of so many frames."""
    mels, true = [log_mel(sound) for sound in sounds], [song.mel for song in judge.songs]
    level = best_level(mels, true)
    found = [
        {"note_f1": pitched_f1(judge.transcriber(sound), song), "mel_error": mel_error(mel, song.mel, level)}
        for sound, mel, song in zip(sounds, mels, judge.songs, strict=True)
    ]
    return mean_scores(found) | {"joins": seam_score(mels, frames), "joins_fluidsynth": seam_score(true, frames)}


def quality_cases(singer: Synthesizer, judges: Mapping[str, Judge], ways: Sequence[Way]) -> list[Case]:
    """Each set rendered, then played live in each way."""
    cases = []
    for name, judge in judges.items():
        rendered = sound_scores(judge, [singer.render(song.tokens).samples for song in judge.songs], FRAMES)
        cases.append(_case({"set": name, "way": "rendered"}, rendered))
        for way in ways:
            played = [play(singer, song.notes, len(song.mel) * FRAME_SECONDS, **way.options) for song in judge.songs]
            scores = sound_scores(judge, [sound for sound, _ in played], way.hop or 1)
            scores |= {f"{key}_ratio": scores[key] / rendered[key] for key in ("note_f1", "mel_error")}
            scores |= {key: float(np.mean([getattr(stats, key) for _, stats in played])) for key in ("load", "load_99")}
            cases.append(_case({"set": name, "way": "live", **way.options}, scores))
    return cases


def held_cases(singer: Synthesizer, ways: Sequence[Way]) -> list[Case]:
    """A note held for long: how far its loudness strays from FluidSynth's, and whether it beats at the hops' rate."""
    cases = []
    for name, (program, pitch) in HELD.items():
        notes = Notes(*(np.array([number]) for number in (0.0, HELD_SECONDS, pitch, VELOCITY, program, False)))
        true = loudness_db(fluidsynth(notes))[int(SETTLED_SECONDS) : int(HELD_SECONDS) - 1]
        rendered = {"stray_db": _stray(singer.render(notes).samples, true)}
        cases.append(_case({"held": name, "way": "rendered"}, rendered))
        for way in ways:
            sound, _ = play(singer, notes, HELD_SECONDS, **way.options)
            steady = sound[round(SETTLED_SECONDS * SAMPLE_RATE) :]
            figures = {"stray_db": _stray(sound, true), "beat": beat(steady, way.hop or 1)}
            cases.append(_case({"held": name, "way": "live", **way.options}, figures))
    return cases


def _stray(sound: FloatArray, true: NDArray[np.float64]) -> float:
    """The most that a sound's loudness [n] strays from the true one, in dB by the second once settled, at one level."""
    ours = loudness_db(sound)[int(SETTLED_SECONDS) :][: len(true)]
    stray = (ours - true)[true > true[0] - AUDIBLE_DB]
    return float(np.abs(stray - np.median(stray)).max())


def clock_case(singer: Synthesizer, song: str, minutes: float, way: Way) -> Case:
    """A song over and over, in real time."""
    notes = next(iter(song_notes([song]).values()))
    session = play_by_the_clock(singer, notes, 60 * minutes, **way.options)
    stats, (early, late) = session.stats, session.memory_mib
    figures = {
        "latency_s": session.latency_s,
        "hops": stats.hops,
        "late_hops": stats.late,
        "load": stats.load,
        "load_99": stats.load_99,
        "memory_mib": late,
        "memory_growth": late / early - 1 if early else 0.0,
    }
    return _case({"minutes": minutes, "hop": session.hop, "steps": way.steps}, figures)


def latency_cases(voice: str, words: Sequence[str], notes: int) -> list[Case]:
    """From note-on to sound, on a recording: this engine's command, and FluidSynth's where that is installed."""
    command = [sys.executable, "-m", "notewave", "live", "--midi-in", "harness:midi", "--voice", voice, *words]
    ours = Instrument(command, "^notewave.*", "^PortAudio.*:out_.*", channels=1, patience_s=60.0, settle_s=2.0)
    instruments = {"notewave": ours}
    if shutil.which(FLUIDSYNTH.command[0]) is not None and SOUNDFONT.is_file():
        instruments["FluidSynth"] = FLUIDSYNTH
    cases = []
    for name, instrument in instruments.items():
        with JackServer(rate=CARD_RATE, period=CARD_PERIOD) as server:
            latency = measure(instrument, server, notes)
        figures = {"note_on_to_sound_s": Spread.of(latency.seconds[np.isfinite(latency.seconds)])}
        figures |= {
            "worst_s": Spread.of([latency.percentile(100)]),
            "missing": Spread.of([latency.missing]),
            "frames_lost": Spread.of([latency.recording.lost]),
        }
        cases.append(Case({"played by": name}, figures))
    return cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench live``."""
    parser.add_argument("--voice", default=DEFAULT_VOICE, help="a bundled name or a folder")
    parser.add_argument("--set", nargs="*", default=["piano", "band"], help="held-out sets to judge; none: no judging")
    parser.add_argument("--songs", type=int, default=3, help="of each set at most (default 3)")
    parser.add_argument("--segments", type=int, default=3, help="of each song, 5.12 s long (default 3)")
    parser.add_argument("--hop", type=int, nargs="+", default=[2, 3, 4, 8], help="frames of 20 ms (default 2 3 4 8)")
    parser.add_argument("--back", type=int, nargs="+", help="frames before a hop (default: 96, where there is room)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="denoising steps (default 1)")
    parser.add_argument("--minutes", type=float, default=1.0, help="to play by the clock (default 1; 0: not)")
    parser.add_argument("--clock-song", default="band", metavar="SONG.mid", help="what is played then")
    parser.add_argument("--clock-hop", type=int, help="frames (default: as this machine can)")
    parser.add_argument("--notes", type=int, default=NOTES, help=f"struck, by JACK's driver (default {NOTES}; 0: none)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)")
    parser.add_argument("--backend", default="auto")
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench live`` with parsed options."""
    check_counts(songs=options.songs, segments=options.segments)
    facts = machine()
    singer = Synthesizer(options.voice, backend=options.backend, threads=options.threads)
    ways = [Way(*each) for each in itertools.product(options.hop, options.back or [None], options.steps)]
    parts = {}
    if options.set:
        dialect = singer.voice.dialect
        judges = {name: Judge([name], options.songs, options.segments, dialect) for name in options.set}
        parts["Quality"] = quality_cases(singer, judges, ways)
        parts["A note held for 30 s"] = held_cases(singer, ways)
    if options.minutes > 0:
        way = Way(options.clock_hop, steps=options.steps[0])
        parts["By the clock"] = [clock_case(singer, options.clock_song, options.minutes, way)]
    if options.notes > 0 and shutil.which("jackd") is not None:
        given = {"threads": options.threads, "backend": options.backend, "hop": options.clock_hop}
        words = [f"--{name}={value}" for name, value in given.items() if value is not None]
        parts["From note-on to sound"] = latency_cases(options.voice, words, options.notes)
    elif options.notes > 0:
        print("jackd is not installed: from note-on to sound was not measured (Debian: apt install jackd2)")
    result = Result("live", facts, voice_sums([singer.voice]), [case for part in parts.values() for case in part])
    tables = [f"{title}\n{dataclasses.replace(result, cases=part).table()}" for title, part in parts.items()]
    finish(result, options, "\n\n".join(tables), save_live_plot)


def save_live_plot(result: Result, path: str) -> None:
    """Draw note-F1 and mel error over the hop's length, each set's beside its rendering."""
    figure = new_figure(10, 4)
    for axis, name in zip(figure.subplots(1, 2), ("note_f1_ratio", "mel_error_ratio"), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for case in result.cases:
            if name in case.figures and isinstance(hop := case.settings["hop"], int):
                told = {key: case.settings[key] for key in ("set", "back", "steps")}
                label = ", ".join(f"{key} {value}" for key, value in told.items() if value is not None)
                lines.setdefault(label, []).append((1000 * FRAME_SECONDS * hop, case.figures[name].median))
        for label, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.set(title=name.replace("_", " "), xlabel="hop (ms)")
        axis.grid(alpha=0.3)
    if lines:
        axis.legend(fontsize="x-small")
    save_plot(figure, path)


def _case(settings: dict[str, Setting], figures: dict[str, float]) -> Case:
    return Case(settings, {name: Spread.of([value]) for name, value in figures.items() if np.isfinite(value)})
