"""NumPy twins of the CUDA kernels: what the CPU backend runs, and what the kernels are held to.

Noise is counter-based (Philox 4x32-10, Salmon et al., SC 2011), so that a seed gives the same song on every backend,
batch size and chunking: the key is the seed, the counter is (block of four elements, draw, segment, 0). A frame's noise
is the same in whatever window of the song it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Words = NDArray[np.uint64]  # 32-bit words, with room for their products

PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: tuple[Words, int, Words | int, int], seed: int) -> list[Words]:
    """Four 32-bit words for each counter: first word an array [n], the others arrays too or the same for all.

    seed: 64 bits, the low half first in the key. Returns four arrays [n], held in uint64.
    """
    c0 = counter[0]
    c1, c2, c3 = (np.broadcast_to(np.asarray(word, np.uint64), c0.shape) for word in counter[1:])
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(PHILOX_ROUNDS):
        first, second = c0 * np.uint64(PHILOX_MULTIPLIERS[0]), c2 * np.uint64(PHILOX_MULTIPLIERS[1])
        c0, c2 = (second >> _32) ^ c1 ^ np.uint64(key[0]), (first >> _32) ^ c3 ^ np.uint64(key[1])
        c1, c3 = second & _LOW, first & _LOW
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, PHILOX_WEYL, strict=True)]
    return [c0, c1, c2, c3]


def philox_normal(seed: int, segment: int, draw: int, out: FloatArray, first: int = 0, size: int | None = None) -> None:
    """Fill ``out``, float32 of any shape, C-contiguous, with the standard normals of one draw of one segment.

    first: the segment's element to begin with, a multiple of four. size: elements of a segment, a multiple of four,
    after which the next one begins; as many as ``out`` has if None, of which ``first`` then is 0.
    Box-Muller on pairs of words: radius from 24 bits in (0, 1], angle from 24 bits in [0, 1), both exact in float32.
    """
    size = out.size if size is None else size
    blocks = np.arange(first // 4, first // 4 + -(-out.size // 4), dtype=np.uint64)
    later, blocks = np.divmod(blocks, np.uint64(max(-(-size // 4), 1)))
    words = philox((blocks, draw, later + np.uint64(segment), 0), seed)
    normals = np.empty((len(blocks), 4), np.float32)
    for pair in (0, 2):
        uniform = ((words[pair] >> np.uint64(8)) + np.uint64(1)).astype(np.float32) * np.float32(2**-24)
        turn = (words[pair + 1] >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
        radius = np.sqrt(np.float32(-2.0) * np.log(uniform))
        angle = turn.astype(np.float64) * (2.0 * np.pi)  # float32 angles would cost seven bits near a full turn
        normals[:, pair] = radius * np.cos(angle).astype(np.float32)
        normals[:, pair + 1] = radius * np.sin(angle).astype(np.float32)
    out.reshape(-1)[:] = normals.reshape(-1)[: out.size]


def bounded(values: FloatArray) -> FloatArray:
    """clip(values, -1, 1), but NaN of what is no finite number: a clip would hide a network that fails."""
    with np.errstate(invalid="ignore"):
        return np.clip(values, -1.0, 1.0) + np.float32(0.0) * values


def sampler_step(
    x: FloatArray,
    x0_previous: FloatArray,
    prediction: FloatArray,
    row: FloatArray,
    noise: FloatArray | None = None,
    unconditional: FloatArray | None = None,
    guidance: float = 1.0,
    played: FloatArray | None = None,
) -> None:
    """One denoising step, in place: x [B, T, M] becomes the next x, x0_previous [B, T, M] this step's x0.

    row: (p, q, a, b, c, d, e) of a sampler's table. With the model's guided output m, x0 = bounded(p x - q m) and
    x' = a x + b x0 + c x0_previous + d noise + e m. Where m is no finite number, x is NaN from then on.
    played [B, P, M]: the clean mel of the first frames, where it is known: x0 there, and m is what would have given it.
    """
    p, q, a, b, c, d, e = row
    with np.errstate(over="ignore", invalid="ignore"):
        model = prediction
        if unconditional is not None:
            weight = np.float32(guidance)
            model = weight * prediction + (np.float32(1.0) - weight) * unconditional
        x0 = bounded(p * x - q * model)
        if played is not None:
            given = np.s_[:, : played.shape[1]]
            x0[given] = played
            if e:
                model = model.copy()
                model[given] = (p * x[given] - played) / q
        x *= a
        x += b * x0
        if c:
            x += c * x0_previous
        if d and noise is not None:
            x += d * noise
        if e:
            x += e * model
        x0_previous[...] = x0


def advance(context: FloatArray, x: FloatArray, moved: int) -> tuple[FloatArray, FloatArray]:
    """The next window's context [B, T, M], bounded, and its frames [B, T, M] that x had, the others 0.

    context, x: [B, T, M] of the window before, the context first. The next begins ``moved`` frames later, at most T.
    """
    frames = x.shape[1]
    song = np.concatenate([context, x, np.zeros_like(x)], axis=1)
    return bounded(song[:, moved : moved + frames]), song[:, moved + frames : moved + 2 * frames]


def mel_to_context(mel: FloatArray) -> FloatArray:
    """A finished mel [B, T, M] to the context encoder's input [B, T, M]: bounded(mel)."""
    return bounded(mel)


def keep_frame(
    prediction: FloatArray,
    before: FloatArray,
    mel: FloatArray,
    new: NDArray[Any],
    own: NDArray[Any],
    offset: int,
    number: int,
) -> None:
    """What a frame leaves for those after it, in place: prediction [B, M] to ``before`` [B, M], and to mel [B, T, M].

    There it is frame ``offset``. new [2 L, B, H, K]: its keys and values, to ``own`` [2 L, B, H, kept, K] at its number
    in the segment, if so many are kept.
    """
    before[...] = mel[:, offset] = prediction
    if number < own.shape[-2]:
        own[..., number, :] = new


def carry_nan(audio: FloatArray, log_mel: FloatArray) -> FloatArray:
    """Audio [B, HOP V], but NaN where a frame of its log-mel [B, V, M] holds what is no finite number.

    Whatever the vocoder made of that: to many an operator the greater of NaN and a number is the number.
    """
    with np.errstate(invalid="ignore"):
        zeros = (np.float32(0.0) * log_mel).sum(axis=2)
    return (audio.reshape(*zeros.shape, -1) + zeros[:, :, None]).reshape(audio.shape)
