"""What all runs of a backend share, and who of them records launches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from notewave.backends.device.driver import CudaDevice, Graph, Kernel
from notewave.backends.executor import Capture, Runtime
from notewave.errors import BackendError
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)


class Recorder:
    """Decides who records launches in graphs, for all runs of a backend, and records ours."""

    def __init__(self, wanted: bool) -> None:
        self.capture = Capture.OURS if wanted else Capture.NOBODY
        self.launches: dict[int, int] = {}  # of a recorded segment, by its denoising steps

    def leave_to_engine(self) -> None:
        """The engine's launches cannot be recorded by others here."""
        log.info("launches cannot be captured here; leaving graphs to the engine")
        self.capture = Capture.ENGINE

    def record(self, device: CudaDevice, stream: Any, parts: Sequence[Callable[[], None]]) -> list[Graph]:
        """A graph of each part of a segment, or none where recording is refused, which then is not asked for again."""
        try:
            return self.record_or_raise(device, stream, parts)
        except BackendError as error:
            log.warning("launching without CUDA graphs: %s", error)
            self.capture = Capture.ENGINE
            return []

    def record_or_raise(self, device: CudaDevice, stream: Any, parts: Sequence[Callable[[], None]]) -> list[Graph]:
        """A graph of each part; tried twice, for other work on the GPU can spoil a capture. Raises BackendError."""
        try:
            return [device.capture(stream, part) for part in parts]
        except BackendError as error:
            log.info("capturing once more: %s", error)
            return [device.capture(stream, part) for part in parts]


@dataclass(frozen=True)
class Shared:
    """What all runs of a backend share."""

    voice: Voice
    device: CudaDevice
    runtime: Runtime  # the voice's networks on the device
    kernels: dict[str, Kernel]  # the project's own, loaded there
    recorder: Recorder
    streams: list[Any] = field(default_factory=list)  # spare ones, where networks were opened that belong to them
