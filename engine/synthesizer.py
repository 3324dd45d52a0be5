"""The story of a song: tokens, segment by segment through the diffusion, and out through the vocoder."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from notewave.backends.choose import open_backend
from notewave.backends.protocol import Run
from notewave.checks import as_array, is_integer, quoted
from notewave.errors import BackendError, MidiError, SamplingError, VoiceError
from notewave.sampling.job import Job, make_job
from notewave.sampling.options import SamplingOptions
from notewave.song.codec import EOS, EVENT_END, MAX_TOKENS, Tokens
from notewave.song.midi import MidiSource, tokenize
from notewave.sound.audio import Audio
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import FRAMES, MELS, from_network
from notewave.sound.stream import Vocode, VocoderStream, VocoderTraits
from notewave.voice.folder import Voice

if TYPE_CHECKING:
    from typing_extensions import Unpack

FloatArray = NDArray[np.float32]
# MIDI in any form that ``tokenize`` takes, or what it returned
Song: TypeAlias = "MidiSource | Sequence[NDArray[np.integer]]"

DEFAULT_VOICE = "band"
GRIFFIN_LIM = "griffin-lim"
MAX_THREADS = 1024
MAX_LOG_MEL = 50.0  # either way; the loudest magnitude is MAGNITUDE_MAX, 18 in its logarithm


class Synthesizer:
    """A voice, ready to sing.

    voice: a bundled voice's name, or a voice folder. backend: "cpu", "cuda", "tensorrt", or "auto" for the best that
    works here. threads: CPU threads, all cores by default. vocoder: "griffin-lim" in the place of the voice's own.
    provider_options: handed to ONNX Runtime's execution provider. Synthesizers over one voice share its networks; calls
    on one synthesizer may run side by side. Raises VoiceError or BackendError when voice or backend cannot be used.
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
            raise VoiceError(
                f"there is no vocoder {quoted(vocoder)}. Leave it out for the voice's own, or say {GRIFFIN_LIM!r}."
            )
        if threads is not None:
            threads = _check_threads(threads)
        options = _check_provider_options({} if provider_options is None else provider_options)
        self.voice = Voice.load(voice)
        self._backend = open_backend(backend, self.voice, threads, options)
        self._griffin_lim = GriffinLim() if vocoder == GRIFFIN_LIM else None

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    def render(self, song: Song, **options: Unpack[SamplingOptions]) -> Audio:
        """The whole song as one Audio. Arguments and errors as in ``stream``."""
        return Audio(np.concatenate([chunk.samples for chunk in self.stream(song, **options)]))

    def stream(self, song: Song, **options: Unpack[SamplingOptions]) -> Iterator[Audio]:
        """The song as Audio chunks, each as soon as it is final; joined they are what ``render`` gives.

        Raises MidiError for a song that cannot be read, SamplingError for options out of range, VoiceError when the
        voice has no vocoder: all before the first chunk is asked for.
        """
        tokens, job = self._prepare(song, options)
        self._vocoder()
        return self._stream(tokens, job)

    def spectrogram(self, song: Song, **options: Unpack[SamplingOptions]) -> FloatArray:
        """Log-mel float32 [256 frames a segment, 128 bins]; arguments and errors as in ``stream``, vocoder apart."""
        tokens, job = self._prepare(song, options)
        return np.concatenate(list(self._mels(tokens, job)))

    def vocode(self, mel: FloatArray) -> Audio:
        """Log-mel [T, M], as ``spectrogram`` gives it, to sound.

        Raises SamplingError for what is no such mel, VoiceError when the voice has no vocoder.
        """
        mel = _check_mel(mel)
        vocoder = VocoderStream(*self._vocoder())
        parts = [mel[start : start + FRAMES] for start in range(0, len(mel), FRAMES)]
        chunks = [vocoder.push(part, last=index == len(parts) - 1) for index, part in enumerate(parts)]
        return Audio(np.concatenate(chunks))

    def _stream(self, tokens: list[Tokens], job: Job) -> Iterator[Audio]:
        with self._backend.start(job) as run:
            own = run.sound() if self._griffin_lim is None else None
            sound = own or HostSound(run, *self._vocoder())
            run.submit(tokens[:1])
            for following in range(1, len(tokens) + 1):
                sound.begin(last=following == len(tokens))
                if following < len(tokens):
                    run.submit([tokens[following]])  # denoised while this one is vocoded, where a GPU does it
                samples = sound.finish()
                if len(samples):
                    yield Audio(samples)

    def _mels(self, tokens: list[Tokens], job: Job) -> Iterator[FloatArray]:
        """Log-mel [T, M] of each segment."""
        with self._backend.start(job) as run:
            for segment in tokens:
                yield from_network(run.denoise([segment])[0])

    def _vocoder(self) -> tuple[Vocode, VocoderTraits]:
        if self._griffin_lim is not None:
            return self._griffin_lim, self._griffin_lim.traits
        if self.voice.vocoder is None:
            raise VoiceError(
                f"voice {self.voice.name!r} has no vocoder, so it makes spectrograms only. "
                f'Ask for vocoder="{GRIFFIN_LIM}", or export the voice again with --vocoder MODEL.onnx.'
            )
        return self._backend.vocode, self.voice.vocoder

    def _prepare(self, song: Song, options: SamplingOptions) -> tuple[list[Tokens], Job]:
        tokens = _check_tokens(song) if isinstance(song, list | tuple) else tokenize(song)
        _check_lengths(tokens, self.voice)
        voice = self.voice
        return tokens, make_job(options, voice.sampling, voice.schedule, voice.prediction, segments=len(tokens))


class HostSound:
    """A run's song through a vocoder that takes its mel from the host's memory; see ``protocol.Sound``."""

    def __init__(self, run: Run, vocode: Vocode, traits: VocoderTraits) -> None:
        self._run, self._vocoder = run, VocoderStream(vocode, traits)

    def begin(self, last: bool) -> None:
        """Wait for the segment's mel; the vocoder runs in ``finish``, when the next segment may be under way."""
        self._mel, self._last = from_network(self._run.result()[0]), last

    def finish(self) -> FloatArray:
        """The audio [n] that is now final."""
        return self._vocoder.push(self._mel, self._last)


def _check_threads(threads: int) -> int:
    if not is_integer(threads, 1, MAX_THREADS):
        raise SamplingError(
            f"threads is {quoted(threads)}; it must be a whole number from 1 to {MAX_THREADS}, or None for all cores."
        )
    return int(threads)


def _check_provider_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose values are numbers and text, as a dictionary."""
    if not isinstance(options, Mapping):
        raise BackendError(f"provider_options is {quoted(options)}; it must be a dictionary, or None for none.")
    for name, value in options.items():
        if not isinstance(name, str) or not isinstance(value, (str, numbers.Real)):
            raise BackendError(
                f"provider_options has {quoted(name)}: {quoted(value)}; an option is a name and a text, number or "
                "boolean."
            )
    return dict(options)


def _check_mel(mel: FloatArray) -> FloatArray:
    if not isinstance(mel, np.ndarray) or mel.dtype.kind != "f" or mel.shape[1:] != (MELS,) or not len(mel):
        raise SamplingError(f"the mel is {quoted(mel)}; it must be floats [frames, {MELS}], as spectrogram gives them.")
    if not (np.abs(mel) <= MAX_LOG_MEL).all():
        raise SamplingError(
            f"the mel has values that are no numbers or beyond {MAX_LOG_MEL:g} either way; it must be a natural "
            "logarithm of magnitudes, as spectrogram gives it."
        )
    return mel.astype(np.float32, copy=False)


def _check_lengths(tokens: Sequence[Tokens], voice: Voice) -> None:
    """Refuse segments that are too long for the voice, though not for every voice."""
    most = voice.dimensions.max_tokens
    for index, segment in enumerate(tokens):
        if len(segment) > most:
            raise MidiError(
                f"segment {index} has {len(segment)} tokens; voice {voice.name!r} takes {most}. Thin out its notes."
            )


def _check_tokens(song: Sequence[NDArray[np.integer]]) -> list[Tokens]:
    if not song:
        raise MidiError("the song has no segments. Give what notewave.tokenize returned.")
    checked = []
    for index, given in enumerate(song):
        tokens = as_array(given)
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not 1 <= len(tokens) <= MAX_TOKENS:
            raise MidiError(
                f"segment {index} is {quoted(tokens)}; it must be integers [1 to {MAX_TOKENS}], "
                "as notewave.tokenize returns them."
            )
        if tokens[-1] != EOS or tokens.min() < EOS or tokens.max() >= EVENT_END or (tokens[:-1] == EOS).any():
            raise MidiError(
                f"segment {index} is no token sequence: ids are {EOS} to {EVENT_END - 1}, with one {EOS} at the end."
            )
        checked.append(tokens.astype(np.int32))
    return checked
