"""How many processors a process may use, by control groups of either version as they are laid out on Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from notewave.backends import processors as module
from notewave.backends.processors import processors


@pytest.fixture(autouse=True)
def sixteen_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def version_2(folder: Path, quotas: dict[str, str], path: str, mount: str = "") -> int:
    for where, text in quotas.items():
        (folder / mount / where).mkdir(parents=True, exist_ok=True)
        (folder / mount / where / "cpu.max").write_text(text)
    (folder / "cgroup").write_text(f"0::{path}\n")
    return processors(folder / "cgroup", folder)


def version_1(folder: Path, quotas: dict[str, tuple[int, int]], path: str, controllers: str = "cpu,cpuacct") -> int:
    for where, (quota, period) in quotas.items():
        (folder / controllers / where).mkdir(parents=True, exist_ok=True)
        (folder / controllers / where / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / controllers / where / "cpu.cfs_period_us").write_text(f"{period}\n")
    (folder / "cgroup").write_text(f"9:memory:/else\n4:{controllers}:{path}\n0::/\n")
    return processors(folder / "cgroup", folder)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("1000 100000\n", 1),
        ("9900000 100000\n", 16),
        ("200000\n", 16),
        ("", 16),
        ("some words\n", 16),
        ("200000 0\n", 16),
        ("-1 100000\n", 16),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(quota: str, expected: int, tmp_path: Path) -> None:
    assert version_2(tmp_path, {"a/b": quota}, "/a/b") == expected


def test_the_least_of_a_group_and_those_it_is_in_counts(tmp_path: Path) -> None:
    quotas = {"a/b/c": "max 100000", "a/b": "300000 100000", "a": "800000 100000", "a/other": "100000 100000"}
    assert version_2(tmp_path, quotas, "/a/b/c") == 3


@pytest.mark.parametrize("mount", ["", "unified"])
def test_in_a_container_the_mount_s_top_is_the_group(mount: str, tmp_path: Path) -> None:
    assert version_2(tmp_path, {"": "150000 100000"}, "/docker/0123", mount) == 2


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_quotas_of_version_1_count(controllers: str, tmp_path: Path) -> None:
    assert version_1(tmp_path, {"a": (150_000, 100_000), "": (-1, 100_000)}, "/a", controllers) == 2
    assert version_1(tmp_path, {"a": (-1, 100_000)}, "/a", controllers) == 16


def test_other_controllers_do_not(tmp_path: Path) -> None:
    assert version_1(tmp_path, {"a": (100_000, 100_000)}, "/a", "cpuset") == 16


def test_paths_do_not_lead_out_of_the_mount(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    (tmp_path / "mount").mkdir()
    (tmp_path / "cgroup").write_text("0::/../../..\nnonsense\n\n0::\n")
    assert processors(tmp_path / "cgroup", tmp_path / "mount") == 16


def test_affinity_counts_where_there_are_no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processors(tmp_path / "none", tmp_path) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert processors(tmp_path / "none", tmp_path) == 1


def test_it_is_the_default_of_threads(vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from notewave import Synthesizer
    from notewave.backends.ort import backend

    given = []

    class Noted(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, settings: onnxruntime.SessionOptions, **more: object) -> None:
            spinning = settings.get_session_config_entry("session.intra_op.allow_spinning")
            given.append((settings.intra_op_num_threads, spinning))
            super().__init__(path, settings, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Noted)
    monkeypatch.setattr(backend, "processors", lambda: 3)
    Synthesizer(vocoded_voice, backend="cpu")
    Synthesizer(vocoded_voice, backend="cpu", threads=5)
    assert set(given) == {(3, "0"), (5, "0")}


def test_this_machine_has_processors() -> None:
    assert 1 <= processors() <= 16
    assert module.GROUPS.is_absolute() and module.MOUNT.is_absolute()
