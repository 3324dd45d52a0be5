"""What was made of a voice for one GPU and engine: TensorRT's plans, or ONNX Runtime's graphs; all are called plans.

`notewave build` writes them, the backends on a GPU read them, and check that they fit this voice and this GPU. Another
process may replace or remove them meanwhile: a folder is opened as one, and what was checked is what is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notewave.backends.device.cache import FORMAT, HOME_VARIABLE, graphs_digest, plans_home
from notewave.backends.device.contracts import PRECISIONS, gpu_contracts
from notewave.checks import is_integer, is_number, quoted
from notewave.errors import BackendError, VoiceError
from notewave.inputs import FileRecord, HeldFiles, read_regular
from notewave.kernels.loader import CUBIN
from notewave.voice.folder import Voice
from notewave.voice.library import PLAIN_NAME

RECORD = "plans.json"
RECORD_MOST = 1 << 20  # bytes of it
FILE_MOST = 1 << 31  # bytes of one plan: a graph is a protobuf, which has no more
PLAN_PRECISIONS = tuple(PRECISIONS)  # the first that is found is taken
RTX = "tensorrt_rtx"
TENSORRTS = ("tensorrt", RTX)  # Python modules with one and the same API
ONNXRUNTIME = "onnxruntime"
FLAVOURS = (*TENSORRTS, ONNXRUNTIME)  # engines, by their Python modules' names
ATTEMPTS = 10  # at a folder that others replace: each replacement takes longer than to read it
LISTED_MOST = 10_000  # of what lies beside plans that are missed
NAME_MOST = 100  # letters of the names that plans.json has
NAMED_MOST = 20  # of the plans among that


@dataclass(frozen=True)
class Target:
    """All that plans are built for; they run nowhere else."""

    graphs: str  # digest of the voice's graphs
    flavour: str  # one of FLAVOURS
    version: str  # of the flavour
    capability: str  # compute capability, such as "8.9"
    precision: str  # one of PLAN_PRECISIONS

    def folder(self, voice: Voice, home: Path) -> Path:
        """Where plans for this target are kept."""
        sm = self.capability.replace(".", "")
        parts = (_slug(voice), self.graphs[:12], self.flavour, self.version, f"sm{sm}", self.precision)
        return home / "-".join(parts)


@dataclass(frozen=True)
class PlanRecord:
    """How a folder of plans was built: the content of its plans.json."""

    format: int
    target: Target
    voice: str
    notewave: str  # version that built them
    token_buckets: tuple[int, ...]
    max_batch: int
    seconds: dict[str, float]  # build time of each network
    files: dict[str, FileRecord]

    def save(self, folder: Path) -> None:
        """Write plans.json."""
        (folder / RECORD).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PlanRecord:
        """Read plans.json; raises BackendError when it cannot be read, or is not as ``save`` writes it."""
        path = folder / RECORD
        try:
            return cls._from_json(json.loads(read_regular(path, RECORD_MOST)))
        except (OSError, RecursionError, ValueError) as error:
            raise BackendError(f"{path} cannot be read ({_reason(error)}). {REBUILD}") from error

    @classmethod
    def _from_json(cls, content: Any) -> PlanRecord:
        fields = _fields(cls, content)
        target, files = _fields(Target, fields["target"]), _table(fields["files"], "files")
        for name, value in {**target, "notewave": fields["notewave"]}.items():
            _require(isinstance(value, str) and len(value) <= NAME_MOST and value.isprintable(), name, value)
        _require(isinstance(fields["voice"], str) and len(fields["voice"]) <= NAME_MOST, "voice", fields["voice"])
        for name in ("format", "max_batch"):
            _require(_is_count(fields[name]), name, fields[name])
        buckets = fields["token_buckets"]
        _require(isinstance(buckets, list) and all(map(_is_count, buckets)), "token_buckets", buckets)
        for name, value in _table(fields["seconds"], "seconds").items():
            _require(is_number(value, 0.0, 1e9), f"time for {quoted(name)}", value)
        given = {"target": Target(**target), "token_buckets": tuple(buckets)}
        return cls(**{**fields, **given, "files": {name: _file_record(name, record) for name, record in files.items()}})


def _fields(kind: type, content: Any) -> dict[str, Any]:
    """A JSON object that has a dataclass's fields and no others."""
    known = {field.name for field in dataclasses.fields(kind)}
    found = _table(content, kind.__name__)
    _require(found.keys() == known, f"{kind.__name__}'s fields", sorted(found))
    return found


def _table(content: Any, what: str) -> dict[str, Any]:
    _require(isinstance(content, dict), what, content)
    table: dict[str, Any] = content
    return table


def _file_record(name: str, content: Any) -> FileRecord:
    _require(PLAIN_NAME.fullmatch(name) is not None, "file's name", name)
    record = FileRecord(**_fields(FileRecord, content))
    _require(is_integer(record.bytes, 0, FILE_MOST), f"size of {name}", record.bytes)
    is_sum = isinstance(record.sha256, str) and re.fullmatch("[0-9a-f]{64}", record.sha256)
    _require(bool(is_sum), f"SHA-256 of {name}", record.sha256)
    return record


def _is_count(value: object) -> bool:
    return is_integer(value, 1, 1 << 31)


def _require(holds: bool, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"its {what} cannot be {quoted(value)}")


REBUILD = "Build the plans again: notewave build VOICE."
NO_INTEGERS = (
    "voice {!r} holds 8-bit weights, which GPU plans are not made of. Export it with --precision fp32 or fp16."
)


def plan_name(network: str, flavour: str) -> str:
    """File of a network's plan in a folder of plans."""
    return f"{network}.{'onnx' if flavour == ONNXRUNTIME else 'plan'}"


def check_precision(precision: Any) -> None:
    """Refuse a precision that plans never have, by BackendError."""
    if not isinstance(precision, str) or precision not in PLAN_PRECISIONS:
        raise BackendError(
            f"there is no plan precision {quoted(precision)}. Choose one of {', '.join(PLAN_PRECISIONS)}."
        )


def check_makeable(voice: Voice, precision: str) -> None:
    """Refuse a precision that plans never have, by BackendError, and a voice with 8-bit weights, by VoiceError."""
    check_precision(precision)
    if voice.precision == "int8":
        raise VoiceError(NO_INTEGERS.format(voice.name))


def target_of(voice: Voice, engine: Any, capability: tuple[int, int], precision: str) -> Target:
    """What plans of this voice must be built for to run on this engine and GPU."""
    return Target(graphs_digest(voice), engine.__name__, engine.__version__, "{}.{}".format(*capability), precision)


@dataclass(frozen=True)
class Plans:
    """A folder of plans opened as one: its files are held open, and what is read of them is what was checked."""

    record: PlanRecord
    files: HeldFiles

    @property
    def folder(self) -> Path:
        """Where they lay when they were opened; others may lie there now."""
        return self.files.folder

    def path(self, network: str) -> Path:
        """Where a network's plan lay, to be named."""
        return self.folder / plan_name(network, self.record.target.flavour)

    def read(self, network: str) -> bytes:
        """A network's plan. Raises BackendError."""
        return self.files.read(self.path(network).name)


def open_plans(folder: Path, target: Target, voice: Voice) -> Plans:
    """Check a folder's plans, and hold them open.

    Raises BackendError for plans that were built for something else, cut short or changed; where another process
    replaced the folder meanwhile, those that came are looked at.
    """
    names = {plan_name(network, target.flavour) for network in gpu_contracts(voice, target.precision)}
    for _ in range(ATTEMPTS - 1):
        before = _identity(folder)
        try:
            return _open(folder, target, names)
        except BackendError:
            if _identity(folder) == before:
                raise
    return _open(folder, target, names)


def find_plans(voice: Voice, engine: Any, capability: tuple[int, int], precision: str | None) -> Plans:
    """Checked plans for this voice, engine and GPU, at the precision asked for or the best one built.

    engine: one of FLAVOURS' modules. Raises BackendError that says what is there instead and why it does not fit.
    """
    if voice.precision == "int8":
        raise BackendError(NO_INTEGERS.format(voice.name))
    if precision is not None:
        check_precision(precision)
    home, tried = plans_home(), []
    for choice in (precision,) if precision else PLAN_PRECISIONS:
        target = target_of(voice, engine, capability, choice)
        if has_plans(folder := target.folder(voice, home)):
            return open_plans(folder, target, voice)
        tried.append(target)
    wanted = tried[0]
    raise BackendError(
        f"there are no {precision + ' ' if precision else ''}plans of voice {voice.name!r} for {wanted.flavour} "
        f"{wanted.version} on compute capability {wanted.capability} in {home} (found: {_found(voice, home, tried)}). "
        f"Build them: notewave build {voice.folder} --precision {wanted.precision}"
    )


def has_plans(folder: Path) -> bool:
    """Whether plans lie in a folder, be they whole or not."""
    return os.path.lexists(folder / RECORD)


def _identity(folder: Path) -> list[tuple[int, int, int] | None]:
    """What tells a folder of plans, and its plans.json, from others at the same path; inodes alone are used again."""
    found: list[tuple[int, int, int] | None] = []
    for path in (folder, folder / RECORD):
        try:
            facts = path.stat()
        except (OSError, ValueError):
            found.append(None)
        else:
            found.append((facts.st_dev, facts.st_ino, facts.st_ctime_ns))
    return found


def _open(folder: Path, target: Target, names: Collection[str]) -> Plans:
    """Plans as they lie there now, of which the files must have these names, beside a cubin."""
    record = PlanRecord.load(folder)
    if record.format != FORMAT or record.target != target:
        raise BackendError(f"the plans in {folder} are {_misfit(record, [target])}. {REBUILD}")
    cubins = [name for name in record.files if CUBIN.fullmatch(name)][:1]
    if unlike := sorted(record.files.keys() ^ {*names, *cubins}):
        verb = "lists" if unlike[0] in record.files else "does not list"
        raise BackendError(f"{folder / RECORD} {verb} {unlike[0]}. {REBUILD}")
    files = HeldFiles(folder, record.files, RECORD, BackendError, REBUILD)
    for name in record.files:
        files.check(name)
    return Plans(record, files)


def _found(voice: Voice, home: Path, targets: list[Target]) -> str:
    """Which other plans of a voice there are, and why they are not those that are wanted."""
    try:
        with os.scandir(home) as entries:
            listed = [entry.name for entry in itertools.islice(entries, LISTED_MOST)]
    except FileNotFoundError:
        listed = []
    except (OSError, ValueError) as error:
        raise BackendError(
            f"plans cannot be looked for in {home} ({_reason(error)}). Check its permissions, or name another folder "
            f"in {HOME_VARIABLE}."
        ) from error
    alike = (name for name in sorted(listed) if re.fullmatch(rf"{_slug(voice)}-[\w.+-]+", name, re.ASCII))
    folders = [folder for name in alike if has_plans(folder := home / name)]
    named = [f"{folder.name} is {_misfit(_record(folder), targets)}" for folder in folders[:NAMED_MOST]]
    more = [f"and {len(folders) - len(named)} more"] if len(folders) > len(named) else []
    return "; ".join(named + more) or "none at all"


def _record(folder: Path) -> PlanRecord | None:
    try:
        return PlanRecord.load(folder)
    except BackendError:
        return None


def _misfit(record: PlanRecord | None, targets: list[Target]) -> str:
    """In what plans differ from what is wanted, named field by field."""
    if record is None:
        return "unreadable"
    wanted = next((target for target in targets if target.precision == record.target.precision), targets[0])
    reasons = []
    if record.format != FORMAT or record.target.graphs != wanted.graphs:
        reasons.append("stale: built from other graphs or by another notewave")
    for field in ("flavour", "version", "capability", "precision"):
        have, want = getattr(record.target, field), getattr(wanted, field)
        if have != want:
            reasons.append(f"for {field} {have}, not {want}")
    return ", ".join(reasons)


def _reason(error: Exception) -> object:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return getattr(error, "strerror", None) or error


def _slug(voice: Voice) -> str:
    """A voice's name in letters that any file's name may have, and no more than leave room for the rest of one."""
    return re.sub(r"[^A-Za-z0-9]+", "_", voice.name).strip("_")[:64] or "voice"
