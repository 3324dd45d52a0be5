"""Voices of random weights, of either family and decoder, small enough to be sung many times."""

from __future__ import annotations

from pathlib import Path

import torch

from notewave.export.autoregressive import SpectrogramAutoregression, VoiceNetworks
from notewave.export.convert import export_voice
from notewave.export.networks import Family, SpectrogramDiffusion
from notewave.sampling.options import FRAME_BY_FRAME, Sampling
from notewave.sampling.samplers import AUTOREGRESSIVE
from notewave.sampling.schedule import NoiseSchedule
from notewave.voice.contracts import Dimensions
from notewave.voice.folder import Voice


def random_voice(folder: Path, family: Family, *, frames: bool = False, context: int = 1) -> Voice:
    """A voice without a vocoder in a new folder.

    frames: whether it writes frame by frame. context: layers of its context encoder; such as write by frames have none.
    """
    torch.manual_seed(0)
    size = Dimensions(
        width=32,
        heads=2,
        head_width=16,
        feed_forward=64,
        note_encoder_layers=1,
        context_encoder_layers=0 if frames else context,
        decoder_layers=2,
    )
    model: VoiceNetworks = (SpectrogramAutoregression if frames else SpectrogramDiffusion)(size, family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
    return export_voice(
        model,
        folder,
        name="random",
        licence="Apache-2.0",
        provenance="Random.",
        prediction=AUTOREGRESSIVE if frames else "epsilon",
        schedule=NoiseSchedule(),
        sampling=FRAME_BY_FRAME if frames else Sampling("ddpm", 3, 1.0),
    )
