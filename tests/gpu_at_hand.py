"""The GPU that tests marked gpu run on."""

import os
from typing import NoReturn

import pytest

from notewave.backends.device.driver import CudaDevice
from notewave.errors import BackendError

REQUIRED = "NOTEWAVE_GPU_REQUIRED"  # set by make gpu-test, where a GPU that cannot be used is a failure


def gpu_at_hand() -> CudaDevice:
    """The first GPU; without one the test is skipped, or fails where one is required."""
    try:
        return CudaDevice()
    except BackendError as error:
        unusable(str(error))


def unusable(reason: str) -> NoReturn:
    """Skip a test for what is missing here, or fail it where a GPU is required, since all was installed for it."""
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
