"""A corpus: songs by voices by seeds, each sung once, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from notewave.checks import quoted, shown
from notewave.corpus.about import hold_to, named_voices
from notewave.corpus.dedupe import Originals
from notewave.corpus.fit import open_pool
from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.ledger import ABOUT, MANIFEST, TABLE, Ledger
from notewave.corpus.messages import Work
from notewave.corpus.plan import Plan, whole_rows
from notewave.corpus.pool import Outcome, Pool
from notewave.corpus.rows import FAILED, SUNG, Row, write_parquet
from notewave.corpus.settings import Machine, Making
from notewave.corpus.singer import voice_name
from notewave.corpus.songs import Names, find_songs
from notewave.corpus.store import Store, open_store
from notewave.corpus.takes import Take, failure
from notewave.errors import ArgumentError, BackendError, ToolError
from notewave.files import atomic_file
from notewave.inputs import BLOCK
from notewave.sampling.options import check_seed
from notewave.synthesizer import DEFAULT_VOICE

log = logging.getLogger(__name__)

PACKAGES = ("pyarrow", "pyloudnorm")  # of the extra, that every corpus needs
MOST_TRIES = 5  # of a take whose worker is lost under it
WAIT = 1.0  # seconds for something to be done, before it is seen whether there are new workers


@dataclass
class Summary:
    """What a run came to, in takes."""

    sung: int = 0  # in this run
    kept: int = 0  # were there, whole
    failed: int = 0  # cannot be sung, now as before
    duplicates: int = 0  # left out
    seconds: float = 0.0  # of music made in this run
    lost: int = 0  # times that a worker was lost


def make_corpus(
    songs: Sequence[str],
    out: str,
    *,
    voices: Sequence[str] = (DEFAULT_VOICE,),
    seeds: Sequence[int] = (0,),
    making: Making | None = None,
    machine: Machine | None = None,
    ray: str | None = None,
    dedupe: bool = False,
    verify: bool = False,
    on_plan: Callable[[int], None] | None = None,
    on_take: Callable[[Row | None], None] | None = None,
    pool: Callable[[int], Pool] | None = None,
) -> Summary:
    """Sing songs into a corpus: each by every voice with every seed, save what is there already, and whole.

    songs: folders, patterns, MIDI files and lists of them, see ``notewave.corpus.songs.find_songs``. out: a folder, or
    a URL of fsspec's. ray: a cluster's address, or "auto", where its workers are to sing, not this machine's. dedupe:
    songs that are nearly the same as an earlier one are not sung. verify: what is there is read and its checksums are
    compared; otherwise its sizes are. on_plan: called with how many takes there are to be. on_take: called for each,
    with its new row, or None where it has one. pool: makes other workers, for so many takes.

    A song that cannot be sung does not stop the others: the manifest says why. Raises OutputError where nothing more
    can be written, or another run is at work there; MidiError where there are no songs; ArgumentError for what cannot
    be, or a corpus that was begun otherwise; VoiceError, BackendError where no voice can be opened; ToolError where a
    package is missing. Whatever ended a run, the same call goes on.
    """
    _check_installed(*PACKAGES, *["ray"] * (ray is not None))
    making, machine, named, checked = making or Making(), machine or Machine(), named_voices(voices), _checked(seeds)
    is_remote = "://" in out
    folder = _ledger_folder(out) if is_remote else Path(out).absolute()
    found = find_songs(songs, apart=None if is_remote else folder)
    with Ledger(folder) as ledger:
        store = open_store(out if is_remote else str(folder))
        if is_remote:
            _fetch_ledger(store, ledger)
        first = hold_to(ledger, making, named, checked[0])
        paths = {name: voice.path for name, voice in named.items()}
        plan = Plan(
            found,
            whole_rows(ledger.rows(), store, verify),
            making,
            paths,
            checked,
            functools.partial(Names, *first, LAYOUTS[making.layout].numbered),
            Originals(folder, making.max_bytes) if dedupe else None,
        )
        del found  # the plan lets them go, one after another
        if on_plan is not None:
            on_plan(plan.total)
        run = _Run(ledger, on_take)
        opened = pool or functools.partial(_open_pool, making, store.url, machine, list(paths.values()), ray)
        with _swept(store, is_remote):
            run.sing(plan.takes(run.settle), functools.partial(opened, plan.total))
            if run.has_written or store.size(TABLE) is None:
                _finish(ledger, store, making, folder, is_remote)
        return run.summary


class _Run:
    """Takes on their way through the workers to the ledger."""

    def __init__(self, ledger: Ledger, on_take: Callable[[Row | None], None] | None) -> None:
        self._ledger, self._on_take = ledger, on_take
        self._again = deque[Take]()  # those whose worker was lost
        self._tries = Counter[tuple[str, int]]()  # of those, by name and seed
        self.summary, self.has_written = Summary(), False

    def settle(self, status: str, row: Row | None) -> None:
        """Note how a take stands: by a new row, or as it did before."""
        if row is not None:
            self._ledger.append(row)
            self.has_written = True
        summary = self.summary
        if status == SUNG:
            summary.sung += row is not None
            summary.kept += row is None
            summary.seconds += row["seconds"] if row else 0.0
        elif status == FAILED:
            summary.failed += 1
        else:
            summary.duplicates += 1
        if self._on_take is not None:
            self._on_take(row)

    def sing(self, takes: Iterator[Take], open_pool: Callable[[], Pool]) -> None:
        """Give all takes to workers, which are opened for the first of them, and settle what becomes of each."""
        first = next(takes, None)
        if first is None:
            return
        self._again.append(first)
        pool, under_way = open_pool(), 0
        try:
            while True:
                room = pool.wanted()
                if room and (group := self._next(takes, room)):
                    pool.give(group)
                    under_way += len(group)
                    continue
                if room and not under_way:
                    return
                for outcome in pool.wait(WAIT):
                    under_way -= len(outcome.takes)
                    self._take(outcome)
        finally:
            pool.close()

    def _next(self, takes: Iterator[Take], room: int) -> list[Take]:
        """The next takes for a worker; one by itself where its worker was lost before."""
        group: list[Take] = []
        while len(group) < room:
            take = self._again.popleft() if self._again else next(takes, None)
            if take is None:
                break
            if self._tries[take.name, take.seed]:
                if group:
                    self._again.appendleft(take)
                else:
                    group.append(take)
                break
            group.append(take)
        return group

    def _take(self, outcome: Outcome) -> None:
        """Settle what became of takes. Raises what keeps all from being sung."""
        if outcome.error is not None:
            raise outcome.error
        for row in outcome.rows:
            self.settle(row["status"], row)
        if outcome.lost is None:
            return
        self.summary.lost += 1
        log.warning("%s lost: %s.", ", ".join(shown(take.source) for take in outcome.takes) or "nothing", outcome.lost)
        for take in outcome.takes:
            self._tries[take.name, take.seed] += 1
            if self._tries[take.name, take.seed] < MOST_TRIES:
                self._again.append(take)
            else:
                error = BackendError(f"it was not sung in {MOST_TRIES} tries: {outcome.lost}. Run this again.")
                self.settle(FAILED, failure(take, voice_name(take.voice), error))


def _check_installed(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            extra = "ray" if package == "ray" else "corpus"
            raise ToolError(f"{package} is not installed, which this needs. Install notewave[{extra}].")


def _checked(seeds: Sequence[int]) -> list[int]:
    """Seeds. Raises ArgumentError for what are none, or not different ones."""
    checked = [check_seed("a seed", seed) for seed in seeds]
    if not checked or len(set(checked)) < len(checked):
        raise ArgumentError(f"seeds are {quoted(seeds)}; give one or more, each once.")
    return checked


def _open_pool(making: Making, out: str, machine: Machine, voices: Sequence[str], ray: str | None, takes: int) -> Pool:
    if ray is None:
        return open_pool(making, out, machine, voices, takes)
    from notewave.corpus.on_ray import RayPool

    return RayPool(Work(making, out, machine, tuple(voices)), ray)


@contextlib.contextmanager
def _swept(store: Store, is_remote: bool) -> Iterator[None]:
    """Remove what killed workers left half-made, before and after; where others may be at work, nothing."""
    if is_remote:
        yield
        return
    store.sweep()
    try:
        yield
    finally:
        store.sweep()


def _finish(ledger: Ledger, store: Store, making: Making, folder: Path, is_remote: bool) -> None:
    """What is made of all rows: the manifest in order, its table, the layout's files."""
    for path in ledger.compact():
        store.remove(path)
    with atomic_file(folder / TABLE) as temporary:
        write_parquet(ledger.rows(), temporary)
    with store.staging() as staged:
        sung = (row for row in ledger.rows() if row["status"] == SUNG)
        LAYOUTS[making.layout].finish(sung, lambda path, file: store.put(file, path), staged, making)
    if is_remote:
        for name in (MANIFEST, TABLE, ABOUT):
            with store.staging() as staged:
                (staged / name).write_bytes((folder / name).read_bytes())
                store.put(staged / name, name)


def _ledger_folder(url: str) -> Path:
    """Where the ledger of a corpus elsewhere is kept, until its manifest is put beside it."""
    import platformdirs

    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:24]
    return platformdirs.user_state_path("notewave", appauthor=False) / "corpora" / name


def _fetch_ledger(store: Store, ledger: Ledger) -> None:
    """Begin with what the manifest elsewhere says, where nothing is known here."""
    if ledger.about() is not None or store.size(ABOUT) is None:
        return
    for name in (MANIFEST, ABOUT):
        with contextlib.suppress(FileNotFoundError), store.open(name) as file:
            ledger.take_over(name, iter(functools.partial(file.read, BLOCK), b""))
