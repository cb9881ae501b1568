"""Models with narrow factors: the reference's bits, and what their rounding depends on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.spec.model import FactorDtype, Loss, OptimizerKind
from synthetic import LOSSES, assert_same, differences, make_spec, pair, push, push_random

NARROW = [FactorDtype.FLOAT16, FactorDtype.BFLOAT16]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("sequential", [True, False], ids=["B1", "micro"])
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
@pytest.mark.parametrize("kind", OptimizerKind)
@settings(max_examples=5)
@given(data=st.data())
def test_random_streams_with_narrow_factors(kind, loss, negatives, sequential, dtype, data) -> None:
    k = data.draw(st.sampled_from([1, 16, 20, 64]), "k")
    if negatives:
        negatives = data.draw(st.sampled_from([1, 3, 17] if sequential else [3]), "negatives")
    micro_batch = 1 if sequential else data.draw(st.integers(2, 70), "B")
    # Small enough for float16's multiples of 2**-24, and large enough for every exponent.
    init_scale = data.draw(st.sampled_from([0.1, 1e-4, 1e-6, 50.0]), "init_scale")
    spec = make_spec(
        loss,
        kind,
        k=k,
        negatives=negatives,
        micro_batch=micro_batch,
        factor_dtype=dtype,
        init_scale=init_scale,
    )
    models = pair(spec)
    for events in data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=3), "records"):
        seed = data.draw(st.integers(0, 2**32), "seed")
        for model in models:
            push_random(model, np.random.default_rng(seed), events, 9, 7)
        assert_same(*models)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_rounded_depends_on_the_revision_and_the_number_in_the_record(dtype) -> None:
    """The same events on the same rows, later: without negatives only the rounding can differ."""
    spec = make_spec(Loss.SQUARED, factor_dtype=dtype)
    first, second = create_backend("cpu", spec), create_backend("cpu", spec)
    second.advance(5)
    for model in (first, second):
        push(model, [1, 2], [3, 4], [1.0, 2.0])
    assert set(differences(first, second)) == {"users.factors", "items.factors"}
    one, other = create_backend("cpu", spec), create_backend("cpu", spec)
    push(one, [1, 1], [3, 3], [1.0, 1.0])  # one record, numbers 0 and 1
    push(other, [1], [3], [1.0])  # two records, number 0 both times
    push(other, [1], [3], [1.0])
    assert {"users.factors", "items.factors"} <= set(differences(one, other))


@pytest.mark.parametrize("dtype", NARROW)
def test_records_learned_together_are_rounded_by_their_own_revisions(dtype) -> None:
    spec = make_spec(Loss.LOGISTIC, negatives=2, factor_dtype=dtype)
    together, apart = create_backend("cpu", spec), create_backend("reference", spec)
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 9, (2, 5, 4)).astype(np.uint64)
    updates: dict[str, list[Update]] = {"cpu": [], "reference": []}
    for name, model in (("cpu", together), ("reference", apart)):
        for number in range(5):
            rows = [
                table.allocate(part[number])
                for table, part in zip((model.users, model.items), keys, strict=True)
            ]
            counts = model.users.allocated, model.items.allocated
            updates[name].append(Update(number + 1, *rows, None, None, *counts))
    together.apply_all(updates["cpu"])
    for update in updates["reference"]:
        apart.apply(update)
    assert_same(together, apart)
