"""`notewave build`: a voice's plans for one kind of GPU, by TensorRT or for ONNX Runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from notewave.backends.device.cache import plans_home
from notewave.backends.device.plans import ONNXRUNTIME, PLAN_PRECISIONS, RTX, check_makeable
from notewave.backends.device.shapes import Extent, extents
from notewave.backends.graphs.make import gpu_graph, make_plans
from notewave.backends.ort.executors import make_graphs
from notewave.backends.trt.modules import tensorrt_modules
from notewave.errors import BackendError
from notewave.voice.contracts import Contract
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)

TURING = (7, 5)
Compile = Callable[[bytes, dict[str, Extent], str], bytes]  # graph, shapes, precision -> plan


def build_plans(
    voice: Voice,
    precision: str = "fp16",
    compute_capability: tuple[int, int] | None = None,
    *,
    flavour: str | None = None,
    trt: Any | None = None,
    compile_plan: Compile | None = None,
) -> Path:
    """Build the plan of every network of a voice and compile the CUDA kernels; the folder they are kept in.

    compute_capability: of the GPU they are for, such as (8, 9); by default that of the GPU here. flavour: one of
    plans.FLAVOURS; by default the first installed TensorRT that builds for this GPU and precision. trt, compile_plan:
    stand in for the installed TensorRT. Raises VoiceError for a voice with 8-bit weights, BackendError when TensorRT is
    missing or cannot build for this GPU and precision, OutputError when the folder cannot be written.
    """
    check_makeable(voice, precision)
    if flavour == ONNXRUNTIME:
        return make_graphs(voice, precision, compute_capability or _local_capability())
    modules = [trt] if trt else tensorrt_modules(flavour)
    capability = compute_capability or _local_capability()
    trt = _first_able(modules, capability, precision)
    compile_plan = compile_plan or _Compiler(trt, capability, timing_cache(trt, capability))

    def plan(network: str, contract: Contract) -> bytes:
        typing = precision if network != "vocoder" else vocoder_precision(trt, precision, capability)
        graph = gpu_graph(voice, network, typing).SerializeToString()
        return compile_plan(graph, extents(voice, network, contract), typing)

    return make_plans(voice, trt, capability, precision, plan)


def buildable_precisions(trt: Any, capability: tuple[int, int]) -> tuple[str, ...]:
    """Which of PLAN_PRECISIONS a TensorRT can build for a GPU: Turing has no bfloat16, nor float32 in TensorRT-RTX."""
    if capability > TURING:
        return PLAN_PRECISIONS
    return ("fp16",) if trt.__name__ == RTX else ("fp16", "fp32")


def vocoder_precision(trt: Any, precision: str, capability: tuple[int, int]) -> str:
    """Errors of the vocoder are heard and it runs once a segment, so it stays in float32 where that can be built."""
    return "fp32" if "fp32" in buildable_precisions(trt, capability) else precision


def timing_cache(trt: Any, capability: tuple[int, int]) -> Path | None:
    """Where TensorRT keeps what it timed on a GPU, for one version; TensorRT-RTX times nothing while it builds."""
    if trt.__name__ == RTX:
        return None
    return plans_home() / "timing-{}-{}-sm{}{}.cache".format(trt.__name__, trt.__version__, *capability)


def _first_able(modules: Sequence[Any], capability: tuple[int, int], precision: str) -> Any:
    """The first TensorRT that builds for a GPU and precision; raises BackendError with the reason of each."""
    refusals = []
    for trt in modules:
        try:
            _check_target(trt, capability, precision)
            return trt
        except BackendError as error:
            refusals.append(error)
    raise BackendError(" ".join(map(str, refusals))) from refusals[0]


def _check_target(trt: Any, capability: tuple[int, int], precision: str) -> None:
    """Refuse what TensorRT is known not to build."""
    sm, buildable = _dotted(capability), buildable_precisions(trt, capability)
    if precision not in buildable:
        raise BackendError(
            f"{trt.__name__} builds no {precision} plans for compute capability {sm} (Turing). "
            f"Ask for --precision {' or '.join(buildable)}."
        )
    if trt.__name__ == RTX:
        names = [name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
        known = [f"{name[:-1]}.{name[-1]}" for name in names]
        if sm not in known:
            raise BackendError(
                f"{trt.__name__} {trt.__version__} does not build for compute capability {sm}; "
                f"it knows {', '.join(known)}. Data-centre GPUs need TensorRT itself: notewave[gpu]."
            )
    elif capability != _local_capability():
        raise BackendError(
            f"{trt.__name__} builds only for the GPU of this machine, which is not of compute capability {sm}. "
            "Build on the machine that is to run the plans, or with TensorRT-RTX: notewave[rtx]."
        )


class _Compiler:
    """Polygraphy's builder, set up for strongly typed graphs."""

    def __init__(self, trt: Any, capability: tuple[int, int], timing_cache: Path | None) -> None:
        self.trt, self.capability, self.timing_cache = trt, capability, timing_cache
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if trt.__name__ == RTX else "0"
        try:
            from polygraphy.logger import G_LOGGER
        except ImportError as error:
            raise BackendError("Polygraphy is not installed. Install notewave[export] beside TensorRT.") from error
        G_LOGGER.colors, G_LOGGER.use_python_logging_system = False, True
        G_LOGGER.module_severity = G_LOGGER.ERROR

    def __call__(self, graph: bytes, shapes: dict[str, Extent], precision: str) -> bytes:
        from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_bytes
        from polygraphy.exception import PolygraphyException

        profile = Profile()
        for name, extent in shapes.items():
            profile.add(name, *dataclasses.astuple(extent))
        flags = getattr(self.trt, "NetworkDefinitionCreationFlag", None)
        cache = None if self.timing_cache is None else str(self.timing_cache)
        with _signals_held() as held, _errors_of("Polygraphy") as errors:
            try:
                network = network_from_onnx_bytes(graph, strongly_typed=hasattr(flags, "STRONGLY_TYPED"))
                if precision == "fp32":
                    self._allow_unfused_attention(network[1])
                return bytes(engine_bytes_from_network(network, self._config(profile, held), save_timing_cache=cache))
            except PolygraphyException as error:
                raise BackendError(
                    f"{self.trt.__name__} {self.trt.__version__} cannot build a {precision} plan for compute "
                    f"capability {_dotted(self.capability)}: {errors[0] if errors else error}. "
                    "Try another --precision."
                ) from error

    def _config(self, profile: Any, held: list[int]) -> Callable[[Any, Any], Any]:
        """How TensorRT is to build; it gives up once a signal is held."""
        monitor = _monitor(self.trt, held)

        def create(builder: Any, network: Any) -> Any:
            if self.timing_cache is None:
                from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

                config = CreateConfigRTX(profiles=[profile], compute_capabilities=[self.capability])(builder, network)
            else:
                from polygraphy.backend.trt import CreateConfig

                cached = str(self.timing_cache) if self.timing_cache.is_file() else None
                config = CreateConfig(profiles=[profile], load_timing_cache=cached)(builder, network)
            config.progress_monitor = monitor
            config.clear_flag(self.trt.BuilderFlag.TF32)  # what stays float32 stays for its precision
            if hasattr(
                self.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"
            ):  # else TensorRT-RTX cannot be captured in a graph
                config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            return config

        return create

    def _allow_unfused_attention(self, network: Any) -> None:
        """There are no fused float32 attention kernels. In low precision only fused ones keep a float32 softmax."""
        if not hasattr(self.trt, "IAttentionInputLayer"):
            return
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type == self.trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True


def _local_capability() -> tuple[int, int]:
    from notewave.backends.device.driver import CudaDevice

    try:
        return CudaDevice(0).capability
    except BackendError as error:
        raise BackendError(
            f"{error} To build for a GPU elsewhere, have TensorRT-RTX and name it: --compute-capability 8.9"
        ) from error


@contextlib.contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Hold back what signals raise until the block's end, for an error in a callback of TensorRT is lost.

    Yields the list of the signals that are held.
    """
    held: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other has handlers
        handlers = {
            number: handler for number in signal.valid_signals() if callable(handler := signal.getsignal(number))
        }
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)


def _monitor(trt: Any, held: list[int]) -> Any:
    """What TensorRT asks after each step whether to go on: until a signal is held."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            pass

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return not held

    return Monitor()


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[list[str]]:
    """Collect the errors that a logger is given, in the place of showing them."""
    logger, messages = logging.getLogger(name), []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage().strip())

    handler, propagate = Collector(logging.ERROR), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)
