"""The graphs that a GPU runs of a voice, lean, then typed; and folders of what is made of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

import notewave
from notewave.backends.device.cache import FORMAT, HOME_VARIABLE, plans_home
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.plans import NAME_MOST, PlanRecord, Target, plan_name, target_of
from notewave.backends.device.shapes import MAX_BATCH, token_buckets
from notewave.backends.graphs.lean import (
    attend_to_kept,
    drop_unused,
    fold_film,
    fold_norms,
    give_bias,
    merge_heads,
    merge_keys_values,
    part_one_frame,
    take_bias,
    take_whole,
)
from notewave.backends.graphs.typed import ELEMENTS, load_graph, type_graph
from notewave.errors import BackendError, OutputError
from notewave.files import atomic_folder
from notewave.inputs import FileRecord
from notewave.kernels.loader import compile_kernels, cubin_name
from notewave.voice.contracts import Contract, Dimensions
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)


def gpu_graph(voice: Voice, network: str, precision: str, narrow_norms: bool = False) -> onnx.ModelProto:
    """Graph of a network with its weights inside: see ``type_graph``. Its contract is that of ``gpu_contracts``.

    Raises VoiceError for graphs that hold integer weights, or that are not as notewave exports them.
    """
    model, size = load_graph(voice, network), voice.dimensions
    graph = model.graph
    if voice.is_autoregressive and network in ("cross_attention", "decoder"):
        _lean_frame(graph, network, size)
    else:
        _lean_segment(graph, network, voice)
    _declare(graph, gpu_contracts(voice, precision)[network])
    drop_unused(graph)
    type_graph(graph, precision, narrow_norms)
    return model


def _lean_segment(graph: onnx.GraphProto, network: str, voice: Voice) -> None:
    """Rewrite a network of a voice that denoises, or any voice's encoder."""
    size = voice.dimensions
    if network in ("note_encoder", "context_encoder", "decoder"):
        merge_heads(graph, size.heads)
    if network == "decoder":
        take_whole(graph)
        take_bias(graph)
        fold_film(graph, size)
    elif network == "cross_attention":
        merge_keys_values(graph)
        give_bias(graph, size.frames)
    elif network == "time_embedding":
        fold_norms(graph, fold_film(load_graph(voice, "decoder").graph, size))


def _lean_frame(graph: onnx.GraphProto, network: str, size: Dimensions) -> None:
    """Rewrite an autoregressive voice's decoder, or what makes the keys and values of its notes."""
    if network == "cross_attention":
        give_bias(graph, 1)
        return
    take_bias(graph)
    attend_to_kept(graph, size)
    part_one_frame(graph, size)


def make_plans(
    voice: Voice, engine: Any, capability: tuple[int, int], precision: str, plan: Callable[[str, Contract], bytes]
) -> Path:
    """Keep what ``plan`` gives for every network of a voice, and the CUDA kernels, in a folder of its own, whole.

    engine: one of plans.FLAVOURS' modules. Raises OutputError when the folder cannot be written.
    """
    target = target_of(voice, engine, capability, precision)
    home = target.folder(voice, plans_home())
    try:
        with atomic_folder(home) as folder:
            seconds = _write_plans(folder, voice, target, plan)
            try:
                (folder / cubin_name()).write_bytes(compile_kernels(capability))
            except BackendError as error:
                log.info("kernels are left to be compiled on the GPU's machine: %s", error)
            files = {path.name: FileRecord.of(path) for path in sorted(folder.iterdir())}
            name, buckets = voice.name[:NAME_MOST], token_buckets(voice)
            PlanRecord(FORMAT, target, name, notewave.__version__, buckets, MAX_BATCH, seconds, files).save(folder)
    except OutputError as error:
        raise OutputError(f"{error} {HOME_VARIABLE} names where plans go.") from error
    return home


def _write_plans(
    folder: Path, voice: Voice, target: Target, plan: Callable[[str, Contract], bytes]
) -> dict[str, float]:
    """Write the plan of every network; the seconds that each took."""
    seconds = {}
    for network, contract in gpu_contracts(voice, target.precision).items():
        start = time.perf_counter()
        (folder / plan_name(network, target.flavour)).write_bytes(plan(network, contract))
        seconds[network] = round(time.perf_counter() - start, 2)
        log.info("%s built for compute capability %s in %.1f s", network, target.capability, seconds[network])
    return seconds


def _declare(graph: onnx.GraphProto, contract: Contract) -> None:
    """Say what the graph takes and gives."""
    for values, tensors in ((graph.input, contract.inputs), (graph.output, contract.outputs)):
        del values[:]
        values.extend(
            helper.make_tensor_value_info(tensor.name, ELEMENTS[tensor.dtype], tensor.shape) for tensor in tensors
        )
