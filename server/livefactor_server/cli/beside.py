"""Runs a command of `livefactor` until standard input ends.

`livefactor serve --console` starts it with the arguments of `livefactor console`, and holds the other end of standard input as long as it lives.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from livefactor_server.cli.app import main


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    main()
