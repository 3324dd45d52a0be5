"""A voice is a folder: ``voice.json``, which says what it is, beside the ONNX graphs that it lists.

Voices may come from anywhere, so nothing in them is trusted: numbers must be in range, names must be plain file names
inside the folder, sizes and SHA-256 sums must agree, graphs must be such as voices have, and read no file but those
listed (``files``). Export writes a voice, the engine reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from notewave.checks import is_integer, is_number, quoted, require
from notewave.errors import ArgumentError, VoiceError
from notewave.inputs import FileRecord, read_regular
from notewave.sampling.job import FIRST_CONTEXTS
from notewave.sampling.options import FRAME_BY_FRAME, Sampling
from notewave.sampling.samplers import AUTOREGRESSIVE, PREDICTIONS, SAMPLERS
from notewave.sampling.schedule import NoiseSchedule
from notewave.song.dialect import PUBLISHED, Dialect
from notewave.sound.mel import PUBLISHED_RANGE, MelRange
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import NETWORKS, Contract, Dimensions, contracts
from notewave.voice.files import VoiceFiles, graph_name
from notewave.voice.graph_reader import Weight
from notewave.voice.library import DESCRIPTION, bundled_voices, voices, voices_folder

# Of voice.json: 2 says a dialect of tokens where it is not the published one, 3 also its codec, and what its mels are.
FORMATS = (1, 2, 3)
LATER = {2: ("dialect",), 3: ("mel_range", "first_context")}  # fields by the format that has them first
DESCRIPTION_MAX_BYTES = 1 << 20
STORED_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Voice:
    """A voice folder whose description and files have been checked; make one with ``Voice.load``."""

    folder: Path
    name: str
    licence: str  # SPDX identifier or a sentence
    provenance: str  # where the weights come from, in a sentence or two
    dimensions: Dimensions
    # What the decoder gives: "epsilon" (noise), "x0" (clean mel), "v" (velocity), or the next frame: "autoregressive".
    prediction: str
    schedule: NoiseSchedule
    sampling: Sampling
    dialect: Dialect  # of the tokens that it reads
    vocoder: VocoderTraits | None  # None: spectrograms only, or Griffin-Lim
    mel_range: MelRange  # log-mels that its networks see as [-1, 1]
    first_context: str  # what a song's first segment goes on from: "none", or "silence", as the PyTorch port's do
    precision: str  # of the weights on disk: "fp32", "fp16" or "int8"
    parity: dict[str, float]  # largest relative error of each graph against PyTorch, measured at export
    files: dict[str, FileRecord]
    _held: VoiceFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse descriptions that contradict themselves."""
        for name in ("name", "licence", "provenance"):
            require(isinstance(getattr(self, name), str), name, getattr(self, name), "must be text")
        known = (*PREDICTIONS, AUTOREGRESSIVE)
        require(self.prediction in known, "prediction", self.prediction, f"must be one of {known}")
        fitting = (self.sampling == FRAME_BY_FRAME) if self.is_autoregressive else self.sampling.sampler in SAMPLERS
        require(fitting, "sampling", self.sampling, f"must be what a voice can do that predicts {self.prediction}")
        told, layers = self.is_autoregressive and self.takes_context, self.dimensions.context_encoder_layers
        require(not told, "context_encoder_layers", layers, "must be 0 where frames are written one by one")
        require(self.precision in STORED_PRECISIONS, "precision", self.precision, f"must be one of {STORED_PRECISIONS}")
        rows = self.dimensions.vocabulary
        require(self.dialect.end <= rows, "vocabulary", rows, f"must have the dialect's {self.dialect.end} tokens")
        most = self.schedule.train_steps
        require(self.sampling.steps <= most, "steps", self.sampling.steps, f"must be at most the schedule's {most}")
        contexts = FIRST_CONTEXTS if self.takes_context else ("none",)
        require(self.first_context in contexts, "first_context", self.first_context, f"must be one of {contexts}")
        is_table = isinstance(self.parity, dict) and all(is_number(e, 0.0, math.inf) for e in self.parity.values())
        require(is_table, "parity", self.parity, "must give a number for each graph")
        due = contracts(self.dimensions, autoregressive=self.is_autoregressive)
        for network in NETWORKS:
            expected = network in due and (network != "vocoder" or self.vocoder is not None)
            section = "vocoder section" if network == "vocoder" else "network of that name in its description"
            require(
                (graph_name(network) in self.files) == expected,
                graph_name(network),
                "listed" if not expected else "not listed",
                "is needed" if expected else f"needs a {section}",
            )
        held = VoiceFiles(self.folder, self.files, self.contracts(), self.dimensions, self.vocoder)
        object.__setattr__(self, "_held", held)

    @property
    def is_autoregressive(self) -> bool:
        """Whether it writes its mels frame by frame, in the place of denoising them."""
        return self.prediction == AUTOREGRESSIVE

    @property
    def takes_context(self) -> bool:
        """Whether its networks are told of the segment before."""
        return self.dimensions.context_frames > 0

    def graph(self, network: str) -> Path:
        """Path of a network's ONNX graph, by its name in ``notewave.voice.contracts.NETWORKS``; ``model`` reads it."""
        return self.folder / graph_name(network)

    def model(self, network: str) -> bytes:
        """A network's serialised ONNX model, as it was checked. Raises VoiceError where its file changed since."""
        return self._held.model(network)

    def weights(self, network: str, *, kept_only: bool = False) -> list[tuple[Weight, bytes]]:
        """The weights of a network's graph that lie in other files, with their bytes; errors as in ``model``.

        kept_only: those alone that ONNX Runtime uses as they lie there; it copies the others when it opens the graph.
        """
        return self._held.weights(network, kept_only=kept_only)

    def are_weights_in_place(self, network: str) -> bool:
        """Whether the files of those weights are still what their paths lead to, as they were checked."""
        return self._held.are_in_place(network)

    def contracts(self) -> dict[str, Contract]:
        """Contract of each network that the voice has."""
        positional = self.vocoder is not None and self.vocoder.positional
        known = contracts(self.dimensions, positional, self.is_autoregressive)
        return {network: known[network] for network in NETWORKS if graph_name(network) in self.files}

    @classmethod
    def load(cls, voice: str | os.PathLike[str]) -> Voice:
        """Read and check a voice: the name of a bundled one, a folder, or the name of one in the voice folder.

        Raises VoiceError when there is none, or if a file is missing, unreadable, outside it, of the wrong size or
        checksum, unknown, or a graph that no voice has.
        """
        loaded = cls.describe(_find(voice))
        try:
            loaded._held.check()
        except MemoryError as error:
            raise VoiceError(f"there is no memory to read the voice at {loaded.folder}. Free some.") from error
        return loaded

    @classmethod
    def describe(cls, folder: Path) -> Voice:
        """Read and check a folder's ``voice.json`` alone, and none of the files that it lists. Raises VoiceError."""
        try:
            return cls._from_json(folder, _read_description(folder))
        except VoiceError as error:
            raise VoiceError(f"{folder / DESCRIPTION} cannot be used: {error}") from error

    def save_description(self) -> None:
        """Write ``voice.json`` into the folder; export calls this last, inside an atomic folder."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("folder", "_held")}
        content = {"format": (number := self._format()), **content}
        for first, names in LATER.items():
            for name in names if number < first else ():
                del content[name]
        if number == 2:
            del content["dialect"]["codec"]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self.folder / DESCRIPTION).write_text(text, encoding="utf-8")

    def _format(self) -> int:
        """The first format of its description that says all of it."""
        dialect, said = self.dialect, (self.mel_range, self.first_context)
        if said != (PUBLISHED_RANGE, FIRST_CONTEXTS[0]) or dialect.codec != PUBLISHED.codec:
            return 3
        return 1 if dialect == PUBLISHED else 2

    @classmethod
    def _from_json(cls, folder: Path, content: dict[str, Any]) -> Voice:
        number: Any = content.get("format")
        require(
            is_integer(number, FORMATS[0], FORMATS[-1]),
            "format",
            number,
            f"this engine reads {FORMATS[0]} to {FORMATS[-1]}",
        )
        values = {key: value for key, value in content.items() if key != "format"}
        earlier = {
            "dialect": dataclasses.asdict(PUBLISHED),
            "mel_range": dataclasses.asdict(PUBLISHED_RANGE),
            "first_context": FIRST_CONTEXTS[0],
        }
        for first, names in LATER.items():
            for name in names if number < first else ():
                require(name not in values, name, "given", f"has no place in format {number}")
                values[name] = earlier[name]
        if number == 2 and isinstance(values.get("dialect"), dict):
            require("codec" not in values["dialect"], "codec", "given", "has no place in format 2")
            values["dialect"] = {**values["dialect"], "codec": PUBLISHED.codec}
        try:
            values["dialect"] = _build(Dialect, values.get("dialect"))
        except ArgumentError as error:
            raise VoiceError(f"its dialect is none: {error}") from error
        values["dimensions"] = _build(Dimensions, values.get("dimensions"))
        values["schedule"] = _build(NoiseSchedule, values.get("schedule"))
        values["sampling"] = _build(Sampling, values.get("sampling"))
        values["mel_range"] = _build(MelRange, values.get("mel_range"))
        if values.get("vocoder") is not None:
            values["vocoder"] = _build(VocoderTraits, values["vocoder"])
        records = values.get("files")
        require(isinstance(records, dict), "files", records, "must list every file")
        values["files"] = {name: _build(FileRecord, record) for name, record in values["files"].items()}
        return _build(cls, {"folder": folder, **values})


def _find(voice: str | os.PathLike[str]) -> Path:
    bundled = bundled_voices()
    if not isinstance(voice, (str, os.PathLike)):
        raise VoiceError(f"{quoted(voice)} is no voice: a voice's name or the path of a folder is.")
    if str(voice) in bundled:
        return bundled[str(voice)]
    try:
        folder = Path(voice)
        is_voice = (folder / DESCRIPTION).is_file()
    except (OSError, TypeError, ValueError) as error:  # a name too long, a path of bytes
        raise VoiceError(f"there is no voice at {quoted(voice)}: {error}. Check the path.") from error
    if is_voice:
        return folder
    known = voices()
    if str(voice) in known:
        return known[str(voice)]
    own = ", ".join(name for name in known if name not in bundled) or "none"
    raise VoiceError(
        f"there is no voice at {str(voice)!r}: no folder with a {DESCRIPTION} is there, and no voice has that name. "
        f"Bundled voices: {', '.join(bundled) or 'none'}; in {voices_folder()}: {own}; others are made by "
        "`notewave export`."
    )


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(folder / DESCRIPTION, DESCRIPTION_MAX_BYTES).decode())
        json.dumps(content, ensure_ascii=False).encode()  # escapes may stand for what is no text
    except OSError as error:
        raise VoiceError(f"{error.strerror or error}. Check the file.") from error
    except (ValueError, RecursionError) as error:
        raise VoiceError(f"it is not readable JSON ({error}). Export the voice again.") from error
    require(isinstance(content, dict), "its content", type(content).__name__, "must be a JSON object")
    return content


Built = TypeVar("Built")


def _build(kind: type[Built], values: Any) -> Built:
    """Make a dataclass from untrusted JSON: exactly its fields, no others."""
    known = {field.name for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    given = set(values) if isinstance(values, dict) else set()
    if given != known:
        missing, extra = ", ".join(sorted(known - given)) or "none", ", ".join(sorted(given - known)) or "none"
        raise VoiceError(
            f"its {kind.__name__} section does not fit this engine (missing: {missing}; unknown: {extra})."
        )
    return kind(**values)
