"""What may be tried: one entry a rule of learning. A new rule is a new entry here, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Limits, ModelSpec, Optimizer, OptimizerKind
from livefactor_kernels.spec.presets import preset
from livefactor_server.model import spec_codec

if TYPE_CHECKING:
    from optuna import Trial

Value = float | int


@dataclass(frozen=True, slots=True)
class Range:
    """A field of the spec ("l2", "optimizer.learning_rate") between two values, searched by its logarithm. Numbers
    between floats are rounded to three digits: what is left out changes no figure."""

    field: str
    low: Value
    high: Value

    def suggest(self, trial: Trial, name: str) -> Value:
        """The parameter of a trial."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), log=True)
        return trial.suggest_float(name, self.low, self.high, log=True)

    def value(self, parameter: Value) -> Value:
        """What the field is set to."""
        return parameter if isinstance(parameter, int) else float(f"{parameter:.3g}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A field of the spec with one of a few values."""

    field: str
    options: tuple[Value, ...]

    def suggest(self, trial: Trial, name: str) -> Value:
        """The parameter of a trial."""
        return trial.suggest_categorical(name, self.options)

    def value(self, parameter: Value) -> Value:
        """What the field is set to."""
        return parameter


@dataclass(frozen=True, slots=True)
class Rule:
    """A way of learning: `start` is the spec that it begins with, `axes` are the fields that are searched, the rest stays
    as in `start`. tasks: what it is for. preset: the preset that `start` is or was made of."""

    tasks: tuple[str, ...]
    preset: str
    start: ModelSpec
    axes: tuple[Range | Choice, ...]

    def first(self, name: str) -> dict[str, Any]:
        """The parameters of `start`, as a trial names them."""
        return {f"{name}.{axis.field}": field_of(self.start, axis.field) for axis in self.axes}

    def suggest(self, trial: Trial, name: str) -> None:
        """Give a trial its parameters, named after the rule."""
        for axis in self.axes:
            axis.suggest(trial, f"{name}.{axis.field}")

    def of_parameters(self, parameters: Mapping[str, Value], name: str) -> ModelSpec:
        """The spec of a trial's parameters, with every number as the log of a model would give it back. A trial from before
        there was an axis has the start's value."""
        given = {axis.field: (axis, parameters.get(f"{name}.{axis.field}")) for axis in self.axes}
        return self.spec({f: axis.value(value) for f, (axis, value) in given.items() if value is not None})

    def spec(self, values: dict[str, Value]) -> ModelSpec:
        """`start` with fields set; SpecError if it is refused."""
        spec = self.start
        for field, value in values.items():
            spec = _with_field(spec, field, value)
        return spec_codec.decode(spec_codec.encode(check(spec)))


def field_of(spec: ModelSpec, field: str) -> Any:
    """The value of a field, named from the top: "optimizer.learning_rate"."""
    value: Any = spec
    for name in field.split("."):
        value = getattr(value, name)
    return value


def _with_field(spec: Any, field: str, value: Value) -> Any:
    name, _, rest = field.partition(".")
    return replace(spec, **{name: _with_field(getattr(spec, name), rest, value) if rest else value})


RANKING = ("clicks", "purchases", "news")
TASKS = ("ratings", *RANKING)
"""A task is called as the preset that it begins with."""

# Every size of row is a kernel of its own, compiled when it is first used: so there are few.
_K = Choice("k", (16, 32, 64, 128))
_NEGATIVES = Range("negatives", 1, 32)
_SGD = (
    Range("optimizer.learning_rate", 0.01, 0.5),
    Range("optimizer.bias_learning_rate", 0.003, 0.5),
    Choice("adaptive_rate.window", (0, 2048)),  # no other optimiser takes it
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
_SOFTMAX = (
    *_ADAGRAD,
    _L2,
    Choice("micro_batch", (8, 64, 512)),
    Choice("softmax.group_events", (4, 8)),
    Choice("k", (32, 64)),
)


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
    # Amounts are welcome where things are bought.
    "solve-repeats": Rule(("purchases",), "clicks", preset("clicks", limits=Limits()), _SOLVE),
}
"""By the name that `--rule` takes and that a study's parameters begin with: renaming one ends old studies."""
