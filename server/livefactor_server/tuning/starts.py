"""What a search tries first: the presets, and then the start of each rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from livefactor_kernels.spec.model import Limits, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging.candidates import presets_for
from livefactor_server.changes.interactions import good_values
from livefactor_server.tuning.rules import RULES


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
    """The presets that fit a task and its values, and then the starts of the rules to search.

    Args:
        task: one of `TASKS`. Its own preset is the first.
        rules: the rules to search.
        values: the values of the events, float32[n]. A preset that rejects one is left out.
    """
    found: dict[ModelSpec, Start] = {}
    for name, spec in sorted(presets_for(task == "ratings"), key=lambda each: each[0] != task):
        if good_values(values, spec).all():
            found[_learned(spec)] = _of_preset(name, rules)
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
    """The spec without limits. Specs that differ in them learn alike, if no row is rejected."""
    return replace(spec, limits=Limits())
