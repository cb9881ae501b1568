"""Adapting an encoder: pairs, logs, folders and the run, with a stand-in for PyTorch."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import livefactor
from livefactor.errors import ColumnError
from livefactor.v1 import updates_pb2
from livefactor.wire.content import decode_embeddings, encode_embeddings
from livefactor_kernels.spec.model import Embeddings
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import EmbeddingsChange
from livefactor_server.changes.show import rows
from livefactor_server.cli.app import app
from livefactor_server.files.vectors import hash_of, read_vectors
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.statuses import Refused
from livefactor_server.tuning.adapting import run
from livefactor_server.tuning.adapting.adapter import AdapterError, read_adapter
from livefactor_server.tuning.adapting.augmenting import Augmentation, encode_averaged, read_synonyms
from livefactor_server.tuning.adapting.logged import log_events
from livefactor_server.tuning.adapting.pairs import NO_ITEM, pairs_of

ITEMS, D = 12, 4


class StandIn:
    """An encoder without PyTorch: a vector has lengths of words, and training turns the axes."""

    def __init__(self, folder: Path | None) -> None:
        assert folder is not None
        self.folder, self.turns = folder, 0

    def digest(self) -> str:
        return (self.folder / "weights.json").read_text().ljust(64, "0")

    def adapt(self, folder: Path | None, rank: int = 8, seed: int = 0) -> None:
        if folder is not None:
            self.turns = int((folder / "adapter_model.safetensors").read_text())

    def encode(self, texts: list[str], batch: int, report: Any) -> np.ndarray:
        report(len(texts))
        rows = [[len(text), text.count("a"), 1.0, text.count("e")] for text in texts]
        return np.roll(np.array(rows, np.float32), self.turns, axis=1)

    def save_adapter(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(self.turns))
        (folder / "adapter_config.json").write_text("{}")
        (folder / "README.md").write_text("of peft")


def learn(
    encoder: StandIn, texts: Any, vectors: Any, pairs: Any, earlier: Any, training: Any, report: Any
) -> None:
    """What `train` does to a stand-in. The numbers of pairs are kept for the test."""
    encoder.turns += 1
    seen.append((len(pairs), len(earlier)))
    rates.append(training.learning_rate)
    report(training.steps, 0.0)


seen: list[tuple[int, int]] = []
rates: list[float] = []


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the texts of items and an encoder."""
    monkeypatch.setattr(run, "Encoder", StandIn)
    monkeypatch.setattr(run, "train", learn)
    seen.clear()
    lines = [f"item {at},{'green' if at % 2 else 'a red'} lamp {'e' * at}" for at in range(ITEMS)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *lines]))
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights.json").write_text("1")
    yield tmp_path


def push(server: livefactor.Local, seed: int, events: int = 120) -> None:
    rng = np.random.default_rng(seed)
    with server.producer("p") as producer:
        items = [f"item {at}" for at in rng.integers(0, ITEMS, events)]
        producer.push(rng.integers(0, 10, events), items)
        producer.push(3, "item 1", 0.0)


def adapt(shop: Path, server: livefactor.Local, *options: str) -> Result:
    command = ["adapt", str(shop / "data"), str(shop / "items.csv"), "--text", "title"]
    command += ["--encoder", str(shop / "encoder"), "--out", str(shop / "out"), "--target", server.target]
    return CliRunner().invoke(app, [*command, "--batch", "8", "--json", *options])


def test_a_run_pushes_what_it_names_and_a_second_one_continues(shop: Path) -> None:
    with livefactor.local("clicks", data=shop / "data") as server:
        push(server, 1)
        first = adapt(shop, server)
        assert first.exit_code == 0, first.output
        told = json.loads(first.stdout)
        assert (told["accepted"], told["rejected"], told["adapter"]) == (ITEMS, 0, str(shop / "out/1"))
        assert told["hash"] == read_adapter(shop / "out/1").digest
        again = adapt(shop, server)
        assert (
            again.exit_code == 2
            and f"pairs of a history and a next item with texts after revision {told['revision']}"
            in again.stderr
        )
        assert not (shop / "out/2").exists()
        push(server, 2)
        second = adapt(shop, server)
        assert second.exit_code == 0, second.output
        facts = read_adapter(shop / "out/2").facts
        assert facts.previous == told["hash"] and facts.revision > told["revision"]
        # The second run learns what is new, beside what the first run learned.
        assert seen[0][1] == 0 and seen[1][1] == told["pairs"]
        assert rates[-1] < rates[-2]
        with server.scorer() as scorer:
            assert len(scorer.similar("item 3", k=3)[0].item_ids) == 3
        (shop / "encoder" / "weights.json").write_text("2")
        other = adapt(shop, server)
        assert other.exit_code == 2 and "was trained for the encoder" in other.stderr
    folder = shop / "data" / "models" / "default" / "log"
    told_in_log = [row["change"] for row in rows(folder) if row["kind"] == "EMBEDDINGS"]
    hashes = [read_adapter(shop / "out" / name).digest for name in ("1", "2")]
    assert [text.rpartition(" by ")[2] for text in told_in_log] == hashes
    vectors = shop / "out" / "2" / "vectors.parquet"
    assert (
        hash_of(vectors).hex() == hashes[1]
        and len(read_vectors(vectors, None, "item_id", "", False)[1]) == ITEMS
    )
    live = replay_model(shop / "data" / "models" / "default", "cpu")
    assert live.root_hash == replay_model(shop / "data" / "models" / "default", "reference").root_hash


def test_a_model_or_a_log_that_does_not_fit_is_refused_and_nothing_is_pushed(shop: Path) -> None:
    with livefactor.local("clicks", data=shop / "data") as server:
        push(server, 1, 6)
        assert "expected at least 8" in adapt(shop, server).stderr
        push(server, 1)
        with server.models() as models:
            models.create("stars", "ratings_sgd")
            models.create("wide", "clicks", embeddings={"dimension": 7})
            models.create("other", "clicks")
        for model, text in (("stars", "takes no vectors"), ("none", "no log in")):
            refused = adapt(shop, server, "--model", model)
            assert refused.exit_code == 2 and text in refused.stderr
        with server.producer("q", model="wide") as producer:
            producer.push(np.arange(200) // 4, [f"item {at}" for at in np.arange(200) % ITEMS])
        wide = adapt(shop, server, "--model", "wide")
        assert wide.exit_code == 2 and "dimension 7, and the encoder makes 4" in wide.stderr
        assert adapt(shop, server, "--no-push").exit_code == 0
        assert "was trained on the log of model" in adapt(shop, server, "--model", "other").stderr
        (shop / "out/1/adapter_config.json").write_text("{ }")
        assert "was changed" in adapt(shop, server).stderr
        (shop / "out/1/adapter.json").write_text("[]")
        assert "no adapter" in adapt(shop, server).stderr
        assert "expected module:function" in adapt(shop, server, "--hook", "absent:function").stderr
    log = shop / "data" / "models" / "default" / "log"
    assert not any(row["kind"] == "EMBEDDINGS" for row in rows(log))


def test_vectors_that_could_not_be_pushed_stay_in_a_file(shop: Path) -> None:
    with livefactor.local("clicks", data=shop / "data") as server:
        push(server, 1)
        failed = adapt(shop, server, "--target", f"unix:{shop}/nobody")
        assert failed.exit_code == 1 and "push-embeddings" in failed.stderr
        command = ["push-embeddings", str(shop / "out/1/vectors.parquet"), "--target", server.target]
        assert CliRunner().invoke(app, command).exit_code == 0
    log = shop / "data" / "models" / "default" / "log"
    told = [row["change"] for row in rows(log) if row["kind"] == "EMBEDDINGS"]
    assert [text.rpartition(" by ")[2] for text in told] == [read_adapter(shop / "out/1").digest]


def test_events_that_were_taken_back_and_dislikes_train_nothing(tmp_path: Path) -> None:
    with livefactor.local("clicks", data=tmp_path) as server:
        with server.models() as models:
            models.create("shop", "clicks", event_types=[{"type": 5, "weight": 1.0, "negative": True}])
        with server.producer("p", model="shop") as producer:
            producer.push([1, 1, 1], [1, 2, 3], [1.0, 0.0, 1.0])
            kept = producer.flush().revision
            producer.push([1, 1], [4, 6], event_types=[5, 1])
            producer.push(1, 5)
            producer.flush()
        with server.models() as models:
            models.roll_back("shop", to_revision=kept)
        with server.producer("p", model="shop") as producer:
            producer.push([2, 2], [4, 6], event_types=[5, 1])
    found = log_events(tmp_path / "models" / "shop" / "log")
    assert found.items.tolist() == [1, 3, 6] and found.users.tolist() == [1, 1, 2]


def test_pairs_have_the_latest_items_first_and_no_item_twice() -> None:
    users, items = np.array([1, 2, 1, 1, 2, 1, 1]), np.array([4, 4, 5, -1, 4, 4, 6])
    pairs = pairs_of(users, items, 3)
    assert pairs.histories.tolist() == [[4, NO_ITEM, NO_ITEM], [5, 4, NO_ITEM]]
    assert (pairs.items.tolist(), pairs.places.tolist()) == ([5, 6], [2, 6])


def test_variants_of_a_text_are_averaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "words.txt").write_text("red, crimson ,scarlet\n\nalone\n")
    synonyms = read_synonyms(tmp_path / "words.txt")
    assert synonyms == {"red": ["crimson", "scarlet"]}
    changed = Augmentation(0.0, synonyms, 1.0, str.upper).apply("Red lamp", rng)
    assert changed in ("CRIMSON LAMP", "SCARLET LAMP")
    short = {Augmentation(0.9).apply("one two three", rng) for _ in range(100)}
    assert "" not in short and {"one", "two", "three"} <= short
    assert Augmentation().is_off and Augmentation().apply("as it  is", rng) == "as it  is"
    encoder: Any = StandIn(tmp_path)
    half = Augmentation(hook=lambda text: text + "aa")
    vectors = encode_averaged(encoder, ["ba", "cea"], half, 1, 2, lambda done: None)
    expected = np.array([[3.0, 2.0, 1.0, 0.0], [4.0, 2.0, 1.0, 1.0]])
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_the_hash_of_an_encoder_is_kept_with_vectors_and_has_a_length() -> None:
    vectors = np.ones((2, D), np.float16)
    body = encode_embeddings(updates_pb2.SIDE_ITEM, np.array([1, 2], np.uint64), vectors, bytes(range(32)))
    assert decode_embeddings(body).encoder_hash == bytes(range(32))
    assert EmbeddingsChange.from_log(body).without_rows([0]).encoder_hash == bytes(range(32))
    # A body without a hash is the one of earlier releases.
    plain = encode_embeddings(updates_pb2.SIDE_ITEM, np.array([1, 2], np.uint64), vectors)
    assert updates_pb2.Embeddings.FromString(plain).encoder_hash == b"" and len(plain) == len(body) - 34
    bad = encode_embeddings(updates_pb2.SIDE_ITEM, np.array([1, 2], np.uint64), vectors, b"short")
    with pytest.raises(Refused, match="encoder_hash: expected 32 bytes or none, got 5"):
        EmbeddingsChange.from_wire(bad, preset("clicks", embeddings=Embeddings(D)), 100)


def test_an_adapter_needs_peft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from livefactor_server.files.encoding import Encoder, EncoderError

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = lambda folder, local_files_only: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EncoderError, match=r"peft is not installed.*livefactor\[adapt\]"):
        Encoder(tmp_path).adapt(None)
    with (
        pytest.raises(ColumnError, match="encoder_hash"),
        livefactor.local("clicks") as server,
        server.producer("p") as producer,
    ):
        producer.push_embeddings([1], [[1.0] * D], encoder_hash=b"short")


def test_an_adapter_of_another_encoder_is_no_adapter_of_this_one(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter"):
        read_adapter(tmp_path)
