"""A model that cannot be opened: the others are served, it is reported, and it can be restored."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from livefactor.auditor import Auditor
from livefactor.errors import AlreadyExists, FailedPrecondition, NotFound
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor.v1 import models_pb2
from livefactor_server.cli.app import app
from livefactor_server.hosting import identity
from livefactor_server.hosting.folders import Folders
from livefactor_server.hosting.host import Hosting
from livefactor_server.log.disk import FileIO
from livefactor_server.log.store import Log
from livefactor_server.rpc.embedded import EmbeddedServer
from livefactor_server.statuses import TEXT_CHARACTERS_MAX
from server_process import wait_until

SEGMENT_BYTES = 128 << 10
BATCH = 4000
BATCHES = 4
SNAPSHOT_AFTER = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the models other and shop. Both have a snapshot and several segments."""
    data = tmp_path_factory.mktemp("whole") / "data"
    verbs = [verb.__func__ for verb in (Log.create, Log.open)]  # type: ignore[attr-defined]
    sizes = [verb.__kwdefaults__["segment_bytes"] for verb in verbs]
    for verb in verbs:
        verb.__kwdefaults__["segment_bytes"] = SEGMENT_BYTES
    server = EmbeddedServer("", data)
    with Models(server.target) as models:
        for name in ("other", "shop"):
            models.create(name, "clicks_sgd", k=4)
            push(server, name, BATCHES)
    server.stop()
    for verb, size in zip(verbs, sizes, strict=True):
        verb.__kwdefaults__["segment_bytes"] = size
    return data


def push(server: EmbeddedServer, model: str, batches: int) -> None:
    ids = np.arange(BATCH) % 50
    with (
        Producer(server.target, "till", model=model) as producer,
        Auditor(server.target, model=model) as auditor,
    ):
        for number in range(batches):
            producer.push(ids, ids, np.ones(BATCH)).result(60)
            if number + 1 == SNAPSHOT_AFTER:
                auditor.snapshot()


def segments(model: Path) -> list[Path]:
    return sorted((model / "log").glob("*.log"))


def flip_a_bit(model: Path) -> None:
    path = segment_after_the_snapshot(model)
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(data)


def lose_a_segment(model: Path) -> None:
    segment_after_the_snapshot(model).unlink()


def segment_after_the_snapshot(model: Path) -> Path:
    """A segment that a start reads. Its damage is found at once, if the newer snapshot is lost."""
    snapshots = sorted((model / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    shutil.rmtree(snapshots[-1])
    assert len(segments(model)) > 3
    return segments(model)[-2]


def lose_the_end(model: Path) -> None:
    for path in segments(model)[1:]:
        path.unlink()


def empty(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def spoil_the_spec(model: Path) -> None:
    with Log.open(model / "log", read_only=True) as log:
        lineage = log.lineage
    shutil.rmtree(model / "log")
    # With them the log would be too short.
    shutil.rmtree(model / "snapshots")
    Log.create(model / "log", b"\xff no spec", 0, lineage).close()


def copy_the_log_of_another(model: Path) -> None:
    shutil.rmtree(model / "log")
    shutil.copytree(model.with_name("other") / "log", model / "log")


def copy_the_log_of_another_into_a_folder_of_an_earlier_version(model: Path) -> None:
    copy_the_log_of_another(model)
    (model / identity.FILE).unlink()


def copy_the_folder_of_another(model: Path) -> None:
    shutil.rmtree(model)
    shutil.copytree(model.with_name("other"), model)


def be_a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_text("no model")


# Each damage, what the reason says, and whether the model's own snapshots are left.
DAMAGES = (
    (flip_a_bit, "the log is damaged: models/shop/log/", True),
    (lose_a_segment, "the log is damaged: models/shop/log/", True),
    (lose_the_end, "synced records are missing", True),
    (empty, "no log in models/shop/log", False),
    (spoil_the_spec, "spec: the bytes are not a ModelSpec message", False),
    (copy_the_log_of_another, "its log belongs to model 'other'", True),
    (copy_the_log_of_another_into_a_folder_of_an_earlier_version, "it is the log of another model", True),
    (copy_the_folder_of_another, "its folder is a copy of model 'other'", False),
    (be_a_file, "Not a directory: models/shop/", False),
)
each_damage = pytest.mark.parametrize(
    ("damage", "reason", "snapshots_left"), DAMAGES, ids=lambda value: getattr(value, "__name__", None)
)

Start = Callable[[], EmbeddedServer]


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A copy of the data folder, for one test."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    """A function that starts a server on the folder and stops the one before."""
    servers: list[EmbeddedServer] = []

    def stop() -> None:
        while servers:
            servers.pop().stop()

    def made() -> EmbeddedServer:
        stop()
        servers.append(EmbeddedServer("", data))
        return servers[-1]

    yield made
    stop()


def health(server: EmbeddedServer, service: str) -> str:
    with grpc.insecure_channel(server.target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        except grpc.RpcError as error:
            return str(error.code())
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def fault_metric(model: str) -> float | None:
    return REGISTRY.get_sample_value("livefactor_fault", {"model": model})


@each_damage
def test_the_others_are_served_and_the_damaged_model_is_restored(
    data: Path, start: Start, damage: Callable[[Path], None], reason: str, snapshots_left: bool
) -> None:
    damage(data / "models" / "shop")
    server = start()
    check_reported(server, reason)
    # The others learn and answer.
    push(server, "other", 1)
    with Scorer(server.target, model="other") as scorer:
        assert len(scorer.recommend(1, 5)[0].item_ids) == 5

    run = CliRunner()
    source = "shop" if snapshots_left else "other"
    restored = run.invoke(app, ["models", "restore", "shop", source, "--target", server.target])
    assert restored.exit_code == 0, restored.output
    push(server, "shop", 1)
    wait_until(lambda: health(server, "models/shop") == "SERVING", "the health of the restored model")
    assert fault_metric("shop") is None
    assert (data / "models" / "shop.set-aside-1").exists()

    again = start()
    with Models(again.target) as models:
        assert [(model.name, model.fault) for model in models.list()] == [("other", ""), ("shop", "")]
        if snapshots_left:
            # The newest snapshot has the revision of the drain, where the log has it.
            assert models.describe("shop").events >= (SNAPSHOT_AFTER + 1) * BATCH


def check_reported(server: EmbeddedServer, reason: str) -> None:
    with Models(server.target) as models:
        found = {model.name: model for model in models.list()}
        assert reason in found["shop"].fault and not found["other"].fault
        assert not re.search(r"(?<![\w.])/", found["shop"].fault), "no path of the machine"
        assert models.describe("shop").fault == found["shop"].fault
        assert "not served" in repr(found["shop"])
        with pytest.raises(AlreadyExists):
            models.create("shop")
    with pytest.raises(FailedPrecondition, match="'shop' is not served"):
        Producer(server.target, "till", model="shop")
    parts = {"": "SERVING", "models/other": "SERVING", "models/shop": "NOT_SERVING"}
    wait_until(lambda: {part: health(server, part) for part in parts} == parts, "the health of all parts")
    assert fault_metric("shop") == 1.0 and fault_metric("other") is None
    listed = CliRunner().invoke(app, ["models", "list", "--target", server.target])
    assert "shop IS NOT SERVED" in listed.output and "livefactor models restore shop shop" in listed.output
    assert listed.exit_code == 0 and "other" in listed.output
    described = CliRunner().invoke(app, ["models", "describe", "shop", "--target", server.target])
    assert "shop IS NOT SERVED" in described.output


def test_a_server_whose_only_model_is_damaged_is_not_healthy_and_restores_it(
    data: Path, start: Start
) -> None:
    shutil.rmtree(data / "models" / "other")
    flip_a_bit(data / "models" / "shop")
    server = start()
    wait_until(lambda: health(server, "") == "NOT_SERVING", "the health of the server")
    assert health(server, "livefactor.v1.ModelService") == "SERVING"
    with Models(server.target) as models:
        models.restore("shop", "shop")
    wait_until(lambda: health(server, "") == "SERVING", "the health of the server")


def test_a_folder_without_permission_is_a_fault(
    data: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Permissions do not bind root, so the disk refuses.
    real = FileIO.names

    def names(self: FileIO, folder: Path) -> list[str]:
        if "shop" in folder.parts:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(self, folder)

    monkeypatch.setattr(FileIO, "names", names)
    server = start()
    check_reported(server, "Permission denied: models/shop/log")


def test_the_files_of_a_restored_model_are_set_aside_as_they_were(data: Path, start: Start) -> None:
    shop = data / "models" / "shop"
    flip_a_bit(shop)
    before = {path.relative_to(shop): path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    server = start()
    with Models(server.target) as models:
        models.restore("shop", "shop")
        models.delete("shop")
        assert [model.name for model in models.list()] == ["other"]
    aside = data / "models" / "shop.set-aside-1"
    assert {
        path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()
    } == before


def test_deleting_a_damaged_model_sets_it_aside(data: Path, start: Start) -> None:
    flip_a_bit(data / "models" / "shop")
    server = start()
    with Models(server.target) as models, Auditor(server.target, model="shop") as auditor:
        assert len(auditor.list()) == 1
        models.delete("shop")
        assert [model.name for model in models.list()] == ["other"]
        with pytest.raises(NotFound):
            models.describe("shop")
        models.create("shop", "clicks_sgd", k=4)
    assert len(segments(data / "models" / "shop.set-aside-1")) > 1


def test_an_older_snapshot_can_be_named(data: Path, start: Start) -> None:
    flip_a_bit(data / "models" / "shop")
    server = start()
    with Models(server.target) as models, Auditor(server.target, model="shop") as auditor:
        oldest = auditor.list()[0]
        assert models.restore("shop", "shop", oldest.snapshot_id).events == SNAPSHOT_AFTER * BATCH
        with pytest.raises(AlreadyExists):
            models.restore("shop", "other")


@pytest.mark.parametrize("after", ["the new folder is whole", "the old folder is set aside"])
def test_a_crash_while_a_model_is_replaced_leaves_one_of_both(tmp_path: Path, after: str) -> None:
    models = tmp_path / "models"
    (models / ".instead-shop").mkdir(parents=True)
    (models / ".instead-shop" / "new").touch()
    (models / ".new-half").mkdir()
    (models / ".gone-half").mkdir()
    old = models / ("shop" if after.startswith("the new") else "shop.set-aside-1")
    old.mkdir()
    (old / "old").touch()
    folders = Folders(tmp_path)
    folders.clean()
    folders.clean()
    assert sorted(path.relative_to(models).as_posix() for path in models.rglob("*")) == [
        "shop",
        "shop.set-aside-1",
        "shop.set-aside-1/old",
        "shop/new",
    ]
    assert folders.names() == ["shop"]


def test_a_renamed_folder_is_served_under_its_new_name(data: Path, start: Start) -> None:
    (data / "models" / "shop").rename(data / "models" / "store")
    (data / "models" / "lost+found").mkdir()
    (data / "models" / ".hidden").touch()
    server = start()
    with Models(server.target) as models:
        assert [(model.name, model.fault) for model in models.list()] == [("other", ""), ("store", "")]
    assert '"model": "store"' in (data / "models" / "store" / identity.FILE).read_text()


def test_a_folder_of_an_earlier_version_gets_its_identity(data: Path, start: Start) -> None:
    shop = data / "models" / "shop"
    for name in ("other", "shop"):
        (data / "models" / name / identity.FILE).unlink()
    with Models(start().target) as models:
        assert [model.fault for model in models.list()] == ["", ""]
        lineage = models.describe("shop").position.lineage
    assert lineage.hex() in (shop / identity.FILE).read_text().replace("-", "")


def test_a_foreign_log_is_found_without_snapshots_too(data: Path, start: Start) -> None:
    copy_the_log_of_another(data / "models" / "shop")
    shutil.rmtree(data / "models" / "shop" / "snapshots")
    with Models(start().target) as models:
        assert "its log belongs to model 'other'" in models.describe("shop").fault


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("secret"), ValueError("secret")])
def test_any_error_at_the_opening_of_a_model_is_its_fault_alone(
    data: Path, start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = Hosting._open

    def broken(self: Hosting, name: str, progress: object) -> object:
        if name == "shop":
            raise error
        return real(self, name, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(Hosting, "_open", broken)
    with Models(start().target) as models:
        fault = models.describe("shop").fault
    assert "secret" not in fault and ("memory" in fault or "server's log" in fault)


def test_a_long_name_is_an_invalid_argument(start: Start) -> None:
    # The client would not send it.
    long = "x" * 10_000
    requests = {
        "DescribeModel": models_pb2.DescribeModelRequest(model=long),
        "DeleteModel": models_pb2.DeleteModelRequest(model=long),
        "CreateModel": models_pb2.CreateModelRequest(model=long),
        "RestoreSnapshot": models_pb2.RestoreSnapshotRequest(model="new", source_model=long),
        "ReleaseHold": models_pb2.ReleaseHoldRequest(model=long),
    }
    presets = models_pb2.CreateModelRequest(model="short", preset="é" * 10_000)
    with grpc.insecure_channel(start().target) as channel:
        for method, request in (*requests.items(), ("CreateModel", presets)):
            call = channel.unary_unary(f"/livefactor.v1.ModelService/{method}")
            with pytest.raises(grpc.RpcError) as caught:
                call(request.SerializeToString())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
            assert len(caught.value.details()) <= TEXT_CHARACTERS_MAX
            assert caught.value.details().startswith(("model: a name has", "spec: preset: expected"))
