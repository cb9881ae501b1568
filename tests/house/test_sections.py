"""The client and the kernels declare the same snapshot sections.

The client reads snapshots without the kernels, so it has its own declarations.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from livefactor.snapshots.format import NUMPY_DTYPES
from livefactor.snapshots.sections import SIDES, parse_spec, row_sections, small_sections
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Context,
    Counts,
    Embeddings,
    FactorDtype,
    Features,
    History,
    Limits,
    Loss,
    Merge,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Privacy,
    Replay,
    Rule,
    Softmax,
    Solve,
    SpecError,
)
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"loss": Loss.LOGISTIC, "negatives": 2},
    "sgd-squared": {"loss": Loss.SQUARED},
    "sgd-bpr": {"loss": Loss.BPR, "negatives": 2},
    "solve-squared": {"loss": Loss.SQUARED, "rule": Rule.SOLVE, "history": History(32, 16)},
    "solve-implicit": {
        "loss": Loss.IMPLICIT,
        "rule": Rule.SOLVE,
        "solve": Solve(0.5),
        "history": History(32, 16),
    },
    "softmax": {"loss": Loss.SOFTMAX, "rule": Rule.SOFTMAX, "negatives": 4, "softmax": Softmax()},
}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "users": {"history": History(32)},
    "both": {"history": History(32, 16)},
    "counts": {"history": History(32, 16), "counts": Counts(48)},
    "paged": {"history": History(32, 16, paged=True), "counts": Counts(48)},
    "replay": {"history": History(32, 16), "replay": Replay(10, 0.5)},
    "mix": {"history": History(32, 16), "counts": Counts(48), "solve": Solve(0.5), "mix": Mix(0.01)},
    "recent": {"history": History(32, 16), "counts": Counts(48), "solve": Solve(0.5), "mix": Mix(0.01, 1.0)},
    "similar": {
        "history": History(32, 16),
        "counts": Counts(48),
        "solve": Solve(0.5),
        "mix": Mix(0.01, 1.0, 9),
    },
    "baskets": {
        "history": History(32, 16),
        "counts": Counts(48),
        "solve": Solve(0.5),
        "mix": Mix(0.01, 1.0, 9, baskets=True),
    },
    "walks": {
        "history": History(32, 16),
        "counts": Counts(48),
        "solve": Solve(0.5),
        "mix": Mix(0.01, 1.0, 9, walk_users=9),
    },
    "embeddings": {"history": History(32, 16), "embeddings": Embeddings(12)},
    "vectors of users": {"history": History(32, 16), "embeddings": Embeddings(0, 8.0, 12)},
    "features": {"history": History(32, 16), "features": Features(32, 4)},
    "follow": {"history": History(32, 16), "features": Features(32, 4, 8.0)},
    "context": {"context": Context(32)},
    "density": {"history": History(32, 16), "solve": Solve(unobserved_density=10.0)},
    "start": {"history": History(32, 16), "solve": Solve(0.5, start_events=8.0)},
    "adaptive": {"adaptive_rate": AdaptiveRate(64)},
    "privacy": {"merge": Merge(1.0, 100.0), "privacy": Privacy(8.0, 1e-6, 60, 1.0, 2.0)},
    "float16": {"factor_dtype": FactorDtype.FLOAT16},
    "bfloat16": {"factor_dtype": FactorDtype.BFLOAT16},
}


def _specs() -> Iterator[Any]:
    limits = Limits(users_max=64, items_max=64, value_abs_max=10.0, error_max=4.0)
    for (rule, of_rule), kind, (part, of_part) in product(RULES.items(), OptimizerKind, PARTS.items()):
        fields = {
            "k": 5,
            "l2": 0.01,
            "bias_l2": 0.01,
            "micro_batch": 4,
            "limits": limits,
            "optimizer": Optimizer(kind),
            **of_rule,
            **of_part,
        }
        try:
            yield pytest.param(check(ModelSpec(**fields)), id=f"{rule}-{kind.name.lower()}-{part}")
        except SpecError:
            # Some rules do not accept some parts.
            continue


SPECS = list(_specs())


def test_the_specs_have_every_rule_optimizer_and_part() -> None:
    found = [spec.values[0] for spec in SPECS]
    assert {spec.rule for spec in found} == set(Rule)
    assert {spec.loss for spec in found} == set(Loss)
    assert {spec.optimizer.kind for spec in found} == set(OptimizerKind)
    assert {spec.factor_dtype for spec in found} == set(FactorDtype)
    assert {spec.id.rsplit("-", 1)[1] for spec in SPECS} == PARTS.keys()


@pytest.mark.parametrize("spec", SPECS)
def test_the_client_declares_the_sections_that_the_kernels_have(spec: ModelSpec) -> None:
    body = spec_codec.encode(spec)
    message = parse_spec(body)
    state = ModelState.empty(spec, body, uuid.UUID(int=1), "reference", b"")
    for side, name in enumerate(SIDES):
        declared = [
            (each.name, NUMPY_DTYPES[each.dtype], () if each.ragged else each.shape)
            for each in row_sections(message, name)
        ]
        arrays = state.backend.sections(side, 0)
        assert declared == [(section, array.dtype.str, array.shape[1:]) for section, array in arrays.items()]
    small = state.freeze_small().arrays()
    declared_small = small_sections(message)
    assert [each.name for each in declared_small] == sorted(small)
    for section, dtype, length, _ in declared_small:
        assert small[section].dtype.str == NUMPY_DTYPES[dtype]
        assert length is None or small[section].shape == (length,)
