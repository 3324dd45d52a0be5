"""Checkpoints on the Hugging Face hub: which files of a repository make one, in whichever layout it is there."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Collection
from pathlib import Path

from notewave.checks import shown
from notewave.errors import VoiceError
from notewave.export.checkpoints import lightning, t5x
from notewave.export.hub import check_sizes, list_files, reaching

PARTS = ("notes_encoder", "continuous_encoder", "decoder")  # of diffusers' layout
STEM = "diffusion_pytorch_model"  # of the files of weights there: .safetensors or .bin
SCHEDULER = "scheduler/scheduler_config.json"
VOCODER = "melgan/model.onnx"
CONFIGS = (*(f"{part}/config.json" for part in PARTS), SCHEDULER)
FILES = (*CONFIGS, VOCODER, *(f"{part}/{STEM}{suffix}" for part in PARTS for suffix in (".safetensors", ".bin")))

_ARRAY = re.compile(rf"(?:checkpoint_(\d{{1,18}})/)?{re.escape(t5x.PREFIX)}[^/]+/[^/]+(?:/[^/]+)*")


def fetch_repository(repository: str) -> Path:
    """Fetch what is needed of a repository of the hub, or find it in the local cache; the folder that it then is.

    Raises VoiceError where it cannot be had.
    """
    try:
        _, sizes = list_files(repository)
    except VoiceError:
        with contextlib.suppress(Exception):  # what was fetched before will do
            return _fetch(repository, None, cached=True)
        raise
    wanted = checkpoint_files(sizes)
    check_sizes(repository, {name: sizes[name] for name in wanted})
    with reaching(repository):
        return _fetch(repository, wanted)


def checkpoint_files(names: Collection[str]) -> list[str]:
    """Those of a repository's files that make its checkpoint: in diffusers' layout, the PyTorch port's, or T5X'.

    Raises VoiceError where it has several.
    """
    there = set(names)
    if not any(name in there for name in CONFIGS):
        if ported := [name for name in sorted(there) if "/" not in name and name.endswith(lightning.SUFFIX)]:
            if len(ported) > 1:
                few = ", ".join(shown(name) for name in ported[:4])
                raise VoiceError(
                    f"the repository has {len(ported)} checkpoints ({few} ...). Download one, and name that."
                )
            return [*ported, *({lightning.CONFIG} & there)]
        if arrays := {name: int(found[1] or -1) for name in there if (found := _ARRAY.fullmatch(name))}:
            last = max(arrays.values())
            return sorted([name for name, step in arrays.items() if step == last] + [*({t5x.GIN} & there)])
    weights = [f"{part}/{STEM}.{_kind(part, there)}" for part in PARTS]
    return [name for name in (*CONFIGS, VOCODER, *weights) if name in there]


def _kind(part: str, names: Collection[str]) -> str:
    """What kind of file a part's weights are in; of several, the one that needs no pickle."""
    return "safetensors" if f"{part}/{STEM}.safetensors" in names else "bin"


def _fetch(repository: str, names: Collection[str] | None, cached: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    patterns = None if names is None else [glob.escape(name) for name in names]
    return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=cached))
