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


class _Song(NamedTuple):
    """A song that is to be looked at."""

    path: str
    source: str
    names: tuple[str, ...]  # of its outputs, by each voice with each seed


class Plan:
    """The takes of songs, in their order, each read when its turn comes."""

    def __init__(
        self,
        songs: Iterable[Song],
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
            Key.of(row): _Known(row["name"], row["source_sha256"], row["status"], row["error"], whole and is_final(row))
            for row, whole in rows
        }
        given = names(known.name for known in self._known.values())
        # All are named now, and each is let go when it was met: a run takes no more memory than it began with.
        self._left = [self._named(song, source, given) for song, source in _sources(songs)][::-1]
        self.total = len(self._left) * len(voices) * len(seeds)

    def takes(self, settle: Settle) -> Iterator[Take]:
        """Those that are to be sung. settle: called for every other."""
        while self._left:
            song = self._left.pop()
            try:
                data = read_song(song.path, self._making.max_bytes)
            except MidiError as error:
                self._refuse(song, error, settle)
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            original = None if self._originals is None else self._originals.original(song.source, sha256, data)
            split = split_of(sha256, self._making.splits)
            for key, name, known in self._keys(song):
                is_same = known is not None and known.sha256 == sha256 and known.is_done
                if known is not None and is_same and (known.status != DUPLICATE or original is not None):
                    settle(known.status, None)
                    continue
                take = Take(song.source, sha256, data, name, split, self._voices[key.voice], key.seed)
                if original is None:
                    yield take
                else:
                    settle(DUPLICATE, row_of(take, key.voice, DUPLICATE, duplicate_of=original))

    def _refuse(self, song: _Song, error: MidiError, settle: Settle) -> None:
        """A song that cannot be read, now as before, or anew."""
        split = split_of("0" * 8, self._making.splits)
        for key, name, known in self._keys(song):
            row = failure(Take(song.source, "", b"", name, split, self._voices[key.voice], key.seed), key.voice, error)
            settle(FAILED, None if known is not None and known.error == row["error"] else row)

    def _named(self, song: Song, source: str, given: Names) -> _Song:
        """A song with the names that it has, or is given."""
        keys = [Key(source, voice, seed) for voice in self._voices for seed in self._seeds]
        names = (
            known.name if (known := self._known.get(key)) else given.name(song.label, key.voice, key.seed)
            for key in keys
        )
        return _Song(song.path, source, tuple(names))

    def _keys(self, song: _Song) -> Iterator[tuple[Key, str, _Known | None]]:
        """Each take of a song: its key, the name of its outputs, and what is known of it."""
        keys = (Key(song.source, voice, seed) for voice in self._voices for seed in self._seeds)
        for key, name in zip(keys, song.names, strict=True):
            yield key, name, self._known.get(key)


def _sources(songs: Iterable[Song]) -> Iterator[tuple[Song, str]]:
    """Songs, and their labels as text; of two that would be the same text, one has a mark of its own."""
    odd: set[str] = set()  # those that may look like another's escapes
    for song in songs:
        text = shown(song.label)
        if "\\" in text:
            if text in odd:
                text += "~" + hashlib.sha256(song.label.encode(errors="surrogateescape")).hexdigest()[:8]
            odd.add(text)
        yield song, text


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
