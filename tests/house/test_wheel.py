"""The wheel contains data, types and licence, and needs only the promised dependencies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from repository import PACKAGES, ROOT, STUBS, modules, tool


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist of `source` into `folder`."""
    subprocess.run(
        [tool("hatchling"), "build", "-t", kind, "-d", folder], cwd=source, check=True, capture_output=True
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_module_and_the_data(wheel: zipfile.ZipFile) -> None:
    folders = {package: folder.parent for package, folder in PACKAGES.items()}
    expected = {path.relative_to(folders[name.split(".")[0]]).as_posix() for name, path in modules()}
    expected |= {f"livefactor/v1/{path.name}" for path in STUBS.glob("*.py*") if path.is_file()}
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    data = "livefactor_server/data/online_retail"
    expected |= {f"{data}/{name}" for name in ("events.csv.gz", "items.csv.gz", "README.md")}
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert [name for name in wheel.namelist() if name.endswith((".pyc", ".nbi", ".nbc"))] == []


def test_the_client_alone_needs_three_packages(wheel: zipfile.ZipFile) -> None:
    requires = metadata(wheel).get_all("Requires-Dist") or []
    base = {re.split(r"[^\w-]", line)[0] for line in requires if "extra ==" not in line}
    assert base == {"grpcio", "protobuf", "numpy"}


def test_the_wheel_contains_the_licence(wheel: zipfile.ZipFile) -> None:
    assert metadata(wheel)["License-Expression"] == "Apache-2.0 AND CC-BY-4.0"
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_a_wheel_from_the_source_distribution_is_the_same(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    rebuilt = zipfile.ZipFile(build("wheel", source, tmp_path / "rebuilt"))
    assert sorted(rebuilt.namelist()) == sorted(wheel.namelist())


DIGEST = """
import hashlib
import numpy as np
from livefactor_kernels.backend import create_backend, state_sections
from livefactor_kernels.numbers import shipped
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.update import Update

digest = hashlib.sha256()
for name in ("auto", "clicks_sgd"):
    model, draws = create_backend("cpu", preset(name)), np.random.default_rng(1)
    model.users.allocate(np.arange(200, dtype=np.uint64))
    model.items.allocate(np.arange(100, dtype=np.uint64))
    for revision in range(1, 5):
        users, items = (draws.integers(0, size, 300).astype(np.uint32) for size in (200, 100))
        model.apply(Update(revision, users, items, None, None, 200, 100))
    for section in state_sections(model).values():
        digest.update(np.ascontiguousarray(section).tobytes())
print(digest.hexdigest(), shipped.is_used(), shipped.misfit())
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_kernels_of_the_wheel_give_the_same_bits_and_are_all_that_is_needed(tmp_path: Path) -> None:
    subprocess.run(["make", "wheel", "ARGS=--preset auto --preset clicks_sgd"], cwd=ROOT, check=True)
    (path,) = (ROOT / "dist").glob("*.whl")
    made = zipfile.ZipFile(path)
    shipped = [name for name in made.namelist() if name.startswith("livefactor_kernels/shipped/")]
    assert "livefactor_kernels/shipped/made.json" in shipped and len(shipped) > 50
    made.extractall(tmp_path / "wheel")

    def digest(folder: str, *paths: Path) -> tuple[str, str, str]:
        environment = os.environ | {
            "NUMBA_CACHE_DIR": str(tmp_path / folder),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, check=True, capture_output=True, text=True
        )
        bits, used, misfit = done.stdout.split(maxsplit=2)
        return bits, used, misfit.strip()

    bits, *without = digest("sources", *(ROOT / name for name in ("clients", "kernels", "server")))
    assert without == ["False", ""]
    assert digest("wheel-caches", tmp_path / "wheel") == (bits, "True", "None")
    assert not list((tmp_path / "wheel-caches").rglob("*.livefactor"))
