"""Note-on to sound on JACK's dummy driver: frames are exact, whatever else the machine does."""

import os
import re
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from notewave.benchmarks.jack import SHARED_MEMORY, JackServer, Player, Recording, Take
from notewave.benchmarks.jack_latency import (
    FLUIDSYNTH,
    WINDOW_S,
    Instrument,
    isolated_notes,
    measure,
    onset_latencies,
    play_song,
)
from notewave.errors import ArgumentError, ToolError
from notewave.export.material.fluidsynth import SOUNDFONT

RATE = 16000
NOTE_ON = bytes([0x90, 60, 100])
needs_jack = pytest.mark.skipif(
    shutil.which("jackd") is None or find_spec("jack") is None, reason="jackd or JACK-Client is not installed"
)
needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)

CLICKER = """
import os, threading, jack

def process(frames):
    sound = audio.get_array()
    sound[:] = 0
    for offset, data in midi.incoming_midi_events():
        if bytes(data)[0] == 0xFF:
            os.write(2, b"a string broke")
            os._exit(3)
        if bytes(data)[0] == 0x90:
            sound[offset] = 1

client = jack.Client("clicker")
midi, audio = client.midi_inports.register("in"), client.outports.register("out")
client.set_process_callback(process)
client.activate()
threading.Event().wait()
"""


def clicker(program=CLICKER, **options):
    """A program that turns each note-on into one sample of 1.0, at the frame that JACK tells it."""
    return Instrument((sys.executable, "-c", program), "^clicker:in$", "^clicker:out$", 1, **options)


def clicks(recording):
    return np.flatnonzero(recording.audio[0]).tolist()


def segments(process_id):
    """What a server has in shared memory, with inodes: a name may be another's later."""
    maps = Path(f"/proc/{process_id}/maps").read_text()
    found = re.findall(rf"(\d+) +({SHARED_MEMORY}/jack-\d+-\d+)$", maps, re.MULTILINE)
    assert found
    return {(path, int(inode)) for inode, path in found}


def assert_gone(server, process_id, held):
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
    assert not [path for path in SHARED_MEMORY.iterdir() if server.name in path.name]
    assert not [path for path, inode in held if Path(path).exists() and Path(path).stat().st_ino == inode]
    assert server.name.encode() not in (SHARED_MEMORY / "jack-shm-registry").read_bytes()


@needs_jack
@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_a_server_comes_and_goes(killed):
    with JackServer() as server, JackServer() as neighbour:
        process_id = server._program._process.pid
        held = segments(process_id)
        if killed:
            os.kill(process_id, signal.SIGKILL)
        server.close()
        assert_gone(server, process_id, held)
        with pytest.raises(ToolError, match="has ended"):
            Player(server)
        neighbour.check()
        with Player(neighbour):
            pass


@needs_jack
def test_a_server_goes_when_the_work_fails():
    with pytest.raises(KeyError), JackServer() as server, Player(server):
        process_id = server._program._process.pid
        held = segments(process_id)
        raise KeyError
    assert_gone(server, process_id, held)


@needs_jack
def test_a_server_that_ends_while_recording_is_told():
    with JackServer() as server, Clicking(server, one=True), Player(server) as player:
        player.connect("loopback:in", "loopback:out", 1)
        os.kill(server._program._process.pid, signal.SIGKILL)
        with pytest.raises(ToolError, match=r"jackd .* ended early, with status -9"):
            player.play([], 1.0)


class Clicking:
    """Clients of this process that turn note-ons into clicks: one that reads and plays, or one that tells another."""

    def __init__(self, server, one):
        import jack

        names = ["loopback"] if one else ["reader", "loopback"]
        self.clients = [jack.Client(name, no_start_server=True, servername=server.name) for name in names]
        self.midi = self.clients[0].midi_inports.register("in")
        self.audio = self.clients[-1].outports.register("out")
        self.offsets = []
        self.clients[0].set_process_callback(self.read_and_play if one else self.read)
        self.clients[-1].set_process_callback(self.read_and_play if one else self.play)

    def read_and_play(self, frames):
        self.read(frames)
        self.play(frames)

    def read(self, _):
        self.offsets += [offset for offset, data in self.midi.incoming_midi_events() if bytes(data) == NOTE_ON]

    def play(self, _):
        sound = self.audio.get_array()
        sound[:] = 0
        sound[self.offsets] = 1
        self.offsets.clear()

    def __enter__(self):
        for client in self.clients:
            client.activate()

    def __exit__(self, *_):
        for client in self.clients:
            client.close()


@needs_jack
@pytest.mark.parametrize("one", [True, False], ids=["one client", "two clients"])
def test_events_come_at_their_frames(one):
    due = [0, 1, 255, 256, 257, 511, 512, 5000, 5001, 7777, 15000]
    events = [(frame / RATE, NOTE_ON) for frame in due]
    with JackServer(RATE) as server, Clicking(server, one), Player(server) as player:
        player.connect("(loopback|reader):in", "loopback:out", channels=1)
        for _ in range(2):
            recording = player.play(events[::-1], 1.0)
            assert recording.lost == 0
            assert recording.audio.shape == (1, RATE)
            assert recording.sent.tolist() == due
            periods = 1 if one else 2  # the reader runs after the harness, which runs after the other
            assert clicks(recording) == [frame + periods * server.period for frame in due]


@needs_jack
def test_a_song_is_played_by_a_program():
    times = np.arange(0.0, 1.0, 0.01)
    events = [event for time in times for event in [(time, NOTE_ON), (time, bytes([0x80, 60, 0]))]]
    with JackServer(RATE, period=128) as server:
        recording = play_song(clicker(), server, events, 1.2)
    assert recording.lost == 0
    assert clicks(recording) == (recording.sent[::2] + 128).tolist()
    assert recording.sent[::2].tolist() == np.round(times * RATE).tolist()
    assert np.all(np.diff(recording.behind) >= 0)
    assert recording.wall_s(RATE) >= 1.0


@needs_jack
def test_the_latency_of_a_known_program_is_its_period():
    program = CLICKER.replace("client.activate()", "client.activate()\nclient.connect('harness:midi', midi)")
    with JackServer(period=512) as server:
        latency = measure(clicker(program), server, notes=3)
    assert latency.missing == 0
    note_ons = latency.recording.sent[::2]
    assert clicks(latency.recording) == (note_ons + 512).tolist()
    assert np.all(latency.seconds > 511 / 48000)  # later where the wall's clock went on
    assert "0 of 3 missing" in str(latency)


@needs_jack
@needs_fluidsynth
def test_fluidsynth_is_measured():
    with JackServer() as server:
        latency = measure(FLUIDSYNTH, server, notes=4)
    assert latency.missing == 0
    recording = latency.recording
    in_frames = onset_latencies(recording.audio, recording.rate, recording.sent[::2] / recording.rate)
    assert np.all((in_frames > 0) & (in_frames < 0.06))
    assert np.all(latency.seconds > in_frames - 1e-9)
    assert latency.percentile(50) <= latency.percentile(95) <= latency.percentile(100)


@needs_jack
@pytest.mark.parametrize(
    ("program", "events", "log"),
    [
        ("import sys; sys.exit('no strings on this guitar')", [], "status 1.*no strings on this guitar"),
        (CLICKER, [(0.1, bytes([0xFF]))], "status 3.*a string broke"),
    ],
    ids=["at its start", "while it plays"],
)
def test_a_program_that_dies_is_told_with_its_log(program, events, log):
    with JackServer() as server, pytest.raises(ToolError, match=f"(?s){log}"):
        play_song(clicker(program), server, events, 10.0)


@needs_jack
def test_a_program_that_is_not_there_or_has_no_ports_is_told():
    with JackServer() as server:
        with pytest.raises(ToolError, match="/no/synthesizer does not start"):
            play_song(Instrument(("/no/synthesizer",), "in", "out"), server, [], 1.0)
        with pytest.raises(ToolError, match=r"mute:in .* among .*system:playback_1"):
            play_song(Instrument(("cat",), "mute:in", "mute:out", patience_s=0.2), server, [], 1.0)
        with Clicking(server, one=True), Player(server) as player:
            player.connect("loopback:in", "loopback:out", channels=1)
            with pytest.raises(ToolError, match="does not connect loopback:in"):
                player.connect("loopback:in", "loopback:out", channels=1)


def test_missing_tools_are_told(monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match="9000 frames"):
        JackServer(period=9000)
    monkeypatch.setitem(sys.modules, "jack", None)
    with pytest.raises(ToolError, match="pip install JACK-Client"), JackServer():
        pass
    if find_spec("_jack") is None:
        return
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"(jackd does not start|JACK cannot be reached)"), JackServer():
        pass


class Port:
    """A port of JACK-Client, without JACK."""

    def __init__(self, sound=None):
        self.sound, self.events = sound, []

    def get_array(self):
        return self.sound

    def write_midi_event(self, offset, message):
        self.events.append((offset, message))


def test_lost_cycles_are_silent_and_events_come_late():
    take = Take([(0.0, b"a"), (10 / RATE, b"b")], 40 / RATE, RATE, period=8, channels=1)
    midi, start = Port(), 2**32 - 8  # the count of frames wraps around
    for cycle in (0, 1, 3, 4, 5):
        take.cycle((start + 8 * cycle) % 2**32, midi, [Port(np.full(8, cycle + 1, np.float32))], echo=False)
    recording = take.recording()
    assert take.done
    assert recording.audio[0].tolist() == np.repeat([1, 2, 0, 4, 5], 8).tolist()
    assert recording.lost == 8
    assert midi.events == [(0, b"a"), (0, b"b")]
    assert recording.sent.tolist() == [0, 16]  # not 10: it came with the cycle at 24


def test_the_walls_clock_is_counted():
    cycles, behind = np.array([0, 256, 512]), np.array([0.0, 0.0, 0.005])
    recording = Recording(np.zeros((1, 768), np.float32), RATE, np.array([], int), 0, 0, cycles, behind)
    assert recording.wall_s(511) == 511 / RATE
    assert recording.wall_s(520.5) == pytest.approx(520.5 / RATE + 0.005)


def test_events_outside_the_recording_are_refused():
    for time in (-0.1, 1.0):
        with pytest.raises(ArgumentError, match="outside"):
            Take([(time, NOTE_ON)], 1.0, RATE, 128, 1)


def sounds(starts, attack=0.0, level=0.5, noise=0.0, seconds=0.3, total=10):
    """Tones of 440 Hz with a linear attack, in the right one of two channels."""
    audio = noise * np.random.default_rng(0).standard_normal((2, total * RATE))
    time = np.arange(round(seconds * RATE)) / RATE
    tone = level * np.sin(2 * np.pi * 440 * time) * np.minimum(1, time / attack if attack else 1)
    for start in starts:
        audio[1, start : start + len(time)] += tone
    return audio.astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2], ids=["no noise", "-80 dB", "-40 dB"])
@pytest.mark.parametrize("level", [0.01, 0.5], ids=["soft", "loud"])
def test_onsets_are_found_to_a_millisecond(noise, level):
    note_times, _ = isolated_notes(8, seed=1)
    latencies = np.array([0.0, 0.001, 0.0123, 0.05, 0.1, 0.2, 0.31, 0.4])
    audio = sounds(np.round((note_times + latencies) * RATE).astype(int), level=level, noise=noise * level)
    found = onset_latencies(audio, RATE, note_times)
    assert np.all((found >= latencies - 1 / RATE) & (found < latencies + 0.001))


def test_a_slow_attack_counts_from_a_twentieth_of_its_peak():
    found = onset_latencies(sounds([8000], attack=0.1), RATE, np.array([0.5]))
    assert 0.004 < found[0] < 0.008


def test_notes_that_do_not_sound_are_missing():
    note_times = np.array([1.0, 2.0, 3.0, 4.0])
    audio = sounds([16000, 46400, 64000], noise=1e-5)  # none for the second; that for the third comes before it
    assert np.isnan(onset_latencies(audio, RATE, note_times)).tolist() == [False, True, True, False]
    assert np.isnan(onset_latencies(np.zeros((1, 5 * RATE), np.float32), RATE, note_times)).all()
    assert len(onset_latencies(audio, RATE, np.array([]))) == 0


@pytest.mark.parametrize("note_times", [[1.0, 1.0 + WINDOW_S - 0.1], [11.0]], ids=["too close", "after the end"])
def test_windows_that_reach_too_far_are_refused(note_times):
    with pytest.raises(ArgumentError, match="window"):
        onset_latencies(sounds([]), RATE, np.array(note_times))


@needs_jack
@pytest.mark.skipif(
    find_spec("rtmidi") is None or find_spec("sounddevice") is None, reason="python-rtmidi or sounddevice is missing"
)
def test_the_voice_is_played_from_a_keyboard_and_every_note_sounds():
    """The command as users start it, on a busy machine: a long hop, so that time is plenty."""
    words = ["live", "--midi-in", "harness:midi", "--hop", "8", "--threads", "1"]
    live = Instrument(
        (sys.executable, "-m", "notewave", *words),
        "^notewave.*",
        "^PortAudio.*:out_.*",
        channels=1,
        patience_s=60.0,
        settle_s=2.0,
    )
    with JackServer(rate=48000, period=512) as server:
        latency = measure(live, server, notes=5)
    assert latency.missing == 0
    assert 0.16 < latency.percentile(50) < 0.5, "a hop, and the time to make one"
