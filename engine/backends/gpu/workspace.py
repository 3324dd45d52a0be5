"""Every buffer of one run: what lies on the GPU, on one slab, and what the host holds of the segments under way.

Letters as in ``notewave.voice.contracts``. Tokens are padded to a bucket's length and the context is always there,
under a mask, so that shapes and addresses never change: what a segment launches is the same for all of its bucket.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from notewave.backends.device.buffers import Layout, Slab, Staging
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.shapes import ITEM_BYTES, token_buckets, vocoder_frames
from notewave.backends.executor import Scratch
from notewave.backends.gpu.pending import Copied
from notewave.backends.gpu.shape import RunShape, Told, span
from notewave.backends.gpu.shared import Shared
from notewave.kernels.layout import control_dtype
from notewave.sampling.job import Job
from notewave.song.dialect import PAD
from notewave.sound.mel import FRAMES, HOP, MELS, FloatArray
from notewave.voice.contracts import Tensor

SEGMENT_NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "decoder")  # in their order
UNDER_WAY = 2  # segments that may be submitted and not taken


class Region(NamedTuple):
    """A piece of device memory."""

    address: int
    size: int  # bytes


@dataclass(frozen=True)
class Part:
    """What comes back of a part of a segment, in page-locked memory."""

    mel: FloatArray  # [B, T, M]
    audio: FloatArray  # as much as may come back at once
    frame: NDArray[np.int64]  # [1]: number in the song of the first that is vocoded
    mel_ready: Any
    audio_ready: Any


class Slot:
    """What the host holds of one of the segments under way, in page-locked memory: what goes in, what comes out."""

    def __init__(self, device: CudaDevice, shape: RunShape, staged: Layout, frames: int) -> None:
        """frames: the most whose sound may come back at once."""
        self.staging, count = Staging(device, staged), shape.parts
        mels = device.pinned(count * shape.mel_bytes).view(np.float32).reshape(count, shape.batch, shape.frames, MELS)
        audio = device.pinned(4 * count * shape.batch * HOP * max(frames, 1)).view(np.float32).reshape(count, -1)
        numbers = device.pinned(8 * count).view(np.int64).reshape(count, 1)
        self.uploaded = device.event()
        self.parts = [Part(*each, device.event(), device.event()) for each in zip(mels, audio, numbers, strict=True)]
        self.pending: list[Copied] = []  # what was asked of the segment

    def collect(self) -> None:
        """Wait for all that was asked and not taken, so that the slot can be used for another segment."""
        for one in self.pending:
            one.collect()
        self.pending.clear()

    def abandon(self) -> None:
        """Let go of what was asked, taken or not."""
        for one in self.pending:
            one.abandon()
        self.pending.clear()


class Workspace(ABC):
    """Every buffer of one run. All of it is used within the device's context."""

    regions: Mapping[tuple[str, str], str]  # where a network's input or output lies that is not in one of its own name

    def __init__(self, shared: Shared, shape: RunShape) -> None:
        """Raises BackendError, with sizes, when there is not enough memory."""
        self.shared, self.shape = shared, shape
        voice, self.device, self.runtime, self.kernels = shared.voice, shared.device, shared.runtime, shared.kernels
        self.buckets = token_buckets(voice)
        self.traits = voice.vocoder
        self.segment_networks = tuple(name for name in SEGMENT_NETWORKS if name in self.runtime.contracts)
        self.networks = (*self.segment_networks, "vocoder") if shape.windows else self.segment_networks
        self.context_frames = voice.dimensions.context_frames
        staged = Layout(self._staged_sizes())
        frames = vocoder_frames(voice) - FRAMES + shape.frames if self.traits else 0
        self.window_bytes = 0 if shape.windows else 4 * MELS * frames  # of one song
        layout = Layout(
            {
                "staged": staged.total,
                **self._sizes(),
                "window": shape.batch * self.window_bytes,
                "spare_window": shape.batch * self.window_bytes,
                "scratch": (scratch := self.runtime.scratch_bytes(self._scratching())),
            }
        )
        self._slab = Slab(self.device, layout, self._purpose())
        try:
            self.stream = shared.streams.pop() if shared.streams else self.device.stream()
            slots = [span(shape.windows.sounded)] if shape.windows else [frames] * UNDER_WAY  # by frames of sound
            self.slots = [Slot(self.device, shape, staged, sounded) for sounded in slots]
            self.denoised, self.handed_over = (self.device.event() for _ in range(2))
        except BaseException:
            self.free()
            raise
        base = self._slab.address["staged"]
        self.address = self._slab.address | {name: base + offset for name, offset in staged.offsets.items()}
        self.scratch = Scratch(self.address["scratch"], scratch)

    @abstractmethod
    def begin(self, job: Job) -> None:
        """Put what is a job's on the device, and forget the last song."""

    def stage(self, slot: Slot, job: Job, told: Told, tokens: NDArray[np.int32]) -> None:
        """Send a segment's or window's control, tokens [B, N], mask [B, J] and given noise [draws, T, M] to the device.

        Does not wait but for the slot's last upload.
        """
        slot.uploaded.synchronize()
        windows, (batch, length) = self.shape.windows, tokens.shape
        control = slot.staging.view("control", control_dtype(batch), (1,))
        control[0] = (told.segment, job.guidance, *(MELS * frames for frames in told[1:]), 0, job.seeds)
        slot.staging.view("tokens", np.int32, (batch, length))[...] = tokens
        mask = slot.staging.view("mask", np.float32, (batch, length + self.context_frames))
        lowest = np.finfo(np.float32).min
        mask[:, :length] = np.where(tokens == PAD, lowest, 0.0)
        has_context = told.segment or windows or job.context is not None
        mask[:, length:] = 0.0 if has_context else lowest
        if windows:
            slot.staging.view("frame", np.int64, (1,))[...] = told.frame + windows.heard.start
        if job.noise is not None:
            draws = self.shape.draws
            noise = slot.staging.view("noise", np.float32, (draws, FRAMES, MELS))
            noise[...] = job.noise[told.segment * draws : (told.segment + 1) * draws]
        self.device.upload(self.address["staged"], slot.staging.memory, self.stream)
        slot.uploaded.record(self.stream)

    def bindings(self, network: str) -> dict[str, int]:
        """Addresses of a network's inputs and outputs."""
        contract = self.runtime.contracts[network]
        names = [tensor.name for tensor in (*contract.inputs, *contract.outputs)]
        return {name: self.address[self.regions.get((network, name), name)] for name in names}

    def sizes(self, network: str, tokens: int) -> dict[str, int]:
        """Sizes of a network's dynamic axes for segments of so many tokens, by letter."""
        batch = self.shape.decoded if network == "decoder" else self.shape.batch
        sizes = {"B": batch, "N": tokens, "C": self.context_frames, "J": tokens + self.context_frames}
        return sizes | {"V": span(windows.heard)} if (windows := self.shape.windows) else sizes

    def settle(self) -> None:
        """Wait for all that may be under way."""
        self.stream.synchronize()
        for slot in self.slots:
            for part in slot.parts:
                part.audio_ready.synchronize()
            slot.abandon()

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        for slot in getattr(self, "slots", ()):
            slot.abandon()
        self._slab.free()
        vars(self).clear()

    def _staged_sizes(self) -> dict[str, int]:
        """What goes to the device for each segment or window, in one copy."""
        batch, longest = self.shape.batch, self.buckets[-1]
        return {
            "control": control_dtype(batch).itemsize,
            "tokens": 4 * batch * longest,
            "mask": 4 * batch * (longest + self.context_frames),
            "noise": self.shape.draws * self.shape.mel_bytes,
            "frame": 8 if self.shape.windows else 0,  # the number in the song of the first that is vocoded
        }

    @abstractmethod
    def _sizes(self) -> dict[str, int]:
        """Bytes of what lies on the device beside what is staged, by name; ``x`` is the mel of a part, [B, T, M]."""

    def _scratching(self) -> tuple[str, ...]:
        """The networks that run in the scratch memory."""
        return self.networks

    def _purpose(self) -> str:
        return f"a run of {self.shape.batch} songs"

    def _tensor_sizes(self) -> dict[str, int]:
        """What the networks of a segment pass on, each at its largest, in bytes."""
        sizes: dict[str, int] = {}
        for network in self.networks:
            contract, largest = self.runtime.contracts[network], self.sizes(network, self.buckets[-1])
            for tensor in (*contract.inputs, *contract.outputs):
                region = self.regions.get((network, tensor.name), tensor.name)
                sizes[region] = max(sizes.get(region, 0), tensor_bytes(tensor, largest))
        return {region: size for region, size in sizes.items() if region not in self._staged_sizes()}


def tensor_bytes(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """Size of a tensor whose axes of these letters have these sizes."""
    return ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape_at(sizes))
