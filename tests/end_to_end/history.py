"""The logs and snapshots that the replay tests read: every loss, optimizer and kind of record.

They are made once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livefactor.auditor import Auditor
from livefactor.models import Models
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from server_process import Server

SGD = {"kind": "sgd", "learning_rate": 0.05, "bias_learning_rate": 0.05}
ADAGRAD = {"kind": "adagrad", "learning_rate": 0.1, "bias_learning_rate": 0.1, "initial_g": 0.0, "eps": 1e-6}
# The producers send more users and items than this, so the server rejects rows in the end.
LIMITS = {"users_max": 350, "items_max": 150}

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "ratings-sgd": ("ratings_sgd", {"optimizer": SGD}),
    "ratings-adagrad": ("ratings_sgd", {"optimizer": ADAGRAD}),
    "clicks-sgd": ("clicks_sgd", {"optimizer": SGD}),
    "clicks-adagrad": ("clicks_sgd", {"optimizer": ADAGRAD, "seed": 2**64 - 1}),
    "clicks-batch": ("clicks_sgd", {"micro_batch": 32, "hot_row_events": 4.0}),
    "purchases-sgd": ("purchases_sgd", {"optimizer": SGD}),
    "purchases-adagrad": ("purchases_sgd", {"optimizer": ADAGRAD}),
    "purchases-batch": ("purchases_sgd", {"micro_batch": 7, "negatives": 2}),
    "ratings-float16": ("ratings_sgd", {"factor_dtype": "float16"}),
    "clicks-bfloat16": ("clicks_sgd", {"factor_dtype": "bfloat16", "optimizer": ADAGRAD}),
    "ratings-rowwise": (
        "ratings_sgd",
        {"optimizer": {**ADAGRAD, "kind": "rowwise_adagrad"}, "micro_batch": 16},
    ),
    "clicks-adam": (
        "clicks_sgd",
        {"optimizer": {"kind": "lazy_adam", "learning_rate": 0.01}, "factor_dtype": "bfloat16"},
    ),
    "purchases-ftrl": (
        "purchases_sgd",
        {
            "optimizer": {"kind": "ftrl", "learning_rate": 0.1, "l1": 0.01},
            "history": {"users": 16},
            "regularization": {
                "gradient_norm_max": 1.0,
                "row_norm_max": 2.0,
                "l2_frequency": 0.5,
                "dropout": 0.2,
            },
        },
    ),
    "purchases-batch-float16": (
        "purchases_sgd",
        {"micro_batch": 7, "negatives": 2, "factor_dtype": "float16"},
    ),
}
SEED = 20_261_128
BATCHES, BATCHES_AFTER_SNAPSHOT = 6, 3
ROWS_MAX = 250


@dataclass(frozen=True)
class History:
    """The data folder of a killed server, and the live root hash of each model by name."""

    data: Path
    roots: dict[str, bytes]

    def folder(self, model: str) -> Path:
        return self.data / "models" / model


def make_history(server: Server) -> History:
    """Push to each model with two producers at once, take a snapshot in between, and kill the
    server at the end.
    """
    roots = {}
    with server.channel() as channel:
        models = Models(channel)
        for name, (preset, changes) in MODELS.items():
            models.create(name, preset, **{"k": 8, "limits": LIMITS, **changes})
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda number, name=name: _push(server, name, number, BATCHES), range(2)))
                Auditor(channel, model=name).snapshot()
                list(
                    pool.map(
                        lambda number, name=name: _push(server, name, number, BATCHES_AFTER_SNAPSHOT),
                        range(2),
                    )
                )
            roots[name] = models.describe(name, with_root_hash=True).root_hash
    server.kill()
    return History(server.data, roots)


def _push(server: Server, model: str, number: int, batches: int) -> None:
    rng = np.random.default_rng([SEED, number, batches, *model.encode()])
    settings = BatchSettings(latency_ms_max=0)
    with (
        server.channel() as channel,
        Producer(channel, f"p{number}", model=model, batch=settings, on_reject=lambda _: None) as producer,
    ):
        producer.push_labels("item", [1, 2, 1], ["mug", "lamp", f"red mug {number}"])
        producer.set_available(rng.integers(0, 20, 5, np.uint64), bool(number))
        for _ in range(batches):
            rows = int(rng.integers(1, ROWS_MAX))
            # Any 64-bit id is legal.
            users = rng.integers(0, 400, rows, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            producer.push(users, rng.zipf(1.4, rows) % 200, *_columns(model, rng, rows), event_types=rows)


def _columns(model: str, rng: np.random.Generator, rows: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Values and weights. The server rejects a few of the rows."""
    values: np.ndarray = rng.normal(3, 1, rows).astype(np.float32)
    if model.startswith("clicks"):
        values = (rng.random(rows) < 0.8).astype(np.float32)
    elif model.startswith("purchases"):
        values = np.ones(rows, np.float32)
    values[rng.random(rows) < 0.02] = np.nan
    weights = rng.gamma(2.0, 0.5, rows).astype(np.float32) if rows % 2 else None
    return values, weights
