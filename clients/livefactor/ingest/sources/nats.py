"""NATS JetStream: an ordered consumer that begins behind the last position."""

# FastStream reads the annotations of handlers, so they must be types and not strings.

import asyncio
from collections.abc import Callable
from threading import Event
from typing import Any

from livefactor.ingest.sources.brokers import CONNECT_S, SILENT, Away, BrokerSource, stopped, undecoded


class NatsSource(BrokerSource):
    """Messages of a stream, or of one subject of it. A position is the sequence in the stream."""

    async def _session(self, stop: Event, connected: Callable[[], None]) -> None:
        from faststream.nats import NatsBroker
        from nats.errors import Error
        from nats.js.errors import APIError

        url = self._options["url"]
        closed = asyncio.Event()
        problem: list[str] = []

        async def on_closed() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            problem[:] = [str(error)]

        # The library would connect again, but the server forgets an ordered consumer at a restart.
        broker = NatsBroker(
            url,
            allow_reconnect=False,
            connect_timeout=int(CONNECT_S),
            closed_cb=on_closed,
            error_cb=on_error,
            logger=SILENT,
        )
        subscriber = self._subscriber(broker)

        async def check() -> int | None:
            if closed.is_set():
                raise Away(problem[0] if problem else f"{url} closed the connection")
            opened: Any = subscriber.subscription
            try:
                # The broker does not count what it has sent and the library still holds.
                return int((await opened.consumer_info()).num_pending) + int(opened.pending_msgs)
            except (Error, APIError, OSError, TimeoutError) as error:
                raise Away(str(error) or type(error).__name__) from None

        try:
            async with asyncio.timeout(2 * CONNECT_S):
                await broker.start()
        except (Error, APIError, OSError, TimeoutError) as error:
            await stopped(broker)
            raise Away(str(error) or type(error).__name__) from None
        connected()
        try:
            await self._watch(stop, check)
        finally:
            await stopped(broker)

    def _subscriber(self, broker: Any) -> Any:
        from faststream import AckPolicy
        from faststream.nats import JStream
        from faststream.nats.annotations import NatsMessage
        from nats.js.api import ConsumerConfig, DeliverPolicy

        options = self._options
        partition = f"{self._name}/{options['stream']}"
        after = self._after(partition)
        subscriber = broker.subscriber(
            options.get("subject", ">"),
            stream=JStream(options["stream"], declare=False),
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.ALL if after is None else DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=None if after is None else after + 1,
            ),
            ordered_consumer=True,
            decoder=undecoded,
            ack_policy=AckPolicy.MANUAL,
        )

        async def take(message: NatsMessage) -> None:
            raw: Any = message.raw_message
            await self._take((partition, each.metadata.sequence.stream, each.data) for each in [raw])

        subscriber(take)
        return subscriber
