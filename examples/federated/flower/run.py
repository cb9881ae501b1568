"""Starts everything on this machine: the common model, Flower's SuperLink, and a SuperNode a shop.

    python run.py [--shops N] [--rounds N] [--purchases N] [--folder PATH]

In the field each part has its own machine, and TLS instead of --insecure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import livefactor

HERE, BIN = Path(__file__).parent, Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Machine:
    """The processes of Flower on this machine, with a home and an output of their own."""

    def __init__(self, stack: ExitStack, scratch: Path, folder: Path, link: int) -> None:
        self._stack, self._folder = stack, folder
        home = scratch / "flwr"
        home.mkdir()
        connection = f'[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n{connection}')
        self._env = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            # Flower starts its apps by name.
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        output = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, env=self._env, stdout=output, stderr=output, start_new_session=True
        )
        self._stack.callback(stop, process)
        return process


def main() -> None:
    parser = argparse.ArgumentParser(description="Shops learn one model with Flower.")
    parser.add_argument("--shops", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--purchases", type=int, default=6000)
    parser.add_argument("--folder", type=Path, help="keeps the rounds and their proofs, and Flower's output")
    chosen = parser.parse_args()
    # Whoever ends this process ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = (chosen.folder or scratch / "rounds").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        common = stack.enter_context(livefactor.local("clicks_sgd", data=scratch / "common"))
        link = free_port()
        run(Machine(stack, scratch, folder, link), link, common.target, scratch, folder, chosen)
        with common.models() as models:
            described = models.describe("common", with_root_hash=True)
        for line in (folder / "rounds.jsonl").read_text().splitlines():
            done = json.loads(line)
            print(
                f"round {done['number']}: {done['merged']} shops, {done['events']:.0f} purchases, "
                f"record {done['revision']}, proven: {'yes' if done['is_proven'] else 'no'}"
            )
        is_last = described.root_hash.hex() == done["root_after"]
        print(f"the common model has {described.items} items and {described.users} customers")
        print(f"its root hash is that of the last round: {'yes' if is_last else 'no'}")


def run(
    machine: Machine, link: int, common: str, scratch: Path, folder: Path, chosen: argparse.Namespace
) -> None:
    """Starts the SuperLink and the shops, and waits for the rounds."""
    machine.start(
        "superlink",
        *("flower-superlink", "--insecure", "--port", str(link), "--disable-runtime-dependency-installation"),
    )
    wait_for(link)
    for place in range(chosen.shops):
        machine.start(
            f"shop-{place}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"),
            *("--port", str(free_port())),
            *("--node-config", f'partition-id={place} home="{scratch / f"home-{place}"}"'),
        )
    # Flower packs the folder of the app, so it must hold the app alone.
    (scratch / "app").mkdir()
    for name in ("pyproject.toml", "shops.py"):
        shutil.copy(HERE / name, scratch / "app" / name)
    config = (
        f'common="{common}" folder="{folder}" rounds={chosen.rounds} shops={chosen.shops} '
        f"purchases={chosen.purchases}"
    )
    command = ["flwr", "run", str(scratch / "app"), "here", "--run-config", config, "--stream"]
    wait_for_rounds(folder / "rounds.jsonl", chosen.rounds, machine.start("run", *command))


def wait_for(port: int, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after {seconds:g} s")


def wait_for_rounds(
    path: Path, rounds: int, process: subprocess.Popen[bytes], seconds: float = 600.0
) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < rounds:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the rounds failed: {path.parent} has the output of Flower (--folder)")
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            # Its children are in its group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()
