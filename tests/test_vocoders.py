"""Vocoders: how far they see, their ONNX graphs against PyTorch, streaming, and what adopting refuses."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from notewave.errors import TrainingError, VoiceError
from notewave.export.graphs.vocoder import adopt_onnx_vocoder, export_vocoder_onnx, receptive_field
from notewave.export.material.pieces import as_notes
from notewave.export.material.songs import SEGMENT_SAMPLES, Song, pack_mel, save_song
from notewave.export.training.config import VocoderTraining
from notewave.export.training.loop import Allowance
from notewave.export.training.vocoder import Crops, Recording, Trainer, load_recordings, mel_of, train_vocoder
from notewave.export.vocoders import MelGAN, Tonewheel, load_vocoder, save_vocoder
from notewave.sound.mel import FRAMES, HOP, MELS, log_mel
from notewave.sound.stream import VocoderStream

SMALL = {"width": 16, "blocks": 2, "hertz": 100.0, "cents": 100.0}


def random_mel(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, MELS, generator=torch.Generator().manual_seed(frames)) * 2 - 4


@pytest.fixture(scope="module")
def tonewheel() -> Tonewheel:
    torch.manual_seed(0)
    return Tonewheel(**SMALL).eval()


@pytest.fixture(scope="module")
def melgan() -> MelGAN:
    torch.manual_seed(0)
    return MelGAN(width=32).eval()


@pytest.fixture(scope="module", params=["tonewheel", "melgan"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    module = request.getfixturevalue(request.param)
    path = tmp_path_factory.mktemp("vocoder") / "vocoder.onnx"
    assert export_vocoder_onnx(module, path) <= 1e-4
    return module, path


def test_declared_traits_are_what_perturbation_finds(exported) -> None:
    module, path = exported
    assert receptive_field(path) == (module.traits.left_frames, module.traits.right_frames)


def test_exported_vocoder_streams_exactly(exported) -> None:
    module, path = exported
    session = onnxruntime.InferenceSession(path)

    def vocode(mel: np.ndarray, frame: int) -> np.ndarray:
        position = {"frame": np.array([frame], np.int64)} if module.traits.positional else {}
        return session.run(["audio"], {"mel": mel, **position})[0]

    mel = random_mel(200)[0].numpy()
    whole = np.clip(vocode(mel[None], 0)[0], -1, 1)
    stream = VocoderStream(vocode, module.traits)
    pieces = [stream.push(piece, last=index == 3) for index, piece in enumerate(np.split(mel, [64, 70, 128]))]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_batches_are_independent(exported) -> None:
    module, _ = exported
    position = [torch.tensor([7])] if module.traits.positional else []
    mel = random_mel(12, batch=3)
    with torch.inference_mode():
        together, alone = module(mel, *position), module(mel[1:2], *position)
    assert together.shape == (3, 12 * HOP)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)


def test_tonewheel_holds_a_tone_steady(tonewheel: Tonewheel) -> None:
    """One wheel alone is one sinusoid, at any distance from the start of the song."""
    wheel = 20
    with torch.no_grad():
        module = Tonewheel(**SMALL)
        for parameter in (module.loudness.weight, module.prior.weight):
            parameter.zero_()
        module.prior.bias.fill_(-50.0)
        module.prior.bias[wheel] = 0.0
        far = 10**9
        audio = module(random_mel(20), torch.tensor([far]))[0, HOP:].double()
    hertz = module.turns[wheel] * 50 / module.PERIOD
    assert abs(float(hertz) - 27.5 * 2 ** (wheel / 12)) < 0.1
    time = (far % module.PERIOD * HOP + HOP + torch.arange(len(audio))) / 16000
    expected = torch.cos(2 * torch.pi * (hertz.double() * time.double() + module.phases[wheel]))
    torch.testing.assert_close(audio, expected, atol=1e-4, rtol=0)


def test_saved_vocoder_loads_the_same(tonewheel: Tonewheel, melgan: MelGAN, tmp_path: Path) -> None:
    for module in (tonewheel, melgan):
        save_vocoder(module, tmp_path / "v")
        loaded = load_vocoder(tmp_path / "v")
        assert type(loaded) is type(module)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value.half().float())
    (tmp_path / "v.safetensors").write_bytes(b"no weights")
    with pytest.raises(VoiceError, match="holds no vocoder"):
        load_vocoder(tmp_path / "v")


def test_training_mel_is_the_engines(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 12 * HOP).astype(np.float32)
    padded = torch.from_numpy(np.pad(audio, (0, HOP)))[None]
    np.testing.assert_allclose(mel_of(padded)[0].numpy(), log_mel(audio), atol=2e-3)


def songs(folder: Path, kind: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    time = np.arange(SEGMENT_SAMPLES) / 16000
    for index in range(count):
        pitch = 57 + 3 * index
        tone = 0.3 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        notes = as_notes([(0.0, 5.0, pitch, 0, False)])
        mel = np.zeros((1, FRAMES, MELS), np.uint8)
        save_song(Song(np.rint(tone * 32767).astype(np.int16), mel, notes), folder / f"{kind}-{index:05d}.npz")


CONFIG = VocoderTraining(steps=6, batch=2, frames=24, warm_up=1, checkpoint_seconds=0.0, validate_every=3, model=SMALL)


@pytest.mark.parametrize("naming_steps", [0, 2])
def test_training_improves_and_resumes_exactly(tmp_path: Path, naming_steps: int) -> None:
    songs(tmp_path / "data", "train", 3)
    songs(tmp_path / "data", "heldout", 1)
    config = replace(CONFIG, naming_steps=naming_steps, steps=6 - naming_steps)
    whole = train_vocoder(config, {tmp_path / "data": 1.0}, tmp_path / "whole")
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[5]["valid_stft"] < records[2]["valid_stft"]

    killed = Trainer(config, tmp_path / "killed")
    killed.folder.mkdir()
    shutil.copy(tmp_path / "whole" / "log.jsonl", killed.folder)  # it had come further than its last checkpoint
    crops = Crops(config, [(load_recordings(tmp_path / "data"), 1.0)])
    for step in range(4):
        killed.advance(crops.draw(step))
        if step == 2:
            killed.save()
    resumed = train_vocoder(config, {tmp_path / "data": 1.0}, tmp_path / "killed")
    again = [json.loads(line) for line in (killed.folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in again] == [1, 2, 3, 4, 5, 6]
    assert again[5]["loss"] == records[5]["loss"]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert isinstance(load_vocoder(tmp_path / "whole" / "final"), Tonewheel)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_training_with_a_checkpoint_and_it_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    songs(tmp_path / "data", "train", 3)
    songs(tmp_path / "data", "heldout", 1)
    config, data = replace(CONFIG, checkpoint_seconds=1e9), {tmp_path / "data": 1.0}
    whole = train_vocoder(config, data, tmp_path / "whole")
    draw, handler = Crops.draw, signal.getsignal(number)

    def draw_and_signal(crops: Crops, step: int):
        if step == 2:
            os.kill(os.getpid(), number)
        return draw(crops, step)

    with monkeypatch.context() as patch:
        patch.setattr(Crops, "draw", draw_and_signal)
        assert train_vocoder(config, data, tmp_path / "stopped") is None
    assert torch.load(tmp_path / "stopped" / "vocoder.pt", weights_only=True)["step"] == 3
    assert signal.getsignal(number) is handler
    resumed = train_vocoder(config, data, tmp_path / "stopped")
    assert whole is not None and resumed is not None
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    ends = [(tmp_path / run / "final.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert ends[0] == ends[1]
    records = [json.loads(line) for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Trainer(CONFIG, tmp_path).save()
    with pytest.raises(TrainingError, match="other dimensions"):
        Trainer(replace(CONFIG, model={**SMALL, "blocks": 1}), tmp_path)


def test_crops_know_their_pitches(tmp_path: Path) -> None:
    songs(tmp_path, "train", 2)
    recordings = load_recordings(tmp_path)
    batch = Crops(CONFIG, [(recordings[1:], 1.0)]).draw(0)
    sounding, starting = batch.pitches.unbind(dim=2)
    assert batch.pitches.shape == (2, CONFIG.frames, 2, 128)
    assert sounding[..., 60].any() and not sounding[..., torch.arange(128) != 60].any()
    assert starting.sum() <= 2


def test_the_trunk_learns_to_name_pitches(tmp_path: Path) -> None:
    songs(tmp_path, "train", 3)
    crops, trainer = Crops(CONFIG, [(load_recordings(tmp_path), 1.0)]), Trainer(CONFIG, tmp_path)
    losses = [trainer.advance(crops.draw(step))["pitch"] for step in range(12)]
    assert losses[-1] < 0.9 * losses[0]


def test_naming_steps_teach_the_trunk_and_the_listener_and_later_steps_the_sound(tmp_path: Path) -> None:
    songs(tmp_path, "train", 2)
    config = replace(CONFIG, naming_steps=2)
    crops, trainer = Crops(config, [(load_recordings(tmp_path), 1.0)]), Trainer(config, tmp_path)
    watched = nn.ModuleDict({"model": trainer.model, "listener": trainer.listener})

    def moved(step: int) -> set[str]:
        before = {name: value.clone() for name, value in watched.named_parameters()}
        losses = trainer.advance(crops.draw(step))
        assert ("listening" in losses, "heard" in losses) == (step < 2, step >= 2)
        names = [name for name, value in watched.named_parameters() if (value != before[name]).any()]
        return {name.split(".")[name.startswith("model")] for name in names}

    for step in range(4):
        parts = moved(step)
        assert "blocks" in parts
        assert ({"listener"} & parts, {"prior", "loudness"} & parts) == (
            ({"listener"}, set()) if step < 2 else (set(), {"prior", "loudness"})
        )


def test_training_on_generated_mels_uses_them(tmp_path: Path) -> None:
    samples = np.zeros(40 * HOP, np.int16)
    generated = pack_mel(np.full((40, MELS), -3.0))
    silence = np.zeros((40, 2 * 128 // 8), np.uint8)
    batch = Crops(CONFIG, [([Recording(samples, silence, generated)], 1.0)]).draw(0)
    mel = batch.mel
    assert batch.audio.abs().max() == 0 and not batch.pitches.any()
    assert (mel - mel[:, :1, :1]).abs().max() == 0  # the given mel, moved by the crop's gain
    assert -4.5 < mel.min() <= mel.max() < -2.6


@pytest.fixture(scope="module")
def foreign(melgan: MelGAN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the names and shapes of the published mel decoder."""
    path = tmp_path_factory.mktemp("foreign") / "model.onnx"
    export_vocoder_onnx(melgan, path)
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"mel": "input_features", "audio": "mel"}.get(name, name) for name in names]
    model.graph.input[0].name, model.graph.output[0].name = "input_features", "mel"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    return path


def test_foreign_model_is_adopted(foreign: Path, melgan: MelGAN, tmp_path: Path) -> None:
    assert adopt_onnx_vocoder(foreign, tmp_path / "vocoder.onnx") == melgan.traits
    session = onnxruntime.InferenceSession(tmp_path / "vocoder.onnx")
    mel = random_mel(30)
    audio = session.run(["audio"], {"mel": mel.numpy()})[0]
    with torch.inference_mode():
        np.testing.assert_allclose(audio, melgan(mel).numpy(), atol=1e-5)


def changed(source: Path, path: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, path)
    return path


def _external(location: str):
    def change(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def _fixed_frames(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 256


def _other_mel(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 80


def _global_mean(model: onnx.ModelProto) -> None:
    mean = onnx.helper.make_node("ReduceMean", ["input_features"], ["mean"], keepdims=1)
    lowered = onnx.helper.make_node("Sub", ["input_features", "mean"], ["lowered"])
    for node in model.graph.node:
        node.input[:] = ["lowered" if name == "input_features" else name for name in node.input]
    model.graph.node.insert(0, lowered)
    model.graph.node.insert(0, mean)


def _half_rate(model: onnx.ModelProto) -> None:
    starts, ends, axes, steps = ([0], [1 << 30], [1], [2])
    for name, value in (("s", starts), ("e", ends), ("a", axes), ("t", steps)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.append(onnx.helper.make_node("Slice", ["mel", "s", "e", "a", "t"], ["half"]))
    model.graph.output[0].name = "half"
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    model.graph.output[0].type.tensor_type.shape.dim.add()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external("/etc/hostname"), "no ONNX model that can be used"),
        (_external("../weights.bin"), "no ONNX model that can be used"),
        (_external("beside.bin"), "no ONNX model that can be used"),
        (_fixed_frames, "any number of frames"),
        (_other_mel, "any number of frames"),
        (_global_mean, "cannot stream"),
        (_half_rate, "samples for 64 frames"),
    ],
)
def test_unfit_model_is_refused(foreign: Path, tmp_path: Path, change, message: str) -> None:
    source = changed(foreign, tmp_path / "model.onnx", change)
    (tmp_path / "beside.bin").write_bytes(bytes(1 << 16))
    with pytest.raises(VoiceError, match=message):
        adopt_onnx_vocoder(source, tmp_path / "vocoder.onnx")
    assert not (tmp_path / "vocoder.onnx").exists()


def test_damaged_file_is_refused(foreign: Path, tmp_path: Path) -> None:
    shutil.copy(foreign, tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes(foreign.read_bytes()[:5000])
    (tmp_path / "text.onnx").write_text("this is no model")
    for source in (tmp_path / "cut.onnx", tmp_path / "text.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(VoiceError):
            adopt_onnx_vocoder(source, tmp_path / "vocoder.onnx")


def test_training_begins_with_a_given_vocoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = Tonewheel(**SMALL)
    begun, fresh = (Trainer(CONFIG, tmp_path / name, start=start) for name, start in (("a", given), ("b", None)))
    for name, value in given.state_dict().items():
        torch.testing.assert_close(begun.model.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(fresh.model.embed.weight, given.embed.weight)


def test_by_the_clock_naming_ends_and_the_rate_falls(tmp_path: Path) -> None:
    config = replace(CONFIG, naming_steps=1000, steps=1000)
    early, late = (
        Trainer(config, tmp_path / name, Allowance(time.monotonic() - used, 100.0))
        for name, used in (("early", 10.0), ("late", 90.0))
    )
    assert early.naming and not late.naming
    assert early.falling == 1.0 and 0.3 < late.falling < 0.7
    for trainer in (early, late):
        trainer.folder.mkdir(parents=True)
        trainer.save()
        trainer.step = 5
        trainer.save()
    steps = [torch.load(trainer.checkpoint, weights_only=True)["step"] for trainer in (early, late)]
    assert steps == [5, 0]  # once the rate falls, the last is that of where it began
