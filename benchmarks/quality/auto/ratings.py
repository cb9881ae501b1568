"""`auto` on ratings, beside tuned multi-pass SGD.

A model with preset `auto` that takes its values for ratings is switched to preset `ratings`, and
has the state that this preset gives from the first event on (docs/auto.md). So the benchmark checks
that the server's rule recognises the values, and then learns the ratings with the spec that the
model gets.
"""

from __future__ import annotations

from benchmarks.quality import ratings
from benchmarks.quality.data import Division, cut
from benchmarks.quality.search import Settings, grid, pick
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.spec.presets import preset
from livefactor_server.engine.ratings import spec_after

MULTI_PASS_GRID = grid(rate=(0.005, 0.01, 0.02), l2=(0.05, 0.1, 0.2), k=(16, 64))


def opponent(division: Division) -> dict[str, float | str]:
    """The error of multi-pass SGD, tuned on an earlier cut, and its settings."""
    tuning, epochs = cut(division.learned, True, 0.8, 1.0), {}

    def worth(settings: Settings) -> float:
        error, epochs[str(settings)] = ratings.best_epochs(tuning, settings)
        return -error

    choice = pick(MULTI_PASS_GRID, worth)
    passes = epochs[str(choice.settings)]
    model = ratings.multi_pass(division.learned, passes, 0, **choice.settings)  # type: ignore[arg-type]
    return {
        "multi_pass_rmse": ratings.error_of(model, division.judged),
        "multi_pass_settings": f"{choice.words}, epochs {passes}",
    }


def error(division: Division) -> float:
    """The error of the model that `auto` becomes."""
    spec = spec_after(preset("auto"), division.learned.values)
    assert spec.loss == Loss.SQUARED
    return ratings.error_of(one_pass(spec, division.learned), division.judged)
