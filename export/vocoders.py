"""Vocoders in PyTorch: log-mel [B, V, M] to audio [B, HOP V]. Their export to ONNX, and adopting a foreign one.

Letters: B batch, V frames, M mel bins, D width, K sinusoids, F noise bins. A vocoder's ``traits`` say how far it sees:
samples [HOP j, HOP (j + 1)) depend on frames j - left .. j + right only, so a song can be vocoded in chunks.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from notewave.errors import VoiceError
from notewave.export.graphs.translate import EMBEDDED_BYTES, export_graph, relative_error
from notewave.files import atomic_file
from notewave.sound.mel import FFT, HOP, LOG_MAX, LOG_MIN, MELS, SAMPLE_RATE, WINDOW, mel_weights
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import Contract, Dimensions, contracts

PARITY_LIMIT = 1e-4  # largest relative error of an exported vocoder
MAX_REACH = 512  # frames on either side that a foreign vocoder may see: 10 s
MAX_VOCODER_BYTES = 1 << 30  # of a foreign model
LEVEL = 0.25  # scale of log-mel above silence at a network's input


class Tonewheel(nn.Module):
    """Harmonics and noise from mel frames, as on a tonewheel organ: fixed sinusoids, whose loudness the mel decides.

    A ConvNeXt trunk (over mel frames as in Vocos, Siuzdak 2023) predicts for each frame the amplitudes of a bank of
    sinusoids, and a few times a frame the spectrum of a noise (harmonics plus noise: Serra & Smith 1990; DDSP: Engel
    et al. 2020). Matrix products turn them into windowed blocks, overlap-add into audio: no layer runs at sample rate.

    Phases run on from frame to frame, as every frequency is a whole number of turns in ``PERIOD`` frames: the
    forward pass takes the first frame's index in the song, and any chunking gives the same samples.
    """

    PERIOD = 500  # frames after which all phases repeat: frequencies are multiples of 0.1 Hz
    NOISE_PERIOD = 125  # frames after which the noise repeats
    KERNEL = 7  # frames seen by each convolution

    turns: Tensor  # int64 [K], of each sinusoid in PERIOD frames
    phases: Tensor  # [K], of the sinusoids at frame 0, in turns
    noise: Tensor  # [NOISE_PERIOD R, F], of the noise bins, in turns

    def __init__(
        self,
        width: int = 320,
        blocks: int = 6,
        expansion: int = 3,
        cents: float = 25.0,
        hertz: float = 12.0,
        noise_rate: int = 4,
    ) -> None:
        """Sinusoids lie ``cents`` apart, or ``hertz`` where that is closer; the noise changes R times a frame."""
        super().__init__()
        self.arguments: dict[str, Any] = {"width": width, "blocks": blocks, "expansion": expansion}
        self.arguments |= {"cents": cents, "hertz": hertz, "noise_rate": noise_rate}
        reach = (blocks + 1) * (self.KERNEL // 2)
        self.traits = VocoderTraits(left_frames=reach + 1, right_frames=reach, positional=True)  # blocks overlap
        turns = torch.tensor(_bank(cents, hertz), dtype=torch.float64) * (self.PERIOD * HOP / SAMPLE_RATE)
        self.noise_rate = noise_rate
        self.noise_hop = HOP // noise_rate
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (self.NOISE_PERIOD * noise_rate, self.noise_hop), generator=generator) / 256
        phases = torch.randint(256, turns.shape, generator=generator) / 256
        self.register_buffer("turns", turns.round().long(), persistent=False)
        self.register_buffer("phases", phases, persistent=False)
        self.register_buffer("noise", noise, persistent=False)
        self.embed = nn.Conv1d(MELS, width, self.KERNEL, padding=self.KERNEL // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion, self.KERNEL) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.loudness = nn.Linear(width, len(turns) + HOP)  # K sinusoids, R times F noise bins
        self.prior = nn.Linear(MELS, len(turns) + HOP)
        self._start_from_mel()

    def forward(self, mel: Tensor, frame: Tensor) -> Tensor:
        """Log-mel [B, V, M], index int64 [1] of its first frame in the song -> audio [B, HOP V]."""
        return self.synthesise(self.trunk(mel), mel, frame)

    def trunk(self, mel: Tensor) -> Tensor:
        """Log-mel [B, V, M] -> features [B, V, D]."""
        x = self.embed_norm(self.embed(_level(mel).mT).mT)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def synthesise(self, features: Tensor, mel: Tensor, frame: Tensor) -> Tensor:
        """Features [B, V, D], log-mel [B, V, M], index int64 [1] of the first frame -> audio [B, HOP V]."""
        log_amplitudes = self.loudness(features) + self.prior(_level(mel))
        amplitudes = log_amplitudes.clamp(max=6.0).exp()
        tones, noise = amplitudes.split([len(self.turns), HOP], dim=-1)
        return self._tones(tones, frame) + self._noise(noise, frame)

    def _tones(self, amplitudes: Tensor, frame: Tensor) -> Tensor:
        """Amplitudes [B, V, K] of the sinusoids -> audio [B, HOP V]."""
        frames = frame + torch.arange(amplitudes.shape[1], device=frame.device)
        starts = (frames[:, None] % self.PERIOD * self.turns) % self.PERIOD  # in integers: exact for any song
        samples = torch.arange(2 * HOP, device=frame.device)
        cycle = self.PERIOD * HOP
        turns = (self.turns[:, None] * samples % cycle) / cycle + self.phases[:, None]
        window = torch.sin(math.pi / (2 * HOP) * samples) ** 2  # Hann: amplitudes fade into one another
        return _synthesise(amplitudes, starts / self.PERIOD, turns, window)

    def _noise(self, amplitudes: Tensor, frame: Tensor) -> Tensor:
        """Amplitudes [B, V, R F] of the noise bins -> audio [B, HOP V]."""
        amplitudes = amplitudes.unflatten(-1, (self.noise_rate, self.noise_hop)).flatten(1, 2)
        blocks = frame * self.noise_rate + torch.arange(amplitudes.shape[1], device=frame.device)
        samples = torch.arange(2 * self.noise_hop, device=frame.device)
        bins = torch.arange(1, self.noise_hop + 1, device=frame.device)
        turns = bins[:, None] * samples % len(samples) / len(samples)
        window = torch.sin(math.pi / len(samples) * samples)  # powers add up to 1
        return _synthesise(amplitudes, self.noise.index_select(0, blocks % len(self.noise)), turns, window)

    def _start_from_mel(self) -> None:
        """Begin at amplitudes read off the mel at each wave's own frequency, and a trunk that adds little."""
        tones = self.turns.double() * (SAMPLE_RATE / HOP / self.PERIOD)  # Hz
        noise = torch.arange(1, self.noise_hop + 1) * (SAMPLE_RATE / 2 / self.noise_hop)  # Hz
        bins = torch.cat([tones, noise.repeat(self.noise_rate)]).numpy() * (FFT / SAMPLE_RATE)
        rows = np.stack([np.interp(bins, np.arange(FFT // 2 + 1), mel) for mel in mel_weights().T], axis=1)
        rows /= rows.sum(axis=1, keepdims=True) + 1e-9
        with torch.no_grad():
            self.prior.weight.copy_(torch.from_numpy(rows) / LEVEL)
            self.prior.bias.fill_(LOG_MIN - math.log(WINDOW))
            self.prior.bias[len(self.turns) :] -= 2.0  # so many sinusoids leave little to the noise
            self.loudness.weight.mul_(0.1)
            self.loudness.bias.zero_()


def _synthesise(amplitudes: Tensor, starts: Tensor, turns: Tensor, window: Tensor) -> Tensor:
    """Sum of windowed waves, as one matrix product and an overlap-add of blocks that overlap by half.

    Amplitudes [B, V, K] and the phases [V, K] at which the waves start in each block, the waves' own phases [K, n],
    both in turns, window [n] -> audio [B, V n / 2]; the last block's second half is left out.
    """
    starts, angles = 2 * math.pi * starts, 2 * math.pi * turns
    waves = torch.cat([angles.cos(), -angles.sin()]) * window
    blocks = torch.cat([amplitudes * starts.cos(), amplitudes * starts.sin()], dim=-1) @ waves
    first, second = blocks.chunk(2, dim=-1)
    return (first + F.pad(second[:, :-1], (0, 0, 1, 0))).flatten(1)


def _bank(cents: float, hertz: float) -> list[float]:
    """Frequencies in Hz from A0 to the band's end, ``cents`` apart, or ``hertz`` where that is closer."""
    frequencies = [27.5]
    while (following := min(frequencies[-1] * 2 ** (cents / 1200), frequencies[-1] + hertz)) < SAMPLE_RATE / 2:
        frequencies.append(following)
    return frequencies


def _level(mel: Tensor) -> Tensor:
    """What networks see of log-mel [B, V, M]: silence is 0, as is the convolutions' padding."""
    return (mel - LOG_MIN).clamp(min=0.0) * LEVEL


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, GELU bottleneck, learned scale, residual (Liu et al. 2022)."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, V, D] -> [B, V, D]."""
        y = self.norm(self.mix(x.mT).mT)
        return x + self.scale * self.down(F.gelu(self.up(y)))


class MelGAN(nn.Module):
    """The MelGAN generator (Kumar et al. 2019) at this project's hop: transposed convolutions up to sample rate."""

    def __init__(
        self,
        width: int = 512,
        factors: tuple[int, ...] = (8, 5, 4, 2),
        dilations: tuple[int, ...] = (1, 3, 9),
    ):
        """The width halves at each upsampling; the factors' product is HOP."""
        super().__init__()
        self.arguments: dict[str, Any] = {"width": width, "factors": list(factors), "dilations": list(dilations)}
        layers: list[nn.Module] = [nn.ReflectionPad1d(3), weight_norm(nn.Conv1d(MELS, width, 7))]
        for factor in factors:
            up = nn.ConvTranspose1d(width, width // 2, 2 * factor, factor, (factor + 1) // 2, output_padding=factor % 2)
            width //= 2
            layers += [
                nn.LeakyReLU(0.2),
                weight_norm(up),
                *(ResidualBlock(width, dilation) for dilation in dilations),
            ]
        layers += [nn.LeakyReLU(0.2), nn.ReflectionPad1d(3), weight_norm(nn.Conv1d(width, 1, 7)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.traits = _melgan_traits(factors, dilations)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [B, V, M] -> audio [B, HOP V]; V is at least 4, as edges are padded by reflection."""
        return self.layers(_level(mel).mT).flatten(1)

    def folded(self) -> MelGAN:
        """A copy in which each weight norm is replaced by the weight that it gives: for export, not for training."""
        copy = MelGAN(**self.arguments)  # a deep copy would share the parametrised classes with the original
        copy.load_state_dict(self.state_dict())
        for module in copy.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                remove_parametrizations(module, "weight")
        return copy


class ResidualBlock(nn.Module):
    """MelGAN's residual stack: a dilated convolution of 3, one of 1, beside a shortcut of 1."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.ReflectionPad1d(dilation),
            weight_norm(nn.Conv1d(width, width, 3, dilation=dilation)),
            nn.LeakyReLU(0.2),
            weight_norm(nn.Conv1d(width, width, 1)),
        )
        self.shortcut = weight_norm(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, n] -> [B, D, n]."""
        return self.shortcut(x) + self.body(x)


def _melgan_traits(factors: Sequence[int], dilations: Sequence[int]) -> VocoderTraits:
    """Frames that the samples of frame 0 depend on, followed back through MelGAN's layers as an interval."""
    first, last = -3, HOP - 1 + 3  # the last convolution
    for factor in reversed(factors):
        first, last = first - sum(dilations), last + sum(dilations)
        padding = (factor + 1) // 2
        first, last = -((2 * factor - 1 - padding - first) // factor), (last + padding) // factor
    return VocoderTraits(left_frames=3 - first, right_frames=last + 3)


def save_vocoder(module: Tonewheel | MelGAN, path: Path) -> None:
    """Write weights (float16) to ``path``.safetensors and the constructor's arguments to ``path``.json."""
    weights = {name: value.half().contiguous() for name, value in module.state_dict().items()}
    with atomic_file(path.with_suffix(".safetensors")) as temporary:
        save_file(weights, temporary)
    with atomic_file(path.with_suffix(".json")) as temporary:
        description = {"vocoder": type(module).__name__, "arguments": module.arguments}
        temporary.write_text(json.dumps(description, indent=2) + "\n")


def load_vocoder(path: Path) -> Tonewheel | MelGAN:
    """Read what ``save_vocoder`` wrote. Raises VoiceError when it is not there or not whole."""
    try:
        description = json.loads(path.with_suffix(".json").read_text())
        kind = {"Tonewheel": Tonewheel, "MelGAN": MelGAN}[description["vocoder"]]
        module: Tonewheel | MelGAN = kind(**description["arguments"])
        weights = load_file(path.with_suffix(".safetensors"))
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise VoiceError(
            f"{path} holds no vocoder: {error}. Name the files that training wrote, without their suffixes."
        ) from error
    return module.eval()


def export_vocoder_onnx(module: Tonewheel | MelGAN, path: Path) -> float:
    """Write a vocoder as one ONNX file by the "vocoder" contract; weights that float16 holds exactly are stored so.

    Returns its largest relative error against PyTorch; raises VoiceError where that exceeds PARITY_LIMIT.
    """
    module = module.folded() if isinstance(module, MelGAN) else module
    model = export_graph(module.eval(), _contract(module.traits.positional))
    _store_half(model.graph)
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(2, 50, MELS, generator=generator) * 2 - 4
    inputs = (mel, torch.tensor([123456])) if module.traits.positional else (mel,)
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
        error = relative_error(temporary, module, inputs)
        if not error <= PARITY_LIMIT:
            raise VoiceError(
                f"the vocoder in ONNX differs from PyTorch by {error:.2g} (relative), more than {PARITY_LIMIT:g}. "
                "Its weights are not finite or this version of torch miscompiles it; try another version."
            )
    return error


def _contract(positional: bool) -> Contract:
    smallest = Dimensions(1, 1, 1, 1, 1, 1, 1)  # the vocoder's contract depends on no dimension of the voice
    return contracts(smallest, positional)["vocoder"]


def _store_half(graph: ir.Graph) -> None:
    """Store float32 weights that lose nothing by it as float16, each behind a Cast that runtimes fold at load."""
    for name, value in list(graph.initializers.items()):
        assert value.const_value is not None
        content = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = content.astype(np.float16)
        if content.dtype != np.float32 or content.nbytes < EMBEDDED_BYTES or (half != content).any():
            continue
        stored = ir.Value(name=f"{name}.half", const_value=ir.tensor(half, name=f"{name}.half"))
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def receptive_field(source: Path | onnxruntime.InferenceSession) -> tuple[int, int]:
    """Frames (left, right) around a frame that its samples depend on, for any ONNX vocoder, found by perturbation.

    One frame in the middle of a random mel is changed, in several ways; whatever sample is then not bit for bit the
    same depends on it. Raises VoiceError where the reach exceeds MAX_REACH.
    """
    session = _session(source) if isinstance(source, Path) else source
    rng = np.random.default_rng(0)
    frames = 64
    while frames <= 2 * MAX_REACH:
        middle = frames // 2
        changed = np.zeros(frames, bool)
        for level in (LOG_MIN, LOG_MAX, *rng.uniform(LOG_MIN, LOG_MAX, 4)):
            mel = rng.normal(-4, 2, (1, frames, MELS)).astype(np.float32)
            before = _vocode(session, mel)
            mel[0, middle] = level
            changed |= (_vocode(session, mel) != before).reshape(frames, HOP).any(axis=1)
        first, last = (int(edge) for edge in np.flatnonzero(changed)[[0, -1]]) if changed.any() else (middle, middle)
        if first > 0 and last < frames - 1:
            return max(last - middle, 0), max(middle - first, 0)
        frames *= 2
    raise VoiceError(
        f"the vocoder sees more than {MAX_REACH} frames around each frame, so it cannot stream: it "
        "normalises over time or runs recurrently. Use a convolutional vocoder."
    )


def _vocode(session: onnxruntime.InferenceSession, mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run any vocoder on log-mel [1, V, M] from the song's start; audio [HOP V], else VoiceError."""
    inputs: dict[str, NDArray[Any]] = {session.get_inputs()[0].name: mel}
    inputs |= {extra.name: np.zeros(1, np.int64) for extra in session.get_inputs()[1:]}
    try:
        audio: NDArray[np.float32] = session.run(None, inputs)[0].reshape(-1)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise VoiceError(f"the vocoder does not run on {mel.shape[1]} frames of log-mel: {error}") from error
    if len(audio) != HOP * mel.shape[1] or not np.isfinite(audio).all():
        raise VoiceError(
            f"the vocoder gives {len(audio)} samples for {mel.shape[1]} frames, where {HOP} finite ones a frame are "
            "due. It was made for other mel settings or is damaged; use one for this mel."
        )
    return audio


def _session(path: Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise VoiceError(f"{path} is no model that ONNX Runtime can run: {error}") from error


def adopt_onnx_vocoder(source: Path, path: Path) -> VocoderTraits:
    """Copy a foreign mel decoder to ``path`` as a vocoder by our contract, and measure how far it sees.

    It must take float32 log-mel [1 or B, frames, M] as its only input and give HOP samples a frame, in any shape; the
    file is not trusted: it must be whole in itself, and not huge. Raises VoiceError where it does not fit.
    """
    model = _read_foreign(source)
    graph = model.graph
    mel, audio = graph.inputs[0], graph.outputs[0]
    batch = mel.shape[0] if mel.shape is not None else None
    mel.name, mel.shape = "mel", ir.Shape([1 if batch == 1 else "B", "V", MELS])
    rows = ir.Value(name="audio_shape", const_value=ir.tensor([1 if batch == 1 else 0, -1], name="audio_shape"))
    graph.register_initializer(rows)
    reshape = ir.node("Reshape", [audio, rows])
    graph.append(reshape)
    graph.outputs[0] = reshape.outputs[0]
    graph.outputs[0].name, graph.outputs[0].dtype = "audio", ir.DataType.FLOAT
    graph.outputs[0].shape = ir.Shape([1 if batch == 1 else "B", f"{HOP}*V"])
    with atomic_file(path) as temporary:
        ir.save(model, temporary)
        left, right = receptive_field(temporary)
    return VocoderTraits(left_frames=left, right_frames=right)


def _read_foreign(source: Path) -> ir.Model:
    """Read an untrusted ONNX file that takes one mel and gives one signal."""
    try:
        if source.stat().st_size > MAX_VOCODER_BYTES:
            raise ValueError(f"it is larger than {MAX_VOCODER_BYTES >> 20} MiB")
        proto = onnx.load(source, load_external_data=False)
        with tempfile.TemporaryDirectory() as nothing:  # so that weights in other files are refused, wherever they lie
            onnx.load_external_data_for_model(proto, nothing)
        model = ir.from_proto(onnx.compose.add_prefix(proto, "foreign/"))  # clear of the names we give
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise VoiceError(f"{source} is no ONNX model that can be used: {error}. It must be one whole file.") from error
    graph = model.graph
    for value in [value for value in graph.inputs if value.name in graph.initializers]:
        graph.inputs.remove(value)
    shape = graph.inputs[0].shape if graph.inputs else None
    fits = shape is not None and len(shape) == 3 and not isinstance(shape[1], int) and shape[2] in (MELS, None)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph.inputs[0].dtype != ir.DataType.FLOAT or not fits:
        found = ", ".join(f"{value.name} {value.dtype} {value.shape}" for value in graph.inputs)
        raise VoiceError(
            f"{source} takes {found}; a vocoder takes one float32 log-mel [1, frames, {MELS}] of any number of frames. "
            "Export it with a dynamic frame axis and nothing beside the mel."
        )
    return model
