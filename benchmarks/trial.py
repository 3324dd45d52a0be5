"""One measured run: a voice, how it is driven, and what each stage of a song took."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from notewave.backends.protocol import Backend
from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.report import Case, Setting, Spread, check_counts
from notewave.sampling.options import SamplingOptions
from notewave.song.codec import Tokens
from notewave.sound.mel import FRAMES, MELS, SEGMENT_SECONDS, from_network
from notewave.sound.stream import VocoderStream
from notewave.synthesizer import Synthesizer
from notewave.voice.folder import Voice

TYPICAL_TOKENS = 300  # of a segment: General MIDI songs average 220 to 670
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
        check_counts(songs_side_by_side=settings.batch)
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
