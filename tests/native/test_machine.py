"""Cores and memory: the limits of a container and of affinity are respected."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from halfv_cpp import machine


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """A made-up /sys and /proc: files by path, with 8 CPUs that are 4 cores."""
    for cpu in range(8):
        topology = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(machine, "CPUS", tmp_path / "cpus")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}[name])

    def clear() -> None:
        machine.n_cores.cache_clear()
        machine.memory_bytes.cache_clear()

    def make(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")

    clear()
    yield make
    clear()


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 4, 4 << 30),
        ({"own": "0::/", "cgroup/cpu.max": "max 100000", "cgroup/memory.max": "max"}, 4, 4 << 30),
        ({"own": "0::/a/b", "cgroup/a/b/cpu.max": "250000 100000", "cgroup/a/memory.max": "1000"}, 2, 1000),
        ({"own": "0::/a/b", "cgroup/a/b/cpu.max": "50000 100000"}, 1, 4 << 30),
        (
            {
                "own": "3:cpu,cpuacct:/x\n2:memory:/x",
                "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "cgroup/memory/x/memory.limit_in_bytes": "2000",
            },
            3,
            2000,
        ),
        ({"own": "3:cpu:/", "cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 4, 4 << 30),
        ({"own": "nonsense", "cgroup/cpu.max": ""}, 4, 4 << 30),
    ],
    ids=["no container", "no limits", "quota", "less than one", "version 1", "version 1, no limits", "nonsense"],
)
def test_limits(box: Callable[[dict[str, str]], None], files: dict[str, str], cores: int, memory: int) -> None:
    box(files)
    assert machine.n_cores() == cores
    assert machine.memory_bytes() == memory


def test_affinity(box: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5})  # both threads of one core, one of another
    assert machine.n_cores() == 2


def test_a_mac(box: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_sysctl", {"hw.perflevel0.physicalcpu": 6, "hw.physicalcpu": 10}.get)
    assert machine.n_cores() == 6
    machine.n_cores.cache_clear()
    monkeypatch.setattr(machine, "_sysctl", {"hw.perflevel0.physicalcpu": 0, "hw.physicalcpu": 2}.get)
    assert machine.n_cores() == 2
