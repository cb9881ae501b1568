"""Models with narrow factors: the bits of the reference, and the inputs of their rounding."""

from __future__ import annotations

import pytest

from livefactor_kernels.backend import create_backend
from livefactor_kernels.spec.model import FactorDtype, Loss
from synthetic import differences, make_spec, push

NARROW = [FactorDtype.FLOAT16, FactorDtype.BFLOAT16]


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_rounded_depends_on_the_revision_and_the_number_in_the_record(dtype) -> None:
    """The same events on the same rows, in a later record. Without negatives only the rounding
    differs.
    """
    spec = make_spec(Loss.SQUARED, factor_dtype=dtype)
    first, second = create_backend("cpu", spec), create_backend("cpu", spec)
    second.advance(5)
    for model in (first, second):
        push(model, [1, 2], [3, 4], [1.0, 2.0])
    assert set(differences(first, second)) == {"users.factors", "items.factors"}
    one, other = create_backend("cpu", spec), create_backend("cpu", spec)
    # One record: the numbers 0 and 1.
    push(one, [1, 1], [3, 3], [1.0, 1.0])
    # Two records: the number 0 twice.
    push(other, [1], [3], [1.0])
    push(other, [1], [3], [1.0])
    assert {"users.factors", "items.factors"} <= set(differences(one, other))
