"""The PyTorch port's checkpoints become voices that do what the port does; whatever is wrong with one is said.

data/port has two small ones, of weights that were drawn at random and rounded to float16, and of the port's own results
with them: of every 17th frame, a decoder call, conditional and not, and two segments of its loop in four steps.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from notewave.cli import main
from notewave.cli.making import export
from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.checkpoints.assemble import Checkpoint
from notewave.export.checkpoints.lightning import load_lightning
from notewave.export.checkpoints.repository import PARTS, SCHEDULER, STEM, checkpoint_files
from notewave.export.convert import export_checkpoint
from notewave.export.graphs.restore import restore_voice
from notewave.export.library import add_voice
from notewave.export.networks import SpectrogramDiffusion, sinusoids
from notewave.kernels.reference import philox_normal
from notewave.sampling.schedule import NoiseSchedule
from notewave.song.dialect import Dialect
from notewave.sound.mel import FRAMES, MELS, MelRange
from notewave.synthesizer import Synthesizer
from notewave.voice.contracts import Dimensions

DATA = Path(__file__).parent / "data" / "port"
FRAME_STEP = 17  # of the frames that the results are kept of
LOOP_SEED = 5
SIZES: dict[str, dict[str, Any]] = {
    "context": {"emb_dim": 20, "nhead": 3, "head_dim": 8, "dim_feedforward": 28, "max_input_length": 96},
    "plain": {"emb_dim": 16, "nhead": 2, "head_dim": 8, "dim_feedforward": 24, "max_input_length": 80},
}
LAYERS = {"context": (3, 3, 3), "plain": (1, 0, 2)}  # of the notes' encoder, the context's and the decoder
MEL = {
    "sample_rate": 16000,
    "n_fft": 1024,
    "win_length": 640,
    "hop_length": 320,
    "f_min": 0.0,
    "f_max": 8000.0,
    "pad": 0,
    "n_mels": 128,
    "power": 1.0,
    "normalized": False,
    "wkwargs": None,
    "center": True,
    "pad_mode": "reflect",
    "onesided": True,
    "norm": None,
    "mel_scale": "htk",
}
State = dict[str, Tensor]
Change = Callable[[State], object]


def configuration(name: str, **changes: Any) -> dict[str, Any]:
    """What the training run's YAML holds, with other settings of the model."""
    with_context = name == "context"
    training = {"dropout": 0.1, "cfg_dropout": 0.1, "layer_norm_eps": 1.0e-05, "norm_first": True}
    sizes = {
        **SIZES[name],
        "num_emb": 901,
        "output_dim": 128,
        "max_output_length": 257,
        "num_layers": max(LAYERS[name]),
    }
    settings = {**sizes, "with_context": with_context, "cfg_weighting": 2.5, **training, **MEL, **changes}
    data = {"batch_size": 4, "with_context": with_context, "sample_rate": 16000, "segment_length": 81920}
    return {
        "seed_everything": True,
        "trainer": {"max_epochs": None, "callbacks": [{"class_path": "ModelCheckpoint"}]},
        "model": {"class_path": "lightning.DiffusionLM", "init_args": settings},
        "data": {"class_path": "lightning.data.ConcatData", "init_args": data},
    }


def weights(name: str) -> State:
    """All tensors of a state_dict of the port."""
    with np.load(DATA / f"{name}.npz") as kept:
        model = {key: torch.from_numpy(kept[key]).float() for key in kept if key.startswith("model.")}
        low, high = torch.from_numpy(kept["range"])
    spectrogram = {"mel.0.spectrogram.window": torch.hann_window(640), "mel.0.mel_scale.fb": torch.ones(513, 128)}
    return OrderedDict({**model, **spectrogram, "mel.1.min": low.clone(), "mel.1.max": high.clone()})


class Outcome:
    """Stands for whatever a training run puts beside the weights."""

    def __init__(self) -> None:
        self.best = {3: "three"}


def training_state(state: State) -> dict[str, Any]:
    """What Lightning saves beside the weights, and some more kinds of things."""
    each = {
        number: {"step": number, "RMS": torch.ones(()), "exp_avg_sq": torch.ones(3), "order": torch.ones(2).long()}
        for number in range(len(state))
    }
    groups = [{"lr": 1e-3, "eps": (1e-30, 1e-3), "beta1": None, "amsgrad": False, "params": list(each)}]
    return {
        "epoch": 3,
        "global_step": 1 << 40,
        "pytorch-lightning_version": "1.8.1",
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'mode': 'min'}": {"best_model_score": torch.ones(()), "kth": -1.5, None: Outcome}
        },
        "optimizer_states": [{"state": each, "param_groups": groups}],
        "lr_schedulers": [],
        "hyper_parameters": argparse.Namespace(path=Path("x"), kinds={1, 2}, more=defaultdict(list, {"a": [b"\xff"]})),
        "outcome": [Outcome(), complex(1, 2), frozenset("ab"), (1, (2, []))],
    }


def saved(folder: Path, name: str, change: Change = len, **settings: Any) -> tuple[Path, Path]:
    """A checkpoint as Lightning saves it, after a change of its tensors, and the configuration beside it."""
    state = weights(name)
    change(state)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as of every module
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / "epoch=3-step=400.ckpt", folder / "config.yaml"
    torch.save({**training_state(state), "state_dict": state}, path)
    config.write_text("# pytorch_lightning==1.8.1\n" + yaml.safe_dump(configuration(name, **settings)))
    return path, config


def normals(seed: int) -> NDArray[np.float32]:
    noise = np.empty((FRAMES, MELS), np.float32)
    philox_normal(seed, 0, 0, noise)
    return noise


def recorded(name: str, key: str) -> NDArray[np.float32]:
    with np.load(DATA / f"{name}.npz") as kept:
        return kept[key]


@pytest.fixture(scope="module", params=SIZES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checkpoint]:
    return request.param, load_lightning(*saved(tmp_path_factory.mktemp("port"), request.param))


def test_everything_that_a_checkpoint_says(loaded: tuple[str, Checkpoint]) -> None:
    name, checkpoint = loaded
    said = SIZES[name]
    widths = (said["emb_dim"], said["nhead"], said["head_dim"], said["dim_feedforward"])
    assert checkpoint.model.size == Dimensions(*widths, *LAYERS[name], 901, said["max_input_length"])
    assert checkpoint.prediction == "epsilon" and checkpoint.schedule == NoiseSchedule("cosine-closed")
    assert checkpoint.dialect == Dialect(programs="gm", codec="pytorch")
    assert checkpoint.mel_range == MelRange(-11.5, 5.75)
    assert checkpoint.sampling.guidance == 2.5
    assert checkpoint.first_context == ("silence" if name == "context" else "none")


def test_a_decoder_call_equals_the_port(loaded: tuple[str, Checkpoint]) -> None:
    name, checkpoint = loaded
    model = checkpoint.model
    assert isinstance(model, SpectrogramDiffusion)
    tokens, x = (torch.from_numpy(array)[None] for array in (recorded(name, "tokens_0"), normals(12)))
    context = torch.from_numpy(normals(11))[None].clamp(-1, 1) if name == "context" else None
    with torch.inference_mode():
        keys_values, mask = model.condition(tokens, context, torch.ones(1, dtype=torch.bool))
        film = model.time_embedding(torch.tensor([0.42]))
        for key, found in (
            ("eps", model.decoder(x, film, mask, *keys_values)),
            ("unconditional", model.decoder(x, film)),
        ):
            expected = recorded(name, key)
            assert np.abs(found[0, ::FRAME_STEP].numpy() - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", SIZES)
def test_two_segments_equal_the_port(name: str, tmp_path: Path) -> None:
    """But for a few numbers: at noise time 1 the port takes differences of 5e-5 between numbers of float32."""
    path, config = saved(tmp_path / "run", name)
    voice = export_checkpoint(path, tmp_path / "voice", model_config=config)
    assert max(voice.parity.values()) < 1e-4
    tokens = [voice.dialect.tokens(recorded(name, f"tokens_{segment}")) for segment in range(2)]
    singer = Synthesizer(voice.folder, backend="cpu")
    mel = singer.spectrogram(tokens, sampler="ancestral", steps=4, guidance=2.0, seed=LOOP_SEED)
    found = (mel - voice.mel_range.low) / voice.mel_range.scale - 1.0
    # The port's own first context is a frame longer than that of any other segment; ours has as many as all others.
    expected = recorded(name, "mels_after_256" if name == "context" else "mels")
    errors = np.abs(found.reshape(2, FRAMES, MELS)[:, ::FRAME_STEP] - expected)
    assert errors.mean() < 2e-3 and np.quantile(errors, 0.99) < 2e-2
    assert np.abs(recorded(name, "mels") - expected).mean() < 2e-3, "what the frame more amounts to"


def with_wider_heads(state: State) -> None:
    """Attention of two heads of 64, as the published models' are."""
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if ".emb_proj." in key or "_proj." in key:
            shape = (value.shape[0], 128) if ".emb_proj." in key else (128, value.shape[1])
            state[key] = torch.randn(shape, generator=generator)


def test_without_a_configuration_sizes_are_read_off_the_tensors(tmp_path: Path) -> None:
    path, config = saved(tmp_path, "plain", with_wider_heads, head_dim=64)
    ours, told = load_lightning(path), load_lightning(path, config)
    assert ours.model.size == told.model.size and ours.model.size.heads == 2
    assert all(torch.equal(value, told.model.state_dict()[key]) for key, value in ours.model.state_dict().items())
    assert ours.sampling.guidance == 2.0, "the published one"
    path, _ = saved(tmp_path, "plain")
    with pytest.raises(VoiceError, match=r"width 16 does not split into heads of 64.*--model-config"):
        load_lightning(path)


def test_a_configuration_may_be_json_and_leave_out_what_tensors_say(tmp_path: Path) -> None:
    path, config = saved(tmp_path, "context")
    whole = load_lightning(path, config)
    for content in (configuration("context"), {"model": {"class_path": "DiffusionLM", "init_args": {"head_dim": 8}}}):
        config.write_text(json.dumps(content, indent=1))
        assert load_lightning(path, config).model.size == whole.model.size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"norm_first": False}, "norm_first = 'false'.*needs True"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps = '1.0e-06'.*needs 1e-05"),
        ({"hop_length": 160}, "hop_length = '160'.*needs 320"),
        ({"mel_scale": "slaney"}, "mel_scale = 'slaney'"),
        ({"norm": "slaney"}, "norm = 'slaney'.*needs None"),
        ({"power": 2.0}, "power = '2.0'"),
        ({"center": False}, "center = 'false'"),
        ({"pad": [1, 2]}, "pad = "),
        ({"emb_dim": 24}, "emb_dim = '24'.*tensors have 20"),
        ({"nhead": 4}, "nhead = '4'.*tensors have 3"),
        ({"head_dim": 12, "nhead": 3}, "nhead = '3'.*tensors have 2"),
        ({"head_dim": 7}, "width 24 does not split into heads of 7"),
        ({"head_dim": 0}, "does not split into heads of 0"),
        ({"head_dim": 8.5}, "head_dim = '8.5'.*tensors have 8"),
        ({"head_dim": "many"}, "head_dim = 'many'; it must be a number"),
        ({"num_layers": 2}, "num_layers = '2'.*tensors have 3"),
        ({"with_context": False}, "with_context = 'false'.*tensors have True"),
        ({"max_input_length": 3000}, "max_input_length = '3000'.*tensors have 96"),
        ({"cfg_weighting": float("nan")}, "cfg_weighting = '.nan'"),
        ({"cfg_weighting": 5000.0}, "guidance is 5000"),
    ],
)
def test_configurations_that_say_something_else(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    path, config = saved(tmp_path, "context", **changes)
    with pytest.raises(VoiceError, match=named):
        load_lightning(path, config)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "class_path None and 0 init_args"),
        (b"- 1", "class_path None"),
        (b"model: 3", "class_path None"),
        (b"model: {class_path: AutoregressiveLM, init_args: {nhead: 1}}", "is of a DiffusionLM.*AutoregressiveLM"),
        (b"model: {class_path: os.system, init_args: {nhead: 1}}", "class_path 'os.system'"),
        (b"model: {class_path: [1], init_args: {nhead: 1}}", "class_path \\['1'\\]"),
        (b"model: {class_path: lightning.DiffusionLM}", "0 init_args"),
        (b"model: !!python/object/apply:os.system [false]", "class_path None"),
        (b"model: {? [a] : b}", "not readable YAML"),
        (b"model: [", "not readable YAML"),
        (b"\xff\xfe\x00", "not readable YAML"),
        (b"[" * 100_000, "not readable YAML .RecursionError"),
        (
            b"a: &a [" + b"x," * 9 + b"]\n" + b"".join(b"k%d: &b%d [%s]\n" % (i, i, b"*a," * 9) for i in range(40)),
            "None",
        ),
        (b"#" * (1 << 20) + b"\n", "bytes, over"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, named: str, tmp_path: Path) -> None:
    path, config = saved(tmp_path, "plain")
    config.write_bytes(content)
    with pytest.raises(VoiceError, match=named) as caught:
        load_lightning(path, config)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("key", "value", "named"), [("segment_length", 40960, "data, where this engine needs 81920")])
def test_other_data(key: str, value: int, named: str, tmp_path: Path) -> None:
    path, config = saved(tmp_path, "plain")
    content = configuration("plain")
    content["data"]["init_args"][key] = value
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(VoiceError, match=named):
        load_lightning(path, config)


def put(key: str, value: object) -> Change:
    return lambda state: state.__setitem__(key, value)  # type: ignore[arg-type]


def drop(*parts: str) -> Change:
    def change(state: State) -> None:
        for key in [key for key in state if any(part in key for part in parts)]:
            del state[key]

    return change


DECODER = "model.transformer.decoder.layers"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop(f"{DECODER}.1.norm2.bias"), rf"missing: {DECODER}.1.norm2.bias"),
        (drop("model.transformer.encoder.layers.1."), r"missing: model\.transformer\.encoder\.layers\.1"),
        (drop(f"{DECODER}.2."), "num_layers = '3'.*tensors have 2"),
        (drop("context_encoder.layers.0."), r"missing: model.transformer.context_encoder.layers.0"),
        (drop("projection1.weight"), "missing: model.diffusion_emb.projection1.weight"),
        (drop("diffusion_emb", "film"), "is of a AutoregressiveLM.*DiffusionLM"),
        (drop("model.emb."), "no matrix model.emb.weight"),
        (drop("model."), "is of a AutoregressiveLM.*DiffusionLM"),
        (drop("mel.1.max"), "no mel.1.max"),
        (put("mel.0.spectrogram.window", torch.ones(400)), "no mel.0.spectrogram.window of the shape"),
        (put("mel.1.min", torch.tensor(float("inf"))), "the mel range's low is inf"),
        (put("mel.1.max", torch.tensor(-11.0)), "the mel range's high"),
        (put("model.emb.weight", torch.ones(901)), "no matrix model.emb.weight"),
        (put("model.out_pos_emb", torch.ones(255, 20)), "max_output_length = '257'.*tensors have 255"),
        (put("model.linear_in.weight", torch.ones(20, 80)), "80"),
        (put(f"{DECODER}.0.linear1.weight", torch.ones(28, 20)), r"linear1.weight \[28, 20\] instead of \[56, 20\]"),
        (put(f"{DECODER}.0.film1.linear.bias", torch.ones(20)), r"film1.linear.bias \[20\] instead of \[40\]"),
        (put("model.more\x1b[2J", torch.ones(1)), r"extra: model.more\\x1b"),
        (put("model.linear_out.bias", torch.full((128,), float("nan"))), "linear_out.bias has weights that are no"),
        (put("model.linear_out.bias", torch.ones(128).long()), "are of 'torch.LongStorage'"),
        (put("model.linear_out.bias", [1.0] * 128), "what 'builtins.list' makes, no plain tensor"),
        (put("model.linear_out.bias", Outcome()), "what '.*Outcome' makes, no plain tensor"),
    ],
)
def test_checkpoints_that_are_not_whole(change: Change, named: str, tmp_path: Path) -> None:
    path, config = saved(tmp_path, "context", change)
    with pytest.raises(VoiceError, match=named) as caught:
        load_lightning(path, config)
    assert str(caught.value).isprintable()


def test_short_positions_and_odd_widths(tmp_path: Path) -> None:
    path, _ = saved(
        tmp_path, "plain", lambda state: (with_wider_heads(state), put("model.out_pos_emb", torch.ones(255, 16))(state))
    )
    with pytest.raises(VoiceError, match=r"out_pos_emb \[255, 16\] instead of \[256, 16\]"):
        load_lightning(path)
    path, _ = saved(
        tmp_path, "plain", lambda state: (with_wider_heads(state), put("model.emb.weight", torch.ones(901, 17))(state))
    )
    with pytest.raises(VoiceError, match="odd width 17"):
        load_lightning(path)


class Acting:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    made, path, config = tmp_path / "made", *saved(tmp_path, "plain")
    state = weights("plain")
    torch.save({"callbacks": {"one": Acting(made)}, "state_dict": state, "last": Acting(made)}, path)
    load_lightning(path, config)
    for content in (
        {"state_dict": Acting(made)},
        {"state_dict": {**state, "model.more": Acting(made)}},
        [state],
        state,
    ):
        torch.save(content, path)
        with pytest.raises(VoiceError, match="not a readable file of plain tensors"):
            load_lightning(path, config)
    assert not made.exists()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The port's other decoder, and the configuration that it was trained by."""
    folder = tmp_path_factory.mktemp("frames")
    with np.load(DATA / "autoregressive.npz") as kept:
        state = {
            f"model.{key.removeprefix('state/')}": torch.from_numpy(kept[key]).float() for key in kept if "/" in key
        }
    for name, rows in (("in_pos_emb", 96), ("out_pos_emb", 257)):
        state[f"model.{name}"] = sinusoids(torch.arange(rows).float(), 12, 1e4)
    state |= {key: value for key, value in weights("plain").items() if key.startswith("mel.")}
    torch.save({"epoch": 1, "state_dict": state}, folder / "last.ckpt")
    settings = {
        "emb_dim": 12,
        "nhead": 2,
        "head_dim": 8,
        "dim_feedforward": 20,
        "num_layers": 2,
        "max_input_length": 96,
    }
    config = {"model": {"class_path": "lightning.AutoregressiveLM", "init_args": settings}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "last.ckpt", folder / "config.yaml"


def test_the_other_decoder_foretells_what_the_port_s_does(frames: tuple[Path, Path]) -> None:
    """Under the mask that it was trained with, and in the port's own loop, which forgets it: there uncached."""
    checkpoint = load_lightning(*frames)
    model = checkpoint.model
    assert isinstance(model, SpectrogramAutoregression)
    assert checkpoint.prediction == "autoregressive" and checkpoint.first_context == "none"
    assert model.size == Dimensions(12, 2, 8, 20, 2, 0, 2, 901, 96)
    kept = np.load(DATA / "autoregressive.npz")
    rows, tokens = kept["frames"], torch.from_numpy(kept["tokens"].astype(np.int32))[None]
    past = np.clip(np.random.default_rng(11).normal(0, 0.5, (FRAMES, MELS)), -1, 1).astype(np.float16)
    past[0] = 0
    keys_values, mask = model.condition(tokens)
    model.decoder.bounded = False
    found = model.decoder.whole(torch.from_numpy(past).float()[None], mask, keys_values)[0].numpy()
    assert np.abs(found[rows] - kept["forward"]).max() < 1e-4 * np.abs(kept["forward"]).max()
    model.decoder.bounded, mel = True, torch.zeros(1, 1, MELS)
    for _ in range(FRAMES):
        mel = torch.cat([mel, model.decoder.whole(mel, mask, keys_values, causal=False)[:, -1:]], dim=1)
    assert np.abs(mel[0, 1:].numpy()[rows] - kept["port_loop"]).max() < 1e-3


def test_a_voice_of_the_other_decoder(frames: tuple[Path, Path], tmp_path: Path) -> None:
    path, config = frames
    voice = export_checkpoint(path.parent, tmp_path / "voice")
    assert voice.is_autoregressive and max(voice.parity.values()) < 1e-4
    kept = np.load(DATA / "autoregressive.npz")
    mel = Synthesizer(voice.folder, backend="cpu").spectrogram([voice.dialect.tokens(kept["tokens"])])
    found = (mel - voice.mel_range.low) / voice.mel_range.scale - 1.0
    assert np.abs(found[kept["frames"]] - kept["causal_loop"]).max() < 1e-3
    restored = restore_voice(voice)
    assert all(
        torch.allclose(value, restored.state_dict()[key])
        for key, value in load_lightning(path, config).model.state_dict().items()
    )
    half = export_checkpoint(voice.folder, tmp_path / "half", precision="fp16")
    assert half.dialect == voice.dialect and half.mel_range == voice.mel_range and half.is_autoregressive


def test_what_is_fetched_of_a_repository() -> None:
    mixed = ["README.md", "a/b.ckpt", "melgan/model.onnx"]
    assert checkpoint_files([*mixed, "last.ckpt", "config.yaml"]) == ["last.ckpt", "config.yaml"]
    with pytest.raises(VoiceError, match=r"2 checkpoints \(first.ckpt, last.ckpt"):
        checkpoint_files([*mixed, "first.ckpt", "last.ckpt"])
    arrays = [f"checkpoint_{step}/target.{name}" for step in (9, 10) for name in ("a.kernel/.zarray", "a.kernel/0.0")]
    assert checkpoint_files([*mixed, *arrays, "config.gin", "checkpoint_10/state.step/0"]) == [
        *arrays[2:],
        "config.gin",
    ]
    assert checkpoint_files(["target.a/.zarray", "target.a/0/0"]) == ["target.a/.zarray", "target.a/0/0"]
    parts = [f"{part}/{name}" for part in PARTS for name in ("config.json", f"{STEM}.bin")]
    safe = f"decoder/{STEM}.safetensors"
    wanted = checkpoint_files([*mixed, *parts, safe, SCHEDULER, "last.ckpt"])
    assert set(wanted) == {*parts, safe, SCHEDULER, "melgan/model.onnx"} - {f"decoder/{STEM}.bin"}
    assert checkpoint_files(["README.md"]) == []


def test_sources_by_folder_and_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("NOTEWAVE_VOICES", str(tmp_path / "voices"))
    path, config = saved(tmp_path / "run", "plain")
    assert main(["voices", "add", str(path.parent), "--name", "port"]) == 0
    assert "port: voice 'port', fp32" in capsys.readouterr().out
    assert main(["voices"]) == 0
    assert "port" in capsys.readouterr().out
    other, _ = saved(tmp_path / "other", "context")
    told = argparse.Namespace(model_config=config, precision="fp32", vocoder=None, random=None, out=tmp_path / "voice")
    with pytest.raises(VoiceError, match="max_input_length = '80'"):
        export(argparse.Namespace(checkpoint=str(other.parent), **vars(told)))
    with pytest.raises(VoiceError, match="max_input_length = '80'"):
        add_voice(other, name="another", model_config=config)
    (other.parent / "last.ckpt").touch()
    with pytest.raises(VoiceError, match=r"has 2 checkpoints, epoch=3-step=400\.ckpt, last"):
        export_checkpoint(other.parent, tmp_path / "voice")
    assert not (tmp_path / "voice").exists()


@pytest.mark.parametrize("source", [Path(__file__).parent / "data" / "reference" / "checkpoint", None])
def test_other_sources_take_no_configuration(source: Any, tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match=r"no \.ckpt of the PyTorch port"):
        export_checkpoint(source, tmp_path / "voice", random="tiny", model_config=tmp_path / "config.yaml")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path / "none" / "more.ckpt"):
        with pytest.raises(VoiceError, match="there is no checkpoint at"):
            export_checkpoint(path, tmp_path / "voice")
    path, _ = saved(tmp_path, "plain")
    with pytest.raises(VoiceError, match=r"none\.yaml is not readable YAML \(No such file"):
        export_checkpoint(path, tmp_path / "voice", model_config=tmp_path / "none.yaml")
