"""Commands that make or measure voices."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import notewave
from notewave.checks import shown
from notewave.cli.options import making_options, sampling_options, synthesizer_options
from notewave.files import check_folder, check_writable


def export(options: argparse.Namespace) -> None:
    """Make a voice of a checkpoint."""
    check_folder(options.out)
    from notewave.export.convert import export_checkpoint

    voice = export_checkpoint(options.checkpoint, options.out, random=options.random, **making_options(options))
    _print_made(voice)


def add_voice(options: argparse.Namespace) -> None:
    """Put a voice into the voice folder."""
    from notewave.export import library

    voice = library.add_voice(options.source, name=options.name, **making_options(options))
    _print_made(voice)


def build(options: argparse.Namespace) -> None:
    """Build a voice's plans."""
    from notewave.export.plans.build import build_plans

    voice = notewave.Voice.load(options.voice)
    folder = build_plans(voice, options.precision, options.compute_capability, flavour=options.flavour)
    plans = sorted(path for path in folder.iterdir() if path.suffix in (".plan", ".onnx"))
    size = sum(plan.stat().st_size for plan in plans)
    print(f"{shown(folder)}: {len(plans)} plans, {size / 2**20:.1f} MiB")


def train(options: argparse.Namespace) -> None:
    """Train a voice, or only pack the songs for it."""
    out = options.out or Path(Path(options.config).stem)
    for folder in filter(None, (out, options.state)):
        check_folder(folder)  # what is written there comes after hours
    if options.pack:
        check_writable(options.pack)
    from notewave.export.training import train as training

    logging.getLogger("notewave").setLevel(logging.INFO)  # its progress, for it takes hours
    if options.pack:
        count = training.pack(options.config, options.data or Path(f"{out}.training") / "data", options.pack)
        print(f"{shown(options.pack)}: {count} songs, {options.pack.stat().st_size / 2**20:.1f} MiB")
        return
    voice = training.train(
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
    print(f"{shown(out)}: {'a voice' if voice else 'not finished; the same command goes on where this run stopped'}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a voice's quality."""
    from notewave.benchmarks import evaluate as evaluation

    logging.getLogger("notewave").setLevel(logging.INFO)  # its progress
    report = evaluation.evaluate(
        options.voice,
        options.songs,
        out=options.out,
        soundfont=options.soundfont,
        **synthesizer_options(options),
        **sampling_options(options),
    )
    print(report.table())


def _print_made(voice: notewave.Voice) -> None:
    """What came of an export: where the voice is, and how near its graphs are to PyTorch."""
    print(f"{shown(voice.folder)}: voice {voice.name!r}, {voice.precision}; largest relative errors against PyTorch:")
    for name, error in voice.parity.items():
        print(f"  {shown(name):<22} {error:.1e}")
