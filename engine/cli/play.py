"""``notewave play``: songs on the sound card, as they are made."""

from __future__ import annotations

import argparse

from notewave.cli.render import render
from notewave.sound.card import find_output, live_rate, takes
from notewave.sound.mel import SAMPLE_RATE


def play(options: argparse.Namespace) -> int:
    """Play each song, as ``render`` makes it; at the sound's own rate where the device takes it, or at the device's."""
    options.card = find_output(options.device)
    if options.rate is None:
        options.rate = SAMPLE_RATE if takes(options.card, SAMPLE_RATE, channels=1) else live_rate(options.card)
    return render(options)
