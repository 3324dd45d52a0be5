"""Distillation: a voice's many guided steps learned into one or two without guidance.

The voice predicts the clean mel, so its student, which starts as a copy of it, regresses directly on what the teacher
comes to from the same noise, tokens and context (progressive distillation, Salimans & Ho 2022, in one leap; guidance
with it, Meng et al. 2023). Guidance sharpens what the teacher is unsure of. The true mel keeps a share in the target,
so that the student doesn't learn the teacher's errors as well.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from notewave.export.material.segments import Segments
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Config, Stage
from notewave.export.training.diffusion import (
    PREDICTION,
    SCHEDULE,
    MelBatch,
    normals,
    predict_crops,
    weighted_error,
)
from notewave.export.training.generation import denoise_segments
from notewave.export.training.loop import Allowance, low_precision
from notewave.export.training.phases import PhasedRun
from notewave.export.training.queries import scale_queries
from notewave.export.training.stages import Batches, held_out_check, to_device
from notewave.export.training.weights import write_weights
from notewave.sampling.samplers import sampler_table
from notewave.sampling.schedule import alpha_bars
from notewave.sound.mel import FRAMES, MELS

SAMPLER = "dpmpp-2m"  # of teacher and student
STUDENT_STEPS = 2  # at most: it learns the first time of one step and both of two
LATER = 0.25  # share of segments that learn the second of two steps


def train_student(
    config: Config, folder: Path, data: Path, teacher: SpectrogramDiffusion, allowance: Allowance | None = None
) -> Path | None:
    """Run or resume the distillation of a trained model; returns the file of averaged weights, None if it was stopped.

    teacher: a plain model, which is left as it is.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    scale_queries(student)
    student, teacher = student.to(config.device), teacher.to(config.device).eval().requires_grad_(False)
    run = PhasedRun(folder, "distil", config, student, lambda name: "new", allowance)
    segments = Segments(data, config.dialect, config.data)
    check, batches = held_out_check(config, data, segments), Batches(run, segments)

    def loss(phase: Stage, share: int) -> Tensor:
        batch = to_device(batches(share), config.device)
        with low_precision(config.device):
            return student_loss(student, teacher, batch, phase, run.generator(share))

    def validate() -> dict[str, float]:
        write_weights(folder, config, student, run.step, distilled=True)
        with low_precision(config.device):
            return check(student, 1)

    finished = run.train_phases(loss, validate)
    run.average.settle()
    weights = write_weights(folder, config, student, run.step, distilled=True)
    return weights if finished else None


def student_loss(
    student: SpectrogramDiffusion,
    teacher: SpectrogramDiffusion,
    batch: MelBatch,
    phase: Stage,
    generator: torch.Generator,
) -> Tensor:
    """Error of the student's prediction at its own noise times, against the teacher's mel and some of the true one."""
    count, device = len(batch.mel), batch.mel.device
    noise = normals((count, FRAMES, MELS), generator, device)
    window = torch.arange(FRAMES, device=device).expand(count, 1, FRAMES)
    taught = teach(teacher, batch, noise, phase).lerp(batch.mel, phase.truth)
    is_live = (batch.known < FRAMES)[:, None, None]  # which the teacher was not asked for
    taught = torch.where(is_live, batch.mel, taught)
    first, second = (sampler_table(SAMPLER, steps, SCHEDULE, PREDICTION).time[-1] for steps in (1, STUDENT_STEPS))
    later = torch.rand(count, generator=generator).to(device) < LATER
    time = torch.where(later, float(second), float(first))
    times, bars = alpha_bars(SCHEDULE)
    bar = float(bars[abs(times - second).argmin()])
    other = normals(noise.shape, generator, device)
    x = torch.where(later[:, None, None], bar**0.5 * taught + (1 - bar) ** 0.5 * other, noise)
    every = torch.ones(count, dtype=torch.bool, device=device)
    starts = torch.zeros(count, 1, dtype=torch.long, device=device)
    predicted = predict_crops(student, batch, x[:, None], time[:, None], starts, every)
    return weighted_error(predicted, taught[:, None], batch, window)


def teach(teacher: SpectrogramDiffusion, batch: MelBatch, noise: Tensor, phase: Stage) -> Tensor:
    """The mels [B, T, M] that the teacher comes to from noise [B, T, M], in the phase's steps and guidance."""
    table = sampler_table(SAMPLER, phase.teacher_steps, SCHEDULE, PREDICTION)
    x = noise.cpu().numpy().copy()
    denoise_segments(teacher, table, x, batch.tokens, batch.context, batch.context_keep, phase.guidance)
    return torch.from_numpy(x).to(noise.device).clamp(-1, 1)
