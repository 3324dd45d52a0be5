"""A runtime that is no engine at all: ONNX Runtime on the CPU at the simulated GPU's addresses, behind the seam alone.

It belongs to its streams and must run a shape twice before it can be captured, as TensorRT's plans do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from simulated_device import Operation, SimulatedDevice, Stream

from notewave.backends.device.shapes import ITEM_BYTES
from notewave.backends.executor import Capture, Scratch
from notewave.voice.contracts import Contract
from notewave.voice.folder import Voice


class PlainRuntime:
    """See ``notewave.backends.executor.Runtime``."""

    name = "plain"
    warm_runs = 2
    stream_bound = True

    def __init__(self, voice: Voice, device: SimulatedDevice, capturable: bool = True) -> None:
        self.voice, self.device, self.capturable = voice, device, capturable
        self.contracts = voice.contracts()
        self.sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        self.opened = Counter[str]()  # sessions, by network
        self.asked: list[Capture] = []  # who was to capture, of every executor
        self.kept = self.freed = 0
        self.executors = 0  # that were opened and not freed

    def dtype(self, network: str, tensor: str) -> str:
        contract = self.contracts[network]
        return next(one.dtype for one in (*contract.inputs, *contract.outputs) if one.name == tensor)

    def scratch_bytes(self, networks: Sequence[str]) -> int:
        return 0

    def open(self, network: str, stream: Stream, scratch: Scratch, capture: Capture) -> PlainExecutor:
        self.asked.append(capture)
        if (network, stream.handle) not in self.sessions:
            self.opened[network] += 1
            graph = str(self.voice.graph(network))
            self.sessions[network, stream.handle] = onnxruntime.InferenceSession(
                graph, providers=["CPUExecutionProvider"]
            )
        return PlainExecutor(self, self.sessions[network, stream.handle], self.contracts[network], stream)

    def drop(self, network: str) -> None:
        for key in [key for key in self.sessions if key[0] == network]:
            del self.sessions[key]

    def keep(self) -> None:
        self.kept += 1

    def free(self) -> None:
        self.freed += 1
        self.sessions.clear()


class PlainExecutor:
    """See ``notewave.backends.executor.Executor``."""

    def __init__(
        self, runtime: PlainRuntime, session: onnxruntime.InferenceSession, contract: Contract, stream: Stream
    ) -> None:
        self._runtime, self._session, self._contract, self._stream = runtime, session, contract, stream
        self._runtime.executors += 1
        self._addresses: dict[str, int] = {}
        self._sizes: Mapping[str, int] = {}
        self._launched: list[Operation] = []

    def bind(self, addresses: Mapping[str, int]) -> None:
        self._addresses |= addresses

    def reshape(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)

    def is_capturable(self) -> bool:
        return self._runtime.capturable

    def launch(self) -> None:
        placed = {}
        for tensor in (*self._contract.inputs, *self._contract.outputs):
            shape = tensor.shape_at(self._sizes)
            placed[tensor.name] = (self._addresses[tensor.name], shape, np.dtype(tensor.dtype))
        sizes = {name: int(np.prod(shape)) * ITEM_BYTES[str(dtype)] for name, (_, shape, dtype) in placed.items()}
        ranges = tuple(
            [(placed[tensor.name][0], sizes[tensor.name]) for tensor in tensors]
            for tensors in (self._contract.inputs, self._contract.outputs)
        )
        session = self._session

        def run() -> None:
            binding = session.io_binding()
            for index, tensors in enumerate((self._contract.inputs, self._contract.outputs)):
                bind = (binding.bind_input, binding.bind_output)[index]
                for tensor in tensors:
                    address, shape, dtype = placed[tensor.name]
                    bind(tensor.name, "cpu", 0, dtype, shape, address)
            session.run_with_iobinding(binding)

        self._launched.append(Operation("network", lambda: ranges, run))
        self._runtime.device.submit(self._stream, self._launched[-1])

    def free(self) -> None:
        waiting = [entry for _, _, entry in self._stream.queue]
        assert not any(operation in waiting for operation in self._launched), "it has not finished"
        self._runtime.executors -= 1
        vars(self).clear()
