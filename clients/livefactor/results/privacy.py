"""What of a budget of differential privacy is spent. `Models.privacy` returns it."""

from __future__ import annotations

from dataclasses import dataclass

from livefactor.v1 import privacy_pb2


@dataclass(frozen=True, slots=True)
class PrivacyBudget:
    """The budget of a model, and what of it is spent.

    next_release: the number that contributions and the next release name. epsilon, delta: what a
    user has at most in a window. window_seconds: its length; 0 means that it does not end. window:
    the number of the one of now. clip: the largest norm of a contribution. noise: the standard
    deviation of the noise, divided by clip. releases, releases_max: releases of this window, and
    how many it may have. spent_epsilon: what they cost a user who contributed to all of them.
    all_releases, all_epsilon: the same for all windows; infinity stands for more than 500.
    """

    next_release: int
    epsilon: float
    delta: float
    window_seconds: int
    window: int
    clip: float
    noise: float
    releases: int
    releases_max: int
    spent_epsilon: float
    all_releases: int
    all_epsilon: float


def budget_of(message: privacy_pb2.DescribePrivacyResponse) -> PrivacyBudget:
    """The message as a value."""
    return PrivacyBudget(
        *(getattr(message, name) for name in PrivacyBudget.__dataclass_fields__),
    )
