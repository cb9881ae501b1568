"""Rounds of a hundred participants with Flower, in one process: who drops out, who is late, who
lies, and what the log has afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="make test-federated has it")

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

import livefactor
from livefactor import federated
from livefactor_server.snapshots.audit import replay_model
from memory_grid import MemoryGrid

K, ITEMS, NODES = 8, 40, 100
SPEC = {"k": K, "merge": {"learning_rate": 1.0, "norm_max": 50.0}}


@pytest.fixture
def homes() -> Iterator[livefactor.Local]:
    """The machine of all participants: each has a model of its own in it, and 64 is the limit."""
    with livefactor.local("clicks_sgd") as server:
        yield server


@pytest.fixture
def common(tmp_path: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks_sgd", data=tmp_path / "data") as server:
        with server.models() as models:
            models.create("common", "clicks_sgd", **SPEC)
        with server.producer("items", model="common", labels=False) as producer:
            federated.register(producer, np.arange(ITEMS, dtype=np.uint64), K)
        yield server


def events_of(node: int, number: int) -> dict[str, np.ndarray]:
    """A person with an even number likes even items, and one with an odd number odd ones."""
    rng = np.random.default_rng([node, number])
    items = 2 * rng.integers(0, ITEMS // 2, 30) + node % 2
    return {"user_ids": np.full(30, node, np.uint64), "item_ids": items.astype(np.uint64)}


def app_of(homes: livefactor.Local, common: livefactor.Local, name: str, **options: object):
    @contextmanager
    def home(context: Context) -> Iterator[federated.Home]:
        node = context.node_config["partition-id"]
        with common.auditor(model="common") as auditor:
            yield federated.Home(
                homes,
                auditor,
                partial(events_of, node),
                "clicks_sgd",
                {"k": K},
                name=f"{name}-{node}",
                **options,
            )

    return federated.client_app(home)


def strategy_of(common: livefactor.Local, tmp_path: Path, **options: object) -> federated.OneRecord:
    return federated.OneRecord(common.target, tmp_path / "rounds", model="common", **options)


def test_a_hundred_participants_make_one_record_a_round(
    homes: livefactor.Local, common: livefactor.Local, tmp_path: Path
) -> None:
    late: list[int] = []

    def interfere(node: int, reply: Message) -> Message | None:
        # A fifth of the participants never answers.
        if node % 5:
            return reply
        late.append(node)
        return None

    grid = MemoryGrid(app_of(homes, common, "many"), NODES, interfere)
    strategy = strategy_of(common, tmp_path, fraction_train=0.2)
    rounds = strategy.run(grid, 3)
    assert len(grid.sent) == 60 and late
    assert sum(each.merged for each in rounds) == 60 - len(late)
    # A round is one record: nothing else happens from the first to the last.
    assert np.diff([each.revision for each in rounds]).tolist() == [1, 1]
    assert all(each.is_proven and not each.refused for each in rounds)
    assert all(each.events == 30 * each.merged for each in rounds)
    assert [each.root_after for each in rounds[:-1]] == [each.root_before for each in rounds[1:]]
    lines = [json.loads(line) for line in (tmp_path / "rounds" / "rounds.jsonl").read_text().splitlines()]
    assert [line["deltas_sha256"] for line in lines] == [each.deltas_sha256 for each in rounds]
    with common.models() as models:
        described = models.describe("common", with_root_hash=True)
    assert (described.users, described.items, described.root_hash.hex()) == (0, ITEMS, rounds[-1].root_after)
    # The log alone gives the same state, on the reference, too.
    assert (
        replay_model(tmp_path / "data" / "models" / "common", "reference", None).root_hash
        == described.root_hash
    )


def test_wrong_replies_are_left_out_by_name(
    homes: livefactor.Local, common: livefactor.Local, tmp_path: Path
) -> None:
    def reply_of(message: Message, keys: np.ndarray, numbers: np.ndarray, events: object) -> Message:
        arrays = ArrayRecord({"keys": Array(keys), "numbers": Array(numbers)})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"events": events})})
        message.content = content
        return message

    good, row = np.array([1, 3], np.uint64), np.ones((2, K + 1), np.float32)
    wrong = {
        1: lambda m: reply_of(m, good[::-1].copy(), row, 1.0),
        2: lambda m: reply_of(m, np.array([1, 999], np.uint64), row, 1.0),
        3: lambda m: reply_of(m, good, np.full_like(row, np.nan), 1.0),
        4: lambda m: reply_of(m, good, row[:, :-1].copy(), 1.0),
        5: lambda m: reply_of(m, good, row, float("inf")),
        6: lambda m: reply_of(m, good.astype(np.int64), row, 1.0),
        7: lambda m: reply_of(m, good, row, [1.0, 2.0]),
        8: lambda m: reply_of(m, good, row, -1.0),
    }

    def interfere(node: int, reply: Message) -> Message:
        if node == 9:
            # An empty reply.
            reply.content = RecordDict()
            return reply
        return wrong[node](reply) if node in wrong else reply

    grid = MemoryGrid(app_of(homes, common, "wrong"), 12, interfere)
    (done,) = strategy_of(common, tmp_path).run(grid, 1)
    assert (done.merged, len(done.refused), done.is_proven) == (3, 9, True)
    reasons = " | ".join(done.refused)
    for text in ("ascending", "no row", "finite", "[2, 9]", "events", "uint64", "cannot be read"):
        assert text in reasons


def test_a_participant_that_fails_and_a_round_of_too_few(
    homes: livefactor.Local, common: livefactor.Local, tmp_path: Path
) -> None:
    def broken(context: Context) -> object:
        raise OSError("no disk")

    strategy = strategy_of(common, tmp_path)
    (done,) = strategy.run(MemoryGrid(federated.client_app(broken), 3), 1)
    assert done.root_before == done.root_after
    assert (done.merged, done.revision, done.is_proven) == (0, 0, False)
    assert len(done.refused) == 3 and "no disk" in done.refused[0]
    with common.models() as models:
        assert models.describe("common", with_root_hash=True).root_hash.hex() == done.root_after


@pytest.mark.parametrize("name", ["krum", "trimmed"])
def test_liars_change_little_with_krum_and_with_a_trimmed_mean(
    homes: livefactor.Local, common: livefactor.Local, tmp_path: Path, name: str
) -> None:
    def interfere(node: int, reply: Message) -> Message:
        if node <= 2:
            numbers = reply.content["arrays"]["numbers"].numpy()
            reply.content["arrays"]["numbers"] = Array(np.full_like(numbers, 1000.0))
            reply.content["metrics"]["events"] = 1e12
        return reply

    merge = {
        "krum": partial(federated.krum, wrong=2, chosen=4),
        "trimmed": partial(federated.trimmed_mean, share=0.25),
    }
    grid = MemoryGrid(app_of(homes, common, name, padding=-1), 9, interfere)
    (done,) = strategy_of(common, tmp_path, merge=merge[name]).run(grid, 1)
    assert done.is_proven and done.rows == ITEMS and done.norm < 20.0


def test_a_participant_refuses_a_model_that_is_not_the_announced_one(
    homes: livefactor.Local, common: livefactor.Local, tmp_path: Path
) -> None:
    strategy = strategy_of(common, tmp_path)
    configure = strategy.configure_train

    def lying(server_round, arrays, config, grid):
        messages = list(configure(server_round, arrays, config, grid))
        for message in messages:
            message.content["config"]["root-hash"] = bytes(32)
        return messages

    strategy.configure_train = lying
    (done,) = strategy.run(MemoryGrid(app_of(homes, common, "wary"), 3), 1)
    assert done.merged == 0 and all("root hash" in each for each in done.refused)


def test_padding_hides_which_items_changed(homes: livefactor.Local, common: livefactor.Local) -> None:
    with common.auditor(model="common") as auditor:
        taken = auditor.snapshot()
        home = federated.Home(homes, auditor, partial(events_of, 1), "clicks_sgd", {"k": K}, name="pads")
        plain = home.learn(1, taken.snapshot_id, taken.root_hash)
        assert plain.numbers.any(axis=1).all() and len(plain.keys) < ITEMS
        home.padding = -1
        padded = home.learn(2, taken.snapshot_id, taken.root_hash)
        assert padded.keys.tolist() == list(range(ITEMS))


def test_every_public_name_is_there() -> None:
    assert [name for name in federated.__all__ if not hasattr(federated, name)] == []
