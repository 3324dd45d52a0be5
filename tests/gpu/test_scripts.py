"""The scripts behind make gpu-test and make gpu-bench, on stand-ins for what they call."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent
LDCONFIG = r'echo "	libcuda.so.1 (libc6,x86-64) => /lib/libcuda.so.1"'
PYTHON = """case "$1 $2" in
    *venv*) exit 1 ;; *version*) echo python3.11 ;; *Python.h*) exit 1 ;; *sys.path*) ;;
    */wheels.py*) echo "wheels of $2" ;;
    *) exit 3 ;;
esac"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def write_commands(folder: Path, contents: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(f"#!/bin/sh\n{content}\n")
        (folder / name).chmod(0o755)


def copied(name: str, project: Path) -> Path:
    """A script's copy in a project of its own, whose .venv it may change, and what it calls beside it."""
    script = project / "tests" / "gpu" / name
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPTS / "wheels.py", script.parent)
    return Path(shutil.copy(SCRIPTS / name, script))


def prepared(folder: Path, commands: dict[str, str], **variables: str) -> str:
    """Why prepare.sh stops where there are these commands and no other."""
    commands = {"nvidia-smi": "echo 580.65.06", "id": "echo 1000", "python3": PYTHON, **commands}
    write_commands(folder / "commands", commands)
    for name in ("awk", "bash", "dirname", "head"):
        (folder / "commands" / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(
        ["bash", str(copied("prepare.sh", folder / "project"))],
        env={"PATH": str(folder / "commands"), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_preparing_a_machine_names_what_is_missing_before_anything_is_done(tmp_path: Path) -> None:
    reason = prepared(tmp_path, {"ldconfig": "", "nvidia-smi": "echo 570.1"})
    assert "python3.11-venv python3.11-dev g++ (Debian's names) must be installed" in reason
    assert "lists no 64-bit libcuda.so.1" in reason and "The driver is 570.1; CUDA 13 needs 580" in reason


def test_preparing_a_machine_without_a_driver_says_so(tmp_path: Path) -> None:
    reason = prepared(tmp_path, {"ldconfig": LDCONFIG, "nvidia-smi": "echo NVIDIA-SMI has failed; exit 9"})
    assert "nvidia-smi, which comes with NVIDIA's driver, does not run" in reason


@pytest.mark.parametrize(
    "ldconfig", ["", "exit 127", LDCONFIG.replace(",x86-64", "")], ids=["none", "no ldconfig", "32 bits"]
)
def test_preparing_a_machine_without_the_driver_s_library_names_it(ldconfig: str, tmp_path: Path) -> None:
    reason = prepared(tmp_path, {"ldconfig": ldconfig})
    assert "lists no 64-bit libcuda.so.1" in reason and "Install it (libcuda1 in Debian)" in reason


def test_ldconfig_is_found_where_debian_hides_it_from_users(tmp_path: Path) -> None:
    if not any(Path(folder, "ldconfig").exists() for folder in ("/usr/sbin", "/sbin")):
        pytest.skip("no ldconfig here")
    assert "ldconfig: command not found" not in prepared(tmp_path, {})


@pytest.mark.parametrize("held", ["pycuda-1.tar.gz", "pycuda-1-py3-none-any.whl", "both"])
def test_with_a_folder_nothing_is_fetched_and_only_pycuda_s_source_needs_a_compiler(held: str, tmp_path: Path) -> None:
    wheels = tmp_path / "the wheels"
    wheels.mkdir()
    for name in ("pycuda-1.tar.gz", "pycuda-1-py3-none-any.whl"):
        if held in (name, "both"):
            (wheels / name).touch()
    commands = {"ldconfig": LDCONFIG, "id": "echo 0", "apt-get": f"echo fetched >> '{tmp_path}/log'"}
    reason = prepared(tmp_path, commands, WHEELS="the wheels")
    debs = " python3.11-dev g++" if held == "pycuda-1.tar.gz" else ""
    assert f"python3.11-venv{debs} (Debian's names) must be installed" in reason
    assert f"wheels of {wheels}\n" in reason and "no folder" not in reason
    assert not (tmp_path / "log").exists()


def test_a_folder_of_wheels_that_is_not_there_is_named(tmp_path: Path) -> None:
    reason = prepared(tmp_path, {"ldconfig": LDCONFIG}, WHEELS="/not/there")
    assert "WHEELS names /not/there, which is no folder. Name the folder that holds the wheels." in reason


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """A wheel that pip installs."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    fields = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in requires)]
    fields += [f"Provides-Extra: {extra}" for extra in ("cuda", "cudnn", "plot", "export")]
    contents = {
        **(files or {}),
        f"{info}/METADATA": "\n".join(["Metadata-Version: 2.1", *fields, ""]),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as wheel:
        for path, content in contents.items():
            wheel.writestr(path, content)
    return folder / f"{stem}-{tag}.whl"


def unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)


class OfflineMachine:
    """A machine on which all is real but the GPU, its driver and the packages: pip resolves and installs wheels."""

    def __init__(self, root: Path) -> None:
        self.project, self.wheels, self.spare = root / "project", root / "project" / "the wheels", root / "spare"
        self.script = copied("prepare.sh", self.project)
        self.commands = root / "commands"
        write_commands(self.commands, {"nvidia-smi": "echo 580.65.06", "ldconfig": LDCONFIG})
        self.python, self.system = self._venv(root / "system")
        own, self.site = self._venv(self.project / ".venv")
        pip = root / "pip"  # making a venv with its own takes seconds
        pip.mkdir()
        (pip / "pip").symlink_to(Path(sysconfig.get_path("purelib")) / "pip")
        (self.site / "pip.pth").write_text(str(pip))
        write_commands(own.parent, {"pip": f'exec "{own}" -m pip "$@"'})
        (self.project / ".venv" / "develop").touch()
        requires = ["numpy>=1.26", 'matplotlib>=3.8; extra == "plot"', 'torch>=2.9; extra == "export"']
        device = "class CudaDevice:\n    name, capability, driver = 'a GPU', (9, 0), '13.0'\n"
        modules = {"notewave/__init__.py": "", "notewave/backends/device/driver.py": device}
        write_wheel(self.project, "notewave", "1", requires, modules)
        (self.project / "backend.py").write_text(
            "import shutil\nNAME = 'notewave-1-py3-none-any.whl'\n"
            "def build_editable(folder, *others):\n    shutil.copy(NAME, folder)\n    return NAME\n"
            "build_wheel = build_editable\n"
        )
        (self.project / "pyproject.toml").write_text(
            "[build-system]\nrequires = ['setuptools>=77']\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
            "[project]\nname = 'notewave'\nversion = '1'\ndependencies = ['numpy>=1.26']\n"
            "[project.optional-dependencies]\nplot = ['matplotlib>=3.8']\nexport = ['torch>=2.9']\nunasked = ['more']\n"
        )

    @staticmethod
    def _venv(folder: Path) -> tuple[Path, Path]:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        return folder / "bin" / "python", site

    def prepare(self, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.commands}{os.pathsep}{os.environ['PATH']}"
        variables = {
            "PATH": path,
            "PYTHON": str(self.python),
            "WHEELS": self.wheels.name,
            "PYTHONPATH": "",
            **variables,
        }
        command = ["bash", str(self.script)]
        return subprocess.run(
            command,
            env=os.environ | variables,
            cwd=self.project,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def installed(self) -> dict[str, str]:
        return {each.metadata["Name"]: each.version for each in metadata.distributions(path=[str(self.site)])}


COMPLETE = {
    "nvidia-cuda-nvrtc": "13.1",
    "nvidia-cudnn-cu13": "9.1",
    "nvidia-cufft": "12.1",
    "cuda-bindings": "13.1",
    "mako": "1.0",
    "platformdirs": "1.0",
    "pytools": "1.0",
    "pycuda": "2026.1",
    "numpy": "2.0",
    "pytest": "8.1",
    "matplotlib": "3.9",
}
ONNX_RUNTIME = [
    "numpy",
    'nvidia-cufft~=12.0; extra == "cuda"',
    'nvidia-cudnn-cu13; extra == "cudnn"',
    'no; extra == "no"',
]


@pytest.fixture
def machine(tmp_path: Path) -> OfflineMachine:
    pytest.importorskip("pip")
    return OfflineMachine(tmp_path)


def test_all_that_a_folder_lacks_is_named_at_once(machine: OfflineMachine) -> None:
    (machine.commands / "ldconfig").write_text("#!/bin/sh\n")
    for name, version in {"pytest": "8.1", "matplotlib": "3.9"}.items():
        unpack(write_wheel(machine.spare, name, version), machine.system)  # does not count beside a wheel of PyTorch
    for name in ("mako", "onnxruntime", "onnxruntime-gpu"):  # the last has to go with the one before
        unpack(write_wheel(machine.spare, name, "1.0"), machine.site)
    write_wheel(
        machine.wheels, "torch", "2.9.1", ["triton==3.5; python_version > '3'", "sympy", 'optree; extra == "o"']
    )
    write_wheel(machine.wheels, "sympy", "1.13", ["mpmath<1.4,>=1.1"])
    write_wheel(machine.wheels, "mpmath", "1.4")
    write_wheel(machine.wheels, "numpy", "1.20")
    write_wheel(machine.wheels, "cuda-bindings", "13.1", tag="cp27-cp27m-win32")
    cut = write_wheel(machine.wheels, "setuptools", "80.0")
    cut.write_bytes(cut.read_bytes()[:-30])
    before = machine.installed()
    done = machine.prepare()
    assert done.returncode == 1
    wheel, pycuda = (shlex.split(line, comments=True) for line in done.stderr.splitlines() if " wheel " in line)
    assert wheel[1:6] == ["-m", "pip", "wheel", "-w", str(machine.wheels)] and pycuda[-1] == "pycuda"
    sanitizer = [] if shutil.which("compute-sanitizer") else ["nvidia-cuda-sanitizer-api==13.*"]
    assert sorted(wheel[6:]) == sorted(
        [
            *sanitizer,
            "cuda-bindings==13.*",
            "matplotlib>=3.8",
            "mpmath<1.4,>=1.1",
            "numpy>=1.26",
            "nvidia-cuda-nvrtc==13.*",
            "onnxruntime-gpu[cuda,cudnn]>=1.31",
            "platformdirs",
            "pytest>=8",
            "pytools",
            "setuptools>=77",
            "tensorrt",
            "triton==3.5",
        ]
    )
    assert "lists no 64-bit libcuda.so.1" in done.stderr
    assert f"{cut} is cut short, or no wheel. Copy or make it again." in done.stderr
    assert machine.installed() == before and (machine.project / ".venv" / "develop").exists()


def test_a_folder_of_wheels_and_the_system_s_pytorch_are_enough(machine: OfflineMachine, tmp_path: Path) -> None:
    """No network is asked, whatever pip's settings name, and no other source than PyCUDA's is built."""
    for name, version in {**COMPLETE, "nvidia-cuda-sanitizer-api": "13.1"}.items():
        write_wheel(machine.wheels, name, version)
    runtime = {"onnxruntime/__init__.py": "__version__ = '1.30'"}
    write_wheel(machine.wheels, "onnxruntime-gpu", "1.40", ONNX_RUNTIME, runtime)
    (machine.wheels / "mako-2.0.tar.gz").touch()
    write_wheel(machine.spare, "pytest", "8.2")
    library = "nvidia/cu13/lib/libcublas.so.13"
    for name, needs, files in [
        ("torch", ["nvidia-cublas"], {"torch.py": ""}),
        ("nvidia-cublas", [], {library: "a library"}),
        ("setuptools", [], {}),
    ]:
        unpack(write_wheel(tmp_path / "unpacked", name, "80.0", needs, files), machine.system)
    for name in ("onnxruntime", "tensorrt", "tensorrt_cu13_libs", "tensorrt_rtx"):
        unpack(write_wheel(machine.spare, name, "1.0", (), {f"{name}/__init__.py": ""}), machine.site)
    settings = tmp_path / "settings" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[global]\nfind-links = {machine.spare}\n")
    with socket.create_server(("127.0.0.1", 0)) as network:
        proxy = f"http://127.0.0.1:{network.getsockname()[1]}"
        proxies = {"http_proxy": proxy, "https_proxy": proxy, "HTTPS_PROXY": proxy, "no_proxy": "", "NO_PROXY": ""}
        names = {"PIP_FIND_LINKS": str(machine.spare), "XDG_CONFIG_DIRS": str(tmp_path / "settings")}
        done = machine.prepare(TENSORRT="none", **names, **proxies)
        network.setblocking(False)
        with pytest.raises(BlockingIOError):
            network.accept()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "a GPU, compute capability (9, 0), CUDA 13.0, onnxruntime 1.30"
    sanitizer = {} if shutil.which("compute-sanitizer") else {"nvidia-cuda-sanitizer-api": "13.1"}
    assert machine.installed() == {**COMPLETE, **sanitizer, "onnxruntime-gpu": "1.40", "notewave": "1"}
    own = [str(machine.project / ".venv" / "bin" / "python"), "-c", "import torch; print(torch.__file__)"]
    seen = subprocess.run(own, capture_output=True, text=True, check=True).stdout.strip()
    assert seen == str(machine.system / "torch.py")
    assert (machine.site / library).read_text() == "a library"
    assert not (machine.project / ".venv" / "develop").exists()


def test_make_hands_the_folder_and_the_runtime_on(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    shutil.copy(SCRIPTS.parents[1] / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    write_commands(tmp_path / "tests" / "gpu", {"prepare.sh": 'echo "$WHEELS, $TENSORRT"'})
    write_commands(tmp_path / ".venv" / "bin", {"python": 'echo "$@"'})
    command = ["make", "--silent", "gpu-test", "WHEELS=the wheels", "TENSORRT=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    prepared, tested = done.stdout.splitlines()
    assert prepared == "the wheels, none" and tested.startswith("-m pytest -m gpu")
    assert (tmp_path / ".venv" / "gpu-none").exists()


@pytest.mark.parametrize("tensorrt", ["TensorRT", "no TensorRT"])
def test_a_backend_that_fails_leaves_the_others_benched(tensorrt: str, tmp_path: Path) -> None:
    """What fails is named where its table would stand, and by the exit status; what is not installed is not asked."""
    shutil.copytree(SCRIPTS, tmp_path / "tests" / "gpu")
    command = """
json= backend=$3
for word; do
    case $last in --json) json=$word ;; --backend) backend=$word ;; esac
    last=$word
done
[ $1 = export ] || [ $1 = -v ] || exit 2
case $2 in build) echo "building $*" >&2; echo "a folder of plans" ;; esac
[ $backend != cuda ] || { echo "at work" >&2; echo "notewave: no cuDNN" >&2; exit 1; }
[ -z "$json" ] || { echo "a row of $backend"; echo {} > "$json"; }
"""
    python = f'exec "{sys.executable}" "$@"'
    write_commands(tmp_path / ".venv" / "bin", {"notewave": command, "pip": "echo packages", "python": python})
    write_commands(tmp_path / "commands", {"nvidia-smi": "echo a GPU"})
    packages, there = tmp_path / "packages", tensorrt == "TensorRT"
    packages.mkdir()
    (packages / "tensorrt.py").write_text("Builder = None" if there else "raise ImportError('for a test')")
    (packages / "tensorrt_rtx.py").write_text("")  # as a placeholder on the index
    (packages / "onnxruntime.py").write_text("def get_available_providers():\n    return ['CUDAExecutionProvider']\n")
    out = tmp_path / "build" / "gpu"
    out.mkdir(parents=True)
    (out / "band-cuda.json").write_text("of an earlier run")
    done = subprocess.run(
        ["bash", str(tmp_path / "tests" / "gpu" / "bench.sh")],
        env={
            "PATH": f"{tmp_path / 'commands'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(packages), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    backends = ["tensorrt", "cuda"] if there else ["cuda"]
    names = [*(f"band-{backend}" for backend in (*backends, "cpu")), *(f"band-{backend}-eager" for backend in backends)]
    names += [f"live-{backend}" for backend in (*backends, "cpu")]
    names += [f"base-{backend}-{batch}" for backend in backends for batch in (1, 4, 16)]
    lines = []
    for name in [*names, "peer-gpu"]:
        backend = "peer" if name == "peer-gpu" else name.split("-")[1]
        row = f"{name} FAILED: notewave: no cuDNN" if backend == "cuda" else f"a row of {backend}"
        lines += [f"{name}:", row]
    assert done.stdout.splitlines() == ["```", *lines, "```"]
    assert (out / "table.md").read_text() == done.stdout
    flavours = ["tensorrt", "onnxruntime"] if there else ["onnxruntime"]
    assert sorted(path.name for path in out.glob("build-*.txt")) == sorted(
        f"build-{voice}-{flavour}.txt" for voice in ("band", "base") for flavour in flavours
    )
    asked = "building -v build band --precision fp16 --flavour onnxruntime\na folder of plans\n"
    assert (out / "build-band-onnxruntime.txt").read_text() == asked
    for flavour in {"tensorrt", "tensorrt_rtx"} - {*flavours}:
        assert f"{flavour} is left out: TensorRT is not installed ({flavour}: " in done.stderr
    made = [name for name in names if "cuda" not in name]
    assert sorted(path.name for path in out.glob("*.json")) == sorted(f"{name}.json" for name in [*made, "peer-gpu"])
