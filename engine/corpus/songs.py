"""The songs that a corpus is made from: where they are, their bytes, and the names of what is made of them."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from notewave.checks import shown
from notewave.errors import ArgumentError, MidiError
from notewave.inputs import read_regular

log = logging.getLogger(__name__)

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")  # of songs in folders, in any case
LISTS = (".txt", ".lst", ".m3u", ".m3u8")
STANDARD = "-"  # standard input, which is a list
MAX_LIST = 1 << 30  # bytes of a list: ten million paths
_ANY_FOLDERS = "**"
_WILD = re.compile(r"[*?\[]")

MOST_OF_LABEL = 120  # bytes of a component of a name that are the song's own
MOST_OF_VOICE = 40
MOST_OF_NAME = 600  # bytes of all: buckets take keys of 1024, a corpus' own place among them
_HASH = 8  # hexadecimal digits
_DEVICES = r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)"
_REFUSED = re.compile(rf'[<>:"\\|?*/]|[. ]$|^\.|^(?=(?i:{_DEVICES})).')  # by Windows; and what hides a file
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories of what no line shows
_OUTPUT = re.compile(r"(?i)\.(?=(wav|flac|ogg|npy|midi?|jsonl?|ya?ml|csv|txt|parquet)$)")


@dataclass(frozen=True, slots=True)
class Song:
    """A song's file."""

    path: str  # absolute, no link
    label: str  # by which it is known: relative, '/'; no two songs have the same. Bytes that are no text as in a path


def find_songs(given: Sequence[str], apart: Path | None = None) -> list[Song]:
    """The songs of folders, patterns, files and lists, each once, in the order of their names.

    given: folders, which are walked; patterns as ``songs/**/*.mid``, whose ``**`` is any folders; MIDI files; lists
    (.txt, .lst, .m3u) of a path a line, relative to the list's folder, without lines from ``#`` on; ``-``, a list on
    standard input. In folders songs are what ends in ``SUFFIXES``; hidden files and folders and links to folders are
    left out, and so is ``apart``, where the corpus is made. Folders that cannot be read are left out with a warning.

    Labels are relative to the folder, the pattern's folder or the list's; those of other files, to the folder that
    they have in common. Whether listed files can be read is seen by ``read_song``. Raises MidiError where something is
    not there or has no songs, ArgumentError where nothing is given, or a folder that is the corpus' own.
    """
    if not given:
        raise ArgumentError("No songs are given. Give folders, files, patterns as 'songs/**/*.mid', or lists of paths.")
    search = _Search(None if apart is None else os.path.realpath(apart))
    for one in given:
        search.add(one)
    return search.songs()


def read_song(path: str, max_bytes: int) -> bytes:
    """All bytes of a song's file. Raises MidiError where it is no regular file, or has more; nothing is waited for."""
    try:
        return read_regular(path, max_bytes)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise MidiError(
                f"{shown(path)} is larger than {max_bytes} bytes; if it is meant to be, raise max_bytes (--max-bytes)."
            ) from error
        raise _cannot_open(path, error) from error


class Names:
    """What the outputs of each song, voice and seed are called: names that any file system takes, none given twice.

    A name is the song's label without its suffix. What some system refuses or no line shows stands in it as %3A, as in
    URLs. Voice and seed follow where they are not the first. Names that differ only in case, or in how a letter is
    composed, count as the same: who comes later gets ~ and eight digits of its label's SHA-256. So the names follow
    from the labels and their order alone.
    """

    def __init__(self, first_voice: str, first_seed: int, numbered: str | None, taken: Iterable[str]) -> None:
        """numbered: a format as ``Track{:05d}`` for names that are numbers from 1 on. taken: names that others have."""
        self._first_voice, self._first_seed = first_voice, first_seed
        self._numbered, self._number = numbered, 0
        self._taken = {_folded(name) for name in taken}

    def name(self, label: str, voice: str, seed: int) -> str:
        """A name that nothing has yet; '/' parts its folders, each component has at most 200 bytes of UTF-8."""
        if self._numbered is not None:
            return self._next_number(self._numbered)
        *folders, stem = _escaped_label(label)
        tail = f".{_shortened(_escaped(voice), MOST_OF_VOICE)}" * (voice != self._first_voice)
        tail = _OUTPUT.sub("%2E", tail + f".s{seed}" * (seed != self._first_seed))
        name, tries = _joined([*folders, stem + tail]), 0
        while not self._take(name):
            name = _joined([*folders, f"{stem}~{_digest(label + '/' * tries)}{tail}"])
            tries += 1
        return name

    def _next_number(self, form: str) -> str:
        while True:
            self._number += 1
            if self._take(name := form.format(self._number)):
                return name

    def _take(self, name: str) -> bool:
        """Whether a name was free; now it is not."""
        before = len(self._taken)
        self._taken.add(_folded(name))
        return len(self._taken) > before


class _Search:
    """The songs found so far."""

    def __init__(self, apart: str | None) -> None:
        self._apart = apart
        self._songs: list[Song] = []
        self._loose: list[int] = []  # those of them that have no folder yet, but an absolute path as their label
        self._paths: set[str] = set()
        self._labels: set[str] = set()
        self._folders: dict[str, str] = {}  # folders without links in their paths, by folders

    def add(self, given: str) -> None:
        """Add what was given. Raises as ``find_songs``."""
        if given == STANDARD:
            self._add_list("standard input", _read_standard_input(), str(Path.cwd()))
        elif os.path.isdir(given):  # noqa: PTH112  # which also takes what can be no path
            self._add_folder(given, os.path.realpath(given))
        elif os.path.lexists(given):
            if given.lower().endswith(LISTS):
                self._add_list(shown(given), _read_list(given), str(Path(given).absolute().parent))
            else:
                self._add_loose(str(Path(given).absolute()))
        elif _WILD.search(given):
            parts = Path(given).absolute().parts
            fixed = next(index for index, part in enumerate(parts) if _WILD.search(part))
            self._add_folder(given, os.path.realpath(Path(*parts[:fixed])), parts[fixed:])
        else:
            raise MidiError(f"{shown(given) or 'The empty path'} is not there. Check the path.")

    def songs(self) -> list[Song]:
        """All of them; nothing is to be added any more."""
        if self._loose:
            paths = [self._songs[index].label for index in self._loose]
            common = os.path.commonpath([path.rpartition("/")[0] or "/" for path in paths])
            for index, path in zip(self._loose, paths, strict=True):
                self._songs[index] = Song(self._songs[index].path, self._unique(_below(path, common), common))
        return self._songs

    def _add_folder(self, given: str, top: str, pattern: tuple[str, ...] = ()) -> None:
        """Add a folder's songs, all or those whose paths in it fit the parts of a pattern."""
        if top == self._apart:
            raise ArgumentError(f"{shown(given)} is where the corpus is made. Make it in another folder (--out).")
        if not os.path.isdir(top):  # noqa: PTH112
            raise MidiError(f"{shown(given)}: there is no folder {shown(top)}. Check the path.")
        deepest = len(pattern) if pattern and _ANY_FOLDERS not in pattern else sys.maxsize
        pattern, found = pattern + ("*",) * (pattern[-1:] == (_ANY_FOLDERS,)), False
        for path, is_link in _walk(top, self._apart, deepest):
            label = _below(path, top)
            if not pattern or _fits(label.split("/"), pattern):
                found = True
                self._add(os.path.realpath(path) if is_link else path, label, top)
        if not found:
            raise MidiError(f"{shown(given)} has no songs: no file that ends in {', '.join(SUFFIXES)}. Check the path.")

    def _add_list(self, name: str, data: bytes, folder: str) -> None:
        found = False
        for line in io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")):  # the mark that some editors begin with
            entry = line.rstrip(b"\r\n")
            if entry.strip() and not entry.startswith(b"#"):
                found = True
                self._add_loose(os.path.join(folder, os.fsdecode(entry)), folder)  # noqa: PTH118
        if not found:
            raise MidiError(f"{name} names no songs. Give a path a line.")

    def _add_loose(self, path: str, folder: str | None = None) -> None:
        """Add a file by its absolute path; its label is relative to a folder, if it is in it."""
        label = os.path.normpath(path)
        if folder is not None and label.startswith(folder.rstrip("/") + "/"):
            self._add(self._resolved(path), _below(label, folder), folder)
        elif self._add(self._resolved(path), label, None):
            self._loose.append(len(self._songs) - 1)

    def _add(self, path: str, label: str, folder: str | None) -> bool:
        """Whether a song is a new one."""
        if path in self._paths:
            return False
        self._paths.add(path)
        self._songs.append(Song(path, label if folder is None else self._unique(label, folder)))
        return True

    def _unique(self, label: str, folder: str) -> str:
        """A label, behind the names of as many of the folders above as it takes to be the only one."""
        above = folder.split("/")
        while label in self._labels:
            label = f"{(above.pop() if above else '') or '~'}/{label}"
        self._labels.add(label)
        return label

    def _resolved(self, path: str) -> str:
        """An absolute path without links; nothing is asked twice of a folder."""
        folder, _, name = path.rpartition("/")
        try:
            if folder not in self._folders:
                self._folders[folder] = os.path.realpath(folder or "/")
            path = f"{self._folders[folder].rstrip('/')}/{name}"
            return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114
        except ValueError:  # a zero byte: nothing is there
            return path


def _walk(top: str, apart: str | None, deepest: int) -> Iterator[tuple[str, bool]]:
    """The songs in a folder and in those in it, so many deep, and whether each is a link; files come before folders."""
    waiting = [(top, 1)]
    while waiting:
        folder, depth = waiting.pop()
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(SUFFIXES):
                        files.append((entry.path, entry.is_symlink()))
        except OSError as error:
            log.warning("%s was left out: %s.", shown(folder), error.strerror or error)
            continue
        yield from sorted(files)
        if depth < deepest:
            waiting += [(path, depth + 1) for path in sorted(folders, reverse=True) if path != apart]


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a path's names are those of a pattern."""
    if not parts:
        return not names
    if parts[0] == _ANY_FOLDERS:
        return any(_fits(names[start:], parts[1:]) for start in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _below(path: str, folder: str) -> str:
    """A path in a folder, relative to it."""
    return path[len(folder.rstrip("/")) + 1 :]


def _read_list(path: str) -> bytes:
    try:
        return read_regular(path, MAX_LIST)
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: str, error: OSError) -> MidiError:
    return MidiError(f"{shown(path)} cannot be opened: {error.strerror or error}. Check the path.")


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise MidiError("standard input cannot be read: it is closed. Send it a path a line, or give a list's file.")
    try:
        data = sys.stdin.buffer.read(MAX_LIST + 1)
    except OSError as error:
        raise MidiError(f"standard input cannot be read: {error.strerror}. Give a list's file.") from error
    if len(data) > MAX_LIST:
        raise MidiError(f"standard input has more than {MAX_LIST} bytes. Give several lists.")
    return data


def _escaped_label(label: str) -> list[str]:
    """The components of a label's name, without its suffix."""
    root, _ = os.path.splitext(label)  # noqa: PTH122
    parts = [part for part in root.split("/") if part not in ("", ".")]
    return [_shortened(_escaped(part), MOST_OF_LABEL) for part in parts or ["song"]]


def _escaped(text: str) -> str:
    """A component of a path as any system takes it; none is a file that the corpus makes of another's name."""
    text = "".join(_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in text)
    text = _REFUSED.sub(lambda found: _escape(found[0]), text)
    return _OUTPUT.sub("%2E", text)


def _escape(char: str) -> str:
    """A character's bytes as in URLs; of a byte that is no text, itself."""
    return "".join(f"%{byte:02X}" for byte in _bytes(char))


def _shortened(text: str, most: int) -> str:
    """A text of so many bytes of UTF-8, the last of them those of its hash if some are left out."""
    data = text.encode()
    if len(data) <= most:
        return text
    return f"{data[: most - _HASH - 1].decode(errors='ignore')}~{_digest(text)}"


def _joined(components: Sequence[str]) -> str:
    """A name of components; of one that is too long the last, and a hash of all."""
    name = "/".join(components)
    return name if len(name.encode()) <= MOST_OF_NAME else f"~{_digest(name)}/{components[-1]}"


def _digest(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:_HASH]


def _bytes(text: str) -> bytes:
    """A text as UTF-8; the bytes of a path that are no text, as they are."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, which no path has
        return text.encode(errors="surrogatepass")


def _folded(name: str) -> str:
    """What names have in common that some file system holds to be the same (Unicode's canonical caseless match)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
