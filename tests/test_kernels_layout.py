"""The structures and arguments that host and kernels share: the CUDA source's text held to ``layout``."""

from __future__ import annotations

import re

import numpy as np
import pytest

from notewave.kernels import loader
from notewave.kernels.layout import (
    COEFFICIENTS,
    FLOAT32,
    KERNELS,
    POINTER,
    ROW,
    STEP_KERNELS,
    UINT32,
    control_dtype,
    ordered,
    table_rows,
)
from notewave.sampling.samplers import sampler_table
from notewave.sampling.schedule import NoiseSchedule

SOURCE = loader.source()
TYPES = {"unsigned": "<u4", "float": "<f4"}


def kernels_in_the_source() -> dict[str, dict[str, str]]:
    """Arguments of every kernel, by name, as the source declares them; a macro's for each that it makes."""
    found = {}
    text = SOURCE.replace("\\\n", "\n")
    for name, arguments in re.findall(r"__global__ void (\w+)\(([^)]*)\)", text):
        declared = [re.fullmatch(r"(.*?)(\w+)", argument.strip()).groups() for argument in arguments.split(",")]
        kinds = {argument: POINTER if "*" in kind else kind.strip() for kind, argument in declared}
        kinds = {argument: {"unsigned": UINT32, "float": FLOAT32}.get(kind, kind) for argument, kind in kinds.items()}
        made = re.findall(r"^SAMPLER_STEP\((\w+), \w+\)", SOURCE, re.M) if name == "name" else [name]
        found |= dict.fromkeys(made, kinds)
    return found


def test_every_kernel_has_its_arguments_in_order() -> None:
    declared = kernels_in_the_source()
    assert declared.keys() == KERNELS.keys()
    for name, arguments in KERNELS.items():
        assert list(declared[name].items()) == list(arguments.items()), name


@pytest.mark.parametrize("structure", ["Row", "Control"])
def test_structures_have_the_source_s_fields(structure: str) -> None:
    body = re.search(rf"struct {structure} {{(.*?)}};", SOURCE, re.S)[1]
    body = re.sub(r"//.*", "", body)
    fields = [
        (name.strip(), TYPES[kind])
        for kind, names in re.findall(r"(unsigned|float) ([\w, ]+);", body)
        for name in names.split(",")
    ]
    dtype = ROW if structure == "Row" else control_dtype(3)
    ours = [(name, dtype[name].str) for name in dtype.names if name != "seeds"]
    assert ours == fields
    assert dtype.itemsize == 4 * len(fields) + (24 if structure == "Control" else 0), "packed, the seeds behind"


def test_a_table_s_rows_keep_their_numbers_and_count_their_draws() -> None:
    table = sampler_table("ddpm", 5, NoiseSchedule(), "epsilon")
    packed = table_rows(table.rows, table.noisy)
    for index, name in enumerate(COEFFICIENTS):
        np.testing.assert_array_equal(packed[name], table.rows[:, index])
    assert packed["draw"].tolist() == [1, 2, 3, 4, 4], "the last step adds no noise"
    assert packed["draw"].max() + 1 == table.draws


def test_arguments_come_in_the_kernel_s_order_or_not_at_all() -> None:
    assert ordered("from_network", size=5, offset=4.0, scale=3.0, log_mel=2, mel=1) == (1, 2, 3.0, 4.0, 5)
    for wrong in ({"mel": 1}, {"mel": 1, "context": 2, "size": 3, "scale": 1.0}):
        with pytest.raises(AssertionError, match="mel_to_context"):
            ordered("mel_to_context", **wrong)
    assert set(STEP_KERNELS.values()) < set(KERNELS)
