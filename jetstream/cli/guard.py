"""Ends the process groups of a job whose launcher was killed; a program of its own.

The launcher writes "+PGID" or "-PGID" lines to the standard input of this process. When that ends,
the launcher is gone, and every group that is still on the list is killed. The ranks themselves die
with the launcher anyway; this is for what they have started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Reads until the launcher is gone, then kills what it left."""
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        if line.startswith(b"+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
