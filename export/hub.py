"""The Hugging Face hub: what names a repository there, and its client's errors as ours; needs no PyTorch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from notewave.checks import quoted
from notewave.errors import VoiceError


@contextlib.contextmanager
def reaching(repository: str) -> Iterator[None]:
    """Ask the hub for a repository in the block. Raises VoiceError for what names none, and for whatever fails there.

    What the block raises is told as the hub's failure: its client raises many types of its own.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise VoiceError(
            f"there is no voice or checkpoint at {quoted(repository)}: nothing is there, and it is no hub id like "
            "owner/name. Check the path."
        )
    try:
        yield
    except Exception as error:
        raise VoiceError(
            f"{repository!r} is no folder here, and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Check the name and the network, or give a local folder."
        ) from error
