"""The operators that a voice's graphs may use, and what each makes of its inputs.

They are those that exporters of Spectrogram Diffusion and of vocoders write. None has graphs inside (Loop, Scan, If), a
result of a size that only numbers tell (NonZero, Compress), text, files or chance. What each does is said in onnx's
Operators.md; older forms are known too, where attributes say what inputs say today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from notewave.voice.graph_reader import ELEMENTS, Weight
from notewave.voice.operators import (
    BOOL,
    FLOAT,
    INT64,
    MAX_CONTENT,
    UINT8,
    Content,
    Inputs,
    Made,
    Rule,
    Value,
    alike,
    axis_of,
    broadcast,
    divided,
    held,
    not_negative,
    plain,
    volume,
)
from notewave.voice.products import PRODUCTS
from notewave.voice.sizes import Ranges, Size, minus, plus, quotient, times

_FAR = (1 << 31) - 1  # ends from here on mean a tensor's end


def constant(weight: Weight) -> Value:
    """What is known of a weight."""
    content = weight.integers() if weight.size <= MAX_CONTENT else None
    return Value(weight.shape, weight.element, content, is_constant=True)


def _elementwise(inputs: Inputs) -> Made:
    return Made((broadcast(inputs.shapes(), inputs.ranges),))


def _truth(inputs: Inputs) -> Made:
    return Made((broadcast(inputs.shapes(), inputs.ranges),), elements=(BOOL,))


def _like_first(inputs: Inputs) -> Made:
    return Made((inputs.shape(0),) * len(inputs.node.outputs))


def _followed(compute: Callable[[Sequence[Size], Ranges], Size | None]) -> Rule:
    """An elementwise operator that shapes are computed with."""

    def rule(inputs: Inputs) -> Made:
        shape = broadcast(inputs.shapes(), inputs.ranges)
        contents = [value.content if value is not None else None for value in inputs.values]
        content = _each(contents, len(shape), lambda sizes: compute(sizes, inputs.ranges))
        return Made((shape,), held(content, inputs.element(len(inputs.values) - 1), inputs.ranges))

    return rule


def _cast(inputs: Inputs) -> Made:
    element = inputs.integer("to", FLOAT) if inputs.node.operator == "Cast" else inputs.element(1)
    if element not in ELEMENTS:
        raise ValueError(f"there is no type {element}")
    return Made((inputs.shape(0),), held(inputs.value(0).content, element, inputs.ranges), (element,))


def _divided(inputs: Inputs) -> Made:
    """Between integers what is divided by must be known: the least one by -1 ends the process, on many processors."""
    if ELEMENTS[inputs.element(0)][0].startswith(("int", "uint")) and any(
        inputs.ranges.least(size) < 1 for size in inputs.needed(1)
    ):
        raise ValueError("an integer is divided by what may be none, or less")
    return _followed(_ratio)(inputs)


def _chosen(inputs: Inputs) -> Made:
    return replace(_followed(_where)(inputs), elements=(inputs.element(1),))


def _compared(inputs: Inputs) -> Made:
    return replace(_followed(_equal)(inputs), elements=(BOOL,))


def _each(contents: Sequence[Content], rank: int, compute: Callable[[Sequence[Size]], Size | None]) -> Content:
    """The integers that an operator makes of its inputs', where all are known, of at most one axis."""
    known = [content for content in contents if content is not None]
    length = max(map(len, known), default=0)
    if len(known) < len(contents) or rank > 1 or any(len(content) not in (1, length) for content in known):
        return None
    made = [compute([content[at % len(content)] for content in known]) for at in range(length)]
    found = [size for size in made if size is not None]
    return tuple(found) if len(found) == len(made) else None


def _ratio(sizes: Sequence[Size], ranges: Ranges) -> Size | None:
    """Their quotient; between integers it is rounded, between others not."""
    whole, part = sizes
    exact = quotient(whole, part)
    if exact is not None or not isinstance(part, int) or part < 1 or ranges.least(whole) < 0:
        return exact
    return ranges.new(ranges.least(whole) // part, ranges.most(whole) // part + 1)


def _remainder(sizes: Sequence[Size], ranges: Ranges) -> Size | None:
    part = sizes[1]
    return ranges.new(0, part - 1) if isinstance(part, int) and part > 0 and ranges.least(sizes[0]) >= 0 else None


def _smallest(sizes: Sequence[Size], ranges: Ranges) -> Size:
    return ranges.new(min(map(ranges.least, sizes)), min(map(ranges.most, sizes)))


def _largest(sizes: Sequence[Size], ranges: Ranges) -> Size:
    return ranges.new(max(map(ranges.least, sizes)), max(map(ranges.most, sizes)))


def _equal(sizes: Sequence[Size], ranges: Ranges) -> Size | None:
    one, other = sizes
    if one == other:
        return 1
    apart = ranges.most(one) < ranges.least(other) or ranges.most(other) < ranges.least(one)
    return 0 if apart else None


def _where(sizes: Sequence[Size], ranges: Ranges) -> Size | None:
    condition, one, other = sizes
    return (one if condition else other) if isinstance(condition, int) else None


def _constant(inputs: Inputs) -> Made:
    for name, value in inputs.node.attributes.items():
        if name == "value" and isinstance(value, Weight):
            known = constant(value)
            return Made((known.shape,), known.content, (known.element,))
        if name in ("value_int", "value_ints"):
            numbers = (value,) if name == "value_int" else tuple(inputs.integers(name))
            shape = () if name == "value_int" else (len(numbers),)
            return Made((shape,), numbers if len(numbers) <= MAX_CONTENT else None, (INT64,))
        if name in ("value_float", "value_floats"):
            return Made((() if name == "value_float" else (len(value),),), elements=(FLOAT,))
    raise ValueError("a constant has no numbers")


def _filled(inputs: Inputs) -> Made:
    shape = inputs.needed(0)
    value = inputs.node.attributes.get("value")
    if not isinstance(value, Weight):
        return Made((shape,), elements=(FLOAT,))
    numbers, length = value.integers(), shape[0] if len(shape) == 1 else None
    few = isinstance(length, int) and 0 <= length <= MAX_CONTENT and numbers is not None
    content = tuple(numbers or ()) * length if few and isinstance(length, int) else None
    return Made((shape,), content, (value.element,))


def _range(inputs: Inputs) -> Made:
    (start,), (limit,), (delta,) = (inputs.needed(place) for place in range(3))
    step = plain(delta)
    if not step:
        raise ValueError("a range does not go on")
    span = minus(limit, start) if step > 0 else minus(start, limit)
    length = divided(plus(not_negative(span, inputs.ranges), abs(step) - 1), abs(step), inputs.ranges)
    content = None
    if isinstance(length, int) and length <= MAX_CONTENT:
        content = tuple(plus(start, step * index) for index in range(length))
    return Made(((length,),), content)


def _shape(inputs: Inputs) -> Made:
    shape = inputs.shape(0)
    sizes = shape[inputs.integer("start", 0) : inputs.integer("end", len(shape))]
    return Made(((len(sizes),),), sizes, (INT64,))


def _size(inputs: Inputs) -> Made:
    return Made(((),), (volume(inputs.shape(0)),), (INT64,))


def _gather(inputs: Inputs) -> Made:
    data, indices = inputs.value(0), inputs.value(1)
    axis = inputs.axis(0, len(data.shape))
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    content = None
    if data.content is not None and indices.content is not None and len(data.shape) == 1:
        content = tuple(data.content[axis_of(plain(index), len(data.content))] for index in indices.content)
    return Made((shape,), content)


def _slice(inputs: Inputs) -> Made:
    data = inputs.value(0)
    starts, ends = inputs.needed(1, "starts"), inputs.needed(2, "ends")
    axes = inputs.plain(3, "axes") or tuple(range(len(starts)))
    steps = inputs.plain(4, "steps") or (1,) * len(starts)
    shape = list(data.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(shape))
        shape[place] = _sliced(shape[place], start, end, step, inputs.ranges)
    content = None
    if data.content is not None and len(data.shape) == 1 and isinstance(starts[0], int) and isinstance(ends[0], int):
        content = data.content[starts[0] : ends[0] : steps[0]]
    return Made((tuple(shape),), content)


def _sliced(size: Size, start: Size, end: Size, step: int, ranges: Ranges) -> Size:
    """How much of an axis is left; where that is not plain, anything from nothing to the whole axis."""
    first = plus(size, start) if isinstance(start, int) and start < 0 else start
    last = end
    if isinstance(end, int) and (end < 0 or end >= _FAR):
        last = plus(size, end) if end < 0 else size
    left = minus(last, first)
    if step > 0 and ranges.least(first) >= 0 and ranges.least(left) >= 0 and ranges.least(minus(size, last)) >= 0:
        return divided(plus(left, step - 1), step, ranges)
    return ranges.new(0, max(0, ranges.most(size)))


def _concat(inputs: Inputs) -> Made:
    shapes = inputs.shapes()
    axis = inputs.axis(0, len(shapes[0]))
    columns = list(zip(*shapes, strict=True))
    shape = [plus(*column) if at == axis else alike(column, inputs.ranges) for at, column in enumerate(columns)]
    contents = [value.content for value in inputs.values if value is not None]
    known = [content for content in contents if content is not None]
    joined = tuple(size for content in known for size in content)
    is_known = len(known) == len(contents) and len(shape) == 1 and len(joined) <= MAX_CONTENT
    return Made((tuple(shape),), joined if is_known else None)


def _split(inputs: Inputs) -> Made:
    shape, count = inputs.shape(0), len(inputs.node.outputs)
    axis = inputs.axis(0, len(shape))
    sizes = inputs.content(1, "split")
    if sizes is None:
        part = divided(plus(shape[axis], count - 1), count, inputs.ranges)
        sizes = (part,) * (count - 1) + (minus(shape[axis], times(count - 1, part)),)
    if len(sizes) != count:
        raise ValueError(f"a split has {len(sizes)} sizes for {count} parts")
    return Made(tuple((*shape[:axis], not_negative(size, inputs.ranges), *shape[axis + 1 :]) for size in sizes))


def _reshape(inputs: Inputs) -> Made:
    data, wanted = inputs.value(0), inputs.needed(1, "shape")
    copies = not inputs.flag("allowzero", 0)
    sizes = [data.shape[at] if size == 0 and copies else size for at, size in enumerate(wanted)]
    if -1 in sizes:
        place = sizes.index(-1)
        whole, rest = volume(data.shape), times(*sizes[:place], *sizes[place + 1 :])
        found = quotient(whole, rest)
        if found is None:
            most = inputs.ranges.most(whole) // max(1, inputs.ranges.least(rest))
            found = inputs.ranges.new(0, max(0, most))
        sizes[place] = found
    return Made((tuple(sizes),), data.content)


def _flatten(inputs: Inputs) -> Made:
    shape = inputs.shape(0)
    axis = inputs.integer("axis", 1)
    axis = axis if axis == len(shape) else axis_of(axis, len(shape))
    return Made(((volume(shape[:axis]), volume(shape[axis:])),))


def _squeeze(inputs: Inputs) -> Made:
    data, axes = inputs.value(0), inputs.plain(1, "axes")
    rank = len(data.shape)
    if not axes:
        gone = {axis for axis, size in enumerate(map(plain, data.shape)) if size == 1}
    else:
        gone = {axis_of(axis, rank) for axis in axes}
    return Made((tuple(size for axis, size in enumerate(data.shape) if axis not in gone),), data.content)


def _unsqueeze(inputs: Inputs) -> Made:
    data, axes = inputs.value(0), inputs.plain(1, "axes") or ()
    rank = len(data.shape) + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if len(new) < len(axes):
        raise ValueError("an axis is there twice")
    kept = iter(data.shape)
    return Made((tuple(1 if axis in new else next(kept) for axis in range(rank)),), data.content)


def _transpose(inputs: Inputs) -> Made:
    shape = inputs.shape(0)
    order = inputs.integers("perm", range(len(shape))[::-1])
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"axes {order} are none of {len(shape)}")
    return Made((tuple(shape[axis] for axis in order),), inputs.value(0).content if len(shape) < 2 else None)


def _expand(inputs: Inputs) -> Made:
    data, shape = inputs.value(0), broadcast([inputs.shape(0), inputs.needed(1)], inputs.ranges)
    content = data.content if shape == data.shape else None
    if data.content is not None and len(data.content) == 1 and len(shape) == 1:
        content = data.content * shape[0] if isinstance(shape[0], int) and shape[0] <= MAX_CONTENT else None
    return Made((shape,), content)


def _tile(inputs: Inputs) -> Made:
    shape, repeats = inputs.shape(0), inputs.needed(1)
    return Made((tuple(times(size, count) for size, count in zip(shape, repeats, strict=True)),))


def _pad(inputs: Inputs) -> Made:
    shape, pads = inputs.shape(0), inputs.needed(1, "pads")
    axes = inputs.plain(3) or tuple(range(len(shape)))
    sizes = list(shape)
    for at, axis in enumerate(axes):
        place = axis_of(axis, len(shape))
        sizes[place] = not_negative(plus(sizes[place], pads[at], pads[at + len(axes)]), inputs.ranges)
    return Made((tuple(sizes),))


def _reduce(inputs: Inputs) -> Made:
    shape, axes = inputs.shape(0), inputs.plain(1, "axes")
    if not axes and inputs.flag("noop_with_empty_axes", 0):
        return Made((shape,))
    gone = {axis_of(axis, len(shape)) for axis in axes} if axes else set(range(len(shape)))
    keeps = inputs.flag("keepdims", 1)
    sizes = tuple(1 if axis in gone else size for axis, size in enumerate(shape) if keeps or axis not in gone)
    content = inputs.value(0).content
    is_product = content is not None and inputs.node.operator == "ReduceProd" and len(shape) < 2
    return Made((sizes,), (times(*content),) if is_product and content is not None else None)


def _quantised_by_itself(inputs: Inputs) -> Made:
    return Made((inputs.shape(0), (), ()), elements=(UINT8, FLOAT, UINT8))


def _quantised(inputs: Inputs) -> Made:
    element = inputs.element(2) if inputs.has(2) else inputs.integer("output_dtype", 0) or UINT8
    return Made((inputs.shape(0),), elements=(element,))


def _dequantised(inputs: Inputs) -> Made:
    return Made((inputs.shape(0),), elements=(inputs.element(1),))


# fmt: off
_ELEMENTWISE = (
    "Abs", "Atan", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Mish", "Pow", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Sqrt", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)
_TRUTHS = ("And", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor")
_LIKE_FIRST = (
    "BatchNormalization", "Clip", "CumSum", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
    "LogSoftmax", "LpNormalization", "RMSNormalization", "Softmax",
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
# fmt: on
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_TRUTHS, _truth),
    **dict.fromkeys(_LIKE_FIRST, _like_first),
    **{f"Reduce{name}": _reduce for name in _REDUCTIONS},
    "Identity": _followed(lambda sizes, ranges: sizes[0]),
    "Cast": _cast,
    "CastLike": _cast,
    "Add": _followed(lambda sizes, ranges: plus(*sizes)),
    "Sub": _followed(lambda sizes, ranges: minus(*sizes)),
    "Mul": _followed(lambda sizes, ranges: times(*sizes)),
    "Neg": _followed(lambda sizes, ranges: times(-1, *sizes)),
    "Div": _divided,
    "Mod": _followed(_remainder),
    "Min": _followed(_smallest),
    "Max": _followed(_largest),
    "Equal": _compared,
    "Where": _chosen,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Range": _range,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DynamicQuantizeLinear": _quantised_by_itself,
    "QuantizeLinear": _quantised,
    "DequantizeLinear": _dequantised,
    **PRODUCTS,
}
