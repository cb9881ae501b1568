"""Fuzzed messages and headers: no crash, and what is refused changes nothing."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from contract import STREAMING_IN, STREAMING_OUT
from hostile import LIMITS, MODEL, SHORT_S, Target, check_status
from livefactor.v1 import models_pb2
from server_process import Server
from test_hostile_batches import NAMES, mutated, valid_messages, would_delete

Serve = Callable[..., Server]
GROUP = 20
"""Messages between two looks at the state."""

MESSAGES, MESSAGES_LONG = 600, 100_000
SECONDS_MAX = 2400.0
"""A slow machine sends fewer messages. `fuzz_messages` says how many."""

STATE_S = 300.0
"""A message may have created a model whose kernels are compiled first."""

KEYS = ("authorization", "x-request-id", "traceparent", "grpc-tags-bin", "x", "content-language")


def header(chance: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    """Return metadata that the transport of a client sends."""
    if chance.random() < 0.7:
        return ()
    made: list[tuple[str, str | bytes]] = []
    for _ in range(chance.randint(1, 4)):
        key = chance.choice(KEYS)
        size = chance.choice((0, 1, 30, 500, 3000))
        if key.endswith("-bin"):
            made.append((key, chance.randbytes(size)))
        else:
            made.append((key, "".join(chr(chance.randint(32, 126)) for _ in range(size))))
    return tuple(made)


def code_of(channel: grpc.Channel, path: str, raw: bytes, metadata: Any) -> grpc.StatusCode:
    """Return the status of a call with one message. An update stream counts as OK."""
    options = {"timeout": SHORT_S, "metadata": metadata}
    try:
        if path in STREAMING_IN:
            list(channel.stream_stream("/" + path)(iter([raw]), **options))
        elif path in STREAMING_OUT:
            list(channel.unary_stream("/" + path)(raw, **options))
        else:
            channel.unary_unary("/" + path)(raw, **options)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        check_status(code, error.details() or "")
        return code
    return grpc.StatusCode.OK


def state_of(target: Target) -> tuple[int, bytes]:
    """Return the model's revision and its root hash."""
    request = models_pb2.DescribeModelRequest(model=MODEL, with_root_hash=True)
    described = target.models.DescribeModel(request, timeout=STATE_S).description
    return described.position.revision, described.root_hash


@pytest.fixture
def target(serve: Serve) -> Target:
    server = serve("--batch-events-max", "5000")
    with server.channel() as channel:
        made = Target(server, channel)
        made.create(limits=LIMITS)
        made.create("clicks", "clicks_sgd")
        yield made


def test_fuzzed_messages_and_headers(target: Target, is_long: bool, record: Callable[..., None]) -> None:
    cases = [(name, message) for name, messages in valid_messages().items() for message in messages]
    chance, codes, changed, crashes, sent = random.Random(7), Counter[str](), 0, 0, 0
    last, until = state_of(target), time.monotonic() + SECONDS_MAX
    while sent < (MESSAGES_LONG if is_long else MESSAGES) and time.monotonic() < until:
        all_refused = True
        for _ in range(GROUP):
            name, message = chance.choice(cases)
            raw = mutated(message, chance.getrandbits(32))
            if name == "DeleteModel" and would_delete(raw):
                continue
            code = code_of(target.channel, NAMES[name], raw, header(chance))
            codes[code.name] += 1
            sent += 1
            is_read = name.startswith(("Score", "List", "Describe", "Fetch"))
            all_refused &= code is not grpc.StatusCode.OK or is_read
        if target.server.exit_code() is not None:
            crashes += 1
            target.server.start()
        now = state_of(target)
        changed += all_refused and now != last
        assert now[0] >= last[0]
        last = now
    print(f"{sent} messages: {dict(codes)}")
    crashes += "Traceback" in target.server.log
    if is_long:
        record(fuzz_messages=sent, fuzz_crashes=crashes, fuzz_revisions_changed=changed)
    assert crashes == changed == 0
    assert codes["INVALID_ARGUMENT"] > sent / 10
