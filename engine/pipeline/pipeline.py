"""The pipeline itself: tokens in, sound or mel out, as diffusers' of this name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from notewave.checks import is_integer, quoted
from notewave.errors import MidiError
from notewave.pipeline.networks import STORED, Component, Device, Melgan, Networks, dtype_name
from notewave.pipeline.noise import noise_source
from notewave.pipeline.refusal import PipelineError
from notewave.pipeline.schedulers import Config, sampler_of, scheduler_for, scheduler_from
from notewave.pipeline.source import Download, find_source
from notewave.sampling.options import SamplingOptions
from notewave.sampling.samplers import sampler_table
from notewave.session import NO_SEGMENTS, check_tokens
from notewave.song.codec import MAX_TOKENS
from notewave.song.dialect import PAD, Tokens, dialect_of
from notewave.song.midi import MidiSource, tokenize
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.folder import Voice

Callback: TypeAlias = Callable[[int, FloatArray], object]  # a segment's number, and the log-mel [1, T, M] till its end
Range: TypeAlias = "Sequence[float]"  # lowest and highest

NETWORKS = {  # components that are networks of one voice: what diffusers calls their types
    "notes_encoder": "SpectrogramNotesEncoder",
    "continuous_encoder": "SpectrogramContEncoder",
    "decoder": "T5FilmDecoder",
}
OUTPUTS = ("numpy", "mel")
PROGRESS = {"disable": True}
# Keywords of diffusers' ``from_pretrained`` without a meaning here, or whose every value gives the same result.
_WITHOUT_EFFECT = {
    "device_map",
    "force_download",
    "load_connected_pipeline",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "provider",
    "resume_download",
    "sess_options",
    "use_onnx",
    "use_safetensors",  # where there are none, pickles are read as data: nothing in them is executed
}
_REFUSED = {  # keywords that would give another result, and what to do
    "variant": "Say torch_dtype=torch.float16 for weights of half the size.",
    "from_flax": "Give a checkpoint of PyTorch's.",
    "custom_pipeline": "Leave it out: this pipeline is the only one here.",
    "custom_revision": "Leave it out: this pipeline is the only one here.",
    "proxies": "Set HTTPS_PROXY in the environment.",
}


@dataclass
class AudioPipelineOutput:
    """What a pipeline returns."""

    audios: Any  # of "numpy" a list of the audio alone, float32 [1, n] at 16 kHz; of "mel" the log-mel [1, T, M]

    def __getitem__(self, key: str | int | slice) -> Any:
        """``audios``, by that name or as the first and only item."""
        return vars(self)[key] if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any]:
        """All items."""
        return (self.audios,)


class MidiProcessor:
    """MIDI to the tokens that the pipeline takes, as diffusers' of this name."""

    def __call__(self, midi: MidiSource) -> list[list[int]]:
        """The tokens of a MIDI file's bytes or path: for each 5.12 s 2048 of them, padded with 0. Raises MidiError."""
        return [[*tokens.tolist(), *[PAD] * (MAX_TOKENS - len(tokens))] for tokens in tokenize(midi)]


class SpectrogramDiffusionPipeline:
    """MIDI tokens to music by spectrogram diffusion; mostly made by ``from_pretrained``.

    The first three arguments are networks of one voice, from the ``components`` of a pipeline, which shares them. The
    scheduler is diffusers' own or of ``notewave.pipeline``, and may be replaced at any time. melgan is the vocoder, a
    component or any function called as diffusers calls it, or None. Raises PipelineError for other networks.
    """

    n_dims = MELS

    def __init__(
        self, notes_encoder: Component, continuous_encoder: Component, decoder: Component, scheduler: Any, melgan: Any
    ) -> None:
        self.notes_encoder, self.continuous_encoder, self.decoder = notes_encoder, continuous_encoder, decoder
        self.scheduler, self.melgan = scheduler, melgan
        self._progress: dict[str, Any] = dict(PROGRESS)
        voice = self._networks().voice
        self.min_value, self.max_value = voice.mel_range.low, voice.mel_range.high
        self._source = str(voice.folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: Any = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **others: Any,
    ) -> Self:
        """A pipeline of a checkpoint in diffusers' layout, by hub id or folder, or of a voice, by name or folder.

        A checkpoint is exported once, which needs PyTorch, and kept in the user's cache folder or NOTEWAVE_CACHE.
        torch_dtype: float32, float16 or bfloat16; the last two store weights in 16 bits, and compute in them on a GPU;
        voices stay as they are stored. others: components in the place of the checkpoint's, as melgan=None or
        scheduler=..., and keywords of diffusers that make no difference. Raises PipelineError for those that would,
        VoiceError where nothing usable is found, ToolError for a package that is missing.
        """
        components = {name: others.pop(name) for name in (*NETWORKS, "scheduler", "melgan") if name in others}
        _check_keywords(others)
        dtype = dtype_name(torch_dtype)
        download = Download(revision, cache_dir, bool(local_files_only), token)
        source = find_source(pretrained_model_name_or_path, STORED[dtype], download)
        networks = Networks(source.folder, dtype)
        parts: dict[str, Any] = {name: Component(networks, name) for name in NETWORKS}
        parts["melgan"] = Melgan(networks, "melgan") if networks.voice.vocoder else None
        if "scheduler" not in components:
            said = source.scheduler
            parts["scheduler"] = scheduler_for(networks.voice) if said is None else scheduler_from(said)
        pipeline = cls(**parts | components)
        pipeline._source = os.fspath(pretrained_model_name_or_path)
        return pipeline

    @property
    def components(self) -> dict[str, Any]:
        """What another pipeline is made with that shares the networks: SpectrogramDiffusionPipeline(**components)."""
        return {name: getattr(self, name) for name in (*NETWORKS, "scheduler", "melgan")}

    @property
    def config(self) -> Config:
        """What the pipeline is made of, as diffusers says it: the library and type of each component."""
        types = NETWORKS | {"scheduler": type(self.scheduler).__name__, "melgan": "OnnxRuntimeModel"}
        said = {name: ("diffusers", types[name]) if part else (None, None) for name, part in self.components.items()}
        return Config({"_class_name": type(self).__name__, "_name_or_path": self._source, **said})

    @property
    def device(self) -> Device:
        """Where the networks are: "cpu" or "cuda:N", a text with a torch.device's attributes."""
        return self._networks().device

    @property
    def voice(self) -> Voice:
        """The voice that sings."""
        return self._networks().voice

    def to(
        self,
        *args: Any,
        device: Any = None,
        dtype: Any = None,
        torch_device: Any = None,
        torch_dtype: Any = None,
        silence_dtype_warnings: bool = True,
    ) -> Self:
        """Move to a device, "cpu", "cuda" or "cuda:N", to a dtype, or to both; also pipelines that share the networks.

        A dtype is that in which a GPU computes, and in which torch draws noise. Raises PipelineError for what is
        neither, BackendError where there is no such GPU or it cannot be used; then nothing moves.
        """
        del silence_dtype_warnings  # there are none
        given = [("dtype" if str(one).startswith("torch.") else "device", one) for one in args]
        named = {"device": (device, torch_device), "dtype": (dtype, torch_dtype)}
        given += [(kind, one) for kind, ones in named.items() for one in ones]
        given = [(kind, one) for kind, one in given if one is not None]
        chosen = dict(given)
        if len(chosen) < len(given):
            raise PipelineError(f"two of one kind were given to move to: {quoted(given)}. Give a device and a dtype.")
        networks = self._networks()
        networks.move(
            Device.of(chosen["device"]) if "device" in chosen else networks.device,
            dtype_name(chosen["dtype"]) if "dtype" in chosen else networks.dtype,
        )
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """How tqdm shows progress, a bar for each segment; none is shown unless disable=False is given."""
        self._progress = PROGRESS | config

    def scale_features(self, features: Any, output_range: Range = (-1.0, 1.0), clip: bool = False) -> Any:
        """Log-mel to the networks' range, an array or tensor; clip: to what that range can say."""
        low, high = output_range
        features = features.clip(self.min_value, self.max_value) if clip else features
        return (features - self.min_value) / (self.max_value - self.min_value) * (high - low) + low

    def scale_to_features(self, outputs: Any, input_range: Range = (-1.0, 1.0), clip: bool = False) -> Any:
        """The inverse of ``scale_features``."""
        low, high = input_range
        outputs = outputs.clip(low, high) if clip else outputs
        return (outputs - low) / (high - low) * (self.max_value - self.min_value) + self.min_value

    def __call__(
        self,
        input_tokens: Sequence[Sequence[int] | NDArray[np.integer]] | MidiSource,
        generator: Any = None,
        num_inference_steps: int = 100,
        return_dict: bool = True,
        output_type: str = "numpy",
        callback: Callback | None = None,
        callback_steps: int = 1,
    ) -> AudioPipelineOutput | tuple[Any]:
        """Sing tokens: a list for each 5.12 s, padded with 0 or not; or a song itself, which needs no processor.

        generator: a torch.Generator, with which the result is diffusers'; None for PyTorch's own, if PyTorch is loaded,
        or for noise of no known seed; NumPy's; or a seed, with which the result is ``Synthesizer``'s. output_type:
        "numpy" for audio, "mel" for the log-mel. callback: called with a segment's number and the log-mel [1, T, M] up
        to its end, after every callback_steps-th segment, from the first on.
        A voice that writes frame by frame takes no scheduler, no noise and no number of steps: it passes them over.
        Raises, before anything is sung, PipelineError, SamplingError or MidiError for an argument that cannot be used;
        errors of ``Synthesizer`` beside them.
        """
        _check_call(callback, callback_steps, output_type)
        if output_type == "numpy" and self.melgan is None:
            raise PipelineError(
                "the pipeline has no vocoder (melgan), so it gives no audio. Ask for output_type='mel'."
            )
        networks = self._networks()
        voice = networks.voice
        options_of = self._sampling(networks, generator, num_inference_steps)
        segments = _segments(input_tokens, voice)
        synthesizer = networks.synthesizer()
        from tqdm import tqdm

        mels: list[FloatArray] = []
        for index, tokens in enumerate(segments):
            options = options_of(index)
            options["context"] = mels[-1] if mels and voice.takes_context else None
            with tqdm(total=options.get("steps", FRAMES), **self._progress) as bar:
                options["on_step"] = bar.update
                mels.append(synthesizer.spectrogram([tokens], **options))
            if callback is not None and index % callback_steps == 0:
                callback(index, np.concatenate(mels)[None])
        whole = np.concatenate(mels)[None]
        audios = self.melgan(input_features=whole) if output_type == "numpy" else whole
        return AudioPipelineOutput(audios) if return_dict else (audios,)

    def batch(
        self, songs: Sequence[Sequence[Sequence[int]] | MidiSource], generator: Any = None, **options: Any
    ) -> AudioPipelineOutput:
        """Sing many songs, of any lengths: ``audios`` has what a call gives of each, [1, n] or [1, T, M], in order.

        songs: a list of what a call takes. generator: one for all, which draws on from song to song, or a list, one a
        song. options: as of a call. Raises PipelineError for what is no list, and what a call raises.
        """
        if not isinstance(songs, list | tuple):
            raise PipelineError(f"songs is {quoted(songs)}; it must be a list of what a call takes.")
        generators = generator if isinstance(generator, list | tuple) else [generator] * len(songs)
        if len(generators) != len(songs):
            raise PipelineError(f"{len(generators)} generators were given for {len(songs)} songs. Give one a song.")
        made = [self(song, one, **options | {"return_dict": True}) for song, one in zip(songs, generators, strict=True)]
        return AudioPipelineOutput([audio for output in made for audio in _each(output)])

    def _sampling(self, networks: Networks, generator: Any, steps: int) -> Callable[[int], SamplingOptions]:
        """How a segment is sung, by its number. Raises PipelineError and SamplingError for what cannot be."""
        voice = networks.voice
        if voice.is_autoregressive:
            return lambda index: {}
        sampler = sampler_of(self.scheduler, voice)
        table = sampler_table(sampler, steps, voice.schedule, voice.prediction)
        draw = noise_source(generator, networks.device, networks.dtype)
        return lambda index: {
            "sampler": sampler,
            "steps": table.steps,
            "guidance": 1.0,
            "noise": draw(index, table.draws),
        }

    def _networks(self) -> Networks:
        """The networks of the one voice that the pipeline is of. Raises PipelineError where there is no one voice."""
        parts = {name: getattr(self, name) for name in NETWORKS}
        for name, part in parts.items():
            if not isinstance(part, Component) or part.name != name:
                raise PipelineError(
                    f"{name} is {quoted(part)}; it must be the {name} of a pipeline's components. Networks of PyTorch "
                    "are saved by save_pretrained and loaded by from_pretrained(folder)."
                )
        if len({id(part.networks) for part in parts.values()}) > 1:
            raise PipelineError(f"{', '.join(NETWORKS)} are of several pipelines' components. Take all from one.")
        networks: Networks = parts["decoder"].networks
        return networks


def _check_keywords(given: Mapping[str, Any]) -> None:
    """Refuse keywords of ``from_pretrained`` that nobody knows, or that would change the result."""
    for name, value in given.items():
        if name in _REFUSED and value not in (None, False):
            raise PipelineError(f"{name}={quoted(value)} is not taken here. {_REFUSED[name]}")
        if name not in _WITHOUT_EFFECT and name not in _REFUSED:
            raise PipelineError(f"from_pretrained knows no {name!r}. Leave it out.")


def _check_call(callback: Any, callback_steps: Any, output_type: Any) -> None:
    if not is_integer(callback_steps, 1, 1 << 62):
        raise PipelineError(f"callback_steps is {quoted(callback_steps)}; it must be a whole number from 1 on.")
    if callback is not None and not callable(callback):
        raise PipelineError(f"callback is {quoted(callback)}; it must be a function of a segment's number and a mel.")
    if not isinstance(output_type, str) or output_type not in OUTPUTS:
        raise PipelineError(f"output_type is {quoted(output_type)}; it must be one of {', '.join(OUTPUTS)}.")


def _each(output: AudioPipelineOutput | tuple[Any]) -> list[FloatArray]:
    """The audio [1, n], or the mel [1, T, M], of a call."""
    audios = output[0]
    return [audios] if isinstance(audios, np.ndarray) else list(audios)


def _segments(given: Any, voice: Voice) -> list[Tokens]:
    """The segments of tokens, or of a song, without padding. Raises MidiError."""
    if not isinstance(given, (list, tuple, np.ndarray)):
        given = tokenize(given, dialect=voice.dialect)
    if not len(given):
        raise MidiError(NO_SEGMENTS)
    return [check_tokens(_unpadded(tokens, index), index, voice) for index, tokens in enumerate(given)]


def _unpadded(tokens: Any, segment: int) -> Tokens:
    """A segment's tokens without the padding at their end, in their dialect. Raises MidiError for what are none."""
    try:
        ids = np.asarray(tokens)
    except (OverflowError, TypeError, ValueError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.any():
        raise MidiError(
            f"segment {segment} is {quoted(tokens)}; it must be a list of tokens, as MidiProcessor gives it."
        )
    ids = ids[: int(np.flatnonzero(ids)[-1]) + 1]
    return dialect_of(tokens).tokens(ids)
