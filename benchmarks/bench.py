"""``notewave bench``: picks which benchmark runs, speed if none is named."""

from __future__ import annotations

import argparse

from notewave.benchmarks import (
    context,
    corpus,
    decoders,
    live,
    page,
    peer,
    peer_gpu,
    quality,
    roofline,
    serve,
    speed,
    stems,
)

SUBCOMMANDS = {  # summary, and the extras that have what it needs beside the runtime
    roofline: ("this machine's ceilings, and how near each stage comes", "export,plot"),
    peer: ("the same weights in diffusers' pipeline, in turn", "export,plot"),
    live: ("live play: latency, hops in time, and what it costs in quality", "evaluate"),
    stems: ("the sum of a song's parts beside the mix", "evaluate"),
    context: ("what a voice takes up of the sound that it goes on from", "evaluate"),
    serve: ("a server under many clients at once, good and bad ones: is every answer right?", "cpu,serve,plot"),
    page: ("from the drop of a song on the page of a server to its first sound", "cpu,serve,plot"),
    corpus: (
        "many songs by several workers: how much faster, at what cost, and through all trouble?",
        "cpu,corpus,plot",
    ),
    decoders: ("the paper's comparison: a voice that denoises beside one that writes frame by frame", "evaluate"),
    quality: ("what each sampler, step count and guidance weight costs and gives", "evaluate"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench``, and its subcommands."""
    speed.add_arguments(parser)
    parser.set_defaults(run=speed.run)
    commands = parser.add_subparsers(metavar="WHAT")
    for module, (summary, extras) in SUBCOMMANDS.items():
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run, extras=extras)
        if module is peer:
            peer_gpu.add_arguments(command)
