"""Voices are untrusted: what is broken or crooked is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from notewave import BackendError, MidiError, Synthesizer, Voice, VoiceError
from notewave.backends.ort.backend import Buffers
from notewave.inputs import FileRecord
from notewave.sampling.job import Job
from notewave.sampling.samplers import sampler_table
from notewave.voice.library import DESCRIPTION

SONG = [np.array([1134, 300, 1], np.int32)] * 2


@pytest.fixture
def copy(reference_voice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_voice, tmp_path / "voice"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    change(content)
    (folder / DESCRIPTION).write_text(json.dumps(content))


def test_description_survives_a_round_trip(copy: Path) -> None:
    voice = Voice.load(copy)
    voice.save_description()
    assert Voice.load(copy) == voice


def test_missing_voice_names_the_bundled_ones(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="Bundled voices"):
        Voice.load(tmp_path / "nowhere")


@pytest.mark.parametrize("voice", [None, 5, b"piano", ["piano"], "a" * 300, "a\0b", ""], ids=repr)
def test_what_names_no_voice(voice: Any) -> None:
    with pytest.raises(VoiceError, match="no voice"):
        Voice.load(voice)
    with pytest.raises(VoiceError, match="no voice"):
        Synthesizer(voice)


def test_missing_file(copy: Path) -> None:
    (copy / "decoder.onnx").unlink()
    with pytest.raises(VoiceError, match=r"decoder\.onnx is missing"):
        Voice.load(copy)


def test_short_file(copy: Path) -> None:
    content = (copy / "decoder.onnx").read_bytes()
    (copy / "decoder.onnx").write_bytes(content[:-1])
    with pytest.raises(VoiceError, match="cut short"):
        Voice.load(copy)


def test_changed_file(copy: Path) -> None:
    content = bytearray((copy / "decoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "decoder.onnx").write_bytes(content)
    with pytest.raises(VoiceError, match="SHA-256"):
        Voice.load(copy)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "a/b.onnx", "", "..", "x\n"])
def test_names_outside_the_folder(copy: Path, name: str) -> None:
    (copy.parent / "outside.onnx").write_bytes(b"x")
    edit(copy, lambda content: content["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(VoiceError, match="not a plain file"):
        Voice.load(copy)


def test_links_outside_the_folder(copy: Path) -> None:
    shutil.move(copy / "decoder.onnx", copy.parent / "decoder.onnx")
    (copy / "decoder.onnx").symlink_to(copy.parent / "decoder.onnx")
    with pytest.raises(VoiceError, match="leads out of its folder"):
        Voice.load(copy)


def set_path(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 99),
        ("name", 5),
        ("prediction", "noise"),
        ("precision", "fp8"),
        ("dimensions", None),
        ("dimensions.width", 0),
        ("dimensions.width", "64"),
        ("dimensions.width", 1 << 40),
        ("dimensions.frames", 128),
        ("dimensions.extra", 1),
        ("schedule.name", "linear"),
        ("schedule.train_steps", -1),
        ("schedule.train_steps", 1),
        ("sampling.sampler", "euler"),
        ("sampling.sampler", ["ddpm"]),
        ("sampling.steps", 0),
        ("sampling.steps", 1001),
        ("sampling.guidance", None),
        ("sampling.guidance", True),
        ("sampling.guidance", 1e300),
        ("sampling.guidance", 10**400),
        ("parity", None),
        ("parity", []),
        ("parity", [1.0]),
        ("parity", {"decoder": "1e-5"}),
        ("parity", {"decoder": None}),
        ("parity", {"decoder": float("nan")}),
        ("vocoder", {"left_frames": -1, "right_frames": 0, "positional": False}),
        ("vocoder", {"left_frames": 1, "right_frames": 0, "positional": False}),
        ("files", []),
        ("files", {}),
        ("unknown", 1),
    ],
)
def test_crooked_descriptions(copy: Path, path: str, value: Any) -> None:
    edit(copy, set_path(path, value))
    with pytest.raises(VoiceError, match=r"voice\.json"):
        Voice.load(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"format": 1}', "\udc80".encode("utf-8", "surrogateescape")]
)
def test_no_description(copy: Path, text: str | bytes) -> None:
    (copy / DESCRIPTION).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(VoiceError, match=r"voice\.json"):
        Voice.load(copy)


def test_huge_description(copy: Path) -> None:
    (copy / DESCRIPTION).write_bytes(b" " * (2 << 20))
    with pytest.raises(VoiceError, match="2097152 bytes, over 1048576"):
        Voice.load(copy)


def test_a_voice_that_memory_does_not_hold(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, description = os.pread, (copy / DESCRIPTION).stat().st_size

    def fails(descriptor: int, size: int, start: int) -> bytes:
        if size > description:
            raise MemoryError
        return read(descriptor, size, start)

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(VoiceError, match=r"there is no memory to read the voice at .*\. Free some"):
        Voice.load(copy)


def test_wrong_dimensions(copy: Path) -> None:
    edit(copy, set_path("dimensions.width", 128))
    with pytest.raises(VoiceError, match="dimensions"):
        Synthesizer(copy, backend="cpu")


def doubled(tensor: str, axis: int) -> Callable[[onnx.GraphProto], None]:
    """Let a graph give an output twice along an axis, whatever its declared shape."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.output[:] = ["once" if name == tensor else name for name in node.output]
        graph.node.append(onnx.helper.make_node("Concat", ["once", "once"], [tensor], axis=axis))

    return change


def fixed(tensor: str, axis: int, size: int) -> Callable[[onnx.GraphProto], None]:
    """Let a graph declare a size for an axis of an input."""

    def change(graph: onnx.GraphProto) -> None:
        declared = next(value for value in graph.input if value.name == tensor)
        declared.type.tensor_type.shape.dim[axis].dim_value = size

    return change


def change_graph(voice: Path, network: str, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(voice / f"{network}.onnx", load_external_data=False)
    change(model.graph)
    replace(voice, f"{network}.onnx", model.SerializeToString())


@pytest.mark.parametrize(
    ("network", "tensor", "axis", "fact"),
    [
        ("note_encoder", "notes", 1, r"gave notes \[1, 6, 64\]"),
        ("note_encoder", "notes", 0, r"gave notes \[2, 3, 64\]"),
        ("note_encoder", "notes", 2, "notes is"),
        ("context_encoder", "context", 1, "512 frames of 256"),
        ("cross_attention", "keys_0", 2, "cannot run the voice's graphs"),
        ("cross_attention", "values_1", 3, "values_1 is"),
        ("time_embedding", "film", 0, r"gave film \[6, "),
        ("decoder", "prediction", 1, "cannot run the voice's graphs"),
        ("decoder", "prediction", 2, "prediction is"),
        ("decoder", "prediction", 0, "cannot run the voice's graphs"),
    ],
)
def test_graphs_that_give_other_shapes_than_are_due(
    copy: Path, network: str, tensor: str, axis: int, fact: str
) -> None:
    change_graph(copy, network, doubled(tensor, axis))
    with pytest.raises(VoiceError, match=fact):
        Synthesizer(copy, backend="cpu", threads=1).spectrogram(SONG, sampler="dpmpp-2m", steps=3)


@pytest.mark.parametrize(("network", "tensor", "axis"), [("note_encoder", "tokens", 1), ("decoder", "mask", 3)])
def test_graphs_of_one_length_only(copy: Path, network: str, tensor: str, axis: int) -> None:
    change_graph(copy, network, fixed(tensor, axis, 256))
    with pytest.raises(VoiceError, match=rf"{tensor} is .*256.* is due"):
        Synthesizer(copy, backend="cpu", threads=1)


def test_vocoders_of_one_length_only_and_of_one_song_at_a_time(vocoded_voice: Path, tmp_path: Path) -> None:
    for axis, size in ((0, 1), (1, 256)):
        voice = Path(shutil.copytree(vocoded_voice, tmp_path / str(axis)))
        change_graph(voice, "vocoder", fixed("mel", axis, size))
        if axis == 0:
            Synthesizer(voice, backend="cpu", threads=1)
            continue
        with pytest.raises(VoiceError, match=r"mel is .*256, 128\], where .* is due"):
            Synthesizer(voice, backend="cpu", threads=1)


def test_segments_that_are_too_long_for_the_voice(copy: Path) -> None:
    """More tokens than the description says would be written beyond the keys and values."""
    edit(copy, set_path("dimensions.max_tokens", 2))
    synthesizer = Synthesizer(copy, backend="cpu", threads=1)
    with pytest.raises(MidiError, match=r"segment 0 has 3 tokens; voice .* takes 2\."):
        synthesizer.spectrogram(SONG)
    job = Job(sampler_table("dpmpp-2m", 1, synthesizer.voice.schedule, synthesizer.voice.prediction), 1.0, (0,), None)
    with pytest.raises(VoiceError, match="3 tokens; the voice takes 2"), synthesizer._backend.start(job) as run:
        run.denoise(SONG[:1])


def test_buffers_that_no_machine_has(copy: Path) -> None:
    voice = Voice.load(copy)
    huge = dataclasses.replace(voice.dimensions, heads=1 << 16, head_width=1 << 16, decoder_layers=1 << 16)
    with pytest.raises(BackendError, match="no room for the keys and values"):
        Buffers(dataclasses.replace(voice, dimensions=huge), 1)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "voice.json", "link.bin"])
def test_graphs_that_read_other_files(copy: Path, location: str) -> None:
    (copy / "link.bin").symlink_to(copy.parent)
    graph = onnx.load(copy / "note_encoder.onnx", load_external_data=False)
    moved = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    next(entry for entry in moved.external_data if entry.key == "location").value = location
    replace(copy, "note_encoder.onnx", graph.SerializeToString())
    with pytest.raises(VoiceError, match="does not list"):
        Voice.load(copy)


def test_truncated_graph_with_a_matching_checksum(copy: Path) -> None:
    replace(copy, "note_encoder.onnx", (copy / "note_encoder.onnx").read_bytes()[:500])
    with pytest.raises(VoiceError, match="not a whole ONNX graph"):
        Voice.load(copy)


def replace(voice: Path, name: str, content: bytes) -> None:
    """Give a file of a voice other content, and its record with it."""
    (voice / name).write_bytes(content)
    files = json.loads((voice / DESCRIPTION).read_text())["files"]
    edit(voice, set_path("files", {**files, name: vars(FileRecord.of(voice / name))}))
