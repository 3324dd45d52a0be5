"""The reference voice with a small vocoder of its own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from notewave.inputs import FileRecord
from notewave.sound.mel import HOP, MELS
from notewave.sound.stream import VocoderTraits
from notewave.voice.files import graph_name
from notewave.voice.folder import Voice


def sounding_voice(reference: Path, folder: Path) -> Voice:
    """Copy of a voice without a vocoder to a new folder, where it has one."""
    shutil.copytree(reference, folder)
    path = folder / graph_name("vocoder")
    onnx.save(_vocoder(), path)
    silent = Voice.load(reference)
    files = silent.files | {path.name: FileRecord.of(path)}
    traits = VocoderTraits(left_frames=1, right_frames=1, positional=True)
    dataclasses.replace(silent, folder=folder, vocoder=traits, files=files).save_description()
    return Voice.load(folder)


def _vocoder() -> onnx.ModelProto:
    """Mel [B, V, M] and the index of its first frame -> audio [B, HOP V]: one convolution over frames and an offset."""
    weight = np.random.default_rng(0).normal(0.0, 0.01, (HOP, MELS, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["mel"], ["bins"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["bins", "weight"], ["blocks"], pads=[1, 1]),
        helper.make_node("Transpose", ["blocks"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("Flatten", ["frames"], ["samples"], axis=1),
        helper.make_node("Cast", ["frame"], ["index"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["index", "drift"], ["offset"]),
        helper.make_node("Add", ["samples", "offset"], ["audio"]),
    ]
    graph = helper.make_graph(
        nodes,
        "vocoder",
        [
            helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["B", "V", MELS]),
            helper.make_tensor_value_info("frame", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["B", f"{HOP}*V"])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([1e-6], np.float32), "drift"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
