"""A GPU that the real backend can be driven on, without one.

Host memory stands in for device memory, kernels are their own source compiled for the host. Nothing runs before its
stream is waited for; memory starts as NaN; every read is checked to come after a write that is ordered before it,
every write after the reads that it would spoil; what was staged in host memory must not change before it was read.
What PyCUDA could not free, since it was let go of outside the GPU's context, is noted, and what was freed while work
under way needed it.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable

import host_kernels
import numpy as np

from notewave.errors import BackendError
from notewave.kernels.layout import KERNELS, ROW, control_dtype
from notewave.kernels.loader import THREADS

Range = tuple[int, int]  # address, bytes
Ranges = tuple[list[Range], list[Range]]  # read, written
Seen = dict[int, int]  # by stream's handle: its newest serial that the host has waited for
WORD = 4  # bytes that share a record of their last write and read


class Operation:
    """Something that a stream will do; ``ranges`` gives what it reads and what it writes, when it is about to.

    ``staged`` is host memory that it reads, too.
    """

    def __init__(
        self,
        label: str,
        ranges: Callable[[], Ranges],
        act: Callable[[], object],
        staged: np.ndarray | None = None,
    ) -> None:
        self.label, self.ranges, self.act, self.staged = label, ranges, act, staged

    def issued(self) -> Operation:
        """The same, which finds what is staged as it is now."""
        if self.staged is None:
            return self
        staged, before = self.staged, self.staged.tobytes()

        def act() -> None:
            assert staged.tobytes() == before, f"{self.label}: what was staged changed before it was read"
            self.act()

        return Operation(self.label, self.ranges, act)

    def touches(self, start: int, size: int) -> bool:
        """Whether it reads or writes device memory in a range."""
        reads, writes = self.ranges()
        return any(address < start + size and start < address + length for address, length in (*reads, *writes))


class Mark:
    """A place in a stream's work: what an event recorded."""

    def __init__(self, stream: Stream, serial: int) -> None:
        self.stream, self.serial = stream, serial
        self.known: Seen = {}  # what is ordered before it, once it is reached


class Event:
    """Stands in for pycuda.driver.Event."""

    def __init__(self) -> None:
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self.mark = stream.device.enqueue(stream, None)

    def synchronize(self) -> None:
        if self.mark is not None:
            self.mark.stream.advance(self.mark.serial)
            self.mark.stream.device.has_waited(self.mark.known)


class Memory:
    """Device memory; its bytes are 0xFF, which is NaN in every floating-point type, until they are written."""

    def __init__(self, device: SimulatedDevice, size: int) -> None:
        room = np.full(size + 256, 0xFF, np.uint8)
        self._room, self._device = room, device
        start = -room.ctypes.data % 256
        self.bytes = room[start : start + size]
        self.address = int(self.bytes.ctypes.data)
        self.writer = np.full(-(-size // WORD), -1, np.int64)  # serial number of the last write; -1 for none
        self.reader = self.writer.copy()  # and of the last read

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        for stream in list(self._device.streams.values()):
            for *_, entry in stream.queue:
                if isinstance(entry, Operation) and entry.touches(self.address, self.bytes.size):
                    self._device.freed_early.append(entry.label)
        self._device.memories.remove(self)


class Stream:
    """Work in order, done when it is waited for."""

    def __init__(self, device: SimulatedDevice, handle: int) -> None:
        self.device, self.handle = device, handle
        # own serial, what was complete when it was queued, and what to do; or what to wait for, or to mark
        self.queue: list[tuple[int, Seen, Operation | Mark]] = []
        self.known: Seen = {}  # by stream's handle: up to where its work is ordered before this stream's

    def synchronize(self) -> None:
        assert self.device.recording is None, "waiting is not allowed while a graph is captured"
        self.advance(self.device.serial)
        self.device.has_waited(self.known)

    def wait_for_event(self, event: Event) -> None:
        assert event.mark is not None and self.device.recording is None
        self.device.enqueue(self, event.mark)

    def advance(self, serial: int) -> None:
        """Do what was queued up to a serial."""
        while self.queue and self.queue[0][0] <= serial:
            number, seen, entry = self.queue.pop(0)
            self.known[self.handle] = number
            if isinstance(entry, Operation):
                self.device.perform(self, number, seen, entry)
            elif entry.stream is self:
                entry.known = dict(self.known)
            else:
                entry.stream.advance(entry.serial)
                self.known |= {handle: max(past, self.known.get(handle, 0)) for handle, past in entry.known.items()}


class Graph:
    """Recorded operations."""

    def __init__(self, device: SimulatedDevice, operations: list[Operation]) -> None:
        self.device, self.operations, self.launches, self.freed = device, operations, 0, False
        self.nodes = len(operations)

    def launch(self, stream: Stream) -> None:
        assert not self.freed
        self.launches += 1
        for operation in self.operations:
            self.device.enqueue(stream, operation)

    def free(self) -> None:
        self.freed = True
        self.operations.clear()


class SimulatedDevice:
    """Stands in for notewave.backends.device.driver.CudaDevice."""

    name = "simulated GPU"
    driver = "13.0"

    def __init__(self, capability: tuple[int, int] = (8, 9), total: int = 1 << 40) -> None:
        self.capability, self.total = capability, total
        self.memories: list[Memory] = []
        self.pinned_bytes: list[int] = []  # of each that is held
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.opened = 0  # streams
        self.issuers: dict[int, int] = {}  # handle of the stream that a serial belongs to
        self.serial = 0
        self.complete: Seen = {}
        self.recording: list[Operation] | None = None
        self.graphs: list[Graph] = []
        self.entered = threading.local()  # depth of entered contexts, which is each thread's own
        self.leaked: list[str] = []  # what PyCUDA would have had to free outside the context
        self.freed_early: list[str] = []  # what was under way when memory that it needs was freed
        self.launches: list[str] = []  # labels, in the order of performance

    @property
    def depth(self) -> int:
        return getattr(self.entered, "depth", 0)

    def __enter__(self) -> SimulatedDevice:
        self.entered.depth = self.depth + 1
        return self

    def __exit__(self, *_: object) -> None:
        self.entered.depth = self.depth - 1

    def watch(self, held: object, kind: str) -> None:
        """Note it should this be let go of where PyCUDA cannot free it."""
        weakref.finalize(held, lambda: self.depth or self.leaked.append(kind)).atexit = False

    def allocate(self, size: int, purpose: str) -> Memory:
        assert self.recording is None, "allocation is not allowed while a graph is captured"
        used = sum(memory.bytes.size for memory in self.memories)
        if used + size > self.total:
            raise BackendError(f"out of GPU memory: {purpose} needs {size} bytes, {self.total - used} are free.")
        self.memories.append(Memory(self, size))
        return self.memories[-1]

    def memory(self) -> tuple[int, int]:
        return self.total - sum(memory.bytes.size for memory in self.memories), self.total

    def pinned(self, size: int) -> np.ndarray:
        self.pinned_bytes.append(size)
        memory = np.full(size, 0xFF, np.uint8)
        weakref.finalize(memory, self.pinned_bytes.remove, size).atexit = False
        self.watch(memory, "pinned memory")
        return memory

    def stream(self) -> Stream:
        self.opened += 1
        stream = self.streams[self.opened] = Stream(self, self.opened)
        self.watch(stream, "stream")
        return stream

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        ranges = ([], [(target, source.nbytes)])
        self.submit(
            stream,
            Operation(
                "upload",
                lambda: ranges,
                lambda: ctypes.memmove(target, source.ctypes.data, source.nbytes),
                staged=source,
            ),
        )

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        ranges = ([(source, target.nbytes)], [])
        self.submit(
            stream,
            Operation("download", lambda: ranges, lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes)),
        )

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        ranges = ([(source, size)], [(target, size)])
        self.submit(stream, Operation("copy", lambda: ranges, lambda: ctypes.memmove(target, source, size)))

    def clear(self, target: int, size: int, stream: Stream) -> None:
        ranges = ([], [(target, size)])
        self.submit(stream, Operation("clear", lambda: ranges, lambda: ctypes.memset(target, 0, size)))

    def kernels(self, image: bytes) -> dict[str, Callable[..., None]]:
        assert image
        return {name: self._kernel(name) for name in KERNELS}

    def capture(self, stream: Stream, issue: Callable[[], None]) -> Graph:
        self.recording = []
        try:
            issue()
            self.graphs.append(Graph(self, self.recording))
            return self.graphs[-1]
        finally:
            self.recording = None

    def _kernel(self, name: str) -> Callable[..., None]:
        def launch(grid: tuple[int, int, int], stream: Stream, *arguments: float) -> None:
            self.submit(
                stream,
                Operation(
                    name,
                    lambda: kernel_ranges(name, grid[1], arguments),
                    lambda: host_kernels.launch(name, grid, THREADS, *arguments),
                ),
            )

        return launch

    def submit(self, stream: Stream, operation: Operation) -> None:
        if self.recording is None:
            self.enqueue(stream, operation)
        else:
            assert self.depth, "a call without the GPU's context"
            self.recording.append(operation)

    def event(self) -> Event:
        event = Event()
        self.watch(event, "event")
        return event

    def has_waited(self, known: Seen) -> None:
        """The host has waited for this."""
        self.complete |= {handle: max(past, self.complete.get(handle, 0)) for handle, past in known.items()}

    def enqueue(self, stream: Stream, entry: Operation | Mark | None) -> Mark | None:
        """Queue an operation, or a wait for a mark; or make a mark, which is returned."""
        assert self.depth, "a call without the GPU's context"
        self.serial += 1
        self.issuers[self.serial] = stream.handle
        mark = Mark(stream, self.serial) if entry is None else None
        issued = entry.issued() if isinstance(entry, Operation) else mark or entry
        stream.queue.append((self.serial, dict(self.complete), issued))
        return mark

    def perform(self, stream: Stream, serial: int, seen: Seen, operation: Operation) -> None:
        reads, writes = operation.ranges()

        def check(earlier: np.ndarray, where: str) -> None:
            runs = earlier[1:][earlier[1:] != earlier[:-1]]  # of the same serial, which are few
            for number in {int(earlier[0]), *runs.tolist()} - {-1}:
                issuer = self.issuers[number]
                ordered = max(seen.get(issuer, 0), stream.known.get(issuer, 0))
                assert issuer == stream.handle or number <= ordered, f"{where} is not ordered before"

        for reading in reads:
            writer, reader = self._records(*reading)
            where = f"{operation.label} reads {reading}"
            assert writer.min() >= 0, f"{where}, which was never written"
            check(writer, f"{where}, whose write by another stream")
            reader[...] = serial
        for writing in writes:
            writer, reader = self._records(*writing)
            check(writer, f"{operation.label} writes {writing}, whose write by another stream")
            check(reader, f"{operation.label} writes {writing}, whose reading by another stream")
        operation.act()
        for writing in writes:
            self._records(*writing)[0][...] = serial
        self.launches.append(operation.label)

    def _records(self, address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Serials of the last write and the last read of each word there."""
        for memory in self.memories:
            start = address - memory.address
            if start >= 0 and start + size <= memory.bytes.size:
                words = slice(start // WORD, -(-(start + size) // WORD))
                return memory.writer[words], memory.reader[words]
        raise AssertionError(f"{size} bytes at {address} do not lie in device memory that is held")


def kept_ranges(given: dict[str, int]) -> Ranges:
    """What ``keep_frame`` reads and writes."""
    number = ctypes.c_uint64.from_address(given["begun"]).value + given["offset"]
    bins, row, layers = 4 * given["mels"], 2 * given["size"], range(given["layers"])
    songs = given["songs"]
    reads = [(given["begun"], 8), (given["prediction"], songs * bins)]
    writes = [(given["frame"], 8), (given["before"], songs * bins)]
    writes += [(given["mel"] + bins * (given["frames"] * song + given["offset"]), bins) for song in range(songs)]
    if number < given["kept"]:
        reads += [(given["new_rows"] + 2 * given["new_stride"] * layer, row * given["rows"]) for layer in layers]
        writes += [
            (given["own_rows"] + 2 * given["own_stride"] * layer + row * (given["kept"] * line + number), row)
            for layer in layers
            for line in range(given["rows"])
        ]
    return reads, writes


def kernel_ranges(name: str, batch: int, arguments: tuple[float, ...]) -> Ranges:
    """What a kernel reads and writes, from its arguments and the sampler's row."""
    given = dict(zip(KERNELS[name], map(int, arguments), strict=True))
    if name == "keep_frame":
        return kept_ranges(given)
    state, control = 4 * batch * given["size"], control_dtype(batch).itemsize
    told = [(given["control"], control)] if "control" in given else []
    if name == "philox_normal":
        return told, [(given["out"], state)]
    if name == "advance":
        return [(given["x"], state), (given["context"], state), *told], [
            (given["played"], state),
            (given["next_context"], state),
        ]
    if name in ("mel_to_context", "from_network"):
        return [(given["mel"], state)], [(given["context" if name == "mel_to_context" else "log_mel"], state)]
    if name == "carry_nan":
        mel = state // given["hop"] * given["mels"]
        return [(given["audio"], state), (given["log_mel"], mel)], [(given["audio"], state)]
    row = np.frombuffer((ctypes.c_char * ROW.itemsize).from_address(given["row"]), ROW)[0]
    model = (4 if name.endswith("fp32") else 2) * batch * given["size"]
    state_kept = [(given[kept], state) for kept in ("x", "x0_previous")]
    reads = [state_kept[0], (given["prediction"], model), (given["row"], ROW.itemsize), *told]
    reads += [
        (given[optional], size) for optional, size in (("unconditional", model), ("played", state)) if given[optional]
    ]
    reads += state_kept[1:] if row["c"] else []
    reads += [(given["noise"] + int(row["draw"]) * state, state)] if row["d"] and given["noise"] else []
    return reads, state_kept
