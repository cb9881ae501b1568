"""Compiled kernels that come with the package, for every processor of the level x86-64-v3.

A wheel and an image may have a folder of them (`livefactor warmup --baseline` makes it). A kernel
that was not compiled on this machine is loaded from there. The folder holds files of the cache
(`cache.py`), whose names and keys have the digest of the sources, the version of Numba and that of
Python. So code of other sources is never loaded. The code has the same bits as that which this
machine would compile, because kernels fix the order of every operation.
"""

from __future__ import annotations

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba import config

FOLDER = Path(__file__).parents[1] / "shipped"
"""The folder in the package. A checkout has none."""

MADE = "made.json"
"""The file in the folder that tells for which versions the code is (`versions`)."""

CPU_NAME, CPU_FEATURES = "haswell", ""
"""LLVM's name of the oldest processor of the level x86-64-v3, with no feature beside its own."""

_FEATURES = frozenset(
    ("avx", "avx2", "bmi", "bmi2", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sahf", "sse3", "sse4.1",
     "sse4.2", "ssse3", "xsave")
)  # fmt: skip
"""LLVM's names of the features of the level."""

_state = {"ignored": False, "used": False}


def versions() -> dict[str, str]:
    """What code in the folder depends on, beside the sources and the processor."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), "numba": numba.__version__}


@cache
def misfit() -> str | None:
    """Why no code of the folder runs here, or None if it does. "" means that there is no folder."""
    try:
        made = json.loads((FOLDER / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    for name, version in versions().items():
        if made.get(name) != version:
            return f"they are for {name} {made.get(name)}, and this is {version}"
    missing = sorted(_FEATURES - _features())
    if missing:
        return f"this processor lacks {', '.join(missing)} of the level x86-64-v3"
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return "NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set"
    return None


@cache
def is_improvable() -> bool:
    """Whether code that is compiled for this processor is clearly faster: it has wider vectors."""
    return "avx512f" in _features()


@cache
def _features() -> frozenset[str]:
    try:
        return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
    except RuntimeError:
        return frozenset()


def ignore() -> None:
    """Loads no code of the folder from now on."""
    _state["ignored"] = True


def is_used() -> bool:
    """Whether code of the folder was loaded."""
    return _state["used"]


def note_use() -> None:
    """Notes that code of the folder was loaded."""
    _state["used"] = True


def key_of(key: Any) -> Any:
    """The key of a kernel's code in the folder, given its key on this machine.

    None if no code of the folder may be loaded.
    """
    if _state["ignored"] or misfit() is not None:
        return None
    signature, (triple, *_), code = key
    return signature, (triple, CPU_NAME, CPU_FEATURES), code
