"""The user's voice folder: what is found in it, and how voices come into it, from folders and from a hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_hub import SHA, Hub, serving_hub

from notewave import ArgumentError, NotewaveError, OutputError, Voice, VoiceError, bundled_voices
from notewave.export.library import _copy, add_voice
from notewave.voice.library import DESCRIPTION, voices, voices_folder

CHECKPOINT = Path(__file__).parent / "data" / "reference" / "checkpoint"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The voice folder, which is not there yet."""
    folder = tmp_path / "data" / "voices"
    monkeypatch.setenv("NOTEWAVE_VOICES", str(folder))
    return folder


@pytest.fixture
def source(reference_voice: Path, tmp_path: Path) -> Path:
    """A voice that may be spoilt."""
    return Path(shutil.copytree(reference_voice, tmp_path / "owner" / "Any Voice!"))


def names_in(folder: Path) -> list[str]:
    """Names of all that is in a folder, if it is there."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_voice_folder_is_where_the_system_keeps_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTEWAVE_VOICES", str(tmp_path))
    assert voices_folder() == tmp_path
    monkeypatch.setenv("NOTEWAVE_VOICES", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert voices_folder().parts[-2:] == ("notewave", "voices")
    if sys.platform == "linux":
        assert voices_folder() == tmp_path / "notewave" / "voices"


def test_voices_have_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = {"band": tmp_path / "bundled" / "band"}
    monkeypatch.setattr("notewave.voice.library.bundled_voices", lambda: bundled)
    assert voices() == bundled
    for name in ("zither", "band", "organ", "no voice", ".hidden", "ünï", "n" * 101, "empty"):
        (folder / name).mkdir(parents=True)
        (folder / name / DESCRIPTION).write_text("{}")
    (folder / "empty" / DESCRIPTION).unlink()
    (folder / "file").write_text("")
    (folder / "link").symlink_to(folder / "organ")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "circle").symlink_to(folder / "circle")
    own = {name: folder / name for name in ("link", "organ", "zither")}
    assert list(voices().items()) == list((bundled | own).items()), "in this order"


def test_a_voice_folder_that_is_none(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("")
    with pytest.raises(VoiceError, match=r"voice folder .* cannot be read: Not a directory\. Check"):
        voices()


def test_what_is_closed_to_us_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "closed").mkdir(parents=True)

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    assert "closed" not in voices()


def test_a_voice_is_found_by_bundled_name_then_path_then_name(
    folder: Path, reference_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reference_voice, folder / "mine")
    assert Voice.load("mine").folder == folder / "mine"
    shutil.copytree(reference_voice, tmp_path / "mine")
    assert Voice.load("mine").folder == Path("mine")
    monkeypatch.setattr("notewave.voice.folder.bundled_voices", lambda: {"mine": reference_voice})
    assert Voice.load("mine").folder == reference_voice
    with pytest.raises(VoiceError, match="no voice"):
        Voice.load("../voices/mine/")


def test_a_name_that_no_voice_has_is_answered_with_all_names(folder: Path, reference_voice: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "mine").symlink_to(reference_voice)
    with pytest.raises(VoiceError, match="no voice at 'nobody'") as caught:
        Voice.load("nobody")
    assert f"Bundled voices: {', '.join(bundled_voices()) or 'none'}; in {folder}: mine;" in str(caught.value)


def test_a_local_voice_is_copied(folder: Path, source: Path) -> None:
    (source / "notes.txt").write_text("not listed")
    voice = add_voice(source)
    assert voice == Voice.load("Any-Voice") == dataclasses.replace(Voice.load(source), folder=folder / "Any-Voice")
    assert {path.name for path in voice.folder.iterdir()} == {DESCRIPTION, *voice.files}
    assert all((voice.folder / name).read_bytes() == (source / name).read_bytes() for name in voice.files)
    assert names_in(folder) == ["Any-Voice"]


def test_a_voice_of_links_becomes_one_of_files(folder: Path, source: Path) -> None:
    (source / "decoder.onnx").rename(source / "elsewhere")
    (source / "decoder.onnx").symlink_to("elsewhere")
    added = add_voice(source, name="copied").folder
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in added.iterdir())


def test_a_checkpoint_is_exported(folder: Path) -> None:
    voice = add_voice(CHECKPOINT, name="exported", precision="fp16")
    assert voice == Voice.load("exported")
    assert (voice.folder, voice.name, voice.precision) == (folder / "exported", "exported", "fp16")


def _cut(source: Path) -> None:
    (source / "decoder.onnx").write_bytes(b"")


def _changed(source: Path) -> None:
    content = (source / "decoder.onnx").read_bytes()
    (source / "decoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _outside(source: Path) -> None:
    (source / "decoder.onnx").rename(source.parent / "outside")
    (source / "decoder.onnx").symlink_to("../outside")


def _nonsense(source: Path) -> None:
    (source / DESCRIPTION).write_text("[]")


@pytest.mark.parametrize("spoil", [_cut, _changed, _outside, _nonsense])
def test_a_spoilt_voice_is_refused_whole(folder: Path, source: Path, spoil: Any) -> None:
    spoil(source)
    with pytest.raises(VoiceError):
        add_voice(source)
    assert not names_in(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_stops_midway_leaves_nothing(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def copy(origin: Path, target: Path, most: int) -> None:
        assert target.parent.parent == folder and voices() == bundled_voices(), "it has no voice's name yet"
        if origin.name == "decoder.onnx":
            raise error
        _copy(origin, target, most)

    monkeypatch.setattr("notewave.export.library._copy", copy)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        add_voice(source)
    assert not names_in(folder)


def test_a_name_that_is_taken_is_not_replaced(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = add_voice(source, name="mine").folder
    (folder / "junk").mkdir()
    (folder / "dangling").symlink_to("nothing")
    monkeypatch.setattr("notewave.voice.library.bundled_voices", lambda: {"band": source})
    before = {path: path.stat().st_mtime_ns for path in added.iterdir()}
    for name in ("mine", "junk", "dangling", "band"):
        for origin in (source, CHECKPOINT):
            with pytest.raises(OutputError, match=rf"name '{name}' is taken by .*--name"):
                add_voice(origin, name=name)
    assert {path: path.stat().st_mtime_ns for path in added.iterdir()} == before
    assert names_in(folder) == ["dangling", "junk", "mine"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "-a", "ü", "a b", "a\0", "n" * 101, 5], ids=repr)
def test_what_is_no_name(folder: Path, source: Path, name: Any) -> None:
    with pytest.raises(ArgumentError, match="cannot be a voice's name"):
        add_voice(source, name=name)
    assert not folder.exists()


@pytest.mark.parametrize("what", ["nowhere", "no/such/folder", "a" * 300, "a\0b", None, b"band", 5], ids=repr)
def test_what_is_no_source(folder: Path, what: Any) -> None:
    with pytest.raises(NotewaveError):
        add_voice(what, name="new")
    assert not folder.exists()


def test_a_voice_is_taken_as_it_is(folder: Path, source: Path, tmp_path: Path) -> None:
    for options in ({"precision": "int8"}, {"vocoder": tmp_path / "model.onnx"}):
        with pytest.raises(VoiceError, match=r"is a voice, in fp32, .* taken as it is"):
            add_voice(source, **options)
    assert not folder.exists()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub over ``tmp_path/hub``; the environment of its clients."""
    with serving_hub(tmp_path / "hub") as environment:
        yield environment


def add_from(hub: dict[str, str], *sources: str) -> list[str]:
    """What came of adding each, in a process of its own: the hub's client reads its settings once, on import."""
    program = (
        "import sys\nfrom notewave import NotewaveError\nfrom notewave.export.library import add_voice\n"
        "for source in sys.argv[1:]:\n"
        "    try:\n        print(add_voice(source).folder, 'torch' in sys.modules)\n"
        "    except NotewaveError as error:\n        print(type(error).__name__, ' '.join(str(error).split()))\n"
    )
    command = [sys.executable, "-c", program, *sources]
    return subprocess.run(command, env=hub, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_voice_is_fetched_from_the_hub_without_torch(
    folder: Path, reference_voice: Path, hub: dict[str, str]
) -> None:
    published = Path(shutil.copytree(reference_voice, Hub.root / "owner" / "sweet.voice"))
    (published / "README.md").write_text("not listed")
    (published / "huge.bin").write_bytes(b"not listed")
    assert add_from(hub, "owner/sweet.voice") == [f"{folder / 'sweet.voice'} False"]
    voice = Voice.load("sweet.voice")
    assert {path.name for path in voice.folder.iterdir()} == {DESCRIPTION, *voice.files}
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in voice.folder.iterdir())
    assert {path.rpartition("/")[2] for path in Hub.asked} == {DESCRIPTION, *voice.files}
    assert all(f"/resolve/{SHA}/" in path for path in Hub.asked), "all of one revision"


def test_what_is_no_voice_on_the_hub_is_taken_for_a_checkpoint(folder: Path, hub: dict[str, str]) -> None:
    """A crooked one, which the export refuses: it would take its time."""
    published = Path(shutil.copytree(CHECKPOINT, Hub.root / "owner" / "checkpoint"))
    (published / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    (line,) = add_from(hub, "owner/checkpoint")
    assert line.startswith("VoiceError scheduler/scheduler_config.json says beta_schedule = 'linear'")
    assert not folder.exists()


def test_checkpoints_of_other_layouts_are_fetched_from_the_hub(folder: Path, hub: dict[str, str]) -> None:
    """Of each what it needs: crooked ones again, so it is what is wrong in them that is told."""
    ported, arrays = (Hub.root / "owner" / name for name in ("ported", "arrays"))
    ported.mkdir(parents=True)
    torch.save({"state_dict": {"model.emb.weight": torch.zeros(901, 8)}}, ported / "last.ckpt")
    (ported / "config.yaml").write_text("model: {class_path: lightning.DiffusionLM, init_args: {nhead: 2}}")
    (ported / "samples.wav").write_bytes(b"not needed")
    at = arrays / "checkpoint_7" / "target.decoder.time_emb_dense0.kernel"
    at.mkdir(parents=True)
    (at / ".zarray").write_text("{}")
    (arrays / "checkpoint_7" / "state.step").write_bytes(b"not needed")
    said = add_from(hub, "owner/ported", "owner/arrays")
    assert "config.yaml does not fit the checkpoint, which is of a AutoregressiveLM" in said[0]
    assert ".zarray describes no array that can be read" in said[1]
    assert {path.rpartition("/")[2] for path in Hub.asked} == {"last.ckpt", "config.yaml", ".zarray"}
    assert not folder.exists()


def _describe(published: Path, files: dict[str, Any]) -> None:
    """List other files in the description."""
    content = json.loads((published / DESCRIPTION).read_text())
    (published / DESCRIPTION).write_text(json.dumps({**content, "files": content["files"] | files}))


def test_what_a_hub_may_not_give(folder: Path, reference_voice: Path, hub: dict[str, str]) -> None:
    names = ("large", "long", "path", "bytes", "endless", "changed", "broken")
    at = {name: Path(shutil.copytree(reference_voice, Hub.root / "owner" / name)) for name in names}
    record = {"sha256": "0" * 64}
    with (at["large"] / DESCRIPTION).open("ab") as stream:
        stream.write(b" " * (1 << 20))
    with (at["long"] / "decoder.onnx").open("ab") as stream:
        stream.write(b"more")
    _describe(at["path"], {"../outside": {**record, "bytes": 3}})
    _describe(at["bytes"], {"extra": {**record, "bytes": "3"}})
    _describe(at["endless"], {"extra": {**record, "bytes": 1 << 50}})
    _changed(at["changed"])
    (at["broken"] / DESCRIPTION).write_text("[")
    said = dict(zip(names, add_from(hub, *(f"owner/{name}" for name in names)), strict=True))
    assert all(line.startswith("VoiceError ") for line in said.values()), said
    assert "voice.json has" in said["large"]
    assert "decoder.onnx has" in said["long"]
    assert "'../outside' is listed, which is no plain name" in said["path"]
    assert "extra has no bytes where voice.json says '3'" in said["bytes"]
    assert "extra has no bytes where" in said["endless"]
    assert "was not added" in said["changed"] and "SHA-256" in said["changed"]
    assert "voice.json cannot be used" in said["broken"]
    assert not names_in(folder)
    asked = [path for path in Hub.asked if not path.endswith(DESCRIPTION)]
    assert all(path.startswith("owner/changed/") for path in asked), "nothing of the others was fetched"


def test_a_hub_that_has_no_such_voice_or_is_not_there(folder: Path, hub: dict[str, str]) -> None:
    (absent,) = add_from(hub, "owner/absent")
    (unreachable,) = add_from({**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}, "owner/voice")
    for line, name in ((absent, "absent"), (unreachable, "voice")):
        assert line.startswith(f"VoiceError 'owner/{name}' is no folder here, and could not be fetched")
    assert not folder.exists()
