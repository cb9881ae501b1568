"""Adapts a language model to the log of a shop, twice, with a server in this process."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import livefactor
from livefactor_server.cli.demo.shop import load_shop

PART = 4096


def push(server: livefactor.Local, shop, start: int, stop: int) -> None:
    with server.producer("shop") as producer:
        for at in range(start, stop, PART):
            part = slice(at, min(at + PART, stop))
            producer.push(shop.users[part], shop.items[part], times=shop.times_us[part] // 10**6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--purchases", type=int, default=60_000, help="half of them come before the first run"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--encoder", help="folder of a sentence-transformers model; default: MiniLM")
    chosen = parser.parse_args()
    shop = load_shop()
    with tempfile.TemporaryDirectory() as folder:
        data, items = Path(folder) / "data", Path(folder) / "items.csv"
        with items.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["item_id", "title"])
            rows.writerows(shop.labels.items())
        with livefactor.local("clicks", data=data) as server:
            command = [sys.executable, "-m", "livefactor", "adapt", data, items, "--text", "title"]
            command += [
                "--out",
                Path(folder) / "adapters",
                "--steps",
                str(chosen.steps),
                "--target",
                server.target,
            ]
            command += ["--encoder", chosen.encoder] if chosen.encoder else []
            for half in range(2):
                print(f"run {half + 1}", flush=True)
                push(server, shop, half * chosen.purchases // 2, (half + 1) * chosen.purchases // 2)
                subprocess.run(command, check=True)
            item = int(shop.items[0])
            with server.scorer() as scorer:
                answer = scorer.similar(item, k=3)[0]
            print(f"similar to {shop.labels[item]}:")
            for found in answer.item_ids:
                print(f"  {shop.labels[int(found)]}")


if __name__ == "__main__":
    main()
