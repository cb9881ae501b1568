"""What Prometheus reads. Each room defines its own metrics; docs/operations.md explains them all."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, start_http_server

PREFIX = "livefactor_"

REFUSED = Counter("livefactor_refused_calls", "Calls answered with a status other than OK.", ["code"])


def metric_names() -> list[str]:
    """Names of the metrics of all modules that are imported. Counters get the suffix _total on the wire."""
    return sorted({family.name for family in REGISTRY.collect() if family.name.startswith(PREFIX)})


def serve_metrics(host: str, port: int) -> int:
    """Serve the Prometheus endpoint on its own thread; returns the port (useful with 0)."""
    server, _ = start_http_server(port, host, REGISTRY)
    return int(server.server_port)
