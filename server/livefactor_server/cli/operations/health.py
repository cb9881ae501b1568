"""`livefactor health`: asks a server whether it serves, for health checks of containers."""

from __future__ import annotations

from typing import Annotated

import typer

from livefactor_server.cli.base import Target, app, complain, say

DEADLINE_S = 5.0


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(
            help="Service: '' (the server and all its models), livefactor.v1.ScoringService, models/NAME, ..."
        ),
    ] = "",
    target: Target = "127.0.0.1:50051",
) -> None:
    """Ask a server for its health. The exit code is 0 if it serves, else 1."""
    from grpc_health.v1 import health_pb2

    from livefactor.calling.blocking import Connection

    connection = Connection(target, None, DEADLINE_S)
    try:
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        path = "/grpc.health.v1.Health/Check"
        answer = connection.run(connection.unary(path, request, DEADLINE_S, "ask for the health"))
    finally:
        connection.close()
    state = health_pb2.HealthCheckResponse.FromString(answer).status
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(state)
    if state != health_pb2.HealthCheckResponse.SERVING:
        complain(name)
        raise typer.Exit(1)
    say(name)
