"""The choice of a backend: by the device that answers, not by a library that fails to load. Nothing
is loaded without need.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from livefactor_kernels import backend
from livefactor_kernels.backend import BACKEND_NAMES, BackendUnavailable, choose_backend


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_name_stands_for_itself(name) -> None:
    assert choose_backend(name) == name


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="cpu, cuda, reference, auto, got 'abacus'"):
        choose_backend("abacus")


def test_without_the_libraries_auto_is_the_cpu_and_cuda_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert choose_backend("auto") == "cpu"
    with pytest.raises(
        BackendUnavailable, match=r"no GPU answers \(not installed: cupy, numba_cuda; see docs/gpu.md\)"
    ):
        choose_backend("cuda")


@pytest.mark.parametrize(("answers", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_what_answers(answers, chosen, monkeypatch) -> None:
    from livefactor_kernels.device import machine as device

    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    monkeypatch.setattr(device, "is_available", lambda: answers)
    monkeypatch.setattr(device, "found", lambda: "a stone")
    assert choose_backend("auto") == chosen
    if answers:
        assert choose_backend("cuda") == "cuda"
    else:
        with pytest.raises(BackendUnavailable, match="a stone"):
            choose_backend("cuda")


def test_the_cpu_loads_nothing_of_the_gpus() -> None:
    code = (
        "import sys; from livefactor_kernels.backend import choose_backend; choose_backend('cpu');"
        "print([name for name in sys.modules if name.split('.')[0] in ('cupy', 'numba_cuda') or name == 'numba.cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(BACKEND_NAMES) == {"cpu", "cuda", "reference"}
