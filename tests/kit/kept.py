"""What compilers made for tests, kept between runs.

Tests look at the code of kernels, and compiling it takes a minute. The same sources give the same
code, so the code is kept in the folder NUMBA_CACHE_DIR, if it is set. The name of a file is a
digest of all sources of kernels, of the tests' own compilers, of Python and of all installed
packages. A change of any of them compiles everything anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import livefactor_kernels

KEPT_DAYS = 7


def kept(name: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns, which JSON can hold, or what was kept under this name."""
    if not (folder := os.environ.get("NUMBA_CACHE_DIR")):
        return make()
    digest = hashlib.sha256(f"{_stamp()} {name}".encode()).hexdigest()[:32]
    file = Path(folder, "looked-at", f"{digest}.json")
    if file.exists():
        return json.loads(file.read_text())
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(made))
    draft.replace(file)
    for other in file.parent.iterdir():
        if other.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            other.unlink(missing_ok=True)
    return made


@cache
def _stamp() -> str:
    """Return the digest of everything that decides the code of kernels."""
    root = Path(__file__).resolve().parents[2]
    sources = [
        *Path(livefactor_kernels.__file__).parent.rglob("*.py"),
        *(root / "benchmarks" / "gpu").glob("*.py"),
    ]
    sources += [root / "tests" / "kit" / name for name in ("gpu_compiler.py", "kept.py", "synthetic.py")]
    sources += [root / "tests" / "kernels" / "test_compiled.py"]
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(sources):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update("\n".join(sorted(f"{each.name} {each.version}" for each in distributions())).encode())
    return digest.hexdigest()
