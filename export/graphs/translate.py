"""Modules as ONNX graphs: translated by contract, their weights moved into a shared file, held against PyTorch.

Graphs hold standard operators of opset 23 only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from notewave.voice import contracts

OPSET = 23  # the first with Attention and RMSNormalization
EMBEDDED_BYTES = 1024  # smaller tensors stay in the graph
ALIGNMENT = 4096  # bytes: tensors start on a page, so that a runtime can map them

_EXAMPLE_SIZES = {"B": 2, "N": 5, "C": 3, "J": 8, "S": 4, "T": 7, "V": 9}  # torch.export would take 0 and 1 for fixed


def export_graph(module: nn.Module, contract: contracts.Contract) -> ir.Model:
    """Translate a module to a graph that has exactly the contract's names, order, dtypes and axes."""
    inputs = tuple(_example(tensor) for tensor in contract.inputs)
    axes = torch.export.ShapesCollection()
    for example, tensor in zip(inputs, contract.inputs, strict=True):
        axes[example] = {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
    with _quiet():
        program = torch.onnx.export(
            torch.export.export(module, inputs, dynamic_shapes=axes.dynamic_shapes(module, inputs)),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in contract.inputs],
            output_names=[tensor.name for tensor in contract.outputs],
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    for node in model.graph:  # drop stack traces, which name this machine's paths
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for values, tensors in ((model.graph.inputs, contract.inputs), (model.graph.outputs, contract.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = ir.Shape(tensor.shape)
    return model


def _example(tensor: contracts.Tensor) -> Tensor:
    return torch.zeros(tensor.shape_at(_EXAMPLE_SIZES), dtype=getattr(torch, tensor.dtype))


class WeightFile:
    """One file for the large tensors of several graphs, each content once; no limit of protobuf applies to it."""

    def __init__(self, path: Path) -> None:
        """Start an empty file."""
        self._path = path
        self._offsets: dict[bytes, int] = {}  # by SHA-256 of the content
        path.touch()

    def take(self, model: ir.Model) -> None:
        """Move the model's large initializers into the file and refer to them there."""
        with self._path.open("ab") as stream:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < EMBEDDED_BYTES:
                    continue
                array = tensor.numpy()
                content = array.tobytes()
                digest = hashlib.sha256(content).digest()
                if digest not in self._offsets:
                    stream.write(bytes(-stream.tell() % ALIGNMENT))
                    self._offsets[digest] = stream.tell()
                    stream.write(content)
                value.const_value = ir.ExternalTensor(
                    self._path.name,
                    self._offsets[digest],
                    len(content),
                    tensor.dtype,
                    shape=ir.Shape(array.shape),
                    name=str(value.name),
                )


def relative_error(graph: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest max|a - b| / max|b| over the outputs of a graph (a) and its module (b); NaN when either is not finite."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.inference_mode():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    errors = [np.abs(a - b.numpy()).max() / np.abs(b.numpy()).max() for a, b in zip(found, expected, strict=True)]
    return float(np.max(errors))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation notes from the user, not its errors."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
