"""What Prometheus reads. Each room defines its own metrics; docs/operations.md explains all."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, start_http_server

PREFIX = "livefactor_"

REFUSED = Counter("livefactor_refused_calls", "Calls answered with a status other than OK.", ["code"])


def metric_names() -> list[str]:
    """Names of the metrics of all imported modules.

    In the exposition format, counters have the suffix _total.
    """
    return sorted({family.name for family in REGISTRY.collect() if family.name.startswith(PREFIX)})


def serve_metrics(host: str, port: int) -> int:
    """Starts the Prometheus endpoint in its own thread. Returns the port; `port` 0 picks one."""
    server, _ = start_http_server(port, host, REGISTRY)
    return int(server.server_port)
