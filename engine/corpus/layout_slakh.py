"""As Slakh2100 (zenodo.org/records/4599666) lies: a folder for each take, with its mix, stems, MIDI and metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from notewave.corpus.layout_files import paths_of, write_object
from notewave.corpus.rows import Row
from notewave.corpus.settings import Making
from notewave.song.parts import PROGRAMS, titles

FILES = {"audio": "mix", "mel": "mel", "midi": "all_src"}
REVERSE_CYMBAL = 119  # which Slakh counts among the effects that follow it
CLASSES = (  # Slakh's names of General MIDI's families of eight programs
    *("Piano", "Chromatic Percussion", "Organ", "Guitar", "Bass", "Strings", "Strings (continued)", "Brass", "Reed"),
    *("Pipe", "Synth Lead", "Synth Pad", "Sound Effects", "Ethnic", "Percussive", "Sound effects"),
)
DRUMS = "Drums"  # their class and their program's name, whose number is PROGRAMS
VERSION = "2100-redux, as notewave has it"  # mirdata looks for splits where the first word stands here


class Slakh:
    """``train/Track00001/`` with ``mix.wav``, ``stems/S00.wav``, ``MIDI/S00.mid``, ``all_src.mid``, ``metadata.yaml``.

    Slakh's mix is the sum of its stems. Here each is sung by itself: the mix is near their sum, not their sum.
    Loaders take the corpus' folder for Slakh's. mirdata needs an index, too, which lies in ``mirdata/``::

        dataset = mirdata.initialize("slakh", data_home=f"{folder}/mirdata")
        dataset.index_path = f"{folder}/mirdata/index.json"

    It has no checksums: mirdata's are MD5, for which all sound would have to be read again.
    """

    name = "slakh"
    numbered: str | None = "Track{:05d}"

    def path(self, kind: str, name: str, split: str, part: str | None, index: int, suffix: str) -> str:
        """See ``Layout``."""
        own = f"{'MIDI' if kind == 'stem-midi' else 'stems'}/S{index:02d}" if part else FILES[kind]
        return f"{split}/{name}/{own}{suffix}"

    def beside(self, row: Row, programs: Mapping[str, int | None]) -> Mapping[str, bytes]:
        """``metadata.yaml``. Of a stem's loudness it says nothing, as Slakh's does where it is not known."""
        saved = {_stem(path) for path in paths_of(row, "stem-midi")}
        stems = {
            name: _traits(program) | {"audio_rendered": True, "midi_saved": name in saved, "plugin_name": row["voice"]}
            for name, program in zip(map(_stem, paths_of(row, "stem")), programs.values(), strict=True)
        }
        metadata = {
            "UUID": row["source_sha256"],  # Slakh's is a digest of the source, too, by MD5
            "audio_dir": "stems",
            "lmd_midi_dir": row["source"],
            "midi_dir": "MIDI",
            "normalization_factor": None,
            "normalized": False,
            "overall_gain": 1.0,
            "stems": stems,
            "target_peak": None,
        }
        return {f"{row['split']}/{row['name']}/metadata.yaml": "".join(_yaml(metadata)).encode("ascii")}

    def finish(self, rows: Iterator[Row], put: Callable[[str, Path], None], folder: Path, making: Making) -> None:
        """The index for mirdata, whose paths lead from ``mirdata/``, where it lies."""
        entries, index = folder / "entries.jsonl", folder / "index.json"
        with entries.open("w", encoding="ascii") as file:
            for row in rows:
                file.write(json.dumps(_entries(row)) + "\n")
        with index.open("w", encoding="ascii") as file:
            file.write(f'{{"version": {json.dumps(VERSION)},\n"multitracks": ')
            write_object(file, (song for song, _ in _lines(entries)))
            file.write(',\n"tracks": ')
            write_object(file, (stem for _, stems in _lines(entries) for stem in stems))
            file.write("}\n")
        put("mirdata/index.json", index)


def _traits(program: int | None) -> dict[str, Any]:
    """What Slakh's metadata say of a stem's program."""
    if program is None:
        return {"inst_class": DRUMS, "is_drum": True, "midi_program_name": DRUMS, "program_num": PROGRAMS}
    family = (program + (program == REVERSE_CYMBAL)) // 8
    return {
        "inst_class": CLASSES[family],
        "is_drum": False,
        "midi_program_name": titles()[program],
        "program_num": program,
    }


def _entries(row: Row) -> tuple[tuple[str, Any], list[tuple[str, Any]]]:
    """What mirdata's index says of a take, and of each of its stems, behind their names."""
    metadata = _of_index(f"{row['split']}/{row['name']}/metadata.yaml")
    midis = {_stem(path): path for path in paths_of(row, "stem-midi")}
    stems = [
        (
            f"{row['name']}-{_stem(path)}",
            {"audio": _of_index(path), "midi": _of_index(midis[_stem(path)]), "metadata": metadata},
        )
        for path in paths_of(row, "stem")
    ]
    (midi,) = paths_of(row, "midi")
    song = {"mix": _of_index(row["audio"]), "midi": _of_index(midi), "metadata": metadata}
    return (row["name"], song | {"tracks": [name for name, _ in stems]}), stems


def _lines(path: Path) -> Iterator[Any]:
    """What lines of JSON say."""
    with path.open(encoding="ascii") as file:
        yield from map(json.loads, file)


def _of_index(path: str) -> list[str | None]:
    """A file in mirdata's index: its path, whose first step must not be the split, and no checksum."""
    return [f"../{path}", None]


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _yaml(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of YAML, in ASCII."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:\n"
            yield from _yaml(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_quoted(value) if isinstance(value, str) else json.dumps(value)}\n"


def _quoted(text: str) -> str:
    r"""A text between YAML's double quotes, whose escapes \\, \n, \r, \t, \xNN, \uNNNN and \UNNNNNNNN are Python's."""
    inside = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{inside}"'
