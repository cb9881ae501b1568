"""The time of a secure sum: `python -m benchmarks.privacy.secure_sum`.

All participants and the server run in this process. So the time is that of all of them together.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.privacy.results import keep
from livefactor.federated.masking import Participant, addressed_to, unmask

CONTEXT = b"benchmark"


def secure_sum(people: int, numbers: int, missing: int, workers: int) -> dict[str, float]:
    """Seconds of each message. Raises AssertionError if the sum is wrong in one bit."""
    rng, threshold = np.random.default_rng(1), people * 2 // 3
    vectors = [rng.integers(0, 1 << 32, numbers, np.uint32) for _ in range(people)]
    clients = [Participant(index, threshold, CONTEXT) for index in range(1, people + 1)]
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        adverts = [client.advert() for client in clients]
        shares = list(pool.map(lambda client: client.share(adverts), clients))
        seconds["keys and shares"] = time.perf_counter() - start
        start = time.perf_counter()
        there = clients[: people - missing]
        masked = list(
            pool.map(
                lambda client: client.mask(addressed_to(client.index, shares), vectors[client.index - 1]),
                there,
            )
        )
        seconds["masks"] = time.perf_counter() - start
        start = time.perf_counter()
        present = {client.index for client in there}
        revealed = [client.reveal(present) for client in there]
        total, liars = unmask(adverts, shares, masked, revealed, threshold, CONTEXT)
        seconds["the sum"] = time.perf_counter() - start
    expected = np.sum(vectors[: people - missing], axis=0, dtype=np.uint32)
    assert total.tobytes() == expected.tobytes() and not liars
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--missing", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    cpu = time.process_time()
    found = secure_sum(given.people, given.keys * given.k, given.missing, given.workers)
    print(f"{given.people} participants, {given.missing} of them drop out, {given.keys} keys x {given.k}")
    for name, seconds in found.items():
        print(f"{name:16} {seconds:7.2f} s")
    print(f"{'together':16} {sum(found.values()):7.2f} s")
    cpu = time.process_time() - cpu
    print(f"{'CPU time':16} {cpu:7.2f} s")
    seconds = {"wall_s": round(sum(found.values()), 2), "cpu_s": round(cpu, 2)}
    keep(secure_sum=vars(given) | seconds)


if __name__ == "__main__":
    main()
