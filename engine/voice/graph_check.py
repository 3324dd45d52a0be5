"""Whether a graph of a voice may be opened: what it is made of, and how much memory and work it asks for.

A runtime does whatever a graph says: fills gigabytes while it loads, or never ends. So before it is given one, the
graph is walked through here with sizes in the place of numbers, for the largest segment that its contract allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from notewave.errors import VoiceError
from notewave.song.codec import MAX_TOKENS
from notewave.sound.mel import FRAMES
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import Contract, Dimensions, Tensor
from notewave.voice.graph_reader import ELEMENTS, Graph, Node
from notewave.voice.operators import FLOAT, Inputs, Value, volume
from notewave.voice.rules import RULES, constant
from notewave.voice.sizes import Polynomial, Ranges, Size, times

MAX_NODES = 8192  # the published size has 1300
MAX_BATCH = 16  # songs side by side that sizes are computed for; shares are each song's
MAX_HELD = 1 << 29  # numbers at once for one song, 2 GiB in float32, however large a voice says it is
VOCODER_HELD = 1 << 27  # a vocoder's, whose sizes the voice does not say; the bundled one's are 5 million
SLACK = 2  # so many times what networks of the voice's sizes hold, and have as weights, any may
MORE_WEIGHTS = 1 << 22  # and so many weights beside
MAX_WORK = 1 << 41  # multiplications of a run for one song; the published size has up to 0.3e12
EACH = 64  # multiplications that making a number takes the time of, if it is no product's
CONSTANTS = 4  # so many times its weights a graph may make of them before a song comes
MORE_CONSTANTS = 1 << 24  # and so many numbers beside
STEPS = 256  # of a schedule, that sizes are computed for
DOMAINS = ("", "ai.onnx")


def check_graph(graph: Graph, contract: Contract, size: Dimensions, vocoder: VocoderTraits | None) -> None:
    """Refuse a graph that is none of a voice's, or takes too much. Raises VoiceError.

    vocoder: where the graph is one, how far it sees, which says how many frames it is given at once.
    """
    try:
        weights = sum(weight.size for weight in graph.weights.values())
        if not vocoder and weights > (most := SLACK * _weights_of(size) + MORE_WEIGHTS):
            raise _Refused(f"has {weights} weights, where a voice of its sizes has {most} at most")
        most_held = VOCODER_HELD if vocoder else _held_by(size)
        _Walk(graph, contract, most_held, _letters(size.max_tokens, vocoder)).go()
    except _Refused as error:
        raise VoiceError(f"it {error}. Do not trust this voice.") from error
    except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
        raise VoiceError(f"it does not fit together ({error}). Copy or export the voice again.") from error


def _held_by(size: Dimensions) -> int:
    """The most numbers that a network may hold at once for a song: a multiple of what is due, within bounds."""
    most = max(size.max_tokens, MAX_TOKENS)
    keys, inner = most + FRAMES, size.heads * size.head_width
    scores = 2 * size.heads * most * keys
    streams = keys * (8 * size.width + 4 * inner + 4 * size.feed_forward)
    between = 2 * size.decoder_layers * keys * inner + 4 * STEPS * size.decoder_layers * size.width
    return min(SLACK * (scores + streams + between), MAX_HELD)


def _weights_of(size: Dimensions) -> int:
    """How many weights the networks of a voice have, its vocoder apart."""
    width, inner = size.width, size.heads * size.head_width
    layers = size.note_encoder_layers + size.context_encoder_layers + size.decoder_layers
    within = layers * (4 * width * inner + 3 * width * size.feed_forward + 4 * width)
    across = size.decoder_layers * (4 * width * inner + 16 * width * width)
    tables = (size.vocabulary + size.max_tokens + 2 * size.frames + 3 * size.mels + 20 * width) * width
    return within + across + tables


class _Refused(Exception):
    pass


@dataclass
class _Tally:
    """What a graph takes, in numbers and multiplications, at most."""

    held: int = 0  # at the moment
    work: int = 0
    constants: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # of the values that are held


class _Walk:
    """One walk through a graph."""

    def __init__(self, graph: Graph, contract: Contract, most_held: int, letters: dict[str, tuple[int, int]]) -> None:
        self._graph, self._contract, self._most_held = graph, contract, most_held
        self._ranges = Ranges(letters)
        self._values = {name: constant(weight) for name, weight in graph.weights.items()}
        self._last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
        self._tally = _Tally()
        self._weights = sum(weight.size for weight in graph.weights.values())

    def go(self) -> None:
        """Walk through it."""
        graph = self._graph
        if len(graph.nodes) > MAX_NODES:
            raise _Refused(f"has {len(graph.nodes)} nodes, over {MAX_NODES}")
        for declared, tensors in ((graph.inputs, self._contract.inputs), (graph.outputs, self._contract.outputs)):
            names, due = [value.name for value in declared], [tensor.name for tensor in tensors]
            if names != due:
                raise ValueError(f"it has {', '.join(names)}, where {', '.join(due)} are due")
        for tensor in self._contract.inputs:
            self._define(tensor.name, _given(tensor))
        for at, node in enumerate(graph.nodes):
            self._run(node)
            for name in set(node.inputs):
                if self._last[name] == at:
                    self._tally.held -= self._tally.sizes.pop(name, 0)
        for value in graph.outputs:
            if value.name not in self._values:
                raise ValueError(f"nothing makes {value.name}")

    def _run(self, node: Node) -> None:
        rule = RULES.get(node.operator)
        if rule is None or node.domain not in DOMAINS:
            raise _Refused(f"uses {node.domain + ':' * bool(node.domain)}{node.operator}, which voices have no use for")
        if any(name and name not in self._values for name in node.inputs):
            raise ValueError(f"a {node.operator} takes what is not made before it")
        inputs = [self._values[name] if name else None for name in node.inputs]
        try:
            made = rule(Inputs(node, inputs, self._ranges))
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"a {node.operator}: {error}") from error
        if len(node.outputs) > len(made.shapes):
            raise ValueError(f"a {node.operator} has {len(node.outputs)} outputs")
        is_constant = all(value is None or value.is_constant for value in inputs)
        elements = made.elements or (inputs[0].element if inputs and inputs[0] else FLOAT,) * len(made.shapes)
        for name, shape, element in zip(node.outputs, made.shapes, elements, strict=False):
            if name:
                content = made.content if len(made.shapes) == 1 else None
                self._define(name, Value(shape, element, content, is_constant))
        self._count(node, self._most(made.multiplications), self._most(made.hidden))

    def _define(self, name: str, value: Value) -> None:
        if not name or name in self._values:
            raise ValueError(f"{name or 'nothing'} is made twice")
        if any(isinstance(size, int) and size < 0 for size in value.shape):
            raise ValueError(f"{name} has the shape {list(value.shape)}")
        self._values[name] = value
        size = self._most(volume(value.shape))
        tally = self._tally
        tally.sizes[name] = size
        tally.held += size
        tally.work += EACH * size
        tally.constants += size * value.is_constant

    def _count(self, node: Node, multiplications: int, hidden: int) -> None:
        """Hold what was counted, after a node, to what may be."""
        tally = self._tally
        tally.work += multiplications
        if tally.held + hidden > self._most_held:
            held = tally.held + hidden
            raise _Refused(f"holds up to {held} numbers at once for a song ({node.operator}), over {self._most_held}")
        if tally.work > MAX_WORK:
            raise _Refused(f"takes up to {tally.work} multiplications for a segment")
        if tally.constants > CONSTANTS * self._weights + MORE_CONSTANTS:
            raise _Refused(f"makes {tally.constants} numbers of the {self._weights} of its weights")

    def _most(self, size: Size) -> int:
        """The most that a size can be for one song."""
        return max(0, self._ranges.most_each(size, "B"))


def _letters(max_tokens: int, vocoder: VocoderTraits | None) -> dict[str, tuple[int, int]]:
    """How large each letter of the contracts can be, in a voice of so many tokens a segment."""
    reach = vocoder.left_frames + 2 * vocoder.right_frames if vocoder else 0
    return {
        "B": (1, MAX_BATCH),
        "N": (1, max_tokens),
        "C": (0, FRAMES),
        "J": (1, max_tokens + FRAMES),
        "S": (1, STEPS),
        "T": (1, FRAMES),
        "V": (1, FRAMES + reach),
    }


def _given(tensor: Tensor) -> Value:
    """What a contract says of an input."""
    shape: list[Size] = []
    for axis in tensor.shape:
        if isinstance(axis, int):
            shape.append(axis)
        else:
            factor, _, letter = axis.rpartition("*")
            shape.append(times(int(factor or 1), Polynomial({(letter,): 1})))
    (element,) = (number for number, (name, _) in ELEMENTS.items() if name == tensor.dtype)
    return Value(tuple(shape), element)
