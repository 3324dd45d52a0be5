"""What a request may say beside its body: one table, which checks it and describes the interface."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from notewave.checks import quoted
from notewave.sampling.options import MAX_GUIDANCE, MAX_SEED
from notewave.sampling.samplers import SAMPLERS
from notewave.serve.encode import FORMATS
from notewave.serve.refusal import Refusal
from notewave.serve.settings import Settings
from notewave.song.editing import EDITS, SEVERAL
from notewave.sound.audio import MAX_SAMPLE_RATE
from notewave.sound.mel import SAMPLE_RATE

MOST_WORDS = 256  # of a query
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?", re.ASCII)


class Kind(Protocol):
    """What a value may be."""

    @property
    def schema(self) -> dict[str, Any]:
        """The same as JSON Schema has it."""

    def read(self, text: str) -> Any:
        """A value of its text. Raises ValueError, which says what it must be."""


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    low: int
    high: int

    @property
    def schema(self) -> dict[str, Any]:
        """See ``Kind.schema``."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def read(self, text: str) -> int:
        """See ``Kind.read``."""
        if not _WHOLE.fullmatch(text) or not self.low <= int(text) <= self.high:
            raise ValueError(f"a whole number from {self.low} to {self.high}")
        return int(text)


@dataclass(frozen=True)
class Number:
    """A number, whole or not."""

    low: float
    high: float

    @property
    def schema(self) -> dict[str, Any]:
        """See ``Kind.schema``."""
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def read(self, text: str) -> float:
        """See ``Kind.read``."""
        if not _NUMBER.fullmatch(text) or not self.low <= float(text) <= self.high:
            raise ValueError(f"a number from {self.low:g} to {self.high:g}")
        return float(text)


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """See ``Kind.schema``."""
        return {"type": "string", "enum": list(self.words)}

    def read(self, text: str) -> str:
        """See ``Kind.read``."""
        if text not in self.words:
            raise ValueError(f"one of {', '.join(self.words)}")
        return text


@dataclass(frozen=True)
class Flag:
    """Yes or no."""

    @property
    def schema(self) -> dict[str, Any]:
        """See ``Kind.schema``."""
        return {"type": "boolean"}

    def read(self, text: str) -> bool:
        """See ``Kind.read``."""
        if text not in ("true", "false", "1", "0"):
            raise ValueError("true or false")
        return text in ("true", "1")


@dataclass(frozen=True)
class Text:
    """A text of a form that whoever takes it checks."""

    @property
    def schema(self) -> dict[str, Any]:
        """See ``Kind.schema``."""
        return {"type": "string"}

    def read(self, text: str) -> str:
        """See ``Kind.read``."""
        return text


@dataclass(frozen=True)
class Parameter:
    """A name that a query may have."""

    says: str  # what it is for
    kind: Kind
    default: Any = None  # None: nothing, or what the voice recommends
    repeats: bool = False  # may come several times


class Table:
    """The parameters of a server's routes."""

    def __init__(self, settings: Settings, voices: Iterable[str], most_steps: int) -> None:
        """voices: by their names, the default one first. most_steps: that a client may ask for."""
        names = tuple(voices)
        sound = {
            "voice": Parameter("which voice sings", Choice(names), names[0]),
            "rate": Parameter("of the sound, in Hz", Whole(1, MAX_SAMPLE_RATE), SAMPLE_RATE),
        }
        sampling = {
            "seed": Parameter("the same seed gives the same sound", Whole(0, MAX_SEED), 0),
            "steps": Parameter("denoising steps of a segment (default: the voice's)", Whole(1, most_steps)),
            "guidance": Parameter(
                "guidance weight, 1 for none (default: the voice's)", Number(-MAX_GUIDANCE, MAX_GUIDANCE)
            ),
            "sampler": Parameter("how a segment is denoised (default: the voice's)", Choice(tuple(SAMPLERS))),
        }
        strict = {
            "strict": Parameter(
                "refuse damaged files and segments of too many tokens, mend and cut none", Flag(), False
            )
        }
        edits = {name: Parameter(what, Text(), repeats=name in SEVERAL) for name, (_, what) in EDITS.items()}
        form = Parameter("of the answer: files, or samples one after another, mono", Choice(tuple(FORMATS)), "wav")
        files = Parameter("of each part", Choice(("wav", "flac")), "wav")
        hop = Parameter(
            "frames of 20 ms that are made at once (default: the fewest that this machine can)", Whole(1, 200)
        )
        token = Parameter("the server's, where it has one: a browser's WebSocket sends no Authorization", Text())
        self.routes: dict[str, dict[str, Parameter]] = {
            "/notes": {**strict, **edits},
            "/midi": {**strict, **edits},
            "/render": {"format": form, **sound, **sampling, **strict, **edits},
            "/stems": {"format": files, **sound, **sampling, **strict, **edits},
            "/live": {**sound, "hop": hop, "token": token},
        }

    def read(self, route: str, query: bytes) -> dict[str, Any]:
        """The values of a query, those that may repeat as lists. Raises Refusal for what is unknown or not right."""
        known = self.routes[route]
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_WORDS)
        except ValueError:
            raise Refusal(
                400,
                f"the query cannot be read: it is no text of name=value joined by &, {MOST_WORDS} at most. Mend it.",
            ) from None
        values: dict[str, Any] = {name: one.default for name, one in known.items() if one.default is not None}
        for name, texts in _grouped(pairs).items():
            if (parameter := known.get(name)) is None:
                raise Refusal(400, f"there is no option {quoted(name)} of {route}. Known: {', '.join(known)}.")
            if len(texts) > 1 and not parameter.repeats:
                raise Refusal(400, f"{name} is given {len(texts)} times. Give it once.")
            try:
                read = [parameter.kind.read(text) for text in texts]
            except ValueError as error:
                raise Refusal(400, f"{name} is {quoted(texts[0])}; it must be {error}.") from None
            values[name] = read if parameter.repeats else read[0]
        return values


def edit_words(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Those of a query's values that edit the song, as ``notewave.song.editing.Edits.parse`` takes them."""
    found = {name: values[name] for name in EDITS if name in values}
    return {name: value if isinstance(value, list) else [value] for name, value in found.items()}


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, text in pairs:
        grouped.setdefault(name, []).append(text)
    return grouped
