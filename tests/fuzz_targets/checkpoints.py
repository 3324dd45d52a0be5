"""What targets of checkpoints share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Hashable, Mapping
from pathlib import Path

from fuzz_mutators.archives import unpack

import notewave
from fuzz_targets import Target
from notewave.export.checkpoints.assemble import Checkpoint


class Folder(Target):
    """A folder of any files, given as one input."""

    expected = notewave.VoiceError

    _files: Mapping[str, bytes] = {}  # that lie in the folder

    def write(self, content: bytes) -> Path:
        """Make the folder hold these files, as far as they can lie together, and write only what changes."""
        folder, files = self.scratch / "folder", unpack(content)
        folder.mkdir(exist_ok=True)
        try:
            for name in self._files.keys() - files.keys():
                (folder / name).unlink()
            _write(folder, {name: body for name, body in files.items() if self._files.get(name) != body})
            self._files = files
        except OSError:  # a folder is where a file would be, or a file where a folder would
            self._files = {}
            shutil.rmtree(folder)
            folder.mkdir()
            for name, body in files.items():
                with contextlib.suppress(OSError):
                    _write(folder, {name: body})
        return folder


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)


def summary(checkpoint: Checkpoint) -> Hashable:
    """In what checkpoints that are read differ."""
    parameters: Mapping[str, object] = checkpoint.model.state_dict()
    return checkpoint.prediction, len(parameters), checkpoint.vocoder is not None
