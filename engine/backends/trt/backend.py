"""The GPU's backend on TensorRT or TensorRT-RTX."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.driver import CudaDevice
from notewave.backends.device.plans import find_plans
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.gpu.workspace import SEGMENT_NETWORKS
from notewave.backends.trt.engines import Engines
from notewave.backends.trt.modules import tensorrt_modules
from notewave.errors import BackendError
from notewave.kernels.loader import load_kernels
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)

OPTIONS = ("precision", "device_id", "graphs")  # a plan precision; which GPU; false to launch without CUDA graphs


def open_tensorrt(
    voice: Voice, options: Mapping[str, Any], *, device: CudaDevice | None = None, trt: Any = None
) -> GpuBackend:
    """A voice's plans on one NVIDIA GPU.

    options: OPTIONS by name. device, trt: stand in for the GPU and the TensorRT module. Raises BackendError when
    packages, driver, GPU or fitting plans are missing.
    """
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise BackendError(
            f"backend 'tensorrt' has no option {', '.join(sorted(unknown))}. Known: {', '.join(OPTIONS)}."
        )
    device = device or CudaDevice(options.get("device_id", 0))  # first: without a GPU it fails at once
    with device:
        engines = _open_engines(voice, [trt] if trt else tensorrt_modules(), device, options.get("precision"))
        kernels = device.kernels(load_kernels(engines.plans.files, device.capability))
    log.info("plans of %s on %s, CUDA %s", engines.plans.folder, device.name, device.driver)
    return GpuBackend(voice, device, engines, kernels, bool(options.get("graphs", True)))


def _open_engines(voice: Voice, modules: Sequence[Any], device: CudaDevice, precision: str | None) -> Engines:
    """Engines of the first TensorRT that has plans which fit and load: those that every song needs, at once."""
    refusals = []
    for trt in modules:
        try:
            plans = find_plans(voice, trt, device.capability, precision)
            engines = Engines(plans, trt, device, gpu_contracts(voice, plans.record.target.precision))
            for network in (*SEGMENT_NETWORKS, "vocoder"):
                if network in engines.contracts:
                    engines[network]
            return engines
        except BackendError as error:
            refusals.append(error)
    raise BackendError(" Nor with the other TensorRT here: ".join(map(str, refusals))) from refusals[0]
