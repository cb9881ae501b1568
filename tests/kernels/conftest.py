"""Tests that need a GPU say so where there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _few_looks_for_cycles() -> Iterator[None]:
    """Compilers make objects by the million and few cycles: looking for those after every 700 objects takes a fifth of the time.
    Here alone: where there are servers, calls that a test drops are cycles that hold streams."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    yield
    gc.set_threshold(*usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, with what was looked for, where no GPU answers."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from livefactor_kernels.backend import BackendUnavailable, choose_backend

    try:
        choose_backend("cuda")
    except BackendUnavailable as reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=str(reason)))
