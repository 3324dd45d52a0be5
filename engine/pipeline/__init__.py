"""diffusers' SpectrogramDiffusionPipeline as people already call it, on this engine: one import is changed.

What is called, given and returned is diffusers' of 0.26.3, the last release in which its own works, and so are the
results where a torch.Generator draws the noise. PyTorch is needed only to export a checkpoint, which is done once.
"""

from __future__ import annotations

from notewave.pipeline.pipeline import AudioPipelineOutput, MidiProcessor, SpectrogramDiffusionPipeline
from notewave.pipeline.refusal import PipelineError
from notewave.pipeline.schedulers import DDIMScheduler, DDPMScheduler

__all__ = [
    "AudioPipelineOutput",
    "DDIMScheduler",
    "DDPMScheduler",
    "MidiProcessor",
    "PipelineError",
    "SpectrogramDiffusionPipeline",
]
