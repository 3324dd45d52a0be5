"""What was made of a voice for one GPU and engine: TensorRT's plans, or ONNX Runtime's graphs; all are called plans.

`notewave build` writes them, the backends on a GPU read them, and check that they fit this voice and this GPU.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notewave.backends.device.cache import FORMAT, graphs_digest, plans_home
from notewave.backends.device.contracts import PRECISIONS
from notewave.errors import BackendError, VoiceError
from notewave.voice.folder import FileRecord, Voice

RECORD = "plans.json"
PLAN_PRECISIONS = tuple(PRECISIONS)  # the first that is found is taken
RTX = "tensorrt_rtx"
TENSORRTS = ("tensorrt", RTX)  # Python modules with one and the same API
ONNXRUNTIME = "onnxruntime"
FLAVOURS = (*TENSORRTS, ONNXRUNTIME)  # engines, by their Python modules' names


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
        """Read plans.json; raises BackendError when it cannot be read."""
        try:
            content: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            content["target"] = Target(**content["target"])
            content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackendError(f"{folder / RECORD} cannot be read ({error!r}). {REBUILD}") from error


REBUILD = "Build the plans again: notewave build VOICE."
NO_INTEGERS = (
    "voice {!r} holds 8-bit weights, which GPU plans are not made of. Export it with --precision fp32 or fp16."
)


def plan_name(network: str, flavour: str) -> str:
    """File of a network's plan in a folder of plans."""
    return f"{network}.{'onnx' if flavour == ONNXRUNTIME else 'plan'}"


def check_makeable(voice: Voice, precision: str) -> None:
    """Refuse a precision that plans never have, by BackendError, and a voice with 8-bit weights, by VoiceError."""
    if precision not in PLAN_PRECISIONS:
        raise BackendError(f"there is no plan precision {precision!r}. Choose one of {', '.join(PLAN_PRECISIONS)}.")
    if voice.precision == "int8":
        raise VoiceError(NO_INTEGERS.format(voice.name))


def find_plans(voice: Voice, engine: Any, capability: tuple[int, int], precision: str | None) -> Path:
    """Folder of checked plans for this voice, engine and GPU, at the precision asked for or the best one built.

    engine: one of FLAVOURS' modules. Raises BackendError that says what is there instead and why it does not fit.
    """
    if voice.precision == "int8":
        raise BackendError(NO_INTEGERS.format(voice.name))
    home, tried = plans_home(), []
    for choice in (precision,) if precision else PLAN_PRECISIONS:
        target = target_of(voice, engine, capability, choice)
        folder = target.folder(voice, home)
        if (folder / RECORD).is_file():
            check_plans(folder, target)
            return folder
        tried.append(target)
    wanted = tried[0]
    others = sorted(path.parent for path in home.glob(f"{_slug(voice)}-*/{RECORD}"))
    found = "; ".join(f"{folder.name} is {_misfit(folder, tried)}" for folder in others) or "none at all"
    raise BackendError(
        f"there are no {precision + ' ' if precision else ''}plans of voice {voice.name!r} for {wanted.flavour} "
        f"{wanted.version} on compute capability {wanted.capability} in {home} (found: {found}). "
        f"Build them: notewave build {voice.folder} --precision {wanted.precision}"
    )


def check_plans(folder: Path, target: Target) -> None:
    """Refuse plans that were built for something else, cut short or changed."""
    record = PlanRecord.load(folder)
    if record.format != FORMAT or record.target != target:
        raise BackendError(f"the plans in {folder} are {_misfit(folder, [target])}. {REBUILD}")
    for name, expected in record.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != expected.bytes:
            raise BackendError(f"{path} has {size} bytes of {expected.bytes}: it was cut short or changed. {REBUILD}")
        if FileRecord.of(path) != expected:
            raise BackendError(f"{path} does not match its SHA-256 in {RECORD}: it was changed. {REBUILD}")


def target_of(voice: Voice, engine: Any, capability: tuple[int, int], precision: str) -> Target:
    """What plans of this voice must be built for to run on this engine and GPU."""
    return Target(graphs_digest(voice), engine.__name__, engine.__version__, "{}.{}".format(*capability), precision)


def _misfit(folder: Path, targets: list[Target]) -> str:
    """In what plans differ from what is wanted, named field by field."""
    try:
        record = PlanRecord.load(folder)
    except BackendError:
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


def _slug(voice: Voice) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", voice.name).strip("_") or "voice"
