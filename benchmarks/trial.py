"""One measured run: a voice, how it is driven, and what each stage of a song took."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from notewave.backends.device.driver import MIB
from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.report import Case, Setting, Spread, check_counts
from notewave.sampling.options import SamplingOptions
from notewave.session import Session
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS, SEGMENT_SECONDS
from notewave.synthesizer import Synthesizer
from notewave.voice.folder import Voice

if TYPE_CHECKING:
    from typing_extensions import Unpack

TYPICAL_TOKENS = 300  # of a segment: General MIDI songs average 220 to 670
WARM_SEGMENTS = 3  # that a device may take to make itself ready for a segment of a length
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
    """Times each run of a network where it happens, inside the loop, and the end of each denoising step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)  # by network, in order
        self.step_ends: list[float] = []

    @property
    def watch(self) -> SamplingOptions:
        """Options of a render that is to be timed; some devices launch networks by themselves, which nothing times."""
        return {"on_step": self._step, "on_network": self._network}

    def _step(self) -> None:
        self.step_ends.append(CLOCK.now())

    @contextlib.contextmanager
    def _network(self, name: str) -> Iterator[None]:
        start = CLOCK.now()
        yield
        self.seconds[name].append(CLOCK.now() - start)


class Trial:
    """A case made ready; every ``play`` adds a repeat."""

    def __init__(self, settings: Settings, song: Sequence[Tokens]) -> None:
        """Raises ArgumentError for a batch of no songs, and what ``Synthesizer`` and its ``session`` raise."""
        check_counts(songs_side_by_side=settings.batch)
        start = CLOCK.now()
        self.synthesizer = Synthesizer(settings.voice, **settings.open)
        self.values: dict[str, list[float]] = defaultdict(list, load_s=[CLOCK.now() - start])
        self.settings, self.song = settings, list(song)
        recommended = self.voice.sampling
        self.steps = recommended.steps if settings.steps is None else settings.steps
        self.guidance = recommended.guidance if settings.guidance is None else settings.guidance
        self._prepare()

    @property
    def voice(self) -> Voice:
        """The voice that sings."""
        return self.synthesizer.voice

    def play(self) -> None:
        """Sing the song once and note what it took."""
        stages = StageTimer()
        self._prepare(**stages.watch)
        start = CLOCK.now()
        ends = list(self._sing(stages))
        self.values["first_audio_s"].append(ends[0] - start)
        seconds = SEGMENT_SECONDS * self.settings.batch * len(self.song)
        self.values["real_time_factor"].append((ends[-1] - start) / seconds)
        if stages.seconds:
            self._note_stages(stages)
        elif not self.voice.is_autoregressive:
            self._note_slope()

    def note_device(self, repeats: int, alone: bool) -> None:
        """Of a GPU that sang: launches a step, its memory, and steps without graphs where they ran in graphs.

        repeats: of the steps without graphs, by a second synthesizer that is let go of again. alone: whether no other
        case is open; else its memory would be noted as this one's.
        """
        device = self.synthesizer.device
        if device is None:
            return
        if alone:
            self.values["gpu_memory_mib"] = [device.memory / MIB]
        few, many = (device.launches.get(steps) for steps in self._slope_steps)
        if few is None or many is None:  # nothing was captured
            return
        self.values["launches_a_step"] = [(many - few) / (self._slope_steps[1] - self._slope_steps[0])]
        eager = {**self.settings.open, "provider_options": {**dict(self.settings.options), "graphs": False}}
        synthesizer = Synthesizer(self.settings.voice, **eager)
        self.values["eager_step_s"] = [self._slope(synthesizer)[1] for _ in range(repeats)]

    def case(self) -> Case:
        """What the repeats come to."""
        voice = self.voice
        settings: dict[str, Setting] = dataclasses.asdict(self.settings) | {
            "voice": voice.name,
            "precision": voice.precision,
            "backend": self.synthesizer.backend,
            "sampler": self.settings.sampler or voice.sampling.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            "tokens": int(np.median([len(segment) for segment in self.song])),
            "segments": len(self.song),
            "vocoder": "its own" if voice.vocoder else None,
            "options": " ".join(f"{name}={value}" for name, value in self.settings.options) or None,
        }
        return Case(settings, {name: Spread.of(values) for name, values in self.values.items() if values})

    def _open(
        self, sound: bool = False, synthesizer: Synthesizer | None = None, **options: Unpack[SamplingOptions]
    ) -> AbstractContextManager[Session]:
        """The case's songs, about to begin, with these options in the place of the case's; by another if named."""
        chosen: SamplingOptions = {**self.settings.sampling, **options}
        singer = synthesizer or self.synthesizer
        return singer.session(seeds=range(self.settings.batch), mel=not sound, sound=sound, **chosen)

    def _prepare(self, **options: Unpack[SamplingOptions]) -> None:
        """Have the schedule ready; only one that others have pushed out takes work."""
        with self._open(**options):
            pass

    def _side_by_side(self, segment: Tokens) -> list[Tokens]:
        return [segment] * self.settings.batch

    def _sing(self, stages: StageTimer) -> Iterator[float]:
        """The time whenever there is more to hear, or to see if the voice has no vocoder."""
        with self._open(self.voice.vocoder is not None, **stages.watch) as session:
            for made in session.sing([self._side_by_side(segment) for segment in self.song]):
                if made.mel is not None or (made.samples is not None and made.samples.size):
                    yield CLOCK.now()

    def _note_stages(self, stages: StageTimer) -> None:
        """Seconds of each network's run; of a step, and of its overhead: sampler update, noise, and the loop itself.

        A song's first segment, which has no context to attend to, does not count if there are others.
        """
        first = min(1, len(self.song) - 1)
        self.values["context_encoder_s"] += stages.seconds["context_encoder"]
        for name in ("note_encoder", "cross_attention"):
            self.values[f"{name}_s"] += stages.seconds[name][first:]
        if vocoder := stages.seconds["vocoder"]:
            self.values["vocoder_s"].append(sum(vocoder) / (len(self.song) * self.settings.batch))
        shape = (len(self.song), self.steps)
        step = np.diff(np.reshape(stages.step_ends, shape), axis=1)[first:]
        networks = [name for name in STEPWISE if stages.seconds[name]]
        runs = {name: np.reshape(stages.seconds[name], shape)[first:] for name in networks}
        for name in networks:
            self.values[f"{name}_s"] += runs[name].ravel().tolist()
        if step.size:
            overhead = step - sum(runs[name][:, 1:] for name in networks)
            self.values["step_s"] += step.ravel().tolist()
            self.values["overhead_s"] += overhead.ravel().tolist()
            self.values["overhead_share"] += (overhead / step).ravel().tolist()
        if self.voice.is_autoregressive:
            return
        if not stages.seconds["time_embedding"]:  # it was still known when the song began
            self._forget_schedule()
            self._prepare(**stages.watch)
        self.values["time_embedding_s"] += stages.seconds["time_embedding"]

    def _forget_schedule(self) -> None:
        """Use as many other schedules as the backend remembers, so that the time embedding runs again for this one."""
        from notewave.backends.ort.sessions import KEPT_SCHEDULES  # of the only backend whose networks are watched

        most = min(self.voice.schedule.train_steps, KEPT_SCHEDULES + 1)
        for steps in [count for count in range(1, most + 1) if count != self.steps][:KEPT_SCHEDULES]:
            self._prepare(steps=steps)

    def _note_slope(self) -> None:
        """A step, and the encoders, of a backend that launches networks by itself."""
        single_s, step_s = self._slope(self.synthesizer)
        self.values["step_s"].append(step_s)
        self.values["encoders_s"].append(single_s - step_s)
        if self.voice.vocoder is not None:
            mel = np.zeros((len(self.song) * FRAMES, MELS), np.float32)
            self.values["vocoder_s"].append(CLOCK.seconds(lambda: self.synthesizer.vocode(mel)) / len(self.song))

    @property
    def _slope_steps(self) -> tuple[int, int]:
        """Steps of the two segments that are set against each other."""
        return 1, max(self.steps, 2)

    def _slope(self, synthesizer: Synthesizer) -> tuple[float, float]:
        """Seconds of a segment of a single step, and of a step: what each one more takes."""
        few, many = self._slope_steps
        single_s, all_s = (self._segment_s(synthesizer, steps) for steps in (few, many))
        return single_s, (all_s - single_s) / (many - few)

    def _segment_s(self, synthesizer: Synthesizer, steps: int) -> float:
        """Seconds of the song's last segment, with a context, in so many steps."""
        with self._open(synthesizer=synthesizer, steps=steps) as session:

            def make() -> None:
                session.feed(self._side_by_side(self.song[-1]))
                session.take()

            for _ in range(WARM_SEGMENTS):
                make()
            return CLOCK.seconds(make)
