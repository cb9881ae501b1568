"""Runs everything that needs a GPU: `make gpu-check`, or `python -m benchmarks.gpu_check`.

It runs the tests marked `gpu`, then the benchmarks of benchmarks/gpu, and compares the figures with
the goals. It writes one flat JSON file, benchmarks/results/gpu.json, with the name of the device,
and the table in docs/gpu.md. A run takes less than eight minutes. A part that fails is reported,
and its figures are missing.

It needs the repository, NumPy, Numba, numba-cuda, CuPy, pytest, hypothesis, grpcio, protobuf, rich,
safetensors and prometheus-client. An installation is not necessary:
PYTHONPATH=clients:server:kernels. If torch is installed, it is measured as an opponent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from benchmarks.pages import ROOT, write_between

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"
COMMAND = "make gpu-check"
NOT_MEASURED = "not yet measured"
TEST_SECONDS_MAX = 240
PACKAGES = ("numpy", "numba", "numba-cuda", "cupy-cuda13x", "cupy-cuda12x", "torch", "grpcio", "protobuf")

Figures = dict[str, float | str | None]


class Goal(NamedTuple):
    """A goal: `over` divided by `under` (or `over` itself if `under` is None) is at least or at
    most `bound`.
    """

    name: str
    label: str
    over: str
    under: str | None
    bound: float
    at_least: bool


GOALS = (
    Goal("gpu_hogwild_share_of_copy", "Hogwild, float32 ÷ copy bandwidth", "gpu_hogwild_gb_per_s",
         "gpu_copy_gb_per_s", 0.60, True),
    Goal("gpu_hogwild_float16_share_of_copy", "Hogwild, float16 ÷ copy bandwidth",
         "gpu_hogwild_float16_gb_per_s", "gpu_copy_gb_per_s", 0.55, True),
    Goal("ratio_gpu_ordered_16384_to_hogwild", "ordered ÷ Hogwild, micro-batches of 16,384",
         "gpu_ordered_16384_events_per_s", "gpu_hogwild_events_per_s", 0.7, True),
    Goal("ratio_gpu_ordered_65536_to_hogwild", "ordered ÷ Hogwild, micro-batches of 65,536",
         "gpu_ordered_65536_events_per_s", "gpu_hogwild_events_per_s", 0.7, True),
    Goal("ratio_gpu_together_16384_to_hogwild", "ordered in one launch ÷ Hogwild, micro-batches of 16,384",
         "gpu_together_16384_events_per_s", "gpu_hogwild_events_per_s", 0.7, True),
    Goal("ratio_gpu_together_65536_to_hogwild", "ordered in one launch ÷ Hogwild, micro-batches of 65,536",
         "gpu_together_65536_events_per_s", "gpu_hogwild_events_per_s", 0.7, True),
    Goal("gpu_digests_equal", "equal digests of all runs, launch shapes and the CPU (1: yes)", "gpu_digests_equal",
         None, 1.0, True),
    Goal("ratio_gpu_ordered_to_block_a_row", "ordered ÷ one block a row, micro-batches of 65,536", "gpu_ordered_65536_events_per_s",
         "gpu_block_a_row_65536_events_per_s", 3.0, True),
    Goal("ratio_gpu_ordered_to_cpu", "ordered ÷ CPU backend on all cores, micro-batches of 65,536",
         "gpu_ordered_65536_events_per_s", "gpu_cpu_all_cores_events_per_s", 10.0, True),
    Goal("gpu_softmax_events_per_s", "rule softmax, 64 negatives, groups of 16, micro-batches of 16,384: events ÷ second",
         "gpu_softmax_events_per_s", None, 40e6, True),
    Goal("gpu_solve_events_per_s", "rule solve, preset `clicks`, micro-batches of 4,096: events ÷ second",
         "gpu_solve_events_per_s", None, 3e6, True),
    Goal("gpu_device_busy_share", "busy time of the device ÷ time, at the peak rate of gRPC", "gpu_device_busy_share",
         None, 0.2, False),
    Goal("ratio_gpu_topk_to_read", "exact top-100 of 1 million, 1 user ÷ one reading of the table",
         "gpu_topk_100_ms", "gpu_table_read_ms", 2.0, False),
    Goal("ratio_gpu_topk_64_to_torch", "exact top-100 of 1 million, 64 users ÷ torch.matmul and torch.topk",
         "gpu_topk_100_of_64_users_ms", "gpu_torch_topk_ms", 1.0, False),
    Goal("gpu_score_500_ingest_p99_ms", "Score of 500 candidates under full ingest, p99, ms",
         "gpu_score_500_ingest_p99_ms", None, 3.0, False),
)  # fmt: skip
"""The goals hold for an H100-class GPU, k = 64, Zipf-distributed items, 10 million users and 1
million items.

Rules SOFTMAX and SOLVE use a tenth of the users and items.
"""


def completed(figures: Figures) -> Figures:
    """Adds the quotients to the figures. A quotient is None if a part of it is missing."""
    out = dict(figures)
    for name, factor_bytes in (("gpu_hogwild", 4), ("gpu_hogwild_float16", 2)):
        rate = out.get(f"{name}_events_per_s")
        # Two rows of 64 factors are read and written, and the event is read.
        event_bytes = 2 * 2 * 64 * factor_bytes + 12
        out[f"{name}_gb_per_s"] = rate * event_bytes / 1e9 if isinstance(rate, float) else None
    for goal in GOALS:
        over, under = out.get(goal.over), 1.0 if goal.under is None else out.get(goal.under)
        known = isinstance(over, float) and isinstance(under, float) and under > 0
        out[goal.name] = over / under if known else None  # type: ignore[operator]
    return out


def table(figures: Figures) -> str:
    """The goals as a table in Markdown."""
    lines = ["| figure | goal | measured |", "|---|---|---|"]
    for goal in GOALS:
        value = figures.get(goal.name)
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}"
        if isinstance(value, float):
            reached = value >= goal.bound if goal.at_least else value <= goal.bound
            shown = f"{value:.3g}{'' if reached else ' (not reached)'}"
        else:
            shown = NOT_MEASURED
        lines.append(f"| {goal.label} | {bound} | {shown} |")
    if figures:
        lines.append("")
        lines.append(f"{figures.get('gpu_device')}, {figures.get('run_date')}: {figures.get('gpu_tests')}.")
    return "\n".join(lines)


def write_page(figures: Figures) -> None:
    """Writes the table to docs/gpu.md."""
    write_between(PAGE, COMMAND, table(figures))


def environment() -> dict[str, str]:
    """The environment of this process, so that packages and tests are found without an
    installation.
    """
    paths = [str(ROOT / folder) for folder in ("clients", "server", "kernels", ".")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


def run_tests() -> Figures:
    """Runs all tests marked `gpu` and returns pytest's last line.

    The project's own options are not used, since they name plugins that may be missing.
    """
    command = [
        sys.executable, "-m", "pytest", "tests/kernels", "-m", "gpu and not long", "-q", "-o", "addopts=", "-p",
        "no:cacheprovider",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TEST_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"gpu_tests": f"not finished after {TEST_SECONDS_MAX} s", "gpu_tests_failed": 1.0}
    print(done.stdout[-6000:], done.stderr[-2000:])
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    passed = re.search(r"(\d+) passed", last)
    fine = done.returncode == 0 and passed is not None and "skipped" not in last
    return {"gpu_tests": last.strip("= "), "gpu_tests_failed": float(not fine)}


def facts() -> Figures:
    """The date, the machine and the versions."""
    import cupy

    found: Figures = {
        "run_date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu_device": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        "gpu_driver_cuda": str(cupy.cuda.runtime.driverGetVersion()),
        "version_python": sys.version.split()[0],
    }
    for name in PACKAGES:
        try:
            found[f"version_{name.replace('-', '_')}"] = version(name)
        except PackageNotFoundError:
            found[f"version_{name.replace('-', '_')}"] = None
    return found


def parts() -> dict[str, Callable[[], Figures]]:
    """The parts to measure, in order."""
    import cupy

    from benchmarks.gpu import figures, served

    sizes = figures.Sizes()
    return {
        "copy": lambda: figures.copy_rate(sizes),
        "digests": lambda: figures.digests(sizes),
        "updates": lambda: figures.update_rates(sizes),
        "rules": lambda: figures.rule_rates(sizes),
        "cpu": lambda: figures.cpu_rate(sizes),
        "top-k": lambda: figures.top_k_times(sizes),
        "served": lambda: served.measure(cupy),
    }


def measured(todo: dict[str, Callable[[], Figures]]) -> Figures:
    """Runs all parts. A part that fails is printed and left out."""
    found: Figures = {}
    for name, part in todo.items():
        started = time.perf_counter()
        try:
            found |= part()
        except Exception:
            print(f"{name}: failed\n{traceback.format_exc()}")
            found[f"failed_{name.replace('-', '_')}"] = traceback.format_exc().strip().splitlines()[-1]
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    return found


def main() -> int:
    """Tests, measures and writes. Returns 1 if a test or a part failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="path of the JSON file")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT / folder) for folder in ("clients", "server", "kernels", ".")]
    from livefactor_kernels.backend import BackendUnavailable, choose_backend

    try:
        choose_backend("cuda")
    except BackendUnavailable as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    figures = facts() | ({} if arguments.no_tests else run_tests())
    figures = completed(figures | measured(parts()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if arguments.output == RESULTS:
        write_page(figures)
    print(table(figures))
    return int(bool(figures.get("gpu_tests_failed")) or any(name.startswith("failed_") for name in figures))


if __name__ == "__main__":
    sys.exit(main())
