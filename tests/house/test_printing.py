"""Commands print through `cli/base.py` and `cli/screen.py`, which escape what a peer sent."""

from __future__ import annotations

import ast

from repository import PACKAGES, python_files

SERVER = PACKAGES["livefactor_server"]
# The last one prints what to install.
SEAMS = {SERVER / "cli" / "base.py", SERVER / "cli" / "screen.py", SERVER / "cli" / "__main__.py"}
RAW = {"print", "Console", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"}


def test_only_the_seams_print() -> None:
    found = [
        f"{path.relative_to(SERVER)}:{node.lineno}: {name}"
        for path in python_files()
        if SERVER in path.parents and path not in SEAMS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ((name := ast.unparse(node.func)) in RAW or name.endswith(".from_markup"))
    ]
    assert not found, found
