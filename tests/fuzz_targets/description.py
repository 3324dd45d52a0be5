"""A voice's description, beside the files of a tiny voice."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from pathlib import Path

import notewave
from fuzz_targets import Target
from fuzz_targets.tiny import voice_files, write_files
from notewave.voice.library import DESCRIPTION


class Fuzzed(Target):
    """voice.json."""

    expected = notewave.VoiceError
    words = (b"format", b"dimensions", b"dialect", b"velocities", b"programs", b"vocoder", b"../x.onnx", b"link.bin")

    def __init__(self, name: str, scratch: Path) -> None:
        super().__init__(name, scratch)
        self._files = voice_files()
        self._folder, self._copy = scratch / "voice", scratch / "copy"
        write_files(self._folder, self._files)
        self._copy.mkdir(exist_ok=True)

    def corpus(self) -> list[bytes]:
        whole = self._files[DESCRIPTION]
        dialect = b'"dialect": {"velocities": 8, "programs": "gm"}, "prediction"'
        newer = whole.replace(b'"format": 1', b'"format": 2').replace(b'"prediction"', dialect)
        return [whole, newer, *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        (self._folder / DESCRIPTION).write_bytes(content)
        described = notewave.Voice.describe(self._folder)
        loaded = notewave.Voice.load(self._folder)
        assert loaded == described
        dataclasses.replace(loaded, folder=self._copy).save_description()
        assert notewave.Voice.describe(self._copy) == dataclasses.replace(loaded, folder=self._copy)
        return "voice"
