"""The CPU kernels of rule SGD at the borders of chunks, clumps and micro-batches, against the
reference.
"""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import create_backend
from livefactor_kernels.spec.model import (
    Loss,
    OptimizerKind,
)
from synthetic import (
    LOSSES,
    assert_same,
    differences,
    make_spec,
    pair,
    push,
)

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD


@pytest.mark.parametrize("occurrences", [1, 31, 32, 33, 63, 64, 65, 96, 97])
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_chunk_boundaries(loss, negatives, occurrences) -> None:
    """One item, then one user, with exactly this number of events in a micro-batch."""
    models = pair(make_spec(loss, micro_batch=200, negatives=negatives, hot_row_events=1e6))
    rng = np.random.default_rng(occurrences)
    values = rng.integers(0, 2, occurrences) if loss == Loss.LOGISTIC else rng.normal(size=occurrences)
    for model in models:
        push(model, range(200), [n % 50 for n in range(200)], [1.0] * 200)
        push(model, range(occurrences), [7] * occurrences, values)
        push(model, [5] * occurrences, [n % 50 for n in range(occurrences)], values)
    assert_same(*models)


# The other optimisers have no clumps.
@pytest.mark.parametrize("kind", [SGD, ADAGRAD])
@pytest.mark.parametrize("negatives", [0, 1, 2, 4, 7, 8])
@pytest.mark.parametrize("loss", [Loss.LOGISTIC, Loss.BPR])
def test_clumps_of_events_that_share_no_row(loss, negatives, kind) -> None:
    """Rows repeat at every distance, and often not at all. The first records have only one item."""
    models = pair(make_spec(loss, kind, negatives=max(negatives, int(loss == Loss.BPR))))
    for model in models:
        rng = np.random.default_rng(negatives)
        for events, users, items in ((1, 1, 1), (7, 9, 1), (300, 40, 30), (5, 90, 90), (400, 300, 200)):
            values = rng.integers(0, 2, events) if events % 2 and loss == Loss.LOGISTIC else None
            push(model, rng.integers(0, users, events), rng.integers(0, items, events), values)
    assert_same(*models)


@pytest.mark.parametrize(("loss", "negatives"), [(Loss.LOGISTIC, 16), (Loss.BPR, 16), (Loss.BPR, 40)])
@pytest.mark.parametrize("items", [1, 2, 3])
def test_repeated_negatives_of_one_event(loss, negatives, items) -> None:
    models = pair(make_spec(loss, negatives=negatives))
    for model in models:
        push(model, range(30), [n % items for n in range(30)], None, [0.5] * 30)
        push(model, [3] * 10, [n % items for n in range(10)])
    assert_same(*models)


def test_two_records_are_one_at_the_same_micro_batches() -> None:
    """Without negatives, whose draws depend on the revision, only the cut into micro-batches
    counts.
    """
    whole, halves = (create_backend("cpu", make_spec(Loss.SQUARED, micro_batch=8)) for _ in range(2))
    rng = np.random.default_rng(2)
    users, items, values = rng.integers(0, 9, 64), rng.integers(0, 7, 64), rng.normal(size=64)
    push(whole, users, items, values)
    push(halves, users[:24], items[:24], values[:24])
    push(halves, users[24:], items[24:], values[24:])
    assert differences(whole, halves) == []


def test_missing_columns_mean_one() -> None:
    for loss, negatives in LOSSES:
        models = [create_backend("cpu", make_spec(loss, negatives=negatives)) for _ in range(2)]
        push(models[0], range(9), [n % 4 for n in range(9)])
        push(models[1], range(9), [n % 4 for n in range(9)], [1.0] * 9, [1.0] * 9)
        assert differences(*models) == []
