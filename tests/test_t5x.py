"""T5X trees, written here in the original's layout, hold the same weights as the port's checkpoint made of them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from no_files import EMPTY_FILES, NO_FILES, NOWHERE, put
from safetensors.numpy import load_file

from notewave.errors import VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.checkpoints.diffusers import load_diffusers
from notewave.export.checkpoints.t5x import find_t5x, load_t5x
from notewave.sampling.options import FRAME_BY_FRAME
from notewave.sampling.schedule import NoiseSchedule

REFERENCE = Path(__file__).parent / "data" / "reference" / "checkpoint"
PARTS = {"notes_encoder": "token_encoder", "continuous_encoder": "continuous_encoder", "decoder": "decoder"}
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out", "out.0": "out"}
RENAMED = [  # diffusers' name: the original's
    (r"token_embedder.weight", "token_embedder.embedding"),
    (r"position_encoding.weight", "Embed_0.embedding"),
    (r"input_proj.weight", "input_proj.kernel"),
    (r"encoders.(\d+).layer.0.layer_norm.weight", r"layers_\1.pre_attention_layer_norm.scale"),
    (r"encoders.(\d+).layer.0.SelfAttention.(\w).weight", r"layers_\1.attention.<\2>.kernel"),
    (r"encoders.(\d+).layer.1.layer_norm.weight", r"layers_\1.pre_mlp_layer_norm.scale"),
    (r"encoders.(\d+).layer.1.DenseReluDense.(\w+).weight", r"layers_\1.mlp.\2.kernel"),
    (r"layer_norm.weight", "encoder_norm.scale"),
    (r"conditioning_emb.0.weight", "time_emb_dense0.kernel"),
    (r"conditioning_emb.2.weight", "time_emb_dense1.kernel"),
    (r"continuous_inputs_projection.weight", "continuous_inputs_projection.kernel"),
    (r"decoders.(\d+).layer.0.layer_norm.weight", r"layers_\1.pre_self_attention_layer_norm.scale"),
    (r"decoders.(\d+).layer.0.FiLMLayer.scale_bias.weight", r"layers_\1.FiLMLayer_0.DenseGeneral_0.kernel"),
    (r"decoders.(\d+).layer.0.attention.to_(.+).weight", r"layers_\1.self_attention.<\2>.kernel"),
    (r"decoders.(\d+).layer.1.layer_norm.weight", r"layers_\1.pre_cross_attention_layer_norm.scale"),
    (r"decoders.(\d+).layer.1.attention.to_(.+).weight", r"layers_\1.MultiHeadDotProductAttention_0.<\2>.kernel"),
    (r"decoders.(\d+).layer.2.layer_norm.weight", r"layers_\1.pre_mlp_layer_norm.scale"),
    (r"decoders.(\d+).layer.2.film.scale_bias.weight", r"layers_\1.FiLMLayer_1.DenseGeneral_0.kernel"),
    (r"decoders.(\d+).layer.2.DenseReluDense.(\w+).weight", r"layers_\1.mlp.\2.kernel"),
    (r"decoder_norm.weight", "decoder_norm.scale"),
    (r"spec_out.weight", "spec_out_dense.kernel"),
]
QUERY = "target.decoder.layers_1.self_attention.query.kernel"


def original_name(name: str) -> str:
    pattern, replacement = next(rule for rule in RENAMED if re.fullmatch(rule[0], name))
    renamed = re.sub(pattern, replacement, name)
    return re.sub(r"<(.+)>", lambda found: ATTENTION[found[1]], renamed)


def write_array(folder: Path, array: np.ndarray, chunks: list[int], compressor: str | None, **changes: Any) -> None:
    """Write zarr version 2, chunks at the ends padded to their full size."""
    folder.mkdir()
    description = {
        "chunks": chunks,
        "compressor": compressor and {"id": compressor, "level": 1},
        "dtype": array.dtype.str if array.dtype != np.uint16 else "bfloat16",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps({**description, **changes}))
    compress = {None: bytes, "gzip": gzip.compress, "zlib": zlib.compress}[compressor]
    for index in np.ndindex(*(-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True))):
        block = array[tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(index, chunks, strict=True))]
        padded = np.pad(block, [(0, chunk - size) for chunk, size in zip(chunks, block.shape, strict=True)])
        name = changes.get("dimension_separator", ".").join(map(str, index))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(compress(padded.tobytes()))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint as T5X would have left it: the run's configuration above the arrays of one step."""
    folder = tmp_path_factory.mktemp("t5x") / "checkpoint_500000"
    folder.mkdir()
    (folder / "checkpoint").write_bytes(b"msgpack that nothing needs")
    (folder.parent / "config.gin").write_text("network.T5Config:\n  emb_dim = 64\n  head_dim = 16\n")
    kinds = [("gzip", 64), ("zlib", 48), (None, 100)]
    for part, original in PARTS.items():
        for i, (name, tensor) in enumerate(load_file(REFERENCE / part / "diffusion_pytorch_model.safetensors").items()):
            array = original_name(name)
            content = np.ascontiguousarray(tensor.T if array.endswith(".kernel") else tensor)
            compressor, chunk = kinds[i % 3]
            chunks = [min(chunk, size) for size in content.shape]
            write_array(folder / f"target.{original}.{array}", content, chunks, compressor)
    write_array(folder / "state.step", np.zeros(1, np.float32), [1], "gzip")
    return folder


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tree, tmp_path / "run" / tree.name))
    shutil.copy(tree.parent / "config.gin", folder.parent)
    return folder


def test_the_tree_holds_the_ports_weights(tree: Path) -> None:
    checkpoint = load_t5x(tree)
    expected = load_diffusers(REFERENCE).model
    assert checkpoint.model.size == expected.size
    weights = checkpoint.model.state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)
    assert (checkpoint.prediction, checkpoint.schedule) == ("epsilon", NoiseSchedule("cosine", 1000))


def test_the_last_step_of_a_run_is_found(tree: Path, tmp_path: Path) -> None:
    assert find_t5x(tree) == tree
    (tree.parent / "checkpoint_99").mkdir(exist_ok=True)
    assert find_t5x(tree.parent) == tree
    assert find_t5x(tmp_path) is None
    assert find_t5x(tmp_path / "absent") is None


def test_heads_are_64_wide_unless_the_run_says_otherwise(copy: Path) -> None:
    (copy.parent / "config.gin").unlink()
    assert (load_t5x(copy).model.size.heads, load_t5x(copy).model.size.head_width) == (1, 64)
    (copy / "config.gin").write_text("network.T5Config.head_dim = 24")
    with pytest.raises(VoiceError, match="does not split into heads of 24"):
        load_t5x(copy)


def test_half_precisions_and_nested_chunks(copy: Path) -> None:
    values = (np.arange(64 * 64, dtype=np.float32) % 2048).reshape(64, 64) / 32  # exact in float16, not in bfloat16
    shutil.rmtree(copy / QUERY)
    write_array(copy / QUERY, values.astype("<f2"), [32, 64], "gzip", dimension_separator="/")
    query = load_t5x(copy).model.decoder.layers[1].attention.qkv.weight[:64]
    torch.testing.assert_close(query, torch.from_numpy(values.T), rtol=0, atol=0)
    shutil.rmtree(copy / QUERY)
    write_array(copy / QUERY, (values.view(np.uint32) >> 16).astype(np.uint16), [64, 64], "gzip")
    query = load_t5x(copy).model.decoder.layers[1].attention.qkv.weight[:64]
    torch.testing.assert_close(query, torch.from_numpy(values.T), rtol=2**-7, atol=0)


def test_wrong_arrays_are_named(copy: Path) -> None:
    shutil.rmtree(copy / QUERY)
    write_array(copy / "target.decoder.surplus.kernel", np.zeros((2, 3), np.float32), [2, 3], None)
    shutil.rmtree(copy / "target.decoder.spec_out_dense.kernel")
    write_array(copy / "target.decoder.spec_out_dense.kernel", np.zeros((9, 128), np.float32), [9, 128], None)
    with pytest.raises(VoiceError) as error:
        load_t5x(copy)
    assert "missing: decoder.layers_1.self_attention.query.kernel;" in str(error.value)
    assert "extra: decoder.surplus.kernel;" in str(error.value)
    assert "misshapen: decoder.spec_out_dense.kernel [128, 9] instead of [128, 64]" in str(error.value)


def test_a_checkpoint_without_context(copy: Path, tree: Path) -> None:
    """As gin/models/diffusion/basic of the original: the note encoder is called otherwise, and alone."""
    for path in copy.glob("target.token_encoder*"):
        path.rename(path.with_name(path.name.replace("token_encoder", "encoder")))
    with pytest.raises(VoiceError, match=r"extra: continuous_encoder\."):
        load_t5x(copy)
    for path in copy.glob("target.continuous_encoder*"):
        shutil.rmtree(path)
    found, whole = load_t5x(copy), load_t5x(tree).model
    assert found.model.size == dataclasses.replace(whole.size, context_encoder_layers=0)
    expected = {name: value for name, value in whole.state_dict().items() if not name.startswith("context_encoder.")}
    assert all(torch.equal(value, expected.pop(name)) for name, value in found.model.state_dict().items())
    assert not expected and found.schedule == NoiseSchedule("cosine")


@pytest.fixture
def frames_tree(copy: Path) -> Path:
    """The tree as gin/models/autoregressive's would be, of the same weights: no noise time, positions not stored."""
    gone = ("continuous_encoder", "decoder.time_emb", "token_encoder.Embed_0", "decoder.Embed_0")
    for path in copy.glob("target.*"):
        name = path.name.removeprefix("target.")
        if name.startswith(gone) or "FiLMLayer" in name:
            shutil.rmtree(path)
            continue
        name = name.replace("token_encoder", "encoder").replace(
            "MultiHeadDotProductAttention_0", "encoder_decoder_attention"
        )
        path.rename(copy / f"target.{name}")
    return copy


def test_an_autoregressive_checkpoint(frames_tree: Path, tree: Path) -> None:
    found, whole = load_t5x(frames_tree), load_t5x(tree).model
    assert find_t5x(frames_tree) == frames_tree
    assert isinstance(found.model, SpectrogramAutoregression) and found.prediction == "autoregressive"
    assert found.sampling == FRAME_BY_FRAME and found.model.note_encoder.sees_padding
    own, positions = found.model.state_dict(), {}
    for part, rows in (("note_encoder", 2048), ("decoder", 256)):
        positions[part] = own.pop(f"{part}.positions")
        assert positions[part].shape == (rows, whole.size.width)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in own.items())
    assert torch.equal(positions["decoder"], positions["note_encoder"][:256])
    half = whole.size.width // 2
    assert positions["decoder"][1, 0] == pytest.approx(np.sin(1)) and positions["decoder"][1, half] == pytest.approx(
        np.cos(1)
    )
    assert positions["decoder"][200, half - 1] == pytest.approx(np.sin(0.02)), "periods up to 2 pi 10000"


def test_the_autoregressive_encoder_sees_padding(frames_tree: Path) -> None:
    """Of the original's, only the cross-attention masks padding, so what tokens are encoded as depends on it."""
    encoder = load_t5x(frames_tree).model.note_encoder
    tokens = torch.tensor([[5, 1140, 1]], dtype=torch.int32)
    padded = torch.nn.functional.pad(tokens, (0, 2045))
    torch.testing.assert_close(encoder(tokens), encoder(padded)[:, :3])
    encoder.sees_padding = False
    assert (encoder(tokens) - encoder(padded)[:, :3]).abs().max() < 1e-5
    assert (encoder(tokens) - load_t5x(frames_tree).model.note_encoder(tokens)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"zarr_format": 3},
        {"order": "F"},
        {"filters": [{"id": "delta"}]},
        {"dtype": "<i4"},
        {"dtype": [["a", "<f4"]]},
        {"compressor": {"id": "blosc"}},
        {"compressor": "gzip"},
        {"shape": [-64, 64]},
        {"shape": "64"},
        {"shape": [1 << 40, 64]},
        {"chunks": [64]},
        {"chunks": [65, 64]},
        {"chunks": [0, 64]},
        {"shape": [], "chunks": []},
        {"dimension_separator": "../"},
    ],
)
def test_crooked_descriptions(copy: Path, changes: dict[str, Any]) -> None:
    path = copy / QUERY / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(VoiceError, match=re.escape(str(path))):
        load_t5x(copy)


@pytest.mark.parametrize("content", [None, b"", b"junk", gzip.compress(b"short"), gzip.compress(bytes(1 << 24))])
def test_damaged_chunks(copy: Path, content: bytes | None) -> None:
    shutil.rmtree(copy / QUERY)
    write_array(copy / QUERY, np.zeros((64, 64), np.float32), [64, 64], "gzip")
    path = copy / QUERY / "0.0"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(VoiceError, match=re.escape(str(path))):
        load_t5x(copy)


def test_a_chunk_that_breaks_off_behind_its_numbers(copy: Path) -> None:
    """Where its checksum is."""
    shutil.rmtree(copy / QUERY)
    write_array(copy / QUERY, np.arange(64 * 64, dtype=np.float32).reshape(64, 64), [64, 64], "gzip")
    path = copy / QUERY / "0.0"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VoiceError, match=re.escape(str(path))):
        load_t5x(copy)


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, *NOWHERE])
@pytest.mark.parametrize("name", [f"{QUERY}/.zarray", f"{QUERY}/0.0"])
def test_files_of_an_array_that_are_none(copy: Path, kind: str, name: str) -> None:
    put(kind, copy / name)
    with pytest.raises(VoiceError, match=re.escape(str(copy / name))):
        load_t5x(copy)


@pytest.mark.parametrize("kind", [*NO_FILES, "itself", NOWHERE[-1]])
def test_configurations_that_are_none(copy: Path, kind: str) -> None:
    put(kind, copy / "config.gin")
    with pytest.raises(VoiceError, match=r"config\.gin cannot be read: "):
        load_t5x(copy)


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, *NOWHERE])
def test_arrays_that_are_no_folders(copy: Path, kind: str) -> None:
    shutil.rmtree(copy / QUERY)
    put(kind, copy / QUERY)
    with pytest.raises(VoiceError, match=re.escape(str(copy / QUERY / ".zarray"))):
        load_t5x(copy)


@pytest.mark.parametrize("kind", [*NO_FILES, *EMPTY_FILES, *NOWHERE])
def test_steps_and_runs_that_are_no_folders(tree: Path, tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "checkpoint_500000")
    assert find_t5x(tmp_path) is None
    assert find_t5x(tmp_path / "checkpoint_500000") is None
    (tmp_path / "checkpoint_7").symlink_to(tree)
    assert find_t5x(tmp_path) == tmp_path / "checkpoint_7"


@pytest.mark.parametrize("source", ["x" * 300, "a\0b", "/dev/zero", "/proc/kmsg"])
def test_what_is_no_folder_has_no_arrays(source: str) -> None:
    assert find_t5x(Path(source)) is None


def test_arrays_that_nobody_wants_are_not_read(copy: Path) -> None:
    """Each would be refused by its description, which is none."""
    for i in range(3000):
        (copy / f"target.decoy.{i:04}").mkdir()
    (copy / "target.decoy.0000" / ".zarray").mkdir()
    (copy / "target.\x1b[2J\udcff").symlink_to("/dev/zero")
    with pytest.raises(VoiceError, match=r"extra: \\x1b\[2J\\xff, decoy\.0000, .* and 2993 more\)"):
        load_t5x(copy)


def test_a_folder_of_very_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.export.checkpoints.t5x.MAX_ENTRIES", 99)
    for i in range(100):
        (tmp_path / f"checkpoint_{i}").mkdir()
    for load in (find_t5x, load_t5x):
        with pytest.raises(VoiceError, match="more than 99 entries"):
            load(tmp_path)


def test_a_description_is_small(copy: Path) -> None:
    path = copy / QUERY / ".zarray"
    path.write_text(path.read_text() + " " * 5000)
    with pytest.raises(VoiceError, match=r"\.zarray is not readable JSON \(it has \d+ bytes, over 4096\)"):
        load_t5x(copy)


@pytest.mark.parametrize("key", ["dtype", "shape", "chunks", "order", "filters", "compressor", "dimension_separator"])
def test_descriptions_that_are_deep(copy: Path, key: str) -> None:
    path = copy / QUERY / ".zarray"
    path.write_text(path.read_text().rstrip().removesuffix("}") + f', "{key}": {"[" * 900 + "]" * 900}}}')
    with pytest.raises(VoiceError, match=re.escape(str(path))):
        load_t5x(copy)


def test_small_files_do_not_become_large_arrays(tree: Path, tmp_path: Path) -> None:
    """A tree of zeros, whose files have a thousandth of their bytes."""
    for path in tree.glob("target.*"):
        shape = [512 if size == 64 else size for size in json.loads((path / ".zarray").read_text())["shape"]]
        write_array(tmp_path / path.name, np.zeros(shape, np.float32), shape, "gzip")
    with pytest.raises(VoiceError, match=r"are said to have \d+ bytes, and their files have \d+: no trained weights"):
        load_t5x(tmp_path)


def test_too_many_layers(copy: Path) -> None:
    for i in range(2, 300):
        (copy / QUERY.replace("layers_1", f"layers_{i}")).symlink_to(QUERY)
    with pytest.raises(VoiceError, match="has 300 layers in a network, over 256"):
        load_t5x(copy)


def test_too_many_chunks(copy: Path) -> None:
    shutil.rmtree(copy / QUERY)
    write_array(copy / QUERY, np.zeros((1, 1), np.float32), [1, 1], None, shape=[65, 64])
    with pytest.raises(VoiceError, match=r"describes no array that can be read: .* in up to 4096 chunks"):
        load_t5x(copy)
