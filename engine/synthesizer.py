"""A voice, ready to sing: songs in, sound and spectrograms out, on a session."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from notewave.backends.choose import open_backend
from notewave.backends.protocol import DeviceFacts
from notewave.checks import is_integer, quoted
from notewave.errors import ArgumentError, MidiError, SamplingError, VoiceError
from notewave.live.live import Live, open_live
from notewave.sampling.context import check_mel
from notewave.sampling.job import Job, make_job
from notewave.sampling.options import SamplingOptions, check_seed
from notewave.session import NO_SEGMENTS, Session, Vocoder, check_numbers, check_tokens, sing_each
from notewave.song.dialect import Tokens
from notewave.song.midi import MAX_SECONDS, MidiSource, read, tokenize
from notewave.sound.audio import Audio
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import FRAMES, SAMPLE_RATE, FloatArray
from notewave.sound.stream import VocoderStream
from notewave.stems import Stems, stem_tokens
from notewave.voice.folder import Voice

if TYPE_CHECKING:
    from typing_extensions import Unpack

# MIDI in any form that ``tokenize`` takes, or what it returned, also one after another
Song: TypeAlias = "MidiSource | Sequence[NDArray[np.integer]] | Iterator[NDArray[np.integer]]"

DEFAULT_VOICE = "band"
GRIFFIN_LIM = "griffin-lim"
MAX_THREADS = 1024
ALIKE = 0.5  # of the longest song's length, that others need to be sung beside it: ended ones cost as much as it


class Synthesizer:
    """A voice, ready to sing.

    voice: the name of a bundled voice or of one in the voice folder, or a voice's path. backend: "cpu", "cuda",
    "tensorrt", or "auto" for the best that works here. threads: CPU threads, by default as many as there are processors
    for this process, by its affinity and its control group's quota; a GPU has no use for them. vocoder: "griffin-lim"
    in the place of the voice's own. provider_options: a GPU's precision ("fp16", "bf16", "fp32"), device_id and graphs
    (false launches without), for "cuda" also those of ONNX Runtime's CUDA provider. Synthesizers over one voice share
    its networks; calls on one synthesizer may run side by side. A synthesizer is pickled as its arguments: another
    process opens it anew. Raises VoiceError or BackendError when voice or backend cannot be used, ArgumentError for an
    argument that is not what it must be.
    """

    def __init__(
        self,
        voice: str | os.PathLike[str] = DEFAULT_VOICE,
        *,
        backend: str = "auto",
        threads: int | None = None,
        vocoder: str | None = None,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        if vocoder is not None and not (isinstance(vocoder, str) and vocoder == GRIFFIN_LIM):
            raise ArgumentError(
                f"there is no vocoder {quoted(vocoder)}. Leave it out for the voice's own, or say {GRIFFIN_LIM!r}."
            )
        if threads is not None:
            threads = _check_threads(threads)
        options = _check_provider_options({} if provider_options is None else provider_options)
        self.voice = Voice.load(voice)
        is_path = self.voice.folder == Path(voice)  # which another process may be elsewhere than
        self._reopened = functools.partial(
            type(self),
            str(self.voice.folder.absolute() if is_path else voice),
            backend=backend,
            threads=threads,
            vocoder=vocoder,
            provider_options=options,
        )
        self._backend = open_backend(backend, self.voice, threads, options)
        self._griffin_lim = GriffinLim() if vocoder == GRIFFIN_LIM else None

    def __reduce__(self) -> tuple[Callable[[], Synthesizer], tuple[()]]:
        return self._reopened, ()

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    @property
    def device(self) -> DeviceFacts | None:
        """The GPU that runs, and what is known of it by now; None on the CPU."""
        return self._backend.device_facts()

    @property
    def side_by_side(self) -> int:
        """How many songs ``render_batch`` best sings at once."""
        return self._backend.side_by_side

    def render(self, song: Song, **options: Unpack[SamplingOptions]) -> Audio:
        """The whole song as one Audio. Arguments and errors as in ``stream``."""
        return Audio(np.concatenate([chunk.samples for chunk in self.stream(song, **options)]))

    def stream(self, song: Song, **options: Unpack[SamplingOptions]) -> Iterator[Audio]:
        """The song as Audio chunks, each as soon as it is final; joined they are what ``render`` gives.

        song: MIDI, Notes, or tokens: a list of segments, or an iterator that gives them as they come.
        Raises MidiError for a song that cannot be read, SamplingError for options out of range, VoiceError when the
        voice has no vocoder: all before the first chunk is asked for, but for segments that an iterator gives. Then
        VoiceError where the voice gives what is no finite number.
        """
        self._vocoder()
        return self._stream(*self._prepare(song, options))

    def render_batch(
        self,
        songs: Sequence[Song],
        *,
        seeds: Sequence[int] | None = None,
        on_mel: Callable[[int, FloatArray], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Audio]:
        """The Audio of each song of a list, as ``render`` gives it; side by side where that is faster.

        songs: of any lengths; those most alike in length are sung together. An iterator among them is read to its end
        first. seeds: one a song, in the place of the option, which is every song's. on_mel: called with a song's place
        in the list and with its log-mel [256, 128] of each segment, one after another; that of a voice which writes
        frame by frame comes in parts.
        Errors as in ``stream``, all before anything is sung; of a song that cannot be read its place in the list is
        named, from 0 on. ArgumentError for what is no list; SamplingError where seeds are not one a song, and for
        noise, which is one song's.
        """
        vocoder = self._vocoder()
        if not isinstance(songs, list | tuple):
            raise ArgumentError(f"songs is {quoted(songs)}; it must be a list of songs. Render a single one by render.")
        job = self._batch_job(len(songs), seeds, options)
        segments = [self._read_listed(song, place) for place, song in enumerate(songs)]
        sung: dict[int, Audio] = {}
        for places in _groups(list(map(len, segments)), self._backend.side_by_side):
            group = [segments[place] for place in places]
            group_job = dataclasses.replace(job, seeds=tuple(job.seeds[place] for place in places))
            hear = None if on_mel is None else functools.partial(_of_group, on_mel, places)
            needs_mel = hear is not None or len(group[-1]) < len(group[0])
            with self._open(group_job, mel=needs_mel, sound=True) as session:
                sung.update(zip(places, map(Audio, sing_each(session, group, vocoder, hear)), strict=True))
        return [sung[place] for place in range(len(songs))]

    def stems(self, song: MidiSource, **options: Unpack[SamplingOptions]) -> Stems:
        """Each part of a song alone, by its name, with the same options, and the mix: see ``notewave.stems.Stems``.

        Arguments and errors as in ``stream``; tokens are no song here, since they are not told apart.
        """
        notes, dialect = read(song), self.voice.dialect
        mix = tokenize(notes, dialect=dialect)
        told = stem_tokens(notes, mix, dialect, MAX_SECONDS)
        first, *others = self.render_batch([mix, *told.values()], **options)
        return Stems(dict(zip(told, others, strict=True)), first)

    def spectrogram(self, song: Song, **options: Unpack[SamplingOptions]) -> FloatArray:
        """Log-mel float32 [256 frames a segment, 128 bins]; arguments and errors as in ``stream``, vocoder apart."""
        songs, job = self._prepare(song, options)
        with self._open(job, mel=True, sound=False) as session:
            return np.concatenate([made.mel[0] for made in session.sing(songs) if made.mel is not None])

    def vocode(self, mel: FloatArray) -> Audio:
        """Log-mel [T, M], as ``spectrogram`` gives it, to sound.

        Raises SamplingError for what is no such mel, VoiceError when the voice has no vocoder, or one that gives what
        is no finite number.
        """
        mel = check_mel(mel)
        vocoder = VocoderStream(*self._vocoder())
        parts = [mel[start : start + FRAMES] for start in range(0, len(mel), FRAMES)]
        chunks = [vocoder.push(part, last=index == len(parts) - 1) for index, part in enumerate(parts)]
        return Audio(np.concatenate(chunks))

    def live(
        self,
        *,
        hop: int | None = None,
        back: int | None = None,
        rate: int = SAMPLE_RATE,
        real_time: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Live:
        """Be played: notes in as they come, sound out hop by hop. See ``notewave.Live``.

        hop: frames of 20 ms that are made at once, by default the fewest that this machine makes in time, which is
        measured for a moment. back: frames that the networks see before them, by default 96 where there is room for as
        many. rate: of the sound in Hz, a multiple of 50. real_time: whether hops are made by the clock, or when they
        are read. options: as in ``stream``, but for noise and context; steps and guidance are 1 if left out where the
        voice predicts the mel itself. Errors as in ``stream``; ArgumentError for a hop, back or rate that there cannot
        be.
        """
        if self._griffin_lim is not None:
            raise VoiceError(f"{GRIFFIN_LIM} needs the whole song: it cannot be played live. Take the voice's vocoder.")
        self._vocoder()
        if self.voice.is_autoregressive:
            raise VoiceError(
                f"voice {self.voice.name!r} writes each segment from its beginning on: it cannot take up notes midway. "
                "Play one live that denoises its mels."
            )
        if options.get("noise") is not None:
            raise SamplingError("noise was given for live play, whose length nobody knows. Give a seed.")
        if options.get("context") is not None:
            raise SamplingError("a context was given for live play, which begins with silence. Leave it out.")
        if self.voice.prediction == "x0":
            for name in ("steps", "guidance"):
                options[name] = 1 if options.get(name) is None else options[name]
        job = self._job(options)
        return open_live(self._backend, self.voice, job, hop, back, rate, real_time)

    @contextlib.contextmanager
    def session(
        self,
        *,
        seeds: Sequence[int] | None = None,
        mel: bool = True,
        sound: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Session]:
        """Begin songs side by side whose segments are fed one after another: see ``notewave.session.Session``.

        seeds: one a song, in the place of the option; without, there is one song. mel, sound: what each segment is to
        come to. Errors as in ``stream``.
        """
        if sound:
            self._vocoder()
        with self._open(self._job(options, seeds=seeds), mel, sound) as session:
            yield session

    @contextlib.contextmanager
    def _open(self, job: Job, mel: bool, sound: bool) -> Iterator[Session]:
        vocoder = self._vocoder() if sound and self._griffin_lim is not None else None
        with self._backend.start(job) as run:
            yield Session(run, self.voice, job, mel=mel, sound=sound, vocoder=vocoder)

    def _stream(self, songs: Iterable[Sequence[Tokens]], job: Job) -> Iterator[Audio]:
        with self._open(job, mel=False, sound=True) as session:
            for made in session.sing(songs):
                if made.samples is not None and made.samples.size:
                    yield Audio(made.samples[0])

    def _vocoder(self) -> Vocoder:
        """What turns mels to sound. Raises VoiceError where there is none."""
        if self._griffin_lim is not None:
            return self._griffin_lim, self._griffin_lim.traits
        if self.voice.vocoder is None:
            raise VoiceError(
                f"voice {self.voice.name!r} has no vocoder, so it makes spectrograms only. "
                f'Ask for vocoder="{GRIFFIN_LIM}", or export the voice again with --vocoder MODEL.onnx.'
            )
        return self._vocode, self.voice.vocoder

    def _vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """The voice's own vocoder: see ``notewave.backends.protocol.Backend.vocode``. Raises VoiceError."""
        return check_numbers(self._backend.vocode(mel, frame), self.voice, f"the mel from frame {frame} on")

    def _prepare(self, song: Song, options: SamplingOptions) -> tuple[Iterable[Sequence[Tokens]], Job]:
        """A song's segments, as a session sings them, and its job."""
        if (coming := _coming(song)) is not None:
            return ([tokens] for tokens in coming), self._job(options)
        segments = self._read(song)
        return [[tokens] for tokens in segments], self._job(options, segments=len(segments))

    def _read(self, song: Song) -> list[Tokens]:
        """All segments of a song; those that come one after another are waited for."""
        given = song if (coming := _coming(song)) is None else list(coming)
        tokens = given if isinstance(given, list | tuple) else tokenize(given, dialect=self.voice.dialect)
        if not tokens:
            raise MidiError(NO_SEGMENTS)
        return [check_tokens(one, index, self.voice) for index, one in enumerate(tokens)]

    def _read_listed(self, song: Song, place: int) -> list[Tokens]:
        """``_read`` of a song in a list, whose errors say where it stands there."""
        try:
            return self._read(song)
        except MidiError as error:
            raise MidiError(f"song {place}: {error}") from error

    def _job(self, options: SamplingOptions, *, segments: int | None = None, seeds: Sequence[int] | None = None) -> Job:
        return make_job(options, self.voice, segments=segments, seeds=seeds)

    def _batch_job(self, songs: int, seeds: Sequence[int] | None, options: SamplingOptions) -> Job:
        """The job of so many songs, each with its seed."""
        if options.get("noise") is not None:
            raise SamplingError("noise was given for many songs; it is one song's. Give seeds, or render that song.")
        job = self._job(options)
        if seeds is None:
            return dataclasses.replace(job, seeds=job.seeds * songs)
        return dataclasses.replace(job, seeds=_check_seeds(seeds, songs))


def _of_group(on_mel: Callable[[int, FloatArray], None], places: Sequence[int], song: int, mel: FloatArray) -> None:
    """Hand on the mel of a group's song by its place in the list."""
    on_mel(places[song], mel)


def _groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places in a list of the songs to sing together, the longest first: ``most`` at once, of like length."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and len(groups[-1]) < most and lengths[place] >= ALIKE * lengths[groups[-1][0]]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _coming(song: Song) -> Iterator[Any] | None:
    """A song's segments, if they come one after another."""
    return song if isinstance(song, Iterator) and not hasattr(song, "read") else None


def _check_threads(threads: int) -> int:
    if not is_integer(threads, 1, MAX_THREADS):
        raise ArgumentError(
            f"threads is {quoted(threads)}; it must be a whole number from 1 to {MAX_THREADS}, or None for all."
        )
    return int(threads)


def _check_seeds(seeds: Sequence[int], songs: int) -> tuple[int, ...]:
    try:
        given = tuple(check_seed("a seed", seed) for seed in seeds)
    except TypeError:
        given = ()
    if len(given) != songs:
        raise SamplingError(f"seeds is {quoted(seeds)}; it must be a list of {songs} seeds, one a song, or None.")
    return given


def _check_provider_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose values are numbers and text, as a dictionary."""
    if not isinstance(options, Mapping):
        raise ArgumentError(f"provider_options is {quoted(options)}; it must be a dictionary, or None for none.")
    for name, value in options.items():
        if not isinstance(name, str) or not isinstance(value, (str, numbers.Real)):
            raise ArgumentError(
                f"provider_options has {quoted(name)}: {quoted(value)}; an option is a name and a text, number or "
                "boolean."
            )
    return dict(options)
