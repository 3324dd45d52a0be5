"""Vocoders in PyTorch: log-mel [B, V, M] to audio [B, HOP V].

Letters: B batch, V frames, M mel bins, D width, K sinusoids, F noise bins. A vocoder's ``traits`` say how far it sees:
samples [HOP j, HOP (j + 1)) depend on frames j - left .. j + right only, so a song can be vocoded in chunks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from notewave.errors import VoiceError
from notewave.files import atomic_file
from notewave.inputs import open_regular, read_regular
from notewave.sound.mel import FFT, HOP, LOG_MIN, MELS, SAMPLE_RATE, WINDOW, mel_weights
from notewave.sound.stream import VocoderTraits

MAX_DESCRIPTION_BYTES = 1 << 16
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
        description = json.loads(read_regular(path.with_suffix(".json"), MAX_DESCRIPTION_BYTES))
        kind = {"Tonewheel": Tonewheel, "MelGAN": MelGAN}[description["vocoder"]]
        module: Tonewheel | MelGAN = kind(**description["arguments"])
        os.close(open_regular(path.with_suffix(".safetensors")))  # anything else would be waited for
        weights = load_file(path.with_suffix(".safetensors"))
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise VoiceError(
            f"{path} holds no vocoder: {error}. Name the files that training wrote, without their suffixes."
        ) from error
    return module.eval()
