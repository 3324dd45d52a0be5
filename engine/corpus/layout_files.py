"""What the layouts write their files of a whole corpus with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TextIO

from notewave.corpus.rows import Row


def paths_of(row: Row, kind: str) -> list[str]:
    """Where a take's files of a kind lie, relative to the corpus; of several, in the order of its parts."""
    places = {part: place for place, part in enumerate(row["parts"])}
    files = [file for file in row["files"] if file["kind"] == kind]
    return [file["path"] for file in sorted(files, key=lambda file: places.get(file["part"], 0))]


def write_object(file: TextIO, members: Iterable[tuple[str, Any]]) -> None:
    """Write a JSON object, in ASCII, a member to a line, of more members than memory holds."""
    mark = "{\n"
    for name, value in members:
        file.write(f"{mark}{json.dumps(name)}: {json.dumps(value)}")
        mark = ",\n"
    file.write("{}" if mark == "{\n" else "\n}")
