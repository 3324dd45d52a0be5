"""From note-on to sound, of a program that plays live: isolated notes are sent to it and found in what it plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.jack import Event, JackServer, Player, Program, Recording
from notewave.errors import ArgumentError
from notewave.export.material.fluidsynth import SOUNDFONT

ENVELOPE_S = 0.001  # over which the level (RMS) is taken
FLOOR_S = 0.05  # before the note-on, whose highest level is the noise floor
ABOVE_FLOOR = 3.0  # 10 dB
PART_OF_PEAK = 0.05  # -26 dB
SILENCE = 1e-4  # -80 dBFS: what never gets above it is no sound

NOTE_S = 0.3
SPACING_S = 0.9, 1.1  # between note-ons: even, so that they meet no hop or period always at the same place
WINDOW_S = 0.8  # in which a note's sound is looked for
PITCHES = 48, 84  # of three octaves around the middle: a wave of the lowest lasts 8 ms
VELOCITY = 100


@dataclass(frozen=True)
class Instrument:
    """A program to be measured: how it is started, and its JACK ports, as regular expressions on CLIENT:PORT."""

    command: Sequence[str]
    midi: str  # its MIDI input
    audio: str  # its outputs, in order
    channels: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)  # beside this process's and the server's
    patience_s: float = 20.0  # until its ports are there
    settle_s: float = 1.0  # from the first sight of its ports until it is ready to play
    farewell_s: float = 0.0  # how long it may take to end by itself when its input ends


FLUIDSYNTH = Instrument(
    ("fluidsynth", "-a", "jack", "-m", "jack", "-o", "midi.autoconnect=0", str(SOUNDFONT)),
    midi="^fluidsynth.*:midi",
    audio="^fluidsynth.*:(left|right)$",
    farewell_s=5.0,
)


@dataclass(frozen=True)
class Latency:
    """What was measured on N notes, in seconds on the wall's clock."""

    seconds: NDArray[np.float64]  # [N] see ``onset_latencies``; NaN: no sound came
    recording: Recording

    @property
    def missing(self) -> int:
        """Notes of which no sound came: the figures below leave them out."""
        return int(np.isnan(self.seconds).sum())

    def percentile(self, part: float) -> float:
        """Of the notes that sounded: 50 is the median, 100 the worst. NaN where none did."""
        heard = self.seconds[~np.isnan(self.seconds)]
        return float(np.percentile(heard, part)) if len(heard) else float("nan")

    def __str__(self) -> str:
        median, most, worst = (1000 * self.percentile(part) for part in (50, 95, 100))
        recording = self.recording
        return (
            f"median {median:.1f} ms, 95% {most:.1f} ms, worst {worst:.1f} ms, {self.missing} of {len(self.seconds)} "
            f"missing, {recording.xruns} xruns, {recording.lost} frames lost, "
            f"clock {1000 * recording.behind[-1]:.0f} ms behind"
        )


def measure(instrument: Instrument, server: JackServer, notes: int = 20, seed: int = 0) -> Latency:
    """Note-on to sound of a program, on isolated piano notes (MIDI channel 1, as the program has it at its start).

    From the frame of the note-on to the frame of the onset, both on the wall's clock. One period is the key's own way
    to the program (see ``Player.play``); what a sound card adds after the program's output is not counted. Raises what
    ``play_song`` does.
    """
    note_times, events = isolated_notes(notes, seed)
    recording = play_song(instrument, server, events, float(note_times[-1]) + WINDOW_S)
    note_ons = recording.sent[::2] / recording.rate  # of each pair; the notes do not overlap
    onsets = note_ons + onset_latencies(recording.audio, recording.rate, note_ons)
    ends = [recording.wall_s(onset * recording.rate) if onset == onset else np.nan for onset in onsets]
    return Latency(np.array(ends) - [recording.wall_s(frame) for frame in recording.sent[::2]], recording)


def play_song(instrument: Instrument, server: JackServer, events: Sequence[Event], seconds: float) -> Recording:
    """Start a program, let it play MIDI events, record that many seconds, and end it.

    Raises ArgumentError for events outside those seconds, and ToolError where the program is missing, its ports do not
    come, or, with its log, it ends early.
    """
    environment = server.environment | dict(instrument.environment)
    # The player is there first: a program may look for harness:midi, its port, to open it by name.
    with Player(server) as player, Program(instrument.command, environment, instrument.farewell_s) as program:
        player.connect(instrument.midi, instrument.audio, instrument.channels, program.check, instrument.patience_s)
        player.play([], instrument.settle_s, program.check)
        return player.play(events, seconds, program.check)


def isolated_notes(count: int, seed: int) -> tuple[NDArray[np.float64], list[Event]]:
    """Note-on times (s) [count], and for each note two events: on and off. Spacing and pitches are drawn evenly."""
    generator = np.random.default_rng(seed)
    note_times = np.cumsum(generator.uniform(*SPACING_S, count))
    events: list[Event] = []
    for start, pitch in zip(note_times.tolist(), generator.integers(*PITCHES, count).tolist(), strict=True):
        events += [(start, bytes([0x90, pitch, VELOCITY])), (start + NOTE_S, bytes([0x80, pitch, 0]))]
    return note_times, events


def onset_latencies(
    audio: NDArray[np.float32], rate: int, note_times: NDArray[np.float64], window: float = WINDOW_S
) -> NDArray[np.float64]:
    """Seconds from each note-on (s) to its sound in ``audio`` [C, T], as [N]: NaN where no sound came.

    For isolated notes: each must have ended, and mostly died away, FLOOR_S before the next. The onset is the first
    sample of the window at which the RMS of the last millisecond, in the loudest channel, passes 5% of the note's
    highest (-26 dB) and three times (10 dB) the highest of the 50 ms before the note-on. So a click or a sharp attack
    is found within a millisecond, never before it begins. A slow attack counts from -26 dB: a linear fade of 100 ms
    5 to 6 ms after its start. The attack of FluidSynth's own piano, a few ms, is part of what is measured. A sound
    that is under way at the note-on, at that level, is taken for noise.

    Raises ArgumentError where a window reaches over the next note-on, or a note-on is after the end.
    """
    seconds = audio.shape[1] / rate
    if np.any(np.diff(note_times) < window) or np.any(note_times > seconds):
        raise ArgumentError(
            f"Note-ons are less than the window of {window:g} s apart, or after the end at {seconds:g} s. "
            "Shorten the window, or record for longer."
        )
    level = loudness(audio, rate)
    latencies = np.full(len(note_times), np.nan)
    for index, when in enumerate(note_times):
        start = round(when * rate)
        before = level[max(0, start - round(FLOOR_S * rate)) : start]
        after = level[start : start + round(window * rate)]
        threshold = max(ABOVE_FLOOR * before.max(initial=0), PART_OF_PEAK * after.max(initial=0), SILENCE)
        found = np.flatnonzero(after > threshold)
        if len(found):
            latencies[index] = found[0] / rate
    return latencies


def loudness(audio: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """RMS of the last millisecond at each sample, in the loudest channel: ``audio`` [C, T] becomes [T]."""
    span = max(1, round(ENVELOPE_S * rate))
    energy = np.cumsum(np.square(audio, dtype=np.float64), axis=1)
    energy[:, span:] -= energy[:, :-span].copy()
    return np.sqrt(np.maximum(energy, 0).max(axis=0) / span)
