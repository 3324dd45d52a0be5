"""How fast this machine multiplies matrices of given shapes, by each means at hand: the ceiling of its networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.report import Case, Spread
from notewave.errors import BackendError

INT8_CEILING, FLOAT_CEILING = "onnxruntime MatMulInteger", "onnxruntime MatMul float32"
Shape = tuple[int, int, int]  # rows, inner, columns
_Maker = Callable[[int, int, int, "int | None"], Callable[[], object]]


class Ceilings:
    """Products of these shapes, ready to be timed; each ``play`` times every engine on every shape once."""

    def __init__(self, shapes: Sequence[Shape], threads: int | None = None) -> None:
        """Raises BackendError when onnx is missing."""
        self.shapes = shapes
        self.seconds: dict[str, list[list[float]]] = {}  # by engine, by round, by shape
        self._calls = {name: [make(*shape, threads) for shape in shapes] for name, make in _engines(threads).items()}

    def play(self) -> None:
        """Time everything once."""
        for name, calls in self._calls.items():
            self.seconds.setdefault(name, []).append([_quickest(call) for call in calls])

    def cases(self) -> list[Case]:
        """Speed of each engine, on all shapes one after the other and on each."""
        giga = 2e-9 * np.prod(self.shapes, axis=1)
        cases = []
        for name, rounds in self.seconds.items():
            figures = {"all_gflops": Spread.of(giga.sum() / np.sum(rounds, axis=1))}
            for index, shape in enumerate(self.shapes):
                times = np.array(rounds)[:, index]
                figures["x".join(map(str, shape)) + "_gflops"] = Spread.of(giga[index] / times)
            cases.append(Case({"ceiling": name}, figures))
        return cases


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


def _ort_float(rows: int, inner: int, columns: int, threads: int | None) -> Callable[[], object]:
    x, weights = _random((rows, inner)), _random((inner, columns))
    return _ort_product("MatMul", x, {"weights": weights}, np.empty((rows, columns), np.float32), threads)


def _ort_integer(rows: int, inner: int, columns: int, threads: int | None) -> Callable[[], object]:
    x, weights = _random((rows, inner), np.uint8), _random((inner, columns), np.int8)
    constants = {"weights": weights, "zero": np.array(128, np.uint8)}
    return _ort_product("MatMulInteger", x, constants, np.empty((rows, columns), np.int32), threads)


def _ort_dynamic(rows: int, inner: int, columns: int, threads: int | None) -> Callable[[], object]:
    x, weights = _random((rows, inner)), _random((inner, columns), np.int8)
    constants = {"weights": weights, "scale": np.full(columns, 0.01, np.float32)}
    out = np.empty((rows, columns), np.float32)
    return _ort_product("DynamicQuantizeMatMul", x, constants, out, threads, "com.microsoft")


def _ort_product(
    operator: str, x: Any, constants: dict[str, Any], out: Any, threads: int | None, domain: str = ""
) -> Callable[[], object]:
    """A graph of one operator, bound to its input and output."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"The ceilings were not measured: {error}. Install notewave[export].") from error
    helper = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in (("x", x), ("y", out))
    ]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    node = helper.make_node(operator, ["x", *constants], ["y"], domain=domain)
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
    keep = (x, out)  # the binding has only their addresses
    return lambda: (session.run_with_iobinding(binding), keep)


def _torch_float(rows: int, inner: int, columns: int, threads: int | None) -> Callable[[], object]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    x, weights, out = torch.randn(rows, inner), torch.randn(columns, inner), torch.empty(rows, columns)
    return lambda: torch.mm(x, weights.T, out=out)


def _numpy_float(rows: int, inner: int, columns: int, threads: int | None) -> Callable[[], object]:
    del threads
    x, weights, out = _random((rows, inner)), _random((inner, columns)), np.empty((rows, columns), np.float32)
    return lambda: np.matmul(x, weights, out=out)


def _random(shape: tuple[int, int], dtype: type[Any] = np.float32) -> Any:
    random = np.random.default_rng(0)
    if dtype is np.float32:
        return random.standard_normal(shape, np.float32)
    return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _quickest(call: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the quickest of a few calls: a ceiling is what the machine can do when nothing disturbs it."""
    return min(CLOCK.seconds(call) for _ in range(tries))
