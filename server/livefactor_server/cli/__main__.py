"""The console script: the command, or what to install for it.

`python -m livefactor` does the same through the package of the client. That import takes longer.
"""

from __future__ import annotations

import sys

INSTALL_HINT = 'pip install "livefactor[server]"'


def main() -> int:
    """Runs the command. Returns 2 if the server extra is not installed."""
    try:
        from livefactor_server.cli.app import main as run
    except ModuleNotFoundError as error:
        print(
            f"livefactor: the server's module {error.name} is not installed: {INSTALL_HINT}", file=sys.stderr
        )
        return 2
    run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
