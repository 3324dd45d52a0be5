"""Voices from checkpoints and models: the whole folder, or nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from notewave.checks import quoted, shown
from notewave.errors import OutputError, VoiceError
from notewave.export.autoregressive import VoiceNetworks
from notewave.export.checkpoints.assemble import Checkpoint
from notewave.export.checkpoints.diffusers import load_diffusers, local_folder
from notewave.export.checkpoints.lightning import SUFFIX, find_lightning, load_lightning
from notewave.export.checkpoints.repository import fetch_repository
from notewave.export.checkpoints.seeded import random_checkpoint
from notewave.export.checkpoints.t5x import find_t5x, load_t5x
from notewave.export.graphs.precision import store_half, store_int8
from notewave.export.graphs.restore import restore_voice
from notewave.export.graphs.translate import WeightFile, export_graph, relative_error
from notewave.export.graphs.vocoder import adopt_onnx_vocoder, convert_vocoder_onnx, export_vocoder_onnx
from notewave.export.vocoders import MelGAN, Tonewheel
from notewave.files import atomic_folder, check_folder
from notewave.inputs import FileRecord
from notewave.sampling.options import Sampling
from notewave.sampling.schedule import NoiseSchedule
from notewave.song.dialect import PUBLISHED, Dialect
from notewave.sound.mel import PUBLISHED_RANGE, MelRange
from notewave.sound.stream import VocoderTraits
from notewave.voice.files import graph_name
from notewave.voice.folder import STORED_PRECISIONS, Voice
from notewave.voice.library import DESCRIPTION, bundled_voices

WEIGHTS = "weights.bin"  # of all networks but the vocoder: the two decoders share theirs
INT8_ENCODER_LIMIT = 0.2  # relative error beyond which an encoder, which runs once a segment, is not worth 8 bits
PARITY_LIMITS = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.9}  # relative errors beyond which a graph is broken: of single
# numbers, on random tokens, where the bundled voice's decoder has 0.5 in int8 and yet sings its songs as well


def export_checkpoint(
    source: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    random: str | None = None,
    model_config: Path | None = None,
    precision: str = "fp32",
    vocoder: Path | None = None,
) -> Voice:
    """Make a voice of a checkpoint, or of ``random`` weights of a size in ``RANDOM_SIZES`` where ``source`` is None.

    The source is a folder in the diffusers layout, a repository id of the Hugging Face hub, a T5X folder, the PyTorch
    port's .ckpt or the folder that has one, or a voice in fp32 or fp16, by folder or bundled name, to have it in
    another precision. ``model_config`` is the YAML file that a .ckpt was trained by; without it, the folder's
    config.yaml is taken if it has one. ``vocoder`` is a published ONNX mel decoder; without one, that of the source is
    taken if it has any.
    Raises VoiceError when the source cannot be used, OutputError when ``out`` cannot be written or is not a voice.
    """
    check_folder(out)
    is_voice = source is not None and _is_voice(source)
    if model_config is not None and (source is None or is_voice):
        raise _takes_no_config(source or "random")
    if source is not None and is_voice:
        return _convert_voice(Voice.load(source), out, precision, vocoder)
    if source is None:
        checkpoint = random_checkpoint(str(random))
        provenance = f"Seeded random weights of the size {random!r}, for benchmarks: this voice makes noise, not music."
        licence = "Apache-2.0"
    else:
        checkpoint = _load(source, model_config)
        provenance = f"Exported from the checkpoint {shown(Path(source).resolve().name)}."
        licence = "That of the checkpoint."
    return export_voice(
        checkpoint.model,
        out,
        name=shown(Path(out).resolve().name),
        licence=licence,
        provenance=provenance,
        prediction=checkpoint.prediction,
        schedule=checkpoint.schedule,
        sampling=checkpoint.sampling,
        dialect=checkpoint.dialect,
        mel_range=checkpoint.mel_range,
        first_context=checkpoint.first_context,
        precision=precision,
        vocoder=vocoder or checkpoint.vocoder,
    )


def _load(source: str | os.PathLike[str], model_config: Path | None) -> Checkpoint:
    """Load a checkpoint of whichever layout it is in, from here or from the hub."""
    path = Path(source)
    if path.suffix != SUFFIX:
        path = local_folder(source) or fetch_repository(str(source))
    arrays = find_t5x(path)
    if not arrays and (lightning := find_lightning(path)):
        path, config = lightning
        return load_lightning(path, model_config or config)
    if model_config is not None:
        raise _takes_no_config(source)
    return load_t5x(arrays) if arrays else load_diffusers(path)


def _takes_no_config(source: str | os.PathLike[str]) -> VoiceError:
    return VoiceError(
        f"{quoted(str(source))} is no {SUFFIX} of the PyTorch port, which alone takes a model's configuration. "
        "Leave that out."
    )


def _is_voice(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a voice, by a bundled one's name or by its folder."""
    try:
        return str(source) in bundled_voices() or (Path(source) / DESCRIPTION).is_file()
    except (OSError, TypeError, ValueError) as error:  # a name too long, a zero byte, no path at all
        raise VoiceError(f"there is no checkpoint at {quoted(source)}: {error}. Check the path.") from error


def _convert_voice(voice: Voice, out: str | os.PathLike[str], precision: str, vocoder: Path | None) -> Voice:
    return export_voice(
        restore_voice(voice),
        out,
        name=shown(Path(out).resolve().name),
        licence=voice.licence,
        provenance=voice.provenance,
        prediction=voice.prediction,
        schedule=voice.schedule,
        sampling=voice.sampling,
        dialect=voice.dialect,
        mel_range=voice.mel_range,
        first_context=voice.first_context,
        precision=precision,
        vocoder=vocoder or (voice if voice.vocoder else None),
    )


def export_voice(
    model: VoiceNetworks,
    out: str | os.PathLike[str],
    *,
    name: str,
    licence: str,
    provenance: str,
    prediction: str,
    schedule: NoiseSchedule,
    sampling: Sampling,
    dialect: Dialect = PUBLISHED,
    mel_range: MelRange = PUBLISHED_RANGE,
    first_context: str = "none",
    precision: str = "fp32",
    vocoder: Tonewheel | MelGAN | Voice | Path | None = None,
) -> Voice:
    """Write a voice folder, in the place of an older voice at ``out`` if there is one.

    The vocoder is a module, that of another voice, or the path of a foreign ONNX mel decoder.
    Raises VoiceError when a graph does not agree with PyTorch, OutputError when ``out`` cannot be written.
    """
    target = Path(out)
    if precision not in STORED_PRECISIONS:
        raise VoiceError(f"there is no precision {precision!r}. Choose one of {', '.join(STORED_PRECISIONS)}.")
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise OutputError(f"{target} exists and is no voice: it is not replaced. Remove it or choose another folder.")
    with atomic_folder(target) as folder:
        traits, parity = _write_vocoder(vocoder, folder / graph_name("vocoder"), precision)
        parity |= write_networks(model, folder, precision)
        Voice(
            folder=folder,
            name=name,
            licence=licence,
            provenance=provenance,
            dimensions=model.size,
            prediction=prediction,
            schedule=schedule,
            sampling=sampling,
            dialect=dialect,
            vocoder=traits,
            mel_range=mel_range,
            first_context=first_context,
            precision=precision,
            parity=parity,
            files={path.name: FileRecord.of(path) for path in sorted(folder.iterdir())},
        ).save_description()
    return Voice.load(target)


def write_networks(model: VoiceNetworks, folder: Path, precision: str) -> dict[str, float]:
    """Write the graph of every network but the vocoder, and their weights, into a folder.

    Returns each graph's largest relative error against PyTorch; raises VoiceError beyond PARITY_LIMITS.
    """
    weights = WeightFile(folder / WEIGHTS)
    inputs, contracts = model.realistic_inputs(), model.contracts()
    parity = {}
    for network, module in model.networks().items():
        exported = export_graph(module, contracts[network])
        if precision == "int8" and network.endswith(("encoder", "decoder")):
            store_int8(exported.graph)
            if network.endswith("encoder") and _error_of(exported, module, inputs[network]) > INT8_ENCODER_LIMIT:
                exported = export_graph(module, contracts[network])
                store_half(exported.graph)
        elif precision != "fp32":
            store_half(exported.graph)
        weights.take(exported)
        path = folder / graph_name(network)
        ir.save(exported, path)
        onnx.checker.check_model(str(path), full_check=True)
        parity[network] = relative_error(path, module, inputs[network])
        if not parity[network] <= PARITY_LIMITS[precision]:
            raise VoiceError(
                f"{network} in ONNX differs from PyTorch by {parity[network]:.2g} (relative; {precision} may by "
                f"{PARITY_LIMITS[precision]:g}). Its weights are not finite, or torch miscompiles it: try another."
            )
    return parity


def _error_of(exported: ir.Model, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest relative error of a graph that is not in its folder yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(exported, path)
        return relative_error(path, module, inputs)


def _write_vocoder(
    vocoder: Tonewheel | MelGAN | Voice | Path | None, path: Path, precision: str
) -> tuple[VocoderTraits | None, dict[str, float]]:
    """Write the vocoder's graph, of our own in int8 where that is asked for; what it sees, and its error."""
    if vocoder is None:
        return None, {}
    traits = vocoder.vocoder if isinstance(vocoder, Voice) else getattr(vocoder, "traits", None)
    if precision == "int8" and traits is not None and traits.positional:  # ours
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / path.name
            traits, _ = _write_vocoder(vocoder, whole, "fp16")
            return traits, {"vocoder": convert_vocoder_onnx(whole, path)}
    if isinstance(vocoder, Voice):
        path.write_bytes(vocoder.model("vocoder"))
        return vocoder.vocoder, {"vocoder": vocoder.parity["vocoder"]} if "vocoder" in vocoder.parity else {}
    if isinstance(vocoder, Path):
        return adopt_onnx_vocoder(vocoder, path), {}
    return vocoder.traits, {"vocoder": export_vocoder_onnx(vocoder, path)}
