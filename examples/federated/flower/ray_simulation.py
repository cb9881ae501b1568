"""Flower's simulation with Ray: many shops on this machine, without a SuperLink and SuperNodes.

    python ray_simulation.py [--shops N] [--rounds N] [--fraction F] [--purchases N] [--folder PATH]

The apps are those of shops.py. Ray runs as many shops at a time as the machine has processors.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

# The processes of Ray inherit the variables of this one. They load shops.py by its name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import shops
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import livefactor
from livefactor import federated

Settings = dict[str, Any]


def simulate(settings: Settings, homes: Path) -> None:
    """Runs all rounds. `homes` gets a folder for each shop that takes part."""

    @contextmanager
    def shop(context: Context) -> Iterator[federated.Home]:
        # A simulation has no run config and no home, and Flower refuses changes of a context.
        node = {**context.node_config, "home": str(homes / str(context.node_config["partition-id"]))}
        own = Context(context.run_id, context.node_id, node, context.state, settings)
        with shops.shop(own) as home:
            yield home

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        shops.lead(grid, Context(context.run_id, context.node_id, {}, context.state, settings))

    run_simulation(
        server_app,
        federated.client_app(shop),
        num_supernodes=settings["shops"],
        backend_name="ray",
        backend_config={
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Many shops learn one model with Flower and Ray.")
    parser.add_argument("--shops", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the shops in a round")
    parser.add_argument("--purchases", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, help="keeps the rounds and their proofs")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = (chosen.folder or scratch / "rounds").resolve()
        common = stack.enter_context(livefactor.local(shops.PRESET, data=scratch / "common"))
        settings = {
            "common": common.target,
            "folder": str(folder),
            "rounds": chosen.rounds,
            "shops": chosen.shops,
            "fraction": chosen.fraction,
            "purchases": chosen.purchases,
            "seconds-a-round": 600.0,
        }
        simulate(settings, scratch / "homes")
        for line in (folder / "rounds.jsonl").read_text().splitlines():
            done = json.loads(line)
            print(
                f"round {done['number']}: {done['merged']} shops, {done['events']:.0f} purchases, "
                f"record {done['revision']}, proven: {'yes' if done['is_proven'] else 'no'}"
            )


if __name__ == "__main__":
    main()
