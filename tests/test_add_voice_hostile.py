"""What may stand in the place of a voice that is added, or come from a hub, and is refused before it costs anything."""

from __future__ import annotations

import json
import os
import shutil
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import test_library
from no_files import EMPTY_FILES, NO_FILES, NOWHERE, put
from test_library import CHECKPOINT, Hub, add_from, names_in

from notewave import VoiceError
from notewave.export.hub import MAX_BYTES, check_sizes, list_files, reaching
from notewave.export.library import _copy, add_voice
from notewave.voice.library import DESCRIPTION

folder, hub, source = test_library.folder, test_library.hub, test_library.source  # fixtures


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, "itself", NOWHERE[-1]])
def test_descriptions_that_are_no_files(folder: Path, source: Path, kind: str) -> None:
    """It is not taken for a checkpoint, which has none."""
    put(kind, source / DESCRIPTION)
    with pytest.raises(VoiceError, match=DESCRIPTION):
        add_voice(source, name="new")
    assert not names_in(folder)


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, *NOWHERE])
def test_listed_files_that_are_none(folder: Path, source: Path, kind: str) -> None:
    put(kind, source / "decoder.onnx")
    with pytest.raises(VoiceError, match=r"decoder\.onnx"):
        add_voice(source, name="new")
    assert not names_in(folder)


@pytest.mark.parametrize("kind", [*NO_FILES, *NOWHERE])
def test_what_came_in_the_place_of_a_file_that_was_checked(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "file")
    with pytest.raises(VoiceError, match=r"file cannot be read: "):
        _copy(tmp_path / "file", tmp_path / "copy", 10)
    assert not (tmp_path / "copy").exists()


def test_no_more_is_copied_than_was_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    _copy(tmp_path / "file", tmp_path / "copy", 4)
    assert (tmp_path / "copy").read_bytes() == b"0123"


def _sparse(path: Path, size: int) -> dict[str, Any]:
    """A file of zeros that takes no place, and its record."""
    path.touch()
    os.truncate(path, size)
    return {"bytes": size, "sha256": "0" * 64}


def test_what_is_too_large_is_not_fetched(folder: Path, reference_voice: Path, hub: ThreadingHTTPServer) -> None:
    checkpoint = Path(shutil.copytree(CHECKPOINT, Hub.root / "owner" / "checkpoint"))
    _sparse(checkpoint / "decoder" / "diffusion_pytorch_model.safetensors", MAX_BYTES + 1)
    voice = Path(shutil.copytree(reference_voice, Hub.root / "owner" / "voice"))
    content = json.loads((voice / DESCRIPTION).read_text())
    for name in ("decoder.onnx", "weights.bin"):
        content["files"][name] = _sparse(voice / name, MAX_BYTES // 2 + 1)
    (voice / DESCRIPTION).write_text(json.dumps(content))
    lines = add_from(hub, "owner/checkpoint", "owner/voice")
    assert all(line.startswith("VoiceError ") for line in lines), lines
    assert lines[0].endswith("has more than 16 GiB, or no size: it is not fetched. Check the name.")
    assert {path.rpartition("/")[2] for path in Hub.asked} == {DESCRIPTION}
    assert not names_in(folder)


@pytest.mark.parametrize("size", [None, -1, MAX_BYTES + 1, "5", 1.5, True])
def test_sizes_that_are_none(size: Any) -> None:
    check_sizes("owner/name", {"file": 5, "other": MAX_BYTES - 5})
    with pytest.raises(VoiceError, match="'owner/name' on the Hugging Face hub has more than 16 GiB, or no size"):
        check_sizes("owner/name", {"file": 5, "other": size})


def test_what_a_hub_says_is_told_in_one_plain_line() -> None:
    with (
        pytest.raises(VoiceError, match=r"ConnectionError: \\x1b\[2J a nnn.* \.\.\.\)") as caught,
        reaching("owner/name"),
    ):
        raise ConnectionError("\x1b[2J\r\n a " + "n" * 100_000)
    assert len(str(caught.value)) < 800 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "a b/c", "a/b\n", "../" + "x" * 300 + "/y", "\x1b[2J/x"])
def test_what_names_no_repository(name: str) -> None:
    with pytest.raises(VoiceError, match="it is no hub id like owner/name"):
        list_files(name)
