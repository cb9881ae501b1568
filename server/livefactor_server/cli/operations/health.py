"""`livefactor health`: asks a server whether it serves, for health checks and for scripts."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from livefactor_server.cli.base import Target, app, complain, say

DEADLINE_S = 5.0
PAUSE_S = 0.2
"""Seconds between two questions of `--wait`."""


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(
            help="Service: '' (the server and all its models), livefactor.v1.ScoringService, models/NAME, ..."
        ),
    ] = "",
    target: Target = "127.0.0.1:50051",
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for a server that starts.", min=0.0, max=3600.0)
    ] = 0.0,
) -> None:
    """Ask a server for its health. The exit code is 0 if it serves, else 1."""
    from livefactor.errors import Unavailable

    end = time.monotonic() + wait
    while True:
        try:
            name = _status(service, target)
        except Unavailable:
            if time.monotonic() >= end:
                raise
            name = ""
        if name == "SERVING":
            say(name)
            return
        if time.monotonic() >= end:
            complain(name)
            raise typer.Exit(1)
        time.sleep(PAUSE_S)


def _status(service: str, target: str) -> str:
    """The name of the status that the server answers."""
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
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(state))
