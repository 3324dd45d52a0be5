"""What is launched again and again: recorded once, for each padded length of tokens.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from notewave.backends.device.driver import Graph
from notewave.backends.executor import Capture, Executor
from notewave.backends.gpu.shape import Told
from notewave.backends.gpu.workspace import Slot, Workspace
from notewave.errors import BackendError
from notewave.sampling.job import Job
from notewave.song.codec import pad_tokens
from notewave.song.dialect import Tokens

Issue = Callable[[], None]  # launches; it neither allocates, waits nor computes


class Repeated:
    """Launches that are issued one time after another: eagerly at first, then as captured graphs."""

    def __init__(
        self, space: Workspace, parts: Sequence[Issue], record: Callable[[Sequence[Issue]], list[Graph]]
    ) -> None:
        """record: gives a graph of each part, or none where that is refused."""
        self._space, self._parts, self._record = space, parts, record
        self._graphs: list[Graph] = []  # one a part, or none
        self._runs = 0

    @property
    def nodes(self) -> int:
        """Launches and copies of the graphs; 0 where there are none yet."""
        return sum(graph.nodes for graph in self._graphs)

    def launch(self) -> None:
        """Launch them; does not wait."""
        space = self._space
        warm = self._runs >= space.runtime.warm_runs
        if warm and not self._graphs and space.shared.recorder.capture is Capture.OURS:
            self._graphs = self._record(self._parts)
        for graph in self._graphs:
            graph.launch(space.stream)
        if self._graphs:
            return
        for part in self._parts:
            part()
        self._runs += 1
        if self._runs == 1:
            space.runtime.keep()

    def free(self) -> None:
        """Give the graphs' memory back."""
        for graph in self._graphs:
            graph.free()
        vars(self).clear()


class Program(ABC):
    """The networks that one segment, or window of live play, runs at one padded length, and their launches."""

    def __init__(self, space: Workspace, bucket: int) -> None:
        self._space, self._recorder = space, space.shared.recorder
        self._networks = self._open(bucket)
        if self._recorder.capture is Capture.OURS and not all(map(self._is_capturable, space.segment_networks)):
            self._recorder.leave_to_engine()
            self._close()
            self._networks = self._open(bucket)
        *self._encoders, self._decoder = (self._networks[name] for name in space.segment_networks)

    @abstractmethod
    def launch(self) -> None:
        """Start the segment whose inputs were sent, or its first part; does not wait."""

    def go_on(self) -> None:
        """Start the segment's next part; does not wait."""
        raise AssertionError("a segment of one part has no other")

    def free(self) -> None:
        """Give the memory of graphs and networks back."""
        self._close()
        vars(self).clear()

    def _record(self, parts: Sequence[Issue]) -> list[Graph]:
        """A graph of each part, or none where that is refused."""
        return self._recorder.record(self._space.device, self._space.stream, parts)

    def _open(self, bucket: int) -> dict[str, Executor]:
        space, networks = self._space, {}
        for name in space.networks:
            networks[name] = space.runtime.open(name, space.stream, space.scratch, self._recorder.capture)
            networks[name].bind(space.bindings(name))
            networks[name].reshape(space.sizes(name, bucket))
        return networks

    def _is_capturable(self, network: str) -> bool:
        return self._networks[network].is_capturable()

    def _close(self) -> None:
        for network in self._networks.values():
            network.free()


class Denoiser:
    """A workspace and the programs in it, one a bucket of token lengths: used by one run after another."""

    def __init__(self, space: Workspace, program: Callable[[int], Program]) -> None:
        """program: gives one in this workspace, for a bucket."""
        self.space, self._program = space, program
        self._programs: dict[int, Program] = {}
        self._under_way: Program | None = None  # of the segment submitted last

    def submit(self, job: Job, told: Told, tokens: Sequence[Tokens]) -> Slot:
        """Begin a segment or window; returns where the host holds it. Does not wait, see ``Run.submit``."""
        space, length = self.space, max(map(len, tokens))
        bucket = next((size for size in space.buckets if size >= length), 0)
        if not bucket:
            where = f"the window at frame {told.frame}" if space.shape.windows else f"segment {told.segment}"
            raise BackendError(f"{where} has {length} tokens; the plans take {space.buckets[-1]}. Thin out its notes.")
        if bucket not in self._programs:
            self._programs[bucket] = self._program(bucket)
        slot = space.slots[told.segment % len(space.slots)]
        slot.collect()
        space.stage(slot, job, told, pad_tokens(tokens, bucket))
        self._under_way = self._programs[bucket]
        self._under_way.launch()
        return slot

    def go_on(self) -> None:
        """Begin the next part of the segment submitted last; does not wait."""
        assert self._under_way is not None, "a segment was submitted"
        self._under_way.go_on()

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        for program in self._programs.values():
            program.free()
        self._programs.clear()
        self._under_way = None
        self.space.free()
