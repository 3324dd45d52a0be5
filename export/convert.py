"""Voices from checkpoints and models: the whole folder, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from notewave.contracts import Dimensions
from notewave.errors import OutputError, VoiceError
from notewave.export.checkpoints import Checkpoint, load_diffusers
from notewave.export.graphs import write_graphs
from notewave.export.modules import SpectrogramDiffusion
from notewave.files import atomic_folder
from notewave.voice import DESCRIPTION, PRECISIONS, FileRecord, NoiseSchedule, Sampling, Voice, VocoderTraits


def export_voice(
    checkpoint: Checkpoint,
    out: str | os.PathLike[str],
    *,
    name: str,
    licence: str,
    provenance: str,
    precision: str = "fp32",
) -> Voice:
    """Write a voice folder; an older voice at ``out`` is replaced."""
    target = Path(out)
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise OutputError(f"{target} exists and is not a voice, so it is not replaced. Remove it or choose another folder.")
    with atomic_folder(target) as folder:
        parity = write_graphs(checkpoint.model, folder, precision)
        voice = Voice(
            folder=folder,
            name=name,
            licence=licence,
            provenance=provenance,
            dimensions=checkpoint.model.size,
            prediction=checkpoint.prediction,
            schedule=checkpoint.schedule,
            sampling=checkpoint.sampling,
            vocoder=None,
            precision=precision,
            parity=parity,
            files={path.name: FileRecord.of(path) for path in sorted(folder.iterdir())},
        )
        voice.save_description()
    return Voice.load(target)
