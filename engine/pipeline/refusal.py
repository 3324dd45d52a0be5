"""How the pipeline refuses: errors that code written for diffusers catches too, and packages that are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from notewave.errors import ArgumentError, ToolError


class PipelineError(ArgumentError, ValueError):
    """An argument that the pipeline refuses; also the ValueError with which diffusers refuses arguments."""


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Say as ToolError which of our extras has a package that is missing in the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "cpu" if error.name == "onnxruntime" else "export"
        raise ToolError(
            f"{error.name} is not installed, which the pipeline needs here. Install notewave[{extra}]."
        ) from error
