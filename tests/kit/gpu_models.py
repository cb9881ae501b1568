"""Models of the GPU backend beside the reference models that judge them.

The tests run on a GPU where one is present, and in the simulator elsewhere.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from synthetic import differences

if SIMULATED:
    import simulated_blocks

    simulated_blocks.install()

WALK, LAUNCHES = 1 << 30, 0
"""`walk_entries_max` that lets one block walk over every micro-batch, and one that launches for
each.
"""
TOGETHER = -1
"""Stands for one launch of a grid that runs all at once."""
EVENTS = 9 if SIMULATED else 700


def long_in_simulator(is_long: bool) -> Any:
    """Return the marks of a case that only `make test-long` runs in the simulator."""
    return pytest.mark.long if SIMULATED and is_long else ()


def combinations(*options: Any) -> list[Any]:
    """Return parameters for all combinations of one choice of each option.

    A choice may be a tuple of several arguments. In the simulator `make test` runs each choice at
    least once, and the marker `long` has the other combinations.
    """
    choices = [list(each) for each in options]
    most = max(map(len, choices))
    few = [tuple(each[n % len(each)] for each in choices) for n in range(most)]
    parameters = []
    for chosen in product(*choices):
        arguments = [part for each in chosen for part in (each if type(each) is tuple else (each,))]
        parameters.append(pytest.param(*arguments, marks=long_in_simulator(chosen not in few)))
    return parameters


def pair(spec: ModelSpec, walk: int = WALK) -> tuple[CudaModel, ReferenceModel]:
    """Return an empty model and its empty judge."""
    return CudaModel(spec, walk_entries_max=walk, together=walk == TOGETHER), ReferenceModel(spec)


def assert_same(fast: CudaModel, judge: ReferenceModel) -> None:
    """Check that every table has the same bits and that the padding is still 0."""
    assert differences(fast, judge) == []
    assert (fast.revision, fast.published) == (judge.revision, judge.published)
    assert fast.mean.tobytes() == judge.mean.tobytes()
    kp, k = fast.spec.k_padded, fast.spec.k
    for table, count in zip((fast.users, fast.items), fast.published, strict=True):
        padding = fast.device.fetch([table.matrix("factors", 0, count)[:, k:kp]])()[0]
        assert not any(padding.tobytes())


def asked(pin, users: int) -> dict[str, np.ndarray]:
    """Return the top-k of `users` random users, with and without exclusions, as named arrays."""
    rng = np.random.default_rng(users)
    rows = rng.integers(0, pin.counts[USERS], users).astype(np.uint32)
    rows[-1] = NO_ROW
    queries = pin.gather(USERS, rows)
    common = np.array([0, 2], np.uint32)
    own = [np.unique(rng.integers(0, pin.counts[ITEMS], user % 3)).astype(np.uint32) for user in range(users)]
    ends = np.cumsum([0, *map(len, own)])
    answers = {f"k{k}": pin.top_k(*queries, k) for k in (0, 100)}
    answers["some"] = pin.top_k(*queries, 2, common, np.concatenate(own), ends)
    return {f"{name} {part}": array for name, parts in answers.items() for part, array in enumerate(parts)}


def gathered(readable, counts: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the results of `gather` on each side, for known rows and for an unknown row."""
    answers = {}
    for side in (USERS, ITEMS):
        rows = np.array([counts[side] - 1, NO_ROW, 0, 0], np.uint32)
        factors, bias = readable.gather(side, rows)
        assert factors.ctypes.data % 64 == 0 and factors.flags.c_contiguous and factors.flags.writeable
        answers |= {f"{side}.factors": factors, f"{side}.bias": bias}
    return answers
