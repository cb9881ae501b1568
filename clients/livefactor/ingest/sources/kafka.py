"""Kafka: all partitions of a topic, each from behind its last offset."""

# FastStream reads the annotations of handlers, so they must be types and not strings.

import asyncio
from collections.abc import Callable
from threading import Event
from typing import Any

from livefactor.ingest.sources.brokers import (
    CONNECT_S,
    FETCH_MAX,
    SILENT,
    Away,
    BrokerSource,
    stopped,
    undecoded,
)


class KafkaSource(BrokerSource):
    """Messages of a topic. A position is the offset in the partition.

    The setting `options` goes to librdkafka, for example for TLS. Partitions that are added later
    are read after a restart.
    """

    async def _session(self, stop: Event, connected: Callable[[], None]) -> None:
        from confluent_kafka import Consumer, KafkaException
        from confluent_kafka import TopicPartition as Place
        from faststream.confluent import KafkaBroker

        topic = self._options["topic"]
        settings = {
            "bootstrap.servers": self._options["brokers"],
            "socket.connection.setup.timeout.ms": int(1000 * CONNECT_S),
            **self._options.get("options", {}),
        }
        admin = Consumer({**settings, "group.id": "livefactor", "enable.auto.commit": False}, logger=SILENT)

        def offsets(number: int) -> tuple[int, int]:
            found = admin.get_watermark_offsets(Place(topic, number), CONNECT_S)
            return (found[0], found[1]) if found else (0, 0)

        def numbers() -> list[int]:
            found = admin.list_topics(topic, CONNECT_S).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            return sorted(found.partitions)

        shared: Any = settings
        broker = KafkaBroker(self._options["brokers"], config=shared, logger=SILENT)
        try:
            try:
                found = await asyncio.to_thread(numbers)
                begins = {each: (await asyncio.to_thread(offsets, each))[0] for each in found}
                for number, begin in begins.items():
                    after = self._after(self._partition(number))
                    begins[number] = begin if after is None else after + 1
                self._subscribe(broker, begins)
                await broker.start()
            except KafkaException as error:
                raise Away(str(error)) from None
            connected()

            async def check() -> int | None:
                left = 0
                try:
                    for number, begin in begins.items():
                        _, end = await asyncio.to_thread(offsets, number)
                        left += max(0, end - 1 - self._last.get(self._partition(number), begin - 1))
                except KafkaException as error:
                    raise Away(str(error)) from None
                return left

            await self._watch(stop, check)
        finally:
            await stopped(broker)
            await asyncio.to_thread(admin.close)

    def _partition(self, number: int) -> str:
        return f"{self._name}/{self._options['topic']}-{number}"

    def _subscribe(self, broker: Any, begins: dict[int, int]) -> None:
        """Read each partition from its offset in `begins`."""
        from faststream import AckPolicy
        from faststream.confluent import TopicPartition
        from faststream.confluent.annotations import KafkaMessage

        topic = self._options["topic"]

        async def take(messages: KafkaMessage) -> None:
            raw: Any = messages.raw_message
            await self._take(
                (self._partition(each.partition()), each.offset(), each.value() or b"") for each in raw
            )

        subscriber = broker.subscriber(
            partitions=[
                TopicPartition(topic, number, begin, declare=False) for number, begin in begins.items()
            ],
            # No offset is ever committed; the library asks for a group all the same.
            group_id="livefactor",
            batch=True,
            decoder=undecoded,
            max_records=FETCH_MAX,
            polling_interval=0.05,
            ack_policy=AckPolicy.MANUAL,
        )
        subscriber(take)
