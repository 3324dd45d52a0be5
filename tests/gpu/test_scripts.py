"""The scripts behind make gpu-test and make gpu-bench, on stand-ins for what they call."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent
LDCONFIG = r'echo "	libcuda.so.1 (libc6,x86-64) => /lib/libcuda.so.1"'
PYTHON = 'case "$2" in *venv*) exit 1;; *version*) echo python3.11;; *Python.h*) exit 1;; *) exit 3;; esac'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def write_commands(folder: Path, contents: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(f"#!/bin/sh\n{content}\n")
        (folder / name).chmod(0o755)


def prepared(folder: Path, commands: dict[str, str]) -> str:
    """Why prepare.sh stops where there are these commands and no other."""
    write_commands(folder, {"nvidia-smi": "echo 580.65.06", "id": "echo 1000", "python3": PYTHON, **commands})
    for name in ("awk", "bash", "dirname", "head"):
        (folder / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "prepare.sh")], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_preparing_a_machine_names_what_is_missing_before_anything_is_done(tmp_path: Path) -> None:
    reason = prepared(tmp_path, {"ldconfig": LDCONFIG})
    assert "python3.11-venv python3.11-dev g++ (Debian's names) must be installed" in reason


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


def test_a_backend_that_fails_leaves_the_others_benched(tmp_path: Path) -> None:
    """What fails is named where its table would stand, and by the exit status."""
    shutil.copytree(SCRIPTS, tmp_path / "tests" / "gpu")
    command = """
json= backend=none
for word; do
    case $last in --json) json=$word ;; --backend) backend=$word ;; esac
    last=$word
done
case $1 in -v) echo "building" >&2; echo "a folder of plans" ;; esac
[ $backend != cuda ] || { echo "at work" >&2; echo "notewave: no cuDNN" >&2; exit 1; }
[ -z "$json" ] || { echo "a row of $backend"; echo {} > "$json"; }
"""
    write_commands(tmp_path / ".venv" / "bin", {"notewave": command, "pip": "echo packages"})
    write_commands(tmp_path / "commands", {"nvidia-smi": "echo a GPU"})
    out = tmp_path / "build" / "gpu"
    out.mkdir(parents=True)
    (out / "band-cuda.json").write_text("of an earlier run")
    done = subprocess.run(
        ["bash", str(tmp_path / "tests" / "gpu" / "bench.sh")],
        env={"PATH": f"{tmp_path / 'commands'}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "```",
        "a row of tensorrt",
        "band-cuda FAILED: notewave: no cuDNN",
        "a row of cpu",
        "launched without CUDA graphs:",
        "a row of tensorrt",
        "a row of tensorrt",
        "base-cuda FAILED: notewave: no cuDNN",
        "```",
    ]
    assert (out / "table.md").read_text() == done.stdout
    assert (out / "build-band.txt").read_text() == "building\na folder of plans\n"
    assert sorted(path.name for path in out.glob("*.json")) == [
        "band-cpu.json",
        "band-tensorrt-eager.json",
        "band-tensorrt.json",
        "base-tensorrt.json",
    ]
