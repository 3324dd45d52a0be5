"""Folders of plans that others may have written: plans.json, and the files that it lists."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Hashable
from pathlib import Path

from fuzz_mutators.archives import pack

import notewave
from fuzz_targets.checkpoints import Folder
from fuzz_targets.tiny import voice_files, write_files
from notewave.backends.device import plans

CAPABILITY, PRECISION = (8, 9), "fp16"
ENGINE = types.SimpleNamespace(__name__=plans.ONNXRUNTIME, __version__="1.32.0")


class Fuzzed(Folder):
    """Folders of plans of a tiny voice."""

    expected = notewave.BackendError
    words = (b"plans.json", b"target", b"token_buckets", b"max_batch", b"seconds", b"files", b"../x", b"decoder.plan")

    def __init__(self, name: str, scratch: Path) -> None:
        super().__init__(name, scratch)
        write_files(scratch / "voice", voice_files())
        self._voice = notewave.Voice.load(scratch / "voice")
        self._target = plans.target_of(self._voice, ENGINE, CAPABILITY, PRECISION)

    def corpus(self) -> list[bytes]:
        networks = plans.gpu_contracts(self._voice, PRECISION)
        files = {plans.plan_name(network, ENGINE.__name__): network.encode() for network in networks}
        record = {
            "format": plans.FORMAT,
            "target": vars(self._target),
            "voice": "tiny",
            "notewave": "0.1.0",
            "token_buckets": [256, 2048],
            "max_batch": 4,
            "seconds": dict.fromkeys(networks, 1.5),
            "files": {
                name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            },
        }
        whole = {plans.RECORD: json.dumps(record).encode(), **files}
        return [pack(whole), pack({plans.RECORD: whole[plans.RECORD]}), *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        folder = self.write(content)
        found = plans.open_plans(folder, self._target, self._voice)
        for network in plans.gpu_contracts(self._voice, PRECISION):
            found.read(network)
        return len(found.record.files)
