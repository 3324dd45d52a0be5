"""Every buffer of one run: what lies on the GPU, on one slab, and what the host holds of the segments under way.

Letters as in ``notewave.voice.contracts``. Tokens are padded to a bucket's length and the context is always there,
under a mask, so that shapes and addresses never change: what a segment launches is the same for all of its bucket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from notewave.backends.device.buffers import Layout, Slab, Staging
from notewave.backends.device.contracts import film_row, film_rows
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.shapes import (
    ITEM_BYTES,
    SCHEDULE_ROWS,
    token_buckets,
    vocoder_frames,
)
from notewave.backends.executor import Capture, Scratch
from notewave.backends.gpu.pending import Copied
from notewave.backends.gpu.shape import RunShape, Told, span
from notewave.backends.gpu.shared import Shared
from notewave.kernels.layout import ROW, control_dtype, table_rows
from notewave.sampling.job import Job
from notewave.sampling.samplers import SamplerTable
from notewave.song.dialect import PAD
from notewave.sound.mel import FRAMES, HOP, MELS, SILENCE
from notewave.voice.contracts import Tensor

SEGMENT_NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "decoder")  # of every segment, in their order
UNDER_WAY = 2  # segments that may be submitted and not taken
REGIONS = {  # of what has another meaning elsewhere under the same name
    ("context_encoder", "mel"): "context_mel",
    ("vocoder", "mel"): "log_mel",
}


class Region(NamedTuple):
    """A piece of device memory."""

    address: int
    size: int  # bytes


class Slot:
    """What the host holds of one of the segments under way, in page-locked memory: what goes in, what comes out."""

    def __init__(self, device: CudaDevice, shape: RunShape, staged: Layout, frames: int) -> None:
        """frames: the most whose sound may come back at once."""
        self.staging = Staging(device, staged)
        self.mel = device.pinned(shape.mel_bytes).view(np.float32).reshape(shape.batch, FRAMES, MELS)
        self.audio = device.pinned(4 * shape.batch * HOP * max(frames, 1)).view(np.float32)
        self.frame = device.pinned(8).view(np.int64)  # number in the song of the first that is vocoded
        self.uploaded, self.mel_ready, self.audio_ready = (device.event() for _ in range(3))
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


class Workspace:
    """Every buffer of one run. All of it is used within the device's context."""

    def __init__(self, shared: Shared, shape: RunShape) -> None:
        """Raises BackendError, with sizes, when there is not enough memory."""
        self.shared, self.shape = shared, shape
        voice, self.device, self.runtime, self.kernels = shared.voice, shared.device, shared.runtime, shared.kernels
        self.buckets = token_buckets(voice)
        self.traits = voice.vocoder
        self._film_rows = film_rows(voice)
        self.networks = (*SEGMENT_NETWORKS, "vocoder") if shape.windows else SEGMENT_NETWORKS  # of segment or window
        staged = Layout(self._staged_sizes())
        frames = vocoder_frames(voice) if self.traits else 0
        self.window_bytes = 0 if shape.windows else 4 * MELS * frames  # of one song
        layout = Layout(
            {
                "staged": staged.total,
                **self._tensor_sizes(),
                "film": self.film_bytes(),
                "films": self.film_bytes(shape.steps),
                "time": 4 * shape.steps,
                "window": shape.batch * self.window_bytes,
                "spare_window": shape.batch * self.window_bytes,
                **dict.fromkeys(("played", "next_context") if shape.windows else (), shape.mel_bytes),
                "x0_previous": shape.mel_bytes,
                "rows": ROW.itemsize * shape.steps,
                "scratch": (scratch := self.runtime.scratch_bytes((*self.networks, "time_embedding"))),
            }
        )
        self._schedule = b""  # the table whose FiLM is on the device
        self._slab = Slab(self.device, layout, f"a run of {shape.batch} songs at {shape.steps} steps")
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
        for row in range(self._film_rows):
            self.address[film_row(row)] = self.address["film"] + self.film_bytes() * row // self._film_rows
        self.scratch = Scratch(self.address["scratch"], scratch)

    def begin(self, job: Job) -> None:
        """Put the schedule on the device, unless it is there, and forget the last song."""
        schedule = job.table.time.tobytes() + job.table.rows.tobytes()
        if schedule != self._schedule:
            self._put_schedule(job.table)
            self._schedule = schedule
        before, regions = self.slots[0].mel, ("context_mel", "x") if self.shape.windows else ("context_mel",)
        before[...] = SILENCE if job.context is None else job.context
        for region in regions:
            self.device.upload(self.address[region], before, self.stream)

    def stage(self, slot: Slot, job: Job, told: Told, tokens: NDArray[np.int32]) -> None:
        """Send a segment's or window's control, tokens [B, N], mask [B, J] and given noise [draws, T, M] to the device.

        Does not wait but for the slot's last upload.
        """
        slot.uploaded.synchronize()
        windows, (batch, length) = self.shape.windows, tokens.shape
        control = slot.staging.view("control", control_dtype(batch), (1,))
        control[0] = (told.segment, job.guidance, *(MELS * frames for frames in told[1:]), 0, job.seeds)
        slot.staging.view("tokens", np.int32, (batch, length))[...] = tokens
        mask = slot.staging.view("mask", np.float32, (batch, length + FRAMES))
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
        return {tensor.name: self.address[_region(network, tensor)] for tensor in (*contract.inputs, *contract.outputs)}

    def sizes(self, network: str, tokens: int) -> dict[str, int]:
        """Sizes of a network's dynamic axes for segments of so many tokens, by letter."""
        batch = self.shape.decoded if network == "decoder" else self.shape.batch
        sizes = {"B": batch, "N": tokens, "C": FRAMES, "J": tokens + FRAMES}
        return sizes | {"V": span(windows.heard)} if (windows := self.shape.windows) else sizes

    def without_notes(self, tokens: int) -> list[Region]:
        """What the decoder attends to for songs without their notes, at this length; all zero, it adds nothing."""
        given, taken = (self.sizes(network, tokens) for network in ("cross_attention", "decoder"))
        return [
            Region(self.address[tensor.name] + (begin := _bytes(tensor, given)), _bytes(tensor, taken) - begin)
            for tensor in self.runtime.contracts["cross_attention"].outputs
        ]

    @property
    def unconditional(self) -> int:
        """Address of the decoder's predictions for songs without their notes; 0 where there are none."""
        (prediction,) = self.runtime.contracts["decoder"].outputs
        return self.address["prediction"] + _bytes(prediction, {"B": self.shape.batch}) if self.shape.guided else 0

    def film_bytes(self, steps: int = 1) -> int:
        """Size of the FiLM scales and shifts of some steps."""
        (film,) = self.runtime.contracts["time_embedding"].outputs
        return _bytes(film, {"S": steps})

    def settle(self) -> None:
        """Wait for all that may be under way."""
        self.stream.synchronize()
        for slot in self.slots:
            slot.audio_ready.synchronize()
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
            "mask": 4 * batch * (longest + FRAMES),
            "noise": self.shape.draws * self.shape.mel_bytes,
            "frame": 8 if self.shape.windows else 0,  # the number in the song of the first that is vocoded
        }

    def _tensor_sizes(self) -> dict[str, int]:
        """What the networks of a segment pass on, each at its largest, in bytes."""
        apart = {*self._staged_sizes(), *map(film_row, range(self._film_rows))}
        sizes: dict[str, int] = {}
        for network in self.networks:
            contract, largest = self.runtime.contracts[network], self.sizes(network, self.buckets[-1])
            for tensor in (*contract.inputs, *contract.outputs):
                if (region := _region(network, tensor)) not in apart:
                    sizes[region] = max(sizes.get(region, 0), _bytes(tensor, largest))
        return sizes

    def _put_schedule(self, table: SamplerTable) -> None:
        """Compute FiLM of every step on the device, and copy the sampler's rows there.

        Half of a decoder's weights serve only this, so their memory is given back at once.
        """
        rows, time = table_rows(table.rows, table.noisy).view(np.uint8), np.ascontiguousarray(table.time)
        self.device.upload(self.address["rows"], rows, self.stream)
        self.device.upload(self.address["time"], time, self.stream)
        embed = self.runtime.open("time_embedding", self.stream, self.scratch, Capture.NOBODY)
        for first in range(0, table.steps, SCHEDULE_ROWS):
            films = self.address["films"] + self.film_bytes(first)
            embed.bind({"time": self.address["time"] + time.itemsize * first, "film": films})
            embed.reshape({"S": min(SCHEDULE_ROWS, table.steps - first)})
            embed.launch()
        self.stream.synchronize()
        embed.free()
        self.runtime.drop("time_embedding")


def _bytes(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    return ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape_at(sizes))


def _region(network: str, tensor: Tensor) -> str:
    """Name of the memory where a network's input or output lies."""
    return REGIONS.get((network, tensor.name), tensor.name)
