"""Rule SGD learns consecutive records in as few calls as their negatives allow."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.sgd.cpu import Sgd
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update, UpdateRun


@pytest.mark.parametrize(
    ("counts", "sizes"), [([1, 1, 2, 3], [2, 2]), ([1, 1], [2]), ([2, 2, 2], [3]), ([1], [1])]
)
@pytest.mark.parametrize("is_run", [True, False])
def test_records_with_one_item_are_one_call_and_the_others_another(
    counts: list[int], sizes: list[int], is_run: bool
) -> None:
    spec = preset("clicks_sgd", k=8)
    rule = Sgd(spec, Table(spec, USERS), Table(spec, ITEMS), np.zeros(2, np.int64))
    rows = np.zeros(1, np.uint32)
    updates = [Update(1 + r, rows, rows, None, None, 1, count) for r, count in enumerate(counts)]
    groups = rule.groups(UpdateRun.of(updates) if is_run else updates)
    assert [len(group) for group in groups] == sizes
