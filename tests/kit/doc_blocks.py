"""The code blocks of the pages, and what becomes of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"api.md"}
OUTPUT = {"", "text", "json"}
"""The languages of blocks that show what a command prints."""

FENCE = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block: its page, the line of its fence, its language, the comment above it, its text."""

    page: Path
    line: int
    language: str
    comment: str
    code: str

    @property
    def name(self) -> str:
        """The page and the line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def needs(self) -> str:
        """What a machine must have for this block, if tests have it not; else ""."""
        return self.comment.removeprefix("needs: ") if self.comment.startswith("needs: ") else ""

    @property
    def kind(self) -> str:
        """What becomes of it.

        output; needs: as its comment says; elsewhere: another test runs it; settings: a file of
        TOML, which is parsed; python or shell: run.
        """
        if self.language in OUTPUT:
            return "output"
        if self.needs:
            return "needs"
        if self.page.parent.name == "start" or self.comment.startswith("runs in "):
            return "elsewhere"
        if re.match(r"(#|//) (examples|protos)/", self.code):
            return "elsewhere"
        return {"toml": "settings", "python": "python", "sh": "shell"}[self.language]


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(page, line, found[2], found[1] or "", found[3])


def pages() -> list[Path]:
    """All pages with blocks that a reader may type."""
    found = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    found = [page for page in found if page.name not in GENERATED and "node_modules" not in page.parts]
    return [*sorted(found), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
