"""A step of `livefactor demo`: items that nobody has bought, known by their descriptions alone.

A second model learns the last purchases of the year without those of some items, as if these were
new. It gets the descriptions of all items as vectors of their words. Then it recommends the new
items to the customers who really bought some of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor_server.cli.demo.shop import Shop
from livefactor_server.files.words import WordSpace
from livefactor_server.text import plain

MODEL = "arrivals"
PURCHASES, PUSH_EVENTS = 30_000, 2_000
NEW_ITEMS, BUYERS_MIN, CUSTOMERS_MAX, SHOWN = 40, 20, 256, 5
DIMENSION = 64


class Found(NamedTuple):
    """What the step measured.

    Attributes:
        held: whether the promise held.
        measured: the figures in words.
    """

    held: bool
    measured: str


def find_customers(target: str, shop: Shop, events: int, console: Console) -> Found | None:
    """Runs the step on the server at `target`, with the last purchases up to `events`.

    None if they are too few for it.
    """
    part = slice(max(0, events - PURCHASES), events)
    users, items, times = shop.users[part], shop.items[part], shop.times_us[part]
    keys = np.array(list(shop.labels), np.uint64)
    new = _new_items(items, keys)
    if len(new) < NEW_ITEMS:
        return None
    vectors = WordSpace(list(shop.labels.values()), DIMENSION).vectors(list(shop.labels.values()))
    is_new, is_known_purchase = np.isin(keys, new), ~np.isin(items, new)
    with Models(target) as models:
        models.create(MODEL, "auto")
    with Producer(target, MODEL, model=MODEL) as producer:
        producer.push_embeddings(keys[~is_new], vectors[~is_new]).result(60)
        places = np.flatnonzero(is_known_purchase)
        for start in range(0, len(places), PUSH_EVENTS):
            rows = places[start : start + PUSH_EVENTS]
            receipt = producer.push(users[rows], items[rows], times=times[rows].view("datetime64[us]"))
        receipt.result(120)
        producer.push_embeddings(keys[is_new], vectors[is_new]).result(60)
    bought: dict[int, set[int]] = {}
    known = set(users[is_known_purchase].tolist())
    for user, item in zip(
        users[~is_known_purchase].tolist(), items[~is_known_purchase].tolist(), strict=True
    ):
        if user in known:
            bought.setdefault(user, set()).add(item)
    customers = sorted(bought)[:CUSTOMERS_MAX]
    with Scorer(target, model=MODEL, timeout=60) as scorer:
        answers = scorer.recommend(customers, SHOWN, exclude=keys[~is_new])
    lists = {user: answer.item_ids.tolist() for user, answer in zip(customers, answers, strict=True)}
    hits = {user: len(bought[user] & set(best)) for user, best in lists.items()}
    share = sum(hits.values()) / sum(len(bought[user]) for user in customers)
    _show(max(customers, key=lambda user: hits[user]), lists, bought, shop, console)
    chance = SHOWN / len(new)
    return Found(
        share > 1.5 * chance,
        f"{share:.0%} of the new items that {len(customers)} customers bought are among their {SHOWN} of "
        f"{len(new)} (by chance {chance:.0%})",
    )


def _new_items(items: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Every so many of the items with enough purchases, uint64[`NEW_ITEMS` at most]."""
    found, counts = np.unique(items, return_counts=True)
    often = keys[np.isin(keys, found[counts >= BUYERS_MIN])]
    return often[:: max(1, len(often) // NEW_ITEMS)][:NEW_ITEMS]


def _show(
    customer: int, lists: dict[int, list[int]], bought: dict[int, set[int]], shop: Shop, console: Console
) -> None:
    grid = Table("rank", f"new items for customer {customer}, which nobody has bought", box=None)
    for rank, item in enumerate(lists[customer], 1):
        label = plain(shop.labels[item])
        came = item in bought[customer]
        grid.add_row(str(rank), Text(f"{label} (bought later)", "bold green") if came else label)
    console.print(grid)
