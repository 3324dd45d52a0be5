"""Which takes a corpus is still to have: every song by every voice with every seed, less what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from notewave.checks import shown
from notewave.corpus.dedupe import Originals
from notewave.corpus.ledger import Key
from notewave.corpus.rows import DUPLICATE, FAILED, Row, is_final
from notewave.corpus.settings import Making
from notewave.corpus.songs import Names, Song, read_song
from notewave.corpus.store import Store
from notewave.corpus.takes import Take, failure, row_of, split_of
from notewave.errors import MidiError
from notewave.inputs import BLOCK

Settle: TypeAlias = Callable[[str, Row | None], None]  # how a take stands, and its new row, or none where it has it


class _Known(NamedTuple):
    """What an earlier run left of a take."""

    name: str
    sha256: str  # of the source
    status: str
    error: str | None
    is_done: bool  # whether another run would leave the same


class Plan:
    """The takes of songs, in their order, each read when its turn comes."""

    def __init__(
        self,
        rows: Iterable[tuple[Row, bool]],
        making: Making,
        voices: Mapping[str, str],
        seeds: Sequence[int],
        names: Callable[[Iterable[str]], Names],
        originals: Originals | None,
    ) -> None:
        """rows: of earlier runs, and whether they are whole. voices: by their names, as they are to be opened.

        names: made with those that are taken. originals: where songs that are nearly the same are left out.
        """
        self._making, self._voices, self._seeds, self._originals = making, voices, seeds, originals
        self._known = {
            Key.of(row): _Known(
                row["name"], row["source_sha256"], row["status"], row["error"], is_whole and is_final(row)
            )
            for row, is_whole in rows
        }
        self._names = names(known.name for known in self._known.values())
        self._odd: set[str] = set()  # sources that may look like another's escapes

    def takes(self, songs: Iterable[Song], settle: Settle) -> Iterator[Take]:
        """Those that are to be sung. settle: called for every other."""
        for song in songs:
            source = self._source(song)
            try:
                data = read_song(song.path, self._making.max_bytes)
            except MidiError as error:
                self._refuse(source, song, error, settle)
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            original = None if self._originals is None else self._originals.original(source, sha256, data)
            split = split_of(sha256, self._making.splits)
            for key, known, voice in self._keys(source):
                is_same = known is not None and known.sha256 == sha256 and known.is_done
                if known is not None and is_same and (known.status != DUPLICATE or original is not None):
                    settle(known.status, None)
                    continue
                name = known.name if known is not None else self._names.name(song.label, key.voice, key.seed)
                take = Take(source, sha256, data, name, split, voice, key.seed)
                if original is None:
                    yield take
                else:
                    settle(DUPLICATE, row_of(take, key.voice, DUPLICATE, duplicate_of=original))

    def _refuse(self, source: str, song: Song, error: MidiError, settle: Settle) -> None:
        """A song that cannot be read, now as before, or anew."""
        for key, known, voice in self._keys(source):
            name = known.name if known is not None else self._names.name(song.label, key.voice, key.seed)
            take = Take(source, "", b"", name, split_of("0" * 8, self._making.splits), voice, key.seed)
            row = failure(take, key.voice, error)
            settle(FAILED, None if known is not None and known.error == row["error"] else row)

    def _keys(self, source: str) -> Iterator[tuple[Key, _Known | None, str]]:
        """Each take of a source: its key, what is known of it, and its voice as that is to be opened."""
        for voice, given in self._voices.items():
            for seed in self._seeds:
                key = Key(source, voice, seed)
                yield key, self._known.get(key), given

    def _source(self, song: Song) -> str:
        """A song's label as text; of two that would be the same text, one with a mark of its own."""
        text = shown(song.label)
        if "\\" in text:
            if text in self._odd:
                text += "~" + hashlib.sha256(song.label.encode(errors="surrogateescape")).hexdigest()[:8]
            self._odd.add(text)
        return text


def whole_rows(rows: Iterable[Row], store: Store, verify: bool) -> Iterator[tuple[Row, bool]]:
    """Rows, and whether all their files are there: by their sizes, or if ``verify`` by their content."""
    for row in rows:
        yield row, all(_is_there(file["path"], file["bytes"], file["sha256"], store, verify) for file in row["files"])


def _is_there(path: str, size: int, sha256: str, store: Store, verify: bool) -> bool:
    if store.size(path) != size:
        return False
    if not verify:
        return True
    digest = hashlib.sha256()
    with store.open(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == sha256
