"""TensorRT and TensorRT-RTX: a voice's plans on one slab of GPU memory, a whole segment's work in one CUDA graph.

Letters as in ``notewave.voice.contracts``. Tokens are padded to a bucket's length and the context is always there,
under a mask, so that shapes and addresses never change: what a segment launches is the same for every segment of its
bucket.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.device.buffers import Layout, Slab, Staging
from notewave.backends.device.driver import CudaDevice, Graph, Kernel
from notewave.backends.device.shapes import MAX_BATCH, SCHEDULE_ROWS, token_buckets, vocoder_frames
from notewave.backends.trt.engines import Axes, Engines, Executor, shape_of
from notewave.backends.trt.plans import find_plans, tensorrt_modules
from notewave.errors import BackendError
from notewave.kernels.loader import grid, load_kernels
from notewave.sampling.job import Job
from notewave.sampling.samplers import SamplerTable
from notewave.song.codec import PAD, Tokens, pad_tokens
from notewave.sound.mel import FRAMES, HOP, LOG_MIN, LOG_SCALE, MELS, FloatArray
from notewave.sound.stream import Window
from notewave.voice.contracts import Tensor
from notewave.voice.folder import Voice

log = logging.getLogger(__name__)

OPTIONS = ("precision", "device_id", "graphs")  # a plan precision; which GPU; false to launch without CUDA graphs
Lane = Callable[[], contextlib.AbstractContextManager["VocoderLane"]]  # the vocoder, for one thread at a time
KEPT_WORKSPACES = 2  # idle ones, with their captured graphs
GRAPH_STEPS = 128  # denoising steps in one CUDA graph at most; more go into several, launched one after another
SEGMENT_NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "decoder")  # of every segment, in their order
STEP_KERNELS = {"FLOAT": "sampler_step_fp32", "HALF": "sampler_step_fp16", "BF16": "sampler_step_bf16"}
ROW_BYTES = 32  # of a sampler's table: seven coefficients and the number of the step's draw
REGIONS = {  # where tensors of one name but different meaning lie
    ("context_encoder", "mel"): "context_mel",
    ("time_embedding", "film"): "films",
    ("unconditional_decoder", "prediction"): "unconditional",
}


class TensorRTBackend:
    """One voice on one NVIDIA GPU.

    options: OPTIONS by name. device, trt: stand in for the GPU and the TensorRT module. Raises BackendError when
    packages, driver, GPU or fitting plans are missing. Its GPU memory is given back by ``close``, or when nothing
    refers to it any more.
    """

    name = "tensorrt"

    def __init__(
        self, voice: Voice, options: Mapping[str, Any], *, device: CudaDevice | None = None, trt: Any = None
    ) -> None:
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise BackendError(
                f"backend 'tensorrt' has no option {', '.join(sorted(unknown))}. Known: {', '.join(OPTIONS)}."
            )
        self.voice = voice
        self.device = device or CudaDevice(options.get("device_id", 0))  # first: without a GPU it fails at once
        with self.device:
            self.engines = _open_engines(voice, [trt] if trt else tensorrt_modules(), self.device, options)
            self.kernels = self.device.kernels(load_kernels(self.engines.folder, self.device.capability))
        self._idle: deque[Workspace] = deque()
        self._vocoders: list[VocoderLane] = []  # none until there is something to vocode, then one
        self._lock, self._vocoder_lock = threading.Lock(), threading.Lock()
        held = (self._idle, self._vocoders, self.engines, self.kernels)
        self._finalizer = weakref.finalize(self, _give_back, self.device, *held)
        self._finalizer.atexit = False  # the driver gives all back then
        log.info("plans of %s on %s, CUDA %s", self.engines.folder, self.device.name, self.device.driver)

    def close(self) -> None:
        """Give all GPU memory back; no run may be under way, and none can be started any more."""
        self._finalizer()

    @contextlib.contextmanager
    def start(self, job: Job) -> Iterator[TensorRTRun]:
        """Begin a batch of songs on buffers that no other run is using, and leave them to the next run."""
        self._check_open()
        shape = RunShape.of(job)
        with self.device:
            workspace = self._take(shape)
            try:
                workspace.begin(job)
            except BaseException:
                workspace.free()
                raise
        try:
            yield TensorRTRun(workspace, job, self._lane)
        finally:
            with self.device, self._lock:
                try:
                    workspace.settle()  # a run may be left with a segment under way
                except BaseException:
                    workspace.free()
                    raise
                self._idle.append(workspace)
                while len(self._idle) > KEPT_WORKSPACES:
                    self._idle.popleft().free()

    def vocode(self, mel: FloatArray, frame: int) -> FloatArray:
        """See ``notewave.backends.protocol.Backend.vocode``; runs beside a segment that is being denoised."""
        self._check_open()
        with self.device, self._lane() as lane:
            return lane(mel, frame)

    @contextlib.contextmanager
    def _lane(self) -> Iterator[VocoderLane]:
        """The vocoder, for one thread at a time."""
        with self._vocoder_lock:
            if not self._vocoders:
                self._vocoders.append(VocoderLane(self.voice, self.engines))
            yield self._vocoders[0]

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise BackendError("this backend was closed, and its GPU memory given back. Open another.")

    def _take(self, shape: RunShape) -> Workspace:
        """An idle workspace of this shape, or a new one; idle ones make room when memory is short."""
        with self._lock:
            for workspace in self._idle:
                if workspace.shape == shape:
                    self._idle.remove(workspace)
                    return workspace
            while True:
                try:
                    return Workspace(self.voice, self.engines, self.kernels, shape)
                except BackendError:
                    if not self._idle:
                        raise
                    self._idle.popleft().free()


def _open_engines(voice: Voice, modules: Sequence[Any], device: CudaDevice, options: Mapping[str, Any]) -> Engines:
    """Engines of the first TensorRT that has plans which fit and load: those that every song needs, at once."""
    needed = [*SEGMENT_NETWORKS, *(["vocoder"] if voice.vocoder else [])]
    refusals = []
    for trt in modules:
        try:
            folder = find_plans(voice, trt, device.capability, options.get("precision"))
            engines = Engines(folder, trt, device, graphs=options.get("graphs", True))
            for network in needed:
                engines[network]
            return engines
        except BackendError as error:
            refusals.append(error)
    raise BackendError(" Nor with the other TensorRT here: ".join(map(str, refusals))) from refusals[0]


def _give_back(
    device: CudaDevice,
    idle: deque[Workspace],
    vocoders: list[VocoderLane],
    engines: Engines,
    kernels: dict[str, Kernel],
) -> None:
    """Let go of all that a backend held, where PyCUDA can free it; a GPU that failed holds nothing any more."""
    with contextlib.suppress(BackendError), device:
        for workspace in idle:
            workspace.free()
        for vocoder in vocoders:
            vocoder.free()
        for held in (idle, vocoders, kernels):
            held.clear()
        engines.free()


class TensorRTRun:
    """A batch of songs under way on the GPU."""

    def __init__(self, workspace: Workspace, job: Job, lane: Lane) -> None:
        self._space, self._job, self._lane = workspace, job, lane
        self._segment = 0

    def denoise(self, tokens: Sequence[Tokens]) -> FloatArray:
        """See ``notewave.backends.protocol.Run.denoise``."""
        self.submit(tokens)
        return self.result()

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``; returns while the GPU works."""
        with self._space.device:
            self._space.submit(self._job, self._segment, tokens)
        self._segment += 1

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Run.result``."""
        with self._space.device:
            mel = self._space.result()
        self._report_steps()
        return mel

    def sound(self) -> DeviceSound | None:
        """See ``notewave.backends.protocol.Run.sound``."""
        if self._space.traits is None:
            return None
        return DeviceSound(self._space, self._lane, self._report_steps)

    def _report_steps(self) -> None:
        if self._job.on_step is not None:
            for _ in range(self._job.table.steps):
                self._job.on_step()


class DeviceSound:
    """A run's song through the vocoder, its mel never leaving the GPU: one copy back a segment, of audio.

    The frames that the vocoder must see again lie in one of two windows of the run's memory; what it keeps of one
    moves to the beginning of the other. Streams wait for each other by events, the host for the audio only.
    """

    def __init__(self, space: Workspace, lane: Lane, report_steps: Callable[[], None]) -> None:
        self._space, self._lane, self._report_steps = space, lane, report_steps
        assert space.traits is not None
        self._window = Window(space.traits)
        self._at, self._spare = space.windows

    def begin(self, last: bool) -> None:
        """See ``notewave.backends.protocol.Sound.begin``."""
        space, window = self._space, self._window
        row = 4 * MELS
        with space.device, self._lane() as lane:
            lane.stream.synchronize()  # another run's chunk may be under way
            end = self._at + row * window.length
            final = window.grow(FRAMES, last)
            first, length, surplus = window.first, window.length, window.shrink()
            space.hand_over(end, lane.stream)
            self._chunk = space.audio[: HOP * (final.stop - final.start)]
            if len(self._chunk):
                lane.enqueue(self._at, length, first, self._chunk, final.start)
                if window.length:
                    space.device.copy(self._spare, self._at + row * surplus, row * window.length, lane.stream)
                self._at, self._spare = self._spare, self._at
            space.sounded.record(lane.stream)

    def finish(self) -> FloatArray:
        """See ``notewave.backends.protocol.Sound.finish``."""
        with self._space.device:
            self._space.sounded.synchronize()
        self._report_steps()
        return np.clip(self._chunk, -1.0, 1.0)


@dataclass(frozen=True)
class RunShape:
    """All that decides the buffers and the launches of a run."""

    batch: int  # B
    steps: int  # S
    guided: bool
    draws: int  # noise tensors given for each segment; 0 when the kernels draw them

    @classmethod
    def of(cls, job: Job) -> RunShape:
        """Shape of a job; raises BackendError when the plans do not take it."""
        batch = len(job.seeds)
        if batch > MAX_BATCH:
            raise BackendError(
                f"{batch} songs were given at once; the plans take {MAX_BATCH}. Render them in smaller groups."
            )
        return cls(batch, job.table.steps, job.guidance != 1.0, 0 if job.noise is None else job.table.draws)

    @property
    def networks(self) -> tuple[str, ...]:
        """Networks that run for each segment, in their order."""
        return (*SEGMENT_NETWORKS, *(["unconditional_decoder"] if self.guided else []))


class Workspace:
    """Every buffer of one run, on one slab, and the programs that run on them."""

    def __init__(self, voice: Voice, engines: Engines, kernels: Mapping[str, Kernel], shape: RunShape) -> None:
        self.shape, self.engines, self.kernels, self.device = shape, engines, kernels, engines.device
        self.buckets = token_buckets(voice)
        self.contracts = voice.contracts()
        networks = (*shape.networks, "time_embedding")
        staged = Layout(self._staged_sizes())
        self.traits = voice.vocoder if shape.batch == 1 else None
        frames = vocoder_frames(voice) if self.traits else 0
        layout = Layout(
            {
                "staged": staged.total,
                **self._tensor_sizes(networks),
                "window": 4 * MELS * frames,
                "spare_window": 4 * MELS * frames,
                "x0_previous": 4 * shape.batch * FRAMES * MELS,
                "rows": ROW_BYTES * shape.steps,
                "scratch": (scratch := engines.scratch_bytes(networks)),
            }
        )
        self._schedule = b""  # the table whose FiLM is on the device
        self._programs: dict[int, Program] = {}  # by bucket
        self._slab = Slab(self.device, layout, f"a run of {shape.batch} songs at {shape.steps} steps")
        try:
            self.stream = self.device.stream()
            self.staging = Staging(self.device, staged)
            size = 4 * shape.batch * FRAMES * MELS
            self.mel = self.device.pinned(size).view(np.float32).reshape(shape.batch, FRAMES, MELS)
            self.audio = self.device.pinned(4 * HOP * max(frames, 1)).view(np.float32)
            self._denoised, self._taken, self.sounded = (self.device.event() for _ in range(3))
        except BaseException:
            self.free()
            raise
        base = self._slab.address["staged"]
        self.address = self._slab.address | {name: base + offset for name, offset in staged.offsets.items()}
        self.windows = self.address["window"], self.address["spare_window"]
        self.scratch = (self.address["scratch"], scratch)

    def begin(self, job: Job) -> None:
        """Put the schedule on the device, unless it is there, and forget the last song."""
        schedule = job.table.time.tobytes() + job.table.rows.tobytes()
        if schedule != self._schedule:
            self._put_schedule(job.table)
            self._schedule = schedule
        self.device.clear(self.address["context_mel"], self.mel.nbytes, self.stream)

    def submit(self, job: Job, segment: int, tokens: Sequence[Tokens]) -> None:
        """Stage a segment's inputs and launch its program."""
        length = max(map(len, tokens))
        bucket = next((size for size in self.buckets if size >= length), 0)
        if not bucket:
            raise BackendError(
                f"segment {segment} has {length} tokens; the plans take {self.buckets[-1]}. "
                "Split its notes over two songs."
            )
        if bucket not in self._programs:
            self._programs[bucket] = Program(self, bucket)
        self.stream.synchronize()  # the last segment may still be reading what is staged
        self._stage(job, segment, pad_tokens(tokens, bucket))
        self._programs[bucket].launch()

    def result(self) -> FloatArray:
        """Wait for the segment: mel [B, T, M]."""
        self.device.download(self.mel, self.address["x"], self.stream)
        self.stream.synchronize()
        return self.mel.copy()

    def hand_over(self, target: int, stream: Any) -> None:
        """Put the segment's log-mel at an address on another stream; the next segment waits until it is there."""
        self._denoised.record(self.stream)
        stream.wait_for_event(self._denoised)
        size = FRAMES * MELS
        self.kernels["from_network"](grid(size), stream, self.address["x"], target, LOG_SCALE, LOG_MIN, size)
        self._taken.record(stream)
        self.stream.wait_for_event(self._taken)

    def settle(self) -> None:
        """Wait for all that may be under way."""
        self.stream.synchronize()
        self.sounded.synchronize()

    def bindings(self, network: str) -> dict[str, int]:
        """Addresses of a network's inputs and outputs."""
        contract = self.contracts[network]
        return {tensor.name: self.address[_region(network, tensor)] for tensor in (*contract.inputs, *contract.outputs)}

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        for program in self._programs.values():
            program.free()
        self._slab.free()
        vars(self).clear()

    def _staged_sizes(self) -> dict[str, int]:
        """What goes to the device for each segment, in one copy."""
        batch, longest = self.shape.batch, self.buckets[-1]
        return {
            "control": 8 + 8 * batch,
            "tokens": 4 * batch * longest,
            "mask": 4 * batch * (longest + FRAMES),
            "noise": 4 * self.shape.draws * batch * FRAMES * MELS,
        }

    def _tensor_sizes(self, networks: Sequence[str]) -> dict[str, int]:
        """Every input and output of the networks at its largest, in bytes."""
        longest = self.buckets[-1]
        axes = {"B": self.shape.batch, "N": longest, "C": FRAMES, "J": longest + FRAMES, "S": self.shape.steps}
        staged = self._staged_sizes()
        return {
            region: math.prod(shape_of(tensor, axes)) * self.engines.item_bytes(network, tensor.name)
            for network in networks
            for tensor in (*self.contracts[network].inputs, *self.contracts[network].outputs)
            if (region := _region(network, tensor)) not in staged
        }

    def _put_schedule(self, table: SamplerTable) -> None:
        """Compute FiLM of every step on the device, and copy the sampler's rows there.

        Half of a decoder's weights serve only this, so their memory is given back at once.
        """
        rows = np.zeros((table.steps, ROW_BYTES // 4), np.float32)
        rows[:, :-1] = table.rows
        rows[:, -1].view(np.uint32)[...] = np.cumsum(table.noisy)  # draw 0 is the initial noise
        time = np.ascontiguousarray(table.time)
        self.device.upload(self.address["rows"], rows, self.stream)
        self.device.upload(self.address["time"], time, self.stream)
        contract = self.contracts["time_embedding"]
        row_bytes = 4 * math.prod(shape_of(contract.outputs[0], {"S": 1}))
        embed = Executor(self.engines, "time_embedding", {}, self.scratch)
        for first in range(0, table.steps, SCHEDULE_ROWS):
            films = self.address["films"] + row_bytes * first
            embed.bind({"time": self.address["time"] + time.itemsize * first, "film": films})
            embed.reshape(contract, {"S": min(SCHEDULE_ROWS, table.steps - first)})
            embed(self.stream)
        self.stream.synchronize()
        self.engines.drop("time_embedding")

    def _stage(self, job: Job, segment: int, tokens: NDArray[np.int32]) -> None:
        """Write control, tokens [B, N], mask [B, J] and given noise [draws, T, M] into page-locked memory."""
        batch, length = tokens.shape
        control = self.staging.view("control", np.uint64, (1 + batch,))
        control[:1].view(np.uint32)[0] = segment
        control[:1].view(np.float32)[1] = job.guidance
        control[1:] = np.array(job.seeds, np.uint64)
        self.staging.view("tokens", np.int32, (batch, length))[...] = tokens
        mask = self.staging.view("mask", np.float32, (batch, length + FRAMES))
        lowest = np.finfo(np.float32).min
        mask[:, :length] = np.where(tokens == PAD, lowest, 0.0)
        mask[:, length:] = 0.0 if segment else lowest
        if job.noise is not None:
            draws = self.shape.draws
            noise = self.staging.view("noise", np.float32, (draws, FRAMES, MELS))
            noise[...] = job.noise[segment * draws : (segment + 1) * draws]


class Program:
    """All launches of one segment at one padded length: eagerly the first time, then as captured graphs."""

    def __init__(self, space: Workspace, bucket: int) -> None:
        self._space = space
        axes = {"B": space.shape.batch, "N": bucket, "C": FRAMES, "J": bucket + FRAMES}
        networks = self._executors(axes)
        if space.engines.capture and not all(network.is_capturable(space.stream) for network in networks.values()):
            log.info("TensorRT cannot be captured here; leaving graphs to it")
            space.engines.capture = False
            networks = self._executors(axes)
        self._encoders = [networks[name] for name in ("note_encoder", "context_encoder", "cross_attention")]
        self._decoders = [network for name, network in networks.items() if name.endswith("decoder")]
        self._film_bytes = 4 * math.prod(shape_of(space.contracts["decoder"].inputs[1], {}))
        self._blocks = grid(FRAMES * MELS, space.shape.batch)
        self._step = space.kernels[STEP_KERNELS[space.engines.dtype("decoder", "prediction")]]
        films, rows = space.address["films"], space.address["rows"]
        steps = [
            (films + self._film_bytes * i, self._step_arguments(rows + ROW_BYTES * i)) for i in range(space.shape.steps)
        ]
        self._parts = [steps[first : first + GRAPH_STEPS] for first in range(0, len(steps), GRAPH_STEPS)]
        self._graphs: list[Graph] = []  # one a part, or none
        self._warm = False

    def launch(self) -> None:
        """Start the segment whose inputs are staged. TensorRT's first run allocates, so it is not captured."""
        space = self._space
        if self._warm and not self._graphs and space.engines.capture:
            try:
                self._graphs = self._capture()
            except BackendError as error:
                log.warning("launching without CUDA graphs: %s", error)
                space.engines.capture = False
        for graph in self._graphs:
            graph.launch(space.stream)
        if self._graphs:
            return
        for part in range(len(self._parts)):
            self._issue(part)
        if not self._warm:
            self._warm = True
            space.engines.save_caches()

    def free(self) -> None:
        """Give the graphs' memory back."""
        for graph in self._graphs:
            graph.free()
        vars(self).clear()

    def _capture(self) -> list[Graph]:
        """A graph of each part; tried twice, for other work on the GPU can spoil a capture."""
        device, stream = self._space.device, self._space.stream
        parts = [functools.partial(self._issue, part) for part in range(len(self._parts))]
        try:
            return [device.capture(stream, part) for part in parts]
        except BackendError as error:
            log.info("capturing once more: %s", error)
        return [device.capture(stream, part) for part in parts]

    def _issue(self, part: int) -> None:
        """Launch a part of the segment, in order; nothing here allocates, waits or computes."""
        space, device, stream, address = self._space, self._space.device, self._space.stream, self._space.address
        if part == 0:
            self._begin()
        for film, arguments in self._parts[part]:
            device.copy(address["film"], film, self._film_bytes, stream)
            for decoder in self._decoders:
                decoder(stream)
            self._step(self._blocks, stream, *arguments)
        if part == len(self._parts) - 1:
            to_context = space.kernels["mel_to_context"]
            to_context(self._blocks, stream, address["x"], address["context_mel"], 1.0, 0.0, FRAMES * MELS)

    def _begin(self) -> None:
        """Launch what comes before the first step: inputs, encoders, noise."""
        space, device, stream, address = self._space, self._space.device, self._space.stream, self._space.address
        device.upload(address["staged"], space.staging.memory, stream)
        for encoder in self._encoders:
            encoder(stream)
        if space.shape.draws:
            device.copy(address["x"], address["noise"], space.mel.nbytes, stream)
        else:
            space.kernels["philox_normal"](self._blocks, stream, address["x"], address["control"], 0, FRAMES * MELS)

    def _executors(self, axes: Axes) -> dict[str, Executor]:
        space, networks = self._space, {}
        for name in space.shape.networks:
            networks[name] = Executor(space.engines, name, space.bindings(name), space.scratch)
            networks[name].reshape(space.contracts[name], axes)
        return networks

    def _step_arguments(self, row: int) -> tuple[int, ...]:
        """Arguments of the sampler's kernel for one row of the table."""
        address, shape = self._space.address, self._space.shape
        unconditional = address["unconditional"] if shape.guided else 0
        noise = address["noise"] if shape.draws else 0
        state = (address["x"], address["x0_previous"], address["prediction"])
        return (*state, unconditional, noise, row, address["control"], FRAMES * MELS)


class VocoderLane:
    """The vocoder on a stream of its own, so that it sounds a segment while the next is denoised."""

    def __init__(self, voice: Voice, engines: Engines) -> None:
        self._device = engines.device
        self._contract = voice.contracts()["vocoder"]
        self._frames = vocoder_frames(voice)
        axes = {"B": MAX_BATCH, "V": self._frames}
        sizes = {
            tensor.name: math.prod(shape_of(tensor, axes)) * engines.item_bytes("vocoder", tensor.name)
            for tensor in reversed(self._contract.inputs)  # the mel last, whose end is seldom used
        }
        inputs, audio_bytes = Layout(sizes), 4 * MAX_BATCH * HOP * self._frames
        scratch = engines.scratch_bytes(["vocoder"])
        layout = Layout({"staged": inputs.total, "audio": audio_bytes, "scratch": scratch})
        self._slab = Slab(self._device, layout, "the vocoder")
        self._base, self._mel_offset = self._slab.address["staged"], inputs.offsets["mel"]
        self._address = {name: self._base + offset for name, offset in inputs.offsets.items()}
        self._address["audio"] = self._slab.address["audio"]
        try:
            self.stream = self._device.stream()
            self._staging = Staging(self._device, inputs)
            self._audio = self._device.pinned(audio_bytes).view(np.float32)
            self._network = Executor(engines, "vocoder", self._address, (self._slab.address["scratch"], scratch))
        except BaseException:
            self.free()
            raise
        self._engines, self._seen = engines, set[tuple[int, int]]()  # shapes that TensorRT has compiled for

    def free(self) -> None:
        """Give all memory back, within the GPU's context; nothing is left to be used."""
        self._slab.free()
        vars(self).clear()

    def __call__(self, mel: FloatArray, frame: int) -> FloatArray:
        """Log-mel [B, V, M] -> audio [B, HOP V]."""
        batch, frames, _ = mel.shape
        if batch > MAX_BATCH or frames > self._frames:
            raise BackendError(
                f"the vocoder was given {batch} songs of {frames} frames; its plan takes {MAX_BATCH} of {self._frames}."
                " Give it fewer at once."
            )
        audio = self._audio[: batch * HOP * frames]
        self.stream.synchronize()  # what is staged may still be read
        self._staging.view("mel", np.float32, mel.shape)[...] = mel
        self._stage_frame(frame)
        self._device.upload(self._base, self._staging.memory[: self._mel_offset + mel.nbytes], self.stream)
        self._run(batch, frames)
        self._device.download(audio, self._address["audio"], self.stream)
        self.stream.synchronize()
        return audio.reshape(batch, HOP * frames).copy()

    def enqueue(self, mel: int, frames: int, frame: int, audio: FloatArray, skipped: int) -> None:
        """Vocode log-mel [1, V, M] at a device address into page-locked audio [n], but for the first frames' samples.

        Does not wait; all that the stream was given before must have ended.
        """
        self._stage_frame(frame)
        self._device.upload(self._base, self._staging.memory[: self._mel_offset], self.stream)
        self._device.copy(self._address["mel"], mel, 4 * MELS * frames, self.stream)
        self._run(1, frames)
        self._device.download(audio, self._address["audio"] + 4 * HOP * skipped, self.stream)

    def _stage_frame(self, frame: int) -> None:
        if self._mel_offset:
            self._staging.view("frame", np.int64, (1,))[...] = frame

    def _run(self, batch: int, frames: int) -> None:
        """Launch the network on what lies at its inputs."""
        self._network.reshape(self._contract, {"B": batch, "V": frames})
        self._network(self.stream)
        if (batch, frames) not in self._seen:
            self._seen.add((batch, frames))
            self._engines.save_caches()


def _region(network: str, tensor: Tensor) -> str:
    """Name of the memory where a network's input or output lies."""
    return REGIONS.get((network, tensor.name), tensor.name)
