"""The networks as ONNX graphs: exported, stored at the precision asked for, checked against PyTorch.

Graphs hold opset-23 standard operators only. Their weights lie beside them in one file, each tensor once, so that the
unconditional decoder costs nothing and no size limit of protobuf applies.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from notewave.contracts import Axis, Contract, contracts
from notewave.errors import VoiceError
from notewave.export.modules import SpectrogramDiffusion, masked_bias
from notewave.voice import graph_name

OPSET = 23  # the first with Attention and RMSNormalization
WEIGHTS = "weights.bin"
EMBEDDED_BYTES = 1024  # smaller tensors stay in the graph
ALIGNMENT = 4096  # bytes: tensors start on a page, so that a runtime can map them
PARITY_LIMIT = 1e-3  # largest relative error of a float32 graph

_EXAMPLE_SIZES = {"B": 2, "N": 5, "C": 3, "J": 8, "S": 4, "V": 6}  # none is 0 or 1, which torch.export would take for fixed


def write_graphs(model: SpectrogramDiffusion, folder: Path, precision: str) -> dict[str, float]:
    """Write the graph of every network but the vocoder, and their weights file, into a folder.

    Returns each graph's largest relative error against PyTorch; raises VoiceError when a float32 graph is not equal to it.
    """
    model = model.eval().requires_grad_(False)
    examples = realistic_inputs(model)
    parity = {}
    with (folder / WEIGHTS).open("wb") as stream:
        store = WeightStore(stream)
        for network, module in modules(model).items():
            graph = export_graph(module, contracts(model.size)[network])
            store.take(graph)
            ir.save(graph, folder / graph_name(network))
    for network, module in modules(model).items():
        path = folder / graph_name(network)
        onnx.checker.check_model(str(path), full_check=True)
        parity[network] = relative_error(path, module, examples[network])
        if precision == "fp32" and not parity[network] <= PARITY_LIMIT:
            raise VoiceError(
                f"{network} in ONNX differs from PyTorch by {parity[network]:.2g} (relative), more than {PARITY_LIMIT:g}. "
                "The weights are not finite or this version of torch or onnxruntime miscompiles them; try another version."
            )
    return parity


def modules(model: SpectrogramDiffusion) -> dict[str, nn.Module]:
    """The module behind each network of the contracts; the unconditional decoder is the decoder without keys."""
    names = ("note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder")
    return {name: getattr(model, name) for name in names} | {"unconditional_decoder": model.decoder}


def export_graph(module: nn.Module, contract: Contract) -> ir.Model:
    """Translate a module to a graph that has exactly the contract's names, order and axes."""
    inputs = tuple(
        torch.zeros([_EXAMPLE_SIZES[axis] if isinstance(axis, str) else axis for axis in tensor.shape], dtype=getattr(torch, tensor.dtype))
        for tensor in contract.inputs
    )
    axes = torch.export.ShapesCollection()
    for value, tensor in zip(inputs, contract.inputs, strict=True):
        axes[value] = {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(tensor.shape) if isinstance(axis, str)}
    with _quiet():
        program = torch.onnx.export(
            torch.export.export(module, inputs, dynamic_shapes=axes),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in contract.inputs],
            output_names=[tensor.name for tensor in contract.outputs],
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    for node in graph:
        node.metadata_props.clear()  # stack traces of this machine
        for value in node.outputs:
            value.metadata_props.clear()
    for values, tensors in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = ir.Shape(tensor.shape)
    return program.model


class WeightStore:
    """Moves the large tensors of graphs into one file, each content once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets: dict[bytes, int] = {}  # by SHA-256 of the content

    def take(self, model: ir.Model) -> None:
        """Replace the model's large initializers by references into the file."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < EMBEDDED_BYTES:
                continue
            content = tensor.tobytes()
            digest = hashlib.sha256(content).digest()
            if digest not in self._offsets:
                self._stream.seek(-self._stream.tell() % ALIGNMENT, 1)
                self._offsets[digest] = self._stream.tell()
                self._stream.write(content)
            value.const_value = ir.ExternalTensor(
                WEIGHTS, self._offsets[digest], len(content), tensor.dtype, shape=tensor.shape, name=value.name
            )


def realistic_inputs(model: SpectrogramDiffusion, tokens: int = 200) -> dict[str, tuple[Tensor, ...]]:
    """Inputs of every network as a render would give them: seeded random notes, context, noise and noise times."""
    generator = torch.Generator().manual_seed(0)
    size = model.size
    ids = torch.randint(1, size.vocabulary, (1, tokens), generator=generator, dtype=torch.int32)
    mel = torch.rand(1, size.frames, size.mels, generator=generator) * 2 - 1
    x = torch.randn(1, size.frames, size.mels, generator=generator)
    time = torch.tensor([0.05, 0.5, 0.95])
    with torch.inference_mode():
        memory = (model.note_encoder(ids), model.context_encoder(mel))
        keys_values = model.cross_attention(*memory)
        film = model.time_embedding(time)[1:2]
    keep = torch.ones(1, tokens + size.frames, dtype=torch.bool)
    keep[:, tokens - 8 : tokens] = False
    return {
        "note_encoder": (ids,),
        "context_encoder": (mel,),
        "cross_attention": memory,
        "time_embedding": (time,),
        "decoder": (x, film, masked_bias(keep), *keys_values),
        "unconditional_decoder": (x, film),
    }


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
