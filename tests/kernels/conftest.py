"""Skips the tests that need a GPU if there is none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _few_looks_for_cycles() -> Iterator[None]:
    """Collects cyclic garbage less often.

    A compiler makes millions of objects and few cycles. With the usual threshold of 700 objects the
    collections take a fifth of the time. Tests with servers keep the usual threshold, because calls
    that a test drops are cycles that keep streams open.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    yield
    gc.set_threshold(*usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests with the mark `gpu` if no GPU answers, and says what it looked for."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    from livefactor_kernels.backend import BackendUnavailable, choose_backend

    try:
        choose_backend("cuda")
    except BackendUnavailable as reason:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=str(reason)))
