"""The simulated GPU and TensorRT themselves: they notice what a real one would spoil, and have its names."""

from __future__ import annotations

import inspect

import pytest
from simulated_device import Operation, SimulatedDevice
from simulated_tensorrt import (
    ICudaEngine,
    IExecutionContext,
    Runtime,
    SimulatedTensorRTRTX,
)

from notewave.backends.trt.engines import _logger


def test_the_simulation_notices_reads_that_come_too_early() -> None:
    with SimulatedDevice() as device:
        memory, one, other = device.allocate(1024, "a test"), device.stream(), device.stream()
        device.copy(int(memory) + 512, int(memory), 256, one)
        with pytest.raises(AssertionError, match="never written"):
            one.synchronize()
        del one.queue[:]
        device.clear(int(memory), 1024, one)
        device.copy(int(memory) + 512, int(memory), 256, other)
        one.queue, waiting = [], one.queue
        device.perform(one, *waiting[0])
        with pytest.raises(AssertionError, match="whose write by another stream is not ordered"):
            other.synchronize()
        one.synchronize()
        other.queue.clear()
        device.copy(int(memory) + 512, int(memory), 256, one)
        one.synchronize()
        device.copy(int(memory) + 512, int(memory), 256, other)  # after what one did, which the host has waited for
        other.synchronize()
        device.copy(int(memory) + 512, int(memory), 256, one)
        device.clear(int(memory), 256, other)
        one.synchronize()
        with pytest.raises(AssertionError, match="whose reading by another stream is not ordered"):
            other.synchronize()
        with pytest.raises(AssertionError, match="device memory that is held"):
            device.perform(other, 99, {}, device_operation(int(memory) + 1024))


def device_operation(address: int) -> object:

    return Operation("test", lambda: ([(address, 4)], []), lambda: None)


def test_every_name_of_the_simulated_tensorrt_is_in_the_real_one() -> None:
    """The backend runs on these names and arguments alone, so all that it uses exists."""
    real = pytest.importorskip("tensorrt_rtx")
    simulated = SimulatedTensorRTRTX(SimulatedDevice())
    names = [name for name in dir(SimulatedTensorRTRTX) if not name.startswith("_")]
    assert {"Runtime", "ILogger", "DataType", "IRuntimeCache", "CudaGraphStrategy"} <= set(names)
    for name in names:
        kind = getattr(simulated, name)
        for member in getattr(kind, "__members__", None) or dir(kind):
            assert member.startswith("_") or hasattr(getattr(real, name), member), f"{name}.{member}"
    checked = set()
    for kind in (
        Runtime,
        ICudaEngine,
        IExecutionContext,
        SimulatedTensorRTRTX.IRuntimeConfig,
        SimulatedTensorRTRTX.IRuntimeCache,
    ):
        for member, value in vars(kind).items():
            if member.startswith("_"):
                continue
            theirs = getattr(getattr(real, kind.__name__), member)
            if callable(value):
                for argument in list(inspect.signature(value).parameters)[1:]:
                    assert f"{argument}: " in theirs.__doc__, f"{kind.__name__}.{member}({argument})"
                    checked.add(argument)
    assert {"memory", "size", "stream_handle", "stream", "cache", "blob", "buffer", "serialized_engine"} <= checked
    config = real.IRuntimeConfig
    assert hasattr(config, "cuda_graph_strategy") and hasattr(config, "dynamic_shapes_kernel_specialization_strategy")


def test_the_simulated_tensorrt_gives_what_the_real_one_gives_for_damage() -> None:
    """No driver is needed to refuse a plan; with an old one, loading fails the same way."""
    trt = pytest.importorskip("tensorrt_rtx")
    damaged = b"garbage" * 100
    logger = _logger(trt.ILogger)
    runtime = trt.Runtime(logger)
    _, found = runtime.get_engine_validity(damaged)
    assert int(found) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert runtime.deserialize_cuda_engine(damaged) is None
    assert logger.last
