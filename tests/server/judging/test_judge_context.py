"""The judge and contests rank an event with the context that it carries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from judged import EVERYTHING, Learner
from livefactor.wire import columns as wire
from livefactor.wire.content import bag_columns
from livefactor_kernels.spec.model import Context, Limits, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging import contestants
from livefactor_server.challenging.steps import Judged
from livefactor_server.changes.content.bags import context_bags

ITEMS = 60
LIMITS = Limits(2000, 2000, value_abs_max=1.0, error_max=4.0)


def spec_of(name: str, size: int = 256) -> ModelSpec:
    return preset(name, k=8, limits=LIMITS, context=Context(size))


def bodies(with_context: bool, records: int = 120, rows: int = 16) -> list[bytes]:
    """Users take any items of one of six kinds, which the word of the event names."""
    rng, found = np.random.default_rng(5), []
    for _ in range(records):
        users, items = rng.integers(0, 50, rows, np.uint64), rng.integers(0, ITEMS, rows, np.uint64)
        context = bag_columns(
            [[{"word": 1.0}, {f"kind:{item % 6}": 1.0}][int(with_context)] for item in items.tolist()]
        )
        found.append(wire.encode_interactions(users, items, context=context))
    return found


def figure(learner: Learner, metric: str) -> float:
    assert learner.judge is not None
    (found,) = [
        each.windowed
        for each in learner.judge.report().figures
        if (each.metric, each.scorer, each.event_type) == (metric, "model", None)
    ]
    return found


@pytest.mark.parametrize("name", ["clicks", "auto", "purchases_sgd"])
def test_context_that_matters_has_better_figures_than_one_that_does_not(name: str) -> None:
    """With context of size 0 the figures are those of a model without it, to the bit."""
    figures = {}
    for case, has_context, size in (("told", True, 256), ("same", False, 256), ("none", True, 0)):
        learner = Learner(spec_of(name, size), replace(EVERYTHING, window_events=1000))
        for data in bodies(has_context):
            learner.learn(data)
        figures[case] = [figure(learner, metric) for metric in ("recall@10", "sampled_recall@10", "loss")]
    told, same, none = (np.array(figures[case]) for case in ("told", "same", "none"))
    assert (told[:2] > 1.2 * same[:2]).all(), figures
    assert told[2] == same[2] == none[2]
    np.testing.assert_allclose(same[:2], none[:2], atol=0.05)


def test_contestants_are_judged_with_context() -> None:
    gains = []
    for size in (256, 0):
        state = Learner(spec_of("clicks", size), None)
        *learned, last = bodies(True)
        for data in learned:
            state.learn(data)
        one = contestants.Learner("one", state.state)
        columns = wire.decode_interactions(last)
        assert columns.context is not None
        context = context_bags(columns.context)
        judged = Judged(columns.user_ids, columns.item_ids, np.ones(len(columns), np.float32), context)
        gains.append(float(one.judge(judged).mean()))
    assert gains[0] > 1.3 * gains[1]
