"""The models of one server: create, open with recovery, restore, delete, drain.

<data>/lock                      locked by one server (flock)
<data>/models/<name>/log         segments of the model's log
<data>/models/<name>/snapshots   snapshots of the model
<data>/models/<name>/base        the snapshot with which a restored model began
<data>/models/<name>/hold.json   the hold of updates, if there is one
"""

from __future__ import annotations

import fcntl
import logging
import os
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
from livefactor.wire.limits import MODEL_NAME
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

logger = logging.getLogger(__name__)


MODELS_LISTED_MAX = 10
"""Maximum number of models in the error for an unknown name."""


class DataFolderBusy(Exception):
    """Another server uses the data folder."""


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """Settings of a server's models.

    Attributes:
        default_preset: preset of the model "default", which an empty data folder gets at start.
        default_spec: spec of that model, in place of the preset.
        engine: settings of each engine.
        keeper: settings of the snapshots.
    """

    default_preset: str = DEFAULT_PRESET
    default_spec: ModelSpec | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    keeper: KeeperSettings = field(default_factory=KeeperSettings)


@dataclass(slots=True)
class Hosted:
    """The parts of one model."""

    name: str
    folder: Path
    engine: Engine
    reader: Reader
    keeper: Keeper
    board: Board | None = None

    def stop(self, take_last: bool) -> None:
        """Drains the engine, then stops the keeper and the board.

        With `take_last` the keeper takes a last snapshot.
        """
        self.engine.drain()
        self.keeper.stop(take_last and self.engine.failure is None)
        if self.board is not None:
            self.board.stop()


Progress = Callable[[str, int, int], None]
"""(model, reached revision, last revision) during the replay of a log."""


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

        If there is none, it creates the model "default" from the default spec or preset, if one is
        set. Calls get UNAVAILABLE until this returns. `on_step` reports the kernels that are being
        compiled.
        """
        for path in (self._data / "models").glob(".*"):
            # A crash interrupted the creation or the deletion of this model.
            shutil.rmtree(path)
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
                "model %s: it keeps its spec, which differs from the one in the settings",
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
        """The model with this name. "" means "default".

        Raises:
            Refused: NOT_FOUND if it does not exist, UNAVAILABLE during the start.
        """
        self._check_open()
        hosted = self._models.get(name or DEFAULT_MODEL)
        if hosted is None:
            there_are = ", ".join(sorted(self._models)[:MODELS_LISTED_MAX]) or "no models"
            raise not_found(f"model: {name or DEFAULT_MODEL!r} does not exist; there are {there_are}")
        return hosted

    def all(self) -> list[Hosted]:
        """All models, in order of their names.

        Raises:
            Refused: UNAVAILABLE during the start.
        """
        self._check_open()
        return self._by_name()

    def _by_name(self) -> list[Hosted]:
        return [self._models[name] for name in sorted(self._models)]

    def create(self, name: str, spec: ModelSpec) -> Hosted:
        """Creates an empty model, which is durable when this returns.

        Raises:
            Refused: the name is invalid or in use, a limit is reached, or the server starts.
        """
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
        """Creates a model that begins with a snapshot of the model `source`.

        It verifies the snapshot first.

        Raises:
            Refused: the snapshot does not exist or does not verify, the name is invalid or in use,
                or a limit is reached.
        """
        origin = self.get(source).keeper.store
        try:
            loaded = origin.load(snapshot_id)
            manifest, path = origin.open(loaded.manifest.snapshot_id)
            spec = spec_codec.decode(manifest.spec)
        except SnapshotNotFound:
            raise not_found("snapshot: it does not exist") from None
        except (SpecError, SnapshotInvalid) as error:
            logger.warning("model %s: the verification of a snapshot failed: %s", source, error)
            raise precondition("snapshot: its verification failed; see the server's log") from None

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
        if not MODEL_NAME.fullmatch(name):
            raise invalid("model: a name has 1 to 64 of the characters a-z 0-9 _ - and begins with a letter")
        with self._lock:
            if name in self._models:
                raise exists(f"model: {name!r} exists already")
            if len(self._models) >= MODELS_MAX:
                raise exhausted(f"models: the server has reached its limit of {MODELS_MAX}")
            temporary = self._data / "models" / f".new-{name}"
            folder = self._data / "models" / name
            try:
                temporary.mkdir()
                fill(temporary)
                os.rename(temporary, folder)
                sync_folder(folder.parent)
            except OSError:
                logger.exception("model %s: the creation failed", name)
                shutil.rmtree(temporary, ignore_errors=True)
                raise exhausted("disk: the model's files could not be written") from None
            try:
                self._models[name] = self._open(name, folder, None)
            except MemoryError:
                # The next start would have too little memory for this model, too.
                _remove(folder)
                raise no_memory("this model") from None
            return self._models[name]

    def delete(self, name: str) -> None:
        """Deletes a model, its log and its snapshots.

        Raises:
            Refused: NOT_FOUND if it does not exist.
        """
        with self._lock:
            hosted = self.get(name)
            del self._models[hosted.name]
            hosted.stop(take_last=False)
            _remove(hosted.folder)

    def drain(self) -> None:
        """Finishes accepted batches, takes last snapshots and closes all models. Idempotent."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
            for hosted in self._by_name():
                hosted.stop(take_last=True)
            self._lock_file.close()


def _remove(folder: Path) -> None:
    """Deletes a model's folder. After a crash the folder is complete or gone."""
    gone = folder.with_name(f".gone-{folder.name}")
    os.rename(folder, gone)
    sync_folder(gone.parent)
    shutil.rmtree(gone)


def _hold(path: Path) -> TextIO:
    # The file stays open until the server ends.
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise DataFolderBusy(f"{path.parent} is in use by another livefactor server") from None
    return file
