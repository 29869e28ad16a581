"""jetstream: `python -m jetstream run -n 2 --bind core peer_jetstream.py --shared FILE SIZES`.

With `--launched`, the same plan is launched from C, back to back, as a device would do it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import loop
import numpy as np
import numpy.typing as npt

import jetstream


def run_launched(comm: Any, meeting: loop.Meeting, sizes: list[tuple[int, int]]) -> None:
    """Measure launches from C. Values double in each one; the first few are checked exactly."""
    for size_bytes, iterations in sizes:
        pattern = np.arange(size_bytes // 4, dtype=np.int64) % 1021
        x = (pattern + comm.rank).astype(np.float32)
        checked = 3
        comm.time_launches("all_reduce", x, checked)
        total = comm.size * pattern + comm.size * (comm.size - 1) // 2
        if not np.array_equal(x, total * comm.size ** (checked - 1)):
            raise SystemExit(f"wrong result at {size_bytes} B")
        loop.report(meeting, size_bytes, iterations, partial(comm.time_launches, "all_reduce", x))


def main() -> None:
    """Measure in-place all_reduce on ordinary arrays."""
    arguments = loop.parse_arguments(__doc__)
    with jetstream.init() as comm:
        meeting = loop.Meeting(arguments.shared, comm.rank, comm.size)
        if arguments.launched:
            run_launched(comm, meeting, arguments.sizes)
            return

        def bind(x: npt.NDArray[np.float32]) -> tuple[Any, tuple[Any, ...]]:
            return comm.all_reduce, (x,)

        loop.run(meeting, arguments.sizes, bind)


if __name__ == "__main__":
    main()
