"""What the command can be told: each command's words, filled in when it is chosen."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import notewave
from notewave.backends.choose import BACKENDS
from notewave.backends.device.plans import FLAVOURS, PLAN_PRECISIONS
from notewave.checks import shown
from notewave.cli.live import live
from notewave.cli.making import add_voice, build, evaluate, export, train
from notewave.cli.play import play
from notewave.cli.render import render
from notewave.cli.show import info, list_voices
from notewave.errors import ToolError
from notewave.song.editing import EDITS
from notewave.song.midi import MAX_BYTES, MAX_SECONDS
from notewave.sound.mel import SAMPLE_RATE
from notewave.synthesizer import DEFAULT_VOICE, GRIFFIN_LIM
from notewave.voice.folder import STORED_PRECISIONS

TRAINED = "general-midi"  # the configuration that is trained where none is named


@contextlib.contextmanager
def installed(extras: str) -> Iterator[None]:
    """Say as ToolError which extras have a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        needed = "cpu" if error.name == "onnxruntime" else extras  # the runtime itself is in no command's extras
        raise ToolError(f"{error.name} is not installed, which this needs. Install notewave[{needed}].") from error


class _Parser(argparse.ArgumentParser):
    """Arguments that are refused are quoted as plain text."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line after the usage, and exit with 2."""
        super().error(shown(message))


class _Command(_Parser):
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

    def fill(self) -> None:
        """Add the command's words. Raises ToolError where what they need is not installed."""
        if self._fill is not None:
            with installed(self._extras):
                self._fill(self)
            self.set_defaults(extras=self._extras)
            self._fill = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which calls this for the chosen command only."""
        self.fill()
        return super().parse_known_args(args, namespace)


def make_parser() -> argparse.ArgumentParser:
    """The grammar of the whole command; ``run`` is what is to be called with the options, ``extras`` what it needs."""
    parser = _Parser(prog="notewave", description="MIDI to music by spectrogram diffusion.")
    parser.add_argument("--version", action="version", version=f"notewave {notewave.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    for name, (summary, fill, extras) in _COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary, fill=fill, extras=extras)
    return parser


def _fill_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("songs", metavar="SONG.mid", nargs="+", help="- is standard input")
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT.wav",
        help="or a folder/, or - for standard output (default: the song's name with .wav, here)",
    )
    _add_voice(parser)
    _add_synthesis(parser)
    _add_context(parser)
    _add_edits(parser)
    _add_merge(parser)
    parser.add_argument(
        "--rate", metavar="HZ", type=int, default=SAMPLE_RATE, help=f"of the sound (default {SAMPLE_RATE})"
    )
    parser.add_argument("--play", action="store_true", help="on the sound card as it is made; -o writes a file, too")
    parser.add_argument("--plot", metavar="OUT.png", help="also draw the mel of what was rendered; or a folder/")
    parser.add_argument("--stems", metavar="FOLDER", help="also each part alone, and the mix, a file each")
    parser.add_argument("--midi-out", metavar="OUT.mid", help="also write the song as it was sung; or a folder/")
    _add_reading(parser)
    parser.set_defaults(run=render, card=None)


def _fill_play(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("songs", metavar="SONG.mid", nargs="+", help="- is standard input")
    _add_device(parser)
    _add_voice(parser)
    _add_synthesis(parser)
    _add_context(parser)
    _add_edits(parser)
    _add_merge(parser)
    parser.add_argument(
        "--rate", metavar="HZ", type=int, help=f"of the sound (default {SAMPLE_RATE}, or one that the sound card takes)"
    )
    _add_reading(parser)
    parser.set_defaults(run=play, out=None, plot=None, stems=None, midi_out=None, play=True)


def _fill_live(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--midi-in",
        metavar="PORT",
        help="a MIDI port's name, a part of it or its number; or virtual, for one that other programs connect to "
        "(default: the only one there is)",
    )
    _add_device(parser)
    parser.add_argument("--list", action="store_true", help="only say which ports and sound cards there are")
    _add_voice(parser)
    parser.add_argument(
        "--program", metavar="N", type=int, default=0, help="General MIDI's, 0 to 127, to begin with (default 0)"
    )
    parser.add_argument(
        "--map",
        metavar="CHANNEL=PROGRAMS",
        action="append",
        default=[],
        help="what a channel (1 to 16, or * for all but 10) sings: 1=0+48 both programs at once, 1=32:..59,0:60.. the "
        "first up to key 59 and the other from 60 on; drums is a program, too. May be repeated; a channel that is "
        "mapped follows no program changes",
    )
    parser.add_argument(
        "--hop", metavar="FRAMES", type=int, help="of 20 ms, made at once (default: what suits the machine)"
    )
    parser.add_argument("--back", metavar="FRAMES", type=int, help="of 20 ms before them that they are made with")
    _add_steps(parser)
    parser.add_argument("--seed", type=int, default=0)
    _add_machine(parser)
    parser.add_argument("--record", metavar="OUT.wav", help="also write what is heard; kept however play ends")
    parser.add_argument("--seconds", metavar="S", type=float, help="end by itself after so long")
    parser.set_defaults(run=live, vocoder=None)


def _fill_serve(parser: argparse.ArgumentParser) -> None:
    from notewave.cli.serve import add_arguments, serve

    parser.add_argument(
        "--voice",
        action="append",
        help=f"a voice's name or folder; may be repeated, and requests say which (default {DEFAULT_VOICE})",
    )
    _add_machine(parser)
    add_arguments(parser)
    parser.set_defaults(run=serve)


def _fill_corpus(parser: argparse.ArgumentParser) -> None:
    from notewave.cli.corpus import add_arguments, corpus

    add_arguments(parser)
    _add_sampling(parser)
    _add_machine(parser, "CPU threads of each worker (default: what is fastest)")
    _add_edits(parser)
    _add_reading(parser)
    parser.set_defaults(run=corpus)


def _add_voice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", default=DEFAULT_VOICE, help=f"a voice's name or folder (default {DEFAULT_VOICE})")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        dest="device",
        metavar="DEVICE",
        help="a sound card's name, a part of it or its number: notewave live --list says them (default: the system's)",
    )


def _add_edits(parser: argparse.ArgumentParser) -> None:
    """What is to be changed in a song."""
    group = parser.add_argument_group(
        "edits",
        "Parts of a song are named by program (0 to 127), by General MIDI's name or family, as violin or strings, or "
        "drums; several by commas, or by saying the option again.",
    )
    for name, (metavar, what) in EDITS.items():
        group.add_argument(f"--{name}", metavar=metavar, action="append", help=what)


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merge", metavar="SONG.mid", action="append", default=[], help="another song, sung beside it")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How songs are read."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse damaged files and segments of too many tokens, mend and cut none"
    )
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """What a song may be at most."""
    parser.add_argument(
        "--max-seconds", metavar="S", type=float, default=MAX_SECONDS, help=f"of a song (default {MAX_SECONDS:g})"
    )
    parser.add_argument(
        "--max-bytes", metavar="N", type=int, default=MAX_BYTES, help=f"of a song's file (default {MAX_BYTES})"
    )


def _fill_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="VOICE|SONG.mid", nargs="?", default=DEFAULT_VOICE, help=f"default: voice {DEFAULT_VOICE}"
    )
    _add_limits(parser)
    parser.set_defaults(run=info)


def _fill_voices(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=list_voices)
    commands = parser.add_subparsers(metavar="WHAT")
    summary = "put a voice, or one made of a checkpoint, into the voice folder"
    add = commands.add_parser("add", help=summary, description=summary)
    add.add_argument("source", metavar="SOURCE", help="voice folder, hub id, diffusers folder, T5X folder or .ckpt")
    add.add_argument("--name", help="what --voice is to find it by (default: the last part of SOURCE)")
    _add_making(add)
    add.set_defaults(run=add_voice, extras="export")


def _fill_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="it is to read what is printed")
    parser.set_defaults(run=_print_completion)


def _print_completion(options: argparse.Namespace) -> None:
    shtab, parser = importlib.import_module("shtab"), make_parser()
    _fill_all(parser, shtab.FILE)
    print(shtab.complete(parser, options.shell))


def _fill_all(parser: argparse.ArgumentParser, files: Any) -> None:
    """Add the words of all commands whose packages are installed; where any word may stand, files are offered."""
    if isinstance(parser, _Command):
        with contextlib.suppress(ToolError):
            parser.fill()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _fill_all(command, files)
        elif action.choices is None and action.nargs != 0:
            action.complete = files  # type: ignore[attr-defined]


def _fill_export(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="diffusers folder, hub id, T5X folder or the port's .ckpt"
    )
    sizes = [f"{size}{decoder}" for size in ("base", "small", "tiny") for decoder in ("", "-frames")]
    source.add_argument("--random", choices=sizes, help="seeded random weights of a published size")
    parser.add_argument("--out", metavar="VOICE", required=True, type=Path)
    _add_making(parser)
    parser.set_defaults(run=export)


def _add_making(parser: argparse.ArgumentParser) -> None:
    """Options of a voice that is made of a checkpoint."""
    parser.add_argument("--precision", default="fp32", choices=STORED_PRECISIONS)
    parser.add_argument("--vocoder", metavar="MODEL.onnx", type=Path, help="a published mel decoder")
    parser.add_argument(
        "--model-config", metavar="CONFIG.yaml", type=Path, help="that a .ckpt was trained by (default: beside it)"
    )


def _fill_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("--precision", default=PLAN_PRECISIONS[0], choices=PLAN_PRECISIONS)
    parser.add_argument("--compute-capability", metavar="8.9", type=_capability, help="default: that of the GPU here")
    parser.add_argument(
        "--flavour", choices=FLAVOURS, help="default: the first TensorRT installed that builds for that GPU"
    )
    parser.set_defaults(run=build)


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
    parser.set_defaults(run=train)


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
    parser.set_defaults(run=evaluate)


def _add_synthesis(parser: argparse.ArgumentParser) -> None:
    """Options that choose how a song is sampled, and where."""
    _add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0)
    _add_machine(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", help="ddpm, ddim, dpmpp-2m or ancestral (default: the voice's)")
    _add_steps(parser)
    parser.add_argument("--vocoder", choices=[GRIFFIN_LIM], help="in the place of the voice's own")


def _add_context(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", metavar="SOUND.wav", help="go on from the last 5.12 s of a sound")


def _add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help="denoising steps (default: the voice's)")
    parser.add_argument("--guidance", type=float, help="guidance weight, 1 for none (default: the voice's)")


def _add_machine(
    parser: argparse.ArgumentParser, threads: str = "CPU threads (default: as many as there are processors)"
) -> None:
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--threads", type=int, help=threads)


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


_COMMANDS = {  # summary, grammar, and the extras that have what it needs beside the runtime
    "render": ("turn MIDI files into sound", _fill_render, "cpu"),
    "play": ("play MIDI files on the sound card, as they are made", _fill_play, "cpu,live"),
    "live": ("play a voice from a MIDI keyboard", _fill_live, "cpu,live"),
    "serve": ("serve voices over HTTP, with a page to hear them on", _fill_serve, "cpu,serve"),
    "corpus": ("turn a folder of MIDI files into a folder of music, with a manifest", _fill_corpus, "cpu,corpus"),
    "info": ("say what a voice is and check its files, or what a song is", _fill_info, "cpu"),
    "voices": ("list the voices that have a name, or add one", _fill_voices, "cpu"),
    "export": ("make a voice of a checkpoint", _fill_export, "export"),
    "build": ("build a voice's TensorRT plans", _fill_build, "export,rtx"),
    "train": ("train a voice from nothing, or go on, with FluidSynth", _fill_train, "export,train"),
    "completion": ("print what lets a shell complete the command's words", _fill_completion, "completion"),
    "bench": ("measure speed", _fill_bench, "export,plot"),
    "evaluate": ("measure quality beside FluidSynth's own rendering", _fill_evaluate, "evaluate"),
}
