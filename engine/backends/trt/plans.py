"""TensorRT plans of a voice: the shapes they take, where they are kept, and whether they fit this voice and this GPU.

`notewave build` writes them, the TensorRT backend reads them. Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notewave.errors import BackendError
from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Contract, Tensor, contracts
from notewave.voice.folder import FileRecord, Voice

FORMAT = 1  # of plans.json and of the way graphs are rewritten; older plans are refused
DESCRIPTION = "plans.json"
PRECISIONS = ("fp16", "bf16", "fp32")  # the first that is found is taken
TOKEN_BUCKETS = (
    256,
    512,
    1024,
    2048,
)  # lengths that tokens are padded to, so that a few captured graphs serve all songs
MAX_BATCH = 4  # songs side by side
SCHEDULE_ROWS = 64  # noise times that the time embedding takes at once
RTX = "tensorrt_rtx"
FLAVOURS = ("tensorrt", RTX)  # Python modules with one and the same API
HOME_VARIABLE = "NOTEWAVE_PLANS"

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # smallest, most frequent, largest


@dataclass(frozen=True)
class Extent:
    """Shapes that a plan takes for one input."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class Target:
    """All that plans are built for; they run nowhere else."""

    graphs: str  # digest of the voice's graphs
    flavour: str  # one of FLAVOURS
    version: str  # of the flavour
    capability: str  # compute capability, such as "8.9"
    precision: str  # one of PRECISIONS

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
        (folder / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PlanRecord:
        """Read plans.json; raises BackendError when it cannot be read."""
        try:
            content: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            content["target"] = Target(**content["target"])
            content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackendError(f"{folder / DESCRIPTION} cannot be read ({error!r}). {REBUILD}") from error


REBUILD = "Build the plans again: notewave build VOICE."
NO_INTEGERS = (
    "voice {!r} holds 8-bit weights, which GPU plans are not made of. Export it with --precision fp32 or fp16."
)


def tensorrt_modules(flavour: str | None = None) -> list[Any]:
    """Which of FLAVOURS, or of the one asked for, are installed; raises BackendError when none works."""
    modules, reasons = [], []
    for name in (flavour,) if flavour else FLAVOURS:
        try:
            module = importlib.import_module(name)
            module.Builder  # noqa: B018 (PyPI's placeholder imports, but is empty)
            modules.append(module)
        except (ImportError, AttributeError, OSError) as error:
            reasons.append(f"{name}: {error}")
    if modules:
        return modules
    raise BackendError(
        f"TensorRT is not installed ({'; '.join(reasons)}). Install notewave[rtx] (TensorRT-RTX, GeForce and RTX GPUs "
        "from Turing on) or notewave[gpu] (TensorRT, which data-centre GPUs need)."
    )


def plans_home() -> Path:
    """Folder of all plans: $NOTEWAVE_PLANS, or ~/.cache/notewave/plans."""
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "notewave" / "plans"


def token_buckets(voice: Voice) -> tuple[int, ...]:
    """Padded token lengths of a voice, ascending."""
    limit = voice.dimensions.max_tokens
    return (*(length for length in TOKEN_BUCKETS if length < limit), limit)


def vocoder_frames(voice: Voice) -> int:
    """Most frames V that the vocoder is given at once: a segment and what it sees around it."""
    traits = voice.vocoder
    return FRAMES + (traits.left_frames + traits.right_frames if traits else 0)


def voice_contracts(voice: Voice) -> dict[str, Contract]:
    """Contracts of the networks that a voice has."""
    known = contracts(voice.dimensions, voice.vocoder is not None and voice.vocoder.positional)
    return {network: contract for network, contract in known.items() if network != "vocoder" or voice.vocoder}


def extents(voice: Voice, inputs: tuple[Tensor, ...], padded: bool = True) -> dict[str, Extent]:
    """Optimisation profile of a network's inputs.

    padded: whether tokens fill one of ``token_buckets`` and a song's first segment has a context too, under a mask.
    """
    lengths = token_buckets(voice)
    usual = lengths[min(1, len(lengths) - 1)]
    tokens, context = (lengths[0], FRAMES) if padded else (1, 0)  # the fewest
    axes: dict[str, Range] = {
        "B": (1, 1, MAX_BATCH),
        "N": (tokens, usual, lengths[-1]),
        "C": (context, FRAMES, FRAMES),
        "J": (tokens + context, usual + FRAMES, lengths[-1] + FRAMES),
        "S": (1, SCHEDULE_ROWS, SCHEDULE_ROWS),
        "V": (1, FRAMES, vocoder_frames(voice)),
    }

    def shape(tensor: Tensor, which: int) -> Shape:
        return tuple(axes[axis][which] if isinstance(axis, str) else axis for axis in tensor.shape)

    return {tensor.name: Extent(shape(tensor, 0), shape(tensor, 1), shape(tensor, 2)) for tensor in inputs}


def graphs_digest(voice: Voice) -> str:
    """SHA-256 of all that plans are made of."""
    listing = sorted((name, record.sha256) for name, record in voice.files.items())
    return hashlib.sha256(json.dumps([FORMAT, listing]).encode()).hexdigest()


def find_plans(voice: Voice, trt: Any, capability: tuple[int, int], precision: str | None) -> Path:
    """Folder of checked plans for this voice, TensorRT and GPU, at the precision asked for or the best one built.

    Raises BackendError that says what is there instead and why it does not fit.
    """
    if voice.precision == "int8":
        raise BackendError(NO_INTEGERS.format(voice.name))
    home, tried = plans_home(), []
    for choice in (precision,) if precision else PRECISIONS:
        target = target_of(voice, trt, capability, choice)
        folder = target.folder(voice, home)
        if (folder / DESCRIPTION).is_file():
            check_plans(folder, target)
            return folder
        tried.append(target)
    wanted = tried[0]
    others = sorted(path.parent for path in home.glob(f"{_slug(voice)}-*/{DESCRIPTION}"))
    found = "; ".join(f"{folder.name} is {_misfit(folder, tried)}" for folder in others) or "none at all"
    raise BackendError(
        f"there are no {precision or 'TensorRT'} plans of voice {voice.name!r} for {wanted.flavour} {wanted.version} "
        f"on compute capability {wanted.capability} in {home} (found: {found}). "
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
            raise BackendError(f"{path} does not match its SHA-256 in {DESCRIPTION}: it was changed. {REBUILD}")


def target_of(voice: Voice, trt: Any, capability: tuple[int, int], precision: str) -> Target:
    """What plans of this voice must be built for to run on this TensorRT and GPU."""
    return Target(graphs_digest(voice), trt.__name__, trt.__version__, "{}.{}".format(*capability), precision)


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
