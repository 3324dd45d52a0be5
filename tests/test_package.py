"""The package itself: what the wheel holds, and that rendering needs no torch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(build, check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names} <= {"notewave", "notewave-0.1.0.dist-info"}
    for expected in (
        "py.typed",
        "synthesizer.py",
        "export/networks.py",
        "kernels/reference.py",
        "bundled/songs/demo.mid",
    ):
        assert f"notewave/{expected}" in names
    assert sum(item.file_size for item in wheel.infolist()) < 45 << 20


def test_rendering_imports_no_torch(vocoded_voice: Path, midi_folder: Path) -> None:
    program = (
        "import sys, notewave\n"
        f"synth = notewave.Synthesizer({str(vocoded_voice)!r}, backend='cpu')\n"
        f"synth.render({str(midi_folder / 'piano_scale.mid')!r}, steps=1)\n"
        "heavy = {'torch', 'onnx', 'matplotlib', 'scipy', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_imports_point_one_way() -> None:
    """kernels <- engine <- export <- benchmarks; only the command reaches back, when asked."""
    forbidden = {"kernels": ("export", "benchmarks"), "engine": ("export", "benchmarks"), "export": ("benchmarks",)}
    for folder, others in forbidden.items():
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text().splitlines()
            for other in others:
                start = f"from notewave.{other}", f"import notewave.{other}"
                assert not [line for line in lines if line.startswith(start)], f"{path} imports {other}"


def test_every_error_is_public() -> None:
    import notewave

    for name in notewave.__all__:
        assert getattr(notewave, name) is not None
    with pytest.raises(AttributeError):
        notewave.nothing  # noqa: B018
