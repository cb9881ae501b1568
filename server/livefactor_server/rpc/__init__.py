"""RPC in, RPC out: messages to values, values to messages, and the statuses between. Nothing is decided here.

`service` is the table of all RPCs. Each service has one file of handlers: `updates`, `scoring`, `snapshots`, `models`.
`guards` stands around every handler, `calls` is what handlers share, `decode` and `encode` translate, and `server` puts
the gRPC server together.
"""
