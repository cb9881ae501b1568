"""What a private step costs beside a plain one: `python -m benchmarks.privacy.step`.

The same contributions go to a server of this process twice: as releases of a model with privacy,
and as deltas of a model without it. A plain contribution is a record of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import livefactor
from benchmarks.privacy.results import keep

K = 64


def measured(people: int, rows: int, items: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of each kind, and their ratio."""
    rng = np.random.default_rng(3)
    given = [
        (np.sort(rng.choice(items, rows, replace=False)).astype(np.uint64), rng.normal(size=(rows, K)))
        for _ in range(people)
    ]
    budget = {"epsilon": 100.0, "delta": 1e-6, "clip": 1.0, "noise": 100.0}
    with livefactor.local("clicks_sgd") as server, server.models() as models:
        models.create(
            "private", "clicks_sgd", merge={"learning_rate": 0.01, "norm_max": 1e20}, privacy=budget
        )
        models.create("plain", "clicks_sgd", merge={"learning_rate": 0.01, "norm_max": 1.0})
        keys, zeros = np.arange(items, dtype=np.uint64), np.zeros((items, K))
        for name in ("private", "plain"):
            with server.producer("items", model=name, labels=False) as producer:
                producer.push_deltas("item", keys, zeros).result()
        with server.producer("people", model="plain", labels=False) as producer:

            def plain(_: int) -> None:
                receipts = [producer.push_deltas("item", *each) for each in given]
                for receipt in receipts:
                    receipt.result()

            def private(number: int) -> None:
                for user, each in enumerate(given):
                    models.contribute("private", number, user, *each)
                models.make_release("private", number)

            seconds = [_in_turns(plain, private, number) for number in range(1, repeats + 2)][1:]
    of_plain, of_private = (float(np.median(column)) for column in zip(*seconds, strict=True))
    return {"plain_s": of_plain, "private_s": of_private, "ratio": of_private / of_plain}


def _in_turns(plain: Callable[[int], None], private: Callable[[int], None], number: int) -> list[float]:
    found = []
    for step in (plain, private):
        start = time.perf_counter()
        step(number)
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    found = measured(given.people, given.rows, given.items, given.repeats)
    print(
        f"{given.people} contributions of {given.rows} items x {K}: plain {found['plain_s']:.3f} s, "
        f"private {found['private_s']:.3f} s, {found['ratio']:.2f} times"
    )
    keep(private_step={name: round(value, 4) for name, value in found.items()} | vars(given))


if __name__ == "__main__":
    main()
