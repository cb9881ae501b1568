"""Which specs of `rules.py` may be tried in a model's place, and how they fit it."""

from __future__ import annotations

from dataclasses import replace

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Loss, ModelSpec, Rule
from livefactor_server.challenging.rules import tried
from livefactor_server.changes.fitting import accepts_all


def candidates(champion: ModelSpec) -> dict[str, ModelSpec]:
    """The specs that are tried beside a champion without being named, by name.

    They are what `rules.tried` has for its task, without presets of rule SGD where the task is a
    ranking, which trade quality for speed. They keep what is the model's own (`in_place_of`). A
    spec that could reject what the champion accepts is left out.
    """
    found = {}
    for each in tried(champion.loss == Loss.SQUARED):
        if each.spec.rule == Rule.SGD and each.spec.loss != Loss.SQUARED:
            continue
        made = in_place_of(each.spec, champion)
        if fits(made, champion):
            found[each.name] = made
    return found


def in_place_of(spec: ModelSpec, champion: ModelSpec) -> ModelSpec:
    """The spec with the champion's seed and event types, unless it has its own, and its limits.

    A spec with the same loss takes the champion's vectors, features and factors, too.
    Every loss but SQUARED takes its context.
    It accepts no larger values, weights and tables than the champion, and no fewer values if the
    champion accepts ratings and learns their signs. So a switch does not change what the model
    accepts, and another switch can undo it.
    """
    limits = {
        name: min(getattr(spec.limits, name), getattr(champion.limits, name))
        for name in ("users_max", "items_max", "producers_max", "value_abs_max", "weight_max")
    }
    auto, embeddings, features, solve = spec.auto, spec.embeddings, spec.features, spec.solve
    if spec.loss == champion.loss == Loss.IMPLICIT:
        embeddings, features = champion.embeddings, champion.features
        solve = replace(solve, start_events=champion.solve.start_events)
    context = spec.context if spec.loss == Loss.SQUARED else champion.context
    if champion.auto.ratings_events and spec.loss != Loss.SQUARED:
        auto, limits["value_abs_max"] = champion.auto, champion.limits.value_abs_max
    return check(
        replace(
            spec,
            seed=spec.seed or champion.seed,
            event_types=spec.event_types or champion.event_types,
            auto=auto,
            embeddings=embeddings,
            features=features,
            context=context,
            admission=champion.admission,
            solve=solve,
            limits=replace(spec.limits, **limits),
        )
    )


def fits(spec: ModelSpec, champion: ModelSpec) -> bool:
    """Whether a spec can stand in for a champion: same task, and it accepts what that accepts.

    The champion fits all events of its log, because a switch checks this.
    """
    same_task = (spec.loss == Loss.SQUARED) == (champion.loss == Loss.SQUARED)
    return same_task and accepts_all(spec, champion)
