"""Tables: allocation in order of first appearance, growth without copies, restoring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.spec.model import FactorDtype, Limits, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.reference import ReferenceTable
from synthetic import make_spec

KINDS = (Table, ReferenceTable)


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.fixture(
    params=[(kind, dtype) for kind in KINDS for dtype in FactorDtype],
    ids=lambda param: f"{param[0].__name__}-{param[1].name.lower()}",
)
def table(request) -> Table | ReferenceTable:
    kind, dtype = request.param
    spec = make_spec(Loss.BPR, OptimizerKind.ADAGRAD, negatives=2, k=20, factor_dtype=dtype)
    return kind(spec, USERS)


def test_rows_are_given_in_order_of_first_appearance(table) -> None:
    assert table.allocate(keys(9, 5, 9, 0, 2**64 - 1)).tolist() == [0, 1, 0, 2, 3]
    assert table.allocate(keys(7, 5, 8, 7)).tolist() == [4, 1, 5, 4]
    assert table.allocated == 6
    assert table.sections(6)["keys"].tolist() == [9, 5, 0, 2**64 - 1, 7, 8]


def test_count_new_and_find_change_nothing(table) -> None:
    table.allocate(keys(1, 2))
    before = {name: view.copy() for name, view in table.sections(2).items()}
    assert table.count_new(keys(2, 3, 3, 4)) == 2
    assert table.find(keys(3, 1, 2), 2).tolist() == [NO_ROW, 0, 1]
    # A row that is not published is unknown.
    assert table.find(keys(1, 2), 1).tolist() == [0, NO_ROW]
    assert table.allocated == 2
    assert all(before[name].tobytes() == view.tobytes() for name, view in table.sections(2).items())


def test_factors_are_as_wide_as_the_spec_says(table) -> None:
    table.allocate(keys(1, 2))
    narrow = table.spec.factor_dtype != FactorDtype.FLOAT32
    sections = table.sections(2)
    assert sections["factors"].itemsize == (2 if narrow else 4)
    assert sections["factor_g"].dtype == sections["bias"].dtype == np.float32
    assert table.row_bytes == 8 + 32 * sections["factors"].itemsize + 4 + 33 * 4


@pytest.mark.parametrize("dtype", FactorDtype)
def test_new_rows_are_initialised_like_the_reference(dtype) -> None:
    spec = make_spec(Loss.SQUARED, OptimizerKind.ADAGRAD, k=20, seed=2**64 - 1, factor_dtype=dtype)
    fast, judge = Table(spec, ITEMS), ReferenceTable(spec, ITEMS)
    batch = np.array([3, 2**64 - 1, 3, 1 << 40], np.uint64)
    assert fast.allocate(batch).tolist() == judge.allocate(batch).tolist()
    for name, view in judge.sections(3).items():
        assert fast.sections(3)[name].tobytes() == view.tobytes(), name
    assert not fast.factors[:3, 20:].any()
    assert (fast.state["factor_g"][:3, :20] == np.float32(0.1)).all()


@pytest.mark.parametrize("dtype", [FactorDtype.FLOAT16, FactorDtype.BFLOAT16])
def test_narrow_initial_factors_are_neighbours_of_the_wide_ones(dtype) -> None:
    spec = make_spec(Loss.SQUARED, k=64)
    wide, narrow = Table(spec, USERS), Table(replace(spec, factor_dtype=dtype), USERS)
    for each in (wide, narrow):
        each.allocate(np.arange(500, dtype=np.uint64))
    exact, got = wide.factors[:500].astype(np.float64), widened(narrow.factors[:500])
    step = np.exp2(np.floor(np.log2(np.abs(exact))) - (10 if dtype == FactorDtype.FLOAT16 else 7))
    errors = (got - exact) / np.maximum(step, 2.0**-24 if dtype == FactorDtype.FLOAT16 else 0.0)
    assert np.abs(errors).max() < 1.0
    assert abs(errors.mean()) < 0.02 and errors.std() > 0.3
    assert (errors[0] != errors[1]).any()


def test_sides_start_from_different_factors() -> None:
    spec = make_spec(Loss.SQUARED)
    users, items = Table(spec, USERS), Table(spec, ITEMS)
    users.allocate(keys(1))
    items.allocate(keys(1))
    assert (users.factors[0] != items.factors[0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_table_refuses_and_keeps_what_it_has(kind) -> None:
    table = kind(ModelSpec(k=4, limits=Limits(users_max=3, items_max=1)), USERS)
    table.allocate(keys(1, 2))
    with pytest.raises(OverflowError, match="3 rows"):
        table.allocate(keys(3, 4))
    assert table.allocated == 2
    assert table.count_new(keys(3)) == 1
    # The record is longer than the room, but it has only one new key.
    assert table.allocate(keys(3, 3, 1, 2)).tolist() == [2, 2, 0, 1]


def test_growth_moves_nothing() -> None:
    table = Table(ModelSpec(k=64), USERS)
    address = table.factors.ctypes.data
    assert address % 64 == 0
    table.allocate(np.arange(5, dtype=np.uint64))
    first = table.factors[:5].copy()
    table.allocate(np.arange(100_000, dtype=np.uint64))
    assert table.factors.ctypes.data == address
    assert np.array_equal(table.factors[:5], first)


def test_a_restored_table_is_the_table(table) -> None:
    table.allocate(keys(4, 8, 15, 16, 23, 42))
    saved = {name: view.copy() for name, view in table.sections(6).items()}
    saved["bias"][:] = np.arange(6)
    saved["factors"][:] += saved["factors"][::-1]
    other = type(table)(table.spec, USERS)
    other.load_sections(saved, 6)
    assert other.allocated == 6
    assert other.find(keys(42, 4, 5), 6).tolist() == [5, 0, NO_ROW]
    assert all(saved[name].tobytes() == view.tobytes() for name, view in other.sections(6).items())
    assert other.allocate(keys(5, 8)).tolist() == [6, 1]
    with pytest.raises(ValueError, match="empty"):
        other.load_sections(saved, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sections_are_refused_and_leave_the_table_empty(kind) -> None:
    spec = make_spec(Loss.SQUARED, k=20)
    source, table = kind(spec, USERS), kind(spec, USERS)
    source.allocate(keys(1, 2, 3))
    good = {name: view.copy() for name, view in source.sections(3).items()}
    for bad in (
        {**good, "keys": keys(1, 2, 1)},
        {name: view for name, view in good.items() if name != "bias"},
        {**good, "factors": good["factors"][:, :19]},
        {**good, "bias": good["bias"].astype(np.float64)},
        {**good, "factors": good["factors"].astype(np.float16)},
    ):
        with pytest.raises(ValueError, match="load_sections"):
            table.load_sections(bad, 3)
        assert table.allocated == 0 and table.find(keys(1), 3).tolist() == [NO_ROW]
    table.load_sections(good, 3)
