"""One piece of memory for everything: named regions laid out once, on the device and in page-locked host memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from notewave.backends.device.driver import CudaDevice

ALIGNMENT = 256  # bytes: what TensorRT asks of its memory, and more than 128-bit access does


class Layout:
    """Where named regions lie in one piece of memory."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """sizes: bytes of each region."""
        self.offsets: dict[str, int] = {}
        self.total = 0
        for name, size in sizes.items():
            self.offsets[name] = self.total
            self.total += -(-size // ALIGNMENT) * ALIGNMENT


class Slab:
    """Device memory, taken in one piece."""

    def __init__(self, device: CudaDevice, layout: Layout, purpose: str) -> None:
        """Raises BackendError, with sizes, when the device has not enough."""
        self._memory = device.allocate(layout.total, purpose)
        base = int(self._memory)
        self.address = {name: base + offset for name, offset in layout.offsets.items()}

    def free(self) -> None:
        """Give the memory back; nothing may run on it any more."""
        self._memory.free()


class Staging:
    """Page-locked host memory with the layout of its copy on the device."""

    def __init__(self, device: CudaDevice, layout: Layout) -> None:
        self.memory = device.pinned(layout.total)
        self.memory.fill(0)
        self._offsets = layout.offsets

    def view(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A region, or its beginning, as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = self._offsets[name]
        return self.memory[start : start + size].view(dtype).reshape(shape)
