"""The CUDA source against its NumPy twins: compiled for the host and run over grids, and on a GPU if there is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import host_kernels
import numpy as np
import pytest
from gpu_at_hand import gpu_at_hand

from notewave.kernels import loader
from notewave.kernels.layout import COEFFICIENTS, ROW, control_dtype, table_rows
from notewave.kernels.reference import advance, carry_nan, keep_frame, mel_to_context, philox_normal, sampler_step
from notewave.sampling.loop import denoise
from notewave.sampling.samplers import SAMPLERS, SamplerTable, sampler_table
from notewave.sampling.schedule import NoiseSchedule
from notewave.sound.mel import HOP, LOG_MIN, LOG_SCALE, MELS, from_network

SIZES = (1, 3, 4, 5, 127, 1024, 4099)
OFFSETS = (0, 1)  # elements beyond an aligned address
SEED = 0x0123_4567_89AB_CDEF
NO_NUMBERS = np.array([np.nan, np.inf, -np.inf], np.float32)

Launch = Callable[..., None]  # (kernel, blocks, songs, *arguments); arrays are read and written in place


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def launch(request: pytest.FixtureRequest) -> Launch:
    return _on_host if request.param == "host" else _on_gpu()


def _on_host(name: str, blocks: int, songs: int, *arguments: np.ndarray | float) -> None:
    values = [argument.ctypes.data if isinstance(argument, np.ndarray) else argument for argument in arguments]
    host_kernels.launch(name, (blocks, songs, 1), loader.THREADS, *values)


def _on_gpu() -> Launch:
    device = gpu_at_hand()
    with device:
        kernels = device.kernels(loader.compile_kernels(device.capability))

    def launch(name: str, blocks: int, songs: int, *arguments: np.ndarray | float) -> None:
        with device:
            stream, values, copies = device.stream(), [], []
            for argument in arguments:
                if isinstance(argument, np.ndarray):
                    offset = argument.ctypes.data % 64  # the copy is aligned as the array is
                    memory = device.allocate(argument.nbytes + 64, "a test")
                    device.upload(int(memory) + offset, argument, stream)
                    copies.append((argument, int(memory) + offset, memory))
                    values.append(int(memory) + offset)
                else:
                    values.append(argument)
            kernels[name]((blocks, songs, 1), stream, *values)
            for array, address, _ in copies:
                device.download(array, address, stream)
            stream.synchronize()
            for _, _, memory in copies:
                memory.free()

    return launch


def control(segment: int, guidance: float, *seeds: int, first: int = 0, given: int = 0, moved: int = 0) -> np.ndarray:
    return np.array([(segment, guidance, first, given, moved, 0, seeds)], control_dtype(len(seeds)))


def row(*coefficients: float, draw: int = 0) -> np.ndarray:
    return np.array([(*coefficients, draw)], ROW)


def floats(packed: np.ndarray) -> np.ndarray:
    """The coefficients of a row [7]."""
    return np.array([packed[0][name] for name in COEFFICIENTS], np.float32)


def shifted(values: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins ``offset`` elements after a 64-byte boundary."""
    room = np.empty(values.size + 64, values.dtype)
    start = (-room.ctypes.data // values.itemsize) % (64 // values.itemsize) + offset
    copy = room[start : start + values.size].reshape(values.shape)
    copy[...] = values
    return copy


def stored(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 as a model's output would be stored, and what it then is."""
    if dtype == "bf16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    kept = values.astype({"fp32": np.float32, "fp16": np.float16}[dtype])
    return kept, kept.astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_normals_are_the_twin_s(launch: Launch, size: int, offset: int) -> None:
    seeds = (0, SEED, 2**64 - 1)
    out = shifted(np.zeros((3, size), np.float32), offset)
    launch("philox_normal", 2, 3, out, control(5, 1.0, *seeds), 9, size)
    for seed, song in zip(seeds, out, strict=True):
        expected = np.empty(size, np.float32)
        philox_normal(seed, 5, 9, expected)
        np.testing.assert_allclose(song, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [size for size in SIZES if size % 4 == 0])
def test_a_window_s_normals_are_the_twin_s_from_one_segment_into_the_next(launch: Launch, size: int) -> None:
    seeds = (SEED, 2**64 - 1)
    for first in (0, 4, size // 2 // 4 * 4, size - 4, 2 * size + 4):
        out = shifted(np.zeros((2, size), np.float32), 1)
        launch("philox_normal", 2, 2, out, control(5, 1.0, *seeds, first=first), 9, size)
        for seed, song in zip(seeds, out, strict=True):
            expected = np.empty(size, np.float32)
            philox_normal(seed, 5, 9, expected, first, size)
            np.testing.assert_allclose(song, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_step_with_given_noise_is_the_twin_s_bit_for_bit(launch: Launch, size: int, guided: bool, dtype: str) -> None:
    random = np.random.default_rng(size)
    for offset in OFFSETS:
        x, previous, *outputs = random.standard_normal((4, 2, size)).astype(np.float32)
        (prediction, model), (unconditional, model_without) = (stored(output, dtype) for output in outputs)
        noise = random.standard_normal((3, 2, size)).astype(np.float32)
        coefficients = row(*random.standard_normal(7), draw=2)
        mine, mine_previous, prediction, unconditional, noise = (
            shifted(part, offset) for part in (x, previous, prediction, unconditional, noise)
        )
        without = unconditional if guided else 0
        told = control(0, 2.5, 1, 2)
        launch(
            f"sampler_step_{dtype}", 3, 2, mine, mine_previous, prediction, without, noise, 0, coefficients, told, size
        )
        sampler_step(
            x, previous, model, floats(coefficients), noise[2], model_without if guided else None, np.float32(2.5)
        )
        np.testing.assert_array_equal(mine, x)
        np.testing.assert_array_equal(mine_previous, previous)


def test_a_step_that_draws_its_noise_is_the_twin_s(launch: Launch) -> None:
    size, seeds = 1001, (3, SEED)
    x, previous, prediction = np.random.default_rng(0).standard_normal((3, 2, size)).astype(np.float32)
    noise = np.empty((2, size), np.float32)
    for seed, song in zip(seeds, noise, strict=True):
        philox_normal(seed, 4, 7, song)
    coefficients = row(1.1, 0.4, 0.7, 0.3, 0.0, 0.5, 0.0, draw=7)
    mine, mine_previous, told = x.copy(), previous.copy(), control(4, 1.0, *seeds)
    launch("sampler_step_fp32", 1, 2, mine, mine_previous, prediction, 0, 0, 0, coefficients, told, size)
    sampler_step(x, previous, prediction, floats(coefficients), noise)
    np.testing.assert_allclose(mine, x, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mine_previous, previous)


def given_of(size: int) -> list[int]:
    """How many elements of a window may be given: none, some, as many as there can be."""
    return sorted({0, size // 2 // 4 * 4, size // 4 * 4})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_step_of_a_window_whose_first_frames_were_played_is_the_twin_s_bit_for_bit(
    launch: Launch, size: int, guided: bool, dtype: str
) -> None:
    """Its networks' numbers count for nothing there, and whatever is in ``played`` behind them neither."""
    random = np.random.default_rng(size)
    for given, offset, e in itertools.product(given_of(size), OFFSETS, (0.0, 0.7)):
        x, previous, played, *outputs = random.standard_normal((5, 2, size)).astype(np.float32)
        outputs[0][0, : min(given, 3)] = NO_NUMBERS[: min(given, 3)]
        played[:, given:] = np.nan
        (prediction, model), (unconditional, model_without) = (stored(output, dtype) for output in outputs)
        noise = random.standard_normal((1, 2, size)).astype(np.float32)
        coefficients = row(*random.standard_normal(6), e)
        mine, mine_previous, prediction, unconditional, noise, known = (
            shifted(part, offset) for part in (x, previous, prediction, unconditional, noise, played)
        )
        without, told = unconditional if guided else 0, control(0, 2.5, 1, 2, given=given)
        given_to_it = (mine, mine_previous, prediction, without, noise, known, coefficients, told, size)
        launch(f"sampler_step_{dtype}", 3, 2, *given_to_it)
        twin, twin_previous = x[:, :, None].copy(), previous[:, :, None].copy()
        sampler_step(
            twin,
            twin_previous,
            model[:, :, None],
            floats(coefficients),
            noise[0][:, :, None],
            model_without[:, :, None] if guided else None,
            np.float32(2.5),
            played[:, :given, None],
        )
        np.testing.assert_array_equal(mine, twin[:, :, 0])
        np.testing.assert_array_equal(mine_previous, twin_previous[:, :, 0])
        assert np.isfinite(mine).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_window_moves_on_as_the_twin_does_bit_for_bit(launch: Launch, size: int) -> None:
    random = np.random.default_rng(size)
    x, context = random.uniform(-1.5, 1.5, (2, 2, size)).astype(np.float32)
    x[0, : len(NO_NUMBERS)] = context[1, -len(NO_NUMBERS) :] = NO_NUMBERS[:size]
    for moved, offset in itertools.product({4 * (size // 4), 4 * (size // 12), 0}, OFFSETS):
        mine = [shifted(part, offset) for part in (x, context, np.zeros_like(x), np.zeros_like(x))]
        launch("advance", 1, 2, *mine, control(0, 1.0, 1, 2, moved=moved), size)
        expected = advance(context[:, :, None], x[:, :, None], moved)
        for result, twin in zip(mine[:1:-1], expected, strict=True):
            np.testing.assert_array_equal(result, twin[:, :, 0])
        np.testing.assert_array_equal(mine[0], x)
        np.testing.assert_array_equal(mine[1], context)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_window_is_denoised_as_by_the_twins(launch: Launch, sampler: str, prediction: str) -> None:
    """Noise and steps of a window that begins in the middle of one segment and ends in the next."""
    table, size, seed = sampler_table(sampler, 4, NoiseSchedule(), prediction), 512, SEED
    told = control(3, 2.0, seed, first=128, given=256)
    played, *outputs = np.random.default_rng(0).uniform(-1.0, 1.0, (1 + 2 * table.steps, size)).astype(np.float32)
    models = list(zip(outputs[::2], outputs[1::2], strict=True))
    mine, previous = np.full((2, size), np.nan, np.float32)
    launch("philox_normal", 1, 1, mine, told, 0, size)
    packed = table_rows(table.rows, table.noisy)
    for step, (model, without) in enumerate(models):
        coefficients = packed[step : step + 1]
        launch("sampler_step_fp32", 1, 1, mine, previous, model, without, 0, played, coefficients, told, size)
    twin = denoised_by_twins(table, models, played[:256], seed)
    np.testing.assert_allclose(mine, twin, rtol=0, atol=2e-5)
    np.testing.assert_allclose(mine[:256], played[:256], rtol=0, atol=2e-5)


def denoised_by_twins(
    table: SamplerTable, models: list[tuple[np.ndarray, np.ndarray]], played: np.ndarray, seed: int
) -> np.ndarray:
    """Segment 3 from its element 128 on, by what a network gives at each step, with guidance of 2."""

    def draw(number: int) -> np.ndarray:
        out = np.empty((1, models[0][0].size, 1), np.float32)
        philox_normal(seed, 3, number, out, 128, out.size)
        return out

    x = draw(0)
    given = [tuple(output.reshape(x.shape) for output in pair) for pair in models]
    denoise(table, x, lambda step: given[step], draw, guidance=2.0, played=played.reshape(1, -1, 1))
    return x.reshape(-1)


def test_unused_buffers_are_not_read(launch: Launch) -> None:
    x, previous, noise, prediction = (
        np.ones(8, np.float32),
        *np.full((2, 8), np.nan, np.float32),
        np.zeros(8, np.float32),
    )
    coefficients = row(1, 1, 0, 1, 0, 0, 0)
    launch("sampler_step_fp32", 1, 1, x, previous, prediction, 0, noise, 0, coefficients, control(0, 1.0, 0), 8)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("guidance", [1.0, 2.5, -3.0, 0.0])
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.filterwarnings("error")
def test_what_is_no_finite_number_is_nan_to_the_end(
    launch: Launch, sampler: str, prediction: str, guidance: float
) -> None:
    """Of a network that gives some once, though clips would hide it; and of the twin to the last bit."""
    table = sampler_table(sampler, 4, NoiseSchedule(), prediction)
    random, size, without = np.random.default_rng(0), 3 * len(NO_NUMBERS), guidance != 1.0
    lost = np.repeat([True, without, False], len(NO_NUMBERS))
    x, twin = (random.standard_normal(size).astype(np.float32),) * 2
    x, twin, previous, twin_previous = x.copy(), twin.copy(), *np.zeros((2, size), np.float32)
    for step, numbers in enumerate(table.rows):
        noise, model, unconditional = random.standard_normal((3, size)).astype(np.float32)
        if step == 1:
            model[:3] = unconditional[3:6] = NO_NUMBERS
        given, told = (unconditional if without else 0), control(0, guidance, 0)
        launch("sampler_step_fp32", 1, 1, x, previous, model, given, noise, 0, row(*numbers), told, size)
        sampler_step(twin, twin_previous, model, numbers, noise, unconditional if without else None, guidance)
        np.testing.assert_array_equal(x, twin)
        np.testing.assert_array_equal(previous, twin_previous)
    assert np.isnan(x).tolist() == lost.tolist() and np.abs(x[~lost]).max() <= 1.0


def test_every_half_and_bfloat16_widens_exactly(launch: Launch) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for name, values in (
        ("fp16", bits.view(np.float16).astype(np.float32)),
        ("bf16", (bits.astype(np.uint32) << 16).view(np.float32)),
    ):
        x, previous = np.zeros((2, bits.size), np.float32)
        told, copies_the_model = control(0, 1.0, 0), row(0, -1, 0, 0, 0, 0, 1)
        launch(f"sampler_step_{name}", 64, 1, x, previous, bits, 0, 0, 0, copies_the_model, told, bits.size)
        np.testing.assert_array_equal(x, np.where(np.isfinite(values), values, np.nan))


@pytest.mark.parametrize("size", SIZES)
def test_context_and_log_mel_are_the_twin_s_bit_for_bit(launch: Launch, size: int) -> None:
    values = np.random.default_rng(size).uniform(-1.5, 1.5, (2, size)).astype(np.float32)
    values[1, : len(NO_NUMBERS)] = NO_NUMBERS[:size]
    for offset in OFFSETS:
        mel, context = shifted(values, offset), shifted(np.zeros_like(values), offset)
        launch("mel_to_context", 1, 2, mel, context, size)
        np.testing.assert_array_equal(context, mel_to_context(values))
        launch("from_network", 1, 1, mel[:1], context[:1], LOG_SCALE, LOG_MIN, size)
        np.testing.assert_array_equal(context[0], from_network(values[0]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frames", [1, 3, 278])
def test_sound_of_frames_that_are_no_numbers_is_none(launch: Launch, frames: int) -> None:
    """In each of two songs, and whatever a vocoder made of them."""
    random = np.random.default_rng(frames)
    audio = random.uniform(-1.0, 1.0, (2, HOP * frames)).astype(np.float32)
    log_mel = random.uniform(LOG_MIN, 4.0, (2, frames, MELS)).astype(np.float32)
    log_mel[0, frames // 2, 5], log_mel[1, frames - 1, MELS - 1] = NO_NUMBERS[:2]
    expected = carry_nan(audio, log_mel)
    mine = audio.copy()
    launch("carry_nan", 2, 2, mine, log_mel, MELS, HOP, HOP * frames)
    np.testing.assert_array_equal(mine, expected)
    lost = np.repeat(~np.isfinite(log_mel).all(axis=2), HOP, axis=1)
    assert lost.sum() == 2 * HOP
    np.testing.assert_array_equal(mine, np.where(lost, np.nan, audio))


@pytest.mark.parametrize("grid", [(1, 1), (2, 100)])
@pytest.mark.parametrize("number", [0, 5, 6, 7])
@pytest.mark.parametrize(("dtype", "head_width"), [("fp16", 3), ("fp16", 64), ("fp32", 1), ("fp32", 16)])
def test_what_a_frame_leaves_is_the_twin_s(
    launch: Launch, dtype: str, head_width: int, number: int, grid: tuple[int, int]
) -> None:
    """Whatever it holds, bit for bit; of seven frames that a segment has, the last leaves no keys and values."""
    random, songs, heads, layers, kept, frames, mels = np.random.default_rng(number), 2, 3, 4, 6, 4, 6
    offset, pad = number % frames, 2  # elements from the rows of a layer to the next
    element = {"fp16": np.float16, "fp32": np.float32}[dtype]
    for shift in OFFSETS:
        prediction = random.standard_normal((songs, mels)).astype(np.float32)
        prediction[0, :3] = NO_NUMBERS
        before, mel = np.zeros((songs, mels), np.float32), np.zeros((songs, frames, mels), np.float32)
        new = random.standard_normal((layers, songs * heads * head_width + pad)).astype(element)
        own = random.standard_normal((layers, songs * heads * kept * head_width + pad)).astype(element)
        begun, next_frame = np.array([number - offset], np.uint64), np.zeros(1, np.uint64)
        mine = [shifted(each, shift) for each in (before, mel, own)]
        units = element().itemsize // 2
        strides = [units * each.shape[1] for each in (new, own)]
        shape = (offset, songs, frames, mels, layers, songs * heads, kept, units * head_width, *strides)
        given, made = shifted(prediction, shift), shifted(new, shift)
        launch("keep_frame", *grid, given, *mine[:2], made, mine[2], begun, next_frame, *shape)
        rows, caches = (each[:, :-pad].reshape(layers, songs, heads, -1, head_width) for each in (new, own))
        keep_frame(prediction, before, mel, rows[..., 0, :], caches, offset, number)
        for ours, theirs in zip(mine, (before, mel, own), strict=True):
            np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))
        assert next_frame == number + 1
