"""diffusers' SpectrogramDiffusionPipeline behind a pipe: for an environment of its own, importing nothing of ours.

``python peer_worker.py THREADS CLOCK [CHECKPOINT]``: makes a random checkpoint of the base size if there is none there,
says which versions run, then answers requests, one JSON object a line. CLOCK, "wall" or "CPU", says which time counts.
Without a checkpoint it answers those for the tokens of MIDI files only.
"""

# mypy: disable-error-code="import-not-found, operator, unused-ignore"

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DDPMScheduler
from diffusers.models import T5FilmDecoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.continuous_encoder import SpectrogramContEncoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.notes_encoder import SpectrogramNotesEncoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.pipeline_spectrogram_diffusion import (
    SpectrogramDiffusionPipeline,
)

MAX_TOKENS, FRAMES, MELS = 2048, 256, 128
BLOCKS = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_kv": 64, "d_ff": 2048, "dropout_rate": 0.1}


now = time.process_time if sys.argv[2] == "CPU" else time.perf_counter


def main() -> None:
    """Answer requests on the real stdout; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[1]))
    calls: dict[str, Callable[..., Any]] = {"tokens": functools.partial(time_tokens, midi_processor())}
    for checkpoint in map(Path, sys.argv[3:]):
        if not (checkpoint / "model_index.json").exists():
            random_pipeline().save_pretrained(checkpoint)
        diffusers.logging.set_verbosity_error()
        pipeline = load(checkpoint)
        calls |= {"segment": functools.partial(time_segment, pipeline), "song": functools.partial(sing, pipeline)}
    versions = {module.__name__: module.__version__ for module in (diffusers, transformers, torch, np)}
    print(json.dumps(versions | {name: version(name) for name in ("note_seq", "protobuf")}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(calls[request.pop("do")](**request)), file=answers)


def midi_processor() -> Any:
    """The pipeline's tokeniser, with those parts of note_seq that it calls.

    note_seq's own __init__ is not run: it imports all of note_seq, and with that librosa, bokeh, IPython and more.
    """
    spec = importlib.util.find_spec("note_seq")
    assert spec is not None
    note_seq = sys.modules["note_seq"] = importlib.util.module_from_spec(spec)
    for part in ("constants", "protobuf.music_pb2", "midi_io", "sequences_lib"):
        names = vars(importlib.import_module(f"note_seq.{part}")).items()
        vars(note_seq).update({name: value for name, value in names if not name.startswith("_")})
    from diffusers.pipelines.deprecated.spectrogram_diffusion.midi_utils import MidiProcessor

    return MidiProcessor()


def random_pipeline() -> SpectrogramDiffusionPipeline:
    """The published base size with random weights as PyTorch starts them."""
    torch.manual_seed(0)
    encoders = {**BLOCKS, "feed_forward_proj": "gated-gelu"}
    return SpectrogramDiffusionPipeline(
        SpectrogramNotesEncoder(max_length=MAX_TOKENS, vocab_size=1536, **encoders),
        SpectrogramContEncoder(input_dims=MELS, targets_context_length=FRAMES, **encoders),
        T5FilmDecoder(input_dims=MELS, targets_length=FRAMES, max_decoder_noise_time=20000.0, **BLOCKS),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large", timestep_spacing="leading"),
        None,
    )


def load(checkpoint: Path) -> SpectrogramDiffusionPipeline:
    """A checkpoint without its vocoder; part by part, as the pipeline's own loader no longer finds its encoders."""
    parts = {
        "notes_encoder": SpectrogramNotesEncoder,
        "continuous_encoder": SpectrogramContEncoder,
        "decoder": T5FilmDecoder,
        "scheduler": DDPMScheduler,
    }
    loaded = {name: part.from_pretrained(checkpoint / name, local_files_only=True) for name, part in parts.items()}
    pipeline = SpectrogramDiffusionPipeline(**loaded, melgan=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def time_segment(pipeline: SpectrogramDiffusionPipeline, tokens: list[int], steps: int) -> dict[str, Any]:
    """One segment after another, as the pipeline's loop does it: seconds of the encoders and of each step."""
    generator = torch.Generator().manual_seed(0)
    context = torch.rand((1, FRAMES, MELS), generator=generator) * 2 - 1
    start = now()
    encodings = pipeline.encode(torch.tensor([pad(tokens)]), context, torch.ones((1, FRAMES), dtype=torch.bool))
    encoders_s = now() - start
    x = torch.randn(context.shape, generator=generator)
    pipeline.scheduler.set_timesteps(steps)
    steps_s = []
    for t in pipeline.scheduler.timesteps:
        start = now()
        noise = pipeline.decode(encodings, x, t / pipeline.scheduler.config.num_train_timesteps)
        x = pipeline.scheduler.step(noise, t, x, generator=generator).prev_sample
        steps_s.append(now() - start)
    return {"encoders_s": encoders_s, "steps_s": steps_s}


def sing(pipeline: SpectrogramDiffusionPipeline, song: list[list[int]], steps: int, out: str) -> dict[str, Any]:
    """A song by the pipeline itself; its mel [T, M] and the noise [draws, T, M] that it drew go to an .npz file."""
    mel = pipeline(
        [pad(tokens) for tokens in song],
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="mel",
    ).audios[0]
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn((FRAMES, MELS), generator=generator).numpy() for _ in range(len(song) * steps)]
    np.savez(out, mel=mel, noise=np.stack(noise))
    return {"out": out}


def time_tokens(processor: Any, song: str) -> dict[str, Any]:
    """A MIDI file's tokens [N], of each segment, without their padding, and the seconds that they took."""
    start = now()
    segments = processor(song)
    tokenise_s = now() - start
    return {"tokenise_s": tokenise_s, "tokens": [[int(token) for token in segment if token] for segment in segments]}


def pad(tokens: list[int]) -> list[int]:
    """To the length that the pipeline's own MIDI processor gives every segment."""
    return tokens + [0] * (MAX_TOKENS - len(tokens))


if __name__ == "__main__":
    main()
