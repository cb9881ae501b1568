"""A first start serves before it compiles what only later starts need."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from livefactor_kernels.spec.presets import preset
from livefactor_server.hosting import kernels
from livefactor_server.hosting.host import Hosting, HostingSettings
from server_process import wait_until


def test_the_kernels_that_read_a_log_are_compiled_while_the_first_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, compiled = threading.Event(), threading.Event()

    def compile_log() -> None:
        assert served.wait(30), "the start waited for the kernels that read a log"
        compiled.set()

    monkeypatch.setattr(kernels, "LOG", kernels.Step("the log", compile_log))
    settings = HostingSettings(default_spec=preset("clicks_sgd", k=8), auto_cpu_share=0)
    steps: list[str] = []
    hosting = Hosting(tmp_path, settings)
    hosting.open_all(on_step=lambda name, number, count: steps.append(name))
    assert "the log" not in steps and steps[-2:] == ["model default", ""]
    assert not compiled.is_set()
    served.set()
    wait_until(compiled.is_set, "the kernels that read a log")
    hosting.drain()

    steps.clear()
    hosting = Hosting(tmp_path, settings)
    hosting.open_all(on_step=lambda name, number, count: steps.append(name))
    assert steps[0] == "the log"
    hosting.drain()
