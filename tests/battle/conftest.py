"""Fixtures of the battery: servers, and the figures that `make battle` writes.

Each test has a short form, which the suite runs, and a long one. With BATTLE_RESULTS=FILE the
figures of a run are written to this file as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import serve, warm

__all__ = ["serve", "warm"]

Record = Callable[..., None]


@pytest.fixture(scope="session")
def record() -> Iterator[Record]:
    """Provide `record(**figures)`. Later figures replace earlier ones of the same name."""
    figures: dict[str, float] = {}
    yield figures.update
    if (path := os.environ.get("BATTLE_RESULTS")) and figures:
        file = Path(path)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | figures, indent=2, sort_keys=True) + "\n")


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["short", "long"])
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long form."""
    return bool(request.param)
