"""The first program: every rank adds its array to the sum that all ranks get.

Run it with `jetstream run -n 2 examples/first_program.py`.
"""

from __future__ import annotations

import numpy as np

import jetstream

with jetstream.init() as comm:
    x = np.full(4, comm.rank + 1, dtype=np.float32)
    comm.all_reduce(x)
    if comm.rank == 0:
        print(f"{comm.size} ranks agree on {x}")
