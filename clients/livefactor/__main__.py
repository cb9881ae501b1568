"""The `livefactor` command.

The server package brings the command, and an entry point leads to it. Without the server extra,
this module prints what to install.
"""

from __future__ import annotations

import sys

from livefactor.errors import ServerMissing
from livefactor.extra import load_entry_point

CLI_GROUP = "livefactor.cli"


def main() -> int:
    """Run the command; the exit code. 2 if the server extra is not installed."""
    try:
        command = load_entry_point(CLI_GROUP)
    except ServerMissing as missing:
        print(f"livefactor: {missing}", file=sys.stderr)
        return 2
    return int(command() or 0)


if __name__ == "__main__":
    sys.exit(main())
