"""The files of a voice: which they may be, how large, what graphs among them may do; held, so that they stay so."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from notewave.checks import counted, is_integer, quoted, require
from notewave.errors import VoiceError
from notewave.inputs import FileRecord, HeldFiles
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import Contract, Dimensions
from notewave.voice.graph_check import check_graph
from notewave.voice.graph_reader import Graph, Place, Weight, read_graph, read_outside
from notewave.voice.library import DESCRIPTION, PLAIN_NAME

MAX_BYTES = 8 << 30  # of all files, five times the published size in float32
MAX_GRAPH_BYTES = 512 << 20  # of all graphs; most have their weights elsewhere
SPARE_BYTES = 1 << 16  # of a file of weights, that no graph need read
CURE = "Copy or export the voice again."
GRAPH = ".onnx"
# Operators, and the places of their inputs, whose weights ONNX Runtime copies into a form of its own when it opens a
# graph. Others it would leave in the file, mapped, until they are used: a file that is cut short then ends the process.
KNEADED = {("MatMul", 1), ("Gemm", 1), ("MatMulInteger", 1), ("Cast", 0)}
# A weight in another file, where, and whether it is used as it lies there.
Outside: TypeAlias = tuple[Weight, Place, bool]
_SWALLOWING = ("DynamicQuantizeLinear", "QuantizeLinear")  # operators that give numbers for what is none
# Graphs that were looked into before they came with this package: the bundled voice's, by ``VoiceFiles.digest``.
LOOKED_INTO = frozenset({"949abd30d81948660434fa432cb36b6698c52b65b425686517e0b4ce1bf35726"})


def graph_name(network: str) -> str:
    """File name of a network's graph in a voice folder."""
    return f"{network}{GRAPH}"


class VoiceFiles:
    """The files that a voice lists: its graphs, and what weights these have outside.

    What is read is what the voice's description says, or a VoiceError, whatever becomes of the folder.
    """

    def __init__(
        self,
        folder: Path,
        records: Mapping[str, FileRecord],
        contracts: Mapping[str, Contract],
        size: Dimensions,
        vocoder: VocoderTraits | None,
    ) -> None:
        self._folder, self._records, self._contracts = folder, records, contracts
        self._size, self._vocoder = size, vocoder
        self._held = HeldFiles(folder, records, DESCRIPTION, VoiceError, CURE)
        self._outside: dict[str, list[Outside]] = {}  # of each network that was asked for

    def check(self) -> None:
        """Look at every file, and into every graph. Raises VoiceError for what a voice cannot have."""
        graphs = {graph_name(network): network for network in self._contracts}
        self._check_listing(graphs)
        for name in graphs:
            self._held.check(name)
        others = self._records.keys() - graphs.keys()
        if self.digest() not in LOOKED_INTO:
            ends = self._check_graphs()
            if strange := others - ends.keys():
                raise VoiceError(f"{self._folder} lists {_names(strange)}, which no graph reads. {CURE}")
            for name, end in ends.items():
                if not 0 <= self._records[name].bytes - end <= SPARE_BYTES:
                    raise VoiceError(
                        f"{self._folder / name} has {self._records[name].bytes} bytes where graphs read {end}. {CURE}"
                    )
        for name in others:
            self._held.check(name)

    def digest(self) -> str:
        """SHA-256 of all that says what the graphs do."""
        graphs = [(name, record.sha256) for name, record in sorted(self._records.items()) if name.endswith(GRAPH)]
        facts = [asdict(self._size), None if self._vocoder is None else asdict(self._vocoder), graphs]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def model(self, network: str) -> bytes:
        """A network's serialised ONNX model."""
        return self._held.read(graph_name(network))

    def weights(self, network: str, *, kept_only: bool = False) -> list[tuple[Weight, bytes]]:
        """The weights of a network's graph that lie in other files, with their bytes.

        kept_only: those alone that a runtime uses as they lie there, see ``KNEADED``.
        """
        found: list[tuple[Weight, bytes]] = []
        outside = [(weight, place) for weight, place, is_kept in self._outside_of(network) if is_kept or not kept_only]
        for location in dict.fromkeys(place.location for _, place in outside):
            here = [(weight, place) for weight, place in outside if place.location == location]
            parts = self._held.read_parts(location, [(place.offset, place.length) for _, place in here])
            found += zip((weight for weight, _ in here), parts, strict=True)
        return found

    def are_in_place(self, network: str) -> bool:
        """Whether the files of a network's weights are still what their paths lead to, as they were checked."""
        return all(map(self._held.is_in_place, {place.location for _, place, _ in self._outside_of(network)}))

    def _outside_of(self, network: str) -> list[Outside]:
        if network not in self._outside:
            weights, uses = read_outside(self.model(network))
            self._outside[network] = [
                (weight, weight.place, not uses[weight.name] <= KNEADED)
                for weight in weights
                if weight.place is not None
            ]
        return self._outside[network]

    def _check_listing(self, graphs: Mapping[str, str]) -> None:
        """Refuse names and sizes that no voice has, before anything is opened."""
        for name, record in self._records.items():
            if not PLAIN_NAME.fullmatch(name):
                raise VoiceError(
                    f"the voice lists {quoted(name)}, which is not a plain file inside {self._folder}. Do not trust "
                    "this voice."
                )
            require(is_integer(record.bytes, 0, sys.maxsize), f"the size of {name}", record.bytes, "must be its bytes")
            require(isinstance(record.sha256, str), f"the SHA-256 of {name}", record.sha256, "must be text")
        in_graphs = sum(self._records[name].bytes for name in graphs)
        whole = sum(record.bytes for record in self._records.values())
        if in_graphs > MAX_GRAPH_BYTES or whole > MAX_BYTES:
            raise VoiceError(
                f"{self._folder} has graphs of {in_graphs} bytes and {whole} bytes in all; a voice has at most "
                f"{MAX_GRAPH_BYTES} and {MAX_BYTES}. Do not trust this voice."
            )

    def _check_graphs(self) -> dict[str, int]:
        """Look into every graph; the other files that they read, each with the end of what is read."""
        ends: dict[str, int] = {}
        for network, contract in self._contracts.items():
            path = self._folder / graph_name(network)
            try:
                graph = read_graph(self.model(network))
                check_graph(graph, contract, self._size, self._vocoder if network == "vocoder" else None)
            except VoiceError as error:
                raise VoiceError(f"{path} cannot be used: {error}") from error
            outside = [(weight, weight.place) for weight in graph.weights.values() if weight.place is not None]
            if strange := {place.location for _, place in outside} - self._records.keys():
                raise VoiceError(
                    f"{path} reads {_names(strange)}, which {DESCRIPTION} does not list. Do not trust this voice."
                )
            for _, place in outside:
                ends[place.location] = max(ends.get(place.location, 0), place.offset + place.length)
            if any(node.operator in _SWALLOWING for node in graph.nodes):
                self._check_numbers(network, graph)
        return ends

    def _check_numbers(self, network: str, graph: Graph) -> None:
        """Refuse weights that are no numbers where the graph would make numbers of them; elsewhere they are heard of.

        A single one may be: exporters write masks and the bounds of clips so.
        """
        outside = {weight.name: content for weight, content in self.weights(network)}
        for name, weight in graph.weights.items():
            if weight.size > 1 and not weight.is_finite(outside.get(name, b"")):
                raise VoiceError(
                    f"{self._folder / graph_name(network)} has weights that are no finite numbers ({quoted(name)}): no "
                    "sound would come of them. Export the voice again."
                )


def _names(files: set[str]) -> str:
    few = sorted(map(quoted, files))[:4]
    return ", ".join(few) + (f" and {counted(len(files) - len(few), 'other')}" if len(files) > len(few) else "")
