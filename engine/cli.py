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
from notewave.backends.device.plans import FLAVOURS, PLAN_PRECISIONS
from notewave.errors import NotewaveError, ToolError
from notewave.sound.mel import SEGMENT_SECONDS, MelStream
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM
from notewave.voice.folder import STORED_PRECISIONS

TRAINED = "general-midi"  # the configuration that is trained where none is named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 for success, 1 for an error that is explained on stderr.

    It is 130 for Ctrl-C, and 143 for a rendering that was told to end (SIGTERM).
    """
    logging.basicConfig(format="notewave: %(message)s")
    try:
        options = _parser().parse_args(arguments)
        logging.getLogger().setLevel(logging.INFO if options.verbose else logging.WARNING)
        with _installed(options.extras):
            options.run(options)
    except NotewaveError as error:
        print(f"notewave: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("notewave: stopped; nothing was left half-written.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return 0


@contextlib.contextmanager
def _installed(extras: str) -> Iterator[None]:
    """Say as ToolError which extras have a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        needed = "cpu" if error.name == "onnxruntime" else extras  # the runtime itself is in no command's extras
        raise ToolError(f"{error.name} is not installed, which this needs. Install notewave[{needed}].") from error


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
    notes = notewave.read(options.song)  # before the voice, which takes longer
    out = options.out or Path(options.song).with_suffix(".wav").name
    if options.plot:
        check_picture(options.plot)
    synthesizer = notewave.Synthesizer(options.voice, **_synthesizer_options(options))
    tokens = notewave.tokenize(notes, strict=options.strict, dialect=synthesizer.voice.dialect)
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
    print(f"  tokens      {voice.dialect}")
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
    plans = sorted(path for path in folder.iterdir() if path.suffix in (".plan", ".onnx"))
    size = sum(plan.stat().st_size for plan in plans)
    print(f"{folder}: {len(plans)} plans, {size / 2**20:.1f} MiB")


def _train(options: argparse.Namespace) -> None:
    from notewave.export.training.train import pack, train

    logging.getLogger("notewave").setLevel(logging.INFO)  # its progress, for it takes hours
    out = options.out or Path(Path(options.config).stem)
    if options.pack:
        count = pack(options.config, options.data or Path(f"{out}.training") / "data", options.pack)
        print(f"{options.pack}: {count} songs, {options.pack.stat().st_size / 2**20:.1f} MiB")
        return
    voice = train(
        options.config,
        out,
        state=options.state,
        data=options.data,
        vocoder=options.vocoder,
        start=options.start,
        precision=options.precision,
        minutes=options.minutes,
        device=options.device,
    )
    print(f"{out}: {'a voice' if voice else 'not finished; the same command goes on where this run stopped'}")


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


class _Command(argparse.ArgumentParser):
    """A command's grammar, filled in when the command is chosen: the others need not be imported."""

    def __init__(
        self,
        *arguments: Any,
        fill: Callable[[argparse.ArgumentParser], None] | None = None,
        extras: str = "cpu",
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._fill, self._extras = fill, extras

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which calls this for the chosen command only."""
        if self._fill is not None:
            with _installed(self._extras):
                self._fill(self)
            self.set_defaults(extras=self._extras)
            self._fill = None
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="notewave", description="MIDI to music by spectrogram diffusion.")
    parser.add_argument("--version", action="version", version=f"notewave {notewave.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    for name, (summary, fill, extras) in _COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary, fill=fill, extras=extras)
    return parser


def _fill_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("song", metavar="SONG.mid")
    parser.add_argument("-o", "--out", metavar="OUT.wav", help="default: the song's name with .wav, here")
    parser.add_argument("--voice", default=DEFAULT_VOICE, help=f"bundled name or folder (default {DEFAULT_VOICE})")
    _add_synthesis(parser)
    parser.add_argument("--plot", metavar="OUT.png", help="also draw the mel of what was rendered")
    parser.add_argument(
        "--strict", action="store_true", help="refuse segments of too many tokens instead of cutting them"
    )
    parser.set_defaults(run=_render)


def _fill_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE", nargs="?", default=DEFAULT_VOICE)
    parser.set_defaults(run=_info)


def _fill_export(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="diffusers folder, hub id or T5X folder")
    source.add_argument("--random", choices=["base", "small", "tiny"], help="seeded random weights of a published size")
    parser.add_argument("--out", metavar="VOICE", required=True, type=Path)
    parser.add_argument("--precision", default="fp32", choices=STORED_PRECISIONS)
    parser.add_argument("--vocoder", metavar="MODEL.onnx", type=Path, help="a published mel decoder")
    parser.set_defaults(run=_export)


def _fill_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("--precision", default=PLAN_PRECISIONS[0], choices=PLAN_PRECISIONS)
    parser.add_argument("--compute-capability", metavar="8.9", type=_capability, help="default: that of the GPU here")
    parser.add_argument(
        "--flavour", choices=FLAVOURS, help="default: the first TensorRT installed that builds for that GPU"
    )
    parser.set_defaults(run=_build)


def _fill_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default=TRAINED, help=f"a bundled configuration's name or a file (default {TRAINED})"
    )
    parser.add_argument("--out", metavar="VOICE", type=Path, help="default: the configuration's name, here")
    parser.add_argument("--state", metavar="FOLDER", type=Path, help="checkpoints, log, curve (default VOICE.training)")
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, help="rendered songs, or a pack (default: in the state's)"
    )
    parser.add_argument("--pack", metavar="FILE", type=Path, help="only render songs and pack them into one file")
    parser.add_argument("--from", dest="start", metavar="VOICE", type=Path, help="go on from a voice's networks")
    parser.add_argument("--vocoder", metavar="FILE", type=Path, help="a trained vocoder (default: train one)")
    parser.add_argument("--precision", default="fp16", choices=STORED_PRECISIONS)
    parser.add_argument(
        "--minutes", type=float, help="train so long, then write a voice (default: as the configuration says)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: as the configuration says")
    parser.set_defaults(run=_train)


def _fill_bench(parser: argparse.ArgumentParser) -> None:
    from notewave.benchmarks.bench import add_arguments

    add_arguments(parser)


def _fill_evaluate(parser: argparse.ArgumentParser) -> None:
    from notewave.export.material.fluidsynth import SOUNDFONT

    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("songs", metavar="SONG", nargs="*", default=["piano"], help="MIDI files, or piano, band, or gm")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="report.json and a picture of each song")
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    _add_synthesis(parser)
    parser.set_defaults(run=_evaluate)


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


_COMMANDS = {  # summary, grammar, and the extras that have what it needs beside the runtime
    "render": ("turn a MIDI file into sound", _fill_render, "cpu"),
    "info": ("say what a voice is and check its files", _fill_info, "cpu"),
    "export": ("make a voice of a checkpoint", _fill_export, "export"),
    "build": ("build a voice's TensorRT plans", _fill_build, "export,rtx"),
    "train": ("train a voice from nothing, or go on, with FluidSynth", _fill_train, "export,train"),
    "bench": ("measure speed", _fill_bench, "export,plot"),
    "evaluate": ("measure quality beside FluidSynth's own rendering", _fill_evaluate, "evaluate"),
}


if __name__ == "__main__":
    sys.exit(main())
