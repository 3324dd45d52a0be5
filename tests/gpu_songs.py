"""Songs on the simulated GPU, by the real backend on a simulated TensorRT."""

from __future__ import annotations

import numpy as np
from simulated_device import SimulatedDevice
from simulated_tensorrt import (
    SimulatedTensorRTRTX,
)

from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.trt.backend import open_tensorrt
from notewave.sampling.job import Job
from notewave.sampling.samplers import sampler_table
from notewave.song.dialect import Tokens
from notewave.voice.folder import Voice

STEPS = 3
TOLERANCE = 5e-5  # of float32 products that are summed in another order


def opened(
    voice: Voice, device: SimulatedDevice | None = None, **options: object
) -> tuple[GpuBackend, SimulatedDevice]:
    device = device or SimulatedDevice()
    return open_tensorrt(voice, options, device=device, trt=SimulatedTensorRTRTX(device)), device


def job(
    voice: Voice, sampler: str = "ddpm", guidance: float = 1.0, seeds: tuple[int, ...] = (7,), **given: object
) -> Job:
    given = {"noise": None, **given}
    return Job(sampler_table(sampler, STEPS, voice.schedule, voice.prediction), guidance, seeds, **given)


def sung(backend: GpuBackend | OrtBackend, work: Job, songs: list[list[Tokens]]) -> np.ndarray:
    """Mels [segments, B, T, M] of songs side by side."""
    with backend.start(work) as run:
        return np.stack([run.denoise(list(tokens)).copy() for tokens in zip(*songs, strict=True)])


def sounded(backend: GpuBackend, work: Job, song: list[Tokens]) -> np.ndarray:
    """Audio of a song, its segments vocoded where they were denoised."""
    chunks = []
    with backend.start(work) as run:
        for index, tokens in enumerate(song):
            run.submit([tokens])
            chunks.append(run.sound(last=index == len(song) - 1).result()[0])
    return np.concatenate(chunks)
