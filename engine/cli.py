"""The ``notewave`` command: parse, load, run, report. Progress is shown here and nowhere else."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import notewave
from notewave.backend import BACKENDS
from notewave.errors import NotewaveError
from notewave.mel import SEGMENT_SECONDS, log_mel
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for success, 1 for an error that is explained on stderr, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="notewave: %(message)s")
    try:
        options.run(options)
    except NotewaveError as error:
        print(f"notewave: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("notewave: stopped; nothing was left half-written.", file=sys.stderr)
        return 130
    return 0


def _render(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from notewave.audio import audio_file

    out = options.out or Path(options.song).with_suffix(".wav").name
    start = time.perf_counter()
    tokens = notewave.tokenize(options.song, strict=options.strict)
    synthesizer = notewave.Synthesizer(
        options.voice, backend=options.backend, threads=options.threads, vocoder=options.vocoder
    )
    steps = options.steps or synthesizer.voice.sampling.steps
    chunks = []
    with (
        tqdm(total=len(tokens) * steps, unit="step", disable=not sys.stderr.isatty()) as bar,
        audio_file(out) as file,
    ):
        for audio in synthesizer.stream(
            tokens,
            sampler=options.sampler,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            on_step=bar.update,
        ):
            file.write(audio.samples)
            if options.plot:
                chunks.append(audio.samples)
    seconds, length = time.perf_counter() - start, len(tokens) * SEGMENT_SECONDS
    print(
        f"{out}: {length:.2f} s of music in {seconds:.2f} s on {synthesizer.backend}, "
        f"real-time factor {seconds / length:.3f}"
    )
    if options.plot:
        from notewave.plot import save_mel_picture

        save_mel_picture(
            {f"{Path(options.song).name}, voice {synthesizer.voice.name}": log_mel(np.concatenate(chunks))},
            options.plot,
        )
        print(f"{options.plot}: its mel")


def _info(options: argparse.Namespace) -> None:
    voice = notewave.Voice.load(options.voice)
    size = sum(record.bytes for record in voice.files.values())
    print(f"{voice.name}: {voice.folder}")
    print(f"  licence     {voice.licence}")
    print(f"  provenance  {voice.provenance}")
    print(f"  networks    {voice.dimensions}")
    print(f"  diffusion   predicts {voice.prediction}; {voice.schedule}; recommended {voice.sampling}")
    print(f"  vocoder     {voice.vocoder or 'none: spectrograms, or ' + GRIFFIN_LIM}")
    print(f"  files       {len(voice.files)}, {size / 2**20:.1f} MiB, {voice.precision}; checksums agree")
    print(f"  parity      {', '.join(f'{name} {error:.1e}' for name, error in voice.parity.items())}")


def _export(options: argparse.Namespace) -> None:
    from notewave.export.convert import export_checkpoint

    voice = export_checkpoint(
        options.checkpoint, options.out, random=options.random, precision=options.precision, vocoder=options.vocoder
    )
    print(f"{voice.folder}: voice {voice.name!r}, {voice.precision}; largest relative errors against PyTorch:")
    for name, error in voice.parity.items():
        print(f"  {name:<22} {error:.1e}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="notewave", description="MIDI to music by spectrogram diffusion.")
    parser.add_argument("--version", action="version", version=f"notewave {notewave.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    render = commands.add_parser("render", help="turn a MIDI file into sound")
    render.add_argument("song", metavar="SONG.mid")
    render.add_argument("-o", "--out", metavar="OUT.wav", help="default: the song's name with .wav, here")
    render.add_argument("--voice", default=DEFAULT_VOICE, help=f"bundled name or folder (default {DEFAULT_VOICE})")
    render.add_argument("--sampler", help="ddpm, ddim, dpmpp-2m or ancestral (default: the voice's)")
    render.add_argument("--steps", type=int, help="denoising steps (default: the voice's)")
    render.add_argument("--guidance", type=float, help="guidance weight, 1 for none (default: the voice's)")
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--backend", default="auto", choices=BACKENDS)
    render.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    render.add_argument("--vocoder", choices=[GRIFFIN_LIM], help="in the place of the voice's own")
    render.add_argument("--plot", metavar="OUT.png", help="also draw the mel of what was rendered")
    render.add_argument(
        "--strict", action="store_true", help="refuse segments of more than 2048 tokens instead of cutting them"
    )
    render.set_defaults(run=_render)

    info = commands.add_parser("info", help="say what a voice is and check its files")
    info.add_argument("voice", metavar="VOICE", nargs="?", default=DEFAULT_VOICE)
    info.set_defaults(run=_info)

    export = commands.add_parser("export", help="make a voice of a checkpoint (needs notewave[export])")
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="diffusers folder, hub id or T5X folder")
    source.add_argument("--random", choices=["base", "small", "tiny"], help="seeded random weights of a published size")
    export.add_argument("--out", metavar="VOICE", required=True, type=Path)
    export.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    export.add_argument("--vocoder", metavar="MODEL.onnx", type=Path, help="a published mel decoder")
    export.set_defaults(run=_export)
    return parser


if __name__ == "__main__":
    sys.exit(main())
