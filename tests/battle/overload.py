"""A client that offers a steady number of Score calls a second, whatever the server answers.

`python overload.py TARGET MODEL RATE SECONDS` prints JSON: how many calls ended with each status,
the times of the accepted ones and of the refused ones in seconds, sorted, and the seconds that all
took. `cpu_s` is the CPU time of this program. `settled_s` has the accepted ones that began after
the first sixth. With RATE 0 it measures the capacity: CALLERS callers that wait for their answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import grpc

from livefactor.v1 import scoring_pb2

CALLERS = 4
USERS = 512
DEADLINE_S = 20.0


class Load:
    """Calls, and what became of them."""

    def __init__(self, channel: grpc.aio.Channel, model: str) -> None:
        self._call = channel.unary_unary("/livefactor.v1.ScoringService/Score")
        self._request = scoring_pb2.ScoreRequest(
            model=model, user_ids=range(USERS), top_k=scoring_pb2.TopK(k=10)
        ).SerializeToString()
        self.codes: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self.settled: list[float] = []
        self.settled_at = 0.0
        self.times: dict[bool, list[float]] = {True: [], False: []}

    async def one(self) -> None:
        """Make one call."""
        began = time.perf_counter()
        try:
            await self._call(self._request, timeout=DEADLINE_S)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "RESOURCE_EXHAUSTED":
                hints = [key for key, _ in error.trailing_metadata() or ()]
                assert "grpc-retry-pushback-ms" in hints, hints
            elif code not in self.texts:
                self.texts[code] = str(error.details())
        self.codes[code] += 1
        self.times[code == "OK"].append(time.perf_counter() - began)
        if code == "OK" and began >= self.settled_at:
            self.settled.append(self.times[True][-1])

    async def closed(self, seconds: float) -> None:
        """Call again after each answer."""
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < until:
                await self.one()

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def steady(self, rate: float, seconds: float) -> None:
        """Call at random times, `rate` times a second on average."""
        chance, tasks = random.Random(1), set()
        at = began = time.perf_counter()
        while (at := at + chance.expovariate(rate)) < began + seconds:
            if (left := at - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            task = asyncio.create_task(self.one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


async def run(target: str, model: str, rate: float, seconds: float) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(target) as channel:
        load = Load(channel, model)
        await load.one()
        load.codes.clear()
        load.times[True].clear()
        load.settled.clear()
        began, cpu = time.perf_counter(), time.process_time()
        load.settled_at = began + seconds / 6
        await (load.steady(rate, seconds) if rate else load.closed(seconds))
        return {
            "codes": load.codes,
            "texts": load.texts,
            "accepted_s": sorted(load.times[True]),
            "settled_s": sorted(load.settled),
            "refused_s": sorted(load.times[False]),
            "seconds": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu,
        }


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(asyncio.run(run(words[0], words[1], float(words[2]), float(words[3])))))
