"""Files of sound that a song is to go on from."""

from __future__ import annotations

import io
from collections.abc import Hashable

import numpy as np
import soundfile

from fuzz_targets import Target
from notewave.errors import ArgumentError
from notewave.sampling.context import network_context

KINDS = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_24"), ("AU", "ULAW"))


class Fuzzed(Target):
    """The end of a sound, as the context of a song."""

    expected = ArgumentError
    words = (b"RIFF", b"data", b"fmt ", b"fLaC", b"OggS", b"FORM", b"COMM", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80")

    def corpus(self) -> list[bytes]:
        """A second of noise in each kind of file, of one channel or two."""
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2))
        return [written(noise[:, :channels], *kind) for kind in KINDS for channels in (1, 2)]

    def run(self, content: bytes) -> Hashable:
        """Take it."""
        path = self.scratch / "sound"
        path.write_bytes(content)
        context = network_context(path)
        assert np.isfinite(context).all() and np.abs(context).max() <= 1
        return int((context > -1).any(axis=1).sum())


def written(samples: np.ndarray, kind: str, subtype: str) -> bytes:
    """A file of sound [n, channels] at 8 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, subtype, format=kind)
    return file.getvalue()
