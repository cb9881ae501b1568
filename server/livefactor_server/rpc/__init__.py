"""The RPC layer: decodes requests, calls the models, and encodes results and statuses.

`service` is the table of all RPCs. Each service has one file of handlers: `updates`, `scoring`,
`snapshots`, `models`. `guards` wraps every handler. `calls` is the state that handlers share.
`decode` and `encode` convert messages. `server` assembles the gRPC server.
"""
