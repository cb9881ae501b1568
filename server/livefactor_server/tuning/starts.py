"""What a search tries first: the presets, then the points and the start of each rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from livefactor_kernels.spec.model import Limits, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging.rules import RULES, tried
from livefactor_server.changes.interactions import good_values
from livefactor_server.model import spec_codec


@dataclass(frozen=True, slots=True)
class Start:
    """A spec that a search tries before it chooses others.

    Attributes:
        preset: name of the preset that it is; "" if it is none.
        rule: its rule.
        parameters: its parameters in Optuna's study; empty if the search does not try its rule.
    """

    preset: str
    rule: str
    parameters: Mapping[str, Any]


def starts(task: str, rules: list[str], values: np.ndarray) -> list[Start]:
    """The presets that fit a task and its values, then points and starts of the rules to search.

    Args:
        task: one of `TASKS`. Its own preset is the first.
        rules: the rules to search.
        values: the values of the events, float32[n]. A preset that rejects one is left out.
    """
    found: dict[ModelSpec, Start] = {}
    for each in sorted(tried(task == "ratings"), key=lambda each: each.name != task):
        if not each.rule and good_values(values, each.spec).all():
            found[_learned(each.spec)] = _of_preset(each.name, rules)
    for each in tried(task == "ratings"):
        if each.rule in rules:
            parameters = {"rule": each.rule, **RULES[each.rule].first(each.rule, each.name)}
            found.setdefault(_learned(each.spec), Start("", each.rule, parameters))
    for rule in rules:
        spec = _learned(RULES[rule].start)
        found.setdefault(spec, Start("", rule, {"rule": rule, **RULES[rule].first(rule)}))
    return list(found.values())


def _of_preset(name: str, rules: list[str]) -> Start:
    same = [rule for rule in RULES if _learned(RULES[rule].start) == _learned(preset(name))]
    searched = [rule for rule in same if rule in rules]
    if searched:
        return Start(name, searched[0], {"rule": searched[0], **RULES[searched[0]].first(searched[0])})
    return Start(name, next(rule for rule in same if RULES[rule].start == preset(name)), {})


def _learned(spec: ModelSpec) -> ModelSpec:
    """The spec as the log has it, without limits.

    Specs that differ in limits learn alike, if no row is rejected.
    """
    return replace(spec_codec.decode(spec_codec.encode(spec)), limits=Limits())
