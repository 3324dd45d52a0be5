"""Ways to make one denoising step on a GPU: our engines' decoder, and our PyTorch modules' on the same weights.

What only a GPU can run stands in ``CudaMeter``; all else takes any device of PyTorch. Letters as in
``notewave.voice.contracts``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from notewave.backends.device.buffers import Layout, Slab
from notewave.backends.device.shapes import token_buckets
from notewave.backends.executor import Capture, Scratch
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.graphs.lean import MASKED
from notewave.errors import BackendError
from notewave.export.networks import Decoder
from notewave.sound.mel import FRAMES, MELS, FloatArray
from notewave.voice.contracts import Contract, Dimensions

WARM_CALLS = 3  # before anything is captured or timed: the first ones compile and allocate
EMPTY_KERNELS = 500  # in one graph, one after another
Call = Callable[[], object]  # launches something; does not wait


class Meter(Protocol):
    """What times and captures on a device of PyTorch."""

    device: str  # PyTorch's name for it
    runtime: str  # what PyTorch was made for

    def seconds(self, call: Call, repeats: int, stream: Any = None) -> float:
        """What a call takes, of so many one after another, on a stream of ours or else PyTorch's."""

    def graph(self, call: Callable[[], Tensor]) -> tuple[Call, Tensor]:
        """What launches again all that a call launched, and the tensor that it writes to each time."""


class CudaMeter:
    """See ``Meter``: by CUDA's events, in CUDA's graphs."""

    device, runtime = "cuda", f"CUDA {torch.version.cuda}"

    def seconds(self, call: Call, repeats: int, stream: Any = None) -> float:
        """See ``Meter.seconds``; ``stream`` has a CUDA stream's ``handle``."""
        timed = torch.cuda.ExternalStream(stream.handle) if stream else torch.cuda.current_stream()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(timed)
        for _ in range(repeats):
            call()
        end.record(timed)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def graph(self, call: Callable[[], Tensor]) -> tuple[Call, Tensor]:
        """See ``Meter.graph``."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_CALLS):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            kept = call()
        return graph.replay, kept


@dataclass(frozen=True)
class Step:
    """What one denoising step of B songs takes, in float32 on the CPU, and what it must give."""

    x: Tensor  # [B, T, M]
    film: Tensor  # [1, L, 2, 2, D]
    mask: Tensor  # [B, 1, 1, J]: the last tokens of each song are padding
    keys_values: list[Tensor]  # 2 L of [B, H, J, K]
    due: FloatArray  # [B, T, M]

    @classmethod
    def of(cls, decoder: Decoder, size: Dimensions, tokens: int, batch: int) -> Step:
        """Seeded random inputs, other ones for each song, and what a decoder makes of them."""
        generator = torch.Generator().manual_seed(batch)

        def normal(deviation: float, *shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * deviation

        keys = tokens + FRAMES
        x, film = normal(1.0, batch, FRAMES, MELS), normal(0.1, 1, size.decoder_layers, 2, 2, size.width)
        keys_values = [normal(0.3, batch, size.heads, keys, size.head_width) for _ in range(2 * size.decoder_layers)]
        mask, padding = torch.zeros(batch, 1, 1, keys), slice(tokens - tokens // 30, tokens)
        mask[..., padding] = MASKED
        for part in keys_values:
            part[:, :, padding] *= 30  # whoever attends to it is seen to be wrong
        with torch.no_grad():
            return cls(x, film, mask, keys_values, decoder(x, film, mask, *keys_values).numpy())


@dataclass(frozen=True)
class Ready:
    """A side that can be timed."""

    call: Call  # one step, or what else ``figure`` says
    predict: Callable[[], FloatArray] | None = None  # a step; waits for its prediction [B, T, M]
    stream: Any = None  # of ours, where it does not run on PyTorch's
    keys: int | None = None  # J that its decoder attends to
    launches: int | None = None  # of a captured step, by an engine of ours
    pytorch: bool = False  # whether PyTorch makes the step
    figure: str = "step_s"
    times: int = 1  # that a call does it


Prepare = Callable[[], Ready]


class TorchDecoder:
    """Our PyTorch decoder with its products in float16.

    pure: all else is in float16, too; otherwise the residual stream and norms are in float32, by autocast, as in our
    engines' graphs. Weights of products are stored in float16 either way, so that no step converts them.
    """

    def __init__(self, decoder: Decoder, step: Step, meter: Meter, pure: bool) -> None:
        self._meter, self._pure = meter, pure
        self._decoder = copy.deepcopy(decoder).requires_grad_(False).to(meter.device)
        for module in self._decoder.modules():
            if pure or isinstance(module, nn.Linear):
                module.to(torch.float16)
        wide, low = torch.float16 if pure else torch.float32, torch.float16
        self._wide = [tensor.to(meter.device, wide) for tensor in (step.x, step.film)]
        self._low = [tensor.to(meter.device, low) for tensor in (step.mask, *step.keys_values)]

    def eager(self) -> Ready:
        """Launched kernel by kernel."""
        call = self._calling(self._decoder)
        return self._ready(call, lambda: _read(call()))

    def captured(self) -> Ready:
        """The same launches in a CUDA graph."""
        return self._in_graph(self._decoder)

    def compiled(self) -> Ready:
        """Kernels that torch.compile made for these shapes, in a CUDA graph."""
        return self._in_graph(torch.compile(self._decoder, dynamic=False))

    def _in_graph(self, decoder: Callable[..., Tensor]) -> Ready:
        replay, kept = self._meter.graph(self._calling(decoder))

        def predict() -> FloatArray:
            kept.zero_()
            replay()
            return _read(kept)

        return self._ready(replay, predict)

    def _ready(self, call: Call, predict: Callable[[], FloatArray]) -> Ready:
        return Ready(call, predict, keys=self._low[0].shape[-1], pytorch=True)

    def _calling(self, decoder: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad(), torch.autocast(self._meter.device, torch.float16, enabled=not self._pure):
                return decoder(*self._wide, *self._low)

        return call


class EngineDecoder:
    """The decoder in one of our engines, at fixed addresses; tokens are padded to a bucket's length, as in a song.

    It is used, and let go of by ``close``, within the GPU's context. Raises BackendError when it cannot be made ready.
    """

    def __init__(self, backend: GpuBackend, decoder: Decoder, step: Step) -> None:
        shared = backend.shared
        self._device, self._runtime, device = shared.device, shared.runtime, shared.device
        contract, tokens = self._runtime.contracts["decoder"], step.mask.shape[-1] - FRAMES
        self.keys = next(size for size in token_buckets(shared.voice) if size >= tokens) + FRAMES
        given = decoder_inputs(contract, decoder, step, self.keys)
        (prediction,) = contract.outputs
        self._prediction = np.empty(step.due.shape, prediction.dtype)
        scratch = self._runtime.scratch_bytes(["decoder"])
        sizes = {name: array.nbytes for name, array in given.items()} | {prediction.name: self._prediction.nbytes}
        with contextlib.ExitStack() as held:
            slab = Slab(device, Layout(sizes | {"scratch": scratch}), "a step of the decoder")
            held.callback(slab.free)
            self.stream = shared.streams.pop() if shared.streams else device.stream()
            held.callback(shared.streams.append, self.stream)
            for name, array in given.items():
                device.upload(slab.address[name], array, self.stream)
            held.callback(self.stream.synchronize)
            region = Scratch(slab.address["scratch"], scratch)
            self._executor = self._runtime.open("decoder", self.stream, region, Capture.OURS)
            held.callback(self._executor.free)
            self._executor.bind({name: slab.address[name] for name in sizes})
            self._executor.reshape({"B": len(step.x), "J": self.keys})
            self.stream.synchronize()
            self._address = slab.address[prediction.name]
            self._held = held.pop_all()

    def eager(self) -> Ready:
        """Launched by the engine."""
        launch = self._executor.launch
        return Ready(launch, self._predicting(launch), self.stream, self.keys)

    def captured(self) -> Ready:
        """The same launches in a CUDA graph of ours, as in a song."""
        if not self._executor.is_capturable():
            raise BackendError("its launches cannot be captured, only by the engine itself. See `notewave bench`.")
        for _ in range(max(WARM_CALLS, self._runtime.warm_runs)):
            self._executor.launch()
        self.stream.synchronize()
        graph = self._device.capture(self.stream, self._executor.launch)
        self._held.callback(graph.free)
        self._held.callback(self.stream.synchronize)
        launch = functools.partial(graph.launch, self.stream)
        return Ready(launch, self._predicting(launch), self.stream, self.keys, graph.nodes)

    def close(self) -> None:
        """Give its memory back."""
        self._held.close()

    def _predicting(self, launch: Call) -> Callable[[], FloatArray]:
        def predict() -> FloatArray:
            self._device.clear(self._address, self._prediction.nbytes, self.stream)
            launch()
            self._device.download(self._prediction, self._address, self.stream)
            self.stream.synchronize()
            return self._prediction.astype(np.float32)

        return predict


def decoder_inputs(contract: Contract, decoder: Decoder, step: Step, keys: int) -> dict[str, NDArray[Any]]:
    """A step as a GPU's decoder takes it: FiLM's scales in norms' weights, ``keys`` keys, the last of them masked."""
    layers: list[Any] = list(decoder.layers)
    norms = [[layer.attention_norm.weight, layer.feed_forward_norm.weight] for layer in layers]
    film = step.film[0].numpy().copy()
    film[:, :, 0] = (film[:, :, 0] + 1.0) * np.array([[weight.detach().numpy() for weight in pair] for pair in norms])
    bias = np.full((len(step.x), 1, FRAMES, keys), MASKED, np.float32)
    bias[..., : step.mask.shape[-1]] = step.mask.numpy()
    padding = keys - step.mask.shape[-1]
    merged = [
        np.pad(part.transpose(1, 2).flatten(2).numpy(), ((0, 0), (0, padding), (0, 0))) for part in step.keys_values
    ]
    arrays = [step.x.numpy(), *film.reshape(-1, film.shape[-1]), bias, *merged]
    return {
        tensor.name: np.ascontiguousarray(array, tensor.dtype)
        for tensor, array in zip(contract.inputs, arrays, strict=True)
    }


def sides(
    engines: Mapping[str, GpuBackend], decoder: Decoder, step: Step, meter: Meter, stack: contextlib.ExitStack
) -> dict[str, Prepare]:
    """What makes each side ready, by its name; what an engine's holds goes as the stack unwinds."""
    torch.compiler.reset()  # it compiles so many shapes of a module, and then no more
    found: dict[str, Prepare] = {}
    for name, backend in engines.items():
        found |= {f"notewave {name}, {way}": made for way, made in _by_engine(backend, decoder, step, stack).items()}
    for name, pure in (("autocast", False), ("float16", True)):
        found |= {f"PyTorch {name}, {way}": made for way, made in _by_pytorch(decoder, step, meter, pure).items()}
    found["its products alone, captured"] = lambda: products(decoder, step, meter)
    found["an empty kernel, captured"] = lambda: empty_kernels(meter)
    return found


def _by_engine(backend: GpuBackend, decoder: Decoder, step: Step, stack: contextlib.ExitStack) -> dict[str, Prepare]:
    @functools.cache
    def engine() -> EngineDecoder:
        return stack.enter_context(contextlib.closing(EngineDecoder(backend, decoder, step)))

    return {"eager": lambda: engine().eager(), "captured": lambda: engine().captured()}


def _by_pytorch(decoder: Decoder, step: Step, meter: Meter, pure: bool) -> dict[str, Prepare]:
    @functools.cache
    def modules() -> TorchDecoder:
        return TorchDecoder(decoder, step, meter, pure)

    return {
        "eager": lambda: modules().eager(),
        "captured": lambda: modules().captured(),
        "compiled, captured": lambda: modules().compiled(),
    }


def products(decoder: Decoder, step: Step, meter: Meter) -> Ready:
    """A step's products with weights, and nothing else, in a CUDA graph."""
    modules = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    weights = [module.weight.detach().to(meter.device, torch.float16) for module in modules]
    rows = math.prod(step.x.shape[:2])
    given = {module.in_features: torch.randn(rows, module.in_features) for module in modules}
    given = {width: tensor.to(meter.device, torch.float16) for width, tensor in given.items()}

    def multiply() -> Tensor:
        return [linear(given[weight.shape[1]], weight) for weight in weights][-1]

    return Ready(meter.graph(multiply)[0])


def empty_kernels(meter: Meter) -> Ready:
    """Kernels that do next to nothing, in a CUDA graph: what each launch takes at least."""
    number = torch.zeros(1, device=meter.device)

    def add() -> Tensor:
        for _ in range(EMPTY_KERNELS):
            number.add_(1.0)
        return number

    return Ready(meter.graph(add)[0], figure="launch_s", times=EMPTY_KERNELS)


def _read(prediction: Tensor) -> FloatArray:
    """A tensor on the host, in float32."""
    return prediction.float().cpu().numpy()
