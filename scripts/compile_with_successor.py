"""Reports which GPU kernels numba-cuda-mlir, the successor of numba-cuda, compiles.

Run it with `make check-successor`. In a separate environment, numba-cuda-mlir takes the place of
numba.cuda. The script reports why kernels do not compile. It never fails.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from pathlib import Path

import numba
import numba_cuda_mlir
from numba_cuda_mlir import cuda, extending
from numba_cuda_mlir.numba_cuda import types

ROOT = Path(__file__).resolve().parents[1]
TARGET = (9, 0)


def last_line(error: BaseException) -> str:
    """The text of an error in one line."""
    lines = traceback.format_exception_only(error)[-1].strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def main() -> None:
    """Prints why kernels do not compile, and how many do."""
    numba.cuda = cuda
    sys.modules |= {"numba.cuda": cuda, "numba.cuda.extending": extending}
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT / "tests" / "kit"), str(ROOT)]
    version = getattr(numba_cuda_mlir, "__version__", "?")
    try:
        # Code that the CPU shares must see Numba's own types, so it is imported first.
        from livefactor_kernels.device import plan as cuda_plan  # noqa: F401

        numba.types, numba.float32 = types, types.float32
        import gpu_compiler

        cases = list(gpu_compiler.cases())
    except Exception as error:
        print(f"numba-cuda-mlir {version}: the kernels do not load: {last_line(error)}")
        return
    reasons: Counter[str] = Counter()
    for case in cases:
        try:
            signature = types.void(*case.arguments)
            cuda.compile(case.kernel.py_func, signature, device=False, abi="numba", cc=TARGET, output="ptx")
        except Exception as error:
            reasons[last_line(error)] += 1
    for reason, count in reasons.most_common():
        print(f"{count} kernels: {reason}")
    print(f"numba-cuda-mlir {version}: {len(cases) - reasons.total()} of {len(cases)} kernels compile")


if __name__ == "__main__":
    main()
