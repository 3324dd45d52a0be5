"""torch.save's files are read as torch.load reads them, and nothing that a pickle can say costs more than its bytes."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from notewave.errors import VoiceError
from notewave.export.checkpoints.pickled import MAX_RECORDS, read_pickled
from notewave.export.checkpoints.records import MAX_HEADER_BYTES, MAX_TENSORS, OpenFile

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read(path: Path) -> dict[str, Tensor]:
    file = OpenFile.find(path)
    assert file is not None
    tensors = {name: stored.read() for name, stored in read_pickled(file).items()}
    assert all(tuple(tensors[name].shape) == stored.shape for name, stored in read_pickled(file).items())
    return tensors


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def archive(path: Path, program: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """A file as torch.save writes it, of a pickle and of storages of one's own."""
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/data.pkl", program)
        for name, content in (records or {}).items():
            target.writestr(f"archive/{name}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def tensor(
    shape: bytes = integer(2) + b"\x85",
    strides: bytes = integer(1) + b"\x85",
    offset: bytes = integer(0),
    count: bytes = integer(2),
    kind: bytes = b"ctorch\nFloatStorage\n",
    rest: bytes = b"\x89}",
) -> bytes:
    """The part of a pickle that makes a tensor of the record "0"."""
    storage = b"(" + text("storage") + kind + text("0") + text("cpu") + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + rest + b"tR"


def program(value: bytes) -> bytes:
    """A pickle of a dict with one item."""
    return b"\x80\x02}" + text("w") + value + b"s."


def both(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return read(path), torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_are_those_of_torch_load(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    content = {
        "plain": numbers,
        "transposed": numbers.T,
        "rows": numbers[2:5],
        "columns": numbers[:, 1:4],
        "every second": numbers[::2, ::3],
        "axes": numbers.reshape(2, 3, 2, 4).permute(3, 1, 0, 2),
        "one": numbers[3, 3],
        "none": numbers[:0],
        "repeated": numbers[0, 0].expand(3),
        "ünï\x00code": torch.tensor([float("nan"), float("inf"), -0.0]).to(dtype),
        "n" * 300: torch.zeros(1, dtype=dtype),
    }
    ours, theirs = both(saved(tmp_path / "file.bin", content))
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == dtype
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True)


def test_what_torch_can_wrap_tensors_in(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    for content in (
        module.state_dict(),
        dict(module.named_parameters()),
        OrderedDict(module.named_parameters()),
        {"frozen": frozen, "twice": frozen},
        {f"layer.{i}": torch.full((i % 3 + 1,), float(i)) for i in range(1500)},  # more than one batch of a pickle
        {},
    ):
        ours, theirs = both(saved(tmp_path / "file.bin", content))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_files_of_torch_1_say_less_of_themselves(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path / "new.bin", {"w": torch.ones(3)})) as new:
        kept = {name.partition("/")[2]: new.read(name) for name in new.namelist()}
    old = archive(tmp_path / "old.bin", kept["data.pkl"], {"data/0": kept["data/0"], "version": b"3\n"})
    assert torch.equal(read(old)["w"], torch.ones(3))


def test_numbers_without_checksums_and_what_follows_a_file_that_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "file.bin", {"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    file = OpenFile.find(path)
    assert file is not None
    stored = read_pickled(file)["w"]
    path.unlink()
    assert torch.equal(stored.read(), torch.ones(3)), "of the file that was opened"


def test_a_file_that_is_cut_short_when_it_is_open(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.bin", {"w": torch.ones(1 << 16)})
    file = OpenFile.find(path)
    assert file is not None
    stored = read_pickled(file)["w"]
    os.truncate(path, 1 << 10)
    with pytest.raises(VoiceError, match="cut short while it was read"):
        stored.read()


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


def marked() -> Tensor:
    value = torch.ones(2)
    value.mark = 1  # type: ignore[attr-defined]
    return value


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.empty(1 << 40, device="meta"), "'odd' is what 'torch._utils._rebuild_meta_tensor_no_storage'"),
        (lambda: torch.eye(2).to_sparse(), "'odd' is what 'torch._utils._rebuild_sparse_tensor' makes"),
        (quantised, "'odd' is what 'torch._utils._rebuild_qtensor' makes"),
        (marked, "'odd' is what 'torch._tensor._rebuild_from_type_v2' makes"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "'odd' is what 'torch._utils._rebuild_tensor_v2'"),
        (lambda: torch.ones(2).to(torch.float8_e4m3fn), "'odd' is what 'torch._utils._rebuild_tensor_v3' makes"),
        (lambda: torch.ones(2, dtype=torch.complex64), "'odd' are of 'torch.ComplexFloatStorage'"),
        (lambda: torch.ones(2, dtype=torch.int64), "'odd' are of 'torch.LongStorage'"),
        (lambda: torch.ones(2, dtype=torch.bool), "'odd' are of 'torch.BoolStorage'"),
        (lambda: torch.ones(2).untyped_storage(), "'odd' is a Storage, no plain tensor"),
        (lambda: {"w": torch.ones(2)}, "'odd' is a dict, no plain tensor"),
        (lambda: 1.5, "'odd' is a float, no plain tensor"),
        (lambda: "text", "'odd' is a str, no plain tensor"),
        (lambda: [torch.ones(2)], "the instruction b']'"),
        (lambda: torch.zeros(1).expand(1 << 40), "'odd' has more numbers than the file"),
        (lambda: torch.zeros(1 << 23)[:: 1 << 22], "numbers of 'odd' are scattered"),
    ],
)
def test_what_is_no_plain_tensor_is_named(make: Callable[[], object], named: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "file.bin", {"plain": torch.ones(2), "odd": make()})
    with pytest.raises(VoiceError, match=re.escape(named)):
        read(path)


def test_the_format_before_zip_is_refused_kindly(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.bin", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(VoiceError, match=r"format of torch before 1\.6.*save again"):
        read(path)


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    for protocol in (3, 4, 5):
        path = saved(tmp_path / "file.bin", {"w": torch.ones(2)}, pickle_protocol=protocol)
        with pytest.raises(VoiceError, match="no pickle of protocol 2"):
            read(path)


HUGE = struct.pack("<Q", 1 << 62)
DEEP = 200_000
PROGRAMS = {
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n" + integer(3_000_000_000) + b"\x85R.",
    "system": b"\x80\x02cposix\nsystem\n" + text("false") + b"\x85R.",
    "system of a dict": program(b"cposix\nsystem\n" + text("false") + b"\x85R"),
    "torch.zeros": program(b"ctorch\nzeros\n" + integer(1 << 40) + b"\x85R"),
    "OrderedDict of arguments": program(b"ccollections\nOrderedDict\n})\x86\x85R"),
    "BYTEARRAY8": b"\x80\x02\x96" + HUGE + b".",
    "BINBYTES8": b"\x80\x02\x8e" + HUGE + b".",
    "BINUNICODE8": b"\x80\x02\x8d" + HUGE + b".",
    "FRAME": b"\x80\x02\x95" + HUGE + b".",
    "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "INT of many digits": b"\x80\x02I" + b"9" * (1 << 20) + b"\n.",
    "BINUNICODE beyond the end": b"\x80\x02X\xff\xff\xff\xffabc.",
    "lone surrogate": program(tensor()).replace(text("w"), b"X\x03\x00\x00\x00\xed\xa0\x80"),
    "INST": b"\x80\x02(iposix\nsystem\n.",
    "NEWOBJ": b"\x80\x02cbuiltins\nbytearray\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "STACK_GLOBAL": b"\x80\x02" + text("posix") + text("system") + b"\x93.",
    "long name": b"\x80\x02c" + b"a" * (1 << 20) + b"\n.",
    "name without an end": b"\x80\x02cposix",
    "deep tuples": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "deep marks": b"\x80\x02" + b"(" * DEEP + b".",
    "deep dicts": b"\x80\x02" + (b"}" + text("d")) * (DEEP // 5) + b"}" + b"s" * (DEEP // 5) + b".",
    "deep tuple for a key": b"\x80\x02})" + b"\x85" * DEEP + b"Ns.",
    "laughs": b"\x80\x02)" + b"q\x00h\x00\x86" * 1000 + b".",
    "laughs for a key": b"\x80\x02})" + b"q\x00h\x00\x86" * 1000 + b"Ns.",
    "laughs for a shape": program(tensor(shape=b")" + b"q\x00h\x00\x86" * 1000)),
    "laughs for a storage": program(b")" + b"q\x00h\x00\x86" * 1000 + b"Q"),
    "itself": b"\x80\x02}q\x00" + text("w") + b"h\x00s.",
    "a memo of itself": b"\x80\x02q\x00.",
    "nothing at a number": b"\x80\x02h\x07.",
    "nothing at a large number": b"\x80\x02j\xff\xff\xff\xff.",
    "only a large number": b"\x80\x02}r\xff\xff\xff\xff0.",
    "many numbers": b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", i * 4096) for i in range(200_000)) + b"0.",
    "nothing to take": b"\x80\x02s.",
    "below a mark": b"\x80\x02}" + text("w") + b"N(s.",
    "no mark": b"\x80\x02u.",
    "odd items": b"\x80\x02}(" + text("w") + b"u.",
    "items of a text": b"\x80\x02" + text("w") + b"NNs.",
    "attributes of a text": b"\x80\x02" + text("w") + b"}b.",
    "two ends": b"\x80\x02}.}.",
    "two values": b"\x80\x02}}.",
    "no end": b"\x80\x02}",
    "no pickle": b"",
    "a key twice": b"\x80\x02}(" + (text("w") + tensor()) * 2 + b"u.",
    "a number for a key": b"\x80\x02}K\x01" + tensor() + b"s.",
    "a text called": program(text("OrderedDict") + b")R"),
    "no storage": program(b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"K\x00" * 4 + b"\x89}tR"),
    "a storage of a module": program(b"cos\nFloatStorage\nQ"),
    "huge shape": program(tensor(shape=integer(1 << 80) + b"\x85")),
    "large shape": program(tensor(shape=integer(1 << 34) + b"\x85")),
    "negative shape": program(tensor(shape=integer(-1) + b"\x85")),
    "shape that is no number": program(tensor(shape=b"\x88\x85")),
    "shape that is no tuple": program(tensor(shape=integer(2))),
    "more strides": program(tensor(strides=integer(1) * 2 + b"\x86")),
    "many axes": program(tensor(shape=b"(" + b"K\x01" * 64 + b"t", strides=b"(" + b"K\x00" * 64 + b"t")),
    "huge strides": program(tensor(strides=integer(1 << 39) + b"\x85")),
    "negative strides": program(tensor(strides=integer(-1) + b"\x85")),
    "strides of none": program(tensor(shape=integer(1 << 32) + b"\x85", strides=integer(0) + b"\x85")),
    "huge offset": program(tensor(offset=integer(1 << 39))),
    "negative offset": program(tensor(offset=integer(-1))),
    "offset beyond the end": program(tensor(offset=integer(1))),
    "huge count": program(tensor(count=integer(1 << 60))),
    "negative count": program(tensor(count=integer(-1))),
    "count beyond the end": program(tensor(count=integer(3), shape=integer(3) + b"\x85")),
    "quantised storage": program(tensor(kind=b"ctorch\nQUInt8Storage\n")),
    "unknown storage": program(tensor(kind=b"cbuiltins\nbytearray\n")),
    "escapes in a storage": program(tensor(kind=b"cbuiltins\n\x1b[2J\n")),
    "more arguments": program(tensor(rest=b"\x89}}")),
    "hooks": program(tensor(rest=b"\x89}" + text("w") + b"Ns")),
    "a number over and over": b"\x80\x02}(" + b"".join(text(f"w{i}") + tensor() for i in range(9)) + b"u.",
    "too many tensors": b"\x80\x02}("
    + text("w")
    + tensor(shape=b"K\x00\x85")
    + b"q\x00"
    + b"".join(text(f"{i:x}") + b"h\x00" for i in range(MAX_TENSORS))
    + b"u.",
    "a program too long": b"\x80\x02" + b"}" * MAX_HEADER_BYTES,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_pickles(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "file.bin", PROGRAMS[name], {"data/0": bytes(8)})
    with pytest.raises(VoiceError, match=r"not a readable file of plain tensors: .* Download") as caught:
        read(path)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


PASSED_OVER = {
    **PROGRAMS,
    "deep lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep objects": b"\x80\x02" + (b"cos\nx\n)\x81" * (DEEP // 4)) + b"\x85" * DEEP + b".",
    "laughs in lists": b"\x80\x02]" + b"q\x00](h\x00h\x00e" * 1000 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "appended to a text": b"\x80\x02" + text("w") + b"Na.",
    "appended to nothing": b"\x80\x02Na.",
    "an object of no class": b"\x80\x02N)\x81.",
    "attributes of nothing": b"\x80\x02Nb.",
    "odd items left out": b"\x80\x02}(NNNu.",
    "calls without end": b"\x80\x02cposix\nsystem\n" + b")R" * DEEP + b".",
    "state of an object": b"\x80\x02cposix\nsystem\n)R}" + b"b.",
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_hostile_pickles_that_are_passed_over(name: str, tmp_path: Path) -> None:
    """As what lies beside the tensors, and as the whole: neither is executed, and the whole has no tensors."""
    file = OpenFile.find(archive(tmp_path / "file.bin", PASSED_OVER[name], {"data/0": bytes(8)}))
    assert file is not None
    with pytest.raises(VoiceError, match=r"not a readable file of plain tensors: .* Download") as caught:
        read_pickled(file, "weights")
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_what_lies_beside_the_tensors_is_passed_over(tmp_path: Path) -> None:
    many = {number: {"step": number, "mean": torch.ones(2).long()} for number in range(700)}
    beside = [
        {"state": many, "rest": [{1, 2}, b"\xff", None, (1, [2.0, True])]},
        nn.Linear(2, 2),
        1 << 70,
        {None: slice(3)},
    ]
    weights = OrderedDict(nn.Linear(2, 3).state_dict())
    path = saved(tmp_path / "file.bin", {"before": beside, "weights": weights, 3: beside, "after": beside})
    file = OpenFile.find(path)
    assert file is not None
    assert {name: stored.read().tolist() for name, stored in read_pickled(file, "weights").items()} == {
        name: value.tolist() for name, value in weights.items()
    }
    for part, named in (
        ("none", "it has no 'none'"),
        ("before", "what 'builtins.list' makes"),
        ("after", "builtins.list"),
    ):
        with pytest.raises(VoiceError, match=named):
            read_pickled(file, part)
    with pytest.raises(VoiceError, match="the instruction"):
        read_pickled(file)


def test_the_hostile_parts_are_well_made(tmp_path: Path) -> None:
    """What the programs above are made of is read when nothing is wrong with it."""
    path = archive(tmp_path / "file.bin", program(tensor()), {"data/0": struct.pack("<2f", 1, 2)})
    assert read(path)["w"].tolist() == [1.0, 2.0]


def test_hostile_pickles_take_little_memory_and_no_actions(tmp_path: Path) -> None:
    """In a process of its own, which says by how much its largest size grew."""
    for i, content in enumerate(PASSED_OVER.values()):
        archive(tmp_path / f"{i}.bin", content, {"data/0": bytes(8)})
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom notewave.errors import VoiceError\n"
        "from notewave.export.checkpoints.pickled import read_pickled\n"
        "from notewave.export.checkpoints.records import OpenFile\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most()\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    for part in (None, 'weights'):\n"
        "        try:\n            read_pickled(OpenFile.find(path), part)\n            print('read', path)\n"
        "        except VoiceError:\n            pass\n"
        "print(most() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 200 << 20


def rezipped(path: Path, change: Callable[[zipfile.ZipFile], object], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as target:
        target.writestr("archive/data.pkl", program(tensor()))
        target.writestr("archive/data/0", bytes(8))
        change(target)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda file: file.writestr("archive/data/0", bytes(8)), "one name"),
        (lambda file: file.writestr("archive/data.pkl", b""), "one name"),
        (lambda file: file.writestr("other/data.pkl", b""), "has 2 pickles"),
        (lambda file: file.writestr("archive/byteorder", b"big"), "not little-endian"),
        (lambda file: file.writestr("archive/byteorder", bytes(MAX_HEADER_BYTES + 1)), "byteorder' has .* bytes"),
        (lambda file: [file.writestr(f"archive/{i}", b"") for i in range(MAX_RECORDS)], f"records, over {MAX_RECORDS}"),
        (lambda file: file.writestr("a/zeros", bytes(1 << 20), zipfile.ZIP_DEFLATED), "records are compressed"),
    ],
)
def test_hostile_archives(change: Callable[[zipfile.ZipFile], object], named: str, tmp_path: Path) -> None:
    path = rezipped(tmp_path / "file.bin", change)
    with pytest.raises(VoiceError, match=named):
        read(path)


def test_a_directory_of_a_hundred_thousand_records(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    directory = entry * 100_000
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path.write_bytes(directory + end)
    with pytest.raises(VoiceError, match="directory has more than"):
        read(path)


def test_records_that_overlap(tmp_path: Path) -> None:
    """Many names for the same bytes, so that a small file has many storages."""
    path = tmp_path / "file.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program(tensor()))
        file.writestr("archive/data/0", bytes(1 << 16))
        first = file.infolist()[1]
        for i in range(1, 9):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(again, field, getattr(first, field))
            file.filelist.append(again)
    with pytest.raises(VoiceError, match="records overlap"):
        read(path)


def test_records_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="no record 'archive/data/0'"):
        read(archive(tmp_path / "file.bin", program(tensor())))
    path = archive(tmp_path / "file.bin", program(tensor()), {"data/0": bytes(8)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x03\x04", b"PK\x03\x05"))
    with pytest.raises(VoiceError, match="not where its directory says"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", program(tensor()))
    with pytest.raises(VoiceError, match="has 0 pickles"):
        read(path)


def test_files_that_break_off_anywhere(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.bin", {"w": torch.ones(2)})
    content = path.read_bytes()
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        with pytest.raises(VoiceError, match="Download"):
            read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {"a": nn.Parameter(torch.ones(2, 3)), "b": torch.ones(4, 2).T, **nn.Linear(2, 2).state_dict()}
    return saved(tmp_path_factory.mktemp("whole") / "file.bin", content)


PARTS = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from(
        [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff" * 8, b"PK\x01\x02", b"PK\x06\x06", b"\x85", b"R"]
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), PARTS), min_size=1, max_size=3))
def test_whatever_bytes_are_changed(whole: Path, tmp_path: Path, changes: list[tuple[float, bytes]]) -> None:
    content = bytearray(whole.read_bytes())
    for place, part in changes:
        at = int(place * (len(content) - len(part)))
        content[at : at + len(part)] = part
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    try:
        tensors = read(path)
    except VoiceError:
        return
    assert sum(value.nbytes for value in tensors.values()) <= 4 * len(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1), PARTS), min_size=1, max_size=3))
def test_whatever_a_pickle_says(whole: Path, tmp_path: Path, changes: list[tuple[float, bytes]]) -> None:
    """In its archive, which is whole."""
    with zipfile.ZipFile(whole) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    content = bytearray(records.pop("data.pkl"))
    for place, part in changes:
        at = int(place * (len(content) - len(part)))
        content[at : at + len(part)] = part
    path = archive(tmp_path / "file.bin", bytes(content), records)
    try:
        ours = read(path)
    except VoiceError:
        return
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    assert all(torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num()) for name in ours)
