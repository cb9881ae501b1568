"""A sparing process: its models take less memory and fewer threads, and have the same bits."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.simd import sparing
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.softmax import cpu as softmax_cpu
from specs import UNIFORM, push_lists, softmax_spec
from synthetic import differences


def resident_bytes(array: np.ndarray) -> int:
    """The memory that the mapping of a reserved array takes."""
    maps = Path("/proc/self/smaps").read_text()
    address = array.__array_interface__["data"][0]
    for lines in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps):
        first, last = (int(number, 16) for number in lines.split(" ", 1)[0].split("-"))
        if first <= address < last:
            found = re.search(r"^Rss: +(\d+) kB", lines, re.M)
            assert found is not None
            return int(found[1]) * 1024
    raise AssertionError("no mapping")


def test_a_written_byte_takes_one_small_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparing, "_sparing", True)
    array = reserve((8 << 20,), np.uint8)
    before = resident_bytes(array)
    array[4 << 20] = 1
    # Linux may show neighbouring mappings with equal flags as one.
    assert resident_bytes(array) - before <= 1 << 16


def test_one_thread_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_cpu, "processors", lambda: 2)
    for name in ("SHARED_EVENTS", "SHARED_BATCH"):
        monkeypatch.setattr(softmax_cpu, name, 1)
    spec = softmax_spec(UNIFORM, micro_batch=8)
    usual = CpuModel(spec)
    there = set(threading.enumerate())
    monkeypatch.setattr(sparing, "_sparing", True)
    spared = CpuModel(spec)
    assert not set(threading.enumerate()) - there
    for model in (usual, spared):
        push_lists(model, np.random.default_rng(5), 100)
    assert differences(usual, spared) == []
