"""Workers that die, runs that are ended, disks that fill: nothing is lost but what was under way; it is sung again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from notewave import BackendError, Notes, OutputError, VoiceError, to_midi
from notewave.backends.processors import processors
from notewave.benchmarks.corpus_trial import descendants, is_alive
from notewave.corpus import machine as this_machine
from notewave.corpus import worker
from notewave.corpus.corpus import make_corpus
from notewave.corpus.fit import open_pool, splits_of
from notewave.corpus.ledger import Ledger
from notewave.corpus.messages import Work
from notewave.corpus.pool import Outcome, Pool
from notewave.corpus.processes import Processes
from notewave.corpus.rows import FIELDS, Row
from notewave.corpus.settings import Machine, Making

pytest.importorskip("pyarrow")

HERE, TWO = Machine(backend="cpu", workers=0, threads=1), Machine(backend="cpu", workers=2, threads=1)
SLOW = Making(form="wav", steps=12)  # each song takes some tenths of a second
COUNT = 12


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs of ten to twenty seconds, and two that are none."""
    folder, rng = tmp_path_factory.mktemp("songs"), random.Random(5)
    for number in range(COUNT):
        onsets = sorted(rng.uniform(0, 15) for _ in range(30))
        rows = [(onset, onset + 0.5, rng.randrange(40, 80), 90, 0, False) for onset in onsets]
        (folder / f"{number:02}.mid").write_bytes(to_midi(Notes(*map(list, zip(*rows, strict=True)))))
    (folder / "none.mid").write_bytes(b"")
    (folder / "short.mid").write_bytes((folder / "00.mid").read_bytes()[:30])
    return folder


@pytest.fixture(scope="module")
def undisturbed(songs: Path, vocoded_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksum of each song's sound, sung by one process in peace."""
    out = tmp_path_factory.mktemp("undisturbed")
    make_corpus([str(songs)], str(out), voices=[str(vocoded_voice)], making=SLOW, machine=HERE)
    sums = sums_of(out)
    assert len(sums) == COUNT
    return sums


def rows_of(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]


def sums_of(out: Path) -> dict[str, str]:
    """The checksum of each sound that the manifest names, of what is there."""
    return {
        row["name"]: hashlib.sha256((out / row["audio"]).read_bytes()).hexdigest()
        for row in rows_of(out)
        if row["status"] == "sung"
    }


def test_workers_that_are_killed_at_random_lose_nothing(
    songs: Path, tmp_path: Path, vocoded_voice: Path, undisturbed: dict[str, str]
) -> None:
    out, rng, killed = tmp_path / "out", random.Random(1), list[int]()

    def kill_one(row: Row | None) -> None:
        parent = descendants(os.getpid())
        if len(killed) < 4 and (workers := [pid for pid in parent if pid not in parent[:1]]):
            killed.append(rng.choice(workers))
            os.kill(killed[-1], signal.SIGKILL)

    summary = make_corpus(
        [str(songs)], str(out), voices=[str(vocoded_voice)], making=SLOW, machine=TWO, on_take=kill_one
    )
    assert len(killed) == 4 and 1 <= summary.lost <= 4
    assert (summary.sung, summary.failed) == (COUNT, 2)
    assert sums_of(out) == undisturbed
    assert not descendants(os.getpid()), "no process is left"


def test_the_parent_of_workers_may_be_killed_too(
    songs: Path, tmp_path: Path, vocoded_voice: Path, undisturbed: dict[str, str]
) -> None:
    out, killed = tmp_path / "out", list[int]()

    def kill_all(row: Row | None) -> None:
        if row is not None and row["status"] == "sung" and not killed:
            killed.extend(descendants(os.getpid()))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    summary = make_corpus(
        [str(songs)], str(out), voices=[str(vocoded_voice)], making=SLOW, machine=TWO, on_take=kill_all
    )
    assert len(killed) == 3 and summary.sung == COUNT and sums_of(out) == undisturbed


def test_a_song_under_which_every_worker_dies_is_given_up_and_tried_again_by_the_next_run(
    songs: Path, tmp_path: Path, vocoded_voice: Path
) -> None:
    given = [str(songs / "00.mid"), str(songs / "01.mid")]

    class Deadly:
        """A pool whose workers die under one song."""

        workers = 1

        def __init__(self, takes: int) -> None:
            self.pool: Pool = open_pool(SLOW, str(tmp_path / "out"), HERE, [str(vocoded_voice)], takes)
            self.lost: list[Outcome] = []

        def wanted(self) -> int:
            return self.pool.wanted()

        def give(self, takes: Any) -> None:
            if takes[0].name == "00":
                self.lost.append(Outcome(tuple(takes), lost="it fell over"))
            else:
                self.pool.give(takes)

        def wait(self, seconds: float) -> list[Outcome]:
            lost, self.lost = self.lost, []
            return lost or self.pool.wait(seconds)

        def close(self) -> None:
            self.pool.close()

    summary = make_corpus(
        given, str(tmp_path / "out"), voices=[str(vocoded_voice)], making=SLOW, machine=HERE, pool=Deadly
    )
    assert (summary.sung, summary.failed, summary.lost) == (1, 1, 5)
    failed = next(row for row in rows_of(tmp_path / "out") if row["status"] == "failed")
    assert failed["name"] == "00" and "5 tries: it fell over" in failed["error"]
    again = make_corpus(given, str(tmp_path / "out"), voices=[str(vocoded_voice)], making=SLOW, machine=HERE)
    assert (again.sung, again.kept, again.failed) == (1, 1, 0)


def run_command(*words: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "notewave.cli", "corpus", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        **more,
    )


def lines_of(out: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (out / "manifest.jsonl").read_bytes().count(b"\n")
    return 0


def wait_for_lines(out: Path, count: int, run: subprocess.Popen[str]) -> None:
    while lines_of(out) < count:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_where_it_was(
    number: signal.Signals, songs: Path, tmp_path: Path, vocoded_voice: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    words = [songs, "--out", out, "--voice", vocoded_voice, "--steps", 12, "--format", "wav", "--workers", 2]
    run = run_command(*words)
    wait_for_lines(out, 4, run)
    started = descendants(run.pid)
    run.send_signal(number)
    _, said = run.communicate()
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    if number != signal.SIGKILL:
        assert "stopped; nothing was left half-written" in said and not (out / ".making").exists()
    while any(map(is_alive, started)):
        time.sleep(0.01)  # workers end with their driver, at once
    done = lines_of(out)
    times = {name: (out / f"audio/{name}.wav").stat().st_mtime_ns for name in sums_of(out)}

    run = run_command(*words)
    told, said = run.communicate()
    assert run.returncode == 1, said
    assert f"{COUNT + 2 - done} songs sung" in told or "there before" in told
    assert sums_of(out) == undisturbed
    assert times.items() <= {name: (out / f"audio/{name}.wav").stat().st_mtime_ns for name in undisturbed}.items()
    assert not (out / ".making").exists() and sum(1 for _ in (out / "audio").iterdir()) == COUNT


def test_workers_whose_parent_and_driver_are_gone_leave_their_songs(
    songs: Path, tmp_path: Path, vocoded_voice: Path
) -> None:
    out = tmp_path / "out"
    run = run_command(songs, "--out", out, "--voice", vocoded_voice, "--steps", 999, "--workers", 2)
    while len(started := descendants(run.pid)) < 3 or not any((out / ".making").glob("*")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    os.kill(descendants(run.pid)[0], signal.SIGKILL)  # the parent: there is another soon
    run.kill()
    run.communicate()
    while any(map(is_alive, started)):
        time.sleep(0.01)
    assert lines_of(out) <= 2, "the broken ones: no song was sung"
    assert not list(out.rglob("*.flac"))


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_is_at_work(
    songs: Path, tmp_path: Path, vocoded_voice: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    words = [songs, "--out", out, "--voice", vocoded_voice, "--steps", 12, "--format", "wav", "--workers", 1]
    run = run_command(*words)
    wait_for_lines(out, 1, run)
    second = run_command(*words)
    _, said = second.communicate()
    assert second.returncode == 1 and f"process {run.pid} on " in said and "is making it" in said
    assert run.communicate() and run.returncode == 1 and sums_of(out) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_once_there_is_room_it_goes_on(
    songs: Path, small_disk: Path, vocoded_voice: Path, undisturbed: dict[str, str]
) -> None:
    out = small_disk / "out"
    words = [songs, "--out", out, "--voice", vocoded_voice, "--steps", 12, "--format", "wav", "--workers", 2]
    run = run_command(*words)
    _, said = run.communicate()
    assert run.returncode == 1 and "was not written" in said and "Make room" in said, said
    sums = sums_of(out)
    assert 0 < len(sums) < COUNT and sums.items() <= undisturbed.items()
    assert not any(row["error_kind"] == "OutputError" for row in rows_of(out)), "no song is blamed for the disk"
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run = run_command(*words)
    told, said = run.communicate()
    assert run.returncode == 1 and f"{len(sums)} there before" in told, said
    assert sums_of(out) == undisturbed


def test_a_row_that_finds_no_room_leaves_the_manifest_as_it_was(small_disk: Path) -> None:
    row = dict.fromkeys(FIELDS) | {"source": "a", "source_sha256": "", "name": "a", "voice": "v", "seed": 0}
    row |= {"status": "failed", "files": [], "error": "x" * 5000}
    with Ledger(small_disk) as ledger:
        ledger.append(row)
        before = (small_disk / "manifest.jsonl").read_bytes()
        with pytest.raises(OutputError, match="No space left"):
            for _ in range(1000):
                ledger.append(row)
                before = (small_disk / "manifest.jsonl").read_bytes()
        assert (small_disk / "manifest.jsonl").read_bytes() == before and before.endswith(b"\n")
    with Ledger(small_disk) as ledger:
        assert list(ledger.rows()) == [row]


def test_processors_are_shared_out_as_is_fastest(tmp_path: Path, vocoded_voice: Path) -> None:
    for machine, takes in ((Machine("cpu"), 1000), (Machine("cpu"), 1), (Machine("cpu", workers=1, threads=1), 1000)):
        pool = open_pool(SLOW, str(tmp_path), machine, [str(vocoded_voice)], takes)
        try:
            threads = pool._work.machine.threads
            most = 1 if machine.workers else processors()
            assert pool.workers * threads <= most < (pool.workers + 1) * threads
            assert takes > 1 or pool.workers == 1
        finally:
            pool.close()


def test_a_worker_that_ends_while_it_is_tried_is_not_waited_for(tmp_path: Path, vocoded_voice: Path) -> None:
    pool = Processes(Work(SLOW, str(tmp_path), Machine("cpu", threads=1), (str(vocoded_voice),)), 2)
    try:
        pool.until_ready()
        victim = descendants(pool._parent.pid)[0]
        timer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
        timer.start()
        assert pool.speed(1.0) > 0
        timer.join()
        pool.until_ready()
        assert pool.workers == 2 and victim not in descendants(pool._parent.pid)
    finally:
        pool.close()


def test_each_gpu_that_is_seen_has_a_worker(
    tmp_path: Path, vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = tmp_path / "dev"
    devices.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (devices / name).touch()
    monkeypatch.setattr(this_machine, "_DEVICES", devices)
    for said, count in (("1", 1), ("", 0), ("-1", 0), ("0,1,2", 2), (None, 2)):
        if said is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert this_machine.visible_gpus() == count
    ours, theirs = multiprocessing.Pipe()
    for backend, options in (("cuda", {"device_id": 1}), ("auto", {"device_id": 1}), ("cpu", {})):
        work = Work(SLOW, str(tmp_path), Machine(backend), (str(vocoded_voice),))
        assert worker._Worker(ours, 3, work, {})._singer._machine.provider_options == options
    ours.close()
    theirs.close()


def test_a_disk_that_cannot_be_written_is_said_before_anything_is_sung(
    songs: Path, small_disk: Path, vocoded_voice: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="Read-only file system"):
        make_corpus([str(songs)], str(small_disk / "out"), voices=[str(vocoded_voice)], making=SLOW, machine=TWO)


def test_voices_that_cannot_be_opened_by_workers_are_said_once(
    songs: Path, tmp_path: Path, reference_voice: Path
) -> None:
    out, voices = str(tmp_path / "out"), [str(reference_voice)]
    for machine in (HERE, TWO, Machine(backend="cpu", workers=1, threads=2)):
        with pytest.raises(VoiceError, match="has no vocoder"):
            make_corpus([str(songs)], out, voices=voices, making=SLOW, machine=machine)
    with pytest.raises(BackendError, match="PyCUDA"):
        make_corpus([str(songs)], out, voices=voices, making=SLOW, machine=Machine("tensorrt", workers=1))
    assert not descendants(os.getpid())


def test_processors_are_shared_out_in_every_way_that_uses_all() -> None:
    assert splits_of(2, Machine()) == [(2, 1), (1, 2)]
    assert splits_of(6, Machine()) == [(6, 1), (3, 2), (1, 4)]
    assert splits_of(8, Machine(threads=3)) == [(2, 3)]
    assert splits_of(8, Machine(workers=3)) == [(3, 2)]
    assert splits_of(8, Machine(workers=16, threads=2)) == [(16, 2)]


def test_workers_share_the_memory_of_the_voice_that_their_parent_opened(tmp_path: Path, vocoded_voice: Path) -> None:
    shared = Processes(Work(SLOW, str(tmp_path), Machine("cpu", threads=1), (str(vocoded_voice),)), 2)
    own = Processes(Work(SLOW, str(tmp_path), Machine("cpu", threads=2), (str(vocoded_voice),)), 1)
    try:
        for pool in (shared, own):
            assert pool.speed(0.05) > 0
        assert shared.workers == 2 and 0 < shared.own_bytes < own.own_bytes
    finally:
        shared.close()
        own.close()
