"""What an all-reduce costs once everything is warm: no system call, no allocation.

Counted from outside: strace is attached to both ranks while they run, and a library that counts
allocations is preloaded. On a busy machine a rank may find its peer without a core, and then gives
its own away: such yields are counted, but allowed, unless ranks are told to spin for long.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream._core.native import ffi, lib
from jetstream.communicator import Communicator
from jetstream.dtypes import Kind
from jetstream.graph import Graph
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools

ITERATIONS = 100_000
#: Of a long loop, what may be left: the loop's own memory; on a busy machine, where a rank finds
#: its peer without a core and goes to sleep, more, unless it has been told to spin for long.
CALLS_MAX = ITERATIONS // 1000
CALLS_BUSY_MAX = ITERATIONS // 100
GRAPH_CALLS = 100
BEGIN, END = "/jetstream-begin", "/jetstream-end"
_PR_SET_PTRACER = 0x59616D61
_ANY_TRACER = ctypes.c_ulong(-1)

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not here")

COUNTING_C = r"""
/* Counts what allocates in this process; preloaded. */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static unsigned long count;

unsigned long counted_allocations(void) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }
static void add(void) { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); }
void *malloc(size_t n) { add(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { add(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { add(); return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { add(); return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { add(); return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n)
{
    add();
    *p = __libc_memalign(a, n);
    return *p ? 0 : 12;
}
void *mmap(void *p, size_t n, int prot, int flags, int fd, long offset)
{
    add();
    return (void *)syscall(SYS_mmap, p, n, prot, flags, fd, offset);
}
"""


def capture(comm: Communicator, x: Any) -> Graph:
    with comm.capture() as graph:
        for _ in range(GRAPH_CALLS):
            comm.all_reduce(x)
            graph.call(ctypes.CDLL(None).sched_getcpu)
    return graph


def loop(comm: Communicator, x: Any, launch: str) -> None:
    if launch == "C":
        comm.time_launches("all_reduce", x, ITERATIONS)
    elif launch == "graph":
        graph = capture(comm, x)
        for _ in range(ITERATIONS // GRAPH_CALLS):
            graph()
    else:
        for _ in range(ITERATIONS):
            comm.all_reduce(x)


def run_traced(comm: Communicator, launch: str) -> bool:
    """Runs the loop between two system calls that mark it; False if no tracer came."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY_TRACER, 0, 0, 0)
    x = np.ones(16, np.float32)
    comm.time_launches("all_reduce", x, 1000)
    status = Path("/proc/self/status")
    deadline_s = time.monotonic() + 15
    while not re.search(r"TracerPid:\s+[1-9]", status.read_text()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    comm.barrier()
    os.access(BEGIN, os.F_OK)
    loop(comm, x, launch)
    os.access(END, os.F_OK)
    comm.barrier()
    return True


def trace(pool: RankPool, folder: Path, launch: str) -> list[Counter[str]]:
    """Returns the system calls of each rank during the loop, by name."""
    pool.start(run_traced, launch)
    tracers = [
        subprocess.Popen(["strace", "-qq", "-o", str(folder / str(rank)), "-p", str(pid)])
        for rank, pid in enumerate(pool.pids)
    ]
    try:
        outcomes = pool.wait()
    finally:
        for tracer in tracers:
            tracer.terminate()
            tracer.wait()
    assert all(outcome.is_ok for outcome in outcomes), outcomes
    if not all(outcome.value for outcome in outcomes):
        pytest.skip("strace may not attach to processes here")
    counts = []
    for rank in range(pool.size):
        lines = (folder / str(rank)).read_text().splitlines()
        first = next(n for n, line in enumerate(lines) if BEGIN in line)
        last = next(n for n, line in enumerate(lines) if END in line)
        names = [line.split("(")[0] for line in lines[first + 1 : last]]
        counts.append(Counter(name for name in names if not name.startswith("---")))
    return counts


@needs_strace
@pytest.mark.parametrize("spin", ["learned spin", "long spin"])
@pytest.mark.parametrize("launch", ["C", "Python", "graph"])
def test_no_system_calls(tmp_path: Path, launch: str, spin: str) -> None:
    env = {"JETSTREAM_SPIN_US": "1000000"} if spin == "long spin" else {}
    with RankPool(2, bind=True, env=env, timeout_s=120) as pool:
        counts = trace(pool, tmp_path, launch)
    print(f"{ITERATIONS} all-reduces from {launch}, {spin}: system calls {counts}")
    for count in counts:
        if env:
            assert "sched_yield" not in count and count.total() < CALLS_MAX
        else:
            assert count.total() - count["sched_yield"] < CALLS_BUSY_MAX


def run_counted(comm: Communicator, launch: str) -> int:
    """Returns the number of allocations during the loop."""
    counter = ctypes.CDLL(None).counted_allocations
    counter.restype = ctypes.c_ulong
    x = np.ones(16, np.float32)
    latency_ns = np.zeros(ITERATIONS, np.uint64)
    graph = capture(comm, x)
    pointer, times = ffi.from_buffer(x), ffi.from_buffer("uint64_t[]", latency_ns)
    handle = comm._launcher.handle()
    plan = comm._launcher.plan(Kind.ALL_REDUCE, x.dtype, x.size)
    comm.all_reduce(x)
    before = int(counter())
    if launch == "C":
        assert lib.js_comm_repeat(handle, plan.id, pointer, pointer, ITERATIONS, times) == 0
    elif launch == "graph":
        for _ in range(ITERATIONS // GRAPH_CALLS):
            graph()
    else:
        for _ in range(ITERATIONS):
            comm.all_reduce(x)
    return int(counter()) - before


@needs_compiler
@pytest.mark.parametrize("launch", ["C", "Python", "graph"])
def test_no_allocations(tmp_path: Path, launch: str) -> None:
    source, library = tmp_path / "counting.c", tmp_path / "counting.so"
    source.write_text(COUNTING_C)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    with RankPool(2, bind=True, env={"LD_PRELOAD": str(library)}, timeout_s=120) as pool:
        counts = pool.run(run_counted, launch)
    print(f"{ITERATIONS} all-reduces from {launch}: allocations {counts}")
    # From C, what little there is belongs to the call of the loop itself.
    assert max(counts) <= (4 if launch == "C" else CALLS_MAX)


def run_records(comm: Communicator) -> None:
    """A record for each of the last collectives, in order, with stamps that make sense."""
    assert comm.last_op is None and len(comm.records()) == 0
    begin_ns = time.monotonic_ns()
    comm.all_reduce(np.ones(1000, np.float32), "max", algo="two_shot")
    comm.all_gather(np.ones(7))
    comm.broadcast(np.ones(3, np.int64), root=comm.size - 1)
    end_ns = time.monotonic_ns()
    records = comm.records()
    assert records["op_id"].tolist() == [1, 2, 3]
    assert records["bytes"].tolist() == [4000, 56 * comm.size, 24]
    for before, after in itertools.pairwise(
        ("t_enter_ns", "t_first_rx_ns", "t_last_rx_ns", "t_exit_ns")
    ):
        heard = records[(records[before] != 0) & (records[after] != 0)]  # a root hears nothing
        assert (heard[before] <= heard[after]).all()
    assert (records["t_exit_ns"][:-1] <= records["t_enter_ns"][1:]).all()
    slack_ns = 1_000_000  # the counter of the CPU against the clock of the kernel
    assert begin_ns - slack_ns <= records["t_enter_ns"][0]
    assert records["t_exit_ns"][-1] <= end_ns + slack_ns
    last = comm.last_op
    assert (last.kind, last.dtype, last.count, last.status) == ("broadcast", "int64", 3, "JS_OK")
    assert last.latency_ns == records["t_exit_ns"][-1] - records["t_enter_ns"][-1]
    assert "broadcast #3" in str(last)
    comm.time_launches("barrier", np.ones(1), 5000)
    numbers = comm.records()["op_id"]
    assert numbers[-1] == 5003 and len(numbers) >= 4095 and (np.diff(numbers) == 1).all()
    comm.barrier()
    comm.barrier()
    assert comm.counters(comm.size - 1)["launches"] >= 5004, "those of others can be read"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_records(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_records)


def run_counters(comm: Communicator) -> dict[str, int]:
    x = np.ones(16, np.float32)
    comm.time_launches("all_reduce", x, 1000)
    before = comm.counters()
    comm.time_launches("all_reduce", x, 10_000)
    after = comm.counters()
    return {name: after[name] - before[name] for name in after}


def test_counters_say_what_happened() -> None:
    with RankPool(2, bind=True) as pool:
        for count in pool.run(run_counters):
            assert count["launches"] == count["completions"] == 10_000
            assert count["frames_sent"] == count["frames_received"] == 10_000
            assert count["bytes_sent"] == count["bytes_received"] == 64 * 10_000
            assert count["failures"] == count["unexpected"] == count["plans"] == 0
