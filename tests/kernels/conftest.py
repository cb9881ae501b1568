"""Tests that need a GPU say so where there is none."""

from __future__ import annotations

import pytest


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
