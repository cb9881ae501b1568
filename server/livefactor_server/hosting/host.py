"""The models of one server: created, opened with recovery, restored, deleted, drained. Holds the data folder's lock.

<data>/lock                      held by one server (flock)
<data>/models/<name>/log         segments of the model's log
<data>/models/<name>/snapshots   its snapshots
<data>/models/<name>/base        the snapshot that a restored model began with
<data>/models/<name>/hold.json   a hold of updates, while there is one
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from livefactor.errors import SnapshotInvalid
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.spec.presets import DEFAULT_PRESET, preset
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.engine.readers import Reader
from livefactor_server.hosting import kernels
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.judging.board import Board
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.snapshots.store import SnapshotNotFound
from livefactor_server.statuses import (
    exhausted,
    exists,
    invalid,
    no_memory,
    not_found,
    precondition,
    unavailable,
)

DEFAULT_MODEL = "default"
MODELS_MAX = 64
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")

logger = logging.getLogger(__name__)


MODELS_LISTED_MAX = 10
"""Models that the error for an unknown name lists."""


class DataFolderBusy(Exception):
    """Another server holds the data folder."""


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """What a server does with its models. `default_preset`, or `default_spec` in its place: of the model "default", made at
    start if the folder is empty."""

    default_preset: str = DEFAULT_PRESET
    default_spec: ModelSpec | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    keeper: KeeperSettings = field(default_factory=KeeperSettings)


@dataclass(slots=True)
class Hosted:
    """One model's parts."""

    name: str
    folder: Path
    engine: Engine
    reader: Reader
    keeper: Keeper
    board: Board | None = None

    def stop(self, take_last: bool) -> None:
        """End the engine, then what watches it; with `take_last` behind a last snapshot."""
        self.engine.drain()
        self.keeper.stop(take_last and self.engine.failure is None)
        if self.board is not None:
            self.board.stop()


Progress = Callable[[str, int, int], None]
"""(model, revision reached, last revision) while a log is replayed."""


class Hosting:
    """All models of a data folder. Thread-safe."""

    def __init__(self, data: Path, settings: HostingSettings) -> None:
        self._data = data
        self._settings = settings
        self._models: dict[str, Hosted] = {}
        self._lock = threading.Lock()
        self._open_for_calls = False
        self._draining = False
        (data / "models").mkdir(parents=True, exist_ok=True)
        self._lock_file = _hold(data / "lock")

    def open_all(self, progress: Progress | None = None, on_step: kernels.StepReport | None = None) -> None:
        """Opens every model in the folder.

        If there is none, makes "default" from the default spec or preset. Calls are refused with
        UNAVAILABLE until this returns. `on_step` is told which kernels are being compiled.
        """
        for path in (self._data / "models").glob(".*"):
            shutil.rmtree(path)  # a create or delete that a crash cut short
        there = list(replay.models_in(self._data))
        spec, name = self._settings.default_spec, self._settings.default_preset
        steps = [
            *kernels.shared(),
            *(
                kernels.Step(f"model {each}", partial(self._keep, each, folder, progress))
                for each, folder in there
            ),
        ]
        if not there and (spec or name):
            made = spec or preset(name)
            steps.append(kernels.Step(f"model {DEFAULT_MODEL}", partial(self._create, DEFAULT_MODEL, made)))
        for number, step in enumerate(steps, 1):
            if on_step is not None:
                on_step(step.name, number, len(steps))
            step.run()
        if on_step is not None:
            on_step("", len(steps), len(steps))
        default = self._models.get(DEFAULT_MODEL)
        if default and spec and default.engine.state.spec != spec:
            logger.warning(
                "model %s: it keeps the spec that it was made with; the spec of this start is another one",
                DEFAULT_MODEL,
            )
        self._open_for_calls = True

    def _keep(self, name: str, folder: Path, progress: Progress | None) -> None:
        self._models[name] = self._open(name, folder, progress)

    def _check_open(self) -> None:
        if not self._open_for_calls:
            raise unavailable("server: starting, models are being opened")

    def _open(self, name: str, folder: Path, progress: Progress | None) -> Hosted:
        log = Log.open(replay.log_folder(folder))
        store = replay.snapshot_store(folder)
        store.clean()
        report = (lambda at, last: progress(name, at, last)) if progress else None
        try:
            state = replay.recover(folder, log, self._settings.engine.backend, report)
        except MemoryError:
            log.close()
            raise
        engine = Engine(name, state, log, self._settings.engine, folder / "hold.json")
        engine.start()
        keeper = Keeper(engine, store, self._settings.keeper)
        keeper.start()
        board = self._board(engine)
        logger.info(
            "model %s is open at revision %d with %d users and %d items",
            name,
            state.revision,
            *state.backend.published,
        )
        return Hosted(name, folder, engine, Reader(engine), keeper, board)

    def _board(self, engine: Engine) -> Board | None:
        folder = self._settings.engine.observer.tensorboard
        if folder is None:
            return None
        board = Board(folder / engine.name, engine.observer)
        board.start()
        return board

    def get(self, name: str) -> Hosted:
        """The model; "" means "default". Raises Refused: NOT_FOUND, or UNAVAILABLE during the start."""
        self._check_open()
        hosted = self._models.get(name or DEFAULT_MODEL)
        if hosted is None:
            there_are = ", ".join(sorted(self._models)[:MODELS_LISTED_MAX]) or "no models"
            raise not_found(f"model: there is no {name or DEFAULT_MODEL!r}; there are {there_are}")
        return hosted

    def all(self) -> list[Hosted]:
        """Every model, by name. Raises Refused (UNAVAILABLE) during the start."""
        self._check_open()
        return self._by_name()

    def _by_name(self) -> list[Hosted]:
        return [self._models[name] for name in sorted(self._models)]

    def create(self, name: str, spec: ModelSpec) -> Hosted:
        """A new empty model, which is durable when this returns. Raises Refused."""
        self._check_open()
        return self._create(name, spec)

    def _create(self, name: str, spec: ModelSpec) -> Hosted:
        spec_body = spec_codec.encode(spec)

        def fill(folder: Path) -> None:
            Log.create(
                replay.log_folder(folder), spec_body, 0, uuid.uuid4(), time_us=time.time_ns() // 1000
            ).close()

        return self._add(name, fill)

    def restore(self, name: str, source: str, snapshot_id: str) -> Hosted:
        """A new model that begins with a snapshot of `source`, verified first."""
        origin = self.get(source).keeper.store
        try:
            loaded = origin.load(snapshot_id)
            manifest, path = origin.open(loaded.manifest.snapshot_id)
            spec = spec_codec.decode(manifest.spec)
        except SnapshotNotFound:
            raise not_found("snapshot: there is none such") from None
        except (SpecError, SnapshotInvalid) as error:
            logger.warning("model %s: a snapshot does not verify: %s", source, error)
            raise precondition("snapshot: it does not verify; the server's log says where") from None

        def fill(folder: Path) -> None:
            replay.adopt(path, folder)
            log = Log.create(
                replay.log_folder(folder),
                manifest.spec,
                manifest.revision,
                uuid.uuid4(),
                time_us=time.time_ns() // 1000,
            )
            log.append(
                [replay.engine_entry(log, manifest, spec.kernel_semantics, self._settings.engine.backend)]
            )
            log.close()

        return self._add(name, fill)

    def _add(self, name: str, fill: Callable[[Path], None]) -> Hosted:
        if not _NAME.fullmatch(name):
            raise invalid("model: a name is 1-64 of a-z 0-9 _ -, starting with a letter")
        with self._lock:
            if name in self._models:
                raise exists(f"model: {name!r} is there already")
            if len(self._models) >= MODELS_MAX:
                raise exhausted(f"models: the server's limit of {MODELS_MAX} is reached")
            temporary = self._data / "models" / f".new-{name}"
            folder = self._data / "models" / name
            try:
                temporary.mkdir()
                fill(temporary)
                os.rename(temporary, folder)
                sync_folder(folder.parent)
            except OSError:
                logger.exception("model %s: could not be created", name)
                shutil.rmtree(temporary, ignore_errors=True)
                raise exhausted("disk: the model's files could not be written") from None
            try:
                self._models[name] = self._open(name, folder, None)
            except MemoryError:
                _remove(folder)  # nobody was told of it, and the next start would find no room for it either
                raise no_memory("this model") from None
            return self._models[name]

    def delete(self, name: str) -> None:
        """Delete a model, its log and its snapshots."""
        with self._lock:
            hosted = self.get(name)
            del self._models[hosted.name]
            hosted.stop(take_last=False)
            _remove(hosted.folder)

    def drain(self) -> None:
        """Finish what was accepted, snapshot, close. Idempotent."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
            for hosted in self._by_name():
                hosted.stop(take_last=True)
            self._lock_file.close()


def _remove(folder: Path) -> None:
    """Delete a model's folder: gone as a whole or not at all."""
    gone = folder.with_name(f".gone-{folder.name}")
    os.rename(folder, gone)
    sync_folder(gone.parent)
    shutil.rmtree(gone)


def _hold(path: Path) -> TextIO:
    file = open(path, "a")  # noqa: SIM115 - held until the server ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise DataFolderBusy(f"{path.parent} is in use by another livefactor server") from None
    return file
