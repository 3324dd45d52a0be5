"""What a training run is made of, read from JSON: the bundled configurations lie in ``configs/``."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from notewave.checks import is_number, quoted, shown
from notewave.errors import TrainingError
from notewave.export.material.songs import Data
from notewave.inputs import read_regular
from notewave.song.dialect import PUBLISHED, Dialect
from notewave.voice.contracts import Dimensions

MAX_BYTES = 1 << 20
CONFIGS = Path(__file__).parent / "configs"
DECODERS = ("diffusion", "autoregressive")


@dataclass(frozen=True)
class Stage:
    """Settings of one phase of a stage; phases follow one another."""

    steps: int  # optimiser steps
    segments: int  # in a batch, at most
    tokens: int = 4800  # in a batch, padding included, at most (symbolic stage)
    crops: int = 1  # taken from each segment
    frames: int = 256  # of a crop
    starts: float = 0.0  # share of crops that begin with their segment, where the context tells most
    live: float = 0.0  # share of segments trained as live play: notes are known up to some frame
    learning_rate: float = 1e-3  # of new layers, at the start of the phase
    learning_rate_end: float = 1e-3  # at its end, reached by a half cosine
    pretrained_rate: float = 0.5  # factor on the rate of what is not new; in the symbolic stage only read-outs are
    high_noise: float = 0.5  # share of crops whose noise time lies above high_noise_from; the others are uniform
    high_noise_from: float = 0.85
    context: float = 0.0  # share of batches with the previous segment's mel
    unconditioned: float = 0.1  # share of segments trained without any condition, for guidance
    teacher_steps: int = 8  # of the voice that is distilled (distillation only)
    guidance: float = 1.2  # of that voice, in those steps
    truth: float = 0.3  # share of the true mel in what the student is to predict
    past_noise: float = 0.0  # largest standard deviation of noise on the frames so far, of an autoregressive decoder
    pinned: int = 0  # first steps in which the encoder's copying heads stay as they were set


@dataclass(frozen=True)
class VocoderTraining:
    """What vocoder to train and how long."""

    naming_steps: int = 0  # at first, which teach the trunk and a listener to name pitches, and nothing else
    steps: int = 6000  # after them
    batch: int = 16  # B
    frames: int = 64  # V
    learning_rate: float = 1e-3  # of the plateau
    warm_up: int = 100  # steps to the plateau
    decay: float = 0.3  # share of the steps that lead down from it; both happen in the naming and after it
    mel_weight: float = 1.0  # of the mel L1 beside the spectral losses
    pitch_weight: float = 5.0  # of the error of the pitches that the trunk names
    heard_weight: float = 20.0  # of how differently a listener names the pitches, where it has learned to
    feature_weight: float = 0.5  # of how differently the listener's layers answer
    gain_db: tuple[float, float] = (-12.0, 3.0)  # of the random gain of each crop
    average: float = 0.998  # of the exponential moving average of the weights, which is what is kept
    pair_fraction: float = 0.5  # of each batch that comes from the pairs, where there are any
    validate_every: int = 200  # steps
    checkpoint_seconds: float = 60.0
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)  # constructor arguments of Tonewheel

    @property
    def all_steps(self) -> int:
        """Naming steps and those after them."""
        return self.naming_steps + self.steps


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str
    dimensions: Dimensions
    dialect: Dialect = field(default_factory=Dialect)  # of its tokens
    symbolic: tuple[Stage, ...] = ()
    mel: tuple[Stage, ...] = ()
    decoder: str = "diffusion"  # or "autoregressive": its mel stage foretells each frame from those before it
    distil: tuple[Stage, ...] = ()  # into one or two steps without guidance; none: the voice takes its four, guided
    vocoder: VocoderTraining | None = None  # without, the voice gets none
    data: Data = field(default_factory=Data)
    seed: int = 0
    ema: float = 0.998  # decay of the averaged weights
    muon: bool = False  # whether Muon moves the matrices in the networks
    structured: bool = True  # start from notewave.export.training.structure; False: small random weights
    threads: int = 2  # each computes its share of every batch
    device: str = "cpu"
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse decoders that there are not, and what an autoregressive one cannot do."""
        if self.decoder not in DECODERS:
            raise TrainingError(f"decoder is {quoted(self.decoder)}; it must be one of {', '.join(DECODERS)}.")
        if self.is_autoregressive and (self.distil or self.dimensions.context_encoder_layers):
            raise TrainingError(
                "an autoregressive decoder has no steps to distil and is told of no segment before. Leave out distil, "
                "and say context_encoder_layers 0."
            )
        if self.dialect.codec != PUBLISHED.codec:
            raise TrainingError(
                f"training writes tokens by codec {PUBLISHED.codec!r}, and the dialect says "
                f"{quoted(self.dialect.codec)}. Leave the codec out."
            )

    @property
    def is_autoregressive(self) -> bool:
        """Whether the decoder writes frame by frame."""
        return self.decoder == DECODERS[1]


def load_config(source: str | Path) -> Config:
    """Read a configuration, a JSON file or the name of a bundled one.

    Raises TrainingError when it cannot be read or is none, VoiceError for networks of a size that no voice can have.
    """
    path = Path(source)
    path = path if path.suffix == ".json" else CONFIGS / f"{source}.json"
    try:
        values = json.loads(read_regular(path, MAX_BYTES))
    except FileNotFoundError as error:
        bundled = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.json")))
        raise TrainingError(
            f"there is no configuration {quoted(str(source))}: {shown(path)} does not exist. Bundled ones: {bundled}."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"{shown(path)} is no configuration: it is not readable JSON ({reason}). Mend it."
        ) from error
    return parse_config(values)


def parse_config(values: Any) -> Config:
    """A configuration from JSON's values; ``notes`` at the top is documentation. Raises what ``load_config`` raises."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key != "notes"}
    config: Config = _build(Config, values)
    return config


def for_gpu(config: Config, larger: int = 16) -> Config:
    """A configuration for two CPU cores as a large GPU takes it: batches so many times larger, twice the rates.

    The steps stay as they are: end them by the clock.
    """

    def scaled(phases: tuple[Stage, ...], symbolic: bool) -> tuple[Stage, ...]:
        rates = 1.0 if symbolic else 2.0  # read-outs go fast enough
        return tuple(
            replace(
                phase,
                segments=larger * phase.segments,
                tokens=larger * phase.tokens,
                learning_rate=rates * phase.learning_rate,
                learning_rate_end=rates * phase.learning_rate_end,
            )
            for phase in phases
        )

    symbolic, mel = scaled(config.symbolic, symbolic=True), scaled(config.mel, symbolic=False)
    distil = scaled(config.distil, symbolic=False)
    return replace(config, device="cuda", threads=1, symbolic=symbolic, mel=mel, distil=distil)


def _build(kind: type[Any], values: Any) -> Any:
    """A dataclass of JSON's values, its own fields built of theirs."""
    if not isinstance(values, dict):
        raise TrainingError(f"a {kind.__name__} is {quoted(values)}; it must be an object of its settings.")
    known = {f.name: f for f in fields(kind)}
    unknown = set(values) - set(known)
    if unknown:
        raise TrainingError(f"a {kind.__name__} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
    hints = get_type_hints(kind)
    built = {  # from the last on: a misspelt setting of a stage is told before dimensions that are left out
        name: _fitting(f"{name} of a {kind.__name__}", values[name], hints[name])
        for name in reversed(known)
        if name in values
    }
    lacking = [f.name for f in known.values() if f.default is f.default_factory is MISSING and f.name not in built]
    if lacking:
        raise TrainingError(f"a {kind.__name__} lacks {', '.join(lacking)}. Add what it lacks.")
    return kind(**built)


def _fitting(what: str, value: Any, hint: Any) -> Any:
    """The value as what the type hint of its field asks for."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is UnionType:  # with None
        return None if value is None else _fitting(what, value, parts[0])
    if isinstance(hint, type) and is_dataclass(hint):
        return _build(hint, value)
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(_fitting(what, item, kind) for item, kind in zip(value, kinds, strict=True))
    fits = is_number(value, -math.inf, math.inf) if hint is float else type(value) is hint or type(value) is origin
    if fits:
        return value
    raise TrainingError(f"{what} is {quoted(value)}; it must be {getattr(hint, '__name__', hint)}.")
