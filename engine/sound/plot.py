"""Pictures of mels, for eyes; needs matplotlib, which rendering does not."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.checks import quoted, shown
from notewave.errors import OutputError
from notewave.files import atomic_file, check_writable
from notewave.sound.mel import FRAMES, HOP, MEL_HIGH_HZ, MELS, SAMPLE_RATE, SEGMENT_SECONDS, mel_centres

SUFFIXES = (".png", ".svg", ".pdf")
MAX_COLUMNS = 4800  # of an image: several a pixel; matplotlib takes 6 kB for each


def save_mel_picture(mels: Mapping[str, NDArray[np.float32]], path: str | os.PathLike[str]) -> None:
    """Draw log-mels [T, M] one above the other, by title, with segment boundaries, as PNG, SVG or PDF by suffix.

    Raises OutputError when matplotlib is missing, there is nothing to draw or the file cannot be written.
    """
    check_picture(path)
    _check_mels(mels, path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4 * len(mels)), layout="constrained")
    axes = figure.subplots(len(mels), squeeze=False)[:, 0]
    ticks_hz = np.array([250, 500, 1000, 2000, 4000, MEL_HIGH_HZ])
    for axis, (title, mel) in zip(axes, mels.items(), strict=True):
        seconds = len(mel) * HOP / SAMPLE_RATE
        image = axis.imshow(
            _thinned(mel).T, origin="lower", aspect="auto", cmap="magma", vmin=-8, vmax=4, extent=(0, seconds, 0, MELS)
        )
        axis.set_yticks(np.interp(ticks_hz, mel_centres(), np.arange(MELS) + 0.5), [f"{hz:g}" for hz in ticks_hz])
        axis.set_xticks(np.arange(1, len(mel) // FRAMES) * SEGMENT_SECONDS, minor=True)
        axis.grid(which="minor", axis="x", color="white", alpha=0.25, linewidth=0.6)
        axis.set_title(shown(title), parse_math=False)
        axis.set(xlabel="time (s); faint lines: segments", ylabel="frequency (Hz)")
        figure.colorbar(image, ax=axis, label="log magnitude (nats)")
    with atomic_file(path) as temporary, temporary.open("wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a title: it is drawn as a box
        figure.savefig(file, format=_suffix(path)[1:], dpi=100)


def _thinned(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A log-mel [T, M] of at most MAX_COLUMNS frames: means of neighbours where there are more."""
    if len(mel) <= MAX_COLUMNS:
        return mel
    starts = np.arange(0, len(mel), -(-len(mel) // MAX_COLUMNS))
    return (np.add.reduceat(mel, starts) / np.diff(starts, append=len(mel))[:, None]).astype(np.float32)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise the OutputError now that ``save_mel_picture`` would raise after the work."""
    check_writable(path)
    if (suffix := _suffix(path)) not in SUFFIXES:
        raise OutputError(
            f"{shown(path)} was not drawn: {shown(suffix) or 'no suffix'} is no picture. Use {', '.join(SUFFIXES)}."
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise _not_drawn(path, "matplotlib is not installed. Install notewave[plot].")


def _check_mels(mels: Mapping[str, NDArray[np.float32]], path: str | os.PathLike[str]) -> None:
    """Refuse what is no mel."""
    if not mels:
        raise _not_drawn(path, "there are no mels. Give one.")
    for title, mel in mels.items():
        if not isinstance(mel, np.ndarray) or mel.ndim != 2 or not mel.size or mel.dtype.kind not in "fiu":
            raise _not_drawn(path, f"the mel {quoted(title)} is {quoted(mel)}. Give numbers [T, M], a frame or more.")


def _not_drawn(path: str | os.PathLike[str], reason: str) -> OutputError:
    return OutputError(f"{shown(path)} was not drawn: {reason}")


def _suffix(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()
