"""``notewave bench``: picks which benchmark runs, speed if none is named."""

from __future__ import annotations

import argparse

from notewave.benchmarks import peer, quality, roofline, speed

SUBCOMMANDS = {
    roofline: "this machine's ceilings, and how near each stage comes",
    peer: "the same weights in diffusers' pipeline, in turn",
    quality: "what each sampler, step count and guidance weight costs and gives",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench``, and its subcommands."""
    speed.add_arguments(parser)
    parser.set_defaults(run=speed.run)
    commands = parser.add_subparsers(metavar="WHAT")
    for module, summary in SUBCOMMANDS.items():
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
