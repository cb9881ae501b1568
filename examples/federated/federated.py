"""Shops learn one model together, and no shop sends a purchase.

    python federated.py [--secure] [--shops N] [--rounds N] [--purchases N] [--trim SHARE]

Each shop has a model of its own with the rows of its customers. In each round it takes the item
rows of the common model, learns its next purchases, and sends what changed in the item rows. The
same model learns all purchases in one place, for comparison. The README explains the output.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import livefactor
from livefactor import federated

PRESET = "clicks_sgd"
SHOWN, LEAST = 10, 5
BOUND = 64.0
"""The largest number of a contribution in a secure sum."""


@dataclass
class Purchases:
    """First purchases of an item by a customer, in the order of time."""

    customers: np.ndarray
    items: np.ndarray
    hidden: dict[int, int] = field(default_factory=dict)

    def of(self, mask: np.ndarray) -> Purchases:
        return Purchases(self.customers[mask], self.items[mask], self.hidden)


def read(purchases: int) -> Purchases:
    """UCI Online Retail (CC BY 4.0), which the package ships. A customer's last item is hidden."""
    file = resources.files("livefactor_server") / "data" / "online_retail" / "events.csv.gz"
    rows = csv.DictReader(io.StringIO(gzip.decompress(file.read_bytes()).decode()))
    number: dict[str, int] = {}
    seen: dict[tuple[int, int], None] = {}
    for row in rows:
        seen[int(row["customer_id"]), number.setdefault(row["stock_code"], len(number))] = None
    events = list(seen)[:purchases]
    count: dict[int, int] = {}
    for customer, _ in events:
        count[customer] = count.get(customer, 0) + 1
    hidden = {customer: item for customer, item in events if count[customer] >= LEAST}
    kept = [(customer, item) for customer, item in events if hidden.get(customer) != item]
    customers, items = (np.array(column, np.uint64) for column in zip(*kept, strict=True))
    return Purchases(customers, items, hidden)


class Model:
    """A model of a server, and what a shop does with it."""

    def __init__(self, server: livefactor.Local, name: str, folder: Path, merge: dict[str, float]) -> None:
        with server.models() as models:
            models.create(name, PRESET, merge=merge)
        self.name, self.folder = name, folder
        self.producer = server.producer("rows", model=name, labels=False)
        self.auditor = server.auditor(model=name)

    def snapshot(self) -> livefactor.LoadedSnapshot:
        taken = self.auditor.snapshot()
        path = self.folder / f"{self.name}-{taken.snapshot_id}"
        # A model that has not changed since then has the same snapshot.
        if not path.exists():
            self.auditor.fetch(path, taken.snapshot_id)
        return livefactor.load(path)

    def learn(self, purchases: Purchases) -> None:
        if len(purchases.items):
            self.producer.push(purchases.customers, purchases.items).result()

    def register(self, items: np.ndarray) -> None:
        """Gives every item its initial row, which depends on its id alone."""
        k = self.snapshot().spec.k
        federated.give(self.producer, federated.Contribution(items, np.zeros((len(items), k + 1)), 0.0))


def gains(model: livefactor.LoadedSnapshot, rows: federated.Rows, purchases: Purchases) -> list[float]:
    """The NDCG@10 of each customer of the model: of the hidden item among those not yet bought."""
    place = {int(key): row for row, key in enumerate(model.tensors["users.keys"])}
    found = []
    for customer in np.unique(purchases.customers).tolist():
        if customer not in purchases.hidden or customer not in place:
            continue
        row = model.tensors["users.factors"][place[customer]]
        scores = rows.numbers[:, :-1] @ row + rows.numbers[:, -1]
        scores[np.searchsorted(rows.keys, purchases.items[purchases.customers == customer])] = -np.inf
        at = np.searchsorted(rows.keys, np.uint64(purchases.hidden[customer]))
        rank = int(np.count_nonzero(scores > scores[at]))
        found.append(1 / np.log2(rank + 2) if rank < SHOWN else 0.0)
    return found


def secure_mean(given: list[federated.Contribution], context: bytes) -> federated.Contribution:
    """The weighted mean, without that the server sees one contribution."""
    code, most = federated.FixedPoint(BOUND, len(given)), max(each.events for each in given)
    threshold = len(given) // 2 + 1
    people = [federated.Participant(index, threshold, context) for index in range(1, len(given) + 1)]
    adverts = [each.advert() for each in people]
    shares = [each.share(adverts) for each in people]
    masked = [
        each.mask(federated.addressed_to(each.index, shares), federated.vector_of(own, code, most))
        for each, own in zip(people, given, strict=True)
    ]
    revealed = [each.reveal([one.sender for one in masked]) for each in people]
    total, _ = federated.unmask(adverts, shares, masked, revealed, threshold, context)
    return federated.merged_from(total, given[0].keys, code, most)


def merge(given: list[federated.Contribution], number: int, chosen: argparse.Namespace) -> Any:
    if chosen.secure:
        return secure_mean(given, b"shops, round %d" % number)
    if chosen.trim:
        return federated.trimmed_mean(given, chosen.trim)
    return federated.weighted_mean(given)


def main() -> None:
    parser = argparse.ArgumentParser(description="Shops learn one model together.")
    parser.add_argument("--secure", action="store_true", help="the server sees sums alone")
    parser.add_argument("--shops", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--purchases", type=int, default=60_000)
    parser.add_argument("--trim", type=float, default=0.0, help="trimmed mean: the share that is cut")
    parser.add_argument("--rate", type=float, default=0.0, help="merge.learning_rate; 0: the shops")
    chosen = parser.parse_args()
    purchases = read(chosen.purchases)
    items = np.unique(np.append(purchases.items, np.array([*purchases.hidden.values()], np.uint64)))
    shop_of = purchases.customers % np.uint64(chosen.shops)
    round_of = np.arange(len(purchases.items)) * chosen.rounds // len(purchases.items)
    with tempfile.TemporaryDirectory() as scratch, livefactor.local(PRESET) as server:
        folder = Path(scratch)
        rate = chosen.rate or float(chosen.shops)
        common = Model(server, "common", folder, {"learning_rate": rate, "norm_max": 100.0})
        central = Model(server, "central", folder, federated.LOCAL_MERGE)
        shops = [Model(server, f"shop-{i}", folder, federated.LOCAL_MERGE) for i in range(chosen.shops)]
        for model in (common, central, *shops):
            model.register(items)
        rows = federated.rows_of(common.snapshot())
        present = [rows] * len(shops)
        for number in range(chosen.rounds):
            given = []
            for index, shop in enumerate(shops):
                mine = purchases.of((round_of == number) & (shop_of == index))
                federated.adopt(shop.producer, present[index], rows)
                shop.learn(mine)
                central.learn(mine)
                present[index] = federated.rows_of(shop.snapshot())
                given.append(federated.difference(rows, present[index], len(mine.items)))
            position = federated.give(common.producer, merge(given, number, chosen))
            rows = federated.rows_of(common.snapshot())
        together = []
        for index, shop in enumerate(shops):
            federated.adopt(shop.producer, present[index], rows)
            together += gains(shop.snapshot(), rows, purchases.of(shop_of == index))
        whole = central.snapshot()
        in_one_place = gains(whole, federated.rows_of(whole), purchases)
    print(
        f"{len(purchases.items)} purchases of {len(items)} items, {len(shops)} shops, {chosen.rounds} rounds"
    )
    print(f"the common model is at revision {position.revision}, and has no customer")
    print(f"NDCG@10 of the shops' customers, federated:   {np.mean(together):.4f}")
    print(f"NDCG@10 of the same model, all in one place:  {np.mean(in_one_place):.4f}")
    print(f"federated / in one place:                     {np.mean(together) / np.mean(in_one_place):.3f}")


if __name__ == "__main__":
    main()
