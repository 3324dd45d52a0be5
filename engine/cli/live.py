"""``notewave live``: a keyboard in, a voice out, on the sound card as it is played."""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import sys
import time
from collections.abc import Iterator

import numpy as np

import notewave
from notewave.checks import counted, is_number, quoted, shown
from notewave.cli.options import synthesizer_options
from notewave.cli.ports import MidiIn, Port, find_port, midi_ports
from notewave.cli.streams import complain, for_progress
from notewave.errors import ArgumentError, ToolError
from notewave.files import descriptor_of
from notewave.song.router import Router, check_program, parse_maps
from notewave.sound.audio import check_sound
from notewave.sound.card import LiveCard, Output, find_output, live_rate, sound_devices
from notewave.sound.mel import FloatArray
from notewave.sound.recording import Recording, recording

REFRESH_SECONDS = 0.2  # between two looks at what goes on
PORT_SECONDS = 1.0  # between two looks at the port
TURN_SECONDS = 0.0005  # that a thread runs on while another wants to
SILENCE = 1e-5  # the least level that is shown: -100 dB


def live(options: argparse.Namespace) -> None:
    """Play until Ctrl-C, SIGTERM or the time that was given, all of which are the end that is meant."""
    if options.list:
        _list()
        return
    maps, seconds = parse_maps(options.map), _seconds(options.seconds)
    check_program(options.program)
    # What may be refused at once comes before the voice, which takes longer.
    port, output = find_port(options.midi_in), find_output(options.device)
    rate = live_rate(output)
    if options.record is not None:
        check_sound(options.record, rate)
    sung = {name: getattr(options, name) for name in ("hop", "back", "steps", "guidance", "seed")}
    synthesizer = notewave.Synthesizer(options.voice, **synthesizer_options(options))
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it would hold up the sound
    with _quick_turns(), synthesizer.live(rate=rate, **sung) as played:
        stage = _Stage(played, Router(played, options.program, maps), options.record)
        stage.play(port, output, seconds)


class _Stage:
    """A live session: what plays, and what is to be said of it."""

    def __init__(self, played: notewave.Live, router: Router, record: str | None) -> None:
        self._live, self._router, self._record = played, router, record
        self._recording: Recording | None = None
        self._peak = 0.0  # the loudest level since one was shown
        is_piped = record is not None and descriptor_of(record) == 1
        self._report = sys.stderr if is_piped else sys.stdout
        self._line = for_progress() if sys.stderr.isatty() else None  # one that is written over and over

    def play(self, port: Port, output: Output, seconds: float) -> None:
        """Play for so long at most. Raises what ended the sound before; what is recorded until then is kept."""
        failure = None
        with contextlib.ExitStack() as opened:
            card = opened.enter_context(LiveCard(output, self._live.sample_rate, self._read))
            keyboard = opened.enter_context(MidiIn(port, self._router.take, self._router.all_off))
            if self._record is not None:  # the first to be closed: it is kept even where others hang
                self._recording = opened.enter_context(recording(self._record, self._live.sample_rate))
            began = time.monotonic()
            try:
                self._go_on(card, keyboard, began + seconds)
            except KeyboardInterrupt:  # a second one breaks off the rest of the block
                pass
            except notewave.NotewaveError as error:
                failure = error
            self._clear()
            self._say_end(card, time.monotonic() - began)
        if failure is not None:
            raise failure

    def _go_on(self, card: LiveCard, keyboard: MidiIn, end: float) -> None:
        """Look at what goes on until a time of the monotonic clock."""
        where = f"{shown(card.output.name)} at {card.sample_rate} Hz"
        print(
            f"listening to {shown(keyboard.port.title)}, playing on {where}, latency {self._latency_ms(card):.0f} ms; "
            "Ctrl-C ends it",
            file=self._report,
            flush=True,
        )
        looked, has_complained = time.monotonic(), False
        while (left := end - time.monotonic()) > 0:
            card.wait(min(left, REFRESH_SECONDS))
            self._live.check()
            if time.monotonic() - looked >= PORT_SECONDS:
                looked = time.monotonic()
                if news := keyboard.check():
                    self._complain(news)
            if self._recording is not None and self._recording.failure is not None and not has_complained:
                self._complain(self._recording.failure)  # and at the end, as what failed: the music goes on till then
                has_complained = True
            self._show(card)

    def _read(self) -> FloatArray:
        """The next samples [n], for the sound card."""
        samples = self._live.read().samples
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        if self._recording is not None:
            self._recording.put(samples)
        return samples

    def _latency_ms(self, card: LiveCard) -> float:
        """From a key to its sound; it grows where hops come late."""
        return 1000 * (self._live.latency + card.latency)

    def _show(self, card: LiveCard) -> None:
        """Write the line anew, on a terminal."""
        if self._line is None:
            return
        stats, level = self._live.stats, 20 * math.log10(max(self._peak, SILENCE))
        self._peak = 0.0
        load, held = 100 * stats.load, counted(stats.held, "note")
        now = f"load {load:3.0f} % | {stats.late} late | {held} | {level:4.0f} dB"
        self._line.write(f"\r{self._latency_ms(card):.0f} ms | {now}\x1b[K")
        self._line.flush()

    def _clear(self) -> None:
        if self._line is not None:
            self._line.write("\r\x1b[K")
            self._line.flush()

    def _complain(self, what: object) -> None:
        self._clear()
        complain(what)

    def _say_end(self, card: LiveCard, seconds: float) -> None:
        stats = self._live.stats
        thinned = f", {counted(stats.thinned, 'note')} left out" if stats.thinned else ""
        print(
            f"played {seconds:.1f} s: {counted(stats.hops, 'hop')}, {stats.late} late, load {100 * stats.load:.0f} % "
            f"(worst {100 * stats.worst:.0f} %), {counted(card.gaps, 'gap')} on the sound card{thinned}",
            file=self._report,
        )


@contextlib.contextmanager
def _quick_turns() -> Iterator[None]:
    """Let no thread of Python's keep the others waiting as long as usual: 5 ms are more than a sound card's block."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _seconds(given: float | None) -> float:
    """How long to play."""
    if given is None:
        return math.inf
    if not is_number(given, 0.0, math.inf) or given == 0:
        raise ArgumentError(f"--seconds is {quoted(given)}; it must be a time above 0, or be left out for no end.")
    return given


def _list() -> None:
    """Say which ports and devices there are, or what is missing for there to be any."""
    print("MIDI ports, for --midi-in:")
    try:
        for number, port in enumerate(midi_ports()):
            print(f"  {number:>2} {shown(port.title)}")
        print("     virtual: a port of its own, that other programs connect to")
    except ToolError as error:
        print(f"     {shown(error)}")
    print("sound cards, for --out:")
    try:
        for output in (outputs := sound_devices()):
            print(f"  {output.number:>2} {shown(output.name)}{' (default)' * output.is_default}")
        if not outputs:
            print("     none")
    except ToolError as error:
        print(f"     {shown(error)}")
