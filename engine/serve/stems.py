"""A song's parts, each sung alone, in an archive that is sent as it is made."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from notewave.serve.encode import FORMATS, Encoder
from notewave.serve.orders import Rendering, Score, Steps, sampling, sung_tokens, written
from notewave.serve.spool import Spool
from notewave.sound.mel import FloatArray
from notewave.stems import MIX, stem_tokens, sum_error
from notewave.synthesizer import Synthesizer

DESCRIPTION = "stems.json"
_BESIDE = 1 << 10  # bytes of the archive beside a file's own, at most


def stems(data: bytes, values: Mapping[str, Any], singer: Synthesizer, most_seconds: float, spool: Spool) -> Rendering:
    """The mix of a song, then each part alone and as long as it, written to a spool as a ZIP archive.

    Errors as ``Score.of`` and ``Synthesizer.stream``.
    """
    score = Score.of(data, values, most_seconds)
    mix, dialect = sung_tokens(score.notes, singer, values["strict"]), singer.voice.dialect
    songs = {MIX: mix, **stem_tokens(score.notes, mix, dialect, most_seconds)}
    samples = score.samples(len(mix))
    form, rate = FORMATS[values["format"]], values["rate"]
    sung = {name: singer.stream(song, **sampling(values, spool)) for name, song in songs.items()}
    encoders = {name: form.encoder(samples, rate) for name in songs}
    size = len(songs) * (form.size(samples, rate) + _BESIDE) + _BESIDE

    def steps() -> Steps:
        sums = {True: np.zeros(samples, np.float32), False: np.zeros(samples, np.float32)}  # the mix; its parts
        with zipfile.ZipFile(_Sink(spool.write), "w") as archive:
            for name, song in sung.items():
                entry = zipfile.ZipInfo(f"{name}.{values['format']}")
                entry.file_size = size  # at most, by which it is seen how large its numbers may be
                heard = _Heard(encoders[name], sums[name == MIX])
                with archive.open(entry, "w") as file:
                    made_s = yield from written(song, score, samples, heard, file.write)
                yield made_s
            told = {"error_nats": sum_error(sums[False], sums[True]), "parts": list(songs)[1:]}
            archive.writestr(zipfile.ZipInfo(DESCRIPTION), json.dumps(told))
        return 0.0

    return Rendering(steps(), len(songs) * len(mix), samples, size, False, "application/zip", "stems.zip")


class _Heard:
    """An encoder whose samples are also added to a sum of sounds."""

    def __init__(self, encoder: Encoder, total: FloatArray) -> None:
        self._encoder, self._rest = encoder, total

    def push(self, samples: FloatArray) -> bytes:
        """See ``Encoder.push``."""
        self._rest[: len(samples)] += samples
        self._rest = self._rest[len(samples) :]
        return self._encoder.push(samples)

    def finish(self) -> bytes:
        """See ``Encoder.finish``."""
        return self._encoder.finish()


class _Sink(io.RawIOBase):
    """A file that is written from its beginning to its end."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Hand on what is written."""
        self._put(bytes(data))
        return len(data)
