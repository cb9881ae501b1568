"""The fixture of scripts in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from numba_forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Provide a process that runs scripts as its forks."""
    made = Forks()
    yield made
    made.close()
