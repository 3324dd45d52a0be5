"""As ``datasets`` of Hugging Face reads folders of sound ("audiofolder"), here and on its Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from notewave.corpus.layout_files import paths_of
from notewave.corpus.rows import BATCH, FIELDS, Row
from notewave.corpus.settings import Making
from notewave.corpus.takes import SPLITS

FOLDERS = {"audio": "audio", "mel": "mels", "midi": "midi"}
SAID = (  # fields of a row that are columns
    *("source", "source_sha256", "voice", "seed", "sampler", "steps", "guidance", "sample_rate", "frames", "seconds"),
    *("notes", "parts", "mended", "peak", "loudness", "stems_error"),
)
AUDIO, STEMS = "file_name", "stems_file_names"  # which are read as sound, and then called "audio" and "stems"
LIST = FIELDS["parts"]  # of texts
CARD = """---
configs:
- config_name: default
  data_files:
{files}
tags:
- audio
- music
- midi
- synthetic
---
# Songs from MIDI

Made of MIDI files by notewave. Every run of `notewave corpus` in this folder writes this card anew.

| split | songs | hours |
|---|---|---|
{sizes}

    from datasets import load_dataset  # pip install "datasets[audio]"

    songs = load_dataset("audiofolder", data_dir=".")  # or by its name, where it lies on the Hub

- `audio`: the song, in mono
{columns}- `source`: the MIDI file that it was made of, and `source_sha256`, what was in it
- `voice`, `seed` (as text), `sampler`, `steps`, `guidance`: how it was made
- `sample_rate` in Hz, `frames` in samples, `seconds`
- `notes`: how many it has; `parts`: who plays them; `mended`: what was amiss in the MIDI file
- `peak` from 0 to 1; `loudness` in LUFS, null where it is too short or too quiet to have one
"""
COLUMNS = {  # what the card says of those that not each corpus has
    STEMS: "- `stems`: its parts, each sung alone, in the order of `parts`; the song is near their sum, not their sum\n"
    "- `stems_error`: how far it is from that, in nats of log-mel\n",
    "mel": "- `mel`: where its log-mel spectrogram lies, NumPy's [frames, bins]\n",
    "midi": "- `midi`: where its notes lie, as they were sung\n",
    "stem_midis": "- `stem_midis`: where the notes of each of `stems` lie\n",
}


class HuggingFace:
    """``train/audio/000/000001.wav`` and so on, ``train/metadata.parquet``, and a dataset card, ``README.md``.

    Folders hold a thousand songs, since the Hub takes no more than ten thousand files to a folder. The metadata are
    Parquet: of CSV and JSON, ``datasets`` guesses the types, finds dates among the names of songs, and refuses splits
    of which one has a number where the other has nulls only.
    """

    name = "huggingface"
    numbered: str | None = "{:06d}"

    def path(self, kind: str, name: str, split: str, part: str | None, index: int, suffix: str) -> str:
        """See ``Layout``."""
        own = f"stems/{name[:-3]}/{name}/{part}" if part else f"{FOLDERS[kind]}/{name[:-3]}/{name}"
        return f"{split}/{own}{suffix}"

    def beside(self, row: Row, programs: Mapping[str, int | None]) -> Mapping[str, bytes]:
        """Nothing."""
        return {}

    def finish(self, rows: Iterator[Row], put: Callable[[str, Path], None], folder: Path, making: Making) -> None:
        """The metadata of each split that has songs, and the card."""
        columns = _columns(making)
        tables: dict[str, _Table] = {}
        with ExitStack() as stack:
            for row in rows:
                split = row["split"]
                if split not in tables:
                    tables[split] = stack.enter_context(_Table(folder / f"{split}.parquet", columns))
                tables[split].add(row)
        for split, table in tables.items():
            put(f"{split}/metadata.parquet", table.path)
        if not tables:
            return  # nothing for a card to tell of
        card = folder / "README.md"
        card.write_text(_card(tables, columns), encoding="ascii")
        put(card.name, card)


class _Table:
    """The metadata of a split under way: BATCH rows in memory, the others in a file."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        from pyarrow import list_, parquet, schema, string, type_for_alias

        types = {name: list_(string()) if kind == LIST else type_for_alias(kind) for name, kind in columns.items()}
        self.path, self.songs, self.seconds = path, 0, 0.0
        self._schema, self._held = schema(types.items()), list[dict[str, Any]]()
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()

    def add(self, row: Row) -> None:
        """Add a song."""
        self.songs += 1
        self.seconds += row["seconds"]
        self._held.append(_record(row))
        if len(self._held) == BATCH:
            self._write()

    def _write(self) -> None:
        from pyarrow import Table

        if self._held:
            self._writer.write_table(Table.from_pylist(self._held, self._schema))
            self._held.clear()


def _columns(making: Making) -> dict[str, str]:
    """The columns of the metadata, and what they hold, as FIELDS has it."""
    has = {STEMS: making.stems, "mel": making.mels, "midi": making.midi, "stem_midis": making.stems and making.midi}
    kinds = {AUDIO: "string", STEMS: LIST, "mel": "string", "midi": "string", "stem_midis": LIST}
    said = {name: FIELDS[name] for name in SAID if making.stems or name != "stems_error"}
    return {name: kind for name, kind in kinds.items() if has.get(name, True)} | said | {"seed": "string"}


def _record(row: Row) -> dict[str, Any]:
    """A row of the metadata. What is read as sound lies relative to them, all else relative to the corpus."""
    start = len(row["split"]) + 1
    mel, midi = (next(iter(paths_of(row, kind)), None) for kind in ("mel", "midi"))
    return (
        {name: row[name] for name in SAID}
        | {
            "seed": str(row["seed"]),  # of 64 bits, with which ``datasets`` takes no number without a sign
            AUDIO: row["audio"][start:],
            STEMS: [path[start:] for path in paths_of(row, "stem")],
            "mel": mel,
            "midi": midi,
            "stem_midis": paths_of(row, "stem-midi"),
        }
    )


def _card(tables: Mapping[str, _Table], columns: Mapping[str, str]) -> str:
    """The dataset card of splits."""
    tables = {split: tables[split] for split in SPLITS if split in tables}
    return CARD.format(
        files="\n".join(f"  - split: {split}\n    path: {split}/**" for split in tables),
        sizes="\n".join(f"| {split} | {table.songs} | {table.seconds / 3600:.2f} |" for split, table in tables.items()),
        columns="".join(COLUMNS.get(name, "") for name in columns),
    )
