"""The public names, the version and the entry points."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from types import ModuleType

import pytest

import livefactor
from livefactor.errors import MissingPackage
from repository import ROOT, modules


def test_every_name_is_public_and_imported_at_its_first_use() -> None:
    code = (
        "import sys, livefactor as l\n"
        "print(sorted({'grpc', 'numpy'} & set(sys.modules)))\n"
        "assert [n for n in l.__all__ if getattr(l, n) is None or n not in dir(l)] == []\n"
        # The modules that the first uses import leave every name its value.
        "print([n for n in l.__all__ if isinstance(getattr(l, n), type(sys))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
    assert set(livefactor.__all__) == {"__version__", *livefactor._HOMES}
    assert len(set(livefactor.__all__)) == len(livefactor.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        livefactor.nothing  # noqa: B018


@pytest.mark.parametrize("name", [name for name, _ in modules() if not name.endswith("__main__")])
def test_every_name_in_an_all_exists(name: str) -> None:
    if name == "livefactor.federated.flower":
        # It has an environment of its own (`make test-federated`).
        pytest.importorskip("flwr")
    module = importlib.import_module(name)
    assert [public for public in getattr(module, "__all__", ()) if not _exists(module, public)] == []


def _exists(module: ModuleType, public: str) -> bool:
    try:
        return hasattr(module, public)
    except MissingPackage:
        # An extra with an environment of its own has it, and another test finds its names there.
        return True


def test_versions_agree() -> None:
    assert version("livefactor") == livefactor.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## .*$", changelog, re.MULTILINE)
    assert newest is not None
    assert livefactor.__version__ in newest[0]


@pytest.mark.parametrize(
    ("group", "name"),
    [("console_scripts", "livefactor"), ("livefactor.cli", "main"), ("livefactor.local", "start")],
)
def test_entry_points_lead_somewhere(group: str, name: str) -> None:
    (found,) = [
        entry
        for entry in entry_points(group=group)
        if entry.name == name and entry.value.startswith("livefactor")
    ]
    assert callable(found.load())
