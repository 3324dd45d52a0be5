"""The package itself: what the wheel holds, and that rendering needs no torch."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = {"engine": "notewave", "kernels": "notewave.kernels", "export": "notewave.export"}
FOLDERS |= {"benchmarks": "notewave.benchmarks"}
ROOMS = (  # from the ground up; a module belongs to the first that its name begins with
    ("notewave.errors", "notewave.checks", "notewave.inputs", "notewave.files"),
    ("notewave.kernels",),
    ("notewave.sound",),
    ("notewave.song",),
    ("notewave.sampling",),
    ("notewave.voice",),
    ("notewave.backends.protocol", "notewave.backends.executor", "notewave.backends.processors"),
    ("notewave.backends.device",),
    ("notewave.backends.graphs",),
    ("notewave.backends.gpu",),
    ("notewave.backends.trt",),
    ("notewave.backends.ort",),
    ("notewave.backends.choose",),
    ("notewave.session",),
    ("notewave.live",),
    ("notewave.stems",),
    ("notewave.synthesizer",),
    ("notewave.export.networks", "notewave.export.vocoders", "notewave.export.hub"),
    ("notewave.export.autoregressive",),
    ("notewave.export.checkpoints",),
    ("notewave.export.graphs",),
    ("notewave.export.plans",),
    ("notewave.export.convert",),
    ("notewave.export.library",),
    ("notewave.pipeline",),
    ("notewave.serve",),
    ("notewave.corpus",),
    ("notewave.export.material",),
    ("notewave.export.training",),
    ("notewave.benchmarks",),
    ("notewave.cli", "notewave.__main__"),
)


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by name, but the package's own, which imports nothing until a name is asked for."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            if name != "notewave":
                found[name] = ast.parse(path.read_text())
                found[name].path = str(path)
    return found


def imported(tree: ast.Module) -> set[str]:
    """Modules that a module imports anywhere in it; of ``from a import b`` both a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(name: str) -> tuple[str, ...]:
    """The room of a module; packages that only hold rooms are on the ground."""
    if name in ("notewave.backends", "notewave.export"):
        return ROOMS[0]
    return next(rooms for rooms in ROOMS if name.startswith(rooms))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel of what git knows here, made twice: from folders of unlike names, files of unlike times and modes."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name for name in files.split("\0") if name and not name.startswith("tests/") and (ROOT / name).exists()]
    made = []
    for folder, mode, time_s in (("one", 0o644, 1e9), ("elsewhere", 0o600, 1.5e9)):
        source, out = (tmp_path_factory.mktemp(folder) / name for name in ("source", "out"))
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
            (source / name).chmod(mode)
            os.utime(source / name, (time_s, time_s))
        build = ["sh", str(ROOT / "locks" / "wheel.sh"), sys.executable, str(source), str(out)]
        subprocess.run(build, check=True, umask=0o666 - mode)
        made.append(next(out.iterdir()))
    return made


@pytest.fixture
def wheel(wheels: list[Path]) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheels[0])


def test_a_wheel_is_the_same_bytes_wherever_and_whenever_it_is_built(wheels: list[Path]) -> None:
    one, another = wheels
    assert one.name == another.name
    assert one.read_bytes() == another.read_bytes()


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


def locked(name: str) -> dict[tuple[str, str], str]:
    """What a lock installs: package and marker -> release. Each has its hashes."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+?)(?: ; ([^\\\n]+?))? (?:\\\n +)?(--hash=sha256:\w{64})", text, re.M)
    assert len(entries) == len(re.findall(r"^\w", text, re.M)), f"something in locks/{name}.txt has no hash"
    return {(canonicalize_name(package), marker): release for package, release, marker, _ in entries}


def test_the_locks_hold_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    render = ["cpu", "plot"]
    develop = [*render, "serve", "rtx", "export", "train", "evaluate", "dev"]
    extras = {"cpu": ["cpu"], "render": render, "develop": develop}
    everything, torch = locked("develop"), locked("torch-cpu")
    for lock, names in extras.items():
        there = locked(lock)
        assert there.items() <= everything.items(), "one release of a package, whatever is installed"
        asked = sum((project["optional-dependencies"][name] for name in names), project["dependencies"])
        for requirement in map(Requirement, asked):
            name = canonicalize_name(requirement.name)
            releases = [release for (package, _), release in (there | torch).items() if package == name]
            assert releases, f"locks/{lock}.txt has no {name}. Run make lock."
            assert all(map(requirement.specifier.contains, releases)), (
                f"locks/{lock}.txt: {releases}, not {requirement}"
            )
    (cpu_torch,), cuda_torch = torch.values(), locked("torch-cuda")["torch", ""]
    assert cpu_torch == f"{cuda_torch}+cpu"


def test_rendering_on_the_cpu_imports_nothing_heavy(vocoded_voice: Path, midi_folder: Path) -> None:
    program = (
        "import sys, notewave\n"
        f"synth = notewave.Synthesizer({str(vocoded_voice)!r})\n"
        "sys.exit() if synth.device else None\n"
        f"synth.render({str(midi_folder / 'piano_scale.mid')!r}, steps=1)\n"
        "heavy = {'torch', 'onnx', 'matplotlib', 'scipy', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_imports_point_one_way() -> None:
    """A room imports only from below, and no modules import each other in a circle, also not inside functions."""
    trees = modules()
    imports = {name: imported(tree) & trees.keys() for name, tree in trees.items()}
    assert len(imports) > 60, "all modules were found"
    for name, others in imports.items():
        for other in others:
            own, theirs = room(name), room(other)
            assert own == theirs or ROOMS.index(theirs) < ROOMS.index(own), f"{name} imports {other}, which is above it"
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_gpu_s_backend_knows_no_engine() -> None:
    """Whatever runs networks there stands behind ``executor``, and is named in rooms of its own."""
    for path in (ROOT / "engine" / "backends" / "gpu").glob("*.py"):
        assert not re.search(r"tensorrt|onnx|\btrt\b|\bort\b", path.read_text(), re.I), path.name


def test_modules_and_functions_fit_a_reader() -> None:
    """400 lines a module, 60 a function: what needs more says why, in a comment that begins with "long:"."""
    for name, tree in modules().items():
        path = Path(tree.path)
        text = path.read_text().splitlines()
        assert len(text) <= 400 or "# long:" in "\n".join(text[:40]), f"{name} has {len(text)} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = text[node.lineno - 1 : node.end_lineno]
                assert len(lines) <= 60 or any("# long:" in line for line in lines), f"{name}.{node.name}: {len(lines)}"


def test_every_error_is_public() -> None:
    import notewave

    for name in notewave.__all__:
        assert getattr(notewave, name) is not None
    assert set(notewave.__all__) <= set(dir(notewave)), "what is imported when it is asked for can be found"
    with pytest.raises(AttributeError):
        notewave.nothing  # noqa: B018


def test_the_maps_name_what_is_there() -> None:
    """README's and engine/README's tables: every path in them exists, and every room has its line."""
    for name in ("README.md", "engine/README.md"):
        text = (ROOT / name).read_text()
        paths = set(re.findall(r"`((?:engine|kernels|export|benchmarks|tests)/[\w./]*)`", text))
        assert len(paths) > 5
        for path in paths:
            assert (ROOT / path).exists(), f"{name} names {path}"
    rooms = {path.relative_to(ROOT).parts[1] for path in (ROOT / "engine").iterdir() if path.is_dir()}
    rooms.discard("__pycache__")
    assert {room for room in rooms if f"`engine/{room}/`" in text} == rooms
