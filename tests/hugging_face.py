"""Hugging Face's ``datasets``, without a network."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def hugging_face_loader(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., Any]:
    """``datasets.load_dataset``, which keeps what it reads in a folder of its own."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # Imported, and of files not used, when a path is noted down. It needs FFmpeg.
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders := ModuleType("torchcodec.encoders"))
    monkeypatch.setattr(encoders, "AudioEncoder", None, raising=False)
    return functools.partial(datasets.load_dataset, cache_dir=str(cache))
