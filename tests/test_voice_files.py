"""Whatever becomes of a voice's folder, and whatever was put there: one voice is sung, or an error says why not."""

from __future__ import annotations

import copy as copying
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from notewave import Synthesizer, Voice, VoiceError
from notewave.backends.graphs.make import gpu_graph
from notewave.backends.ort.sessions import Network
from notewave.export.convert import export_checkpoint
from notewave.export.graphs.restore import restore_voice
from notewave.inputs import SETTLED, FileRecord
from notewave.voice.library import DESCRIPTION

SONG = [np.array([1134, 300, 1], np.int32)] * 2
HOSTILE = Path(__file__).parent / "data" / "hostile"
OPTIONS: dict[str, Any] = {"sampler": "dpmpp-2m", "steps": 2, "seed": 3}


@pytest.fixture
def copy(reference_voice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_voice, tmp_path / "voice"))


@pytest.fixture(scope="module")
def other_voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A voice of the same sizes with other weights."""
    from notewave.export.convert import export_voice
    from notewave.export.networks import SpectrogramDiffusion
    from notewave.sampling.options import Sampling
    from notewave.sampling.schedule import NoiseSchedule

    data = Path(__file__).parent / "data" / "reference" / "checkpoint"
    voice = export_checkpoint(data, tmp_path_factory.mktemp("other") / "first")
    model = SpectrogramDiffusion(voice.dimensions).requires_grad_(False)
    facts = {"name": "other", "licence": "none", "provenance": "random", "prediction": "epsilon"}
    sampling = Sampling("dpmpp-2m", steps=2)
    return export_voice(
        model, voice.folder.with_name("other"), schedule=NoiseSchedule(), sampling=sampling, **facts
    ).folder  # type: ignore[arg-type]


def change(voice: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((voice / DESCRIPTION).read_text())
    edit(content)
    (voice / DESCRIPTION).write_text(json.dumps(content))


def put(voice: Path, name: str, content: bytes) -> None:
    """Give a file of a voice other content, and its record with it."""
    (voice / name).unlink(missing_ok=True)
    (voice / name).write_bytes(content)
    mend(voice, name)


def mend(voice: Path, name: str) -> None:
    record = vars(FileRecord.of(voice / name))
    change(voice, lambda content: content["files"].update({name: record}))


@pytest.mark.parametrize("graph", sorted(HOSTILE.glob("*.onnx")), ids=lambda path: path.name.partition(".")[0])
def test_hostile_graphs_are_refused_before_a_runtime_sees_them(graph: Path, tmp_path: Path) -> None:
    voice = Path(shutil.copytree(Voice.load("band").folder, tmp_path / "voice"))
    put(voice, graph.name.partition(".")[2], graph.read_bytes())
    with pytest.raises(VoiceError, match=r"note_encoder\.onnx cannot be used: .*(Do not trust|again)"):
        Synthesizer(voice, backend="cpu")


def test_there_are_hostile_graphs() -> None:
    assert len(list(HOSTILE.glob("*.onnx"))) == 4


def test_a_voice_that_is_replaced_is_sung_on_as_it_was(copy: Path, other_voice: Path) -> None:
    """Networks are opened when they are first needed: the guided decoder, the time embedding of a new schedule."""
    expected = Synthesizer(copy, backend="cpu", threads=1).spectrogram(SONG, guidance=1.5, **OPTIONS)
    opened = Synthesizer(copy, backend="cpu", threads=1)
    opened.spectrogram(SONG, guidance=1.0, **OPTIONS | {"steps": 3})
    copy.rename(copy.with_name("old"))
    shutil.copytree(other_voice, copy)
    np.testing.assert_array_equal(opened.spectrogram(SONG, guidance=1.5, **OPTIONS), expected)
    new = Synthesizer(copy, backend="cpu", threads=1)
    assert (new.spectrogram(SONG, guidance=1.5, **OPTIONS) != expected).any()
    shutil.rmtree(copy)
    shutil.rmtree(copy.with_name("old"))
    np.testing.assert_array_equal(opened.spectrogram(SONG, guidance=1.5, **OPTIONS | {"steps": 2}), expected)


@pytest.mark.parametrize("how", ["other", "short", "longer"])
def test_a_voice_that_is_written_over_is_no_longer_read(copy: Path, other_voice: Path, how: str) -> None:
    opened = Synthesizer(copy, backend="cpu", threads=1)
    expected = opened.spectrogram(SONG, guidance=1.0, **OPTIONS)
    for name in [path.name for path in copy.iterdir()]:
        with (copy / name).open("r+b") as file:
            if how == "other":
                file.write((other_voice / name).read_bytes())
            elif how == "short":
                file.truncate(10)
            else:
                file.seek(0, os.SEEK_END)
                file.write(b"more")
    np.testing.assert_array_equal(opened.spectrogram(SONG, guidance=1.0, **OPTIONS), expected)
    with pytest.raises(VoiceError, match=r"weights\.bin does not match|\.onnx does not match"):
        opened.spectrogram(SONG, guidance=2.0, **OPTIONS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_a_session_that_opens_late_says_what_became_of_the_voice(copy: Path) -> None:
    voice = Voice.load(copy)
    with (copy / "decoder.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(VoiceError, match=r"decoder\.onnx does not match its SHA-256"):
        Network(voice, "decoder", 1)


def test_a_graph_that_onnx_runtime_refuses_is_named(copy: Path) -> None:
    graph = onnx.load_model(copy / "decoder.onnx", load_external_data=False)
    graph.graph.node.append(onnx.helper.make_node("Sin", ["x", "x", "x"], ["nonsense"]))
    put(copy, "decoder.onnx", graph.SerializeToString())
    with pytest.raises(VoiceError, match=r"decoder\.onnx does not load in ONNX Runtime .* Export the voice again"):
        Synthesizer(copy, backend="cpu").spectrogram(SONG, **OPTIONS)


def test_no_file_of_a_voice_stays_mapped(reference_voice: Path, tmp_path: Path) -> None:
    """A mapped file that is cut short would end the process when its weights are used."""
    voices = [export_checkpoint(reference_voice, tmp_path / kind, precision=kind) for kind in ("fp16", "int8")]
    folders = [reference_voice, *(voice.folder for voice in voices), Voice.load("band").folder]
    opened = [Synthesizer(folder, backend="cpu", threads=1) for folder in folders]
    for one in opened:
        one.spectrogram(SONG, guidance=1.5, **OPTIONS)
    mapped = Path("/proc/self/maps").read_text()
    assert not [line for line in mapped.splitlines() if any(str(folder) in line for folder in folders)]


def test_a_folder_whose_name_is_no_text(reference_voice: Path, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/voice-\xff")
    shutil.copytree(reference_voice, folder)
    time.sleep(1.5 * SETTLED)  # until ONNX Runtime could read the weights itself, if it knew the name
    mels = [Synthesizer(one, backend="cpu").spectrogram(SONG, **OPTIONS) for one in (folder, reference_voice)]
    np.testing.assert_array_equal(*mels)


def test_hard_linked_voices_are_sung_exported_and_built(reference_voice: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in shutil.copytree(reference_voice, tmp_path / "copied").iterdir():  # onnx refuses what has several links
        (linked / path.name).hardlink_to(path)
    mels = [Synthesizer(one, backend="cpu").spectrogram(SONG, **OPTIONS) for one in (linked, reference_voice)]
    np.testing.assert_array_equal(*mels)
    voice = Voice.load(linked)
    assert restore_voice(voice).size == voice.dimensions
    assert gpu_graph(voice, "decoder", "fp16").graph.initializer
    assert export_checkpoint(linked, tmp_path / "again", precision="fp16").precision == "fp16"


def test_voices_whose_decoders_take_whole_segments_only(vocoded_voice: Path, whole_voice: Path, tmp_path: Path) -> None:
    """As all did once: they sing the same, training goes on from them, and exported again they take parts too."""
    mels = [Synthesizer(one, backend="cpu").spectrogram(SONG, **OPTIONS) for one in (vocoded_voice, whole_voice)]
    np.testing.assert_array_equal(*mels)
    voices = [Voice.load(one) for one in (vocoded_voice, whole_voice)]
    ours, theirs = (restore_voice(voice).state_dict() for voice in voices)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (gpu_graph(voice, "decoder", "fp16").graph for voice in voices)
    assert [value.type for value in ours.input] == [value.type for value in theirs.input]
    again = export_checkpoint(whole_voice, tmp_path / "again")
    assert {name: again.files[name] for name in again.files} == voices[0].files


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """A file of so many bytes, none of which lies on the disk."""

    def make(voice: Path) -> None:
        (voice / name).unlink(missing_ok=True)
        with (voice / name).open("wb") as file:
            file.truncate(size)
        change(voice, lambda content: content["files"].update({name: {"bytes": size, "sha256": "0" * 64}}))

    return make


def unlisted(voice: Path) -> None:
    put(voice, "notes.txt", b"hello")


def at_the_end(voice: Path) -> None:
    put(voice, "weights.bin", (voice / "weights.bin").read_bytes() + bytes(1 << 17))


def record(**facts: Any) -> Callable[[Path], None]:
    return lambda voice: change(voice, lambda content: content["files"]["decoder.onnx"].update(facts))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sparse("weights.bin", 60 << 30), "a voice has at most"),
        (sparse("weights.bin", 4 << 30), "where graphs read"),
        (sparse("decoder.onnx", 2 << 30), "a voice has at most"),
        (sparse("more.bin", 1 << 30), "which no graph reads"),
        (unlisted, "lists 'notes.txt', which no graph reads"),
        (at_the_end, "where graphs read"),
        (record(bytes="5"), "must be its bytes"),
        (record(bytes=-1), "must be its bytes"),
        (record(bytes=True), "must be its bytes"),
        (record(bytes=1e999), "must be its bytes"),
        (record(sha256=5), "must be text"),
        (record(sha256=None), "must be text"),
    ],
)
def test_sizes_and_files_that_no_voice_has(copy: Path, make: Callable[[Path], None], message: str) -> None:
    make(copy)
    with pytest.raises(VoiceError, match=message):
        Voice.load(copy)


@pytest.mark.parametrize("name", ["voice.json", "decoder.onnx", "weights.bin"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "circle", "kmsg"])
def test_what_is_no_file_is_refused_at_once(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "circle": path.name, "kmsg": "/proc/kmsg"}[kind])
    with pytest.raises(VoiceError):
        Voice.load(copy)


@pytest.mark.parametrize(
    "text",
    ['{"name": "\\ud800"}', '{"a": ' * 5000 + "1" + "}" * 5000, '{"format": ' + "9" * 5000 + "}", '{"format": 1e999}'],
    ids=["surrogate", "deep", "long number", "infinite"],
)  # fmt: skip
def test_json_that_is_no_description(copy: Path, text: str) -> None:
    (copy / DESCRIPTION).write_text(text)
    with pytest.raises(VoiceError, match=r"voice\.json cannot be used"):
        Voice.load(copy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_where_they_would_be_swallowed(
    reference_voice: Path, tmp_path: Path, bad: float
) -> None:
    """Quantising makes numbers of them; in other networks they reach what is sung (test_not_numbers.py)."""
    voice = export_checkpoint(reference_voice, tmp_path / "int8", precision="int8").folder
    model = onnx.load(voice / "decoder.onnx", load_external_data=False)
    name = "layers.0.attention_norm.weight"
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3] = bad
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    put(voice, "decoder.onnx", model.SerializeToString())
    with pytest.raises(VoiceError, match=rf"decoder\.onnx has weights that are no finite numbers .*{name}"):
        Voice.load(voice)


def test_voices_are_copied_and_pickled(reference_voice: Path) -> None:
    voice = Voice.load(reference_voice)
    for again in (copying.deepcopy(voice), pickle.loads(pickle.dumps(voice))):
        assert again == voice
        assert again.model("decoder") == voice.model("decoder")
