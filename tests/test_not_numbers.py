"""Weights that are not numbers: whatever is asked of such a voice names it, and nothing is heard of it.

On the CPU and on the simulated GPU, where some operators hide what is not a number.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import command
import numpy as np
import onnx
import pytest
from gpu_songs import opened
from onnx import TensorProto, helper, numpy_helper
from simulated_device import SimulatedDevice
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan
from sounding_voice import sounding_voice

from notewave import Synthesizer, VoiceError
from notewave.export.plans.build import build_plans
from notewave.inputs import FileRecord
from notewave.song.dialect import EOS
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import FRAMES, HOP, MELS
from notewave.voice.folder import Voice

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # NaN is told of once, by the error

SONG = [np.array([1134, 300 + index, EOS], np.int32) for index in range(2)]
OTHER = [np.array([1134, 400 + index, EOS], np.int32) for index in range(3)]
STEPS = {"sampler": "ddpm", "steps": 2}
GUIDED = {**STEPS, "guidance": 2.0}
NAN, INF = float("nan"), float("inf")
DEVICES = ("cpu", "gpu")


class Crooked(NamedTuple):
    """Numbers of a network's weight that stand for others."""

    network: str
    weight: str
    value: float
    where: Any = slice(None)  # in the weight, flat


PLACES = {
    "note embedding": Crooked("note_encoder", "embedding.weight", NAN),
    "cross attention": Crooked("cross_attention", "val_3", NAN, 5),
    "time embedding": Crooked("time_embedding", "film.weight", -INF),
    "decoder, once": Crooked("decoder", "norm.weight", NAN, 3),
    "decoder, infinite once": Crooked("decoder", "norm.weight", INF, 3),
    "without notes": Crooked("unconditional_decoder", "norm.weight", INF, 3),
    "decoder, which overflows": Crooked("decoder", "norm.weight", 3e38),
}
ON_GPU = ("note embedding", "time embedding", "decoder, infinite once")  # what else is computed as on the CPU
VOCODERS = {
    "vocoder": Crooked("vocoder", "weight", NAN, 7),
    "infinite vocoder": Crooked("vocoder", "weight", INF, 7),
}


def crooked(source: Path, folder: Path, *places: Crooked) -> Path:
    """A copy of a voice with other numbers, whose checksums agree: anyone can mend them."""
    shutil.copytree(source, folder)
    for network, name, value, where in places:
        path = folder / f"{network}.onnx"
        graph = onnx.load(path, load_external_data=False)
        (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
        if weight.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in weight.external_data}
            file, offset = folder / place["location"], int(place["offset"])
            np.memmap(file, np.float32, "r+", offset, tuple(weight.dims)).reshape(-1)[where] = value
        else:
            numbers = numpy_helper.to_array(weight).copy()
            numbers.reshape(-1)[where] = value
            weight.CopyFrom(numpy_helper.from_array(numbers, name))
            onnx.save(graph, path)
    return described(folder)


def described(folder: Path, **changes: Any) -> Path:
    """A voice's folder, once its description fits its files again."""
    voice = Voice.describe(folder)
    files = {name: FileRecord.of(folder / name) for name in voice.files}
    dataclasses.replace(voice, folder=folder, name="crooked", files=files, **changes).save_description()
    return folder


Open = Callable[..., Synthesizer]  # (folder, device): a voice, ready to sing


@pytest.fixture(scope="module")
def sing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens voices on a device by name; on the simulated GPU with plans made now."""
    home = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(home))
        patch.setattr("notewave.export.plans.build._local_capability", lambda: (8, 9))

        def sing(folder: Path, device: str, **options: Any) -> Synthesizer:
            if device == "cpu":
                return Synthesizer(folder, backend="cpu", threads=1, **options)
            voice = Voice.load(folder)
            trt = SimulatedTensorRTRTX(SimulatedDevice())
            build_plans(voice, "fp32", (8, 9), trt=trt, compile_plan=simulated_plan)
            with pytest.MonkeyPatch.context() as opening:
                opening.setattr("notewave.synthesizer.open_backend", lambda *_: opened(voice)[0])
                return Synthesizer(folder, **options)

        yield sing


@pytest.fixture(scope="module")
def good(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding").folder


@pytest.fixture(params=[("cpu", place) for place in PLACES] + [("gpu", place) for place in ON_GPU], ids=" ".join)
def silent(request: pytest.FixtureRequest, sing: Open, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    device, place = request.param
    return sing(crooked(good, tmp_path_factory.mktemp("voices") / "crooked", PLACES[place]), device)


def named(asked: str) -> Any:
    fact = rf"^voice 'crooked' gave values for {asked} that are no finite numbers: its weights .*Export the voice again"
    return pytest.raises(VoiceError, match=fact)


def fed(singer: Synthesizer, **asked: bool) -> None:
    with singer.session(**asked, **GUIDED) as session:
        session.feed([SONG[0]])
        session.take()


def test_each_way_to_sing_names_the_voice(silent: Synthesizer) -> None:
    with named("segment 0"):
        silent.render(SONG, **GUIDED)
    with named("segment 0"):
        next(silent.stream(iter(SONG), **GUIDED))
    with named("segment 0"):
        silent.spectrogram(SONG, **GUIDED)
    with named("segment 0"):
        silent.render_batch([SONG, SONG[:1]], **GUIDED)
    for asked in ({"sound": False}, {"mel": False}, {}):
        with named("segment 0"):
            fed(silent, **asked)
    assert np.isfinite(silent.vocode(np.zeros((3, MELS), np.float32)).samples).all()


@pytest.mark.parametrize("place", VOCODERS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_vocoder_s_numbers_are_told_of_where_it_sounds(
    device: str, place: str, sing: Open, good: Path, tmp_path: Path
) -> None:
    voice = sing(crooked(good, tmp_path / "voice", VOCODERS[place]), device)
    mel = voice.spectrogram(SONG, **STEPS)
    np.testing.assert_allclose(mel, sing(good, "cpu").spectrogram(SONG, **STEPS), rtol=0, atol=1e-3)
    with named("the mel from frame 0 on"):
        voice.vocode(mel)
    with named("segment 0"):
        voice.render(SONG, **STEPS)
    with named("segment 0"):
        voice.render_batch([SONG, SONG[:1]], **STEPS)
    with named("segment 0"):
        fed(voice)
    fed(voice, sound=False)


@pytest.mark.parametrize("device", DEVICES)
def test_songs_without_the_crooked_numbers_are_sung_as_ever(
    device: str, sing: Open, good: Path, tmp_path: Path
) -> None:
    """A token that is no number is told of in its segment, and what comes after on the same buffers is right."""
    row = 64 * int(SONG[1][1])
    token = Crooked("note_encoder", "embedding.weight", NAN, slice(row, row + 64))
    voice, whole = sing(crooked(good, tmp_path / "voice", token), device), sing(good, device)
    expected = [chunk.samples for chunk in whole.stream(OTHER, **STEPS)]
    under_way = voice.stream(OTHER, **STEPS)
    np.testing.assert_array_equal(next(under_way).samples, expected[0])

    song = voice.stream(SONG, **STEPS)
    np.testing.assert_array_equal(next(song).samples, next(whole.stream(SONG, **STEPS)).samples)
    with named("segment 1"):
        next(song)
    with named("segment 1"):
        voice.spectrogram(SONG, **STEPS)
    with named("segment 1"):
        voice.render_batch([OTHER, SONG], **STEPS)

    for chunk, other in zip(under_way, expected[1:], strict=True):
        np.testing.assert_array_equal(chunk.samples, other)
    for again in (voice.render(OTHER, **STEPS), *voice.render_batch([OTHER], **STEPS)):
        np.testing.assert_array_equal(again.samples, np.concatenate(expected))
    np.testing.assert_array_equal(voice.spectrogram(OTHER, **STEPS), whole.spectrogram(OTHER, **STEPS))


def hiding(source: Path, folder: Path) -> Path:
    """A voice whose vocoder takes -11 wherever a mel is not above it: also for NaN."""
    shutil.copytree(source, folder)
    path = folder / "vocoder.onnx"
    model = onnx.load(path)
    (first,) = (node for node in model.graph.node if "mel" in node.input)
    first.input[0] = "floored"
    floored = [
        helper.make_node("Greater", ["mel", "floor"], ["above"]),
        helper.make_node("Where", ["above", "mel", "floor"], ["floored"]),
    ]
    nodes = [*floored, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(-11.0), "floor"))
    onnx.save(model, path)
    return described(folder)


@pytest.mark.parametrize("device", DEVICES)
def test_a_vocoder_that_hides_what_is_no_number_does_not(device: str, sing: Open, good: Path, tmp_path: Path) -> None:
    hidden = hiding(good, tmp_path / "hiding")
    singer = sing(hidden, device)
    assert np.isfinite(singer.render(SONG, **STEPS).samples).all()
    assert np.isfinite(singer._backend.vocode(np.full((1, 3, MELS), -20.0, np.float32), 0)).all()
    voice = sing(crooked(hidden, tmp_path / "voice", PLACES["decoder, once"]), device)
    with named("segment 0"):
        voice.render(SONG, **STEPS)
    with named("segment 0"):
        voice.render_batch([SONG, SONG], seeds=(1, 2), **STEPS)


@pytest.mark.parametrize("device", DEVICES)
def test_a_vocoder_that_waits_for_more_gives_nothing_before(
    device: str, sing: Open, good: Path, tmp_path: Path
) -> None:
    """One that sees a segment ahead: what was heard of no segment is not heard later."""
    folder = crooked(good, tmp_path / "voice", PLACES["decoder, once"])
    traits = dataclasses.replace(Voice.describe(folder).vocoder, right_frames=FRAMES + 10)
    voice, heard = sing(described(folder, vocoder=traits), device), []
    with named("segment 1"):
        heard.extend(voice.stream(SONG, **STEPS))
    assert not heard
    with voice.session(mel=False, **STEPS) as session:
        session.feed([SONG[0]])
        assert session.take().samples.shape == (1, 0)
        with named("segment 0"):
            session.rest()


def test_context_that_is_no_number_is_told_of_where_it_is_first_heard(sing: Open, good: Path, tmp_path: Path) -> None:
    voice = sing(crooked(good, tmp_path / "voice", Crooked("context_encoder", "norm.weight", NAN)), "cpu")
    chunks = voice.stream(SONG, **STEPS)
    assert len(next(chunks).samples) > FRAMES * HOP // 2
    with named("segment 1"):
        next(chunks)
    assert len(voice.render(SONG[:1], **STEPS).samples) == FRAMES * HOP


def test_griffin_lim_is_not_asked_to_sound_it(
    sing: Open, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = crooked(good, tmp_path / "voice", PLACES["decoder, once"])
    voice = sing(folder, "cpu", vocoder="griffin-lim")
    monkeypatch.setattr(GriffinLim, "__call__", None)
    with named("segment 0"):
        voice.render(SONG, **STEPS)


def test_the_command_names_the_voice_and_leaves_no_file(good: Path, midi_folder: Path, tmp_path: Path) -> None:
    folder, out = crooked(good, tmp_path / "voice", PLACES["note embedding"]), tmp_path / "song.wav"
    song = midi_folder / "piano_scale.mid"
    code, _, errors = command.command("render", song, "--voice", folder, "--steps", 1, "--backend", "cpu", "--out", out)
    assert code == 1 and b"voice 'crooked' gave values for segment 0" in errors and b"Warning" not in errors
    assert not out.exists()
