"""Takes are sung by actors on a real Ray cluster of several nodes, whatever becomes of the nodes; none gets lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving import song

import notewave
from notewave.corpus.corpus import make_corpus
from notewave.corpus.ledger import ABOUT, MANIFEST
from notewave.corpus.messages import Work
from notewave.corpus.pool import Outcome
from notewave.corpus.rows import FAILED, SUNG, Row
from notewave.corpus.settings import Machine, Making
from notewave.corpus.takes import Take
from notewave.errors import BackendError, OutputError, VoiceError

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from notewave.corpus import on_ray  # noqa: E402
from notewave.corpus.on_ray import RayPool  # noqa: E402

PATIENCE_S = 60.0
STORE_BYTES = 80 << 20  # the least that Ray takes
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
MAKING = Making(steps=2, guidance=1.0)
SLOW, LONG = Making(steps=20, guidance=1.0), 8  # steps and segments, with which a song takes seconds
LOCAL = """
import signal, sys
from pathlib import Path
from notewave.corpus.messages import Work
from notewave.corpus.on_ray import RayPool
from notewave.corpus.settings import Machine, Making
import ray, psutil  # which Ray brings

before = signal.getsignal(signal.SIGTERM)
pool = RayPool(Work(Making(), sys.argv[2], Machine(backend="cpu", threads=1, workers=1), (sys.argv[1],)), "local")
assert signal.getsignal(signal.SIGTERM) is before
while not pool.workers:
    assert not pool.wait(60.0)
children = psutil.Process().children(recursive=True)
for process in [psutil.Process(), *children]:
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (process, connection)
pool.close()
print(len(children), len(psutil.wait_procs(children, timeout=60)[1]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node that has no processors for anybody: each test adds the nodes that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else the user's own token may be asked for
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(on_ray, "LOOK_SECONDS", 0.5)
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES, "_system_config": HEALTH}
        before = signal.getsignal(signal.SIGTERM)
        made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()
        signal.signal(signal.SIGTERM, before)  # which Ray has changed


@pytest.fixture
def add(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node of one processor to the cluster, until the test is over."""

    def added(**options: Any) -> Any:
        return cluster.add_node(**{"num_cpus": 1, "object_store_memory": STORE_BYTES, **options})

    yield added
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    cluster.wait_for_nodes()  # also those that were killed are known to be gone


@pytest.fixture
def open_pool(cluster: Any, vocoded_voice: Path, tmp_path: Path) -> Iterator[Callable[..., RayPool]]:
    """Opens a pool on the cluster, whose corpus is in the test's folder."""
    opened: list[RayPool] = []

    def pool(making: Making = MAKING, voice: Path = vocoded_voice, out: str = "", **machine: Any) -> RayPool:
        (tmp_path / "out").mkdir(exist_ok=True)
        work = Work(making, out or str(tmp_path / "out"), Machine(**{"backend": "cpu", **machine}), (str(voice),))
        opened.append(RayPool(work, cluster.address))
        return opened[-1]

    yield pool
    for each in opened:
        each.close()
    assert not ray.is_initialized()


def take(voice: Path, number: int, segments: int = 1, data: bytes | None = None) -> Take:
    data = song(segments, 50 + number) if data is None else data
    return Take(f"{number}.mid", hashlib.sha256(data).hexdigest(), data, f"{number}", "train", str(voice), number)


def give_all(pool: RayPool, takes: Sequence[Take]) -> list[Outcome]:
    """Have takes sung, and wait for what becomes of each."""
    left, outcomes, end = list(takes), list[Outcome](), time.monotonic() + PATIENCE_S
    while told(outcomes) < len(takes):
        while left and (count := pool.wanted()):
            pool.give(left[:count])
            del left[:count]
        outcomes += pool.wait(1.0)
        assert time.monotonic() < end
    return outcomes


def told(outcomes: Sequence[Outcome]) -> int:
    """Of how many takes it is known what became of them."""
    return sum(len(outcome.takes) for outcome in outcomes)


def wait_for(pool: RayPool, happens: Callable[[], bool], outcomes: list[Outcome] | None = None) -> list[Outcome]:
    """Wait until something is so -> what became of takes meanwhile, after what did before."""
    outcomes, end = [] if outcomes is None else outcomes, time.monotonic() + PATIENCE_S
    while not happens():
        outcomes += pool.wait(0.1)
        assert time.monotonic() < end
    return outcomes


def only_error(pool: RayPool) -> object:
    """What keeps takes from being sung, which a pool says once, whatever its other workers meet."""
    outcomes, end = list[Outcome](), time.monotonic() + PATIENCE_S
    while not outcomes:
        outcomes += pool.wait(1.0)
        assert time.monotonic() < end
    outcomes += pool.wait(PATIENCE_S)  # less where all have answered
    (outcome,) = outcomes
    assert not outcome.takes and not outcome.rows and outcome.lost is None
    return outcome.error


def rows_of(outcomes: Sequence[Outcome]) -> dict[str, Row]:
    return {row["source"]: row for outcome in outcomes for row in outcome.rows}


def process_of(row: Row) -> int:
    return int(row["worker"].rpartition(":")[2])


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def under_way(out: Path) -> int:
    """How many songs are being sung."""
    return len(list((out / ".making").glob("*")))


def check_files(rows: dict[str, Row], takes: Sequence[Take], out: Path, voice: Path) -> None:
    """Rows are of all takes, and files are what is sung here."""
    synthesizer = notewave.Synthesizer(voice, backend="cpu", threads=1)
    assert rows.keys() == {take.source for take in takes}
    for one in takes:
        row = rows[one.source]
        assert (row["status"], row["source_sha256"], row["seed"]) == (SUNG, one.sha256, one.seed)
        made = out / row["audio"]
        expected = out.parent / f"expected{made.suffix}"
        synthesizer.render(one.data, steps=2, guidance=1.0, seed=one.seed).save(expected)
        assert made.read_bytes() == expected.read_bytes()


def test_actors_of_two_nodes_sing_what_is_sung_here(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], vocoded_voice: Path, tmp_path: Path
) -> None:
    add(), add()
    pool = open_pool()
    assert wait_for(pool, lambda: pool.workers == 2) == []
    takes = [take(vocoded_voice, number, 1 + number % 2) for number in range(6)]
    rows = rows_of(give_all(pool, [*takes, take(vocoded_voice, 6, data=b"no song")]))
    failed = rows.pop("6.mid")
    assert (failed["status"], failed["error_kind"]) == (FAILED, "MidiError")
    check_files(rows, takes, tmp_path / "out", vocoded_voice)
    processes = {process_of(row) for row in rows.values()}
    assert len(processes) == 2 and all(map(is_there, processes))
    pool.close()
    end = time.monotonic() + PATIENCE_S
    while any(map(is_there, processes)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_node_that_is_killed_under_work_loses_nothing(
    add: Callable[..., Any],
    cluster: Any,
    open_pool: Callable[..., RayPool],
    vocoded_voice: Path,
    tmp_path: Path,
) -> None:
    add()
    doomed = add()
    pool = open_pool(SLOW)
    wait_for(pool, lambda: pool.workers == 2)
    takes = [take(vocoded_voice, number, segments) for number, segments in enumerate((LONG, LONG, 1, 1))]
    for one in takes:
        assert pool.wanted() == 1
        pool.give([one])
    assert pool.wanted() == 0, "two that are sung, and two that wait"
    outcomes = wait_for(pool, lambda: under_way(tmp_path / "out") == 2)
    cluster.remove_node(doomed, allow_graceful=False)
    wait_for(pool, lambda: pool.workers == 1, outcomes)
    add()
    wait_for(pool, lambda: told(outcomes) == len(takes), outcomes)
    (lost,) = [outcome for outcome in outcomes if outcome.lost]
    assert len(lost.takes) == 1 and not lost.rows, "only what was sung, not what waited"
    rows = rows_of(outcomes)
    assert rows.keys() | {lost.takes[0].source} == {take.source for take in takes} and len(rows) == 3
    rows |= rows_of(give_all(pool, lost.takes))
    assert [row["status"] for row in rows.values()] == [SUNG] * 4
    assert all((tmp_path / "out" / row["audio"]).is_file() for row in rows.values())


def test_a_corpus_is_whole_though_a_node_is_killed(
    add: Callable[..., Any], cluster: Any, vocoded_voice: Path, tmp_path: Path
) -> None:
    add()
    doomed = [add()]
    (tmp_path / "songs").mkdir()
    for number in range(6):
        (tmp_path / "songs" / f"{number}.mid").write_bytes(song(2, 50 + number))

    def kill(_: Row | None) -> None:
        if doomed:
            cluster.remove_node(doomed.pop(), allow_graceful=False)

    made = make_corpus(
        [str(tmp_path / "songs")],
        str(tmp_path / "out"),
        voices=[str(vocoded_voice)],
        making=SLOW,
        machine=Machine("cpu"),
        ray=cluster.address,
        on_take=kill,
    )
    assert not doomed and (made.sung, made.failed) == (6, 0)
    rows = [json.loads(text) for text in (tmp_path / "out" / MANIFEST).read_text().splitlines()]
    assert [(row["source"], row["status"]) for row in rows] == [(f"{number}.mid", SUNG) for number in range(6)]
    for row in rows:
        assert hashlib.sha256((tmp_path / "out" / row["audio"]).read_bytes()).hexdigest() == row["sha256"]


def test_a_node_that_is_added_later_is_used(add: Callable[..., Any], open_pool: Callable[..., RayPool]) -> None:
    pool = open_pool()
    assert pool.wait(0.5) == [] and pool.workers == 0 and pool.wanted() == 0
    for count in (1, 2):
        add()
        assert wait_for(pool, lambda count=count: pool.workers == count) == []  # type: ignore[misc]


def test_as_many_workers_as_are_asked_for(add: Callable[..., Any], open_pool: Callable[..., RayPool]) -> None:
    add(num_cpus=8)
    pool = open_pool(workers=1, threads=3)
    wait_for(pool, lambda: pool.workers == 1)
    assert pool.wait(PATIENCE_S) == [] and pool.workers == 1, "all that were asked for have answered"
    pool.close()
    pool = open_pool(threads=3)
    wait_for(pool, lambda: pool.workers == 2)
    assert pool.wait(PATIENCE_S) == [] and pool.workers == 2


def test_where_memory_is_short_workers_get_more_cores(
    add: Callable[..., Any], open_pool: Callable[..., RayPool]
) -> None:
    add(num_cpus=4, memory=on_ray.VOICE_BYTES * 2)
    pool = open_pool()
    wait_for(pool, lambda: pool.workers == 2)
    assert pool.wait(PATIENCE_S) == [] and pool.workers == 2


def test_a_worker_for_each_gpu(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], vocoded_voice: Path, tmp_path: Path
) -> None:
    """Ray is told of GPUs that are not there; what sings on them is chosen by what is there."""
    add(num_cpus=4, num_gpus=2)
    pool = open_pool(backend="auto", threads=1)
    wait_for(pool, lambda: pool.workers == 2)
    assert pool.wait(PATIENCE_S) == [] and pool.workers == 2
    takes = [take(vocoded_voice, number) for number in range(4)]
    check_files(rows_of(give_all(pool, takes)), takes, tmp_path / "out", vocoded_voice)


def test_a_worker_that_dies_is_replaced(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], vocoded_voice: Path, tmp_path: Path
) -> None:
    add()
    pool = open_pool(SLOW)
    (row,) = rows_of(give_all(pool, [take(vocoded_voice, 0)])).values()
    pool.give([take(vocoded_voice, 1, LONG)])
    pool.give([take(vocoded_voice, 2)])
    wait_for(pool, lambda: under_way(tmp_path / "out") == 1)
    os.kill(process_of(row), signal.SIGKILL)
    outcomes = wait_for(pool, lambda: pool.workers == 0)
    wait_for(pool, lambda: told(outcomes) == 2, outcomes)
    lost, sung = outcomes
    assert [one.source for one in lost.takes] == ["1.mid"]
    assert lost.lost is not None and "worker process has died" in lost.lost
    assert [row["status"] for row in sung.rows] == [SUNG] and sung.takes[0].source == "2.mid"


def test_a_voice_that_is_not_there_is_said_once(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    add(), add()
    error = only_error(open_pool(voice=tmp_path / "nobody"))
    assert isinstance(error, VoiceError) and "nobody" in str(error) and str(error).startswith("on ")


def test_a_folder_that_nodes_do_not_share_is_refused(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes work in a folder of their own, so that a relative path is another one for them."""
    add()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ABOUT).write_text("{}")
    error = only_error(open_pool(out="out"))
    assert isinstance(error, OutputError) and "share" in str(error)


def test_another_notewave_on_a_node_is_refused(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr(notewave, "__version__", "0.0.1")
    error = only_error(open_pool())
    assert isinstance(error, BackendError) and "0.0.1" in str(error)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("raise ModuleNotFoundError('No module named notewave')", "No module named notewave.*Install"),
        ("import os, sys\nif 'worker' in sys.argv[0]: os._exit(1)", "before they are ready, again"),
    ],
    ids=["not there", "ends at once"],
)
def test_nodes_where_no_worker_can_start(
    module: str, says: str, add: Callable[..., Any], open_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    (tmp_path / "notewave.py").write_text(module)
    add(env_vars={"PYTHONPATH": str(tmp_path)})
    error = only_error(open_pool())
    assert isinstance(error, BackendError) and re.search(says, str(error))


def test_a_cluster_without_room_is_waited_for(
    add: Callable[..., Any], open_pool: Callable[..., RayPool], caplog: pytest.LogCaptureFixture
) -> None:
    add()
    pool = open_pool(threads=2)
    assert "2 CPU" in caplog.text
    add(num_cpus=2)
    wait_for(pool, lambda: pool.workers == 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no address", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(address: str, vocoded_voice: Path, tmp_path: Path) -> None:
    work = Work(MAKING, str(tmp_path), Machine(), (str(vocoded_voice),))
    with pytest.raises(BackendError, match=address):
        RayPool(work, address)
    assert not ray.is_initialized()


def test_a_cluster_of_this_machine_alone_is_closed_to_others_and_leaves_no_process(
    vocoded_voice: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", LOCAL, str(vocoded_voice), str(tmp_path)]
    environment = {**os.environ, "HOME": str(tmp_path)}  # where Ray keeps the token by which its processes know others
    done = subprocess.run(words, env=environment, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    children, left = map(int, done.stdout.split())
    assert children > 1 and left == 0
