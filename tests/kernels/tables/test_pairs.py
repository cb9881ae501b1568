"""One call finds the rows of users and items, if all have rows."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.spec.model import ITEMS, USERS, Limits, ModelSpec
from livefactor_kernels.tables import pairs, reference
from livefactor_kernels.tables.keys import RowKeys

SPEC = ModelSpec(limits=Limits(users_max=20_000, items_max=20_000))


@pytest.fixture(scope="module")
def tables() -> tuple[RowKeys, RowKeys]:
    draw, found = np.random.default_rng(3), []
    for side in (USERS, ITEMS):
        table = RowKeys(SPEC, side)
        table.allocate(np.append(draw.integers(0, 2**63, 9_000, np.uint64), np.uint64(0)))
        found.append(table)
    return found[0], found[1]


@pytest.mark.parametrize(("users", "items"), [(1, 1), (0, 3), (40, 0), (17, 17), (4_096, 4_096)])
def test_rows_are_those_of_each_table(tables: tuple[RowKeys, RowKeys], users: int, items: int) -> None:
    draw = np.random.default_rng(users + items)
    keys = [
        draw.choice(table.keys[: table.allocated], n) for table, n in zip(tables, (users, items), strict=True)
    ]
    rows = pairs.known_rows(*tables, *keys)
    assert rows is not None
    for table, own, each in zip(tables, rows, keys, strict=True):
        assert own.dtype == np.uint32 and (own == table.find(each, table.allocated)).all()


def test_a_key_without_a_row_leaves_all_to_the_caller(tables: tuple[RowKeys, RowKeys]) -> None:
    known = [table.keys[:5].copy() for table in tables]
    for side in (USERS, ITEMS):
        keys = [each.copy() for each in known]
        keys[side][4] = 12345
        assert pairs.known_rows(*tables, *keys) is None
    assert [table.allocated for table in tables] == [9_001, 9_001]


def test_what_the_call_cannot_take_is_left_to_the_caller(tables: tuple[RowKeys, RowKeys]) -> None:
    keys = tables[0].keys[:10].copy()
    many = np.repeat(keys, pairs.KEYS_MAX // 10)
    items = tables[1].keys[:10].copy()
    assert pairs.known_rows(*tables, many, np.append(items, items)) is None
    assert pairs.known_rows(*tables, keys.astype(np.int64), items) is None
    assert pairs.known_rows(*tables, keys[::2], items[:5]) is None
    slow = reference.ReferenceTable(SPEC, USERS), reference.ReferenceTable(SPEC, ITEMS)
    assert pairs.known_rows(*slow, keys, items) is None
