"""What latencies back to back do not show: a long wait, a call after a rest, a fair share of cores.

Each function measures one case on all ranks and returns its record; times are in us.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

WAIT_S = 1.0  # rank 0 is late by so much
REST_S = 0.2  # all ranks sleep so long
FAIR_S = 2.0  # pairs exchange messages for so long
GO, STOP = 1, 2  # the messages


def long_wait(meeting: Any, iterations: int, operation: Any, _arrays: Any) -> Any:
    """Rank 0 comes a second late.

    `cpu_percent` is what of a core the others use while they wait, all their threads together;
    `wake_us` the time from rank 0's call to the end of the last rank's.
    """
    call, operands = operation
    shares, wakes_us = [], []
    for _ in range(iterations):
        meeting.meet()
        if meeting.rank == 0:
            time.sleep(WAIT_S)
        cpu_ns, begin_ns = time.process_time_ns(), time.perf_counter_ns()
        call(*operands)
        end_ns = time.perf_counter_ns()
        used_ns = time.process_time_ns() - cpu_ns if meeting.rank != 0 else 0
        late_ns = meeting.gather(begin_ns)[0]
        shares.append(100 * max(meeting.gather(used_ns)) / (WAIT_S * 1e9))
        wakes_us.append((max(meeting.gather(end_ns)) - late_ns) / 1000)
    return {"cpu_percent": float(np.median(shares)), "wake_us": float(np.median(wakes_us))}


def after_rest(meeting: Any, iterations: int, operation: Any, _arrays: Any) -> Any:
    """The first call and the second one after all ranks have slept: the median, slowest rank."""
    call, operands = operation
    times_us = []
    for _ in range(iterations):
        meeting.meet()
        time.sleep(REST_S)
        pair = []
        for _ in range(2):
            meeting.meet()
            begin_ns = time.perf_counter_ns()
            call(*operands)
            pair.append(time.perf_counter_ns() - begin_ns)
        times_us.append([max(meeting.gather(value)) / 1000 for value in pair])
    first_us, second_us = np.median(times_us, axis=0)
    return {"first_us": float(first_us), "second_us": float(second_us)}


def fair_share(meeting: Any, _iterations: int, operation: Any, arrays: Any) -> Any:
    """Ranks 0 and 1, 2 and 3, ... exchange messages for a while, all pairs at once.

    `least_per_s` and `most_per_s` are the round trips per second of the slowest and the fastest
    pair; `share` is the first divided by the second.
    """
    (call, operands), (x, out) = operation, arrays
    count = 0
    meeting.meet()
    end_ns = time.perf_counter_ns() + int(FAIR_S * 1e9)
    if meeting.rank % 2 == 0:
        x.fill(GO)
        while time.perf_counter_ns() < end_ns:
            call(*operands)
            count += 1
        x.fill(STOP)
        call(*operands)
    else:
        call(*operands)
        while out[-1] != STOP:
            call(*operands)
            count += 1
    counts = [trips / FAIR_S for trips in meeting.gather(count)]
    least, most = min(counts), max(counts)
    return {"least_per_s": least, "most_per_s": most, "share": least / max(most, 1.0)}


#: What a case measures, on which operation.
MEASURES = {
    "long_wait": ("all_reduce", long_wait),
    "after_rest": ("all_reduce", after_rest),
    "fair_share": ("sendrecv", fair_share),
}
