"""PyTorch modules from a voice's graphs: the way back from an export, so that training can go on from a voice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from notewave.backends.graphs.typed import whole_model
from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.graphs.precision import store_half, weight_of
from notewave.export.graphs.translate import export_graph
from notewave.export.networks import T5, Family, SpectrogramDiffusion, port_family
from notewave.export.vocoders import Tonewheel
from notewave.voice.contracts import Contract
from notewave.voice.folder import Voice

Module = TypeVar("Module", bound=nn.Module)
Place = tuple[int, int]  # a node's number and which of its inputs


def restore_voice(voice: Voice) -> VoiceNetworks:
    """The networks of a voice but the vocoder, with the weights that its graphs hold.

    Raises VoiceError when the voice is int8, which keeps no weights to go on from, or made by another exporter.
    """
    if voice.precision == "int8":
        raise VoiceError(f"{voice.folder} is an int8 voice, too coarse to go on from. Name its fp16 or fp32 original.")
    kind = SpectrogramAutoregression if voice.is_autoregressive else SpectrogramDiffusion
    model = kind(voice.dimensions, family_of(voice))
    for network, module in model.networks().items():
        if network != "unconditional_decoder":  # the decoder's own weights once more
            restore_module(module, voice, network)
    return model


def family_of(voice: Voice) -> Family:
    """The family of a voice's networks, which its graphs show."""
    nodes = list(ir.from_proto(whole_model(voice, "note_encoder")).graph)
    norm = next((node for node in nodes if node.op_type == "LayerNormalization"), None)
    family = T5 if norm is None else port_family(norm.attributes["epsilon"].as_float())
    is_padded = any(node.op_type == "Pad" for node in nodes)
    return replace(family, sees_padding=is_padded)


def restore_vocoder(voice: Voice, arguments: Mapping[str, Any]) -> Tonewheel:
    """A voice's vocoder, which those arguments of Tonewheel made. Raises VoiceError where it is another, or missing."""
    module = Tonewheel(**arguments)
    if voice.vocoder != module.traits:
        raise VoiceError(f"{voice.folder} has no vocoder of the configured size to go on from. Train one anew.")
    return restore_module(module, voice, "vocoder")


def restore_module(module: Module, voice: Voice, network: str) -> Module:
    """Fill a module with the weights of a voice's graph that was exported from one like it; returns the module.

    The exporter renames, transposes and shares weights, but builds the same nodes each time: a module of random weights
    is exported, and where each of them is found, the graph has the one looked for.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    graph = ir.from_proto(whole_model(voice, network)).graph
    probe = export_graph(module.eval(), _as_declared(voice.contracts()[network], graph)).graph
    if voice.precision != "fp32" and network != "vocoder":
        store_half(probe)
    places, stored = _weights(probe), _weights(graph)
    for name, parameter in parameters.items():
        place, turned = _place(places, parameter.detach().numpy())
        if place not in stored:
            raise VoiceError(
                f"{voice.graph(network)} has no {name} where this exporter puts it: another version made the voice."
            )
        weight = stored[place].T if turned else stored[place]
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(weight.astype(np.float32)))
    return module


def _as_declared(contract: Contract, graph: ir.Graph) -> Contract:
    """A contract, its segments' frames fixed where a graph's are: decoders once took whole segments only."""
    declared = [
        (axis, size)
        for tensor, value in zip(contract.inputs, graph.inputs, strict=True)
        for axis, size in zip(tensor.shape, value.shape or (), strict=False)
    ]
    return contract.fixed({axis: size for axis, size in declared if axis == "T" and isinstance(size, int)})


def _weights(graph: ir.Graph) -> dict[Place, NDArray[np.generic]]:
    """Every weight of a graph by the places where it is used; float16 weights are seen through their Casts."""
    cast = {node.outputs[0]: node.inputs[0] for node in graph if node.op_type == "Cast"}
    nodes = [node for node in graph if not (node.op_type == "Cast" and _is_weight(node.inputs[0]))]
    weights = {}
    for index, node in enumerate(nodes):
        for position, value in enumerate(node.inputs):
            source = cast.get(value, value) if value is not None else None
            if source is not None and _is_weight(source):
                weights[index, position] = weight_of(source)
    return weights


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _place(weights: dict[Place, NDArray[np.generic]], sought: NDArray[np.float32]) -> tuple[Place | None, bool]:
    """Where a weight is, and whether it is transposed there."""
    for place, weight in weights.items():
        for turned in (False, True):
            candidate = weight.T if turned else weight
            if candidate.shape == sought.shape and (candidate == sought.astype(weight.dtype)).all():
                return place, turned
    return None, False
