"""Tensors that lie as plain numbers in a regular file, held open: read when they are wanted, within its bounds.

Nothing is mapped into memory: a mapped file that someone cuts short ends the process.
"""

from __future__ import annotations

import io
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from notewave.errors import VoiceError
from notewave.inputs import open_regular

MAX_TENSORS = 1 << 13  # in one file: MAX_LAYERS layers have half of that
MAX_HEADER_BYTES = 1 << 20  # of what a file says about its tensors: some 150 bytes for each
MAX_AXES = 8
MAX_SIZE = 1 << 40  # of an axis


class OpenFile:
    """A regular file of a checkpoint, read through one descriptor whatever becomes of its path."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.bytes = os.fstat(descriptor).st_size
        self._stream = io.FileIO(descriptor)
        self._close = weakref.finalize(self, self._stream.close)

    @classmethod
    def find(cls, path: Path) -> OpenFile | None:
        """The file at a path, at the end of links, or None where nothing is.

        Raises VoiceError for what is no regular file, or cannot be opened.
        """
        try:
            return cls(path, open_regular(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise VoiceError(f"{path} cannot be read: {error.strerror or error}. Check the checkpoint.") from error

    def read(self, start: int, size: int) -> bytes:
        """So many bytes from one on. Raises VoiceError where the file does not have them."""
        self._check(start, size)
        content = bytearray(size)
        self._fill(start, memoryview(content))
        return bytes(content)

    def read_tensor(
        self, dtype: torch.dtype, start: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> Tensor:
        """The tensor whose first number lies at a byte; strides are in numbers, those of C order where none are given.

        Raises VoiceError where the file does not have it.
        """
        count = math.prod(shape) if strides is None else span(shape, strides)
        self._check(start, count * dtype.itemsize)
        numbers = torch.empty(count, dtype=dtype)
        self._fill(start, numbers.view(torch.uint8).numpy().data)
        return numbers.reshape(shape) if strides is None else numbers.as_strided(shape, strides)

    def _check(self, start: int, size: int) -> None:
        if min(start, size) < 0 or start + size > self.bytes:
            raise self._broken(f"has {self.bytes} bytes, of which {size} from {start} on are wanted")

    def _fill(self, start: int, rest: memoryview) -> None:
        try:
            self._stream.seek(start)
            while rest:
                if not (size := self._stream.readinto(rest)):
                    raise self._broken("was cut short while it was read")
                rest = rest[size:]
        except OSError as error:
            raise self._broken(f"cannot be read ({error.strerror or error})") from error

    def _broken(self, fault: str) -> VoiceError:
        return VoiceError(f"{self.path} {fault}. Download it again.")


def is_shape(value: Any) -> bool:
    """Whether untrusted content is a shape that can be: a list or tuple of a few sizes, none of them absurd."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= MAX_AXES
        and all(type(size) is int and 0 <= size <= MAX_SIZE for size in value)
    )


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many numbers lie from a tensor's first to its last, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
