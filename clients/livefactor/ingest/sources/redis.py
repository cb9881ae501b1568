"""Redis Streams: XREAD behind the last id."""

# FastStream reads the annotations of handlers, so they must be types and not strings.

from collections.abc import Callable
from threading import Event
from typing import Any

from livefactor.ingest.config import SourceConfig
from livefactor.ingest.sources.brokers import (
    CONNECT_S,
    FETCH_MAX,
    SILENT,
    Away,
    BrokerSource,
    stopped,
    undecoded,
)

_BITS = 64
"""A part of a Redis id, "milliseconds-sequence", has so many bits."""

_COUNT_MAX = 10_000
"""How far `behind` counts."""

_COUNT = "return #redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])"
"""Redis counts, because to fetch and to parse the entries would cost most of a second."""


class RedisSource(BrokerSource):
    """Entries of a stream. A position is the entry's id as one number.

    The fields of an entry are the event, or one field of it holds JSON (setting `payload`).
    """

    def __init__(self, source: SourceConfig) -> None:
        super().__init__(source)
        self._payload = source.options["payload"].encode() if "payload" in source.options else None

    async def _session(self, stop: Event, connected: Callable[[], None]) -> None:
        from faststream import AckPolicy
        from faststream.redis import RedisBroker, StreamSub
        from faststream.redis.annotations import RedisBatchStreamMessage
        from redis.exceptions import RedisError

        stream = self._options["stream"]
        partition = f"{self._name}/{stream}"
        broker = RedisBroker(
            self._options["url"],
            socket_connect_timeout=CONNECT_S,
            logger=SILENT,
        )
        after = self._after(partition)
        begin = "0-0" if after is None else f"{after >> _BITS}-{after & ((1 << _BITS) - 1)}"
        subscriber = broker.subscriber(
            decoder=undecoded,
            stream=StreamSub(stream, batch=True, max_records=FETCH_MAX, last_id=begin),
            ack_policy=AckPolicy.MANUAL,
        )

        async def take(message: RedisBatchStreamMessage) -> None:
            raw: Any = message.raw_message
            entries = zip(raw["message_ids"], raw["data"], strict=True)
            await self._take((partition, _position(name), self._content(entry)) for name, entry in entries)

        subscriber(take)

        async def check() -> int | None:
            try:
                client: Any = broker._connection
                last = self._last.get(partition, after)
                least = "-" if last is None else f"({last >> _BITS}-{last & ((1 << _BITS) - 1)}"
                left = await client.eval(_COUNT, 1, stream, least, _COUNT_MAX)
            except (RedisError, OSError) as error:
                raise Away(str(error)) from None
            return int(left)

        try:
            await broker.start()
            await check()
        except (RedisError, OSError) as error:
            await stopped(broker)
            raise Away(str(error)) from None
        except Away:
            await stopped(broker)
            raise
        connected()
        try:
            await self._watch(stop, check)
        finally:
            await stopped(broker)

    def _content(self, entry: dict[bytes, bytes]) -> bytes | dict[str, Any]:
        if self._payload is not None:
            return entry.get(self._payload, b"")
        return {
            name.decode("utf-8", "replace"): text.decode("utf-8", "replace") for name, text in entry.items()
        }


def _position(name: bytes) -> int:
    milliseconds, sequence = name.split(b"-")
    return int(milliseconds) << _BITS | int(sequence)
