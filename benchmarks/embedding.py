"""An embedding of sound that others use: musicnn (Pons & Serra 2019), a tagger of music, where it is installed.

Its wheel (ISC licence) has its weights, as a checkpoint of TensorFlow, which is read here without TensorFlow. Of its
models this is MTT_musicnn, trained on MagnaTagATune; the embedding is its last layer but one.

Shapes: P patches of 3 s, F frames, B bins, E = 200 numbers of the embedding; K and W a kernel's frames and bins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.sound.mel import SAMPLE_RATE
from notewave.voice.wire import varint

HOP, FFT, BINS = 256, 512, 96  # musicnn's spectrogram at SAMPLE_RATE: samples, samples, mel bins
PATCH_FRAMES, PATCH_STEP = 187, 62  # 3 s, every second
EPSILON = 1e-3  # of batch normalisation
MODEL = "MTT_musicnn"
FOOTER_BYTES = 48  # of a checkpoint's index
FLOAT32 = 1  # TensorFlow's number of the type

_Floats = NDArray[np.float32]


class Musicnn:
    """The network, on the CPU in NumPy."""

    def __init__(self, folder: Path) -> None:
        """folder: the checkpoint's."""
        self._weights = read_checkpoint(folder)

    def __call__(self, samples: NDArray[np.floating]) -> NDArray[np.float64]:
        """Embedding float64 [P, E] of mono audio [n] at SAMPLE_RATE."""
        return np.array([self._layers(patch)[0] for patch in self._patches(samples)], np.float64).reshape(-1, 200)

    def tags(self, samples: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probability [50] of each of its tags, the mean over the patches of mono audio [n]."""
        logits = np.array([self._layers(patch)[1] for patch in self._patches(samples)], np.float64)
        return np.asarray((1 / (1 + np.exp(-logits))).mean(axis=0))

    def _patches(self, samples: NDArray[np.floating]) -> Iterator[_Floats]:
        """Its spectrogram's patches [PATCH_FRAMES, B], in float32: its own half precision overflows on loud sound."""
        import librosa

        power = librosa.feature.melspectrogram(
            y=np.asarray(samples, np.float32), sr=SAMPLE_RATE, hop_length=HOP, n_fft=FFT, n_mels=BINS
        ).T
        spectrogram = np.log10(10000 * power + 1).astype(np.float32)
        for start in range(0, len(spectrogram) - PATCH_FRAMES + 1, PATCH_STEP):
            yield spectrogram[start : start + PATCH_FRAMES]

    def _layers(self, patch: _Floats) -> tuple[_Floats, _Floats]:
        """Of a patch [F, B] the embedding [E] and the tags' logits [50]."""
        bins = self._normalise(patch[..., None], 0)[..., 0]
        padded = np.pad(bins, ((3, 3), (0, 0)))
        timbral = [self._loudest_bin(padded, layer) for layer in (0, 1)]
        temporal = []
        for layer, frames in ((2, 128), (3, 64), (4, 32)):
            padded = np.pad(bins, (((frames - 1) // 2, frames // 2), (0, 0)))
            temporal.append(self._loudest_bin(padded, layer))
        front = np.concatenate([*timbral, *temporal], axis=1)
        middle = [self._dense_in_time(front, 5)]
        for layer in (6, 7):
            middle.append(self._dense_in_time(middle[-1], layer) + middle[-1])
        features = np.concatenate([front, *middle], axis=1)
        pooled = self._normalise(np.stack([features.max(axis=0), features.mean(axis=0)], axis=1).ravel(), 9)
        embedding = self._normalise(np.maximum(self._affine(pooled, "dense"), 0), 10)
        return embedding, self._affine(embedding, "dense_1")

    def _loudest_bin(self, bins: _Floats, layer: int) -> _Floats:
        """A convolution, normalised, and its maximum over bins: [F, B] to [F - K + 1, filters].

        Rectifying and normalising come after the maximum, or where they turn the order round the minimum.
        """
        sums = self._convolve(bins, layer)
        rising = self._weights[_numbered("batch_normalization", layer + 1) + "/gamma"] >= 0
        return self._normalise(np.maximum(np.where(rising, sums.max(axis=1), sums.min(axis=1)), 0), layer + 1)

    def _dense_in_time(self, features: _Floats, layer: int) -> _Floats:
        """A convolution over 7 frames of all features at once, normalised: [F, B] to [F, 64]."""
        sums = self._convolve(np.pad(features, ((3, 3), (0, 0))), layer)[:, 0]
        return self._normalise(np.maximum(sums, 0), layer + 1)

    def _convolve(self, bins: _Floats, layer: int) -> _Floats:
        """A convolution without padding: [F, B] to [F - K + 1, B - W + 1, filters]."""
        kernel = self._weights[_numbered("conv2d", layer) + "/kernel"][:, :, 0]  # [K, W, filters]
        windows = np.lib.stride_tricks.sliding_window_view(bins, kernel.shape[:2])
        sums: _Floats = windows.reshape(-1, kernel[..., 0].size) @ kernel.reshape(-1, kernel.shape[2])
        return (sums + self._weights[_numbered("conv2d", layer) + "/bias"]).reshape(*windows.shape[:2], -1)

    def _normalise(self, features: _Floats, layer: int) -> _Floats:
        """Batch normalisation of the last axis."""
        name = _numbered("batch_normalization", layer)
        gamma, beta, mean, variance = (
            self._weights[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (features - mean) * (gamma / np.sqrt(variance + np.float32(EPSILON))) + beta

    def _affine(self, features: _Floats, name: str) -> _Floats:
        return features @ self._weights[f"{name}/kernel"] + self._weights[f"{name}/bias"]


def musicnn() -> Musicnn | None:
    """The embedding; None where musicnn is not installed. Its package, which asks for TensorFlow, is not imported."""
    found = importlib.util.find_spec("musicnn")
    if found is None or not found.submodule_search_locations:
        return None
    return Musicnn(Path(found.submodule_search_locations[0]) / MODEL)


def read_checkpoint(folder: Path) -> dict[str, _Floats]:
    """Weights by name of a TensorFlow checkpoint: an index, which is a table of LevelDB's, and one file of numbers."""
    index, numbers = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
    footer = index[-FOOTER_BYTES:]
    at = 0
    for _ in range(2):  # past where another index lies
        _, at = varint(footer, at)
    weights = {}
    for _, place in _entries(_block(index, footer[at:])):
        for name, description in _entries(_block(index, place)):
            fields = dict(_fields(description))
            if name and fields.get(1) == FLOAT32:
                shape = [dict(_fields(size)).get(1, 0) for kind, size in _fields(fields.get(2, b"")) if kind == 2]
                offset, count = fields.get(4, 0), fields[5] // 4
                weights[name.decode()] = np.frombuffer(numbers, "<f4", count, offset).reshape(shape)
    return weights


def _block(index: bytes, place: bytes) -> bytes:
    """The block of a table that lies at a place: two varints, where it starts and its bytes."""
    start, at = varint(place, 0)
    size, _ = varint(place, at)
    return index[start : start + size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block, each key written as what it shares with the one before and the rest."""
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        rest, at = varint(block, at)
        size, at = varint(block, at)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + size]
        at += rest + size


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: whole numbers, and bytes."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        size = {5: 4}.get(tag & 7, 0)  # kind 5 is four bytes, 2 tells its bytes, 0 is a number
        if tag & 7 != 5:
            size, at = varint(message, at)
        if tag & 7 == 0:
            yield tag >> 3, size
            continue
        yield tag >> 3, message[at : at + size]
        at += size


def _numbered(name: str, number: int) -> str:
    """TensorFlow's name of a layer."""
    return f"{name}_{number}" if number else name
