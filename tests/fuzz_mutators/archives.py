"""Changes of what holds other things: folders, zip archives with pickles, safetensors, deflated bytes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickletools
import warnings
import zipfile
import zlib

from fuzz_mutators import json_text, plain
from fuzz_mutators.chance import Chance, Unfit

FILE = b"\n==file== "  # begins each file of a folder: its name, the end of a line, its content
ZIP, GZIP, PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80\x02"
MOST_INFLATED = 1 << 20  # bytes
MOST_NAME = 200  # characters of a path: those that no file system takes are another test's
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "I64", "I32", "I16")
DTYPES += ("I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "X", "Q4")
OPCODES = (  # of pickles
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\nbytearray\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ccollections\nOrderedDict\n",
    b"\x8a\x04\x00\x00\x00\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"B\xff\xff\xff\x7f",
    b"\x8e\x00\x00\x00\x00\x01\x00\x00\x00",
    b"\x96\xff\xff\xff\xff\x00\x00\x00\x00",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    b"K\x01",
    b"M\xff\xff",
    b"J\xff\xff\xff\xff",
    b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"I99999999999999999999\n",
    b"L" + b"9" * 6000 + b"L\n",
    b"(" * 3000,
    b"]" * 3000,
    b"2\x86" * 60,
    *(bytes([code]) for code in b".0()12NRQbaeost}]tu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98h"),
)


def pack(files: dict[str, bytes]) -> bytes:
    """A folder's files, by their paths, as one input."""
    return b"".join(FILE + name.encode() + b"\n" + content for name, content in files.items())


def unpack(content: bytes) -> dict[str, bytes]:
    """The files of such an input, whatever bytes it is. Paths that would lead elsewhere are left out."""
    files = {}
    for entry in content.split(FILE)[1:]:
        name, _, body = entry.partition(b"\n")
        path = name.decode(errors="replace")
        if len(path) < MOST_NAME and "\0" not in path and all(part.strip(".") for part in path.split("/")):
            files[path] = body
    return files


def _change_folder(content: bytes, chance: Chance) -> bytes:
    entries = content.split(FILE)[1:]
    if not entries:
        raise Unfit
    kind, at = chance.rng.choice(("content",) * 8 + ("order", "name")), chance.rng.randrange(len(entries))
    name, _, body = entries[at].partition(b"\n")
    if kind == "content":
        theirs = [entry.partition(b"\n")[2] for entry in chance.rng.choice(chance.pool).split(FILE)[1:]]
        entries[at] = name + b"\n" + chance.within(theirs or [body]).change(body)
    elif kind == "name":
        other = chance.rng.choice(entries).partition(b"\n")[0]
        entries[at] = chance.rng.choice((other, plain.change(name, chance), name + b"/x")) + b"\n" + body
    else:
        entries = chance.rearranged(entries, chance.rng.choice(chance.pool).split(FILE)[1:])
    return b"".join(FILE + entry for entry in entries)


def _change_zip(content: bytes, chance: Chance) -> bytes:
    """Other entries or contents of them; or other bytes in the headers and the directory at the end."""
    if chance.rng.random() < 0.25:
        return _change_zip_record(content, chance)
    entries = _entries(content)
    at = chance.rng.randrange(len(entries))
    name, body, method = entries[at]
    kind = chance.rng.choice(("content",) * 6 + ("name", "order", "method"))
    if kind == "content":
        entries[at] = (name, chance.change(body), method)
    elif kind == "name":
        other = chance.rng.choice(entries)[0]
        names = (other, other + "0", "../x", "/x", "", name + "/", name.upper(), "x" * 65000, name.replace("/", "\\"))
        entries[at] = (chance.rng.choice(names), body, method)
    elif kind == "method":
        method = chance.rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        entries[at] = (name, body * chance.rng.choice((1, 1, 100)), method)
    else:
        entries = chance.rearranged(entries, [("x/data/0", bytes(100), zipfile.ZIP_STORED)])
    return _zipped(entries)


def _change_zip_record(content: bytes, chance: Chance) -> bytes:
    """Another field in a local header, an entry of the directory, or its end."""
    marks = (ZIP, b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
    places = [at for mark in marks for at in _places(content, mark)]
    if not places:
        raise Unfit
    at = chance.rng.choice(places) + chance.rng.randrange(4, 46)
    size = chance.rng.choice((1, 2, 4))
    number = chance.integer(int.from_bytes(content[at : at + size], "little")) % (1 << 8 * size)
    return content[:at] + number.to_bytes(size, "little") + content[at + size :]


def _entries(content: bytes) -> list[tuple[str, bytes, int]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = [info for info in archive.infolist() if info.file_size < MOST_INFLATED]
            entries = [(info.filename, archive.read(info), zipfile.ZIP_STORED) for info in infos]
    except Exception as error:  # a broken archive makes zipfile raise errors of many kinds
        raise Unfit from error
    if not entries:
        raise Unfit
    return entries


def _zipped(entries: list[tuple[str, bytes, int]]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, body, method in entries:
            archive.writestr(zipfile.ZipInfo(name), body, method)
    return stream.getvalue()


def _places(content: bytes, mark: bytes) -> list[int]:
    places, at = [], content.find(mark)
    while at >= 0:
        places.append(at)
        at = content.find(mark, at + 1)
    return places


def _change_pickle(content: bytes, chance: Chance) -> bytes:
    """Operations left out, repeated, moved, put in, or with other arguments."""
    operations = _operations(content)
    if chance.rng.random() < 0.6:
        theirs = chance.rng.choice(OPCODES)
        return b"".join(chance.rearranged(operations, (theirs, theirs, chance.word())))
    at = chance.rng.randrange(len(operations))
    operations[at] = operations[at][:1] + plain.change(operations[at][1:], chance)
    return b"".join(operations)


def _operations(content: bytes) -> list[bytes]:
    """The operations of a pickle as they stand; what cannot be read is one at the end."""
    places = [0]
    with contextlib.suppress(Exception):  # pickletools raises what a broken pickle runs into
        places.extend(at for _, _, at in pickletools.genops(content) if at)
    if len(places) < 2:
        raise Unfit
    return [content[start:end] for start, end in zip(places, [*places[1:], len(content)], strict=True)]


def _change_safetensors(content: bytes, chance: Chance) -> bytes:
    """Another header, or other numbers behind it; the header's length is mended more often than not."""
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], content[8 + size :]
    kind = chance.rng.choice(("header", "header", "dtype", "offsets", "body", "size", "padding"))
    if kind == "header":
        header = json_text.change(header, chance)
    elif kind in ("dtype", "offsets"):
        header = _change_entry(header, kind, chance)
    elif kind == "body":
        body = plain.change(body, chance)
    elif kind == "padding":
        header += chance.rng.choice((b" ", b" " * 7, b"\0" * 8, b" " * 100_000))
    mended = len(header) if kind != "size" else chance.integer(size) % (1 << 64)
    return (mended if chance.rng.random() < 0.9 else size).to_bytes(8, "little") + header + body


def _change_entry(header: bytes, kind: str, chance: Chance) -> bytes:
    """Another type, or other offsets or sizes, of one tensor or all."""
    try:
        tensors = json.loads(header)
        names = [name for name, entry in tensors.items() if "dtype" in entry and len(entry["data_offsets"]) == 2]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unfit from error
    if not names:
        raise Unfit
    dtype, by = chance.rng.choice(DTYPES), chance.integer() % (1 << 40)
    for name in names if chance.rng.random() < 0.2 else [chance.rng.choice(names)]:
        entry = tensors[name]
        if kind == "dtype":
            entry["dtype"] = dtype
        else:
            place = chance.rng.choice(("start", "end", "both", "shape"))
            start, end = entry["data_offsets"]
            if place == "shape":
                entry["shape"] = chance.rng.choice(([], [0], [1, 1], [by], [by, 0], [1 << 62, 4], [1] * 70))
            else:
                entry["data_offsets"] = [start + by * (place != "end"), end + by * (place != "start")]
    return json.dumps(tensors).encode()


def _change_deflated(content: bytes, chance: Chance) -> bytes:
    """Other bytes, deflated again, and now and then a second stream behind them or a bomb."""
    is_gzip = content.startswith(GZIP)
    try:
        inside = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, MOST_INFLATED)
    except zlib.error as error:
        raise Unfit from error
    deflate, other = (_gzip, _zlib) if is_gzip else (_zlib, _gzip)
    kind = chance.rng.choice(("inside", "inside", "twice", "bomb", "other"))
    if kind == "inside":
        return deflate(plain.change(inside, chance))
    if kind == "twice":
        return content + deflate(inside)
    if kind == "bomb":
        return deflate(inside + bytes(MOST_INFLATED))
    return other(inside)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _zlib(content: bytes) -> bytes:
    return zlib.compress(content, 1)


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content)


def _is_deflated(content: bytes) -> bool:
    return content.startswith(GZIP) or (content[:1] == b"\x78" and int.from_bytes(content[:2], "big") % 31 == 0)


FORMS = (
    (lambda content: content.startswith(FILE), _change_folder),
    (lambda content: content.startswith(ZIP), _change_zip),
    (lambda content: content.startswith(PICKLE), _change_pickle),
    (_is_safetensors, _change_safetensors),
    (_is_deflated, _change_deflated),
)
