"""`livefactor demo`: streams a year of a real shop's purchases through a server.

On the way it checks the promises of the server. Each check measures this run. The exit code is 0
only if all promises held.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from livefactor.auditor import Auditor, SnapshotInfo
from livefactor.models import Models
from livefactor.position import Position
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor_server.cli.demo.arrivals import find_customers
from livefactor_server.cli.demo.shop import Shop, load_shop
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.text import plain

BATCH_EVENTS = 512
LIST_LENGTH = 10
HALF_LIFE_EVENTS = 20_000
"""Half-life of a purchase in the decayed most-popular baseline, in events."""

SNAPSHOT_AT = 0.5
KILL_AT = 0.8
"""The snapshot is taken, and the server is killed, after these shares of the stream."""

BURST_ITEMS = 8
BURST_ROUNDS = 4
CUSTOMER_EVENTS = 20
"""The customer whose list is shown has about this many purchases."""

START_TIMEOUT_S = 900.0
"""A busy machine compiles the kernels for minutes."""


class ServerProcess:
    """A process that runs `livefactor serve`.

    It can be killed and started again on the same folder and port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """The address that the server listens on."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> float:
        """Starts the server and waits until it is ready. Returns the seconds that this took.

        Raises RuntimeError if the server ends or is not ready within START_TIMEOUT_S.
        """
        started = time.monotonic()
        port_file = self.folder / "ports"
        port_file.unlink(missing_ok=True)
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "livefactor", "serve", "--data", str(self.folder / "data"), "--port", str(self.port),
                 "--metrics-port", "-1", "--auto-cpu-share", "0", "--port-file", str(port_file)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        while not port_file.exists():
            if self._process.poll() is not None or time.monotonic() - started > START_TIMEOUT_S:
                raise RuntimeError(
                    "the server did not start:\n" + (self.folder / "server.log").read_text()[-4000:]
                )
            time.sleep(0.02)
        self.port = int(port_file.read_text().split()[0])
        return time.monotonic() - started

    def kill(self) -> None:
        """Kills the server with SIGKILL, so that it cannot drain."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Stops the server with SIGTERM. Returns its exit code after the drain."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def end(self) -> None:
        """Kills the server if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Popularity:
    """The most popular items. A purchase has the weight 2^(-age / half-life), both in events."""

    def __init__(self, half_life_events: int) -> None:
        self._weights: dict[int, float] = {}
        self._growth = 2.0 ** (1.0 / half_life_events)
        self._now = 1.0

    def top(self, k: int) -> set[int]:
        """The keys of the k items with the largest weights."""
        return set(sorted(self._weights, key=self._weights.__getitem__, reverse=True)[:k])

    def add(self, items: np.ndarray) -> None:
        """Counts purchases. Newer ones count more, so that older weights need no change."""
        for item in items.tolist():
            self._weights[item] = self._weights.get(item, 0.0) + self._now
            self._now *= self._growth
        if self._now > 1e100:
            self._weights = {item: weight / self._now for item, weight in self._weights.items()}
            self._now = 1.0


@dataclass(slots=True)
class Tally:
    """What the stream measured.

    A hit is an event whose item is among ten recommended items. The list is requested before the
    batch of the event is pushed.
    """

    events: int = 0
    hits: int = 0
    popular_hits: int = 0
    push_seconds: float = 0.0
    position: Position | None = None
    accepted: int = 0
    waits: int = 0

    @property
    def recall(self) -> float:
        """The progressive recall@10 of the model."""
        return self.hits / max(1, self.events)

    @property
    def popular_recall(self) -> float:
        """The progressive recall@10 of decayed most-popular."""
        return self.popular_hits / max(1, self.events)


class ListChange(NamedTuple):
    """A customer's list before and after a few purchases, best first, as labels of the items."""

    customer: int
    bought: list[str]
    before: list[str]
    after: list[str]


@dataclass(slots=True)
class Demo:
    """One run. `checks` has (promise, whether it held, what was measured)."""

    console: Console
    shop: Shop
    server: ServerProcess
    tally: Tally = field(default_factory=Tally)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    snapshot: list[SnapshotInfo | Exception] = field(default_factory=list)
    show_change: Callable[[ListChange], None] | None = None

    def check(self, promise: str, held: bool, measured: str) -> None:
        """Notes a promise and prints whether it held."""
        self.checks.append((promise, held, measured))
        outcome = Text("held", "green") if held else Text("BROKEN", "bold red")
        self.console.print(outcome, f" {promise}: {measured}")

    def count_wait(self) -> None:
        """Counts one wait of the producer for a server that does not answer."""
        self.tally.waits += 1

    # ----------------------------------------------------------------------------- parts of the run

    def stream(self, producer: Producer, events: int) -> None:
        """Pushes the first `events` purchases in batches. Each batch is scored before it is pushed.

        A snapshot is taken, and the server is killed and started again, on the way.
        """
        popularity = Popularity(HALF_LIFE_EVENTS)
        columns = (
            BarColumn(12), TaskProgressColumn(),
            TextColumn("{task.fields[rate]} ev/s, rev {task.fields[revision]},"),
            TextColumn("recall@10 {task.fields[recall]}, popular {task.fields[popular]}"),
            TimeElapsedColumn(),
        )  # fmt: skip
        snapshot_thread: threading.Thread | None = None
        killed = False
        with (
            Scorer(self.server.target, timeout=60) as scorer,
            Progress(*columns, console=self.console) as bar,
        ):
            task = bar.add_task("", total=events, rate="", revision=0, recall="", popular="")
            started = time.monotonic()
            for start in range(0, events, BATCH_EVENTS):
                batch = slice(start, min(events, start + BATCH_EVENTS))
                self._score(scorer, popularity, batch)
                before = time.monotonic()
                receipt = producer.push(
                    self.shop.users[batch],
                    self.shop.items[batch],
                    times=self.shop.times_us[batch].view("datetime64[us]"),
                )
                if not killed and start >= KILL_AT * events:
                    killed = True
                    if snapshot_thread is not None:
                        # On a slow machine the kill would end the snapshot, too.
                        snapshot_thread.join()
                    self._kill_and_restart()
                ack = receipt.result(120)
                self.tally.push_seconds += time.monotonic() - before
                self.tally.position, self.tally.accepted = ack.position, self.tally.accepted + ack.accepted
                if snapshot_thread is None and start >= SNAPSHOT_AT * events:
                    snapshot_thread = threading.Thread(target=self._take_snapshot)
                    snapshot_thread.start()
                bar.update(
                    task,
                    completed=batch.stop,
                    rate=f"{batch.stop / (time.monotonic() - started):,.0f}",
                    revision=ack.position.revision,
                    recall=f"{self.tally.recall:.4f}",
                    popular=f"{self.tally.popular_recall:.4f}",
                )
        if snapshot_thread is not None:
            snapshot_thread.join()

    def _score(self, scorer: Scorer, popularity: Popularity, batch: slice) -> None:
        users, places = np.unique(self.shop.users[batch], return_inverse=True)
        items = self.shop.items[batch]
        answers = scorer.recommend(users, LIST_LENGTH, min_position=self.tally.position)
        lists = [set(answer.item_ids.tolist()) for answer in answers]
        popular = popularity.top(LIST_LENGTH)
        self.tally.hits += sum(
            item in lists[place] for item, place in zip(items.tolist(), places.tolist(), strict=True)
        )
        self.tally.popular_hits += sum(item in popular for item in items.tolist())
        self.tally.events += len(items)
        popularity.add(items)

    def _take_snapshot(self) -> None:
        try:
            with Auditor(self.server.target) as auditor:
                self.snapshot.append(auditor.snapshot())
        except Exception as error:
            self.snapshot.append(error)

    def _kill_and_restart(self) -> None:
        self.console.print(
            f"killing the server with SIGKILL after {self.tally.accepted:,} acknowledged events; "
            "one batch is not acknowledged yet"
        )
        self.server.kill()
        self.console.print(
            f"the server is started again on the same folder; it is ready after {self.server.start():.1f} s"
        )

    def burst(self, producer: Producer) -> int:
        """Prints a customer's list before and after a few purchases. Returns the events pushed."""
        # The customer has a short history. The items belong together, and the customer never bought
        # one of them.
        users, counts = np.unique(self.shop.users[: self.tally.accepted], return_counts=True)
        customer = int(users[np.argmin(np.abs(counts - CUSTOMER_EVENTS))])
        words = ("CHRISTMAS", "ADVENT", "SNOW")
        had = set(self.shop.items[self.shop.users == customer].tolist())
        bought, times = np.unique(self.shop.items, return_counts=True)
        seasonal = [
            int(item)
            for item in bought[np.argsort(-times)].tolist()
            if item not in had and any(word in self.shop.labels.get(int(item), "") for word in words)
        ]
        chosen = seasonal[:BURST_ITEMS]
        with Scorer(self.server.target, timeout=60) as scorer:
            before = scorer.recommend(customer, LIST_LENGTH, with_labels=True)[0]
            for _ in range(BURST_ROUNDS):
                ack = producer.push([customer] * len(chosen), chosen).result(60)
            after = scorer.recommend(customer, LIST_LENGTH, min_position=ack.position, with_labels=True)[0]
        grid = Table(
            "rank", f"customer {customer} before", f"after buying {len(chosen)} Christmas items", box=None
        )
        for rank, (left, right) in enumerate(zip(before.labels, after.labels, strict=True), 1):
            new = right not in before.labels
            grid.add_row(str(rank), left, Text(plain(right), "bold green") if new else right)
        self.console.print(grid)
        if self.show_change is not None:
            bought_labels = [self.shop.labels[item] for item in chosen]
            self.show_change(ListChange(customer, bought_labels, list(before.labels), list(after.labels)))
        changed = LIST_LENGTH - len(set(before.item_ids.tolist()) & set(after.item_ids.tolist()))
        self.check(
            "recommendations know the last purchases",
            changed > 0,
            f"{changed} of {LIST_LENGTH} items are new after the acknowledgement",
        )
        return BURST_ROUNDS * len(chosen)

    def prove(self, events: int, extra: int) -> None:
        """Checks that no acknowledged event was lost, and that a replay of the log gives the state.

        Args:
            events: events of the stream.
            extra: events that were pushed after it.
        """
        with Models(self.server.target) as models:
            live = models.describe(with_root_hash=True)
        self.check(
            "no acknowledged event was lost, and none was applied twice",
            live.events == self.tally.accepted + extra and self.tally.accepted == events,
            f"{self.tally.accepted + extra:,} acknowledged, {live.events:,} in the model",
        )
        self.server.kill()
        report = replay_model(self.server.folder / "data" / "models" / "default")
        self.check(
            "a replay of the log alone gives the same state",
            report.root_hash == live.root_hash and report.log_hash == live.log_hash,
            f"root hash {live.root_hash.hex()[:16]}... at revision {live.position.revision}, "
            f"replayed {report.root_hash.hex()[:16]}...",
        )
        seconds = self.server.start()
        with Models(self.server.target) as models:
            again = models.describe(with_root_hash=True)
        self.check(
            "a killed server starts again with the same state",
            again.root_hash == live.root_hash,
            f"root hash {again.root_hash.hex()[:16]}..., ready after {seconds:.1f} s",
        )
        taken = self.snapshot[0] if self.snapshot else RuntimeError("no snapshot was taken")
        equal = isinstance(taken, SnapshotInfo) and report.snapshots.get(taken.snapshot_id, False)
        self.check(
            "the snapshot that was taken during the stream equals the replayed state at its revision",
            equal,
            f"revision {taken.position.revision}, {taken.size_bytes:,} bytes"
            if isinstance(taken, SnapshotInfo)
            else str(taken),
        )
        code = self.server.stop()
        self.check("after SIGTERM the server drains and exits with code 0", code == 0, f"exit code {code}")


def run_demo(
    console: Console, events: int | None = None, show_change: Callable[[ListChange], None] | None = None
) -> int:
    """Runs the demo.

    Args:
        console: where progress and checks are printed.
        events: number of events to stream; None means the whole year.
        show_change: called with the customer's two lists.

    Returns:
        0 if every promise held, otherwise 1.

    Raises:
        RuntimeError: the server did not start.
    """
    console.print(
        "reading a year of a shop's purchases (UCI Online Retail, 397,924 purchases, CC BY 4.0, doi:10.24432/C5BW33)"
    )
    shop = load_shop()
    events = min(events or len(shop.users), len(shop.users))
    with tempfile.TemporaryDirectory(prefix="livefactor-demo-") as name:
        server = ServerProcess(Path(name))
        demo = Demo(console, shop, server, show_change=show_change)
        try:
            console.print(
                "starting a server; the first one on a machine compiles its kernels for a minute or more"
            )
            console.print(f"it is ready after {server.start():.1f} s; batches have {BATCH_EVENTS} events")
            settings = BatchSettings(events_max=BATCH_EVENTS, latency_ms_max=0.0)
            with Producer(
                server.target, "till", batch=settings, on_wait=lambda _: demo.count_wait()
            ) as producer:
                producer.push_labels("item", list(shop.labels), list(shop.labels.values())).result(60)
                started = time.monotonic()
                demo.stream(producer, events)
                seconds = time.monotonic() - started
                extra = demo.burst(producer)
            demo.check(
                "the model recommends better than decayed most-popular",
                demo.tally.recall > demo.tally.popular_recall,
                f"recall@10 {demo.tally.recall:.4f} against {demo.tally.popular_recall:.4f}, each batch of "
                f"{BATCH_EVENTS} is tested before it is learned",
            )
            if (found := find_customers(server.target, shop, events, console)) is not None:
                demo.check("items that nobody has bought reach their customers", found.held, found.measured)
            demo.prove(events, extra)
        finally:
            server.end()
    console.print(
        f"{events:,} events were scored and pushed in {seconds:.1f} s; pushing, until the events were durable and "
        f"visible, took {demo.tally.push_seconds:.1f} s of it; the producer waited {demo.tally.waits} times for "
        f"the killed server"
    )
    return 0 if all(held for _, held, _ in demo.checks) else 1
