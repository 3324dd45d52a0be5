"""``notewave bench serve``: a server under many clients at once, good and bad ones, each of whose answers is checked.

The server is the command in a process of its own. Whatever is sung must be what was rendered beforehand, bit for bit;
whatever is no song must be refused. Memory is watched all the while. The exit code is 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from statistics import median

import numpy as np

from notewave.benchmarks.clients import FULL, KINDS, LEFT, REFUSED, RIGHT, Client, Request, Wrong
from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.errors import ToolError
from notewave.song.editing import Edits
from notewave.song.midi import examine
from notewave.sound.mel import SAMPLE_RATE
from notewave.sound.part import fitted
from notewave.sound.resample import Resampler
from notewave.synthesizer import DEFAULT_VOICE, Synthesizer

SONGS = ("demo", "band")  # bundled ones
ASKED: tuple[dict[str, str], ...] = (
    {},
    {"mute": "drums"},
    {"start": "3", "end": "9.5"},
    {"tempo": "1.25", "seed": "7"},
)
FORMATS = (("wav", 16000), ("flac", 16000), ("s16le", 44100), ("f32le", 16000))
GROWTH = 1.2  # of memory, from the first third of the time to the last, beyond which something is kept
WARM_S = 10.0  # of the time, whose memory does not count
SETTLE_S = 30.0  # in which a server must come to rest when nobody asks it
LOOK_S = 0.5  # between two looks at its memory
SHOWN = 20  # of what was wrong


class Load:
    """Clients at a server, and what became of what they asked."""

    def __init__(self, address: tuple[str, int], requests: Sequence[Request], seed: int) -> None:
        self._address, self._requests, self._seed = address, requests, seed
        self._lock = threading.Lock()  # of all below
        self.became: dict[str, Counter[str]] = {client.__name__: Counter() for client in KINDS}
        self.first_s: dict[str, list[float]] = {client.__name__: [] for client in KINDS}
        self.wrong: list[str] = []

    def run(self, clients: int, seconds: float) -> None:
        """Let so many clients ask again and again, for so long."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._ask, args=(number, end)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, number: int, end: float) -> None:
        chance = random.Random(1000 * self._seed + number)
        while time.monotonic() < end:
            (client,) = chance.choices(list(KINDS), list(KINDS.values()))
            self._ask_once(client, chance)

    def _ask_once(self, client: Client, chance: random.Random) -> None:
        name, request = client.__name__, chance.choice(self._requests)
        try:
            answer = client(self._address, request, chance)
        except (Wrong, OSError) as error:
            with self._lock:
                self.became[name]["wrong"] += 1
                self.wrong.append(f"{name}: {error!r}")
            return
        with self._lock:
            self.became[name][answer.what] += 1
            if answer.first_s is not None and answer.what == RIGHT:
                self.first_s[name].append(answer.first_s)

    def cases(self) -> list[Case]:
        """A case for each kind of client."""
        cases = []
        for name, became in self.became.items():
            figures = {what: float(became[what]) for what in (RIGHT, REFUSED, FULL, LEFT, "wrong")}
            if first_s := self.first_s[name]:
                half, most = np.percentile(first_s, (50, 99)).tolist()
                figures |= {"first_byte_p50_s": half, "first_byte_p99_s": most}
            cases.append(_case({"client": name}, figures))
        return cases


class Memory(threading.Thread):
    """Watches how much of a process is in memory."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._status, self._is_over = Path(f"/proc/{process}/status"), threading.Event()
        self._began = time.monotonic()
        self.seen: list[tuple[float, float]] = []  # seconds and MiB

    def run(self) -> None:
        """Look until ``stop``; where there is no /proc nothing is seen."""
        while self._status.exists() and not self._is_over.wait(LOOK_S):
            with contextlib.suppress(OSError):
                line = next((line for line in self._status.read_text().splitlines() if line.startswith("VmRSS")), "0 0")
                self.seen.append((time.monotonic() - self._began, int(line.split()[1]) / 1024))

    def stop(self) -> tuple[float, float] | None:
        """The median of the first third of the time and of the last, in MiB; None where there was too little."""
        self._is_over.set()
        self.join()
        seen = [mib for seconds, mib in self.seen if seconds > WARM_S]
        third = len(seen) // 3
        return (median(seen[:third]), median(seen[-third:])) if third else None


def requests(singer: Synthesizer) -> list[Request]:
    """Songs in several forms, with what they must sound like."""
    made = []
    for place, (name, query) in enumerate((name, query) for name in SONGS for query in ASKED):
        body = resources.files("notewave").joinpath("bundled", "songs", f"{name}.mid").read_bytes()
        form, rate = FORMATS[place % len(FORMATS)]
        edits = Edits.parse({key: [value] for key, value in query.items() if key != "seed"})
        reading = examine(body)
        sound = singer.render(edits.change(reading.notes, reading.beats), seed=int(query.get("seed", 0))).samples
        whole = np.concatenate(list(fitted([sound], edits.seconds, edits.is_filled(reading.notes))))
        resampler = Resampler(SAMPLE_RATE, rate)
        samples = np.concatenate([resampler.push(whole, last=False), resampler.push(whole[:0], last=True)])
        made.append(Request(body, {"format": form, "rate": str(rate), **query}, samples))
    return made


@contextlib.contextmanager
def server(words: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """``notewave serve`` with these words, and where it is. Raises ToolError where it does not begin."""
    command = [sys.executable, "-m", "notewave", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            found = re.search(r"http://([\d.]+):(\d+)/", process.stdout.readline())
            if found is None:
                raise ToolError(f"the server did not begin: {process.stderr.read().strip()}")
            yield process, (found[1], int(found[2]))
        finally:
            if process.poll() is None:
                process.kill()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench serve``."""
    parser.add_argument("--minutes", type=float, default=5.0, help="to ask (default 5)")
    parser.add_argument("--clients", type=int, default=32, help="at once (default 32)")
    parser.add_argument("--voice", default=DEFAULT_VOICE, help=f"a voice's name or folder (default {DEFAULT_VOICE})")
    parser.add_argument("--together", type=int, help="songs that the server makes side by side (default: its own)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of what clients do (default 0)")
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> int:
    """Run ``notewave bench serve`` with parsed options; 1 where something was wrong."""
    check_counts(clients=options.clients)
    facts = machine()
    singer = Synthesizer(options.voice, backend=options.backend, threads=options.threads)
    asked = requests(singer)
    given = {name: getattr(options, name) for name in ("voice", "backend", "threads", "together")}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    with server(words) as (process, address):
        load, memory = Load(address, asked, options.seed), Memory(process.pid)
        memory.start()
        load.run(options.clients, 60 * options.minutes)
        told = _at_rest(address)
        thirds = memory.stop()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SETTLE_S)
    wrong = load.wrong + _left(told, process.returncode, errors)
    figures = {name.removeprefix("notewave_"): told.get(name, 0.0) for name in _TOLD}
    if thirds is not None:
        figures |= {"memory_first_third_mib": thirds[0], "memory_last_third_mib": thirds[1]}
        if thirds[1] > GROWTH * thirds[0]:
            wrong.append(f"memory grew from {thirds[0]:.0f} MiB to {thirds[1]:.0f} MiB")
    whole = _case({"client": "the server"}, figures)
    result = Result("serve", facts, voice_sums([singer.voice]), [*load.cases(), whole])
    tables = [Result("serve", {}, {}, cases).table() for cases in (load.cases(), [whole])]
    finish(result, options, "\n\n".join(tables), lambda _, path: _save_plot(memory, path))
    for line in wrong[:SHOWN]:
        print(f"wrong: {line}")
    print(f"{len(wrong)} wrong" if wrong else "all was right")
    return 1 if wrong else 0


_TOLD = ("notewave_sound_seconds_total", "notewave_compute_seconds_total", "notewave_cancelled_total")
_AT_REST = ("notewave_songs_under_way", "notewave_songs_waiting", "notewave_live_sessions")


def _at_rest(address: tuple[str, int]) -> dict[str, float]:
    """What the server counts once it has nothing to do, or after a while."""
    end = time.monotonic() + SETTLE_S
    while True:
        with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics") as answer:
            lines = (line for line in answer.read().decode().splitlines() if not line.startswith("#"))
            told = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
        if not any(told[name] for name in _AT_REST) or time.monotonic() > end:
            return told
        time.sleep(LOOK_S)


def _left(told: dict[str, float], code: int, errors: str) -> list[str]:
    """What is wrong with how the server is in the end."""
    wrong = [f"{name} is {told[name]:g} though nobody asks" for name in _AT_REST if told[name]]
    wrong += [f"{name} is {value:g}" for name, value in told.items() if 'status="500"' in name]
    wrong += [f"the server ended with {code}"] if code else []
    return wrong + [f"the server said: {line}" for line in errors.splitlines()]


def _save_plot(memory: Memory, path: str) -> None:
    """Draw the server's memory over time."""
    figure = new_figure(8, 3)
    axis = figure.subplots()
    axis.plot(*zip(*memory.seen, strict=True))
    axis.set(xlabel="time (s)", ylabel="memory of the server (MiB)", ylim=(0, None))
    axis.grid(alpha=0.3)
    save_plot(figure, path)


def _case(settings: dict[str, str], figures: dict[str, float]) -> Case:
    return Case({**settings}, {name: Spread.of([value]) for name, value in figures.items()})
