"""`make serve`: the built-in model on 127.0.0.1:30000 until interrupted."""

from __future__ import annotations

import os
import sys

from integration_tests.server import PIVOT_MODEL, ServerSpec, command_line


def main() -> None:
    """Become the server."""
    command = command_line(ServerSpec(PIVOT_MODEL, "pivot", sys.argv[1:]), port=30000)
    print("$ " + " ".join(command), flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
