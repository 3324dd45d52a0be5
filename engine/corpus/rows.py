"""What the manifest says of a take: a row, as JSON and as Parquet have it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
FAILED, SUNG, DUPLICATE = "failed", "sung", "duplicate"
FINAL = ("MidiError", "ArgumentError", "SamplingError")  # kinds of errors that another run would meet again
BATCH = 1000  # rows to a group of a Parquet file

# Every field of a row, and what it is: null where there is none of it.
FIELDS = {
    "source": "string",  # where the song was, relative to what was given, as text
    "source_sha256": "string",
    "name": "string",  # of the outputs, relative, without a suffix
    "split": "string",
    "voice": "string",
    "seed": "uint64",
    "sampler": "string",
    "steps": "int32",
    "guidance": "float64",
    "status": "string",  # sung, failed or duplicate
    "error": "string",
    "error_kind": "string",
    "duplicate_of": "string",  # a source
    "audio": "string",  # the sound's file, relative to the corpus
    "sha256": "string",  # of that
    "sample_rate": "int32",  # Hz
    "frames": "int64",  # samples
    "seconds": "float64",
    "notes": "int64",
    "parts": "list<string>",
    "peak": "float64",  # 0 to 1
    "loudness": "float64",  # LUFS
    "stems_error": "float64",  # how far the parts' sum is from the mix, nats of log-mel
    "mended": "list<string>",
    "taken": "float64",  # seconds
    "worker": "string",  # host:process
    "made": "string",  # UTC
    "files": "list<struct<kind: string, part: string, path: string, bytes: int64, sha256: string>>",
}
FILE_FIELDS = ("kind", "part", "path", "bytes", "sha256")


def is_final(row: Row) -> bool:
    """Whether a row needs no other run: what could not be read will not be read again."""
    return row["status"] != FAILED or row["error_kind"] in FINAL


def line(row: Row) -> bytes:
    """A row as a line of the manifest."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def of_line(data: bytes) -> Row | None:
    """The row that a line says; None for what is none."""
    try:
        row = json.loads(data)
    except (RecursionError, UnicodeDecodeError, ValueError):
        return None
    if not isinstance(row, dict) or not FIELDS.keys() <= row.keys():
        return None
    files = row["files"]
    is_row = (
        all(isinstance(row[name], str) for name in ("source", "source_sha256", "name", "voice", "status"))
        and isinstance(row["seed"], int)
        and isinstance(files, list)
        and all(isinstance(file, dict) and file.keys() == set(FILE_FIELDS) for file in files)
        and all(isinstance(file["path"], str) and isinstance(file["bytes"], int) for file in files)
    )
    return row if is_row else None


def write_parquet(rows: Iterator[Row], path: Path) -> None:
    """Rows to a Parquet file, in bounded memory."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, _type(kind)) for name, kind in FIELDS.items()])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in _batches(rows):
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield batch


def _type(kind: str) -> Any:
    """pyarrow's type of a field."""
    import pyarrow as pa

    if kind.startswith("list<struct"):
        return pa.list_(pa.struct([(name, pa.int64() if name == "bytes" else pa.string()) for name in FILE_FIELDS]))
    return pa.list_(pa.string()) if kind == "list<string>" else getattr(pa, kind)()
