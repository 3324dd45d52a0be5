"""Changes of JSON: other types, huge and odd numbers, depth, keys twice, what is no text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fuzz_mutators.chance import Chance, Unfit

# Values as JSON writes them, or as its readers take them though it does not.
VALUES = ["null", "true", "false", "0", "-1", "1", "2.0", "1e3", "0.5", "-0.0", "1e999", "NaN", "Infinity", "1e-400"]
VALUES += ["{}", "[]", "[[]]", "[null]", "[true]", '""', '" "']
VALUES += [str(number) for number in (1 << 31, 1 << 32, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**400)]
VALUES += ["9" * 5000, '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\\u202e"', '"\\udc80x"', '{"a": {}}', "[1, 2, 3]"]
VALUES += ['"../x"', '"/etc/hostname"', '"."', '".."', '"a/b"', '"."', '"é"', '"' + "n" * 300 + '"']
KINDS = ("value", "value", "value", "number", "word", "key", "drop", "double", "nest", "swap", "foreign")
DEPTHS = (1, 2, 50, 990, 5000, 100_000)
RAW = "\x02raw\x03"  # stands for a value that json cannot write
Path = tuple[Any, ...]  # keys and indices from the top


def change(content: bytes, chance: Chance) -> bytes:
    """One change of a value or a key somewhere."""
    document = [_parse(content)]
    paths = list(_walk(document, ()))[1:]
    path = chance.rng.choice(paths)
    parent, key = _at(document, path[:-1]), path[-1]
    raw = None
    kind = chance.rng.choice(KINDS)
    if kind == "value":
        raw, parent[key] = chance.rng.choice(VALUES), RAW
    elif kind == "number":
        now = parent[key]
        raw = str(chance.integer(now if type(now) is int else 0))
        parent[key] = RAW
    elif kind == "word":
        parent[key] = chance.word().decode("latin-1")
    elif kind == "key" and isinstance(parent, dict):
        parent[chance.word().decode("latin-1")] = parent.pop(key)
    elif kind == "drop":
        del parent[key]
    elif kind == "double":
        again = f"{json.dumps(key)}: " if isinstance(parent, dict) else ""
        raw = f"{json.dumps(parent[key])}, {again}{chance.rng.choice(VALUES)}"
        parent[key] = RAW
    elif kind == "nest":
        depth, (left, right) = chance.rng.choice(DEPTHS), chance.rng.choice(("[]", ('{"a":', "}")))
        raw = left * depth + json.dumps(parent[key]) + right * depth
        parent[key] = RAW
    elif kind == "swap":
        other = chance.rng.choice(paths)
        parent[key] = json.loads(json.dumps(_at(document, other)))
    else:
        parent[key] = _foreign(chance)
    text = json.dumps(document[0] if document else None)
    return (text.replace(json.dumps(RAW), raw) if raw is not None else text).encode("utf-8", "surrogatepass")


def _foreign(chance: Chance) -> Any:
    """A value out of another input."""
    document = [_parse(chance.rng.choice(chance.pool))]
    return _at(document, chance.rng.choice(list(_walk(document, ()))[1:]))


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unfit from error


def _walk(value: Any, path: Path) -> Iterator[Path]:
    yield path
    if len(path) < 50:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from _walk(inner, (*path, key))


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _is_json(content: bytes) -> bool:
    return content.lstrip()[:1] in (b"{", b"[")


FORMS = ((_is_json, change),)
