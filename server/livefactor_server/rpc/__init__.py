"""RPC in, RPC out: messages, handlers, limits, and the gRPC server."""
