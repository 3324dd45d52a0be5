"""A voice's networks as a pipeline holds them: shared by pipelines, opened where they are first needed."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from notewave.backends.choose import AUTO
from notewave.checks import quoted
from notewave.errors import BackendError
from notewave.pipeline.refusal import PipelineError, installed
from notewave.sound.mel import FloatArray
from notewave.synthesizer import Synthesizer
from notewave.voice.folder import Voice

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # a GPU's, by torch's name
STORED = {"float32": "fp32", "float16": "fp16", "bfloat16": "fp16"}  # that checkpoints are exported in


class Device(str):
    """Where networks run, "cpu" or "cuda:0", with the attributes of a torch.device."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """ "cpu" or "cuda"."""
        return self.partition(":")[0]

    @property
    def index(self) -> int | None:  # type: ignore[override]  # torch's, in the place of text's
        """The GPU's number."""
        return int(number) if (number := self.partition(":")[2]) else None

    @classmethod
    def of(cls, given: Any) -> Device:
        """The device that a number, a name or a torch.device says. Raises PipelineError."""
        text = f"cuda:{given}" if type(given) is int else str(given)
        found = re.fullmatch(r"(cpu)(?::0)?|cuda(?::(\d{1,3}))?", text)
        if not found:
            raise PipelineError(f"the device is {quoted(given)}; this engine runs on 'cpu' and 'cuda' or 'cuda:N'.")
        return cls(found[1] or f"cuda:{int(found[2] or 0)}")


def dtype_name(given: Any) -> str:
    """The name of a dtype that torch or a text says; None and "auto" are float32. Raises PipelineError."""
    name = "float32" if given is None or given == "auto" else str(given).removeprefix("torch.")
    if name not in PRECISIONS:
        raise PipelineError(
            f"the dtype is {quoted(given)}; this engine has {', '.join(PRECISIONS)}. For 8 bits give a voice that "
            "`notewave export --precision int8` made."
        )
    return name


class Networks:
    """The networks of the voice in a folder, all on one device. Raises VoiceError where no voice is there.

    dtype: in which a GPU computes, and in which torch draws noise. The CPU computes as the voice is stored.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.voice = Voice.describe(folder)
        self.device, self.dtype = Device("cpu"), dtype
        self._opened: Synthesizer | None = None
        self._lock = threading.Lock()

    def synthesizer(self) -> Synthesizer:
        """The voice, ready to sing. Raises VoiceError, BackendError, or ToolError for a package that is missing."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open(self.device, self.dtype)
            return self._opened

    def move(self, device: Device, dtype: str) -> None:
        """Be on a device, in a dtype, from now on: on a GPU at once. Errors as ``synthesizer``; nothing moved then."""
        with self._lock:
            if (device, dtype) == (self.device, self.dtype):
                return
            opened = self._opened if device.type == self.device.type == "cpu" else None
            if device.type == "cuda":
                opened = self._open(device, dtype)
            self.device, self.dtype, self._opened = device, dtype, opened

    def _open(self, device: Device, dtype: str) -> Synthesizer:
        if device.type == "cpu":
            with installed():
                return Synthesizer(self.voice.folder, backend="cpu")
        options = {"device_id": device.index, "precision": PRECISIONS[dtype]}
        reasons = []
        for backend in AUTO[:-1]:
            try:
                return Synthesizer(self.voice.folder, backend=backend, provider_options=options)
            except BackendError as error:
                reasons.append(f"{backend}: {error}")
        raise BackendError(
            f"the pipeline cannot run on {device} in {dtype} ({' '.join(reasons)}). Mend that, or say pipe.to('cpu')."
        )


class Component:
    """A network of a pipeline, by diffusers' name: to be given to another pipeline, which then shares it."""

    def __init__(self, networks: Networks, name: str) -> None:
        self.networks, self.name = networks, name

    def __repr__(self) -> str:
        return f"<{self.name} of voice {self.networks.voice.name!r}>"


class Melgan(Component):
    """The vocoder, called as diffusers' OnnxRuntimeModel is."""

    def __call__(self, *, input_features: FloatArray) -> list[FloatArray]:
        """Log-mel [1, T, 128] -> a list of the audio alone, float32 [1, n] at 16 kHz. Errors as ``Synthesizer``'s."""
        synthesizer = self.networks.synthesizer()
        return [np.stack([synthesizer.vocode(mel).samples for mel in input_features])]
