"""Symmetric memory: arrays in the segment, their use, their life, and what happens at the end."""

from __future__ import annotations

import gc
import os
import pickle
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.dtypes import DType
from jetstream.errors import ArgumentError, ClosedError, ForkedError, OutOfMemoryError
from jetstream.testing.plugin import Pools

MIB = 1 << 20
SMALL = {"JETSTREAM_HEAP_BYTES": "8M"}


def segment_bytes() -> int:
    """Memory that the segment of this process takes at present."""
    fds = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    segment = next(fd for fd in fds if "memfd:jetstream" in str(fd.readlink()))
    return segment.stat().st_blocks * 512


# --- making them ------------------------------------------------------------------------------


def run_arrays(comm: Communicator) -> None:
    for dtype in DType:
        a = comm.empty((3, 5), dtype.label)
        assert (type(a), a.shape, a.dtype) == (np.ndarray, (3, 5), dtype.numpy)
        assert a.flags.carray and a.ctypes.data % 64 == 0
        a[:] = 3
        assert (a == np.full((3, 5), 3, dtype.numpy)).all()
        z = comm.zeros((3, 5), dtype.numpy)
        assert not z.astype(np.float64).any()
    assert comm.empty(7).shape == (7,) and comm.empty(np.int64(7)).dtype == np.float32
    assert comm.empty(()).shape == () and comm.empty([2, 0, 3]).shape == (2, 0, 3)
    assert comm.empty(4096).ctypes.data % 4096 == 0
    assert comm.zeros((MIB,)).ctypes.data % (2 * MIB) == 0


def test_arrays(rank_pools: Pools) -> None:
    rank_pools(2).run(run_arrays)


def run_ordinary_use(comm: Communicator) -> None:
    """They are NumPy arrays like any other."""
    x = comm.empty((4, 6))
    np.multiply(np.arange(24).reshape(4, 6), 2, out=x)
    y = comm.zeros((4, 4))
    np.matmul(x, x.T, out=y)
    assert (y == x @ x.T).all()
    copied = pickle.loads(pickle.dumps(x))
    assert (copied == x).all() and comm.heap.block_count == 2
    again = x.copy()
    again[:] = 0
    assert x.any()


def test_ordinary_use(rank_pools: Pools) -> None:
    rank_pools(1).run(run_ordinary_use)


def run_torch(comm: Communicator) -> None:
    torch = pytest.importorskip("torch")
    a = comm.zeros((3, 4), torch.float32)
    tensor = torch.from_numpy(a)
    tensor += 1
    assert (a == 1).all() and comm.empty(3, torch.bfloat16).dtype == ml_dtypes.bfloat16
    del a
    comm.all_reduce(tensor)
    assert (tensor == comm.size).all() and comm.heap.block_count == 1


def test_torch(rank_pools: Pools) -> None:
    pytest.importorskip("torch")
    rank_pools(2).run(run_torch)


def run_bad_arguments(comm: Communicator) -> None:
    for shape in (-1, (3, -2), 1.5, (2, 1.5), "abc", None, (2, (3, 4))):
        with pytest.raises(ArgumentError, match="shape"):
            comm.empty(shape)  # type: ignore[arg-type]
    for dtype in ("float33", object, None, ">f4", "U3"):
        with pytest.raises(ArgumentError, match="dtype"):
            comm.zeros(3, dtype)
    assert comm.heap.block_count == 0
    assert (comm.all_reduce(np.ones(3)) == comm.size).all()


def test_bad_arguments(rank_pools: Pools) -> None:
    rank_pools(2).run(run_bad_arguments)


# --- in operations ----------------------------------------------------------------------------


def place(comm: Communicator, values: Any, *, symmetric: bool) -> Any:
    array = comm.empty(values.shape, values.dtype) if symmetric else np.empty_like(values)
    array[:] = values
    return array


def run_mixed(comm: Communicator, count: int, dtype: str) -> None:
    """Every collective, with symmetric arrays for input, output, both, and in place."""
    n, r = comm.size, comm.rank
    part = (np.arange(count) % 7 + r).astype(dtype)
    full = (np.arange(n * count) % 5 + r).astype(dtype)
    total = sum((np.arange(count) % 7 + k for k in range(n)), np.zeros(count)).astype(dtype)
    gathered = np.concatenate([np.arange(count) % 7 + k for k in range(n)]).astype(dtype)
    scattered = sum(np.arange(n * count) % 5 + k for k in range(n))[r * count : (r + 1) * count]
    for source_is, target_is in ((1, 1), (1, 0), (0, 1)):
        x = place(comm, part, symmetric=bool(source_is))
        w = place(comm, full, symmetric=bool(source_is))
        out = place(comm, part * 0, symmetric=bool(target_is))
        wide = place(comm, full * 0, symmetric=bool(target_is))
        assert (comm.all_reduce(x, out=out) == total).all()
        assert (comm.all_reduce(x, out=out, algo="two_shot") == total).all()
        assert (comm.all_gather(x, out=wide) == gathered).all()
        assert (comm.reduce_scatter(w, out=out) == scattered.astype(dtype)).all()
        assert (x == part).all() and (w == full).all()
    x = place(comm, part, symmetric=True)
    if r == 0:
        comm.broadcast(x)
    else:
        comm.broadcast(np.empty_like(part))  # private here, symmetric there
    assert (comm.all_reduce(place(comm, part, symmetric=True)) == total).all()
    work = comm.all_reduce(place(comm, part, symmetric=r % 2 == 0), async_op=True)
    comm.barrier()
    assert (work.wait() == total).all()
    send = comm.isend(place(comm, part, symmetric=True), (r + 1) % n)
    got = comm.recv(comm.zeros(count, dtype), (r - 1) % n)
    send.wait()
    assert (got == (np.arange(count) % 7 + (r - 1) % n).astype(dtype)).all()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 300, 70_001])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_collectives(rank_pools: Pools, world: int, count: int, dtype: str) -> None:
    rank_pools(world).run(run_mixed, count, dtype)


def run_reuse(comm: Communicator) -> None:
    """A new array takes the place of the old one while peers may just have read it."""
    for n in range(300):
        x = comm.empty(20_000)
        x[:] = comm.rank + n
        comm.all_reduce(x)
        assert (x == comm.size * n + comm.size * (comm.size - 1) // 2).all(), n
        del x


def test_reuse(rank_pools: Pools) -> None:
    rank_pools(3).run(run_reuse)


# --- life -------------------------------------------------------------------------------------


def run_views(comm: Communicator) -> None:
    before = comm.heap
    x = comm.zeros((100, 100))
    gone = weakref.ref(x)
    view = x[3:5].T.reshape(-1)[10:].view(np.int32)
    flat = memoryview(x[7])
    assert comm.heap.used_bytes == before.used_bytes + 40_000
    del x
    gc.collect()
    assert gone() is None or sys.implementation.name != "cpython"
    del view
    flat[0] = 1.0
    assert comm.heap.block_count == before.block_count + 1
    del flat
    assert comm.heap == before


def test_memory_goes_with_the_last_view(rank_pools: Pools) -> None:
    rank_pools(1).run(run_views)


def run_cycles(comm: Communicator) -> None:
    comm.all_reduce(comm.zeros(2 * MIB))
    before = segment_bytes()
    kept: list[Any] = []
    for n in range(3000):
        kept.append(comm.empty(n % 50_000 + 1, "float64"))
        if len(kept) > 8:
            kept.pop(n % 8)
        if n % 500 == 0:
            large = comm.zeros(4 * MIB)
            assert not large[:: MIB // 8].any()
            large[:] = 1
            del large
    kept.clear()
    assert comm.heap.used_bytes == 0 and comm.heap.largest_free_bytes == comm.heap.total_bytes
    comm.barrier()
    assert segment_bytes() <= before + comm.size * (comm.heap.total_bytes // 16 + MIB)


def test_memory_stays_flat(rank_pools: Pools) -> None:
    rank_pools(2, env={"JETSTREAM_HEAP_BYTES": "128M"}).run(run_cycles)


def run_in_flight(comm: Communicator) -> None:
    """The operation keeps its array, also when nobody else does."""
    peer = 1 - comm.rank
    target = comm.zeros(5000)
    receive = comm.irecv(target, peer, 1)
    send = comm.isend(np.full(5000, 5.0, np.float32), peer, 2)
    del target
    fresh = comm.zeros(5000)  # not in the place of the other
    assert comm.heap.block_count == 2
    comm.send(np.full(5000, 3.0, np.float32), peer, 1)
    assert (receive.wait() == 3).all() and not fresh.any()
    assert (comm.recv(fresh, peer, 2) == 5).all()
    send.wait()


def test_operations_in_flight_keep_their_arrays(rank_pools: Pools) -> None:
    rank_pools(2).run(run_in_flight)


def run_close(comm: Communicator) -> None:
    x = comm.zeros((50, 50))
    comm.all_reduce(x)
    comm.close()
    with pytest.raises(ClosedError):
        comm.empty(3)
    with pytest.raises(ClosedError):
        _ = comm.heap
    x += 1
    assert x.sum() == 2500
    del x, comm
    gc.collect()
    assert "memfd:jetstream" not in Path("/proc/self/maps").read_text()


def test_arrays_outlive_the_communicator(rank_pools: Pools) -> None:
    rank_pools(2).run(run_close)


def run_fork(comm: Communicator) -> None:
    x, y = comm.zeros(10), comm.zeros(10)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            x[0] = 7  # the memory is shared
            with pytest.raises(ForkedError):
                comm.empty(3)
            del x, y
            gc.collect()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert comm.heap.block_count == 2 and x[0] == 7
    z = comm.zeros(10)
    z[:] = 5
    assert not y.any() and x[1:].sum() == 0
    assert (comm.all_reduce(z) == 5 * comm.size).all()


def test_a_child_frees_nothing(rank_pools: Pools) -> None:
    rank_pools(2).run(run_fork)


EXITS = {
    "open": "",
    "closed": "comm.close()",
    "array_first": "del x",
    "cycle": "x = [comm.empty(9)]; x.append(x)",
    "thread": "import threading; threading.Thread(target=lambda: x.sum()).start()",
    "in_a_class": "class Holder: pass\nHolder.x = x\nHolder.__del__ = lambda self: self.x[0]\n"
    "holder = Holder()",
}


@pytest.mark.parametrize("how", EXITS)
def test_interpreter_exit(how: str) -> None:
    script = f"import jetstream\ncomm = jetstream.init()\nx = comm.zeros(1000)\n{EXITS[how]}\n"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- the end of the heap ----------------------------------------------------------------------


def run_exhaustion(comm: Communicator) -> None:
    kept = [comm.empty(MIB // 4) for _ in range(7)]
    with pytest.raises(OutOfMemoryError) as caught:
        comm.empty(MIB)
    text = str(caught.value)
    assert isinstance(caught.value, MemoryError) and caught.value.status == "JS_ERR_NO_MEMORY"
    assert re.search(rf"rank {comm.rank} .*7340032 of its 8388608 bytes.*1048576 bytes", text)
    assert "JETSTREAM_HEAP_BYTES" in text
    with pytest.raises(OutOfMemoryError):
        comm.zeros((2**40, 2**40))
    assert comm.heap.block_count == 7
    kept.append(comm.zeros(MIB // 4))  # nothing is lost
    assert (comm.all_reduce(kept[-1]) == 0).all()
    kept.clear()
    cycle: list[Any] = [comm.empty(2 * MIB)]
    cycle.append(cycle)
    del cycle
    assert comm.empty(2 * MIB).nbytes == 8 * MIB  # what is garbage is collected first


def test_exhaustion(rank_pools: Pools) -> None:
    rank_pools(2, env=SMALL).run(run_exhaustion)


def run_threads(comm: Communicator) -> None:
    """Threads make and drop arrays while the main thread communicates."""
    failures: list[str] = []
    stop = threading.Event()

    def churn(mark: int) -> None:
        while not stop.is_set():
            a, b = comm.empty(3000, "int32"), comm.zeros(50_000, "int32")
            a[:] = mark
            if b.any() or (a != mark).any():
                failures.append(f"thread {mark}")
                return

    threads = [threading.Thread(target=churn, args=(mark,)) for mark in (1, 2)]
    for thread in threads:
        thread.start()
    x = comm.empty(5000)
    for n in range(100):
        x[:] = n
        if not (comm.all_reduce(x) == n * comm.size).all():
            failures.append(f"all_reduce {n}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_threads(rank_pools: Pools) -> None:
    rank_pools(2).run(run_threads)
