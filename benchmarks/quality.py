"""Quality against speed: what each sampler, step count, guidance weight and precision costs, and what it gives.

Two distances are told apart. From the true rendering (FluidSynth's, as ``notewave.benchmarks.evaluate`` has it):
note-F1 and mel error. From what the voice would sing with unlimited steps, which is the original's ancestral sampler
with the reference step count: mel difference. Its floor is the reference with another seed, as every run draws noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.clock import add_clock_arguments, set_clock
from notewave.benchmarks.judges import Transcriber, best_level, seam_score
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
from notewave.benchmarks.scores import mean_scores, pitched_f1, voice_scores
from notewave.benchmarks.songs import play_song, sing, song_tokens
from notewave.export.material.fluidsynth import SOUNDFONT, check_fluidsynth
from notewave.sampling.options import SamplingOptions
from notewave.sampling.samplers import SAMPLERS
from notewave.song.dialect import Dialect, Tokens
from notewave.sound.distance import mel_error
from notewave.sound.mel import SEGMENT_SECONDS
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM, Synthesizer

STEPS = (2, 4, 6, 8, 12, 20, 50)

_Mel = NDArray[np.float32]


@dataclass(frozen=True)
class Way:
    """One voice sampled in one way."""

    voice: int  # its place in the list of voices
    sampler: str
    steps: int
    guidance: float

    @property
    def options(self) -> SamplingOptions:
        """Keyword arguments of a render."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}


def ways(
    voices: Sequence[Synthesizer], samplers: Iterable[str], steps: Iterable[int], weights: Iterable[float]
) -> list[Way]:
    """What to compare: every sampler with every step count; every guidance weight; every voice.

    Only one thing departs at a time from what the first voice recommends, samplers and step counts apart.
    """
    best = voices[0].voice.sampling
    usual = Way(0, best.sampler, best.steps, best.guidance)
    found = [
        dataclasses.replace(usual, sampler=name, steps=count) for name, count in itertools.product(samplers, steps)
    ]
    found += [dataclasses.replace(usual, guidance=weight) for weight in weights]
    found += [dataclasses.replace(usual, voice=index) for index in range(len(voices))]
    return list(dict.fromkeys(found))


class Judge:
    """Songs as FluidSynth plays them; made once for all ways of sampling."""

    def __init__(self, songs: Sequence[str], most_songs: int, segments: int, dialect: Dialect) -> None:
        """Raises what ``evaluate`` raises."""
        check_fluidsynth(SOUNDFONT)
        self.transcriber = Transcriber()
        chosen = [*song_tokens(songs, dialect).items()][:most_songs]
        self.names = [name for name, _ in chosen]
        self.songs = [play_song(tokens[:segments], SOUNDFONT) for _, tokens in chosen]

    def ceiling(self, singer: Synthesizer) -> str:
        """What FluidSynth's own sound scores, as it is and through the voice's vocoder."""
        scores = [
            {
                "own": pitched_f1(self.transcriber(song.samples), song),
                "vocoded": pitched_f1(self.transcriber(singer.vocode(song.mel).samples), song),
            }
            for song in self.songs
        ]
        mean = mean_scores(scores)
        return f"FluidSynth's own note-F1 {mean['own']:.3f}, through the vocoder {mean['vocoded']:.3f}"

    def figures(self, singer: Synthesizer, options: SamplingOptions) -> dict[str, Spread]:
        """Scores of the songs together, and seconds of work for one of sound."""
        sung = [sing(singer, self.transcriber, song.tokens, options) for song in self.songs]
        level = best_level([ours.mel for ours in sung], [song.mel for song in self.songs])
        scores = mean_scores([voice_scores(song, ours, level) for song, ours in zip(self.songs, sung, strict=True)])
        scores["seam"] = seam_score([ours.mel for ours in sung])
        segments = sum(len(song.tokens) for song in self.songs)
        scores["real_time_factor"] = sum(ours.seconds for ours in sung) / (SEGMENT_SECONDS * segments)
        return {name: Spread.of([score]) for name, score in scores.items() if np.isfinite(score)}


class Reference:
    """What the voice would sing with unlimited steps."""

    def __init__(self, singer: Synthesizer, tokens: list[Tokens], steps: int) -> None:
        self._tokens = tokens
        full: SamplingOptions = {"sampler": "ancestral", "steps": steps, "guidance": singer.voice.sampling.guidance}
        self._mel = singer.spectrogram(tokens, **full)
        reseeded: SamplingOptions = {**full, "seed": 1}
        floor = self.difference(singer, reseeded)
        self.summary = f"ancestral, {steps} steps; with another seed it differs by {floor:.3f} nats"

    def difference(self, singer: Synthesizer, options: SamplingOptions) -> float:
        """Of a voice that sings the same."""
        return mel_error(singer.spectrogram(self._tokens, **options), self._mel)


def measure(
    voices: Sequence[str],
    samplers: Sequence[str] = tuple(SAMPLERS),
    steps: Sequence[int] = STEPS,
    weights: Sequence[float] = (),
    songs: Sequence[str] = ("piano",),
    *,
    most_songs: int = 4,
    segments: int = 4,
    reference_steps: int = 1000,
    reference_segments: int = 2,
    backend: str = "auto",
    threads: int | None = None,
    vocoder: str | None = None,
) -> Result:
    """Judge the voices in the ways that ``ways`` lists, on the first segments of the first songs.

    The voices read tokens of one dialect. songs: MIDI files, or names of held-out sets. The reference is made of the
    first voice and the first ``reference_segments`` segments of the first song. Raises ArgumentError for counts that
    judge nothing, and what ``evaluate`` raises.
    """
    check_counts(songs=most_songs, segments=segments, reference_segments=reference_segments)
    facts = machine()
    singers = [Synthesizer(voice, backend=backend, threads=threads, vocoder=vocoder) for voice in voices]
    judge = Judge(songs, most_songs, segments, singers[0].voice.dialect)
    reference = Reference(singers[0], judge.songs[0].tokens[:reference_segments], reference_steps)
    facts["reference"] = reference.summary
    facts["ceiling"] = judge.ceiling(singers[0])
    facts["songs"] = f"{segments} segments of {', '.join(judge.names)}"
    cases = []
    for way in ways(singers, samplers, steps, weights):
        singer = singers[way.voice]
        settings: dict[str, Setting] = {"voice": singer.voice.name, "precision": singer.voice.precision}
        settings |= {"sampler": way.sampler, "steps": way.steps, "guidance": way.guidance}
        difference = reference.difference(singer, way.options)
        figures = judge.figures(singer, way.options) | {"mel_difference": Spread.of([difference])}
        cases.append(Case(settings, figures))
    return Result("quality", facts, voice_sums(singer.voice for singer in singers), cases)


def save_quality_plot(result: Result, path: str) -> None:
    """Draw note-F1 and both mel distances over the step count, a line for each voice, sampler and guidance."""
    figure = new_figure(15, 4.5)
    panels = {
        "note_f1": "note-F1",
        "mel_error": "from the true rendering (nats)",
        "mel_difference": "from the reference (nats)",
    }
    lines: dict[str, list[Case]] = {}
    for case in result.cases:
        keys = ("voice", "precision", "sampler", "guidance")
        lines.setdefault(" ".join(str(case.settings[key]) for key in keys), []).append(case)
    for axis, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, cases in lines.items():
            points = sorted(
                (case.settings["steps"], case.figures[name].median) for case in cases if name in case.figures
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=label)
        axis.set(title=title, xlabel="denoising steps", xscale="log")
        labels = sorted({str(case.settings["steps"]) for case in result.cases}, key=int)
        axis.set_xticks([int(label) for label in labels], labels=labels)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    save_plot(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench quality``."""
    parser.add_argument("voices", metavar="VOICE", nargs="*", help="bundled names or folders, as of several precisions")
    parser.add_argument("--song", nargs="+", default=["piano"], help="MIDI files, or held-out sets: piano, band, gm")
    parser.add_argument("--songs", type=int, default=4, help="how many of them at most (default 4)")
    parser.add_argument("--segments", type=int, default=4, help="of each, 5.12 s long (default 4)")
    parser.add_argument("--sampler", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="each with each sampler")
    parser.add_argument("--guidance", nargs="+", type=float, default=[], help="weights to try beside the voice's own")
    parser.add_argument("--reference-steps", type=int, default=1000, help="of the reference (default 1000)")
    parser.add_argument("--reference-segments", type=int, default=2, help="of the first song (default 2)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--vocoder", choices=[GRIFFIN_LIM], help="in the place of the voice's own")
    add_clock_arguments(parser)
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench quality`` with parsed options."""
    set_clock(options)
    result = measure(
        options.voices or [DEFAULT_VOICE],
        options.sampler,
        options.steps,
        options.guidance,
        options.song,
        most_songs=options.songs,
        segments=options.segments,
        reference_steps=options.reference_steps,
        reference_segments=options.reference_segments,
        backend=options.backend,
        threads=options.threads,
        vocoder=options.vocoder,
    )
    facts = [f"{name}: {result.machine[name]}" for name in ("songs", "reference", "ceiling")]
    finish(result, options, "\n".join([*facts, result.table()]), save_quality_plot)
