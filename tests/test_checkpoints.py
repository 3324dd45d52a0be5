"""Checkpoints in the diffusers layout: however stored, the same weights; broken ones are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from no_files import EMPTY_FILES, NO_FILES, NOWHERE, put
from safetensors.torch import load_file, save_file

from notewave.errors import VoiceError
from notewave.export.checkpoints.diffusers import load_diffusers
from notewave.export.checkpoints.seeded import RANDOM_SIZES, random_checkpoint
from notewave.export.networks import SpectrogramDiffusion
from notewave.sampling.schedule import NoiseSchedule

REFERENCE = Path(__file__).parent / "data" / "reference" / "checkpoint"
PARTS = ("notes_encoder", "continuous_encoder", "decoder")
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REFERENCE, tmp_path / "checkpoint"))


def pickled(folder: Path) -> Path:
    for part in PARTS:
        path = folder / part / f"{WEIGHTS}.safetensors"
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], part: str = "decoder") -> None:
    path = folder / part / f"{WEIGHTS}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(one: SpectrogramDiffusion, other: SpectrogramDiffusion) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pickles_hold_the_same_weights_as_safetensors(copy: Path) -> None:
    checkpoint = load_diffusers(REFERENCE)
    assert (checkpoint.prediction, checkpoint.schedule) == ("epsilon", NoiseSchedule("squaredcos_cap_v2", 1000))
    assert checkpoint.vocoder is None
    assert same_weights(load_diffusers(pickled(copy)).model, checkpoint.model)


def test_half_precision_is_read_as_float32(copy: Path) -> None:
    change_tensors(copy, lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}))
    model = load_diffusers(copy).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = load_diffusers(REFERENCE).model.decoder.output.weight.half().float()
    assert torch.equal(model.decoder.output.weight, expected)


def test_vocoder_is_found_and_predictions_are_renamed(copy: Path) -> None:
    (copy / "melgan").mkdir()
    (copy / "melgan" / "model.onnx").write_bytes(b"not read here")
    change_json(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    checkpoint = load_diffusers(copy)
    assert (checkpoint.prediction, checkpoint.vocoder) == ("v", copy / "melgan" / "model.onnx")


def test_every_wrong_tensor_is_named_in_one_error(copy: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["decoders.1.layer.1.attention.to_v.weight"]
        tensors["surplus.weight"] = torch.zeros(1)
        tensors["spec_out.weight"] = torch.zeros(128, 32)

    change_tensors(copy, spoil)
    change_tensors(copy, lambda tensors: tensors.pop("layer_norm.weight"), "notes_encoder")
    with pytest.raises(VoiceError) as error:
        load_diffusers(copy)
    for fact in (
        "missing: decoder/decoders.1.layer.1.attention.to_v.weight, notes_encoder/layer_norm.weight;",
        "extra: decoder/surplus.weight;",
        "misshapen: decoder/spec_out.weight [128, 32] instead of [128, 64])",
    ):
        assert fact in str(error.value)


def test_long_lists_of_tensors_are_cut(copy: Path) -> None:
    change_tensors(copy, lambda tensors: tensors.update({f"extra.{i:02}": torch.zeros(1) for i in range(30)}))
    with pytest.raises(VoiceError, match=r"extra.07 and 22 more\)"):
        load_diffusers(copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("decoder/config.json", {"num_heads": 8}, "notes_encoder/config.json says num_heads = 4, .* need 8"),
        ("notes_encoder/config.json", {"d_model": 128}, "d_model = 128"),
        ("notes_encoder/config.json", {"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu'"),
        ("notes_encoder/config.json", {"vocab_size": 10**9}, "vocabulary is 1000000000"),
        ("notes_encoder/config.json", {"max_length": "2048"}, "max_tokens is '2048'"),
        ("decoder/config.json", {"max_decoder_noise_time": 1000.0}, "max_decoder_noise_time = 1000.0"),
        ("decoder/config.json", {"num_layers": 10**6}, "num_layers"),
        ("decoder/config.json", {"num_layers": None}, "num_layers"),
        ("decoder/config.json", {"targets_length": 128}, "targets_context_length = 256"),
        ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule = 'linear'"),
        ("scheduler/scheduler_config.json", {"clip_sample": False}, "clip_sample = False"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "train_steps is 0"),
    ],
)
def test_crooked_configurations(copy: Path, file: str, changes: dict[str, Any], message: str) -> None:
    change_json(copy / file, **changes)
    with pytest.raises(VoiceError, match=message):
        load_diffusers(copy)


def test_absurd_sizes_are_refused_before_memory_is_taken(copy: Path) -> None:
    for part in PARTS:
        change_json(copy / part / "config.json", d_model=65536, d_ff=65536, num_heads=1024)
    with pytest.raises(VoiceError, match="more than 4000000000 weights"):
        load_diffusers(copy)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b" " * (1 << 21), b'{"a":' + b"9" * 100_000],
    ids=lambda content: repr(content[:9]),
)
def test_broken_json(copy: Path, content: bytes) -> None:
    (copy / "decoder" / "config.json").write_bytes(content)
    with pytest.raises(VoiceError, match=r"decoder.config\.json"):
        load_diffusers(copy)


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        *(
            (SCHEDULER, f'"{key}": {value}')
            for key in ("prediction_type", "trained_betas")
            for value in (DEEP, "[[1]]")
        ),
        *(("decoder/config.json", f'"{key}": {DEEP}') for key in ("d_model", "num_layers", "targets_length")),
        ("decoder/config.json", '"d_model": "\\ud800\\u001b[2J"'),
        ("notes_encoder/config.json", f'"vocab_size": {"9" * 4000}'),
        ("notes_encoder/config.json", f'"feed_forward_proj": "{"x" * 500_000}"'),
        ("notes_encoder/config.json", '"max_length": 1e999'),
    ],
)
def test_settings_that_are_deep_long_or_no_text(copy: Path, file: str, setting: str) -> None:
    """All three networks agree on what is wrong, so that it is compared and then told."""
    for path in (*(copy / part / "config.json" for part in PARTS), copy / SCHEDULER):
        if path == copy / file or (path.parent.name in PARTS and file != SCHEDULER):
            path.write_text(path.read_text().rstrip().removesuffix("}") + f", {setting}}}")
    with pytest.raises(VoiceError) as caught:
        load_diffusers(copy)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, *NOWHERE])
@pytest.mark.parametrize("name", ["decoder/config.json", SCHEDULER])
def test_settings_that_are_no_files(copy: Path, kind: str, name: str) -> None:
    put(kind, copy / name)
    with pytest.raises(VoiceError, match=f"{name} is not readable JSON"):
        load_diffusers(copy)


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, "itself", NOWHERE[-1]])
@pytest.mark.parametrize("name", [f"decoder/{WEIGHTS}.safetensors", f"decoder/{WEIGHTS}.bin", "melgan/model.onnx"])
def test_weights_that_are_no_files(copy: Path, kind: str, name: str) -> None:
    if name.endswith(".bin"):
        pickled(copy)
    (copy / name).parent.mkdir(exist_ok=True)
    put(kind, copy / name)
    with pytest.raises(VoiceError, match=name):
        load_diffusers(copy)


def test_a_part_that_is_a_file(copy: Path) -> None:
    shutil.rmtree(copy / "decoder")
    (copy / "decoder").touch()
    with pytest.raises(VoiceError, match=r"decoder.config\.json is not readable JSON \(Not a directory\)"):
        load_diffusers(copy)


def test_files_may_be_links_that_lead_out(copy: Path, tmp_path: Path) -> None:
    """So does the hub's client keep them."""
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        blob = tmp_path / "blobs" / str(path.relative_to(copy)).replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(blob)
    assert same_weights(load_diffusers(copy).model, load_diffusers(REFERENCE).model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("pickle", [False, True])
def test_weights_that_are_no_numbers(copy: Path, value: float, pickle: bool) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["spec_out.weight"] = tensors["spec_out.weight"].double()
        tensors["spec_out.weight"][3, 5] = value

    change_tensors(copy, spoil)
    with pytest.raises(VoiceError, match=r"decoder/spec_out\.weight has weights that are no finite numbers"):
        load_diffusers(pickled(copy) if pickle else copy)


def test_names_of_tensors_are_cut_and_shown_as_plain_text(copy: Path) -> None:
    names = ["\x1b[2J", "n" * 100_000, "line\nbreak"]
    change_tensors(copy, lambda tensors: tensors.update({name: torch.zeros(1) for name in names}))
    with pytest.raises(VoiceError, match=r"extra: decoder/\\x1b\[2J, decoder/line\\nbreak, decoder/nnn") as caught:
        load_diffusers(copy)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "source", ["x" * 300, "a/" + "x" * 300, "a\0b", "", "/dev/zero", "circle", "file.bin", "own/file.bin"]
)
def test_what_is_no_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's path, of the form of a hub id, is not asked for on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "own").mkdir()
    for file in (tmp_path / "file.bin", tmp_path / "own" / "file.bin"):
        file.touch()
    with pytest.raises(
        VoiceError, match=r"there is no (voice or )?checkpoint at|is not readable JSON|is no folder here"
    ):
        load_diffusers(source)


def test_truncated_and_missing_weights(copy: Path) -> None:
    path = copy / "decoder" / f"{WEIGHTS}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VoiceError, match="not a readable safetensors file"):
        load_diffusers(copy)
    path.unlink()
    with pytest.raises(VoiceError, match=r"neither .*\.safetensors nor .*\.bin"):
        load_diffusers(copy)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": Malicious()},
        {"weight": [1.0]},
        {"weight": torch.zeros(1).expand(1 << 20)},
        [torch.zeros(1)],
        {1: torch.zeros(1)},
    ],
)
def test_pickles_are_never_executed(
    copy: Path, content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, pickled(copy) / "decoder" / f"{WEIGHTS}.bin")
    with pytest.raises(VoiceError, match=r"plain tensors|named tensors"):
        load_diffusers(copy)
    assert not (tmp_path / "executed").exists()


def test_broken_pickles(copy: Path) -> None:
    path = pickled(copy) / "decoder" / f"{WEIGHTS}.bin"
    for content in (b"", b"not a pickle", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(VoiceError, match="plain tensors"):
            load_diffusers(copy)


def test_hub_ids_are_found_in_the_local_cache(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its settings once, on import."""
    cache = tmp_path / "hub" / "models--someone--reference"
    pickled(Path(shutil.copytree(REFERENCE, cache / "snapshots" / "abc")))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    script = tmp_path / "script.py"
    script.write_text(
        "from notewave.errors import VoiceError\n"
        "from notewave.export.checkpoints.diffusers import load_diffusers\n"
        "print(load_diffusers('someone/reference').model.size.width)\n"
        "try:\n    load_diffusers('someone/absent')\nexcept VoiceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    width, message = done.stdout.splitlines()[:2]
    assert width == "64"
    assert message.startswith("'someone/absent' is no folder here")


def test_nonsense_is_no_hub_id() -> None:
    with pytest.raises(VoiceError, match="no hub id"):
        load_diffusers("no/such/folder")


def test_random_weights_are_seeded_and_keep_signals_in_range() -> None:
    model = random_checkpoint("tiny").model
    assert same_weights(model, random_checkpoint("tiny").model)
    assert not same_weights(model, random_checkpoint("tiny", seed=1).model)
    x = torch.randn(1, 256, 128)
    keys_values = model.cross_attention(model.note_encoder(torch.arange(1, 50)[None]), model.context_encoder(x))
    out = model.decoder(x, model.time_embedding(torch.tensor([0.5])), None, *keys_values)
    assert 0.3 < out.std() < 3.0


def test_random_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = SpectrogramDiffusion(RANDOM_SIZES["base"])
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 411.7
    with pytest.raises(VoiceError, match="base, small, tiny"):
        random_checkpoint("huge")
