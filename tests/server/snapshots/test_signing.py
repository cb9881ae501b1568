"""Signed checkpoints: what they prove about snapshots and logs, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click.testing
import numpy as np
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import livefactor
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.checkpoint import Checkpoint
from livefactor_server.cli.app import app
from livefactor_server.cli.serve.settings import ServerSettings
from livefactor_server.hosting.backup import back_up
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from livefactor_server.snapshots.signing import (
    SigningKeyError,
    check_log,
    check_signature,
    public_key_of,
    read_signing_key,
    signed,
)
from tally import Tally


def typed(*words: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(typer.main.get_command(app), [str(word) for word in words])


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public key, as openssl writes them."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@dataclass
class Place:
    """A server that signs, three fetched snapshots of its model, and its folder."""

    data: Path
    model: Path
    public: Path
    fetched: list[Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("signing")
    private, public = write_keys(folder, "key")
    settings = ServerSettings(preset="", signing_key_file=private, snapshot_chain=5, snapshots_kept=5)
    hosting = Hosting(folder / "data", settings.hosting())
    target = f"unix:{folder / 'rpc.sock'}"
    server = RpcServer(hosting, ServiceSettings(), target)
    hosting.open_all()
    server.start()
    fetched = []
    with livefactor.Models(target) as models:
        models.create("m", "clicks_sgd", k=8, limits={"users_max": 1000, "items_max": 1000})
    with livefactor.Producer(target, "p", model="m") as producer:
        for number in range(3):
            ids = np.arange(200, dtype=np.uint64)
            producer.push(ids % 90, (ids + number) % 40).result(30)
            producer.push([number], [number]).result(30)
            fetched.append(folder / f"s{number}")
            made = typed("snapshot", "--target", target, "-m", "m", "--out", fetched[-1])
            assert made.exit_code == 0 and "signed checkpoint in" in made.stdout, made.output
    with livefactor.Auditor(target, model="m") as auditor:
        listed = [info.checkpoint for info in auditor.list()]
    assert listed == [path.with_name(path.name + ".checkpoint.json").read_bytes() for path in fetched]
    yield Place(folder / "data", folder / "data" / "models" / "m", public, fetched)
    server.stop()
    hosting.drain()


def beside(snapshot: Path) -> Path:
    return snapshot.with_name(snapshot.name + ".checkpoint.json")


def test_a_fetched_snapshot_is_signed(place: Place, tmp_path: Path) -> None:
    made = typed("verify", place.fetched[0], "--public-key", place.public)
    assert made.exit_code == 0 and "signed with the given key" in made.stdout, made.output
    _, other = write_keys(tmp_path, "other")
    for key, checkpoint, fault in (
        (other, place.fetched[0], "signature is not one of the given key"),
        (place.public, place.fetched[1], "of another snapshot"),
    ):
        made = typed(
            "verify", place.fetched[0], "--public-key", key, "--checkpoint", beside(checkpoint), "--json"
        )
        assert made.exit_code == 1 and fault in json.loads(made.stdout)["reason"]
    assert typed("verify", place.fetched[0], "--checkpoint", beside(place.fetched[0])).exit_code == 2
    assert typed("verify", place.fetched[0], "--public-key", beside(place.fetched[0])).exit_code == 2


def test_any_two_checkpoints_are_of_one_history(place: Place, tmp_path: Path) -> None:
    back_up(place.data, tmp_path / "backup")
    model = tmp_path / "backup" / "models" / "m"
    pair = ["--checkpoint", beside(place.fetched[0]), "--checkpoint", beside(place.fetched[2])]
    made = typed("verify", model, "--public-key", place.public, *pair)
    assert made.exit_code == 0 and made.stdout.count("the log has its hash") == 2, made.output
    # The backup has the checkpoints, too.
    assert len(list((model / "snapshots").glob("*.signed"))) == 3
    key = public_key_of(place.public.read_bytes())
    good = Checkpoint.from_json(beside(place.fetched[1]).read_bytes())
    assert check_log(model, [good], key) == []
    forger = Ed25519PrivateKey.generate()
    for bad, fault in (
        (replace(good, log_hash=bytes(32)), "another chain hash"),
        (replace(good, revision=good.revision + 1), "another chain hash"),
        (replace(good, revision=10**6), "the log ends at"),
    ):
        with pytest.raises(SnapshotInvalid, match="signature"):
            check_log(model, [bad], key)
        with pytest.raises(SnapshotInvalid, match=fault):
            check_log(model, [signed(bad, forger)], forger.public_key())


@pytest.mark.torture
def test_every_changed_byte_of_a_checkpoint_is_found(place: Place, tally: Tally) -> None:
    data = beside(place.fetched[0]).read_bytes()
    key = public_key_of(place.public.read_bytes())
    check_signature(Checkpoint.from_json(data), key)
    for at in range(len(data)):
        for mask in (1, 32, 128):
            changed = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
            with pytest.raises(SnapshotInvalid):
                check_signature(Checkpoint.from_json(changed), key)
    tally.add("changed bytes of a checkpoint", 3 * len(data))
    for text in (b"", b"[]", b"{}", b"[" * 4000, data + b" ", data * 20):
        with pytest.raises(SnapshotInvalid, match="no checkpoint"):
            Checkpoint.from_json(text)


def test_a_snapshot_is_replayed_from_the_one_before_it(place: Place) -> None:
    first, *_, last = sorted(path for path in (place.model / "snapshots").iterdir() if path.is_dir())
    made = typed("verify", last, "--replay")
    assert made.exit_code == 0 and "equal to the replay" in made.stdout, made.output
    assert "from snapshot" in made.stdout
    made = typed("verify", first, "--replay", "--json")
    assert json.loads(made.stdout)["parent"] == "" and json.loads(made.stdout)["equal"], made.output


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    for path, fault in (
        (public, "Could not|Unable|PEM|deserialize|others can read"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(SigningKeyError, match=fault):
            read_signing_key(path)
    private.chmod(0o644)
    with pytest.raises(SigningKeyError, match="others can read it"):
        read_signing_key(private)
