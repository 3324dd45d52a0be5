"""The ``notewave`` command: parse, load, run, report. Progress is shown here and nowhere else."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import notewave
from notewave.backends.choose import BACKENDS
from notewave.backends.trt.plans import FLAVOURS, PLAN_PRECISIONS
from notewave.errors import NotewaveError
from notewave.sound.mel import SEGMENT_SECONDS, MelStream
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM
from notewave.voice.folder import STORED_PRECISIONS

_EXTRAS = {  # what a command needs installed beside the runtime
    "export": "export",
    "build": "export,rtx",
    "train": "export,train",
    "bench": "export,plot",
    "evaluate": "evaluate",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for success, 1 for an error that is explained on stderr.

    It is 130 for Ctrl-C, and 143 for a rendering that was told to end (SIGTERM).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in arguments if word in _EXTRAS), "")
    logging.basicConfig(format="notewave: %(message)s")
    try:
        options = _parser(arguments).parse_args(arguments)
        logging.getLogger().setLevel(logging.INFO if options.verbose else logging.WARNING)
        options.run(options)
    except ModuleNotFoundError as error:
        extras = _EXTRAS.get(command, "cpu")
        print(
            f"notewave: {error.name} is not installed, which this needs. Install notewave[{extras}].", file=sys.stderr
        )
        return 1
    except NotewaveError as error:
        print(f"notewave: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("notewave: stopped; nothing was left half-written.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is."""


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the block, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():  # no other may have handlers
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_ending_on_sigterm()
def _render(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from notewave.sound.audio import audio_file
    from notewave.sound.plot import check_picture, save_mel_picture

    start = time.perf_counter()
    tokens = notewave.tokenize(options.song, strict=options.strict)
    out = options.out or Path(options.song).with_suffix(".wav").name
    if options.plot:
        check_picture(options.plot)
    synthesizer = notewave.Synthesizer(options.voice, **_synthesizer_options(options))
    steps = options.steps or synthesizer.voice.sampling.steps
    stream, mels = MelStream(), []
    with (
        tqdm(total=len(tokens) * steps, unit="step", disable=not sys.stderr.isatty()) as bar,
        audio_file(out) as file,
    ):
        for audio in synthesizer.stream(tokens, **_sampling_options(options), on_step=bar.update):
            file.write(audio.samples)
            if options.plot:
                mels.append(stream.push(audio.samples))
    seconds, length = time.perf_counter() - start, len(tokens) * SEGMENT_SECONDS
    print(
        f"{out}: {length:.2f} s of music in {seconds:.2f} s on {synthesizer.backend}, "
        f"real-time factor {seconds / length:.3f}"
    )
    if options.plot:
        mel = np.concatenate([*mels, stream.finish()])
        save_mel_picture({f"{Path(options.song).name}, voice {synthesizer.voice.name}": mel}, options.plot)
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


def _build(options: argparse.Namespace) -> None:
    from notewave.export.plans.build import build_plans

    voice = notewave.Voice.load(options.voice)
    folder = build_plans(voice, options.precision, options.compute_capability, flavour=options.flavour)
    plans = sorted(folder.glob("*.plan"))
    size = sum(plan.stat().st_size for plan in plans)
    print(f"{folder}: {len(plans)} plans, {size / 2**20:.1f} MiB")


def _train(options: argparse.Namespace) -> None:
    from notewave.export.training.train import train

    logging.getLogger("notewave").setLevel(logging.INFO)  # its progress, for it takes hours
    voice = train(
        options.config,
        options.out,
        state=options.state,
        data=options.data,
        vocoder=options.vocoder,
        start=options.start,
        precision=options.precision,
    )
    print(f"{options.out}: {'a voice' if voice else 'not finished; the same command goes on where this run stopped'}")


def _evaluate(options: argparse.Namespace) -> None:
    from notewave.benchmarks.evaluate import evaluate

    logging.getLogger("notewave").setLevel(logging.INFO)  # its progress
    report = evaluate(
        options.voice,
        options.songs,
        out=options.out,
        soundfont=options.soundfont,
        **_synthesizer_options(options),
        **_sampling_options(options),
    )
    print(report.table())


def _synthesizer_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"backend": options.backend, "threads": options.threads, "vocoder": options.vocoder}


def _sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("sampler", "steps", "guidance", "seed")}


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The command's grammar; benchmarks are imported only when they are asked for."""
    parser = argparse.ArgumentParser(prog="notewave", description="MIDI to music by spectrogram diffusion.")
    parser.add_argument("--version", action="version", version=f"notewave {notewave.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        return command

    render = add("render", _render, "turn a MIDI file into sound")
    render.add_argument("song", metavar="SONG.mid")
    render.add_argument("-o", "--out", metavar="OUT.wav", help="default: the song's name with .wav, here")
    render.add_argument("--voice", default=DEFAULT_VOICE, help=f"bundled name or folder (default {DEFAULT_VOICE})")
    _add_synthesis(render)
    render.add_argument("--plot", metavar="OUT.png", help="also draw the mel of what was rendered")
    render.add_argument(
        "--strict", action="store_true", help="refuse segments of too many tokens instead of cutting them"
    )

    info = add("info", _info, "say what a voice is and check its files")
    info.add_argument("voice", metavar="VOICE", nargs="?", default=DEFAULT_VOICE)

    export = add("export", _export, "make a voice of a checkpoint")
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="diffusers folder, hub id or T5X folder")
    source.add_argument("--random", choices=["base", "small", "tiny"], help="seeded random weights of a published size")
    export.add_argument("--out", metavar="VOICE", required=True, type=Path)
    export.add_argument("--precision", default="fp32", choices=STORED_PRECISIONS)
    export.add_argument("--vocoder", metavar="MODEL.onnx", type=Path, help="a published mel decoder")

    build = add("build", _build, "build a voice's TensorRT plans")
    build.add_argument("voice", metavar="VOICE")
    build.add_argument("--precision", default=PLAN_PRECISIONS[0], choices=PLAN_PRECISIONS)
    build.add_argument("--compute-capability", metavar="8.9", type=_capability, help="default: that of the GPU here")
    build.add_argument("--flavour", choices=FLAVOURS, help="default: the first one installed that builds for that GPU")

    train = add("train", _train, "train a voice from nothing, or go on, with FluidSynth")
    train.add_argument("--config", default="band", help="a bundled configuration's name or a file (default band)")
    train.add_argument("--out", metavar="VOICE", required=True, type=Path)
    train.add_argument("--state", metavar="FOLDER", type=Path, help="checkpoints, log, curve (default VOICE.training)")
    train.add_argument("--data", metavar="FOLDER", type=Path, help="rendered songs (default: in the state folder)")
    train.add_argument("--from", dest="start", metavar="VOICE", type=Path, help="go on from a voice's networks")
    train.add_argument("--vocoder", metavar="FILE", type=Path, help="a trained vocoder (default: train one)")
    train.add_argument("--precision", default="fp16", choices=STORED_PRECISIONS)

    bench = add("bench", lambda options: options.run(options), "measure speed")
    evaluate = add("evaluate", _evaluate, "measure quality beside FluidSynth's own rendering")
    if "bench" in arguments:
        from notewave.benchmarks.bench import add_arguments

        add_arguments(bench)
    evaluate.add_argument("voice", metavar="VOICE")
    evaluate.add_argument("songs", metavar="SONG", nargs="*", default=["piano"], help="MIDI files, or piano, or band")
    evaluate.add_argument("--out", metavar="FOLDER", type=Path, help="report.json and a picture of each song")
    evaluate.add_argument("--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    _add_synthesis(evaluate)
    return parser


def _add_synthesis(parser: argparse.ArgumentParser) -> None:
    """Options that choose how a song is sampled, and where."""
    parser.add_argument("--sampler", help="ddpm, ddim, dpmpp-2m or ancestral (default: the voice's)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the voice's)")
    parser.add_argument("--guidance", type=float, help="guidance weight, 1 for none (default: the voice's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--vocoder", choices=[GRIFFIN_LIM], help="in the place of the voice's own")


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


if __name__ == "__main__":
    sys.exit(main())
