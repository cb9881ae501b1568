"""A gRPC server without livefactor, whose only call does nothing. `benchmarks.speed.calls` compares
all calls with it.

`python -m benchmarks.speed.plain_server threads|loop` prints its port. `threads` is grpcio's server
with a pool of threads, as most Python servers use it. `loop` is its server in an asyncio loop.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

SERVICE, METHOD = "bench.Plain", "Call"
ANSWER = bytes(100)
THREADS = 10


def _in_thread(request: bytes, context: Any) -> bytes:
    return ANSWER


async def _in_loop(request: bytes, context: Any) -> bytes:
    return ANSWER


def _handlers(handle: Any) -> list[grpc.GenericRpcHandler]:
    return [
        grpc.method_handlers_generic_handler(SERVICE, {METHOD: grpc.unary_unary_rpc_method_handler(handle)})
    ]


def _serve_in_threads() -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS), _handlers(_in_thread))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


async def _serve_in_loop() -> None:
    server = grpc.aio.server(handlers=_handlers(_in_loop))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        asyncio.run(_serve_in_loop())
    else:
        _serve_in_threads()
