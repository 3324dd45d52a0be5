"""``notewave bench``: real-time factor, time to first audio, every stage, cold start and memory of voices on backends.

Cases are played in turn, round after round, so that a machine that slows down slows all of them; figures are medians
over the rounds. Peers, the roofline and quality against speed are its subcommands.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.choose import BACKENDS
from notewave.backends.protocol import Backend
from notewave.benchmarks.clock import CLOCK, add_clock_arguments, set_clock
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    add_output_arguments,
    compare,
    finish,
    machine,
    new_figure,
    save_plot,
)
from notewave.errors import BackendError, SamplingError
from notewave.sampling.options import SamplingOptions
from notewave.song.codec import EOS, EVENT_END, MAX_TOKENS, SPECIAL, Tokens
from notewave.song.midi import tokenize
from notewave.sound.mel import FRAMES, MELS, SEGMENT_SECONDS, from_network
from notewave.sound.stream import VocoderStream
from notewave.synthesizer import DEFAULT_VOICE, Synthesizer
from notewave.voice.folder import DESCRIPTION, FileRecord, Voice

TYPICAL_TOKENS = 300  # of a segment: General MIDI songs average 220 to 670
COLUMNS = (
    "real_time_factor",
    "first_audio_s",
    "tokenise_s",
    "note_encoder_s",
    "context_encoder_s",
    "cross_attention_s",
    "encoders_s",
    "time_embedding_s",
    "step_s",
    "decoder_s",
    "unconditional_decoder_s",
    "overhead_s",
    "overhead_share",
    "vocoder_s",
    "load_s",
    "cold_start_s",
    "peak_memory_mib",
)
STEPWISE = ("decoder", "unconditional_decoder", "overhead")  # stages of a step, not of a segment


@dataclass(frozen=True)
class Settings:
    """How a voice is driven; None leaves it to the voice or the engine."""

    voice: str
    backend: str = "auto"
    threads: int | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    batch: int = 1  # songs side by side
    tokens: int = TYPICAL_TOKENS  # of each segment, where no song is given
    options: tuple[tuple[str, Any], ...] = ()  # of the backend, as ("precision", "bf16")

    @property
    def open(self) -> dict[str, Any]:
        """Keyword arguments of Synthesizer."""
        return {"backend": self.backend, "threads": self.threads, "provider_options": dict(self.options)}

    @property
    def sampling(self) -> SamplingOptions:
        """Keyword arguments of a render."""
        return {"sampler": self.sampler, "steps": self.steps, "guidance": self.guidance}


class StageTimer:
    """Times each run of a backend's graphs where it happens, inside the loop, and the end of each denoising step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)  # by network, in order
        self.step_ends: list[float] = []

    def step(self) -> None:
        """To be called after each denoising step."""
        self.step_ends.append(CLOCK.now())

    @contextlib.contextmanager
    def watch(self, backend: Backend, networks: Sequence[str]) -> Iterator[None]:
        """Time these networks of a backend that keeps them as graphs with sessions; others can't be looked into."""
        graphs = [(name, backend.graphs[name]) for name in networks] if hasattr(backend, "graphs") else []
        for name, graph in graphs:
            graph.session = _TimedSession(graph.session, self.seconds[name])
        try:
            yield
        finally:
            for _, graph in graphs:
                graph.session = graph.session.session


class _TimedSession:
    """An ONNX Runtime session that notes how long its runs take."""

    def __init__(self, session: Any, seconds: list[float]) -> None:
        self.session, self._seconds = session, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *arguments: Any) -> Any:
        return self._time(self.session.run, arguments)

    def run_with_iobinding(self, *arguments: Any) -> Any:
        return self._time(self.session.run_with_iobinding, arguments)

    def _time(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        start = CLOCK.now()
        result = call(*arguments)
        self._seconds.append(CLOCK.now() - start)
        return result


class Trial:
    """A case made ready; every ``play`` adds a repeat."""

    def __init__(self, settings: Settings, song: Sequence[Tokens]) -> None:
        start = CLOCK.now()
        self.synthesizer = Synthesizer(settings.voice, **settings.open)
        self.values: dict[str, list[float]] = defaultdict(list, load_s=[CLOCK.now() - start])
        self.settings = settings
        self.backend = self.synthesizer._backend
        self.song, job = self.synthesizer._prepare(list(song), settings.sampling)
        self.job = dataclasses.replace(job, seeds=tuple(range(settings.batch)))
        self.networks = ["note_encoder", "context_encoder", "cross_attention", "decoder"]
        self.networks += ["unconditional_decoder"] * (self.job.guidance != 1.0)
        self.networks += ["vocoder"] * (self.voice.vocoder is not None)

    @property
    def voice(self) -> Voice:
        """The voice that sings."""
        return self.synthesizer.voice

    def play(self) -> None:
        """Sing the song once and note what it took."""
        with self.backend.start(self.job):
            pass  # prepares the schedule, should other cases have pushed it out
        stages = StageTimer()
        with stages.watch(self.backend, self.networks):
            start = CLOCK.now()
            ends = [CLOCK.now() for _ in self._sing(stages)]
        self.values["first_audio_s"].append(ends[0] - start)
        self.values["real_time_factor"].append((ends[-1] - start) / (len(self.song) * self.job_seconds))
        if stages.seconds:
            self._note_stages(stages)
        else:
            self._note_slope()

    @property
    def job_seconds(self) -> float:
        """Seconds of audio that a segment of all songs gives."""
        return SEGMENT_SECONDS * len(self.job.seeds)

    def case(self) -> Case:
        """What the repeats come to."""
        table, voice = self.job.table, self.voice
        settings: dict[str, Setting] = dataclasses.asdict(self.settings) | {
            "voice": voice.name,
            "precision": voice.precision,
            "backend": self.synthesizer.backend,
            "sampler": self.settings.sampler or voice.sampling.sampler,
            "steps": table.steps,
            "guidance": self.job.guidance,
            "tokens": int(np.median([len(segment) for segment in self.song])),
            "segments": len(self.song),
            "vocoder": "its own" if voice.vocoder else None,
            "options": " ".join(f"{name}={value}" for name, value in self.settings.options) or None,
        }
        return Case(settings, {name: Spread.of(values) for name, values in self.values.items() if values})

    def _sing(self, stages: StageTimer) -> Iterator[object]:
        """Yield whenever there is more to hear, or to see if the voice has no vocoder."""
        job = dataclasses.replace(self.job, on_step=stages.step)
        if self.voice.vocoder is not None and len(job.seeds) == 1:
            options: SamplingOptions = {**self.settings.sampling, "on_step": stages.step}
            yield from self.synthesizer.stream(self.song, **options)
            return
        streams = [VocoderStream(self.backend.vocode, self.voice.vocoder) for _ in job.seeds if self.voice.vocoder]
        with self.backend.start(job) as run:
            for index, segment in enumerate(self.song):
                mels = from_network(run.denoise([segment] * len(job.seeds)))
                last = index == len(self.song) - 1
                yield [stream.push(mel, last) for stream, mel in zip(streams, mels, strict=False)]

    def _note_stages(self, stages: StageTimer) -> None:
        """Seconds of each graph's run; of a step, and of its overhead: sampler update, noise, and the loop itself.

        A song's first segment, which has no context to attend to, does not count if there are others.
        """
        first = min(1, len(self.song) - 1)
        self.values["context_encoder_s"] += stages.seconds["context_encoder"]
        for name in ("note_encoder", "cross_attention"):
            self.values[f"{name}_s"] += stages.seconds[name][first:]
        if vocoder := stages.seconds["vocoder"]:
            self.values["vocoder_s"].append(sum(vocoder) / (len(self.song) * len(self.job.seeds)))
        shape = (len(self.song), self.job.table.steps)
        step = np.diff(np.reshape(stages.step_ends, shape), axis=1)[first:]
        networks = [name for name in STEPWISE if stages.seconds[name]]
        graphs = {name: np.reshape(stages.seconds[name], shape)[first:] for name in networks}
        for name in networks:
            self.values[f"{name}_s"] += graphs[name].ravel().tolist()
        if step.size:
            overhead = step - sum(graphs[name][:, 1:] for name in networks)
            self.values["step_s"] += step.ravel().tolist()
            self.values["overhead_s"] += overhead.ravel().tolist()
            self.values["overhead_share"] += (overhead / step).ravel().tolist()
        time_embedding = self.backend.graphs["time_embedding"]  # type: ignore[attr-defined]
        self.values["time_embedding_s"].append(CLOCK.seconds(lambda: time_embedding.run({"time": self.job.table.time})))

    def _note_slope(self) -> None:
        """A step from a segment of all steps and one of a single step; what remains of the latter is the encoders."""
        table = self.job.table
        single = dataclasses.replace(
            self.job, table=dataclasses.replace(table, time=table.time[:1], rows=table.rows[:1])
        )
        segment_s = [self._segment_s(job) for job in (single, self.job)]
        step_s = (segment_s[1] - segment_s[0]) / max(table.steps - 1, 1)
        self.values["step_s"].append(step_s)
        self.values["encoders_s"].append(segment_s[0] - step_s)
        if self.voice.vocoder is not None:
            reach = self.voice.vocoder.left_frames + self.voice.vocoder.right_frames
            mel = np.zeros((1, FRAMES + reach, MELS), np.float32)
            self.values["vocoder_s"].append(CLOCK.seconds(lambda: self.backend.vocode(mel, 0)))

    def _segment_s(self, job: Any) -> float:
        with self.backend.start(job) as run:
            run.denoise([self.song[0]] * len(job.seeds))  # so that the timed one has a context
            return CLOCK.seconds(lambda: run.denoise([self.song[-1]] * len(job.seeds)))


def synthetic_song(tokens: int, segments: int, seed: int = 0) -> list[Tokens]:
    """Segments of exactly this many random tokens, EOS included: speed depends on how many there are, not which.

    Raises SamplingError for a number that no segment has.
    """
    if not 1 <= tokens <= MAX_TOKENS or segments < 1:
        raise SamplingError(f"{segments} segments of {tokens} tokens cannot be: a segment has 1 to {MAX_TOKENS}.")
    random = np.random.default_rng(seed)
    events: NDArray[np.int32] = random.integers(SPECIAL, EVENT_END, (segments, tokens - 1), np.int32)
    return [np.append(segment, np.int32(EOS)) for segment in events]


def launch(
    settings: Settings, song: str | Sequence[Tokens], times: int = 1, whole: bool = False
) -> tuple[float, float]:
    """Start a process that sings: seconds from its launch to the first audio, and its peak memory in MiB.

    The song is sung ``times`` over, to its end only if ``whole``. Raises BackendError when the process fails.
    """
    request = {
        "voice": settings.voice,
        "song": song if isinstance(song, str) else [segment.tolist() for segment in song],
        "times": times,
        "open": settings.open,
        "sampling": settings.sampling,
        "whole": whole,
    }
    start = time.perf_counter()
    command = [sys.executable, "-m", "notewave.benchmarks.process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        json.dump(request, process.stdin)
        process.stdin.close()
        first = process.stdout.readline()
        first_s = time.perf_counter() - start
        peak = process.stdout.readline()
    if process.returncode or not first:
        raise BackendError(
            f"A render in a process of its own failed (exit code {process.returncode}). Its error is above."
        )
    return first_s, float(peak)


def benchmark(
    cases: Sequence[Settings],
    song: str | None = None,
    segments: int = 3,
    repeat: int = 5,
    launches: int = 0,
    minutes: Sequence[float] = (),
) -> Result:
    """Measure every case ``repeat`` times in turn, after a warm-up.

    song: a MIDI file, of which the first ``segments`` segments are sung; otherwise they are synthetic. launches: how
    many processes to start for the cold start. minutes: lengths of songs whose peak memory is measured.
    """
    if repeat < 1 or segments < 1:
        raise SamplingError(f"{repeat} repeats of {segments} segments measure nothing. Ask for at least one of each.")
    facts = machine()
    written = tokenize(song)[:segments] if song else None
    songs = [written or synthetic_song(case.tokens, segments) for case in cases]
    trials = [Trial(case, tokens) for case, tokens in zip(cases, songs, strict=True)]
    for round_ in range(repeat + 1):
        for trial in trials:
            trial.play()
            if round_ == 0:  # the warm-up
                trial.values = defaultdict(list, load_s=trial.values["load_s"])
    for case, trial in zip(cases, trials, strict=True):
        for _ in range(launches):
            first_s, peak_mib = launch(case, song or trial.song)
            trial.values["cold_start_s"].append(first_s)
            trial.values["peak_memory_mib"].append(peak_mib)
        for length in minutes:
            times = max(round(length * 60 / SEGMENT_SECONDS / len(trial.song)), 1)
            short = dataclasses.replace(case, steps=1)  # memory does not depend on the steps
            trial.values[f"peak_memory_{length:g}_min_mib"].append(launch(short, trial.song, times, whole=True)[1])
        if song:
            full = len(tokenize(song))
            trial.values["tokenise_s"] += [CLOCK.seconds(lambda: tokenize(song)) / full for _ in range(repeat)]
    voices = {f"{trial.voice.name} {trial.voice.precision}": voice_sha256(trial.voice) for trial in trials}
    return Result("bench", facts, voices, [trial.case() for trial in trials])


def voice_sha256(voice: Voice) -> str:
    """SHA-256 of the description of a voice, which lists its files' own."""
    return FileRecord.of(voice.folder / DESCRIPTION).sha256


def save_stage_plot(result: Result, path: str) -> None:
    """Draw where the time of each case goes, as seconds of work for a second of audio."""
    stages = ("note_encoder", "context_encoder", "cross_attention", *STEPWISE, "vocoder")
    figure = new_figure(10, 1.5 + 0.5 * len(result.cases))
    axis = figure.subplots()
    labels = [result.label(case) for case in result.cases]
    left = np.zeros(len(labels))
    for stage in stages:
        widths = np.array([_share(case, stage) for case in result.cases])
        axis.barh(labels, widths, left=left, label=stage.replace("_", " "))
        left += widths
    totals = [case.figures["real_time_factor"].median for case in result.cases]
    axis.plot(totals, labels, "k|", markersize=18, label="end to end")
    axis.set(xlabel="seconds of work for a second of audio", title=result.machine["processor"])
    axis.legend(fontsize="small")
    save_plot(figure, path)


def _share(case: Case, stage: str) -> float:
    figure = case.figures.get(f"{stage}_s")
    if figure is None:
        return 0.0
    steps, batch = case.settings["steps"], case.settings["batch"]
    times = steps if stage in STEPWISE else batch if stage == "vocoder" else 1
    assert isinstance(times, int) and isinstance(batch, int)
    return figure.median * times / (SEGMENT_SECONDS * batch)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench``, and its subcommands."""
    from notewave.benchmarks import peer, quality, roofline

    parser.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="print ratios of two results and leave"
    )
    parser.add_argument("--voice", nargs="+", default=[DEFAULT_VOICE], help="bundled names or folders")
    parser.add_argument("--song", metavar="S.mid", help="what to sing (default: random tokens)")
    parser.add_argument("--tokens", nargs="+", type=int, default=[TYPICAL_TOKENS], help="of a segment of random tokens")
    parser.add_argument("--segments", type=int, default=3, help="of the song to sing (default 3)")
    parser.add_argument("--sampler", nargs="+", default=[None])
    parser.add_argument("--steps", nargs="+", type=int, default=[None])
    parser.add_argument("--guidance", nargs="+", type=float, default=[None])
    add_clock_arguments(parser, nargs="+", default=[None])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="songs side by side")
    parser.add_argument("--backend", nargs="+", default=["auto"], choices=BACKENDS)
    parser.add_argument(
        "--option", nargs="+", type=_option, default=[], metavar="NAME=VALUE", help="of the backend, as precision=bf16"
    )
    parser.add_argument("--launches", type=int, default=3, help="processes to start for the cold start (default 3)")
    parser.add_argument("--minutes", nargs="+", type=float, default=[], help="lengths of songs to take peak memory of")
    add_output_arguments(parser)
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(metavar="WHAT")
    for module, summary in (
        (roofline, "this machine's ceilings, and how near each stage comes"),
        (peer, "the same weights in diffusers' pipeline, in turn"),
        (quality, "what each sampler, step count and guidance weight costs and gives"),
    ):
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)


def _option(text: str) -> tuple[str, Any]:
    """An option of the command line; its value is read as JSON where it is some."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no value: say NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench`` with parsed options."""
    if options.compare:
        print(compare(*map(Result.load, options.compare)))
        return
    set_clock(options)
    axes = (
        options.voice,
        options.backend,
        options.threads,
        options.sampler,
        options.steps,
        options.guidance,
        options.batch,
        options.tokens,
    )
    cases = [Settings(*values, options=tuple(options.option)) for values in itertools.product(*axes)]
    result = benchmark(cases, options.song, options.segments, options.repeat, options.launches, options.minutes)
    memory = [f"peak_memory_{length:g}_min_mib" for length in options.minutes]
    finish(result, options, result.table([*COLUMNS, *memory]), save_stage_plot)
