"""Segments that are written frame by frame, by an autoregressive decoder: their buffers, and what each part launches.

The host waits for no frame: what one leaves for the next stays on the device, and a part launches what every part does.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from types import MappingProxyType

from notewave.backends.device.buffers import ALIGNMENT
from notewave.backends.device.contracts import KEPT_FRAMES
from notewave.backends.device.shapes import ITEM_BYTES
from notewave.backends.gpu.program import Program, Repeated
from notewave.backends.gpu.shape import RunShape
from notewave.backends.gpu.shared import Shared
from notewave.backends.gpu.workspace import Workspace
from notewave.kernels.layout import ordered
from notewave.kernels.loader import blocks
from notewave.sampling.job import Job
from notewave.sound.mel import MELS
from notewave.voice.contracts import own_keys_values

LINES_MOST = (1 << 16) - 1  # of a grid along y
NUMBER_BYTES = 8  # of a frame's number
UNIT_BYTES = 2  # in which the kernel counts rows of keys and values, whatever they hold


class FrameWorkspace(Workspace):
    """Every buffer of a run whose segments are written frame by frame.

    The decoder's own keys and values of all layers lie in one region, those of the frame at hand in another.
    """

    regions = MappingProxyType({("decoder", "x"): "before", ("decoder", "frame"): "number"})

    def __init__(self, shared: Shared, shape: RunShape) -> None:
        """Raises BackendError, with sizes, when there is not enough memory."""
        size, (_, new, *_) = shared.voice.dimensions, shared.runtime.contracts["decoder"].outputs
        self.layers = 2 * size.decoder_layers  # of keys, and of values
        self.rows = shape.batch * size.heads  # of a layer
        self.row_bytes = ITEM_BYTES[new.dtype] * size.head_width
        layer = {"new": self.rows * self.row_bytes, "own": self.rows * self.row_bytes * KEPT_FRAMES}  # bytes
        self.strides = {region: -(-held // ALIGNMENT) * ALIGNMENT for region, held in layer.items()}  # to the next
        super().__init__(shared, shape)
        for region, stride in self.strides.items():
            names = [tensor.name for tensor in own_keys_values(size, KEPT_FRAMES, f"{region}_")]
            self.address |= {name: self.address[region] + stride * layer for layer, name in enumerate(names)}

    def begin(self, job: Job) -> None:
        """Forget the last song: its keys and values may be no numbers, which even what is masked must not be."""
        self.device.clear(self.address["own"], self.layers * self.strides["own"], self.stream)

    def _sizes(self) -> dict[str, int]:
        kept = {region: self.layers * stride for region, stride in self.strides.items()}
        apart = tuple(f"{region}_" for region in kept)
        passed_on = {name: size for name, size in self._tensor_sizes().items() if not name.startswith(apart)}
        return {**passed_on, **kept, "x": self.shape.mel_bytes, "begun": NUMBER_BYTES}


class FrameProgram(Program):
    """All launches of one segment, at one padded length of its tokens: what comes first, and those of each part."""

    _space: FrameWorkspace

    def __init__(self, space: FrameWorkspace, bucket: int) -> None:
        super().__init__(space, bucket)
        lines = space.shape.batch + space.layers * space.rows
        self._grid = blocks(max(MELS, space.row_bytes // UNIT_BYTES), min(lines, LINES_MOST))
        self._kept = [self._arguments(offset) for offset in range(space.shape.frames)]
        self._beginning = Repeated(space, [self._begin], self._record)
        self._part = Repeated(space, [self._write], self._record)

    def launch(self) -> None:
        """See ``Program.launch``."""
        self._beginning.launch()
        self.go_on()

    def go_on(self) -> None:
        """See ``Program.go_on``."""
        self._part.launch()
        if self._beginning.nodes and self._part.nodes:
            launches = self._beginning.nodes + self._space.shape.parts * self._part.nodes
            self._recorder.launches[self._space.shape.steps] = launches

    def free(self) -> None:
        """See ``Program.free``."""
        self._beginning.free()
        self._part.free()
        super().free()

    def _begin(self) -> None:
        """Launch the encoders; a segment's first frame follows one of zeros."""
        space, address = self._space, self._space.address
        for encoder in self._encoders:
            encoder.launch()
        space.device.clear(address["before"], 4 * MELS * space.shape.batch, space.stream)
        space.device.clear(address["number"], NUMBER_BYTES, space.stream)

    def _write(self) -> None:
        """Launch a part's frames."""
        space, address = self._space, self._space.address
        space.device.copy(address["begun"], address["number"], NUMBER_BYTES, space.stream)
        for arguments in self._kept:
            self._decoder.launch()
            space.kernels["keep_frame"](self._grid, space.stream, *arguments)

    def _arguments(self, offset: int) -> tuple[float, ...]:
        """Arguments of the kernel for a frame of a part."""
        space, address = self._space, self._space.address
        return ordered(
            "keep_frame",
            **{name: address[name] for name in ("prediction", "before", "begun")},
            mel=address["x"],
            new_rows=address["new"],
            own_rows=address["own"],
            frame=address["number"],
            offset=offset,
            songs=space.shape.batch,
            frames=space.shape.frames,
            mels=MELS,
            layers=space.layers,
            rows=space.rows,
            kept=KEPT_FRAMES,
            size=space.row_bytes // UNIT_BYTES,
            new_stride=space.strides["new"] // UNIT_BYTES,
            own_stride=space.strides["own"] // UNIT_BYTES,
        )
