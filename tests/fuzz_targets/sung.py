"""Voices of any files: a tiny voice with other graphs or weights, opened and sung for a segment."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutators.archives import pack, unpack

import notewave
from fuzz_targets import Target
from fuzz_targets.graph import hostile, words
from fuzz_targets.tiny import WEIGHTS, description, voice_files, write_files
from notewave.voice.library import DESCRIPTION

SONG = [np.array([1134, 300, 1], np.int32)]
BEGIN = "note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder", "unconditional_decoder"


class Fuzzed(Target):
    """Folders of files that stand in the place of a tiny voice's; sizes and checksums are mended."""

    expected = notewave.NotewaveError

    def __init__(self, name: str, scratch: Path) -> None:
        super().__init__(name, scratch)
        self._files = voice_files(vocoder=False)
        del self._files[DESCRIPTION]
        self.words = words()
        self._folder = scratch / "voice"
        write_files(self._folder, self._files)

    def corpus(self) -> list[bytes]:
        graphs = [pack({f"{name}.onnx": self._files[f"{name}.onnx"]}) for name in BEGIN]
        weights = pack({WEIGHTS: self._files[WEIGHTS][:200]})
        strange = [pack({"note_encoder.onnx": content}) for content in hostile()]
        return [*graphs, weights, *strange, *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        given = {name: body for name, body in unpack(content).items() if name in self._files}
        if WEIGHTS in given:  # a whole file, of which the beginning is given
            given[WEIGHTS] += self._files[WEIGHTS][len(given[WEIGHTS]) :]
        files = {**self._files, **given}
        write_files(self._folder, {**files, DESCRIPTION: json.dumps(description(files)).encode()})
        synthesizer: Any = notewave.Synthesizer(self._folder, backend="cpu", threads=1)
        mel = synthesizer.spectrogram(SONG, steps=1, seed=0)
        assert np.isfinite(mel).all()
        return "mel"
