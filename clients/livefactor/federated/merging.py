"""Several contributions become one. A row that a contribution lacks counts as unchanged in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from livefactor.federated.rounds import Contribution, Floats, numbers_at


def weighted_mean(given: Sequence[Contribution]) -> Contribution:
    """The mean, weighted by events (FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas,
    AISTATS 2017).

    Raises ValueError for no contributions, and if they have no events.
    """
    keys = _union(given)
    weights = np.array([each.events for each in given], np.float64)
    if not weights.sum() > 0:
        raise ValueError("events: expected more than 0 in all contributions together")
    mean = np.zeros((len(keys), given[0].numbers.shape[1]))
    for each, weight in zip(given, weights / weights.sum(), strict=True):
        # The keys of a contribution differ, so each of them is added once.
        mean[np.searchsorted(keys, each.keys)] += weight * each.numbers
    return Contribution(keys, mean, float(weights.sum()))


def trimmed_mean(given: Sequence[Contribution], share: float) -> Contribution:
    """The mean of each number without its smallest and largest ones, a share of each.

    All participants count alike, so that nobody gains by claiming many events. It bounds what a
    minority below `share` can do (Yin, Chen, Ramchandran, Bartlett, ICML 2018). A row that fewer
    than `share` of the participants changed does not change. Raises ValueError for no
    contributions, and for a share that leaves none.
    """
    if not 0.0 <= share < 0.5:
        raise ValueError(f"share: expected 0..0.5, got {share}")
    keys = _union(given)
    cut = int(np.ceil(share * len(given)))
    if 2 * cut >= len(given):
        raise ValueError(f"share: {share} of {len(given)} contributions leaves none")
    ordered = np.sort(_stacked(keys, given), axis=0)[cut : len(given) - cut]
    return Contribution(keys, ordered.mean(axis=0), _events(given))


def krum(given: Sequence[Contribution], wrong: int, chosen: int = 1) -> Contribution:
    """The mean of the `chosen` contributions that lie nearest to others (Multi-Krum).

    Each contribution has the sum of the squared distances to its n - wrong - 2 nearest ones, and
    those with the smallest sums are chosen. They count alike. It holds against `wrong` arbitrary
    contributions (Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017). Raises ValueError unless
    n is at least 2 * wrong + 3, and `chosen` is 1..n - wrong - 2.
    """
    n, keys = len(given), _union(given)
    if wrong < 0 or n < 2 * wrong + 3:
        raise ValueError(f"wrong: {wrong} wrong ones need {2 * wrong + 3} contributions, got {n}")
    if not 1 <= chosen <= n - wrong - 2:
        raise ValueError(f"chosen: expected 1..{n - wrong - 2}, got {chosen}")
    flat = _stacked(keys, given).reshape(n, -1)
    # A difference that is taken first has no cancellation, unlike |a|^2 + |b|^2 - 2ab.
    with np.errstate(over="ignore"):
        # A distance that is too large for a number is infinite, and the largest one.
        distances = np.array([np.square(flat - each).sum(axis=1) for each in flat])
    np.fill_diagonal(distances, np.inf)
    sums = np.sort(distances, axis=1)[:, : n - wrong - 2].sum(axis=1)
    best = np.sort(np.argsort(sums, kind="stable")[:chosen])
    mean = flat[best].mean(axis=0).reshape(len(keys), -1)
    return Contribution(keys, mean, _events([given[each] for each in best]))


def _events(given: Sequence[Contribution]) -> float:
    return float(sum(each.events for each in given))


def _union(given: Sequence[Contribution]) -> npt.NDArray[np.uint64]:
    if not given:
        raise ValueError("given: expected a contribution")
    return np.unique(np.concatenate([each.keys for each in given]))


def _stacked(keys: npt.NDArray[np.uint64], given: Sequence[Contribution]) -> Floats:
    """The numbers float64[contributions, n, k + 1] of the keys, 0 where absent."""
    return np.stack([numbers_at(keys, each.keys, each.numbers) for each in given])
