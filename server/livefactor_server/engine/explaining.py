"""Explains a score: its parts, and the user's events that carry it.

It reads through a pin, with the code that answers `Score`. So the score and its terms have the bits
that an answer has at the same revision:

    score = float32(float32(float32(float32(mean + user_bias) + item_bias) + product) + gain)

The effect of an event is the score minus the score without this event in the user's history, while
everything else stays. Effects of events do not add up, because events depend on each other.

With a mix of experts the user's row, bias and gains are computed from the experts. `Part.amount`
says what each of them adds to the score, in float64. The amounts add up to the score but for its
roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.pins import Pin
from livefactor_kernels.reading import (
    COUNT_HALF_LIVES,
    COUNTS,
    EXPERTS,
    FOLDS,
    HALF_LIVES,
    NEIGHBORS,
    POPULARITY,
    REPEATS,
    WALK,
)
from livefactor_kernels.reading.persons import Events, PersonReader, Persons
from livefactor_kernels.reading.reference_experts import Panel
from livefactor_kernels.reading.remembered import Remembered
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.model.state import ModelState

_BLOCK = 16
"""Histories that are read between two calls of `check`."""

_ONE = np.array([0, 1], np.uint32)


@dataclass(frozen=True, slots=True)
class Part:
    """What one source of a score says, and what it adds.

    Attributes:
        name: of the source.
        value: what it says of the item.
        mean, scale: of its values over all items; 0 and 1 without a mix.
        weight: its learned weight; 1 without a mix.
        amount: what it adds to the score.
    """

    name: str
    value: float
    mean: float
    scale: float
    weight: float
    amount: float


@dataclass(frozen=True, slots=True)
class Carrier:
    """A remembered event of the user, with its item. `visits_ago` counts visits since it.

    `effect` is the score minus the score without it.
    """

    item_id: int
    value: float
    weight: float
    visits_ago: int
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A score at one revision, its terms, its parts, and the events that carry it.

    Attributes:
        user_factors, item_factors: float32[k], whose dot product is `product`.
        gain: of the item, from counts.
        events: the newest events, by the size of their effect, the largest first.
        remembered: number of events that the model remembers of the user.
        truncated: the user had further events, which are forgotten.
    """

    revision: int
    spec_id: str
    user_known: bool
    item_known: bool
    score: np.float32
    mean: np.float32
    user_bias: np.float32
    item_bias: np.float32
    product: np.float32
    gain: np.float32
    user_factors: np.ndarray
    item_factors: np.ndarray
    parts: tuple[Part, ...]
    events: tuple[Carrier, ...]
    remembered: int
    truncated: bool


class Explainer:
    """Explains scores of one state at the revision of a pin. One thread uses it."""

    def __init__(self, state: ModelState, pin: Pin, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called again and again. If it raises an exception, the work ends with it."""
        self._state, self._pin, self._check = state, pin, check
        self._persons = PersonReader(state.spec) if state.spec.history.users else None

    def explain(self, user_id: int, item_id: int, events_max: int) -> Explanation:
        """Explains the score of a user and an item.

        `events_max` is the maximum number of events whose effect is computed.
        """
        state, pin = self._state, self._pin
        user = state.backend.users.find(np.array([user_id], np.uint64), pin.counts[USERS])
        item = state.backend.items.find(np.array([item_id], np.uint64), pin.counts[ITEMS])
        item_factors, item_bias = pin.gather(ITEMS, item)
        read, history = self._read(user), None
        if self._persons is not None:
            history = self._persons.history(pin, user)
        score, product, gain = self._terms(read, 0, item, item_factors, item_bias)
        k = state.spec.k
        return Explanation(
            revision=pin.revision,
            spec_id=state.spec_id,
            user_known=bool(user[0] != NO_ROW),
            item_known=bool(item[0] != NO_ROW),
            score=score,
            mean=np.float32(pin.mean),
            user_bias=np.float32(read.bias[0]),
            item_bias=np.float32(item_bias[0]),
            product=product,
            gain=gain,
            user_factors=widened(read.factors[0])[:k].copy(),
            item_factors=widened(item_factors[0])[:k].copy(),
            parts=self._parts(user, item, history, item_factors, item_bias, gain),
            events=self._carriers(user, item, history, item_factors, item_bias, score, events_max),
            remembered=len(history.rows) if history is not None else 0,
            truncated=history is not None and history.truncated,
        )

    def _read(self, users: np.ndarray, own: list[Events | None] | None = None) -> Persons:
        if self._persons is not None:
            return self._persons.read(self._pin, users, self._pin.counts[ITEMS], own)
        factors, bias = self._pin.gather(USERS, users)
        return Persons(factors, bias, [], np.zeros(len(bias), bool), [])

    def _terms(
        self, read: Persons, user: int, item: np.ndarray, item_factors: np.ndarray, item_bias: np.ndarray
    ) -> tuple[np.float32, np.float32, np.float32]:
        """The score of a user, the dot product and the gain."""
        factors, bias = read.factors[user : user + 1], read.bias[user : user + 1]
        zero, none = np.float32(0.0), np.zeros(1, np.float32)
        product = scoring.score_candidates(zero, factors, none, item_factors, none, _ONE)[0]
        score = scoring.score_candidates(self._pin.mean, factors, bias, item_factors, item_bias, _ONE)[0]
        gain = read.gains(user, item)[0] if self._persons is not None else zero
        return np.float32(score + gain), np.float32(product), np.float32(gain)

    def _parts(
        self, user: np.ndarray, item: np.ndarray, history: Events | None, item_factors: np.ndarray,
        item_bias: np.ndarray, gain: np.float32,
    ) -> tuple[Part, ...]:  # fmt: skip
        spec = self._state.spec
        if history is None:
            return ()
        if spec.mix.learning_rate:
            return self._experts(user, item, history, item_factors, item_bias)
        repeats = np.float32(0.0)
        for weight in history.repeats[history.rows == item[0]]:
            repeats += weight
        repeated = float(np.float32(spec.counts.repeat) * repeats)
        found = {"followers": float(gain) - repeated, "repeats": repeated}
        asked = {"followers": spec.counts.neighbors, "repeats": spec.counts.repeat}
        return tuple(Part(name, found[name], 0.0, 1.0, 1.0, found[name]) for name in found if asked[name])

    def _experts(
        self, user: np.ndarray, item: np.ndarray, history: Events, item_factors: np.ndarray,
        item_bias: np.ndarray,
    ) -> tuple[Part, ...]:  # fmt: skip
        events = Remembered(history.rows, history.values, history.weights, history.ages)
        found = Panel(self._state.spec).of(self._pin, user, events, self._pin.counts[ITEMS])
        y = widened(item_factors[0]).astype(np.float64)
        said = np.zeros(EXPERTS)
        for fold in range(FOLDS):
            said[fold] = found.folds[fold].astype(np.float64) @ y
        for expert, gains in enumerate((*found.counts, found.repeats), COUNTS):
            said[expert] = gains.at(item)[0]
        said[POPULARITY] = item_bias[0]
        said[NEIGHBORS], said[WALK] = found.neighbors.at(item)[0], found.walks.at(item)[0]
        scaled = [weight * moment.scale for weight, moment in zip(found.weights, found.moments, strict=True)]
        unit = scaled[POPULARITY] or 1.0
        return tuple(
            Part(
                name,
                float(said[expert]),
                found.moments[expert].mean,
                found.moments[expert].scale,
                float(found.weights[expert]),
                float(scaled[expert] / unit * (said[expert] - found.moments[expert].mean)),
            )
            for expert, name in enumerate(_expert_names(self._state.spec))
        )

    def _carriers(
        self, user: np.ndarray, item: np.ndarray, history: Events | None, item_factors: np.ndarray,
        item_bias: np.ndarray, score: np.float32, events_max: int,
    ) -> tuple[Carrier, ...]:  # fmt: skip
        """The newest events with their effects, the largest first."""
        if history is None:
            return ()
        keys, found = self._state.backend.items.keys, []
        newest = range(max(0, len(history.rows) - events_max), len(history.rows))
        for start in range(newest.start, newest.stop, _BLOCK):
            self._check()
            block = range(start, min(start + _BLOCK, newest.stop))
            read = self._read(np.repeat(user, len(block)), [_without(history, event) for event in block])
            for place, event in enumerate(block):
                without = self._terms(read, place, item, item_factors, item_bias)[0]
                found.append(
                    Carrier(
                        int(keys[history.rows[event]]),
                        float(history.values[event]),
                        float(history.weights[event]),
                        int(history.ages[event]),
                        float(score) - float(without),
                    )
                )
        return tuple(sorted(found, key=lambda each: -abs(each.effect)))


def _without(events: Events, number: int) -> Events:
    """The events without one of them."""
    rows, values, weights, repeats, ages = (np.delete(column, number) for column in events[:5])
    return Events(rows, values, weights, repeats, ages, events.items, events.truncated)


def _expert_names(spec: ModelSpec) -> tuple[str, ...]:
    def named(name: str, half_life: float) -> str:
        return f"{name}, half-life {half_life:g} visits" if half_life else name

    names = [named("factors", each) for each in HALF_LIVES]
    names += [named("followers", each) for each in COUNT_HALF_LIVES]
    assert (len(names), REPEATS + 1, POPULARITY + 1) == (REPEATS, POPULARITY, NEIGHBORS)
    similar = ("similar users",) if spec.mix.neighbors else ()
    walks = ("random walks",) if spec.mix.walk_users else ()
    return (*names, "repeats", "popularity", *similar, *walks)
