"""Checkpoints in diffusers' layout: configurations, safetensors, and the zip files with pickles that torch writes."""

from __future__ import annotations

import io
import json
from collections.abc import Hashable

import safetensors.numpy
import torch
from fuzz_mutators.archives import pack

from fuzz_targets.checkpoints import Folder, summary
from fuzz_targets.tiny import checkpoint_tensors, configs
from notewave.export.checkpoints.diffusers import PARTS, load_diffusers

WEIGHTS = "diffusion_pytorch_model"
HOSTILE = "decoder"  # the part that kept files stand in
ODD = (  # what torch writes, and no checkpoint should hold
    {"w": torch.empty(1 << 30, device="meta")},
    {"w": torch.zeros(1).expand(1 << 20)},
    {"w": torch.eye(3).to_sparse()},
    {"w": torch.zeros(4)[1:3], "v": torch.arange(3)},
    {"w": torch.ones(2, 3).T, "state": {"nested": [torch.zeros(1)]}},
)


class Fuzzed(Folder):
    """Folders in diffusers' layout."""

    words = (b"num_layers", b"d_model", b"prediction_type", b"v_prediction", b"__metadata__", b"data_offsets", b"BF16")

    def corpus(self) -> list[bytes]:
        settings = {path: json.dumps(config).encode() for path, config in configs().items()}
        parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
        for name, array in checkpoint_tensors().items():
            part, _, tensor = name.partition("/")
            parts[part][tensor] = torch.from_numpy(array)
        arrays = {part: {name: tensor.numpy() for name, tensor in tensors.items()} for part, tensors in parts.items()}
        plain = {f"{part}/{WEIGHTS}.safetensors": safetensors.numpy.save(arrays[part]) for part in PARTS}
        pickled = {f"{part}/{WEIGHTS}.bin": _saved(tensors) for part, tensors in parts.items()}
        others = _saved({name: torch.nn.Parameter(tensor.half()) for name, tensor in parts[HOSTILE].items()})
        begin = [plain, pickled, {**plain, **_one(".bin", others)}, {**pickled, "melgan/model.onnx": b"x"}]
        begin[2].pop(f"{HOSTILE}/{WEIGHTS}.safetensors")
        for content in (*super().corpus(), *map(_saved, ODD)):
            begin.append({**pickled, **_one(".bin" if content.startswith(b"PK") else ".safetensors", content)})
        return [pack({**settings, **files}) for files in begin]

    def run(self, content: bytes) -> Hashable:
        return summary(load_diffusers(self.write(content)))


def _one(suffix: str, content: bytes) -> dict[str, bytes]:
    return {f"{HOSTILE}/{WEIGHTS}{suffix}": content}


def _saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
