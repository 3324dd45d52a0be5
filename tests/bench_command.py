"""The grammar of ``notewave bench`` without the command around it."""

from __future__ import annotations

import argparse

from notewave.benchmarks import bench


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)
