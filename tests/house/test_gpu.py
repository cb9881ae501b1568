"""House rules for the GPU.

One file imports numba.cuda. Each figure was measured or is reported as missing. A server starts
with the packages of a GPU machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import typer

from repository import ROOT, imports, python_files

# No installed package contains the benchmarks.
sys.path.insert(0, str(ROOT))
from benchmarks import gpu_check
from benchmarks.pages import between_marks

WARP = ROOT / "kernels" / "livefactor_kernels" / "device" / "warp.py"


def test_one_file_imports_numba_cuda() -> None:
    found = {
        path
        for path in python_files()
        for _, name in imports(path)
        if name == "numba.cuda" or name.startswith("numba.cuda.")
    }
    assert found == {WARP}


def test_the_page_shows_what_was_measured_and_nothing_else() -> None:
    figures = json.loads(gpu_check.RESULTS.read_text("utf-8")) if gpu_check.RESULTS.exists() else {}
    text = gpu_check.PAGE.read_text(encoding="utf-8")
    _, shown, _ = between_marks(text, gpu_check.COMMAND)
    assert shown == gpu_check.table(figures).strip()
    if not figures:
        assert shown.count(gpu_check.NOT_MEASURED) == len(gpu_check.GOALS)
        assert "**No GPU has been at hand yet.**" in text


def test_goals_are_quotients_of_measured_figures() -> None:
    figures = gpu_check.completed(
        {
            "gpu_copy_gb_per_s": 2000.0,
            "gpu_hogwild_events_per_s": 1e9,
            "gpu_ordered_65536_events_per_s": 6e8,
            "gpu_device_busy_share": 0.3,
            "gpu_device": "a device",
            "run_date": "today",
            "gpu_tests": "9 passed",
        }
    )
    assert figures["gpu_hogwild_share_of_copy"] == pytest.approx(1036 / 2000)
    assert figures["ratio_gpu_ordered_65536_to_hogwild"] == pytest.approx(0.6)
    # Torch was not installed.
    assert figures["ratio_gpu_topk_64_to_torch"] is None
    lines = gpu_check.table(figures).splitlines()
    assert [line for line in lines if "0.518 (not reached)" in line and "at least 0.6" in line]
    assert [line for line in lines if "0.3 (not reached)" in line and "at most 0.2" in line]
    assert lines[-1] == "a device, today: 9 passed."
    assert sum(gpu_check.NOT_MEASURED in line for line in lines) == len(gpu_check.GOALS) - 3


def test_a_part_that_fails_is_reported_and_left_out(capsys) -> None:
    def fails() -> gpu_check.Figures:
        raise MemoryError("no room")

    figures = gpu_check.measured({"one": lambda: {"a": 1.0}, "top-k": fails, "two": lambda: {"b": None}})
    assert figures == {"a": 1.0, "failed_top_k": "MemoryError: no room", "b": None}
    assert "top-k: failed" in capsys.readouterr().out


def test_gpu_check_says_what_it_found_where_there_is_no_gpu() -> None:
    code = (
        "import sys; sys.argv = ['gpu_check']; from livefactor_kernels import backend;"
        "backend.find_spec = lambda name: None; from benchmarks import gpu_check; sys.exit(gpu_check.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=gpu_check.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "gpu-check: backend cuda: no GPU answers (not installed: cupy, numba_cuda; see docs/gpu.md)\n"
    )


MISSING = (
    "blake3", "buf", "cryptography", "google_crc32c", "grpc_health", "grpc_reflection", "grpc_status", "grpc_tools",
    "optuna", "pandas", "psutil", "pytest_timeout", "river", "threadpoolctl",
)  # fmt: skip
"""What a machine with a GPU need not have."""

BARE = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING!r}))
from livefactor import Producer, Scorer
from livefactor.channel import open_channel
from livefactor_server.rpc.embedded import EmbeddedServer
server = EmbeddedServer("clicks_sgd")
channel = open_channel(server.target)
with Producer(producer_id="bare", channel=channel) as producer:
    producer.push([1, 2], [3, 4])
    producer.flush()
print(len(Scorer(channel=channel).recommend(1, 2).item_ids))
channel.close()
server.stop()
print(sorted(name for name in {MISSING!r} if sys.modules.get(name) is not None))
"""


def test_a_server_starts_with_what_a_gpu_machine_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE], env=gpu_check.environment(), capture_output=True, text=True, check=False,
        cwd=os.sep,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["2", "[]"], done.stdout + done.stderr


def test_the_gpu_tests_need_no_plugin() -> None:
    """`gpu_check.run_tests` drops the project's options.

    Pytest must know the remaining options without a plugin.
    """
    text = (ROOT / "benchmarks" / "gpu_check.py").read_text(encoding="utf-8")
    assert '"addopts="' in text and re.search(r'"-m", "gpu and not long"', text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/kernels", "-m", "gpu and not long", "--collect-only", "-q", "-o",
         "addopts=", "-p", "no:cacheprovider", "-p", "no:timeout"],
        cwd=ROOT, env=gpu_check.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for needed in ("test_gpu_device.py", "test_gpu_model.py", "test_gpu_figures.py", "test_conformance.py"):
        assert needed in done.stdout


def test_no_server_lets_in_a_record_that_the_gpu_holds_no_memory_for() -> None:
    from livefactor_kernels.device.scratch import RECORD_EVENTS_MAX
    from livefactor_server.cli.app import app

    serve = typer.main.get_command(app).commands["serve"]
    context = serve.make_context("serve", ["--batch-events-max", str(RECORD_EVENTS_MAX)])
    assert context.params["batch_events_max"] == RECORD_EVENTS_MAX
    with pytest.raises(Exception, match=str(RECORD_EVENTS_MAX)):
        serve.make_context("serve", ["--batch-events-max", str(RECORD_EVENTS_MAX + 1)])
