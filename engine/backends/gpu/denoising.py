"""Segments that are denoised: their buffers, and what each launches.

With guidance, the decoder runs every song twice in one pass: with its notes, and attending to nothing but zeros, which
is the same as no attention to notes at all. So the launches of a step are no more than without guidance.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from notewave.backends.device.contracts import FILM, film_row, film_rows
from notewave.backends.device.driver import Graph
from notewave.backends.device.shapes import SCHEDULE_ROWS
from notewave.backends.executor import Capture
from notewave.backends.gpu.program import Issue, Program, Repeated
from notewave.backends.gpu.shape import RunShape
from notewave.backends.gpu.shared import Shared
from notewave.backends.gpu.workspace import Region, Workspace, tensor_bytes
from notewave.kernels.layout import ROW, STEP_KERNELS, ordered, table_rows
from notewave.kernels.loader import blocks
from notewave.sampling.job import Job
from notewave.sampling.samplers import SamplerTable
from notewave.sound.mel import FRAMES, MELS

GRAPH_STEPS = 128  # denoising steps in one CUDA graph at most; more go into several, launched one after another
SIZE = FRAMES * MELS  # elements of one song's mel


class DenoisingWorkspace(Workspace):
    """Every buffer of a run whose segments, or windows of live play, are denoised."""

    regions = MappingProxyType({("context_encoder", "mel"): "context_mel", ("vocoder", "mel"): "log_mel"})

    def __init__(self, shared: Shared, shape: RunShape) -> None:
        """Raises BackendError, with sizes, when there is not enough memory."""
        super().__init__(shared, shape)
        rows = film_rows(shared.voice)
        self.address |= {film_row(row): self.address["film"] + self.film_bytes() * row // rows for row in range(rows)}
        self._schedule = b""  # the table whose FiLM is on the device

    def begin(self, job: Job) -> None:
        """Put the schedule on the device, unless it is there, and forget the last song."""
        schedule = job.table.time.tobytes() + job.table.rows.tobytes()
        if schedule != self._schedule:
            self._put_schedule(job.table)
            self._schedule = schedule
        before = self.slots[0].parts[0].mel
        regions = ("context_mel", "x") if self.shape.windows else ("context_mel",)
        before[...] = self.shared.voice.mel_range.silence if job.context is None else job.context
        for region in regions:
            self.device.upload(self.address[region], before, self.stream)

    def without_notes(self, tokens: int) -> list[Region]:
        """What the decoder attends to for songs without their notes, at this length; all zero, it adds nothing."""
        given, taken = (self.sizes(network, tokens) for network in ("cross_attention", "decoder"))
        regions = []
        for tensor in self.runtime.contracts["cross_attention"].outputs:
            begin, end = (tensor_bytes(tensor, sizes) for sizes in (given, taken))
            regions.append(Region(self.address[tensor.name] + begin, end - begin))
        return regions

    @property
    def unconditional(self) -> int:
        """Address of the decoder's predictions for songs without their notes; 0 where there are none."""
        (prediction,) = self.runtime.contracts["decoder"].outputs
        songs = {"B": self.shape.batch}
        return self.address["prediction"] + tensor_bytes(prediction, songs) if self.shape.guided else 0

    def film_bytes(self, steps: int = 1) -> int:
        """Size of the FiLM scales and shifts of some steps."""
        (film,) = self.runtime.contracts["time_embedding"].outputs
        return tensor_bytes(film, {"S": steps})

    def _sizes(self) -> dict[str, int]:
        live = dict.fromkeys(("played", "next_context") if self.shape.windows else (), self.shape.mel_bytes)
        return {
            "context_mel": self.shape.mel_bytes,  # where no network takes it, too
            **{name: size for name, size in self._tensor_sizes().items() if not name.startswith(FILM)},
            "film": self.film_bytes(),
            "films": self.film_bytes(self.shape.steps),
            "time": 4 * self.shape.steps,
            **live,
            "x0_previous": self.shape.mel_bytes,
            "rows": ROW.itemsize * self.shape.steps,
        }

    def _scratching(self) -> tuple[str, ...]:
        return (*self.networks, "time_embedding")

    def _purpose(self) -> str:
        return f"{super()._purpose()} at {self.shape.steps} steps"

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


class DenoisingProgram(Program):
    """All launches of one segment, at one padded length of its tokens."""

    _space: DenoisingWorkspace

    def __init__(self, space: DenoisingWorkspace, bucket: int) -> None:
        super().__init__(space, bucket)
        self._without_notes = space.without_notes(bucket) if space.shape.guided else []
        self._blocks = blocks(SIZE, space.shape.batch)
        self._film_bytes = space.film_bytes()
        (prediction,) = space.runtime.contracts["decoder"].outputs
        kernel = STEP_KERNELS[prediction.dtype]
        self._step = space.kernels[kernel]
        films, rows = space.address["films"], space.address["rows"]
        steps = [
            (films + self._film_bytes * step, self._step_arguments(kernel, rows + ROW.itemsize * step))
            for step in range(space.shape.steps)
        ]
        self._parts = [steps[first : first + GRAPH_STEPS] for first in range(0, len(steps), GRAPH_STEPS)]
        issued = [functools.partial(self._issue, part) for part in range(len(self._parts))]
        self._segment = Repeated(space, issued, self._record)

    def launch(self) -> None:
        """See ``Program.launch``."""
        self._segment.launch()

    def free(self) -> None:
        """See ``Program.free``."""
        self._segment.free()
        super().free()

    def _record(self, parts: Sequence[Issue]) -> list[Graph]:
        graphs = super()._record(parts)
        if graphs:
            self._recorder.launches[self._space.shape.steps] = sum(graph.nodes for graph in graphs)
        return graphs

    def _issue(self, part: int) -> None:
        """Launch a part of the segment, in order; nothing here allocates, waits or computes."""
        space, device, stream, address = self._space, self._space.device, self._space.stream, self._space.address
        if part == 0:
            self._begin()
        for film, arguments in self._parts[part]:
            device.copy(address["film"], film, self._film_bytes, stream)
            if space.shape.guided:
                device.copy(address["x"] + space.shape.mel_bytes, address["x"], space.shape.mel_bytes, stream)
            self._decoder.launch()
            self._step(self._blocks, stream, *arguments)
        if part == len(self._parts) - 1:
            self._end()

    def _begin(self) -> None:
        """Launch what comes before the first step: encoders, noise."""
        space, stream, address = self._space, self._space.stream, self._space.address
        for region in self._without_notes:
            space.device.clear(region.address, region.size, stream)
        for encoder in self._encoders:
            encoder.launch()
        if space.shape.draws:
            space.device.copy(address["x"], address["noise"], space.shape.mel_bytes, stream)
        else:
            given = ordered("philox_normal", out=address["x"], control=address["control"], draw=0, size=SIZE)
            space.kernels["philox_normal"](self._blocks, stream, *given)

    def _end(self) -> None:
        """Launch what comes after the last step: the finished mel becomes the next segment's context."""
        address = self._space.address
        given = ordered("mel_to_context", mel=address["x"], context=address["context_mel"], size=SIZE)
        self._space.kernels["mel_to_context"](self._blocks, self._space.stream, *given)

    def _step_arguments(self, kernel: str, row: int) -> tuple[float, ...]:
        """Arguments of the sampler's kernel for one row of the table."""
        address, shape = self._space.address, self._space.shape
        return ordered(
            kernel,
            **{name: address[name] for name in ("x", "x0_previous", "prediction", "control")},
            unconditional=self._space.unconditional,
            noise=address["noise"] if shape.draws else 0,
            played=address["played"] if shape.windows else 0,
            row=row,
            size=SIZE,
        )
