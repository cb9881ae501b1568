"""Trains the LoRA layers of an encoder on pairs of histories and next items.

The loss of a pair is the cross-entropy of its next item among all items of the batch. The logit of
an item is the cosine of the history and the item divided by `TEMPERATURE`, minus the logarithm of
how often the item is drawn, because popular items are negatives more often. Items of the history
are no negatives.

The vectors of a batch's next items and of the latest items of its histories are computed with
gradients. Those of older items come from a bank: the latest vector that was computed of each item
(Wu et al., CVPR 2018). So a step encodes two texts a pair, whatever the length of the histories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from livefactor_server.files.encoding import Encoder
from livefactor_server.tuning.adapting.augmenting import Augmentation
from livefactor_server.tuning.adapting.pairs import NO_ITEM, Pairs

TEMPERATURE = 0.05
"""Divides cosines, as in the training of MiniLM."""

BLOCKED = -1e9
"""The logit of an item that is no negative."""

GRADIENT_NORM_MAX = 1.0

CONTINUED_RATE = 0.2
"""A training that continues an adapter multiplies the learning rate by this. With the full rate the
second training on Online Retail made the lists of later events worse
(`benchmarks.quality.depth.adapt`).
"""


@dataclass(frozen=True, slots=True)
class Training:
    """How an encoder is trained.

    Attributes:
        steps: the number of batches.
        batch: pairs of a batch.
        learning_rate: of AdamW, which falls to 0 along a line.
        rank: of the LoRA matrices of a new adapter.
        earlier: the share of a batch's pairs that comes from `earlier` pairs, if there are any.
        popularity: the power of an item's number of pairs that divides its chance to be drawn as a
            next item. 0 draws each pair alike, 1 each item.
        augmentation: of the texts.
        seed: of all draws.
    """

    steps: int = 300
    batch: int = 48
    learning_rate: float = 5e-4
    rank: int = 8
    earlier: float = 0.5
    popularity: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def continued(self) -> Training:
        """The training of an adapter that has learned before."""
        return replace(self, learning_rate=self.learning_rate * CONTINUED_RATE)


def train(
    encoder: Encoder,
    texts: list[str],
    vectors: np.ndarray,
    pairs: Pairs,
    earlier: Pairs,
    training: Training,
    report: Callable[[int, float], None],
) -> None:
    """Trains the adapter of `encoder` on `pairs`, and on a share of `earlier` pairs.

    texts: of n items. vectors: those of the texts before the training, float32[n, d]; they are the
    bank and change. `report` gets the number of steps that are done, and the loss.
    """
    import torch

    rng, new, old = np.random.default_rng(training.seed), _Draw(pairs, training), _Draw(earlier, training)
    bank = torch.from_numpy(vectors)
    parameters = encoder.begin_training()
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate)
    fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, training.steps)
    counts = np.bincount(np.concatenate([pairs.items, earlier.items]), minlength=len(texts))
    for step in range(training.steps):
        kept = round(training.batch * training.earlier) if len(earlier) else 0
        histories, items = new.some(training.batch - kept, rng)
        if kept:
            others = old.some(kept, rng)
            histories, items = np.concatenate([histories, others[0]]), np.concatenate([items, others[1]])
        live = np.unique(np.concatenate([items, histories[:, 0]]))
        told = [training.augmentation.apply(texts[item], rng) for item in live.tolist()]
        made = encoder.forward(told)
        loss = _loss(bank, live, made, histories, items, counts, training.popularity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM_MAX)
        optimizer.step()
        fall.step()
        bank[torch.from_numpy(live)] = made.detach()
        report(step + 1, float(loss.detach()))
    encoder.end_training()


class _Draw:
    """Draws pairs, those of popular items less often."""

    def __init__(self, pairs: Pairs, training: Training) -> None:
        self._pairs = pairs
        counts = np.bincount(pairs.items)[pairs.items] if len(pairs) else np.ones(1)
        weights = counts.astype(np.float64) ** -training.popularity
        self._ends = np.cumsum(weights / weights.sum())

    def some(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The histories and the next items of `count` pairs."""
        drawn = np.searchsorted(self._ends, rng.random(count)).clip(max=len(self._pairs) - 1)
        return self._pairs.histories[drawn], self._pairs.items[drawn]


def _loss(
    bank: Any, live: np.ndarray, made: Any, histories: np.ndarray, items: np.ndarray, counts: np.ndarray,
    popularity: float,
) -> Any:  # fmt: skip
    """The mean loss of a batch. `made` has the vectors of the items `live`, float32[m, d]."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    table = torch.cat([bank, torch.zeros(1, bank.shape[1])]).index_copy(0, torch.from_numpy(live), made)
    # NO_ITEM is the last row of the table, which is 0.
    profile = normalize(table[torch.from_numpy(histories)].sum(dim=1), dim=1)
    drawn = (counts[live] + 1.0) ** (1.0 - popularity)
    logits = profile @ made.T / TEMPERATURE - torch.from_numpy(np.log(drawn).astype(np.float32))
    is_had = (histories[:, :, None] == live).any(axis=1) & (live != NO_ITEM)
    logits = logits.masked_fill(torch.from_numpy(is_had), BLOCKED)
    return cross_entropy(logits, torch.from_numpy(np.searchsorted(live, items)))
