"""Ingest events from where they are: files that grow, HTTP, Kafka, NATS JetStream, Redis Streams.

An ingester reads messages of sources, makes rows of their events, and pushes the rows with one
producer. No event is applied twice and none is lost, whatever process is killed in between:

1. A source gives messages in order. Each has a position in its partition: the offset of a Kafka
   message, the sequence of a JetStream message, the id of a Redis entry, the end of a line of a
   file. A source can be read again from a position. HTTP cannot, so its caller gets an answer only
   after step 3.
2. The mapping of the source turns the events of a message into rows (mapping.py). What gives no row
   is a dead letter, with its reason (dead_letters.py).
3. A batch of rows is written to the journal together with the positions up to which each partition
   is done (journal.py), and synced. Only then it is pushed, as one batch with the next sequence of
   the producer.
4. After a restart the server says which sequence it applied last. The batches of the journal behind
   it are pushed again, under the sequences that they had. Then the sources are read from the
   positions of the last batch. The server applies a sequence once, so it does not matter whether a
   batch arrived before.

With `delay_s`, rows wait that long after their arrival, and rows with earlier times go before them
(ordering.py). So events of several sources are learned in the order in which they happened.

The docs page is docs/ingest.md. The brokers need the extra `ingest`.
"""
