"""`livefactor doctor` finds what keeps a server from running, and what makes it worse."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import click.testing
import pytest
import typer

from livefactor_server.cli.app import app
from livefactor_server.cli.operations import disk_checks, host_checks
from livefactor_server.cli.operations.findings import State


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_checks, "TRIAL_BYTES", 1 << 20)
    monkeypatch.setattr(disk_checks, "SYNCS", 4)


def doctor(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(typer.main.get_command(app), ["doctor", *arguments], env={})


def found_by(result: click.testing.Result) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for finding in json.loads(result.stdout):
        found.setdefault(finding["check"], []).append(finding)
    return found


def test_it_reports_every_check_with_figures(tmp_path: Path) -> None:
    result = doctor("--data", str(tmp_path), "--port", "0", "--metrics-port", "0", "--json")
    assert result.exit_code == 0, result.output
    found = found_by(result)
    assert set(found) == {
        "versions", "cores", "memory", "huge pages", "clock", "kernels", "open files", "port",
        "data folder", "file system", "disk space", "O_DIRECT", "disk speed", "sync",
    }  # fmt: skip
    assert found["sync"][0]["figures"]["p99_ms"] >= found["sync"][0]["figures"]["p50_ms"] > 0
    assert found["disk speed"][0]["figures"]["write_mib_s"] > 0
    assert found["versions"][0]["figures"]["livefactor"]
    # Whatever is no fault has no remedy, and the disk is as it was.
    assert all(bool(each["remedy"]) == (each["state"] != "ok") for group in found.values() for each in group)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_a_fault(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = doctor("--data", str(tmp_path), "--port", str(port), "--metrics-port", "-1")
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} cannot be bound" in result.stdout
    assert "--port" in result.stdout


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = disk_checks.check_folder(tmp_path / "file" / "data")
    assert finding.state is State.FAULT
    assert "--data" in finding.remedy


def test_a_folder_that_a_server_uses_is_a_fault(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = doctor("--data", str(tmp_path), "--port", "0", "--metrics-port", "-1", "--json")
    assert result.exit_code == 1
    assert "a server runs on" in found_by(result)["data folder"][0]["text"]


def test_a_file_system_that_refuses_direct_writes_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refusing)
    found = {finding.check: finding for finding in disk_checks.check_folder(tmp_path)}
    assert found["O_DIRECT"].state is State.WARNING
    assert found["sync"].figures["p50_ms"] > 0


@pytest.mark.parametrize(
    ("kind", "state"), [("tmpfs", "warning"), ("overlay", "warning"), ("nfs4", "warning"), ("xfs", "ok")]
)
def test_file_systems(tmp_path: Path, kind: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_checks, "file_system", lambda _: kind)
    found = {finding.check: finding for finding in disk_checks.check_folder(tmp_path)}
    assert found["file system"].state == state


def test_the_innermost_mount_names_the_file_system() -> None:
    assert disk_checks.file_system(Path("/proc/self")) == "proc"


SOUND = {
    "/proc/sys/vm/overcommit_memory": "0",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "/proc/self/cgroup": "0::/box",
    "/sys/fs/cgroup/box/cpu.max": "max 100000",
    "/sys/fs/cgroup/box/memory.max": "max",
}


@pytest.mark.parametrize(
    ("path", "text", "check", "state"),
    [
        ("/proc/sys/vm/overcommit_memory", "2", lambda: host_checks.check_memory(1 << 20), "warning"),
        ("/sys/fs/cgroup/box/memory.max", "2000000", lambda: host_checks.check_memory(1 << 20), "fault"),
        ("/sys/fs/cgroup/box/cpu.max", "50000 100000", host_checks.check_cores, "warning"),
        (
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "always madvise [never]",
            host_checks.check_huge_pages,
            "warning",
        ),
        (
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            host_checks.check_clock,
            "warning",
        ),
    ],
)
def test_a_machine_with_one_fault(
    path: str, text: str, check: Any, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(SOUND)
    monkeypatch.setattr(host_checks, "_read", lambda name: files.get(name, ""))
    monkeypatch.setattr(host_checks, "_is_unsynchronized", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert check().state is State.OK
    files[path] = text
    finding = check()
    assert finding.state == state
    assert finding.remedy


def test_a_clock_before_this_release_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks.time, "time", lambda: 1e9)
    assert host_checks.check_clock().state is State.FAULT


def test_a_model_larger_than_the_memory_is_a_warning() -> None:
    finding = host_checks.check_memory(1 << 60)
    assert finding.state is State.WARNING
    assert "--memory-bytes-max" in finding.remedy
