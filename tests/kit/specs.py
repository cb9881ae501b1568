"""Small specs for each rule with every term switched on, and records for them."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    Counts,
    History,
    Loss,
    ModelSpec,
    OptimizerKind,
    Proposal,
    Rule,
    Softmax,
    Solve,
)
from synthetic import SMALL, make_spec, push

UNIFORM, POPULARITY, IN_BATCH = Proposal
ADAGRAD = OptimizerKind.ADAGRAD


def softmax_spec(
    proposal: Proposal = POPULARITY, kind: OptimizerKind = OptimizerKind.SGD, **changes: object
) -> ModelSpec:
    """Return a small spec with every term switched on."""
    fields: dict[str, object] = {
        "k": 20,
        "rule": Rule.SOFTMAX,
        "softmax": Softmax(proposal),
        "negatives": 0 if proposal == IN_BATCH else 5,
        "micro_batch": 8,
        "history": History(0 if proposal == UNIFORM else 16),
        "hot_row_events": 2.5,
    }
    return make_spec(Loss.SOFTMAX, kind, **{**fields, **changes})


def grouped(proposal: Proposal, group_events: int, *kind: OptimizerKind, **changes: object) -> ModelSpec:
    """Return the spec of `softmax_spec` with its micro-batches in groups."""
    return softmax_spec(proposal, *kind, softmax=Softmax(proposal, group_events), **changes)


def solve_spec(loss: Loss = Loss.IMPLICIT, **changes: object) -> ModelSpec:
    """Return a small spec with every term switched on. Its rings are short and wrap around."""
    fields: dict[str, object] = {
        "k": 20,
        "loss": loss,
        "rule": Rule.SOLVE,
        "l2": 0.02,
        "bias_l2": 0.03,
        "micro_batch": 4,
        "seed": 7,
        "history": History(16, 16, 1.5),
        "solve": Solve(0.0 if loss == Loss.SQUARED else 0.7, 3, 2),
        "counts": Counts(16, 6, 3.0, 0.5, 2.0),
        "limits": SMALL,
    }
    return check(ModelSpec(**{**fields, **changes}))  # type: ignore[arg-type]


def push_lists(
    model: Backend, rng: np.random.Generator, events: int, users: int = 9, items: int = 30
) -> None:
    """Push a record in which rows repeat, users come in runs and some values are 0.

    In some records, columns are empty.
    """
    user_keys = (
        np.sort(rng.integers(0, users, events)) if rng.random() < 0.5 else rng.integers(0, users, events)
    )
    item_keys = np.where(rng.random(events) < 0.3, 3, rng.integers(0, items, events))
    values = (rng.random(events) < 0.8) * rng.random(events) if rng.random() < 0.6 else None
    push(model, user_keys, item_keys, values, rng.random(events) * 3 + 0.1 if rng.random() < 0.6 else None)
