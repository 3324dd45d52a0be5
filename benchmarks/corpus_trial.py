"""A corpus of good and broken files, made by ``notewave corpus`` while it is killed and its disk fills up.

In the end there must be what peace would have left: each good song as ``Synthesizer.render`` sings it, bit for bit;
each other file in the manifest with its reason; and nothing else. Needs Linux, whose /proc tells who is a child of
whom.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from notewave.benchmarks.corpus_songs import BREAKAGES, excerpts
from notewave.checks import shown
from notewave.corpus.ledger import ABOUT, LOCK, MANIFEST, TABLE
from notewave.corpus.rows import FAILED, SUNG, Row
from notewave.corpus.songs import find_songs, read_song
from notewave.errors import ArgumentError, MidiError, NotewaveError, ToolError
from notewave.song.editing import Edits
from notewave.song.midi import MAX_BYTES, examine
from notewave.sound.audio import pcm16
from notewave.sound.part import fitted
from notewave.synthesizer import Synthesizer

GOOD_OF = 5  # files, of which one is broken
END_S = 10.0  # where songs end
WORKERS = 2
SONGS_TO_A_KILL = 8
LOOK_S = 0.03
REST_S = 10.0  # in which the processes of a run that was ended must be gone
DISK, LEFT = 2 << 30, 256 << 10  # bytes of a disk that is large enough, and those left on it where it is to fill
TRIES = 100  # to leave a disk so little while others write on it
COUNTED = ("sung_good", "failed_good", "sung_broken", "failed_broken", "mended")
FEWEST = 15  # good files
OWN_FILES = {MANIFEST, TABLE, ABOUT, LOCK}

Files: TypeAlias = dict[str, str | None]  # how each is broken, None where it is not, by its path in their folder


@dataclass
class Trial:
    """What a trial came to."""

    figures: dict[str, float]
    wrong: list[str]
    disk: str = "none"  # how it was filled


def try_corpus(songs: Sequence[str], count: int, voice: str, steps: int | None, seed: int) -> Trial:
    """Make a corpus of so many files, of songs that are given or of excerpts of scores, under all kinds of trouble."""
    if not Path("/proc/self/stat").exists():
        raise ToolError("the trial of a corpus needs Linux, whose /proc tells it which processes are workers.")
    chance, singer = random.Random(seed), Synthesizer(voice, backend="cpu")
    with tempfile.TemporaryDirectory() as top:
        folder, out = Path(top) / "songs", Path(top) / "out"
        folder.mkdir()
        out.mkdir()
        files = _write_files(folder, songs, count, chance)
        options = {"--voice": voice, "--steps": steps, "--end": END_S, "--workers": WORKERS, "--backend": "cpu"}
        words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        with _disk(out) as is_small:
            good = sum(kind is None for kind in files.values())
            runs = _Runs([str(folder), "--out", str(out), *words], out, chance, good)
            made = _make(runs, is_small)
            start = time.perf_counter()
            told = _compare_all(out, folder, files, singer, steps)
            figures = told.figures | made | {"comparing_s": time.perf_counter() - start}
    return Trial(figures, [*runs.wrong, *told.wrong], "a small tmpfs" if is_small else "a limit of files' size")


def _compare_all(out: Path, folder: Path, files: Files, singer: Synthesizer, steps: int | None) -> Trial:
    log = logging.getLogger("notewave.song")
    level = log.level
    log.setLevel(logging.ERROR)  # what is odd in them is in the manifest
    try:
        return compare(out, folder, files, lambda data: sung(singer, data, steps, END_S))
    finally:
        log.setLevel(level)


def _write_files(folder: Path, songs: Sequence[str], count: int, chance: random.Random) -> Files:
    """Write good files, and broken ones."""
    offered = _given(songs) if songs else excerpts(chance.randrange(1 << 30))
    good = dict(islice(offered, count - count // GOOD_OF))
    if len(good) < FEWEST:
        raise ArgumentError(
            f"{len(good)} songs are too few for a trial. Give {FEWEST} or more, and ask for more files."
        )
    files: Files = dict.fromkeys(good)
    kinds = [kind for kind in BREAKAGES if kind != "forbidden" or os.geteuid()]
    for label, data in good.items():
        path = folder / label
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for number, data in enumerate(chance.sample(list(good.values()), len(good) // (GOOD_OF - 1))):
        kind = kinds[number % len(kinds)]
        label = f"{kind}/{number:03}.mid"
        (folder / kind).mkdir(exist_ok=True)
        BREAKAGES[kind].write(folder / label, data, chance)
        files[label] = kind
    return files


def _given(songs: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Labels and bytes of songs; those that cannot be read are left out."""
    for song in find_songs(songs):
        with contextlib.suppress(MidiError):
            yield song.label, read_song(song.path, MAX_BYTES)


def _make(runs: _Runs, is_small: bool) -> dict[str, float]:
    """The runs: one is killed, one ends for want of room, one goes on to the end, one has nothing to do."""
    third = runs.good // 3
    code, said = runs.run(third, lambda process: process.kill())
    if code != -signal.SIGKILL:
        runs.wrong.append(f"the first run was to be killed and ended with {code}: {said}")
    if is_small:
        code, said = runs.run(2 * third, lambda _: _fill(runs.out))
        _resize(runs.out, DISK)
    else:
        sizes = [path.stat().st_size for path in (runs.out / "audio").rglob("*.*")]
        code, said = runs.run(most_bytes=median_low(sizes or [0]))
    if code != 1 or ("Make room" not in said and "ulimit -f" not in said):
        runs.wrong.append(f"the second run was to end for want of room and ended with {code}: {said}")
    code, said = runs.run()
    if code != 1:
        runs.wrong.append(f"the third run, of files some of which are broken, ended with {code}: {said}")
    before = rows(runs.out)
    code, said = runs.run()
    if code != 1 or ": 0 songs sung" not in said or before != rows(runs.out):
        runs.wrong.append(f"the fourth run had nothing to do and ended with {code}: {said}")
    names = ("killed_run_s", "full_disk_run_s", "last_run_s", "idle_run_s")
    return {"workers_killed": runs.killed, "times_lost": runs.lost} | dict(zip(names, runs.seconds, strict=True))


class _Runs:
    """Runs of the command, one after another, whose processes are killed at random."""

    def __init__(self, words: Sequence[str], out: Path, chance: random.Random, good: int) -> None:
        self.out, self.good = out, good
        self.killed = self.lost = 0
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self._command, self._chance = [sys.executable, "-m", "notewave", "corpus", *words], chance
        self._deaths = sorted(chance.sample(range(1, good), max(2, good // SONGS_TO_A_KILL)))  # after so many songs

    def run(
        self,
        at: int | None = None,
        then: Callable[[subprocess.Popen[bytes]], object] | None = None,
        most_bytes: int | None = None,
    ) -> tuple[int, str]:
        """Run the command until it ends -> its exit code and what it said.

        then: done once so many songs are sung. most_bytes: of a file that it may write.
        """
        start, family, last = time.perf_counter(), set[int](), -1
        limit = None if most_bytes is None else functools.partial(_limit_files, most_bytes)
        with tempfile.TemporaryFile() as text:
            with subprocess.Popen(self._command, stdout=text, stderr=text, preexec_fn=limit) as process:
                try:
                    while process.poll() is None:
                        done, children = _sung_by_now(self.out), descendants(process.pid, family)
                        family |= set(children)
                        if then is not None and at is not None and done >= at:
                            then(process)
                            then = None
                        elif self._deaths and done >= self._deaths[0] and done > last and children:
                            self._kill(children)
                            last = done  # the next when workers are there again, and sing
                        time.sleep(LOOK_S)
                finally:
                    process.kill()
            text.seek(0)
            said = text.read().decode(errors="replace").strip()
        self.seconds.append(time.perf_counter() - start)
        self.lost += said.count(" lost: ")
        self._look(family)
        return process.returncode, said

    def _kill(self, children: Sequence[int]) -> None:
        del self._deaths[0]
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._chance.choice(children), signal.SIGKILL)
            self.killed += 1

    def _look(self, family: set[int]) -> None:
        """See that nobody of a run is left, and that what its manifest says is there."""
        end = time.monotonic() + REST_S
        while (left := [pid for pid in family if is_alive(pid)]) and time.monotonic() < end:
            time.sleep(LOOK_S)
        self.wrong += [f"process {pid} is still there {REST_S:g} s after its run" for pid in left]
        for row in rows(self.out):
            if row["error_kind"] == "OutputError":
                self.wrong.append(f"{row['source']} is blamed for the disk: {row['error']}")
            for file in row["files"]:
                path = self.out / file["path"]
                if not path.is_file() or path.stat().st_size != file["bytes"]:
                    self.wrong.append(f"{file['path']} is not there, or not whole, though the manifest has it")


def compare(
    out: Path,
    folder: Path,
    files: Files,
    sing: Callable[[bytes], NDArray[np.int16] | NotewaveError],
) -> Trial:
    """What is wrong with a corpus of files, good and broken. sing: samples of a song, or why there are none."""
    counts, wrong = dict.fromkeys(COUNTED, 0), list[str]()
    found = {row["source"]: row for row in rows(out)}
    expected = {file["path"] for row in found.values() for file in row["files"]} | OWN_FILES
    there = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() or path.name == ".making"}
    wrong += [f"{path} is there, and nobody knows what it is" for path in sorted(there - expected)]
    wrong += [f"{path} is not there" for path in sorted(expected - there)]
    for label, kind in files.items():
        row = found.pop(shown(label), None)
        if row is None:
            wrong.append(f"{label} is not in the manifest")
            continue
        breakage = None if kind is None else BREAKAGES[kind]
        counts[f"{row['status']}_{'good' if kind is None else 'broken'}"] += 1
        counts["mended"] += bool(row["mended"])
        if breakage is not None and breakage.reason is not None:
            if row["status"] != FAILED or breakage.reason not in row["error"]:
                wrong.append(f"{label} is {kind}, and {row['status']}: {row['error']}")
            continue
        told = sing((folder / label).read_bytes())
        if isinstance(told, NotewaveError):
            if row["status"] != FAILED or row["error"] != shown(str(told)):
                wrong.append(f"{label} is refused ({told}) and in the manifest {row['status']}: {row['error']}")
            continue
        wrong += [f"{label}: {fault}" for fault in _faults(out, row, told)]
        if breakage is not None and not breakage.may_be_sung:
            wrong.append(f"{label} is {kind} and was sung")
    wrong += [f"{source} is in the manifest, and was not given" for source in found]
    return Trial({"files": len(files), "broken": sum(kind is not None for kind in files.values()), **counts}, wrong)


def _faults(out: Path, row: Row, samples: NDArray[np.int16]) -> Iterator[str]:
    """What is wrong with the row of a song whose samples are known, and with its sound."""
    if row["status"] != SUNG:
        yield f"it can be sung and is {row['status']}: {row['error']}"
        return
    try:
        data = (out / row["audio"]).read_bytes()
        heard, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    except (OSError, soundfile.LibsndfileError) as error:
        yield f"its sound cannot be read: {error}"
        return
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield "its checksum is another one"
    if not np.array_equal(heard, samples):
        yield "its samples are not those that rendering makes"


def sung(
    singer: Synthesizer, data: bytes, steps: int | None, end_s: float | None = None
) -> NDArray[np.int16] | NotewaveError:
    """A song up to an end as ``Synthesizer.render`` sings it, or why it does not."""
    edits = Edits(end=end_s)
    try:
        whole = examine(data).notes
        sound = singer.render(edits.change(whole), steps=steps).samples
    except NotewaveError as error:
        return error
    return pcm16(np.concatenate(list(fitted([sound], edits.seconds, edits.is_filled(whole)))))


def rows(out: Path) -> list[Row]:
    """The whole lines of a manifest."""
    if not (out / MANIFEST).exists():
        return []
    lines = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _sung_by_now(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (out / MANIFEST).read_bytes().count(f'"status": "{SUNG}"'.encode())
    return 0


def descendants(pid: int, known: Collection[int] = ()) -> list[int]:
    """The processes of a process, and theirs; also those that have outlived their parent, whose session is known."""
    of, found = defaultdict[int, list[int]](list), list[int]()
    for facts in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, session = facts.read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(session) in known:
                found.append(int(facts.parent.name))
            elif state != "Z":
                of[int(parent)].append(int(facts.parent.name))
    found += of[pid]
    for child in found:  # which grows meanwhile
        found += of[child]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no mere memory of one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[bool]:
    """A disk of its own for a folder; False where this user may mount none."""
    is_mounted = _mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder))
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*words: str) -> bool:
    """Whether that was done."""
    with contextlib.suppress(FileNotFoundError):
        return not subprocess.run(["mount", *words], capture_output=True, check=False).returncode
    return False


def _resize(folder: Path, size: int) -> bool:
    return _mount("-o", f"remount,size={size}", str(folder))


def _fill(folder: Path) -> None:
    """Leave a disk little room."""
    for _ in range(TRIES):
        facts = os.statvfs(folder)
        if _resize(folder, (facts.f_blocks - facts.f_bfree) * facts.f_frsize + LEFT):
            return
    raise ToolError(f"{folder} could not be made smaller.")


def _limit_files(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
