"""What may be tried in a model's place: the presets, and one entry per learning rule.

`livefactor tune` tries the presets and the points of the rules first, and then searches the spaces
of the rules. The contests of a model try the same presets and points (`candidates.py`). A new rule
needs only a new entry here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    Counts,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Solve,
)
from livefactor_kernels.spec.names import PRESET_NAMES
from livefactor_kernels.spec.presets import preset
from livefactor_server.model import spec_codec

if TYPE_CHECKING:
    from optuna import Trial

Value = float | int


@dataclass(frozen=True, slots=True)
class Range:
    """A numeric field of the spec, searched on a logarithmic scale.

    An example of `field` is "optimizer.learning_rate". Floats are rounded to three digits, which is
    precise enough for every metric.
    """

    field: str
    low: Value
    high: Value

    def suggest(self, trial: Trial, name: str) -> Value:
        """The parameter of a trial, chosen by Optuna."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), log=True)
        return trial.suggest_float(name, self.low, self.high, log=True)

    def value(self, parameter: Value) -> Value:
        """The value of the field for a parameter."""
        return parameter if isinstance(parameter, int) else float(f"{parameter:.3g}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A field of the spec with a few possible values."""

    field: str
    options: tuple[Value, ...]

    def suggest(self, trial: Trial, name: str) -> Value:
        """The parameter of a trial, chosen by Optuna."""
        return trial.suggest_categorical(name, self.options)

    def value(self, parameter: Value) -> Value:
        """The value of the field for a parameter."""
        return parameter


@dataclass(frozen=True, slots=True)
class Rule:
    """A learning rule and its search space.

    Attributes:
        tasks: the tasks that it is for.
        preset: the preset that `start` is, or was derived from.
        start: the spec of the first trial. Fields that are not searched keep its values.
        axes: the searched fields.
        points: further specs that are tried as they are, by name: values of searched fields.
    """

    tasks: tuple[str, ...]
    preset: str
    start: ModelSpec
    axes: tuple[Range | Choice, ...]
    points: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def first(self, name: str, point: str = "") -> dict[str, Any]:
        """The parameters of `start`, or of a point, under their names in a trial."""
        values = self.points[point] if point else {}
        return {
            f"{name}.{axis.field}": values.get(axis.field, field_of(self.start, axis.field))
            for axis in self.axes
        }

    def suggest(self, trial: Trial, name: str) -> None:
        """Lets Optuna choose the parameters of a trial.

        Their names start with the name of the rule.
        """
        for axis in self.axes:
            axis.suggest(trial, f"{name}.{axis.field}")

    def of_parameters(self, parameters: Mapping[str, Value], name: str) -> ModelSpec:
        """The spec for the parameters of a trial, with numbers rounded as in the log of a model.

        Trials from before an axis was added have no parameter for it. They get the value of
        `start`.
        """
        values = {axis.field: (axis, parameters.get(f"{name}.{axis.field}")) for axis in self.axes}
        return self.spec({f: axis.value(value) for f, (axis, value) in values.items() if value is not None})

    def spec(self, values: Mapping[str, Value]) -> ModelSpec:
        """`start` with some fields changed. Raises SpecError if the spec is invalid."""
        spec = self.start
        for path, value in values.items():
            spec = _with_field(spec, path, value)
        return spec_codec.decode(spec_codec.encode(check(spec)))


def field_of(spec: ModelSpec, path: str) -> Any:
    """The value of a field, given by its path, for example "optimizer.learning_rate"."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _with_field(spec: Any, path: str, value: Value) -> Any:
    name, _, rest = path.partition(".")
    return replace(spec, **{name: _with_field(getattr(spec, name), rest, value) if rest else value})


RANKING = ("clicks", "purchases", "news")
TASKS = ("ratings", *RANKING)
"""The tasks. Each is the name of the preset that it starts with."""

# Each k has its own kernels, which are compiled at first use. The search therefore tries few
# values.
_K = Choice("k", (16, 32, 64, 128))
_NEGATIVES = Range("negatives", 1, 32)
_SGD = (
    Range("optimizer.learning_rate", 0.01, 0.5),
    Range("optimizer.bias_learning_rate", 0.003, 0.5),
    # Only plain SGD supports an adaptive rate.
    Choice("adaptive_rate.window", (0, 2048)),
)
_ADAGRAD = Range("optimizer.learning_rate", 0.02, 1.0), Range("optimizer.bias_learning_rate", 0.005, 1.0)
_L2 = Range("l2", 1e-5, 0.1)
_BIAS_L2 = Range("bias_l2", 1e-4, 0.1)
_SOLVE = (
    Range("l2", 3e-4, 0.03),
    Range("solve.unobserved", 0.1, 10.0),
    Range("history.half_life", 0.5, 20.0),
    Range("counts.weight", 0.05, 5.0),
    Choice("counts.repeat", (0.0, 0.1, 0.2)),
    Choice("k", (32, 64)),
)
_MIX = (
    Range("l2", 3e-4, 0.03),
    Range("solve.unobserved_density", 5.0, 200.0),
    Choice("k", (32, 64)),
)
_PLAIN = (
    Range("l2", 3e-4, 0.03),
    Range("solve.unobserved", 0.01, 10.0),
    Choice("k", (32, 64)),
)
_SOFTMAX = (
    *_ADAGRAD,
    _L2,
    Choice("micro_batch", (8, 64, 512)),
    Choice("softmax.group_events", (4, 8)),
    Choice("k", (32, 64)),
)


_WHOLE_HISTORIES = preset(
    "clicks",
    l2=0.006,
    history=History(users=4096, items=4096, paged=True),
    solve=Solve(unobserved=0.1),
    counts=Counts(),
    limits=Limits(),
)
"""Alternating least squares in one pass: no recency, no counts, and nothing is forgotten."""


def _adagrad(rate: float) -> Optimizer:
    return Optimizer(OptimizerKind.ADAGRAD, rate, rate, initial_g=0.5)


RULES = {
    "squared-sgd": Rule(("ratings",), "ratings_sgd", preset("ratings_sgd"), (*_SGD, _L2, _BIAS_L2, _K)),
    "squared-adagrad": Rule(
        ("ratings",),
        "ratings_sgd",
        preset("ratings_sgd", optimizer=_adagrad(0.12)),
        (*_ADAGRAD, _L2, _BIAS_L2, _K),
    ),
    "squared-solve": Rule(
        ("ratings",),
        "ratings",
        preset("ratings"),
        (Range("l2", 0.01, 1.0), Range("bias_l2", 0.005, 0.5), Choice("k", (16, 32, 64))),
    ),
    "logistic-sgd": Rule(RANKING, "clicks_sgd", preset("clicks_sgd"), (*_SGD, _L2, _NEGATIVES, _K)),
    "logistic-adagrad": Rule(
        RANKING,
        "clicks_sgd",
        preset("clicks_sgd", optimizer=_adagrad(0.12)),
        (*_ADAGRAD, _L2, _NEGATIVES, _K),
    ),
    "bpr-sgd": Rule(
        RANKING,
        "purchases_sgd",
        preset("purchases_sgd", optimizer=Optimizer(OptimizerKind.SGD, 0.05, 0.05)),
        (*_SGD, _L2, _NEGATIVES, _K),
    ),
    "bpr-adagrad": Rule(RANKING, "purchases_sgd", preset("purchases_sgd"), (*_ADAGRAD, _L2, _NEGATIVES, _K)),
    "softmax": Rule(("clicks", "news"), "news", preset("news"), _SOFTMAX),
    "softmax-repeats": Rule(
        ("purchases",),
        "purchases",
        preset("purchases"),
        (*_SOFTMAX, Choice("counts.repeat", (0.0, 0.75, 1.5, 3.0))),
    ),
    "solve-counts": Rule(("clicks", "news"), "clicks", preset("clicks"), _SOLVE),
    "solve-mix": Rule(("clicks", "news"), "auto", preset("auto"), _MIX),
    "solve-plain": Rule(
        RANKING,
        "clicks",
        _WHOLE_HISTORIES,
        _PLAIN,
        {f"solve-{weight}": {"solve.unobserved": weight} for weight in (0.03, 0.1, 0.3)},
    ),
    # The values of purchases may be amounts, which exceed the limits of the preset.
    "solve-repeats": Rule(("purchases",), "clicks", preset("clicks", limits=Limits()), _SOLVE),
}
"""The rules under their names for `--rule`.

Parameters in a study start with them, so renaming one breaks old studies.
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """A spec that is tried before any other.

    Attributes:
        name: the name of a preset, or of a point of a rule.
        spec: the spec.
        rule: the rule that has the point; "" for a preset.
    """

    name: str
    spec: ModelSpec
    rule: str = ""


def tried(is_for_ratings: bool) -> Iterator[Tried]:
    """What is tried for ratings (squared loss), or for rankings: presets, then points of rules."""
    for name in PRESET_NAMES:
        spec = preset(name)
        if (spec.loss == Loss.SQUARED) == is_for_ratings:
            yield Tried(name, spec)
    for name, rule in RULES.items():
        if (rule.start.loss == Loss.SQUARED) == is_for_ratings:
            for point, values in rule.points.items():
                yield Tried(point, rule.spec(values), name)
