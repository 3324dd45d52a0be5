"""What ``torch.save`` writes for named tensors, read without calling or importing anything that it names.

A pickle is a program for a machine with a stack. This machine has only the instructions that a dict of tensors needs,
or passes over what the others make; what they name stays a name, and what they call is noted, not called. So its work
and its memory are in proportion to the program's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from notewave.checks import quoted
from notewave.export.checkpoints.records import is_shape

PROTOCOL = 2  # of every torch.save so far, unless asked for another


@dataclass(frozen=True)
class Symbol:
    """The name of a class or function, which is never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers of one type in a record of the file, as the pickle has it."""

    kind: str  # "torch.FloatStorage"
    key: str  # the record's name
    count: int  # of numbers


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as the pickle has it; offset and strides in numbers, not checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Unmade:
    """What a function would have made of its arguments that is not called here."""

    function: str


def read_pickle(program: bytes, *, passing_over: bool = False) -> Any:
    """What a pickle holds: dicts, tuples, texts and numbers, and the types above; nothing else.

    passing_over: lists, sets and objects of any class, which a dict of tensors does not need, stand there as Unmade,
    without what was put into them, and dicts without the items whose keys are no texts. Otherwise raises ValueError
    with a reason where it has any; also, either way, for what is no pickle.
    """
    return (_Passing if passing_over else _Machine)(program).run()


class _Machine:
    """A program, how far it has run, and what it has made."""

    def __init__(self, program: bytes) -> None:
        self._program, self._at = program, 0
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self._take(1) != b"\x80" or self._number("<B") != PROTOCOL:
            raise ValueError(f"it is no pickle of protocol {PROTOCOL}")
        while (code := self._take(1)) != b".":
            step = self.step(code)
            if step is None:
                raise ValueError(f"it has the instruction {code!r}, which no dict of tensors needs")
            step(self)
        if len(self._stack) != 1 or self._at != len(self._program):
            raise ValueError("it does not end where it should")
        return self._stack[0]

    def step(self, code: bytes) -> Callable[[Any], None] | None:
        """What an instruction does to the machine; None where it has no such instruction."""
        return _STEPS.get(code)

    def _take(self, size: int) -> bytes:
        part = self._program[self._at : self._at + size]
        if len(part) != size:
            raise ValueError("it is cut short")
        self._at += size
        return part

    def _number(self, layout: str) -> Any:
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return number

    def _line(self) -> str:
        end = self._program.find(b"\n", self._at)
        if not self._at <= end <= self._at + 200:
            raise ValueError("it names something too long")
        line = self._take(end - self._at).decode("ascii")
        self._at += 1
        return line

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes what is not there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("it takes what is not there")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_number(self, layout: str) -> None:
        self.push(self._number(layout))

    def push_long(self) -> None:
        self.push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def push_text(self) -> None:
        self.push(self._take(self._number("<I")).decode("utf-8"))

    def push_symbol(self) -> None:
        module = self._line()
        self.push(Symbol(f"{module}.{self._line()}"))

    def push_tuple(self, size: int | None) -> None:
        items = self._pop_to_mark() if size is None else [self._pop() for _ in range(size)][::-1]
        self.push(tuple(items))

    def put(self, layout: str) -> None:
        value = self._pop()
        self._memo[self._number(layout)] = value
        self.push(value)

    def get(self, layout: str) -> None:
        number = self._number(layout)
        if number not in self._memo:
            raise ValueError("it takes what is not there")
        self.push(self._memo[number])

    def set_items(self, items: list[Any]) -> None:
        target = self._pop()
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it puts items into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in target:
                raise ValueError(f"it has a dict with the key {quoted(key)}, which is no name or is there twice")
            target[key] = value
        self.push(target)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def set_many_items(self) -> None:
        self.set_items(self._pop_to_mark())

    def build(self) -> None:
        """Attributes of an OrderedDict, as every state_dict has: its modules' versions, which nothing here needs."""
        state, target = self._pop(), self._pop()
        if not isinstance(state, dict) or not isinstance(target, dict):
            raise ValueError("it gives attributes to what is no dict")
        self.push(target)

    def load_storage(self) -> None:
        match self._pop():
            case ("storage", Symbol(kind), str(key), str(), int(count)):
                self.push(Storage(kind, key, count))
            case _:
                raise ValueError("it refers to what is no storage")

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        self.push(self.result(function, arguments))

    def result(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call."""
        if not isinstance(function, Symbol):
            raise ValueError("it calls what is no function")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "torch._utils._rebuild_parameter", (PickledTensor() as tensor, bool(), dict(hooks)) if not hooks:
                return tensor
            case "torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, bool(), dict(hooks)) if not hooks:
                return _tensor(storage, offset, shape, strides)
        return Unmade(function.name)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    if not isinstance(storage, Storage) or not is_shape((offset,)):
        raise ValueError("it has a tensor without numbers")
    if not (isinstance(shape, tuple) and is_shape(shape) and isinstance(strides, tuple) and is_shape(strides)):
        raise ValueError("it has a tensor of a shape or strides that cannot be")
    if len(shape) != len(strides):
        raise ValueError("it has a tensor with other axes than strides")
    return PickledTensor(storage, offset, shape, strides)


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"(": _Machine.mark,
    b"}": lambda machine: machine.push({}),
    b")": lambda machine: machine.push(()),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"K": lambda machine: machine.push_number("<B"),
    b"M": lambda machine: machine.push_number("<H"),
    b"J": lambda machine: machine.push_number("<i"),
    b"G": lambda machine: machine.push_number(">d"),
    b"\x8a": _Machine.push_long,
    b"X": _Machine.push_text,
    b"c": _Machine.push_symbol,
    b"t": lambda machine: machine.push_tuple(None),
    b"\x85": lambda machine: machine.push_tuple(1),
    b"\x86": lambda machine: machine.push_tuple(2),
    b"\x87": lambda machine: machine.push_tuple(3),
    b"q": lambda machine: machine.put("<B"),
    b"r": lambda machine: machine.put("<I"),
    b"h": lambda machine: machine.get("<B"),
    b"j": lambda machine: machine.get("<I"),
    b"s": _Machine.set_item,
    b"u": _Machine.set_many_items,
    b"b": lambda machine: machine.build(),
    b"Q": _Machine.load_storage,
    b"R": lambda machine: machine.call(),
}


class _Passing(_Machine):
    """A machine with instructions for lists and objects as well, of which it keeps only that they were made."""

    def step(self, code: bytes) -> Callable[[Any], None] | None:
        return _PASSING_STEPS.get(code) or super().step(code)

    def set_items(self, items: list[Any]) -> None:
        target = self._pop()
        self.push(target)
        if not isinstance(target, Unmade):
            pairs = zip(items[::2], items[1::2], strict=True)
            super().set_items([part for pair in pairs if isinstance(pair[0], str) for part in pair])

    def append(self) -> None:
        self._pop()
        self._check_object(self._stack[-1:])

    def append_many(self) -> None:
        self._pop_to_mark()
        self._check_object(self._stack[-1:])

    def build(self) -> None:
        self._pop()
        self._check_object(self._stack[-1:])

    def make_object(self) -> None:
        _, kind = self._pop(), self._pop()
        self.push(self.result(kind, None))

    def result(self, function: Any, arguments: Any) -> Any:
        return function if isinstance(function, Unmade) else super().result(function, arguments)

    def _check_object(self, top: list[Any]) -> None:
        if not (top and isinstance(top[0], (dict, Unmade))):
            raise ValueError("it puts something into what holds nothing")


_PASSING_STEPS: dict[bytes, Callable[[_Passing], None]] = {
    b"]": lambda machine: machine.push(Unmade("builtins.list")),
    b"a": _Passing.append,
    b"e": _Passing.append_many,
    b"\x81": _Passing.make_object,
}
