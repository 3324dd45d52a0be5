"""As MAESTRO (magenta.tensorflow.org/datasets/maestro) lies: sound and MIDI side by side, and tables of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from notewave.corpus.layout_files import paths_of, write_object
from notewave.corpus.rows import Row
from notewave.corpus.settings import Making

YEAR = 0  # of a performance. None is known; loaders take this column for the name of the folder, too
COMPOSER = "Unknown"  # no empty text: pandas reads one as no text at all
COLUMNS = (
    *("canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename"),
    "duration",  # seconds, of the sound
)
MIDI = ".midi"  # suffix of it
TABLE, BY_COLUMN, BY_ROW = "maestro-v3.0.0.csv", "maestro-v3.0.0.json", "maestro-v2.0.0.json"


class Maestro:
    """``0/000001.wav`` and ``0/000001.midi``, where 0 is the year; ``maestro-v3.0.0.csv`` and ``.json``.

    The title is the source. Loaders of MAESTRO's second version, whose JSON is a list, find that in
    ``maestro-v2.0.0.json``; so does mirdata, which needs an index, too::

        dataset = mirdata.initialize("maestro", data_home=folder)
        dataset.index_path = f"{folder}/mirdata/index.json"

    It has no checksums: mirdata's are MD5, for which all sound would have to be read again.
    """

    name = "maestro"
    numbered: str | None = "{:06d}"

    def path(self, kind: str, name: str, split: str, part: str | None, index: int, suffix: str) -> str:
        """See ``Layout``."""
        suffix = MIDI if kind in ("midi", "stem-midi") else suffix
        if part:
            return f"stems/{name}/{part}{suffix}"
        return f"{'mels' if kind == 'mel' else YEAR}/{name}{suffix}"

    def beside(self, row: Row, programs: Mapping[str, int | None]) -> Mapping[str, bytes]:
        """Nothing."""
        return {}

    def finish(self, rows: Iterator[Row], put: Callable[[str, Path], None], folder: Path, making: Making) -> None:
        """The table as CSV and both kinds of JSON, and the index for mirdata."""
        table, index = folder / TABLE, folder / "index.json"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(_record, rows))
        _write_by_column(table, folder / BY_COLUMN)
        _write_by_row(table, folder / BY_ROW)
        _write_index(table, index)
        for name in (TABLE, BY_COLUMN, BY_ROW):
            put(name, folder / name)
        put("mirdata/index.json", index)


def _record(row: Row) -> dict[str, Any]:
    """A take as a row of the table.

    A spreadsheet takes a title that begins with a sign for a formula: before such a path stands ``./``, which leads
    nowhere else. What else a stranger could have named is numbered.
    """
    source = row["source"]
    said = (COMPOSER, source if source[:1].isalnum() else f"./{source}", row["split"], YEAR)
    return dict(zip(COLUMNS, (*said, paths_of(row, "midi")[0], row["audio"], row["seconds"]), strict=True))


def _records(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table, of which there may be more than memory holds."""
    with table.open(encoding="utf-8", newline="") as file:
        for said in csv.DictReader(file):
            yield {**said, "year": int(said["year"]), "duration": float(said["duration"])}


def _write_by_column(table: Path, path: Path) -> None:
    """MAESTRO's JSON from its third version on: an object for each column, of values by the numbers of rows."""
    with path.open("w", encoding="ascii") as file:
        mark = "{"
        for column in COLUMNS:
            file.write(f'{mark}"{column}": ')
            write_object(file, ((str(number), record[column]) for number, record in enumerate(_records(table))))
            mark = ",\n"
        file.write("}\n")


def _write_by_row(table: Path, path: Path) -> None:
    """MAESTRO's JSON up to its second version: a list of rows."""
    with path.open("w", encoding="ascii") as file:
        mark = "["
        for record in _records(table):
            file.write(f"{mark}{json.dumps(record)}")
            mark = ",\n"
        file.write("[]\n" if mark == "[" else "]\n")


def _write_index(table: Path, path: Path) -> None:
    """mirdata's: files and no checksums, by the path of the MIDI without its suffix, as mirdata looks for them."""
    with path.open("w", encoding="ascii") as file:
        file.write('{"version": "2.0.0",\n"tracks": ')
        write_object(file, map(_entry, _records(table)))
        file.write("}\n")


def _entry(record: Mapping[str, Any]) -> tuple[str, Any]:
    midi, audio = record["midi_filename"], record["audio_filename"]
    return midi.removesuffix(MIDI), {"audio": [audio, None], "midi": [midi, None]}
