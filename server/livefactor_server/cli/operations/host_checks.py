"""What `livefactor doctor` finds out about the machine: versions, cores, memory, clock, kernels and
ports.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from livefactor_server.access.clock import fault_of
from livefactor_server.cli.operations.findings import Finding, fault, ok, warning

LIBRARIES = ("blake3", "cryptography", "google-crc32c", "grpcio", "numba", "numpy", "protobuf", "pyarrow")
IMPORTED = ("blake3", "cryptography", "google_crc32c", "grpc", "numba", "numpy", "google.protobuf", "pyarrow")

CORES_MIN = 2
FILES_MIN = 4096
MEMORY_BYTES_MIN = 1 << 30
STA_UNSYNC = 0x0040
"""The bit of the kernel's clock state that says that nothing sets the clock (adjtimex(2))."""

SLOW_CLOCKS = {"hpet", "acpi_pm", "jiffies", "refined-jiffies"}


def check_versions() -> Finding:
    """Whether all libraries of the server can be imported, and their versions."""
    broken = []
    for name in IMPORTED:
        try:
            import_module(name)
        except Exception as error:
            broken.append(f"{name} ({error})")
    if broken:
        remedy = 'pip install --upgrade "livefactor[server]"'
        return fault("versions", f"cannot be imported: {'; '.join(broken)}", remedy)
    versions = {name: version(name) for name in ("livefactor", *LIBRARIES)}
    versions["python"] = platform.python_version()
    text = ", ".join(
        f"{name} {versions[name]}" for name in ("livefactor", "python", "numba", "numpy", "grpcio")
    )
    return ok("versions", f"{text} on {platform.system()} {platform.release()}", **versions)


def check_cores() -> Finding:
    """How many cores the process may use, by its affinity and by the limit of its container."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, period = (_cgroup("cpu.max") or "max 100000").split()[:2]
    if quota != "max":
        cores = min(cores, int(quota) / int(period))
    vector = next((name for name in ("avx512f", "avx2") if name in _cpu_flags()), "no AVX2")
    text = f"{cores:g} cores, {vector}"
    if cores < CORES_MIN:
        remedy = "give the server two cores or more: calls and learning share one otherwise"
        return warning("cores", text, remedy, cores=cores, vector=vector)
    return ok("cores", text, cores=cores, vector=vector)


def check_memory(model_bytes_max: int) -> Finding:
    """Whether memory suffices for a model of `model_bytes_max` bytes, and can be reserved."""
    available = _available_bytes()
    figures = {"available_bytes": available, "memory_bytes_max": model_bytes_max}
    text = f"{available / 2**30:.1f} GiB are available, a model may take {model_bytes_max / 2**30:.1f} GiB"
    if _read("/proc/sys/vm/overcommit_memory") == "2":
        # Tables reserve the address space of their largest size.
        remedy = "sysctl vm.overcommit_memory=0: tables reserve address space that they do not use"
        return warning("memory", f"{text}; the kernel does not overcommit", remedy, **figures)
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        remedy = "ulimit -v unlimited: tables reserve address space that they do not use"
        return warning("memory", f"{text}; the address space of a process is limited", remedy, **figures)
    if available < MEMORY_BYTES_MIN:
        return fault("memory", text, "free memory, or use a larger machine", **figures)
    if available < model_bytes_max:
        remedy = f"set --memory-bytes-max to at most {int(available * 0.8)}, divided by the number of models"
        return warning("memory", text, remedy, **figures)
    return ok("memory", text, **figures)


def check_huge_pages() -> Finding:
    """Whether the tables of a model can lie in huge pages."""
    line = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = line.partition("[")[2].partition("]")[0]
    if chosen == "never":
        return warning(
            "huge pages",
            "transparent huge pages are off, so large tables are read more slowly",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            enabled=chosen,
        )
    text = f"transparent huge pages: {chosen}" if chosen else "the system does not say"
    return ok("huge pages", text, enabled=chosen)


def check_clock() -> Finding:
    """Whether the clock is set, is kept right by something, and is quick to read."""
    now = time.time()
    if (text := fault_of(now)) is not None:
        return fault("clock", text, "set the clock: certificates and tokens cannot be checked", time_s=now)
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in SLOW_CLOCKS:
        remedy = "choose the clock source tsc or that of the hypervisor: each call reads the clock"
        return warning("clock", f"the clock source {source} is slow", remedy, source=source)
    if _is_unsynchronized():
        remedy = (
            "start chrony or systemd-timesyncd: certificates, tokens and the times of records need the time"
        )
        return warning("clock", "nothing synchronizes the clock", remedy, source=source)
    return ok("clock", f"the clock is synchronized, source {source or 'unknown'}", source=source)


def check_kernels() -> Finding:
    """Where compiled kernels are kept, and how many there are."""
    import warnings

    from livefactor_kernels.numbers import shipped
    from livefactor_kernels.tables import keymap

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        # Without a folder it is Numba's own cache, which keeps nothing and has no path.
        path = getattr(getattr(keymap.find_kernel, "_cache", None), "cache_path", None)
    if path is None:
        return warning("kernels", "compiled kernels can be kept nowhere", _KEEP)
    folder = Path(path)
    kept = len(list(folder.glob("*.livefactor")))
    if "livefactor-kernels-" in str(folder):
        text = f"compiled kernels are kept among temporary files ({folder})"
        return warning("kernels", text, _KEEP, folder=str(folder), kept=kept)
    reason = shipped.misfit()
    if reason is None:
        text = f"compiled kernels came with the package; others are kept in {folder}"
        return ok("kernels", text, folder=str(folder), kept=kept, shipped=True)
    if not kept:
        remedy = "livefactor warmup: otherwise the first start compiles for about half a minute"
        if reason:
            remedy = f"{remedy} (those that came with the package are not used: {reason})"
        return warning(
            "kernels", f"no kernels are compiled yet ({folder})", remedy, folder=str(folder), kept=0
        )
    return ok("kernels", f"compiled kernels are kept in {folder}", folder=str(folder), kept=kept)


_KEEP = "set NUMBA_CACHE_DIR to a folder that lasts and that the server may write"


def check_files() -> Finding:
    """How many files a process may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if most < FILES_MIN:
        remedy = f"raise the limit to {FILES_MIN} (ulimit -Hn, LimitNOFILE= of systemd)"
        return warning("open files", f"a process may open {most}", remedy, open_files_max=most)
    return ok("open files", "a process may open enough", open_files_max=most)


def check_port(what: str, host: str, port: int) -> Finding:
    """Whether a port can be bound. `what` is the option that names it."""
    from livefactor_server.rpc import binding

    address = binding.host_and_port(host, port)
    if (trouble := binding.fault(address)) is not None:
        remedy = f"end what listens there, or name another port with {what}"
        return fault("port", f"{address} cannot be bound ({trouble})", remedy, address=address)
    return ok("port", f"{address} is free", address=address)


def _available_bytes() -> int:
    available = sys.maxsize
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    limit = _cgroup("memory.max") or "max"
    if limit != "max":
        available = min(available, int(limit) - int(_cgroup("memory.current") or 0))
    return available


def _cgroup(name: str) -> str:
    """A file of the process's control group (version 2). Empty if there is none."""
    group = _read("/proc/self/cgroup").rpartition("::")[2]
    return _read(f"/sys/fs/cgroup{group}/{name}") or _read(f"/sys/fs/cgroup/{name}")


def _cpu_flags() -> set[str]:
    lines = _read("/proc/cpuinfo").splitlines()
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def _is_unsynchronized() -> bool:
    """What the kernel says of its clock. False if it does not say."""
    # struct timex of adjtimex(2), with room. With modes = 0 the call only reads.
    state = (ctypes.c_int * 64)()
    try:
        # `status` follows modes, offset, freq, maxerror and esterror, at byte 40 on 64-bit systems.
        if ctypes.CDLL(None).adjtimex(state) < 0:
            return False
    except (OSError, AttributeError):
        return False
    return bool(state[10] & STA_UNSYNC)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
