"""Songs are found once each, read within bounds, and named so that any file system takes what is made of them."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from no_files import EMPTY_FILES, NO_FILES, NOWHERE, put

from notewave import ArgumentError, MidiError
from notewave.corpus.songs import Names, find_songs, read_song

RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789")}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    return folder


def labels(*given: object, apart: Path | None = None) -> list[str]:
    """The labels of what is found; all are of files that can be opened by their paths."""
    songs = find_songs([str(one) for one in given], apart)
    assert all(Path(song.path).is_absolute() and read_song(song.path, 1000) for song in songs)
    assert len({song.label for song in songs}) == len({song.path for song in songs}) == len(songs)
    return [song.label for song in songs]


def test_a_folder_s_songs_are_found_in_order_whatever_their_case(tmp_path: Path) -> None:
    fill(tmp_path, "b.MID", "a.mid", "c.Midi", "d.kar", "e.rmi", "f.wav", "mid", "z/y/a.mid", "z/b.mid", "ä/ö.mid")
    expected = ["a.mid", "b.MID", "c.Midi", "d.kar", "e.rmi", "z/b.mid", "z/y/a.mid", "ä/ö.mid"]
    assert labels(tmp_path) == labels(f"{tmp_path}/") == labels(f"{tmp_path}/z/..") == expected


def test_a_folder_is_found_from_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "songs/a.mid"))
    assert labels("songs") == labels("./songs") == labels("songs/a.mid") == labels("songs/*.mid") == ["a.mid"]
    assert labels(".") == ["songs/a.mid"]
    assert find_songs(["songs"])[0].path == f"{tmp_path}/songs/a.mid"


def test_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    """Among it what macOS puts beside files of other file systems."""
    fill(tmp_path, "a.mid", "._a.mid", ".mid", ".git/b.mid", "__MACOSX/._a.mid", "c/.d/e.mid")
    assert labels(tmp_path) == labels(f"{tmp_path}/**/*.mid") == labels(f"{tmp_path}/**") == ["a.mid"]


def test_links_to_folders_are_not_followed_links_to_songs_are(tmp_path: Path) -> None:
    fill(tmp_path, "songs/a.mid", "away/b.mid")
    (tmp_path / "songs" / "circle").symlink_to(tmp_path / "songs")
    (tmp_path / "songs" / "away").symlink_to(tmp_path / "away")
    (tmp_path / "songs" / "c.mid").symlink_to(tmp_path / "away" / "b.mid")
    assert labels(tmp_path / "songs") == labels(f"{tmp_path}/songs/**/*.mid") == ["a.mid", "c.mid"]
    assert labels(tmp_path / "songs" / "away") == ["b.mid"], "a folder that was named may be one"
    assert [song.path for song in find_songs([f"{tmp_path}/songs"])][1] == f"{tmp_path}/away/b.mid"


def test_patterns(tmp_path: Path) -> None:
    fill(tmp_path, "a.mid", "b.kar", "x/a.mid", "x/y/a.mid", "x/y/b2.mid", "z/y/b3.mid", "z/no.txt")
    for pattern, expected in {
        "*.mid": ["a.mid"],
        "*": ["a.mid", "b.kar"],
        "**/*.mid": ["a.mid", "x/a.mid", "x/y/a.mid", "x/y/b2.mid", "z/y/b3.mid"],
        "**/y/*": ["x/y/a.mid", "x/y/b2.mid", "z/y/b3.mid"],
        "*/a.mid": ["x/a.mid"],
        "x/**": ["a.mid", "y/a.mid", "y/b2.mid"],
        "x/y/b?.mid": ["b2.mid"],
        "[xz]/*/b[0-9].mid": ["x/y/b2.mid", "z/y/b3.mid"],
        "**/x/**/a.mid": ["x/a.mid", "x/y/a.mid"],
    }.items():
        assert labels(tmp_path / pattern) == expected, pattern


def test_a_file_that_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "take [1].mid", "take 1.mid")
    assert labels(tmp_path / "take [1].mid") == ["take [1].mid"]
    assert labels(tmp_path / "take [12].mid") == ["take 1.mid"]


def test_files_are_called_by_what_they_have_not_in_common(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.mid", "x/y/a.mid", "z/song")
    assert labels(tmp_path / "x/a.mid") == ["a.mid"]
    assert labels(tmp_path / "x/y/a.mid", tmp_path / "x/a.mid") == ["y/a.mid", "a.mid"]
    assert labels(tmp_path / "x/y/a.mid", tmp_path / "z/song") == ["x/y/a.mid", "z/song"]


@pytest.mark.parametrize("suffix", [".txt", ".lst", ".m3u", ".M3U8"])
def test_lists(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, "lists/in/a.mid", "lists/b", "away/c.mid", "away/d/e.mid")
    lines = ["#EXTM3U", "in/a.mid", "", "./b", f"{tmp_path}/away/c.mid", "../away/d/e.mid", "in/../in/a.mid"]
    (tmp_path / "lists" / f"songs{suffix}").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert labels(tmp_path / "lists" / f"songs{suffix}") == ["in/a.mid", "b", "c.mid", "d/e.mid"]


def test_a_list_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "x/a.mid"))
    for data, expected in ((b"x/a.mid\n", "x/a.mid"), (b"x/a.mid", "x/a.mid")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert labels("-") == [expected]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(MidiError, match="standard input cannot be read: it is closed"):
        find_songs(["-"])


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.mid")
    try:
        fill(tmp_path, name)
    except OSError:
        pytest.skip("a file system that takes text only")
    (tmp_path / "list.txt").write_bytes(os.fsencode(name) + b"\n")
    assert labels(tmp_path) == labels(tmp_path / "list.txt") == labels(tmp_path / "caf*") == [name]


def test_what_is_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "x/a.mid", "x/b.mid", "y/c.mid"))
    (tmp_path / "link.mid").symlink_to("x/b.mid")
    (tmp_path / "folder").symlink_to("x")
    (tmp_path / "list.txt").write_text("folder/a.mid\nx/b.mid\ny/c.mid\nx/../y/c.mid\n")
    assert labels("x", tmp_path / "x/a.mid", "x", "folder", "x/*.mid", "link.mid", "list.txt") == [
        "a.mid",
        "b.mid",
        "y/c.mid",
    ]
    assert labels("link.mid", "x") == ["link.mid", "a.mid"]


def test_songs_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.mid", "y/a.mid", "z/y/a.mid", "b/y/y/a.mid")
    given = [tmp_path / folder for folder in ("x", "y", "z/y", "b/y/y")]
    assert labels(*given) == ["a.mid", "y/a.mid", "z/y/a.mid", "y/y/a.mid"]


def test_the_corpus_itself_is_no_song_s_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.mid", "corpus/midi/a.mid", "corpus2/b.mid")
    corpus = tmp_path / "corpus"
    assert labels(tmp_path, apart=corpus) == labels(f"{tmp_path}/**", apart=corpus) == ["a.mid", "corpus2/b.mid"]
    assert labels(corpus / "midi", apart=corpus) == labels(corpus / "midi" / "a.mid", apart=corpus) == ["a.mid"]
    (tmp_path / "link").symlink_to("corpus")
    assert labels(tmp_path, apart=tmp_path / "link") == ["a.mid", "corpus2/b.mid"]
    assert labels(tmp_path, apart=tmp_path / "new") == ["a.mid", "corpus/midi/a.mid", "corpus2/b.mid"]
    for one in (corpus, f"{corpus}/**/*.mid", tmp_path / "link"):
        with pytest.raises(ArgumentError, match=r"is where the corpus is made\. Make it in another folder"):
            find_songs([str(one)], corpus)


def test_what_has_no_songs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, "x/a.wav", "list.txt", "y/a.mid"))
    (tmp_path / "comments.txt").write_text("# nothing\n\n")
    with pytest.raises(ArgumentError, match=r"No songs are given\. Give"):
        find_songs([])
    for one, fact in {
        "none": r"none is not there\. Check",
        "": "The empty path is not there",
        "a\0b": r"a\\x00b is not there",
        "n" * 300: "is not there",
        "x": r"x has no songs: no file that ends in \.mid, \.midi, \.kar, \.rmi\. Check",
        "x/*.mid": "has no songs",
        "none/*.mid": "there is no folder .*/none",
        "comments.txt": r"comments\.txt names no songs\. Give",
    }.items():
        with pytest.raises(MidiError, match=fact):
            find_songs(["y", one])
    os.mkfifo(tmp_path / "fifo.txt")
    with pytest.raises(MidiError, match=r"fifo\.txt cannot be opened: it is a FIFO"):
        find_songs(["fifo.txt"])


def test_folders_that_cannot_be_read_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.mid", "closed/b.mid")
    scan = os.scandir

    def refuse(path: str) -> object:  # which root is never told
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert labels(tmp_path) == ["a.mid"]
    assert f"{tmp_path}/closed was left out: Permission denied." in caplog.text


def test_what_a_list_names_is_judged_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"none.mid\n/\nz\0ero\n..\n")
    for song in find_songs([str(tmp_path / "list.txt")]):
        with pytest.raises(MidiError, match="cannot be opened"):
            read_song(song.path, 1000)


@pytest.mark.parametrize("kind", [*NO_FILES, *NOWHERE])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / "a.mid")
    with pytest.raises(MidiError, match=r"a\.mid cannot be opened: .*\. Check the path"):
        read_song(str(tmp_path / "a.mid"), 1000)


def test_sockets_and_what_is_waited_for_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.mid")
        with pytest.raises(MidiError, match="it is a socket"):
            read_song("a.mid", 1000)
    for path in EMPTY_FILES:
        assert read_song(path, 1000) == b""


def test_songs_are_read_within_bounds(tmp_path: Path) -> None:
    fill(tmp_path, "12345")
    assert read_song(str(tmp_path / "12345"), 5) == b"12345"
    with pytest.raises(MidiError, match=r"is larger than 4 bytes; if it is meant to be, raise max_bytes"):
        read_song(str(tmp_path / "12345"), 4)


def names(*taken: str, numbered: str | None = None) -> Names:
    return Names("first", 0, numbered, taken)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("a.mid", "a"),
        ("x/y/a b.v2.MID", "x/y/a b.v2"),
        ("100%/Ä–日本 [live].kar", "100%/Ä–日本 [live]"),
        (os.fsdecode(b"caf\xe9.mid"), "caf%E9"),
        ('a<b>c:d"e\\f|g?h*.mid', "a%3Cb%3Ec%3Ad%22e%5Cf%7Cg%3Fh%2A"),
        ("tab\tnew\nline\x7f\x85\u202e.mid", "tab%09new%0Aline%7F%C2%85%E2%80%AE"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("/etc//./passwd", "etc/passwd"),
        (".hidden/a. /b..mid", "%2Ehidden/a.%20/b%2E"),
        ("aux/CON.txt/com1.mid", "%61ux/%43ON%2Etxt/%63om1"),
        ("nul .x/lpt¹.mid", "%6Eul .x/%6Cpt¹"),
        ("console/auxiliary/com.mid", "console/auxiliary/com"),
        ("a.wav/b.FLAC.mid", "a%2Ewav/b%2EFLAC"),
        ("", "song"),
        ("/", "song"),
    ],
)
def test_a_name_is_what_any_system_takes_of_a_label(label: str, name: str) -> None:
    assert names().name(label, "first", 0) == name


def test_voices_and_seeds_stand_in_names_where_they_are_not_the_first() -> None:
    one = names()
    assert [one.name("x/a.mid", voice, seed) for voice in ("first", "me/v 2?") for seed in (0, 7)] == [
        "x/a",
        "x/a.s7",
        "x/a.me%2Fv 2%3F",
        "x/a.me%2Fv 2%3F.s7",
    ]
    assert names().name("a.mid", "flac", 0) == "a%2Eflac", "no folder of stems is called as a sound is"


def test_what_is_too_long_is_cut_between_characters_and_told_apart() -> None:
    one = names()
    found = [one.name(f"{'日' * 60}{end}/{'ü' * 100}{end}.mid", "v" * 100, 2**64 - 1) for end in "ab"]
    assert found[0].startswith("日" * 37 + "~")
    assert found[0] != found[1]
    assert all(len(part.encode()) <= 192 for name in found for part in name.split("/"))
    deep = [one.name("/".join([start, *["folder"] * 500, "a.mid"]), "first", 0) for start in "xy"]
    assert all(len(name.encode()) < 200 and name.endswith("/a") for name in deep)
    assert deep[0] != deep[1]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("a.mid", "a.kar"),
        ("a.mid", "A.MID"),
        ("Straße.mid", "STRASSE.mid"),
        ("é.mid", "e\u0301.mid"),
        ("x/a.mid", "X/A.mid"),
        ("Å.mid", "a\u030a.mid"),
        ("a:.mid", "a%3a.mid"),
        ("α\u0345\u0301.mid", "α\u0301\u0345.mid"),
    ],
)
def test_names_that_some_system_holds_to_be_the_same_are_told_apart(first: str, later: str) -> None:
    digest = hashlib.sha256(later.encode()).hexdigest()[:8]
    one = names()
    one.name(first, "first", 0)
    assert one.name(later, "first", 0) == later.rpartition(".")[0] + f"~{digest}"
    other = names()
    assert other.name(later, "first", 0) == later.rpartition(".")[0], "names follow from the order"


def test_a_name_with_a_hash_may_be_taken_too() -> None:
    digest = hashlib.sha256(b"a.kar").hexdigest()[:8]
    one = names("a", f"A~{digest}")
    found = [one.name("a.kar", "first", 0), one.name("a.kar", "first", 0), one.name("a.kar", "other", 0)]
    assert len(set(found)) == 3
    assert all(name not in ("a", f"a~{digest}") for name in found)


def test_numbers_follow_those_that_are_taken() -> None:
    one = names("Track00002", "track00004", "other", numbered="Track{:05d}")
    found = [one.name("a.mid", "first", seed) for seed in range(4)]
    assert found == ["Track00001", "Track00003", "Track00005", "Track00006"]


TEXTS = st.one_of(
    st.text(),
    st.text(st.sampled_from("aA.éE\u0301/ ~%:sßS\x00\udce9İi\u0307"), max_size=12),
    st.binary().map(os.fsdecode),
    st.sampled_from([*RESERVED, "con.", ".", "..", "a/..", "x.flac/y", "\ud800", "日" * 300, "a/" * 500, "ﬃ" * 99]),
)


@given(st.lists(st.tuples(TEXTS, TEXTS.filter(bool), st.integers(0, 2**64 - 1)), max_size=8), st.lists(TEXTS))
@example([("a.mid", "v", 1), ("a.v.mid", "first", 1), ("a.v.s1", "first", 0), ("A.V.S1.mid", "first", 0)], ["a.v.s1"])
def test_any_labels_have_names_of_their_own(songs: list[tuple[str, str, int]], taken: list[str]) -> None:
    taken = [name.encode(errors="replace").decode() for name in taken]
    one, again = names(*taken), names(*taken)
    found = [one.name(*song) for song in songs]
    assert found == [again.name(*song) for song in songs]
    assert len({*folded(found), *folded(taken)}) == len(found) + len({*folded(taken)})
    for name in found:
        assert len(name.encode()) <= 900
        for part in name.split("/"):
            assert 0 < len(part.encode()) <= 255 - 40
            assert not {*'<>:"\\|?*'} & {*part}
            assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in part)
            assert part[0] != "."
            assert part[-1] not in ". "
            assert part.split(".")[0].rstrip().upper() not in RESERVED
            assert not part.casefold().endswith((".wav", ".flac", ".ogg", ".mid", ".npy"))


def folded(texts: Iterable[str]) -> set[str]:
    return {unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold()) for text in texts}
