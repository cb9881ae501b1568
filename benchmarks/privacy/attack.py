"""An attack on differential privacy: `make privacy-attack` (docs/privacy.md#the-attack).

It audits a running model with canaries, and then the same model with one fault at a time, which it
must find. A canary is a user who always contributes a large number in one place of one item row,
where nobody else contributes. It is in all releases of a window or in none. The attacker reads the
item rows of a snapshot before the releases and after them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import livefactor
from benchmarks.pages import ROOT, write_between
from benchmarks.privacy.audit import CONFIDENCE, audit
from livefactor.errors import FailedPrecondition
from livefactor_kernels.spec.model import Privacy
from livefactor_server.changes.content.releasing import GRID_BITS
from livefactor_server.model.ledger import Ledger

RESULTS = "benchmarks/results/privacy.json"
CANARIES, K, DELTA, SHARE = 1000, 8, 1e-6, 0.2
LOUD = 30.0
"""The number that a canary contributes, in times of the clip."""

RELEASES_MAX = 100
"""The most releases of a run, for the model whose ledger does not count."""

BUDGETS = {"1": (1.0, 10.0), "3": (3.0, 5.0), "8": (8.0, 3.0)}
"""Epsilon of a window and noise, by the name of a run."""

FAULTS = {
    "noise is missing": ("livefactor_server.changes.content.releasing.released", "_without_noise"),
    "clipping is missing": ("livefactor_server.changes.content.releasing.clipped", "_unclipped"),
    "the budget is not charged": ("livefactor_server.model.ledger.Ledger.charge", "_uncharged"),
}


def _without_noise(sums: np.ndarray, privacy: Privacy) -> np.ndarray:
    return (sums * (privacy.clip / 2.0**GRID_BITS)).astype(np.float32)


def _unclipped(numbers: np.ndarray, clip: float) -> np.ndarray:
    return np.trunc(numbers.astype(np.float64) / clip * 2.0**GRID_BITS).astype(np.int64)


def _uncharged(self: Ledger, window: int, number: int) -> None:
    self.all_releases = number


def attack(folder: Path, epsilon: float, noise: float, canaries: int, fault: str = "") -> dict[str, Any]:
    """Runs a model with a budget and perhaps a fault, and audits what its rows say.

    Returns the epsilon of all releases that the budget allows, and what the audit found.
    """
    present = np.random.default_rng().random(canaries) < 0.5
    items = np.arange(-(-canaries // K), dtype=np.uint64)
    budget = {"epsilon": epsilon, "delta": DELTA, "clip": 1.0, "noise": noise}
    with ExitStack() as stack:
        if fault:
            target, name = FAULTS[fault]
            stack.enter_context(mock.patch(target, globals()[name]))
        server = stack.enter_context(livefactor.local("clicks_sgd", data=folder / "data"))
        models = stack.enter_context(server.models())
        merge = {"learning_rate": 1.0, "norm_max": 1e20}
        models.create("canaries", "clicks_sgd", k=K, merge=merge, privacy=budget)
        with server.producer("items", model="canaries") as producer:
            producer.push_deltas("item", items, np.zeros((len(items), K))).result()
        before = _rows(server, folder / "before")
        releases = _release_all(models, present, items)
        moved = _rows(server, folder / "after") - before
    promised = Privacy(epsilon, DELTA, 0, 1.0, noise)
    claimed = promised.spent(promised.releases_max)
    found = audit(moved.ravel()[:canaries], present, SHARE, DELTA)
    return {
        "epsilon_budget": epsilon,
        "noise": noise,
        "releases": releases,
        "epsilon_claimed": round(claimed, 4),
        "guesses": found.guesses,
        "right": found.right,
        "epsilon_lower_bound": round(found.epsilon, 4),
        "refuted": found.epsilon > claimed,
    }


def _release_all(models: livefactor.Models, present: np.ndarray, items: np.ndarray) -> int:
    """Makes as many releases as the model allows. Returns their number."""
    for number in range(1, RELEASES_MAX + 1):
        for user in np.flatnonzero(present).tolist():
            loud = np.zeros((1, K))
            loud[0, user % K] = LOUD
            models.contribute("canaries", number, user, items[user // K : user // K + 1], loud)
        try:
            models.make_release("canaries", number)
        except FailedPrecondition:
            return number - 1
    return RELEASES_MAX


def _rows(server: livefactor.Local, path: Path) -> np.ndarray:
    """The factors of the items, float64[items, K], in the order of their ids."""
    with server.auditor(model="canaries") as auditor:
        auditor.fetch(path, auditor.snapshot().snapshot_id)
    tensors = livefactor.load(path).tensors
    factors: np.ndarray = tensors["items.factors"][np.argsort(tensors["items.keys"])].astype(np.float64)
    return factors


def battery(canaries: int, budgets: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Audits a sound model with each budget, and one with each fault under the first budget."""
    with tempfile.TemporaryDirectory() as scratch:
        sound = {name: attack(Path(scratch, name), *budget, canaries) for name, budget in budgets.items()}
        first = next(iter(budgets.values()))
        faulty = {
            fault: attack(Path(scratch, fault.replace(" ", "-")), *first, canaries, fault) for fault in FAULTS
        }
    return {
        "canaries": canaries,
        "confidence": CONFIDENCE,
        "sound": sound,
        "faulty": faulty,
        "planted_fakes": len(faulty),
        "planted_fakes_caught": sum(each["refuted"] for each in faulty.values()),
        "sound_refuted": sum(each["refuted"] for each in sound.values()),
    }


def table(found: dict[str, Any]) -> str:
    """The table of docs/privacy.md."""
    lines = [
        "| model | releases | claimed epsilon | right guesses | lower bound of epsilon | |",
        "|---|---|---|---|---|---|",
    ]
    runs = [(f"budget {name}", each) for name, each in found["sound"].items()]
    for name, each in [*runs, *found["faulty"].items()]:
        verdict = "refuted" if each["refuted"] else "stands"
        lines.append(
            f"| {name} | {each['releases']} | {each['epsilon_claimed']:.2f} | {each['right']} of "
            f"{each['guesses']} | {each['epsilon_lower_bound']:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canaries", type=int, default=CANARIES)
    parser.add_argument("--output", type=Path, default=ROOT / RESULTS)
    given = parser.parse_args()
    found = battery(given.canaries, BUDGETS)
    print(table(found))
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    given.output.write_text(json.dumps(kept | {"attack": found}, indent=2) + "\n")
    write_between(ROOT / "docs/privacy.md", "make privacy-attack", table(found))
    if found["sound_refuted"] or found["planted_fakes_caught"] < found["planted_fakes"]:
        raise SystemExit("the attack refutes a sound model, or it misses a planted fault")


if __name__ == "__main__":
    main()
