"""How near each stage comes to what the machine can do: work counted, ceilings measured in the same run.

The work is almost all matrix products, so one ceiling is how fast products of the decoder's shapes run by themselves,
the other how fast weights stream from memory: a stage takes at least the longer of its operations at the one and its
bytes at the other. For GPUs the decoder's shapes predict a step from datasheets; nothing of that is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.backends.ort.sessions import open_session
from notewave.benchmarks.ceilings import FLOAT_CEILING, INT8_CEILING, MEMORY_CEILING, Ceilings
from notewave.benchmarks.clock import add_clock_arguments, set_clock
from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    heading,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.speed import synthetic_song
from notewave.benchmarks.trial import TYPICAL_TOKENS, Settings, Trial
from notewave.sound.mel import FRAMES, HOP, MELS
from notewave.sound.stream import VocoderStream, VocoderTraits
from notewave.synthesizer import DEFAULT_VOICE
from notewave.voice.contracts import NETWORKS, Dimensions
from notewave.voice.folder import Voice

OPERATORS = ("MatMul", "Gemm", "MatMulInteger", "Conv", "ConvInteger", "ConvTranspose", "Attention")  # that are counted
NUMBER_BYTES = {"int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "float": 4, "double": 8}  # by ONNX Runtime's name
TILE = 128  # rows and columns of a product that one multiprocessor of a GPU works on at a time
KERNEL_S = (
    4e-6  # assumed for each product on a GPU: its kernel's start and end, and the elementwise work between products
)


@dataclass(frozen=True)
class Product:
    """Matrix products [rows, inner] x [inner, columns]: ``count`` of them side by side, ``layers`` times in turn."""

    rows: int
    inner: int
    columns: int
    layers: int = 1
    count: int = 1
    weights: bool = True  # the second factor is the voice's, else it is activations
    number_bytes: int = 4  # of each number of the second factor as it is read: 1 where integers are multiplied

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.count * self.layers

    @property
    def second_factor(self) -> int:
        """Numbers in the second factors: weights, or keys and values."""
        return self.inner * self.columns * self.count * self.layers


@dataclass(frozen=True)
class Card:
    """A GPU by its datasheet: dense float16 with float32 accumulation."""

    name: str
    tflops: float  # 10^12 operations a second
    gbps: float  # 10^9 bytes a second
    multiprocessors: int


CARDS = (
    Card("T4", 65, 320, 40),
    Card("L4", 121, 300, 58),
    Card("A10", 125, 600, 72),
    Card("RTX 4090", 165, 1008, 128),
    Card("A100 80GB", 312, 2039, 108),
    Card("H100 SXM", 989, 3350, 132),
)


def products(size: Dimensions, tokens: int, context: bool = True, batch: int = 1) -> list[Product]:
    """Every matrix product of a denoising step of the decoder, as its shapes have it.

    context: the segment has one before it, whose mel the decoder attends to as well.
    """
    width, inner, hidden, layers = size.width, size.heads * size.head_width, size.feed_forward, size.decoder_layers
    rows = batch * size.frames
    shapes = ((width, 3 * inner), (inner, width), (width, inner), (inner, width), (width, 2 * hidden), (hidden, width))
    linear = [Product(rows, *shape, layers) for shape in shapes]
    attention = [
        Product(size.frames, *shape, layers, batch * size.heads, weights=False)
        for keys in (size.frames, tokens + size.frames * context)
        for shape in ((size.head_width, keys), (keys, size.head_width))
    ]
    return [Product(rows, size.mels, width), *linear, *attention, Product(rows, width, size.mels)]


def operations(found: Sequence[Product]) -> int:
    """Operations of all products."""
    return sum(product.operations for product in found)


def trace(voice: Voice, network: str, sizes: dict[str, int]) -> tuple[list[Product], int]:
    """Run a graph once: the products of OPERATORS in it, and the bytes of its inputs, outputs and products' weights.

    ONNX Runtime's record of the run tells the shapes, whatever they depend on. Weights count as a run finds them, its
    constants folded: float16 storage has become float32. sizes: of the contract's axes, by letter.
    """
    import onnxruntime

    contract = voice.contracts()[network]
    inputs: dict[str, NDArray[Any]] = {
        tensor.name: np.zeros(tensor.shape_at(sizes), tensor.dtype) for tensor in contract.inputs
    }
    with tempfile.TemporaryDirectory() as folder:

        def settings() -> Any:
            made = onnxruntime.SessionOptions()
            made.intra_op_num_threads = 1
            made.log_severity_level = 3
            made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # ONNX's own operators
            made.add_session_config_entry("session.disable_prepacking", "1")  # the record has no packed weights
            made.enable_profiling = True
            made.profile_file_prefix = str(Path(folder) / network)
            return made

        session = open_session(voice, network, settings)
        outputs: list[NDArray[Any]] = session.run(None, inputs)
        record = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in record if event.get("args", {}).get("op_name") in OPERATORS]
    found = [product for node in nodes for product in _recorded(node)]
    weights = sum(product.second_factor * product.number_bytes for product in found if product.weights)
    return found, weights + sum(array.nbytes for array in (*inputs.values(), *outputs))


def _recorded(node: dict[str, Any]) -> list[Product]:
    """The products of one node of ONNX Runtime's record, by the shapes of what it took and gave."""
    operator = node["op_name"]
    x, y, *_ = [shape for tensor in node["input_type_shape"] for shape in tensor.values()]
    (out,) = node["output_type_shape"][0].values()
    if operator == "Attention":
        *heads, queries, width = x  # heads may lie side by side in the width: as many operations
        keys, count = y[-2], math.prod(heads)
        shapes = ((width, keys), (keys, out[-1]))
        return [Product(queries, *shape, count=count, weights=False) for shape in shapes]
    number_bytes = NUMBER_BYTES[next(iter(node["input_type_shape"][1]))]
    constant = int(node["parameter_size"]) >= math.prod(y) * number_bytes
    if operator == "ConvTranspose":
        count = out[1] // y[1]
        rows, inner, columns = x[0] * math.prod(x[2:]), y[0] // count, math.prod(y[1:])
    elif operator.startswith("Conv"):
        count = x[1] // y[1]
        rows, inner, columns = out[0] * math.prod(out[2:]), math.prod(y[1:]), y[0] // count
    else:
        count, columns = math.prod(y[:-2]), out[-1] if len(y) > 1 else 1
        inner = math.prod(y) // (count * columns)
        rows = math.prod(out) // (count * columns)
    return [Product(rows, inner, columns, 1, count, constant, number_bytes)]


def windows(traits: VocoderTraits, segments: int) -> list[int]:
    """Frames that the vocoder is given at once, in turn, while a song of so many segments streams."""
    given: list[int] = []

    def vocode(mel: NDArray[np.float32], frame: int) -> NDArray[np.float32]:
        given.append(mel.shape[1])
        return np.zeros((1, HOP * mel.shape[1]), np.float32)

    stream = VocoderStream(vocode, traits)
    for segment in range(segments):
        stream.push(np.zeros((FRAMES, MELS), np.float32), last=segment == segments - 1)
    return given


def datasheet_times(card: Card, found: Sequence[Product]) -> tuple[float, float]:
    """Seconds on a GPU in float16: a bound that nothing can beat, and a prediction that nothing has confirmed.

    The prediction runs one product after the other, in tiles: where they are fewer than multiprocessors, some idle.
    """
    bound_s = max(operations(found) / (card.tflops * 1e12), sum(2 * p.second_factor for p in found) / (card.gbps * 1e9))
    predicted_s = 0.0
    for product in found:
        tiles = math.ceil(product.rows / TILE) * math.ceil(product.columns / TILE) * product.count
        busy = tiles / (math.ceil(tiles / card.multiprocessors) * card.multiprocessors)
        compute_s = product.operations / (card.tflops * 1e12 * busy)
        memory_s = 2 * product.second_factor / (card.gbps * 1e9)
        predicted_s += max(compute_s, memory_s) + product.layers * KERNEL_S
    return bound_s, predicted_s


def compute_s(found: Sequence[Product], floats: float, integers: float, attention: float) -> float:
    """Seconds of products at these rates (operations a second): with weights, by their numbers, and of attention."""
    weights = {True: integers, False: floats}  # by whether they are of one byte
    return sum(p.operations / (weights[p.number_bytes == 1] if p.weights else attention) for p in found)


def rates(ceilings: Sequence[Case], engine: str) -> tuple[float, float]:
    """Operations a second of an engine's products with weights and of attention's, which integers leave to float32."""
    figures = {str(case.settings["ceiling"]): case.figures for case in ceilings}
    attention = figures[engine].get("attention_gflops", figures[FLOAT_CEILING]["attention_gflops"])
    return figures[engine]["weights_gflops"].median * 1e9, attention.median * 1e9


def bandwidth(ceilings: Sequence[Case]) -> float:
    """Bytes a second that come from memory."""
    (figures,) = (case.figures for case in ceilings if case.settings["ceiling"] == MEMORY_CEILING)
    return figures["memory_gbps"].median * 1e9


def step_times(ceilings: Sequence[Case], found: Sequence[Product]) -> list[Case]:
    """The ceilings, each with the time it leaves the products of a denoising step if it multiplies all weights."""
    timed = []
    for case in ceilings:
        figures = case.figures
        if "weights_gflops" in figures:
            weights, attention = rates(ceilings, str(case.settings["ceiling"]))
            figures = {"step_compute_s": Spread.of([compute_s(found, weights, weights, attention)]), **figures}
        timed.append(Case(case.settings, figures))
    return timed


def stage_work(trial: Trial, network: str) -> tuple[list[Product], int, int]:
    """Products and bytes of a stage, and how many of its measured times they make.

    They are one run's, in a segment that has one before it; the vocoder's, whose time is a share of the song's, are all
    of the song's.
    """
    tokens, traits = len(trial.song[-1]), trial.voice.vocoder
    sizes = {"N": tokens, "C": FRAMES, "T": FRAMES, "J": tokens + FRAMES, "S": trial.steps, "B": trial.settings.batch}
    if network != "vocoder" or traits is None:
        return *trace(trial.voice, network, sizes), 1
    runs = [trace(trial.voice, network, {"B": 1, "V": frames}) for frames in windows(traits, len(trial.song))]
    return [product for found, _ in runs for product in found], sum(moved for _, moved in runs), len(trial.song)


def stage_cases(trial: Trial, ceilings: Sequence[Case]) -> list[Case]:
    """Each stage of a trial that was played: operations, bytes, and how near it comes to the ceiling that binds it.

    That is computing's or memory's, whichever asks for more time: the figure's name tells. Products run at ONNX
    Runtime's ceilings, those with weights at that of the numbers these are stored in, attention's at float32's. A stage
    whose bytes stay in a cache from run to run can exceed the memory's ceiling.
    """
    (floats, attention), (integers, _) = (rates(ceilings, engine) for engine in (FLOAT_CEILING, INT8_CEILING))
    cases = []
    for network in NETWORKS:
        if not (measured := trial.values.get(f"{network}_s")):
            continue
        found, moved, times = stage_work(trial, network)
        all_s = times * np.array(measured)
        bounds = {
            "compute": compute_s(found, floats, integers, attention),
            "memory": moved / bandwidth(ceilings),
        }
        binding = max(bounds, key=bounds.__getitem__)
        figures = {
            "measured_s": Spread.of(measured),
            "gflop": Spread.of([operations(found) * 1e-9 / times]),
            "memory_mib": Spread.of([moved / 2**20 / times]),
            "bound_s": Spread.of([bounds[binding] / times]),
            "achieved_gflops": Spread.of(operations(found) * 1e-9 / all_s),
            "achieved_gbps": Spread.of(moved * 1e-9 / all_s),
            f"of_{binding}_ceiling": Spread.of(bounds[binding] / all_s),
        }
        cases.append(
            Case({"stage": network, "precision": trial.voice.precision, "tokens": len(trial.song[-1])}, figures)
        )
    return cases


def card_cases(size: Dimensions, tokens: int, batch: int = 1) -> list[Case]:
    """A denoising step on each of CARDS in float16: predictions."""
    found = products(size, tokens, batch=batch)
    cases = []
    for card in CARDS:
        bound_s, predicted_s = datasheet_times(card, found)
        figures = {"bound_s": Spread.of([bound_s]), "predicted_s": Spread.of([predicted_s])}
        cases.append(Case({"card": card.name, "source": "prediction from the datasheet, not measured"}, figures))
    return cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench roofline``."""
    parser.add_argument("--voice", default=DEFAULT_VOICE, help="a bundled name or a folder")
    parser.add_argument("--tokens", type=int, default=TYPICAL_TOKENS, help="of a segment")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps to time in a segment (default 8)")
    parser.add_argument("--guidance", type=float, help="weight; 1 for none (default: the voice's)")
    add_clock_arguments(parser)
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench roofline`` with parsed options."""
    set_clock(options)
    check_counts(repeats=options.repeat)
    facts = machine()
    settings = Settings(options.voice, "cpu", options.threads, None, options.steps, options.guidance, 1, options.tokens)
    trial = Trial(settings, synthetic_song(options.tokens, 2, Voice.load(settings.voice).dialect))
    size = trial.voice.dimensions
    step = products(size, options.tokens)
    layers = [p for p in step if p.layers > 1]
    shapes = {(p.rows, p.inner, p.columns) if p.weights else (p.count, p.rows, p.inner, p.columns) for p in layers}
    weights, attention = ([shape for shape in sorted(shapes) if len(shape) == length] for length in (3, 4))
    ceilings = Ceilings(weights, attention, options.threads)
    for round_ in range(options.repeat + 1):  # in turn, so that both see the same machine
        ceilings.play()
        trial.play()
        if round_ == 0:  # the warm-up
            ceilings.seconds.clear()
            trial.values.clear()
    parts = [
        step_times(ceilings.cases(), step),
        stage_cases(trial, ceilings.cases()),
        card_cases(size, options.tokens),
    ]
    result = Result("roofline", facts, voice_sums([trial.voice]), [case for part in parts for case in part])
    tables = [dataclasses.replace(result, cases=part).table() for part in parts]
    finish(result, options, "\n\n".join([*tables[:2], "Predictions, not measured:\n" + tables[2]]), save_roofline_plot)


def save_roofline_plot(result: Result, path: str) -> None:
    """Draw each stage's share of its bound."""
    shares = {
        f"{case.settings['stage']} ({heading(name)})": figure.median
        for case in result.cases
        for name, figure in case.figures.items()
        if name.startswith("of_")
    }
    figure = new_figure(8, 1 + 0.4 * len(shares))
    axis = figure.subplots()
    axis.barh([*shares], [*shares.values()])
    axis.axvline(1.0, color="black")
    axis.set(xlabel="achieved over ceiling", title=result.machine["processor"])
    save_plot(figure, path)
