"""What the GPU's backend asks of whatever runs a network on device memory. Each engine is one implementation.

Networks are those of ``notewave.backends.device.contracts``, letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from notewave.voice.contracts import Contract


class Scratch(NamedTuple):
    """Device memory that networks run in, one after another on one stream."""

    address: int
    size: int  # bytes


class Capture(enum.Enum):
    """Who records a segment's launches in CUDA graphs."""

    OURS = "the backend, a whole segment in a graph or a few"
    ENGINE = "the engine, each network by itself, if it can"
    NOBODY = "nobody, since it was not wanted"


class Executor(Protocol):
    """A network at fixed addresses on one stream."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs and outputs lie, by name. Raises BackendError for an address that it does not take."""

    def reshape(self, sizes: Mapping[str, int]) -> None:
        """Set the sizes of the inputs' dynamic axes, by letter.

        Raises BackendError for sizes that it does not take, or at which it would write more than its contract says.
        """

    def is_capturable(self) -> bool:
        """Whether its launches can be recorded in a CUDA graph of ours."""

    def launch(self) -> None:
        """Enqueue it on its stream; does not wait. Raises BackendError when it cannot be run."""

    def free(self) -> None:
        """Give its memory back; it must have finished."""


class Runtime(Protocol):
    """A voice's networks in one engine on one GPU."""

    name: str  # the backend's
    contracts: Mapping[str, Contract]  # of each network, with the data types of what it takes and gives
    warm_runs: int  # of a shape, before its launches can be captured: they may allocate
    stream_bound: bool  # whether a network, once opened, belongs to its stream: another stream opens it once more

    def scratch_bytes(self, networks: Sequence[str]) -> int:
        """Memory that these networks need while they run, one after another; 0 for an engine that has its own."""

    def open(self, network: str, stream: Any, scratch: Scratch, capture: Capture) -> Executor:
        """A network made ready to run on a stream, within ``scratch``. Raises BackendError when it cannot be."""

    def leave(self, stream: Any) -> None:
        """Give back what was opened for a stream alone, on which nothing is to run any more."""

    def drop(self, network: str) -> None:
        """Give a network's memory back; it is loaded again when it is next opened."""

    def keep(self) -> None:
        """Keep what was compiled for shapes that ran for the first time, so that the next process need not do it."""

    def free(self) -> None:
        """Give all memory back, within the GPU's context."""
