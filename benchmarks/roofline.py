"""How near each stage comes to what the machine can do: operations counted, ceilings measured in the same run.

The work is almost all matrix products, so the ceiling is how fast products of the decoder's shapes run by themselves.
For GPUs the same counts predict a step from datasheets; nothing of that is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from notewave.benchmarks.bench import TYPICAL_TOKENS, Settings, Trial, synthetic_song, voice_sha256
from notewave.benchmarks.ceilings import FLOAT_CEILING, INT8_CEILING, Ceilings
from notewave.benchmarks.clock import add_clock_arguments, set_clock
from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    finish,
    machine,
    new_figure,
    save_plot,
)
from notewave.contracts import NETWORKS, Dimensions
from notewave.synthesizer import DEFAULT_VOICE

COUNTED = tuple(network for network in NETWORKS if network != "vocoder")  # vocoders have shapes of their own
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


def products(
    network: str, size: Dimensions, tokens: int, context: bool = True, steps: int = 1, batch: int = 1
) -> list[Product]:
    """Every matrix product of one run of a network (a schedule of ``steps`` for the time embedding, else one step).

    context: the segment has one before it, whose mel the decoder attends to as well.
    """
    width, inner, frames, layers = size.width, size.heads * size.head_width, size.frames, size.decoder_layers
    keys = tokens + frames * context
    mel_in = Product(batch * frames, size.mels, width)
    if network == "note_encoder":
        return _blocks(size, tokens, batch, size.note_encoder_layers)
    if network == "context_encoder":
        return [mel_in, *_blocks(size, frames, batch, size.context_encoder_layers)]
    if network == "cross_attention":
        return [Product(batch * keys, width, 2 * layers * inner)]
    if network == "time_embedding":
        return [Product(steps, width, 4 * width), *(Product(steps, 4 * width, n * width) for n in (4, 4 * layers))]
    decoder = [mel_in, *_blocks(size, frames, batch, layers), Product(batch * frames, width, size.mels)]
    if network == "unconditional_decoder":
        return decoder
    queries, out = Product(batch * frames, width, inner, layers), Product(batch * frames, inner, width, layers)
    return [*decoder, queries, out, *_attention(size, frames, keys, batch, layers)]


def operations(found: Sequence[Product], weights: bool | None = None) -> int:
    """Operations of all products, or of those whose second factor is (or is not) weights."""
    return sum(product.operations for product in found if weights in (None, product.weights))


def traffic(found: Sequence[Product], weight_bytes: int, activation_bytes: int = 4) -> int:
    """Bytes that must come from memory: each second factor once."""
    return sum(p.second_factor * (weight_bytes if p.weights else activation_bytes) for p in found)


def predict(card: Card, found: Sequence[Product]) -> tuple[float, float]:
    """Seconds on a GPU in float16: a bound that nothing can beat, and a prediction that nothing has confirmed.

    The prediction runs one product after the other, in tiles: where they are fewer than multiprocessors, some idle.
    """
    bound_s = max(operations(found) / (card.tflops * 1e12), traffic(found, 2, 2) / (card.gbps * 1e9))
    predicted_s = 0.0
    for product in found:
        tiles = math.ceil(product.rows / TILE) * math.ceil(product.columns / TILE) * product.count
        busy = tiles / (math.ceil(tiles / card.multiprocessors) * card.multiprocessors)
        compute_s = product.operations / (card.tflops * 1e12 * busy)
        memory_s = 2 * product.second_factor / (card.gbps * 1e9)
        predicted_s += max(compute_s, memory_s) + product.layers * KERNEL_S
    return bound_s, predicted_s


def bound(found: Sequence[Product], weights: float, attention: float) -> float:
    """Seconds of products with weights at one rate (operations a second), and of attention's at another."""
    return operations(found, True) / weights + operations(found, False) / attention


def rates(ceilings: Sequence[Case], engine: str) -> tuple[float, float]:
    """Operations a second of an engine's products with weights and of attention's, which integers leave to float32."""
    figures = {str(case.settings["ceiling"]): case.figures for case in ceilings}
    attention = figures[engine].get("attention_gflops", figures[FLOAT_CEILING]["attention_gflops"])
    return figures[engine]["weights_gflops"].median * 1e9, attention.median * 1e9


def step_bounds(ceilings: Sequence[Case], found: Sequence[Product]) -> list[Case]:
    """The ceilings, each with what it leaves as the least time of a denoising step of these products."""
    bounded = []
    for case in ceilings:
        step_s = bound(found, *rates(ceilings, str(case.settings["ceiling"])))
        bounded.append(Case(case.settings, {"step_bound_s": Spread.of([step_s]), **case.figures}))
    return bounded


def stage_cases(trial: Trial, ceilings: Sequence[Case]) -> list[Case]:
    """Each stage of a trial that was played: operations, bytes, and how near it comes to the ceilings.

    A stage's bound is its products at ONNX Runtime's ceilings: those with weights at the one for the voice's precision,
    attention's at that for float32. The keys and values of the cross-attention are float32 in every voice.
    """
    int8 = trial.voice.precision == "int8"
    tokens = int(np.median([len(segment) for segment in trial.song]))
    cases = []
    for network in COUNTED:
        measured = trial.values.get(f"{network}_s")
        if not measured:
            continue
        found = products(
            network, trial.voice.dimensions, tokens, steps=trial.job.table.steps, batch=len(trial.job.seeds)
        )
        integer = int8 and network.endswith(("encoder", "decoder"))
        bound_s = bound(found, *rates(ceilings, INT8_CEILING if integer else FLOAT_CEILING))
        figures = {
            "measured_s": Spread.of(measured),
            "gflop": Spread.of([operations(found) * 1e-9]),
            "memory_mib": Spread.of([traffic(found, 1 if integer else 4) / 2**20]),
            "bound_s": Spread.of([bound_s]),
            "achieved_gflops": Spread.of(operations(found) * 1e-9 / np.array(measured)),
            "of_ceiling": Spread.of(bound_s / np.array(measured)),
        }
        cases.append(Case({"stage": network, "precision": trial.voice.precision, "tokens": tokens}, figures))
    return cases


def card_cases(size: Dimensions, tokens: int, batch: int = 1) -> list[Case]:
    """A denoising step on each of CARDS in float16: predictions."""
    found = products("decoder", size, tokens, batch=batch)
    cases = []
    for card in CARDS:
        bound_s, predicted_s = predict(card, found)
        figures = {"bound_s": Spread.of([bound_s]), "predicted_s": Spread.of([predicted_s])}
        cases.append(Case({"card": card.name, "source": "prediction from the datasheet, not measured"}, figures))
    return cases


def _blocks(size: Dimensions, rows: int, batch: int, layers: int) -> list[Product]:
    """Self-attention and feed-forward over a sequence."""
    width, inner, hidden = size.width, size.heads * size.head_width, size.feed_forward
    shapes = ((width, 3 * inner), (inner, width), (width, 2 * hidden), (hidden, width))
    linear = [Product(batch * rows, *shape, layers) for shape in shapes]
    return [*linear, *_attention(size, rows, rows, batch, layers)]


def _attention(size: Dimensions, queries: int, keys: int, batch: int, layers: int) -> list[Product]:
    heads = batch * size.heads
    return [
        Product(queries, size.head_width, keys, layers, heads, weights=False),
        Product(queries, keys, size.head_width, layers, heads, weights=False),
    ]


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
    facts = machine()
    settings = Settings(options.voice, "cpu", options.threads, None, options.steps, options.guidance, 1, options.tokens)
    trial = Trial(settings, synthetic_song(options.tokens, 2))
    size = trial.voice.dimensions
    repeated = [p for p in products("decoder", size, options.tokens) if p.layers > 1]
    shapes = {(p.rows, p.inner, p.columns) if p.weights else (p.count, p.rows, p.inner, p.columns) for p in repeated}
    weights, attention = ([shape for shape in sorted(shapes) if len(shape) == length] for length in (3, 4))
    ceilings = Ceilings(weights, attention, options.threads)
    for round_ in range(options.repeat + 1):  # in turn, so that both see the same machine
        ceilings.play()
        trial.play()
        if round_ == 0:  # the warm-up
            ceilings.seconds.clear()
            trial.values.clear()
    parts = [
        step_bounds(ceilings.cases(), products("decoder", size, options.tokens)),
        stage_cases(trial, ceilings.cases()),
        card_cases(size, options.tokens),
    ]
    voices = {f"{trial.voice.name} {trial.voice.precision}": voice_sha256(trial.voice)}
    result = Result("roofline", facts, voices, [case for part in parts for case in part])
    tables = [dataclasses.replace(result, cases=part).table() for part in parts]
    finish(result, options, "\n\n".join([*tables[:2], "Predictions, not measured:\n" + tables[2]]), save_roofline_plot)


def save_roofline_plot(result: Result, path: str) -> None:
    """Draw each stage's share of its bound."""
    cases = [case for case in result.cases if "of_ceiling" in case.figures]
    figure = new_figure(8, 1 + 0.4 * len(cases))
    axis = figure.subplots()
    axis.barh([str(case.settings["stage"]) for case in cases], [case.figures["of_ceiling"].median for case in cases])
    axis.axvline(1.0, color="black")
    axis.set(xlabel="share of the speed of its matrix products alone", title=result.machine["processor"])
    save_plot(figure, path)
