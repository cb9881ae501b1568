"""Contrasts an adaptive learning rate with five fixed ones on three streams.

The fixed rates are 1/4, 1/2, 1, 2 and 4 times the preset's. The adaptive rate starts at the
preset's. Each record of 64 events is predicted as a whole, then learned. The loss of ratings is the
RMSE. The loss of purchases is the log loss of the event and of newly sampled items, as many as the
preset samples, as a share of what was published. The window is tuned on the first fifth of a
stream, and losses use the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.progressive.data import Stream
from benchmarks.progressive.rmse import served
from benchmarks.quality.ranking import Extent, Figures, Part, chosen
from benchmarks.quality.search import grid, pick
from livefactor_kernels.backend import Update
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.sgd.adaptive import STEP, multiple
from livefactor_kernels.simd.steps import Rows
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import LANES, AdaptiveRate, Loss, ModelSpec
from livefactor_kernels.spec.presets import preset

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The fixed rates, as multiples of the preset's."""
WINDOWS = grid(window=(1024, 2048, 4096))
PRESETS = {"ml1m": "ratings_sgd", "retail": "clicks_sgd", "drift": "ratings_sgd"}
TUNED_PART = 0.2
RECORD_EVENTS = 64
DRIFT_EVENTS = 400_000


def drifting(seed: int, events: int = DRIFT_EVENTS) -> Stream:
    """Synthetic ratings of 2,000 users and 500 items, with eight factors and noise of 0.5.

    The stream alternates between eighths without and with drift. During drift, the users' factors
    become 0.98 times themselves plus new noise every 500 events.
    """
    random, k = np.random.default_rng(seed), 8
    x, y = random.normal(size=(2000, k)) / np.sqrt(k), random.normal(size=(500, k))
    user_bias, item_bias = random.normal(size=2000) * 0.3, random.normal(size=500) * 0.4
    users = (2000 * random.random(events) ** 1.7).astype(np.int64)
    items = (500 * random.random(events) ** 2).astype(np.int64)
    values = 3.5 + user_bias[users] + item_bias[items] + random.normal(size=events) * 0.5
    for start in range(0, events, 500):
        part = slice(start, start + 500)
        values[part] += np.einsum("ij,ij->i", x[users[part]], y[items[part]])
        if 8 * start // events % 2:
            x = 0.98 * x + np.sqrt((1 - 0.98**2) / k) * random.normal(size=x.shape)
    return Stream(users.astype(np.uint64), items.astype(np.uint64), values.astype(np.float32), times=None)


class Run(NamedTuple):
    """The predictions for a stream.

    `losses` are squared errors or log losses, float64[n]; `rate` is the last multiple.
    """

    losses: np.ndarray
    rate: float

    def loss(self, loss: Loss, start: int = 0) -> float:
        """The RMSE or the mean log loss of the events from `start` on."""
        mean = float(self.losses[start:].mean())
        return mean**0.5 if loss == Loss.SQUARED else mean


def run(spec: ModelSpec, stream: Stream) -> Run:
    """Predicts each record, then learns it."""
    model, random = CpuModel(spec), np.random.default_rng(spec.seed)
    tables = Rows.of(model.users), Rows.of(model.items)
    users, items = model.users.allocate(stream.user_keys), model.items.allocate(stream.item_keys)
    counts = [(np.maximum.accumulate(rows) + 1).tolist() for rows in (users, items)]
    # These rows are never assigned, so they stay zero.
    zeros = model.users.allocated, model.items.allocated
    losses, blocks = np.empty(len(stream)), np.uint64(spec.k_padded // LANES)

    def scores(user_rows: np.ndarray, item_rows: np.ndarray) -> np.ndarray:
        out = np.empty(user_rows.size, np.float32)
        served(*tables, model.mean, user_rows, item_rows, model.published, zeros, blocks, out)
        return out.astype(np.float64)

    for revision, start in enumerate(range(0, len(stream), RECORD_EVENTS), 1):
        part = slice(start, min(start + RECORD_EVENTS, len(stream)))
        columns = users[part], items[part]
        if spec.loss == Loss.SQUARED:
            losses[part] = (scores(*columns) - stream.values[part]) ** 2
        else:
            wide = columns[0].size, spec.negatives
            drawn = random.integers(0, max(1, model.published[1]), wide).astype(np.uint32)
            negatives = scores(np.repeat(columns[0], spec.negatives), drawn.ravel()).reshape(wide)
            losses[part] = np.logaddexp(0, -scores(*columns)) + np.logaddexp(0, negatives).sum(axis=1)
        table_counts = (each[part.stop - 1] for each in counts)
        model.apply(Update(revision, *columns, stream.values[part], None, *table_counts))
    step = int(model.state()["rates"][STEP]) if spec.adaptive_rate.window else 0
    return Run(losses, float(multiple(step)))


def _spec(name: str, seed: int, rate: float = 1.0, window: int = 0) -> ModelSpec:
    base = preset(PRESETS[name])
    optimizer = base.optimizer
    rates = {field: getattr(optimizer, field) * rate for field in ("learning_rate", "bias_learning_rate")}
    return check(
        replace(base, optimizer=replace(optimizer, **rates), seed=seed, adaptive_rate=AdaptiveRate(window))
    )


def parts(streams: Mapping[str, Stream], extent: Extent) -> Iterator[Part]:
    """One part per stream: the given streams by name, and the drifting one."""
    for name in PRESETS:
        if name in streams or name == "drift":
            given = streams.get(name)
            yield Part(f"adaptive_{name}", lambda n=name, s=given: _measured(n, s, extent))


def _measured(name: str, given: Stream | None, extent: Extent) -> Figures:
    seeds = range(extent.seeds)
    streams = [drifting(seed, DRIFT_EVENTS // extent.part) if given is None else given for seed in seeds]
    cut, loss = int(TUNED_PART * len(streams[0])), preset(PRESETS[name]).loss

    def worth(settings: dict[str, float | str]) -> float:
        runs = (run(_spec(name, seed, **settings), streams[seed].head(cut)) for seed in seeds)  # type: ignore[arg-type]
        return -float(np.mean([each.loss(loss) for each in runs]))

    choice, figures = pick(extent.of(WINDOWS), worth), {}
    fixed = []
    for rate in RATES:
        runs = [run(_spec(name, seed, rate), streams[seed]) for seed in seeds]
        fixed.append(float(np.mean([each.loss(loss, cut) for each in runs])))
        figures[f"adaptive_{name}_fixed_{rate:g}"] = fixed[-1]
    adapted = [run(_spec(name, seed, **choice.settings), streams[seed]) for seed in seeds]  # type: ignore[arg-type]
    losses = [each.loss(loss, cut) for each in adapted]
    return (
        figures
        | {
            f"adaptive_{name}_best_fixed": min(fixed),
            f"adaptive_{name}_loss": float(np.mean(losses)),
            f"adaptive_{name}_loss_spread": max(losses) - min(losses),
            f"adaptive_{name}_last_rate": float(np.mean([each.rate for each in adapted])),
        }
        | chosen(f"adaptive_{name}", choice)
    )
