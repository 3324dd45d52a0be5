"""What a segment, or a window of live play, launches: recorded once and launched again and again.

With guidance, the decoder runs every song twice in one pass: with its notes, and attending to nothing but zeros, which
is the same as no attention to notes at all. So the launches of a step are no more than without guidance.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from notewave.backends.device.driver import Graph
from notewave.backends.executor import Capture, Executor
from notewave.backends.gpu.shape import RunShape, Told
from notewave.backends.gpu.shared import Shared
from notewave.backends.gpu.workspace import SEGMENT_NETWORKS, Slot, Workspace
from notewave.errors import BackendError
from notewave.kernels.layout import ROW, STEP_KERNELS, ordered
from notewave.kernels.loader import blocks
from notewave.sampling.job import Job
from notewave.song.codec import pad_tokens
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS

GRAPH_STEPS = 128  # denoising steps in one CUDA graph at most; more go into several, launched one after another
SIZE = FRAMES * MELS  # elements of one song's mel


class Program:
    """All launches of one segment at one padded length: eagerly at first, then as captured graphs."""

    def __init__(self, space: Workspace, bucket: int) -> None:
        self._space, self._recorder = space, space.shared.recorder
        self._networks = self._open(bucket)
        if self._recorder.capture is Capture.OURS and not all(map(self._is_capturable, SEGMENT_NETWORKS)):
            self._recorder.leave_to_engine()
            self._close()
            self._networks = self._open(bucket)
        *self._encoders, self._decoder = (self._networks[name] for name in SEGMENT_NETWORKS)
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
        self._graphs: list[Graph] = []  # one a part, or none
        self._runs = 0

    def launch(self) -> None:
        """Start the segment whose inputs were sent; does not wait."""
        space, parts = self._space, [functools.partial(self._issue, part) for part in range(len(self._parts))]
        warm = self._runs >= space.runtime.warm_runs
        if warm and not self._graphs and self._recorder.capture is Capture.OURS:
            self._graphs = self._record(parts)
        for graph in self._graphs:
            graph.launch(space.stream)
        if self._graphs:
            return
        for part in parts:
            part()
        self._runs += 1
        if self._runs == 1:
            space.runtime.keep()

    def _record(self, parts: Sequence[Callable[[], None]]) -> list[Graph]:
        """A graph of each part, or none where that is refused."""
        space = self._space
        graphs = self._recorder.record(space.device, space.stream, parts)
        if graphs:
            self._recorder.launches[space.shape.steps] = sum(graph.nodes for graph in graphs)
        return graphs

    def free(self) -> None:
        """Give the memory of graphs and networks back."""
        for graph in self._graphs:
            graph.free()
        self._close()
        vars(self).clear()

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

    def _open(self, bucket: int) -> dict[str, Executor]:
        space, networks = self._space, {}
        for name in space.networks:
            networks[name] = space.runtime.open(name, space.stream, space.scratch, self._recorder.capture)
            networks[name].bind(space.bindings(name))
            networks[name].reshape(space.sizes(name, bucket))
        return networks

    def _is_capturable(self, network: str) -> bool:
        return self._networks[network].is_capturable()

    def _close(self) -> None:
        for network in self._networks.values():
            network.free()

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


class Denoiser:
    """A workspace and the programs of a kind in it, one a bucket of token lengths: used by one run after another."""

    def __init__(self, shared: Shared, shape: RunShape, kind: type[Program]) -> None:
        self.space = Workspace(shared, shape)
        self._kind = kind
        self._programs: dict[int, Program] = {}

    def submit(self, job: Job, told: Told, tokens: Sequence[Tokens]) -> Slot:
        """Begin a segment or window; returns where the host holds it. Does not wait, see ``Run.submit``."""
        space, length = self.space, max(map(len, tokens))
        bucket = next((size for size in space.buckets if size >= length), 0)
        if not bucket:
            where = f"the window at frame {told.frame}" if space.shape.windows else f"segment {told.segment}"
            raise BackendError(f"{where} has {length} tokens; the plans take {space.buckets[-1]}. Thin out its notes.")
        if bucket not in self._programs:
            self._programs[bucket] = self._kind(space, bucket)
        slot = space.slots[told.segment % len(space.slots)]
        slot.collect()
        space.stage(slot, job, told, pad_tokens(tokens, bucket))
        self._programs[bucket].launch()
        return slot

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        for program in self._programs.values():
            program.free()
        self._programs.clear()
        self.space.free()
