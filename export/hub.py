"""The Hugging Face hub: what names a repository there, and its client's errors as ours; needs no PyTorch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from notewave.checks import is_integer, quoted, shown
from notewave.errors import VoiceError

MAX_BYTES = 16 << 30  # of all files fetched of a repository: ten times the published size in float32
MAX_REASON = 500  # characters of what the hub's client says


@contextlib.contextmanager
def reaching(repository: str) -> Iterator[None]:
    """Ask the hub for a repository in the block; what its client raises there, of many types, is raised as VoiceError.

    A client that is not installed is no failure of the hub's.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise VoiceError(
            f"{quoted(repository)} is no folder here, and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {_reason(error)}). Check the name and the network, or give a local folder."
        ) from error


def list_files(repository: str) -> tuple[str | None, dict[str, Any]]:
    """The newest revision of a repository, and its files by name, with the bytes of each as the hub says them.

    Raises VoiceError for what names none, and where the hub does not answer.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise VoiceError(
            f"there is no voice or checkpoint at {quoted(repository)}: nothing is there, and it is no hub id like "
            "owner/name. Check the path."
        )
    with reaching(repository):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, files_metadata=True)
        return info.sha, {file.rfilename: file.size for file in info.siblings or ()}


def check_sizes(repository: str, sizes: Mapping[str, Any]) -> None:
    """Raise VoiceError for files that are too large together, or whose sizes the hub does not say."""
    known = [size for size in sizes.values() if is_integer(size, 0, MAX_BYTES)]
    if len(known) < len(sizes) or sum(known) > MAX_BYTES:
        raise VoiceError(
            f"what is needed of {quoted(repository)} on the Hugging Face hub has more than {MAX_BYTES >> 30} GiB, or "
            "no size: it is not fetched. Check the name."
        )


def _reason(error: Exception) -> str:
    """What an error says, in one line of bounded length: a server may have written it."""
    text = shown(" ".join(str(error).split()))
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."
