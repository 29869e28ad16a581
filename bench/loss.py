"""All-reduce between two hosts over links that lose frames: latency and goodput by loss.

    python bench/loss.py [udp packet xdp] [--loss 0,0.001,0.01,0.05] [--calls N] [--rounds N]
                         [--real-time]

The hosts are network namespaces; the bridge between them loses frames at random (nftables). Each
cell is the median of the rounds, in which links and losses take turns. Beside them, what the
simulator says of the same protocol on a line of about the same speed, undisturbed by a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from bounds import output, share, whole

from jetstream import Communicator, sim
from jetstream.testing import NoNetworkError, run_ranks

LINKS = ("udp", "packet", "xdp")
LOSSES = (0.0, 0.001, 0.01, 0.05)
SMALL_BYTES = 8 << 10
LARGE_BYTES = 1 << 20
LARGE_SHARE = 20  # so many small calls for each large one
WARM_UP = 500
PERCENTILES = {"p50_us": 50, "p99_us": 99, "p999_us": 99.9}
COUNTERS = ("retransmits", "duplicates", "timeouts", "probes")
#: Half a round trip and goodput of a virtual cable are about these.
LINE = {"delay_us": 4.0, "jitter_us": 1.0, "gbps": 8.0}
RTO_MIN_US = 5000.0  # that of the engine


def measure(comm: Communicator, calls: int, is_real_time: bool) -> dict[str, float]:
    """Both sizes on one rank: microseconds by percentile, Gb/s, what the connection has counted."""
    if is_real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    other = 1 - comm.rank
    small = np.zeros(SMALL_BYTES // 4, np.float32)
    large = np.zeros(LARGE_BYTES // 4, np.float32)
    for _ in range(WARM_UP):
        comm.all_reduce(small)
    comm.all_reduce(large)
    before = comm.peer_counters(other)
    times_ns = np.zeros(calls, np.int64)
    for index in range(calls):
        begin_ns = time.perf_counter_ns()
        comm.all_reduce(small)
        times_ns[index] = time.perf_counter_ns() - begin_ns
    comm.barrier()
    count = max(1, calls // LARGE_SHARE)
    begin_ns = time.perf_counter_ns()
    for _ in range(count):
        comm.all_reduce(large)
    goodput = 8 * count * LARGE_BYTES / (time.perf_counter_ns() - begin_ns)
    after = comm.peer_counters(other)
    found = {name: float(np.percentile(times_ns, q)) / 1e3 for name, q in PERCENTILES.items()}
    return found | {"gbps": goodput} | {name: after[name] - before[name] for name in COUNTERS}


def measure_once(link: str, loss: float, calls: int, is_real_time: bool) -> dict[str, float]:
    """Of both ranks the slower one; counters added up. Raises NoNetworkError."""
    ranks = run_ranks(
        measure,
        2,
        calls,
        is_real_time,
        hosts=2,
        link=link,
        kernel_drop=loss,
        namespaces=True,
        bind=True,
        timeout_s=300,
    )
    row = {name: max(rank[name] for rank in ranks) for name in PERCENTILES}
    row["gbps"] = min(rank["gbps"] for rank in ranks)
    return row | {name: sum(rank[name] for rank in ranks) for name in COUNTERS}


def simulate(loss: float, calls: int) -> dict[str, float]:
    """The same of the simulator. It has no p99."""
    line = sim.Link(loss=loss, **LINE)
    small = sim.simulate(link=line, messages=calls, rto_min_us=RTO_MIN_US)
    count = max(1, calls // LARGE_SHARE)
    large = sim.simulate(
        link=line, messages=count, message_bytes=LARGE_BYTES, rto_min_us=RTO_MIN_US
    )
    goodput = 8 * count * LARGE_BYTES / large.completion_us / 1e3
    return {"p50_us": small.p50_us, "p999_us": small.p999_us, "gbps": goodput}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """In markdown, by loss and link."""
    lines = [
        "| loss | link | 8 KiB p50 | p99 | p99.9, us | 1 MiB, Gb/s | repeats | needless "
        "| time-outs |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        times = [f"{row[name]:.1f}" if name in row else "" for name in PERCENTILES]
        counts = [f"{row[name]:.0f}" if name in row else "" for name in COUNTERS[:3]]
        cells = [f"{100 * row['loss']:g} %", row["link"], *times, f"{row['gbps']:.2f}", *counts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse_losses(text: str) -> tuple[float, ...]:
    """Turn '0,0.01' into numbers."""
    return tuple(share(part) for part in text.split(","))


def main() -> int:
    """Measures all and prints the table; 77 where there can be no network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("links", nargs="*", metavar="LINK", help=f"of {', '.join(LINKS)} (all)")
    parser.add_argument("--loss", type=parse_losses, default=LOSSES, help="(0,0.001,0.01,0.05)")
    parser.add_argument("--calls", type=whole(1), default=10_000, help="of 8 KiB, a round (10000)")
    parser.add_argument("--rounds", type=whole(1), default=3, help="of all cells (3)")
    parser.add_argument("--real-time", action="store_true", help="above all other processes")
    parser.add_argument("--json", type=output, metavar="FILE", help="write all rounds to FILE")
    chosen = parser.parse_args()
    links = chosen.links or LINKS
    if set(links) - set(LINKS):
        parser.error(f"a link is one of {', '.join(LINKS)}")
    rounds: dict[tuple[float, str], list[dict[str, float]]] = {}
    try:
        for _ in range(chosen.rounds):
            for loss in chosen.loss:
                for link in links:
                    row = measure_once(link, loss, chosen.calls, chosen.real_time)
                    rounds.setdefault((loss, link), []).append(row)
                    sys.stderr.write(f"{loss} {link} {json.dumps(row)}\n")
    except NoNetworkError as error:
        sys.stderr.write(f"loss: {error}\n")
        return 77
    rows: list[dict[str, Any]] = []
    for loss in chosen.loss:
        for link in links:
            of_all = rounds[loss, link]
            names = of_all[0]
            medians = {name: statistics.median(row[name] for row in of_all) for name in names}
            rows.append({"loss": loss, "link": link, **medians})
        rows.append({"loss": loss, "link": "simulated", **simulate(loss, chosen.calls)})
    sys.stdout.write(format_table(rows))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([[*key, of] for key, of in rounds.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
