"""Re-ranks what a search engine finds, for each customer, with one call of livefactor.

    python search.py [--engine tantivy | postgres] [--purchases N] [--searches N]

A shop's customers search for a word. The engine finds up to 200 items whose descriptions match.
livefactor ranks these for the customer, with the query's vector in the same call. The customer
clicks on an item, and the click flows back as an event with the words of the query. The README
explains the output.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import time
from importlib import resources

import numpy as np
from engines import ENGINES

import livefactor
from livefactor_server.files.words import WordSpace, words_of

CANDIDATES, SHOWN, WORDS = 200, 10, 1
QUERY_WEIGHT, CONTEXT_WEIGHT = 4.0, 1.0
MODEL = "search"
LISTS = ("by the engine", "re-ranked", "re-ranked with the words of clicks")


def rows_of(name: str) -> list[dict[str, str]]:
    """A table of UCI Online Retail (CC BY 4.0), which the package ships for its demo."""
    file = resources.files("livefactor_server") / "data" / "online_retail" / name
    return list(csv.DictReader(io.StringIO(gzip.decompress(file.read_bytes()).decode())))


def query_for(description: str, texts_with: dict[str, int]) -> list[str]:
    """What a customer types who wants this item: the most usual word."""
    words = sorted(set(words_of(description)), key=lambda word: (-texts_with[word], word))
    return words[:WORDS]


def place_of(item: int, ranked: list[int]) -> int:
    """The place of an item in a list, from 0, or the length of the list."""
    return ranked.index(item) if item in ranked else len(ranked)


def best(found: list[int], scores: np.ndarray) -> list[int]:
    """The candidates in the order of their scores."""
    return [found[number] for number in np.argsort(-scores, kind="stable")]


def main() -> None:
    parser = argparse.ArgumentParser(description="Re-ranks what a search engine finds, for each customer.")
    parser.add_argument("--engine", choices=ENGINES, default="tantivy")
    parser.add_argument("--purchases", type=int, default=60_000, help="purchases that are learned before")
    parser.add_argument("--searches", type=int, default=1000)
    chosen = parser.parse_args()

    items = rows_of("items.csv.gz")
    texts = [row["description"] for row in items]
    codes = np.array([row["stock_code"] for row in items])
    place = {code: number for number, code in enumerate(codes.tolist())}
    texts_with: dict[str, int] = {}
    for text in texts:
        for word in set(words_of(text)):
            texts_with[word] = texts_with.get(word, 0) + 1
    events = [
        (int(row["customer_id"]), place[row["stock_code"]])
        for row in rows_of("events.csv.gz")
        if row["stock_code"] in place
    ][-chosen.purchases - 4 * chosen.searches :]
    before, visits = events[: chosen.purchases], events[chosen.purchases :: 4]

    space = WordSpace(texts, 64)
    with (
        ENGINES[chosen.engine](texts) as engine,
        livefactor.local(None) as server,
        server.models() as models,
    ):
        models.create(MODEL, "auto", context={"size": 4096})
        with server.producer("shop", model=MODEL) as producer, server.scorer(model=MODEL) as scorer:
            producer.push_embeddings(codes, space.vectors(texts)).result()
            users, bought = (np.array(column) for column in zip(*before, strict=True))
            producer.push(users, codes[bought]).result()

            known, seconds = set(users.tolist()), []
            places: dict[str, list[int]] = {name: [] for name in LISTS}
            for customer, item in visits[: chosen.searches]:
                words = query_for(texts[item], texts_with)
                vector = space.vectors([" ".join(words)])[0]
                found = engine.search(words, CANDIDATES)
                if customer not in known or item not in found or not vector.any():
                    continue
                asked = {"query": vector, "query_weight": QUERY_WEIGHT}
                plain = scorer.score(customer, codes[found], **asked)[0]
                started = time.perf_counter()
                context = {"context": words, "context_weight": CONTEXT_WEIGHT}
                full = scorer.score(customer, codes[found], **asked, **context)[0]
                seconds.append(time.perf_counter() - started)
                for name, ranked in zip(
                    LISTS, (found, best(found, plain.scores), best(found, full.scores)), strict=True
                ):
                    places[name].append(place_of(item, ranked))
                # The click flows back with the words, so that the next list knows it.
                producer.push(customer, codes[item], context=words).result()

    print(f"{len(seconds)} searches, in which {chosen.engine} found the item among {CANDIDATES} candidates")
    report(places)
    print(f"one Score call takes {np.median(seconds) * 1e3:.1f} ms (median)")


def report(places: dict[str, list[int]]) -> None:
    """Prints how often the clicked item is among the first items of each list."""
    for name, found_at in places.items():
        whole, later = (
            np.mean(np.array(part) < SHOWN) for part in (found_at, found_at[len(found_at) // 2 :])
        )
        print(
            f"the clicked item is among the first {SHOWN}, {name}: {whole:.3f}, in the later half {later:.3f}"
        )


if __name__ == "__main__":
    main()
