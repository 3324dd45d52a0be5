"""How good a voice is: its songs beside FluidSynth's of the same notes, by judges that take no part in training.

What is sung and played is in ``songs`` and ``probes``, what is made of it in ``scores``. The voice's loudness as a
whole is arbitrary, as is FluidSynth's: one level, with which all songs' mel errors are least, is taken out of it. The
controls say what knowing nothing scores.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notewave.benchmarks.embedding import musicnn
from notewave.benchmarks.judges import Transcriber, best_level
from notewave.benchmarks.probes import Dynamics, Programs, measure_dynamics, measure_programs
from notewave.benchmarks.report import check_counts, machine, text_table, voice_sha256
from notewave.benchmarks.scores import SCORES, Judges, Take, song_scores, summarise
from notewave.benchmarks.second_judge import second_transcriber
from notewave.benchmarks.songs import play_song, sing, song_notes
from notewave.errors import OutputError
from notewave.export.material.fluidsynth import SOUNDFONT, check_fluidsynth
from notewave.files import atomic_file
from notewave.sampling.options import SamplingOptions
from notewave.song.midi import tokenize
from notewave.song.notes import Notes
from notewave.sound.plot import save_mel_picture
from notewave.synthesizer import Synthesizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

MAX_SEGMENTS = 8  # of each song: 41 s
JUDGES = ("basic-pitch", "mir_eval", "librosa")
OPTIONAL_JUDGES = ("transkun", "musicnn")
ALL_PROGRAMS = "gm"  # the held-out set with which each program is judged, too


@dataclass(frozen=True)
class Report:
    """What ``evaluate`` found; scores that a song cannot have, as of drums that it lacks, are NaN, in JSON null."""

    voice: dict[str, str]  # name, precision, SHA-256 of voice.json (which lists its files' own), backend, vocoder
    sampling: dict[str, Any]  # sampler, steps, guidance and seed, as they took effect
    machine: dict[str, Any]  # and the versions of what ran on it
    songs: dict[str, dict[str, float]]  # by song, by name in SCORES
    summary: dict[str, float]  # of all songs together
    dynamics: Dynamics
    programs: Programs | None  # None where they were not asked for

    def table(self) -> str:
        """The report as text, for a terminal."""
        songs = {**self.songs, "all": self.summary}
        groups: dict[bool, list[str]] = {True: [], False: []}
        for key in SCORES:
            if not math.isnan(self.summary[key]):
                groups["_f1" in key].append(key)
        blocks = []
        for keys in filter(None, groups.values()):
            rows = [[name, *(_cell(scores[key]) for key in keys)] for name, scores in songs.items()]
            blocks.append(text_table([["", *(SCORES[key] for key in keys)], *rows]))
        errors = {**self.dynamics.errors_db, "all": self.dynamics.error_db}
        blocks.append(text_table([["dynamics", "error in dB"], *([name, _cell(x)] for name, x in errors.items())]))
        if self.programs is not None:
            ratios = {**self.programs.families, **{f"worst: {k}": x for k, x in self.programs.worst().items()}}
            heading = ["programs", "mel error, of the mean's"]
            blocks.append(text_table([heading, *([name, _cell(x)] for name, x in ratios.items())]))
        rest = {key: value for key, value in self.summary.items() if key not in SCORES and not math.isnan(value)}
        return "\n\n".join([*blocks, "\n".join(f"{key}: {value:.3f}" for key, value in rest.items())])

    def save(self, path: Path) -> None:
        """Write the report as JSON. Raises OutputError."""
        content = dataclasses.asdict(self)
        content["dynamics"]["errors_db"] = self.dynamics.errors_db
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(_json(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def evaluate(
    voice: str | os.PathLike[str],
    songs: Sequence[str | os.PathLike[str]] = ("piano",),
    *,
    out: Path | None = None,
    soundfont: Path = SOUNDFONT,
    max_segments: int = MAX_SEGMENTS,
    backend: str = "auto",
    threads: int | None = None,
    vocoder: str | None = None,
    **options: Unpack[SamplingOptions],
) -> Report:
    """Judge a voice on songs: MIDI files, or the held-out sets of ``export.material.excerpts``, "piano", "band", "gm".

    The first ``max_segments`` segments of each song count. With "gm" a phrase of every program is judged, too. The
    folder ``out`` gets report.json and each song's picture: FluidSynth's mel and the voice's. soundfont: what
    FluidSynth plays on. voice, backend, threads, vocoder, options: as in ``Synthesizer`` and its ``render``. Raises
    ToolError when a tool is missing, ArgumentError for no segments, and what those raise.
    """
    check_counts(segments=max_segments)
    check_fluidsynth(soundfont)
    if out is not None:
        _make_folder(out)
    notes = song_notes(songs)
    judges = Judges(Transcriber(), second_transcriber(), musicnn())
    synthesizer = Synthesizer(voice, backend=backend, threads=threads, vocoder=vocoder)
    takes = {}
    for number, (name, song) in enumerate(notes.items(), 1):
        log.info("%s, %d of %d", name, number, len(notes))
        takes[name] = _take(song, max_segments, synthesizer, judges.transcriber, soundfont, options)
    level = best_level([take.ours.mel for take in takes.values()], [take.true.mel for take in takes.values()])
    log.info("dynamics")
    dynamics = measure_dynamics(synthesizer, soundfont, options)
    programs = None
    if any(os.fspath(song) == ALL_PROGRAMS for song in songs):
        log.info("programs")
        programs = measure_programs(synthesizer, soundfont, options, level)
    log.info("judging")
    scores = song_scores(takes, judges, synthesizer, level)
    summary = summarise(scores, [*takes.values()], judges, level) | {"dynamics_db": dynamics.error_db}
    if programs is not None:
        summary["programs_ratio"] = programs.ratio
    named = {
        "name": synthesizer.voice.name,
        "precision": synthesizer.voice.precision,
        "sha256": voice_sha256(synthesizer.voice),
        "backend": synthesizer.backend,
        "vocoder": vocoder or "its own",
    }
    sampling = _sampling(synthesizer, options)
    report = Report(named, sampling, _machine(soundfont), scores, summary, dynamics, programs)
    if out is not None:
        _save(report, takes, out)
    return report


def _take(
    song: Notes,
    segments: int,
    synthesizer: Synthesizer,
    transcriber: Transcriber,
    soundfont: Path,
    options: SamplingOptions,
) -> Take:
    """Play and sing the beginning of a song, and its drums alone."""
    dialect = synthesizer.voice.dialect
    true = play_song(tokenize(song, dialect=dialect)[:segments], soundfont)
    ours = sing(synthesizer, transcriber, true.tokens, options)
    if not true.notes.is_drum.any():
        return Take(true, ours, None)
    alone = play_song(tokenize(song.rows(song.is_drum), dialect=dialect)[:segments], soundfont)
    return Take(true, ours, (synthesizer.spectrogram(alone.tokens, **options), alone.mel))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}. Choose another.") from error


def _save(report: Report, takes: dict[str, Take], folder: Path) -> None:
    """Write the report and each song's picture."""
    report.save(folder / "report.json")
    for name, take in takes.items():
        titles = f"{name}, FluidSynth", f"{name}, voice {report.voice['name']}"
        save_mel_picture(dict(zip(titles, (take.true.mel, take.ours.audio_mel), strict=True)), folder / f"{name}.png")


def _sampling(synthesizer: Synthesizer, options: SamplingOptions) -> dict[str, Any]:
    recommended = dataclasses.asdict(synthesizer.voice.sampling)
    given = {key: value for key, value in options.items() if key in recommended and value is not None}
    return {**recommended, **given, "seed": options.get("seed", 0)}


def _machine(soundfont: Path) -> dict[str, Any]:
    fluidsynth_version = subprocess.run(["fluidsynth", "--version"], check=True, capture_output=True, text=True).stdout
    return {
        **machine(),
        **{package: version(package) for package in JUDGES},
        **{package: _version(package) for package in OPTIONAL_JUDGES},
        "fluidsynth": fluidsynth_version.split("\n")[0].rpartition(" ")[2],
        "soundfont": soundfont.name,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _json(value: Any) -> Any:
    """A value with null for NaN."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.2f}"
