"""What the structured start is written in: slots of the streams, codes of numbers, and heads set by their logits.

The residual streams are divided into slots (``Slots``). Times and token order are codes of sinusoids, so that any
smooth function of a difference is a dot product, its coefficients found by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from notewave.export.networks import SpectrogramDiffusion

PIANO_LOW, PIANO_KEYS = 21, 88  # pitches fold into the 88 keys of a piano


class Slots:
    """Where the streams keep what: ranges of their first 256 dimensions."""

    TIME, OFF_TIME, ORDER = slice(0, 48), slice(48, 96), slice(96, 144)
    PITCH = slice(144, 144 + PIANO_KEYS)
    CONST, IS_SHIFT, IS_VELOCITY, SIGN, IS_PITCH, IS_EOS, IS_PROGRAM, IS_CONTEXT = range(232, 240)
    IS_TIE, PROGRAM = 240, slice(241, 256)
    # the decoder's stream: TIME as above, then
    FRAME_CONST = 48
    COVER, START = slice(49, 49 + PIANO_KEYS), slice(137, 137 + PIANO_KEYS)
    COVER_PROGRAM, START_PROGRAM = slice(225, 240), slice(240, 255)


TIME_FREQUENCIES = 2 * np.pi / np.geomspace(2.5, 700, 24)  # radians a frame
ORDER_FREQUENCIES = 2 * np.pi / np.geomspace(2.3, 3000, 24)  # radians a token
CODE_POWER = 24.0  # squared norm of a time or order code, and of whatever else marks a token
MARK = 4.0  # constant and kind-of-token marks


def code(values: NDArray[np.floating | np.integer], frequencies: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sines, then cosines [..., 2 F] of values [...]."""
    angles = np.asarray(values, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


class Head:
    """Collects the terms of one attention head's logits: a sum of products of a query and a key function."""

    def __init__(self, width: int, head_width: int, query_gain: float, key_gain: float) -> None:
        self.query, self.key = np.zeros((head_width, width)), np.zeros((head_width, width))
        self.gains, self.used = (query_gain, key_gain), 0
        self.constant = 0.0  # of the targets, which no code can give

    def add(self, query: NDArray[np.float64], key: NDArray[np.float64]) -> None:
        """Rows [R, D] of query and key weights, for streams that the norm multiplied by the gains."""
        rows = slice(self.used, self.used + len(query))
        scale = np.sqrt((np.linalg.norm(query, axis=1) + 1e-9) / (np.linalg.norm(key, axis=1) + 1e-9))[:, None]
        self.query[rows], self.key[rows] = query / scale / self.gains[0], key * scale / self.gains[1]
        self.used += len(query)

    def difference(
        self,
        query_slot: slice,
        key_slot: slice,
        frequencies: NDArray[np.floating],
        chosen: NDArray[np.integer],
        target: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        reach: int,
        weight: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> None:
        """Logits target(query value - key value), from the chosen frequencies of two codes."""
        cosine, sine, constant = _difference(frequencies[chosen], target, reach, weight)
        self.constant += constant
        count, width = len(chosen), self.query.shape[1]
        query, key = np.zeros((2 * count, width)), np.zeros((2 * count, width))
        rows, half = np.arange(count), (query_slot.stop - query_slot.start) // 2
        q_sin, q_cos = query_slot.start + chosen, query_slot.start + half + chosen
        key[rows, key_slot.start + chosen] = 1.0  # sin m: A sin n - B cos n
        query[rows, q_sin], query[rows, q_cos] = cosine, -sine
        key[count + rows, key_slot.start + half + chosen] = 1.0  # cos m: A cos n + B sin n
        query[count + rows, q_cos], query[count + rows, q_sin] = cosine, sine
        self.add(query, key)

    def soften(self, factor: float) -> None:
        """Multiply all logits by a factor."""
        self.query *= factor

    def marks(self, const: int, weights: dict[int, float]) -> None:
        """Logits that depend on the key alone: a weight for each of its mark dimensions (at their full value MARK)."""
        query, key = np.zeros((1, self.query.shape[1])), np.zeros((1, self.key.shape[1]))
        query[0, const] = 1 / MARK
        key[0, Slots.CONST] = self.constant / MARK
        for dimension, logits in weights.items():
            key[0, dimension] = logits / MARK
        self.add(query, key)


def _difference(
    frequencies: NDArray[np.floating],
    target: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    reach: int,
    weight: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """A, B and c of sum A cos(w d) + B sin(w d) + c nearest to target(d) for |d| <= reach."""
    d = np.arange(-reach, reach + 1, dtype=np.float64)
    angles = d[:, None] * frequencies
    basis = np.concatenate([np.cos(angles), np.sin(angles), np.ones((len(d), 1))], axis=1)
    scale = np.sqrt(weight(d))[:, None]
    ridge = 0.02 * np.eye(basis.shape[1])
    solution = np.linalg.lstsq(
        np.concatenate([basis * scale, ridge]), np.append(target(d) * scale[:, 0], np.zeros(len(ridge)))
    )[0]
    cosine, sine = solution[:-1].reshape(2, -1)
    return cosine, sine, float(solution[-1])


def spread_codes(count: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    """Unit vectors [count, width] with small dot products among them, by repelling one another."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, width))
    for _ in range(300):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        overlap = vectors @ vectors.T - np.eye(count)
        vectors -= 2.0 * width / count * (overlap**3) @ vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def norm_gain(width: int, power: float) -> float:
    """Factor by which a norm multiplies a stream of this squared norm."""
    return math.sqrt(width / power)


def set_head(attention: Any, head: int, logits: Head) -> None:
    """Query and key rows of one head of a self-attention."""
    weight = attention.qkv.weight
    inner, (count, _) = weight.shape[0] // 3, logits.query.shape
    rows = slice(head * count, (head + 1) * count)
    weight[:inner][rows] = torch.from_numpy(logits.query).float()
    weight[inner : 2 * inner][rows] = torch.from_numpy(logits.key).float()


def set_values(attention: Any, head: int, values: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
    """Value rows and output columns of one head of a self-attention."""
    inner, count = attention.qkv.weight.shape[0] // 3, len(values)
    rows = slice(head * count, (head + 1) * count)
    attention.qkv.weight[2 * inner :][rows] = torch.from_numpy(values).float()
    attention.out.weight[:, rows] = torch.from_numpy(outputs).float()


def set_cross(model: SpectrogramDiffusion, layer: int, head: int, logits: Head) -> None:
    """Query and key rows of one head of a decoder layer's cross-attention."""
    rows = slice(head * model.size.head_width, (head + 1) * model.size.head_width)
    cross: Any = model.decoder.layers[layer]
    cross.cross_queries.weight[rows] = torch.from_numpy(logits.query).float()
    keys = model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[2 * layer]
    keys[rows] = torch.from_numpy(logits.key).float()


def set_cross_values(model: SpectrogramDiffusion, layer: int, head: int, values: NDArray[np.float64]) -> None:
    """Value rows of one head of a decoder layer's cross-attention."""
    rows = slice(head * model.size.head_width, (head + 1) * model.size.head_width)
    model.cross_attention.projection.weight.chunk(2 * model.size.decoder_layers)[2 * layer + 1][rows] = (
        torch.from_numpy(values).float()
    )
