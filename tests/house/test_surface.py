"""The public names, the version and the entry points."""

from __future__ import annotations

import importlib
import re
import types
from importlib.metadata import entry_points, version

import pytest

import livefactor
from repository import ROOT, modules


def test_all_lists_what_livefactor_offers() -> None:
    offered = {
        name
        for name, value in vars(livefactor).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert set(livefactor.__all__) - {"__version__"} == offered
    assert len(set(livefactor.__all__)) == len(livefactor.__all__)


@pytest.mark.parametrize("name", [name for name, _ in modules() if not name.endswith("__main__")])
def test_every_name_in_an_all_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)] == []


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
