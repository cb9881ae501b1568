"""The machine, the versions and the date of a run. Figures have no meaning without them."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "livefactor",
    "numpy",
    "numba",
    "llvmlite",
    "grpcio",
    "protobuf",
    "faiss-cpu",
    "implicit",
    "river",
)


def facts(folder: Path) -> dict[str, str | float | None]:
    """Facts by name, flat. None means unknown or not installed.

    Args:
        folder: the folder for the servers' data, which names the file system.
    """
    numbers = re.findall(r"MemTotal: +(\d+) kB", _read("/proc/meminfo"))
    return {
        "run_date": date(),
        "machine_cpu": next(iter(re.findall(r"model name\s*: (.*)", _read("/proc/cpuinfo"))), None),
        "machine_cores": len(os.sched_getaffinity(0)),
        "machine_l3_cache": _read("/sys/devices/system/cpu/cpu0/cache/index3/size").strip() or None,
        "machine_memory_gb": round(int(numbers[0]) / 1e6, 1) if numbers else None,
        "machine_system": f"{platform.system()} {platform.release()}",
        "machine_disk_file_system": file_system(folder),
        "machine_load_before": os.getloadavg()[0],
        "version_python": platform.python_version(),
        **{f"version_{name.replace('-', '_')}": _version(name) for name in PACKAGES},
    }


def date() -> str:
    """The present time in UTC, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def file_system(folder: Path) -> str | None:
    """The type of the file system that holds the folder, or None."""
    path = str(folder.resolve())
    mounts = [line.split()[1:3] for line in _read("/proc/mounts").splitlines()]
    holding = [(point, kind) for point, kind in mounts if os.path.commonpath([point, path]) == point]
    return max(holding, key=lambda mount: len(mount[0]))[1] if holding else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
