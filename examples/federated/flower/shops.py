"""The two apps of Flower: what a shop does, and what the server of the rounds does.

A shop needs `home` in its node config: the folder of its own model, with the rows of its customers.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import livefactor
from livefactor import federated

PRESET, MODEL = "clicks_sgd", "common"


def purchases(most: int) -> tuple[np.ndarray, np.ndarray]:
    """Customers and items of UCI Online Retail (CC BY 4.0), which the package ships."""
    file = resources.files("livefactor_server") / "data" / "online_retail" / "events.csv.gz"
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(file.read_bytes()).decode())))[:most]
    number: dict[str, int] = {}
    items = [number.setdefault(row["stock_code"], len(number)) for row in rows]
    return np.array([row["customer_id"] for row in rows], np.uint64), np.array(items, np.uint64)


@contextmanager
def shop(context: Context) -> Iterator[federated.Home]:
    """Opens the shop of this node for one round."""
    settings, place = context.run_config, context.node_config["partition-id"]
    customers, items = purchases(settings["purchases"])
    mine = np.flatnonzero(customers % np.uint64(settings["shops"]) == place)
    # A shop learns the next part of its purchases in each round.
    parts = np.array_split(mine, settings["rounds"])

    def events(number: int) -> dict[str, np.ndarray]:
        return {"user_ids": customers[parts[number - 1]], "item_ids": items[parts[number - 1]]}

    with (
        livefactor.local(PRESET, data=context.node_config["home"]) as server,
        livefactor.Auditor(settings["common"], model=MODEL) as auditor,
    ):
        yield federated.Home(server, auditor, events, PRESET, padding=-1)


client_app = federated.client_app(shop)
server_app = ServerApp()


def lead(grid: Grid, context: Context) -> None:
    """Makes the common model, and runs the rounds."""
    settings = context.run_config
    common = settings["common"]
    with livefactor.Models(common) as models:
        # The mean of the shops of a round times their number is the sum of what they learned.
        number = float(max(2, round(settings["shops"] * settings["fraction"])))
        models.create(MODEL, PRESET, merge={"learning_rate": number, "norm_max": 100.0})
        k = models.describe(MODEL).spec["k"]
    with livefactor.Producer(common, "items", model=MODEL, labels=False) as producer:
        federated.register(producer, np.unique(purchases(settings["purchases"])[1]), k)
    strategy = federated.OneRecord(
        common,
        settings["folder"],
        model=MODEL,
        fraction_train=settings["fraction"],
        min_train_nodes=2,
        min_available_nodes=settings["shops"],
    )
    strategy.run(grid, settings["rounds"], timeout=settings["seconds-a-round"])


server_app.main()(lead)
