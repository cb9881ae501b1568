"""What may be together: the table of docs/content.md, and all parts in one model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import livefactor
from livefactor.errors import InvalidArgument
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Context, Embeddings, Features, ModelSpec, SpecError
from livefactor_kernels.spec.presets import PRESET_NAMES, preset
from livefactor_server.snapshots.audit import replay_model

DOC = Path(__file__).resolve().parents[3] / "docs" / "content.md"

PARTS = {
    "features": {"features": Features(64)},
    "context": {"context": Context(64)},
    "vectors of items, and a query": {"embeddings": Embeddings(8)},
    "vectors of users": {"embeddings": Embeddings(user_dimension=8)},
}
ITEMS, D = 24, 4
NAMES = np.array([f"film {item}" for item in range(ITEMS)])


def table() -> list[list[str]]:
    """The cells of the table, with its head."""
    text = DOC.read_text()
    section = text.split("## What goes together", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" |") for cell in row] for row in rows]


def test_the_table_says_what_a_spec_may_have() -> None:
    head, *rows = table()
    assert head[1:] == list(PARTS)
    rules = set()
    for rule, *cells in rows:
        name = re.search(r"preset `(\w+)`", rule)
        assert name, rule
        base = preset(name[1])
        rules.add((base.rule, base.loss))
        for part, cell in zip(PARTS, cells, strict=True):
            spec = replace(base, **PARTS[part])
            if cell == "yes, with `history.users` above 0":
                with pytest.raises(SpecError, match=r"^history\.users: expected above 0"):
                    check(spec)
                spec, cell = replace(spec, history=replace(spec.history, users=32)), "yes"
            if cell == "yes":
                assert check(spec) == spec, (rule, part)
                continue
            refused = re.fullmatch(r"refused: `(.+)`", cell)
            assert refused, (rule, part, cell)
            with pytest.raises(SpecError, match=f"^{re.escape(refused[1])}"):
                check(spec)
    assert rules == {(preset(name).rule, preset(name).loss) for name in PRESET_NAMES}


def test_vectors_of_users_need_followed_features() -> None:
    base: ModelSpec = replace(preset("clicks"), embeddings=Embeddings(user_dimension=8))
    with pytest.raises(SpecError, match=r"^features\.prior_events: expected above 0 with embeddings\.user_d"):
        check(replace(base, features=Features(64)))
    check(replace(base, features=Features(64, prior_events=8.0), context=Context(64)))


@pytest.mark.parametrize("name", ["clicks", "auto"])
def test_all_parts_of_one_model_add_up(name: str, tmp_path: Path) -> None:
    """Query and context add to the scores of users with features and vectors."""
    rng = np.random.default_rng(4)
    spec = {
        "k": 8,
        "features": {"size": 64, "prior_events": 4.0},
        "embeddings": {"dimension": D, "user_dimension": D},
        "context": {"size": 64},
        "limits": {"items_max": 64},
    }
    kinds = np.where(np.arange(ITEMS) % 2, 1.0, -1.0)
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("films", name, **spec)
        with server.producer("p", model="films") as producer:
            for _ in range(12):
                users = rng.integers(0, 40, 60)
                items = 2 * rng.integers(0, ITEMS // 2, 60) + users % 2
                when = [[f"hour:{3 if item % 2 == 0 else 15}"] for item in items.tolist()]
                producer.push(users, NAMES[items], context=when)
            producer.push_features("item", NAMES, [[f"kind:{item % 2}"] for item in range(ITEMS)])
            producer.push_features("user", np.arange(42), [[f"club:{user % 2}"] for user in range(42)])
            producer.push_embeddings(NAMES, kinds[:, None] + 0.1 * rng.normal(size=(ITEMS, D)))
            side = np.where(np.arange(42) % 2, 1.0, -1.0)[:, None]
            producer.push_embeddings(np.arange(42), side + 0.1 * rng.normal(size=(42, D)), side="user")
            producer.flush()
        query, context = np.ones(D), ["hour:15"]
        with server.scorer(model="films") as scorer:
            for user in (1, 40, 99):
                plain, asked, told, both = (
                    scorer.score(user, NAMES, **parts)[0].scores
                    for parts in (
                        {},
                        {"query": query, "query_weight": 2.0},
                        {"context": context, "context_weight": 3.0},
                        {"query": query, "query_weight": 2.0, "context": context, "context_weight": 3.0},
                    )
                )
                np.testing.assert_allclose(both - plain, (asked - plain) + (told - plain), atol=1e-4)
                assert (asked - plain)[1::2].min() > (asked - plain)[::2].max()
                assert (told - plain)[1::2].mean() > (told - plain)[::2].mean()
                (listed,) = scorer.recommend(user, k=5, query=query, query_weight=500.0, context=context)
                assert all(int(item.split()[1]) % 2 for item in listed.item_ids.tolist())
            # Users 40 and 41 have no events. Their features and vectors say what they like.
            even, odd = (answer.scores for answer in scorer.score([40, 41], NAMES))
            # Popularity is the same for both.
            assert (even - odd)[::2].mean() > (even - odd)[1::2].mean()
            if name == "clicks":
                assert even[::2].mean() > even[1::2].mean() and odd[1::2].mean() > odd[::2].mean()
        with server.auditor(model="films") as auditor:
            auditor.snapshot()
    assert replay_model(tmp_path / "models" / "films", "reference", None).good


def test_rules_that_take_no_vectors_refuse_vectors_and_queries(tmp_path: Path) -> None:
    with livefactor.local("auto", data=tmp_path) as server:
        with server.models() as models:
            models.create("orders", "purchases_sgd", k=8)
        with server.producer("p", model="orders") as producer:
            producer.push([1], [1]).result(10)
            for side in ("item", "user"):
                with pytest.raises(InvalidArgument, match="implicit"):
                    producer.push_embeddings([1], np.ones((1, D)), side=side).result(10)
        with (
            server.scorer(model="orders") as scorer,
            pytest.raises(InvalidArgument, match="query: this model has no embeddings"),
        ):
            scorer.recommend(1, k=3, query=np.ones(D))
