"""Songs that are nearly the same as an earlier one, of all that a corpus is made of."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

from notewave.corpus.sketch import Seen, sketch
from notewave.errors import MidiError
from notewave.files import cannot_write
from notewave.song.midi import examine

SKETCHES = ".sketches"  # the file of them in a corpus: a line a song, its SHA-256 and its sketch in base 64


class Originals:
    """The songs met so far, each known by a sketch of its notes, which is kept for later runs."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """folder: where the corpus' ledger is. max_bytes: of a song."""
        self._path, self._max_bytes, self._seen = folder / SKETCHES, max_bytes, Seen()
        self._sketches: dict[bytes, bytes] = {}
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):  # a line that was not written to its end: made again
                    digest, text = line.split()
                    self._sketches[bytes.fromhex(digest.decode())] = base64.b64decode(text, validate=True)

    def original(self, source: str, sha256: str, data: bytes) -> str | None:
        """The earlier source that a song is nearly the same as, if there is one; otherwise it is an original itself.

        data: its file's. A song that cannot be read is like no other. Raises OutputError where sketches cannot be kept.
        """
        digest = bytes.fromhex(sha256)
        if digest not in self._sketches:
            try:
                self._sketches[digest] = sketch(examine(data, max_bytes=self._max_bytes).notes)
            except MidiError:
                return None
            self._keep(sha256, self._sketches[digest])
        known = self._seen.like(self._sketches[digest])
        if known is None:
            self._seen.add(source, self._sketches[digest])
        return known

    def _keep(self, sha256: str, made: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(b"%s %s\n" % (sha256.encode(), base64.b64encode(made)))
        except OSError as error:
            raise cannot_write(self._path, error) from error
