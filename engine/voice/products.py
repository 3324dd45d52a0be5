"""The operators among those of a voice's graphs that multiply much: products of matrices, convolutions, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from notewave.voice.operators import INT32, Inputs, Made, Rule, Shape, broadcast, divided, not_negative, plain, volume
from notewave.voice.sizes import Size, minus, plus, quotient, times


def _product(inputs: Inputs) -> Made:
    one, other = inputs.shape(0), inputs.shape(1)
    rows, columns = (one if len(one) > 1 else (1, *one)), (other if len(other) > 1 else (*other, 1))
    shape: Shape = broadcast([rows[:-2], columns[:-2]], inputs.ranges)
    shape += rows[-2:-1] if len(one) > 1 else ()
    shape += columns[-1:] if len(other) > 1 else ()
    return Made((shape,), multiplications=times(volume(shape), rows[-1]))


def _gemm(inputs: Inputs) -> Made:
    (rows, inner), (_, columns) = (
        inputs.shape(place)[:: -1 if inputs.integer(name, 0) else 1] for place, name in enumerate(("transA", "transB"))
    )
    return Made(((rows, columns),), multiplications=times(rows, columns, inner))


def _integers(rule: Rule) -> Rule:
    """A product of integers, whose sums have 32 bits."""
    return lambda inputs: replace(rule(inputs), elements=(INT32,))


def _convolution(inputs: Inputs) -> Made:
    (batch, _, *sizes), (channels, grouped, *kernel) = inputs.shape(0), inputs.shape(1)
    _check_kernel(inputs, kernel)
    strides, dilations, pads = _spacing(inputs, len(sizes))
    same = inputs.text("auto_pad", b"NOTSET").startswith(b"SAME")
    made = []
    for at, size in enumerate(sizes):
        if not same:
            reach = dilations[at] * (plain(kernel[at]) - 1) + 1
            size = not_negative(plus(size, pads[at], pads[at + len(sizes)], -reach, strides[at]), inputs.ranges)
        else:
            size = plus(size, strides[at] - 1)
        made.append(divided(size, strides[at], inputs.ranges))
    shape = (batch, channels, *made)
    hidden = times(batch, grouped, *kernel, *made)  # as a matrix, that some kernels make of it
    return Made((shape,), multiplications=times(volume(shape), grouped, *kernel), hidden=hidden)


def _transposed_convolution(inputs: Inputs) -> Made:
    (batch, channels, *sizes), (_, grouped, *kernel) = inputs.shape(0), inputs.shape(1)
    _check_kernel(inputs, kernel)
    strides, dilations, pads = _spacing(inputs, len(sizes))
    more = inputs.integers("output_padding", [0] * len(sizes))
    wanted = inputs.integers("output_shape")
    same = inputs.text("auto_pad", b"NOTSET").startswith(b"SAME")
    made: list[Size] = []
    for at, size in enumerate(sizes):
        reach = dilations[at] * (plain(kernel[at]) - 1) + 1
        whole = plus(times(strides[at], minus(size, 1)), more[at], reach, -pads[at], -pads[at + len(sizes)])
        made.append(wanted[-len(sizes) + at] if wanted else times(size, strides[at]) if same else whole)
    groups = inputs.integer("group", 1)
    shape = (batch, times(grouped, groups), *made)
    hidden = times(batch, grouped, groups, *kernel, *sizes)
    return Made((shape,), multiplications=times(batch, channels, grouped, *kernel, *sizes), hidden=hidden)


def _check_kernel(inputs: Inputs, kernel: Sequence[Size]) -> None:
    """Refuse what ends ONNX Runtime's process, or never ends in it."""
    if any(plain(size) < 1 for size in kernel) or inputs.integer("group", 1) < 1:
        raise ValueError("a kernel has no numbers, or no groups")


def _spacing(inputs: Inputs, axes: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Strides, dilations and pads of a convolution over so many axes."""
    strides, dilations = (inputs.integers(name, [1] * axes) for name in ("strides", "dilations"))
    pads = inputs.integers("pads", [0] * 2 * axes)
    if (len(strides), len(dilations), len(pads)) != (axes, axes, 2 * axes) or min(*strides, *dilations) < 1:
        raise ValueError("strides, dilations or pads are none of a convolution")
    return strides, dilations, pads


def _attention(inputs: Inputs) -> Made:
    if any(inputs.has(place) for place in range(4, len(inputs.values))) or len(inputs.node.outputs) != 1:
        raise ValueError("attention has a memory")
    queries, keys, values = (inputs.shape(place) for place in range(3))
    if len(queries) == 3:
        heads, grouped = inputs.integer("q_num_heads", 0), inputs.integer("kv_num_heads", 0)
        (batch, length, width), span = queries, keys[1]
        head_width = quotient(values[2], grouped)
        if head_width is None:
            raise ValueError(f"there are no {grouped} heads")
        shape: Shape = (batch, length, times(heads, head_width))
        scores = times(batch, heads, length, span)
        width = quotient(width, heads) or 0
    else:
        batch, count, length, width = queries
        span, head_width = keys[2], values[3]
        shape = (batch, count, length, head_width)
        scores = times(batch, count, length, span)
    return Made((shape,), multiplications=times(scores, plus(width, head_width)), hidden=times(2, scores))


PRODUCTS: Mapping[str, Rule] = {
    "MatMul": _product,
    "MatMulInteger": _integers(_product),
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvInteger": _integers(_convolution),
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
}
