"""The RPC layer: decodes requests, calls the models, and encodes results and statuses.

`service` is the table of all RPCs. The files with handlers are `updates`, `scoring`, `snapshots`,
`models`, `challenging`, `following` and `health`. `guards` wraps every handler. `calls` is the
state that handlers share.

Calls are coroutines of one event loop (`loop`). They wait there for a slot (`lanes`), for a
revision (`positions`), or for a peer (`streaming`). The usual small `Score` and `ApplyUpdates`
calls need no coroutine (`direct`). `decode` and `encode` convert messages. `server` assembles the
gRPC server.
"""
