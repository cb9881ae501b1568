"""The console of all commands. It prints text: whatever a peer sent, a terminal only shows it.

It knows no markup. Styles are arguments of `print`, or of a `rich.text.Text` made from `plain`
text.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from livefactor_server.text import plain


class Screen(Console):
    """A console that escapes every string that it prints, also those in tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as printable text on one line, without markup and emoji codes."""
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})
