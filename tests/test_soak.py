"""A few seconds of what ``make soak`` does for an hour, and what it found."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import soak

from notewave import Synthesizer, tokenize

QUICK = {"steps": 1, "guidance": 1.0}
FORK = """
import gc, os, signal, sys, notewave
sing = lambda synth: synth.render(sys.argv[2], steps=1, guidance=1.0).samples.tobytes()
synth = notewave.Synthesizer(sys.argv[1], backend="cpu", threads=2)
sung = sing(synth)
child = os.fork()
if child == 0:
    signal.alarm(30)
    synth = None
    gc.collect()
    os._exit(sing(notewave.Synthesizer(sys.argv[1], backend="cpu", threads=2)) != sung)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def song(midi_folder: Path) -> Path:
    return midi_folder / "ensemble.mid"


def test_random_work_gives_the_same_sounds_and_leaves_nothing_open(vocoded_voice: Path, song: Path) -> None:
    few = ["--minutes", "0", "--rounds", "3", "--voice", str(vocoded_voice), "--song", str(song)]
    ended = subprocess.run([sys.executable, soak.__file__, *few], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("all was right\n")


def test_a_sound_that_changes_is_seen(vocoded_voice: Path, song: Path) -> None:
    synths = [
        Synthesizer(vocoded_voice, backend="cpu", threads=1, vocoder=vocoder) for vocoder in (None, "griffin-lim")
    ]
    work = soak.Soak(synths[0], [tokenize(song, dialect=synths[0].voice.dialect)[:1]])
    work.sing_all()
    work.do_render()
    assert work.wrong == []
    work.synth = synths[1]
    work.do_render()
    assert len(work.wrong) == 1


def test_memory_that_grows_is_seen() -> None:
    begun = soak.Held(10**8, threads=3, files=8)
    flat = [soak.Held(10**8 + 10**6 * (round % 2), threads=3, files=8) for round in range(100)]
    assert soak._left(begun, flat) == []
    assert len(soak._left(begun, [soak.Held(10**8 + 10**5 * round, threads=3, files=8) for round in range(100)])) == 1
    assert len(soak._left(begun, [*flat, soak.Held(10**8, threads=4, files=9)])) == 2


def test_what_a_synthesizer_holds_goes_with_it(vocoded_voice: Path, song: Path) -> None:
    """At once, not when the collector comes by: a voice's networks are hundreds of megabytes."""
    synth = Synthesizer(vocoded_voice, backend="cpu", threads=3)
    gc.disable()
    try:
        synth.render(song, **QUICK)
        for _ in synth.stream(song, **QUICK):
            break
        networks = weakref.ref(synth._backend.networks)
        del synth
        assert networks() is None
    finally:
        gc.enable()


def test_a_forked_process_may_let_go_of_what_it_inherits(vocoded_voice: Path, song: Path) -> None:
    """ONNX Runtime waits for a session's threads when that is destroyed; a forked process has none of them."""
    subprocess.run([sys.executable, "-c", FORK, str(vocoded_voice), str(song)], check=True)
