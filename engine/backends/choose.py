"""Which backend runs a voice: the one that was asked for, or the best that works here."""

from __future__ import annotations

import logging
from typing import Any

from notewave.backends.protocol import Backend
from notewave.checks import quoted
from notewave.errors import ArgumentError, BackendError
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)

AUTO = ("tensorrt", "cuda", "cpu")  # the best first
BACKENDS = ("auto", *AUTO)


def open_backend(name: str, voice: Voice, threads: int | None, options: dict[str, Any]) -> Backend:
    """Backend by name; "auto" takes the first of AUTO that works and logs why. Raises BackendError where none does."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ArgumentError(f"there is no backend {quoted(name)}. Choose one of {', '.join(BACKENDS)}.")
    if name != "auto":
        return _open(name, voice, threads, options)
    for candidate in AUTO[:-1]:
        try:
            backend = _open(candidate, voice, threads, options)
        except BackendError as error:
            log.info("backend auto: not %s, since %s", candidate, error)
        else:
            log.info("backend auto: %s", candidate)
            return backend
    log.info("backend auto: %s", AUTO[-1])
    if options:
        log.warning("the options %s are of no use to backend %s", ", ".join(options), AUTO[-1])
    return _open(AUTO[-1], voice, threads, {})


def _open(name: str, voice: Voice, threads: int | None, options: dict[str, Any]) -> Backend:
    if name == "cpu":
        from notewave.backends.ort.backend import OrtBackend

        if options:
            raise BackendError(f"backend 'cpu' has no options, and was given {', '.join(map(quoted, options))}.")
        return OrtBackend(voice, threads)
    opened: Backend
    if name == "cuda":
        from notewave.backends.ort.providers import check_provider

        check_provider()  # before what only a GPU needs is imported
        try:
            from notewave.backends.ort.executors import open_cuda
        except ImportError as error:
            raise BackendError(
                f"backend 'cuda' makes its graphs with {error.name}, which is not installed. Install notewave[cuda]."
            ) from error
        opened = open_cuda(voice, options)
    else:
        from notewave.backends.trt.backend import open_tensorrt

        opened = open_tensorrt(voice, options)
    if threads is not None:
        log.warning("threads=%d is of no use to backend %s, which runs on the GPU", threads, name)
    return opened
