"""The machine as this process may use it: cores and memory, the limits of its container respected."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@functools.cache
def n_cores() -> int:
    """Threads to compute with: of two threads of one core the second adds nothing, nor does a Mac's efficiency core."""
    if sys.platform == "darwin":
        return max(1, _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1)
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), int(_cpu_quota())))


@functools.cache
def memory_bytes() -> int | None:
    """Memory that this process may fill, None where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limits = _limits("memory.max", "memory.limit_in_bytes")
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def _siblings(cpu: int) -> str:
    """The hardware threads of a CPU's core, the CPU itself where that is not known."""
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota() -> float:
    """Of whole CPUs, by the tightest cgroup."""
    quotas = [float("inf")]
    for limit in _limits("cpu.max"):  # "max 100000", or microseconds per period
        used, _, period = limit.partition(" ")
        quotas += _quotient(used, period)
    for used, period in zip(_limits("cpu.cfs_quota_us"), _limits("cpu.cfs_period_us"), strict=False):
        quotas += _quotient(used, period)
    return min(min(quotas), 2**31)


def _quotient(used: str, period: str) -> list[float]:
    return [int(used) / int(period)] if used.isdigit() and period.isdigit() and int(period) else []


def _limits(*names: str) -> Iterator[str]:
    """What files of these names say in this process's cgroups and those above them."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # version 2: "0::/path"; version 1: "4:cpu,cpuacct:/path", mounted per controller
        controllers, _, path = line.partition(":")[2].partition(":")
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            for name in names:
                try:
                    yield (CGROUPS / controllers.removeprefix("name=") / folder / name).read_text().strip()
                except OSError:
                    continue


def _sysctl(name: str) -> int:
    """An integer that macOS tells, 0 where it does not."""
    value, size = ctypes.c_int64(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int64))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
