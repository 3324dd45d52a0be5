"""How fast this machine multiplies matrices of given shapes, by each means at hand, and reads memory: its ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from notewave.backends.processors import processors
from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.report import Case, Spread
from notewave.errors import ToolError

INT8_CEILING, FLOAT_CEILING = "onnxruntime MatMulInteger", "onnxruntime MatMul float32"
MEMORY_CEILING = "onnxruntime MatMul, one row"  # reads every weight for two operations
Shape = tuple[int, ...]  # rows, inner, columns of a product with weights; before them, of attention, how many at once
STREAM: Shape = (1, 1, 8192, 16384)  # of a product of one row that reads 512 MiB of float32: more than caches hold
_Maker = Callable[[Shape, "int | None"], Callable[[], object]]


class Ceilings:
    """Products of these shapes and one that reads memory, ready to be timed; each ``play`` times all of them once."""

    def __init__(self, weights: Sequence[Shape], attention: Sequence[Shape] = (), threads: int | None = None) -> None:
        """Integers multiply weights only. Raises ToolError when onnx is missing."""
        self.kinds = {"weights": weights, "attention": attention}
        self.seconds: dict[str, dict[Shape, list[float]]] = {}  # by engine, by shape, of each round
        self._calls = {
            name: {shape: make(shape, threads) for shape in (*weights, *(attention if "float32" in name else ()))}
            for name, make in _engines(threads).items()
        }
        self._calls[MEMORY_CEILING] = {STREAM: _ort_float(STREAM, threads)}

    def play(self) -> None:
        """Time everything once."""
        for name, calls in self._calls.items():
            for shape, call in calls.items():
                self.seconds.setdefault(name, {}).setdefault(shape, []).append(_quickest(call))

    def cases(self) -> list[Case]:
        """Speed of each engine, on the shapes of each kind one after the other and on each shape; then the memory's."""
        cases = []
        for name, times in self.seconds.items():
            if name == MEMORY_CEILING:
                gigabytes = 4e-9 * math.prod(STREAM)  # of its second factor; the rest is less than a thousandth
                figures = {"memory_gbps": Spread.of(gigabytes / np.array(times[STREAM]))}
                cases.append(Case({"ceiling": name}, figures))
                continue
            figures = {}
            for kind, shapes in self.kinds.items():
                if all(shape in times for shape in shapes) and shapes:
                    total_s = np.sum([times[shape] for shape in shapes], axis=0)
                    figures[f"{kind}_gflops"] = Spread.of(sum(map(_giga, shapes)) / total_s)
            for shape, seconds in times.items():
                figures["x".join(map(str, shape)) + "_gflops"] = Spread.of(_giga(shape) / np.array(seconds))
            cases.append(Case({"ceiling": name}, figures))
        return cases


def _giga(shape: Shape) -> float:
    """10^9 operations of a product."""
    return 2e-9 * math.prod(shape)


def _engines(threads: int | None) -> dict[str, _Maker]:
    """What multiplies matrices here, by name."""
    engines: dict[str, _Maker] = {
        FLOAT_CEILING: _ort_float,
        INT8_CEILING: _ort_integer,
        "onnxruntime DynamicQuantizeMatMul": _ort_dynamic,
    }
    if find_spec("torch"):
        engines["torch float32"] = _torch_float
    if threads is None:  # NumPy's BLAS takes all cores
        engines["numpy float32"] = _numpy_float
    return engines


def _factors(shape: Shape, x: type[Any] = np.float32, y: type[Any] = np.float32) -> tuple[Any, Any]:
    """Random factors of a product of this shape."""
    *count, rows, inner, columns = shape
    return _random((*count, rows, inner), x), _random((*count, inner, columns), y)


def _ort_float(shape: Shape, threads: int | None) -> Callable[[], object]:
    x, y = _factors(shape)
    constant = len(shape) == 3
    return _ort_product(
        "MatMul", {"x": x} if constant else {"x": x, "y": y}, {"y": y} if constant else {}, np.float32, threads
    )


def _ort_integer(shape: Shape, threads: int | None) -> Callable[[], object]:
    x, y = _factors(shape, np.uint8, np.int8)
    return _ort_product("MatMulInteger", {"x": x}, {"y": y, "zero": np.array(128, np.uint8)}, np.int32, threads)


def _ort_dynamic(shape: Shape, threads: int | None) -> Callable[[], object]:
    x, y = _factors(shape, y=np.int8)
    constants = {"y": y, "scale": np.full(shape[-1], 0.01, np.float32)}
    return _ort_product("DynamicQuantizeMatMul", {"x": x}, constants, np.float32, threads, "com.microsoft")


def _ort_product(
    operator: str,
    inputs: dict[str, Any],
    constants: dict[str, Any],
    kind: type[Any],
    threads: int | None,
    domain: str = "",
) -> Callable[[], object]:
    """A graph of one operator, bound to its inputs and its output of this kind."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ToolError(f"The ceilings were not measured: {error}. Install notewave[export].") from error
    helper = onnx.helper
    shape = (*inputs["x"].shape[:-1], {**inputs, **constants}["y"].shape[-1])
    bound = {**inputs, "out": np.empty(shape, kind)}
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in bound.items()
    ]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    node = helper.make_node(operator, [*inputs, *constants], ["out"], domain=domain)
    graph = helper.make_graph([node], "product", ends[:-1], ends[-1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or processors()
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # or they would slow each other down
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in bound.items():
        bind = binding.bind_output if name == "out" else binding.bind_input
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return lambda: (session.run_with_iobinding(binding), bound)  # the binding has only addresses


def _torch_float(shape: Shape, threads: int | None) -> Callable[[], object]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    x, y = map(torch.from_numpy, _factors(shape))
    if len(shape) == 3:
        y = y.T.contiguous().T  # weights lie transposed in torch's Linear
    out = torch.empty(*x.shape[:-1], y.shape[-1])
    return lambda: torch.matmul(x, y, out=out)


def _numpy_float(shape: Shape, threads: int | None) -> Callable[[], object]:
    del threads
    x, y = _factors(shape)
    out = np.empty((*x.shape[:-1], y.shape[-1]), np.float32)
    return lambda: np.matmul(x, y, out=out)


def _random(shape: tuple[int, ...], dtype: type[Any]) -> Any:
    random = np.random.default_rng(0)
    if dtype is np.float32:
        return random.standard_normal(shape, np.float32)
    return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _quickest(call: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the quickest of a few calls: a ceiling is what the machine can do when nothing disturbs it."""
    return min(CLOCK.seconds(call) for _ in range(tries))
