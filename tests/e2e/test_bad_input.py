"""Bad input: each has a typed error whose text says what to do, or correct behaviour.

An error about one call (ArgumentError and its like) leaves the communicator intact, which every
test here proves with a collective afterwards; an error between ranks makes it unusable, and says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    CommunicatorAbortedError,
    ConfigurationError,
    JetstreamError,
    MismatchError,
    PeerClosedError,
    RendezvousError,
)
from jetstream.testing import run_ranks
from jetstream.testing.plugin import Pools

GIB = 1 << 30


def refuses(kind: type[Exception], pattern: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert type(caught.value) is kind


def still_works(comm: Communicator) -> None:
    assert (comm.all_reduce(np.ones(3)) == comm.size).all()


# --- one rank's own mistake ----------------------------------------------------------------------


def run_bad_arrays(comm: Communicator) -> None:
    good, n = np.ones(6, np.float32), comm.size
    dtypes: list[Any] = [object, bool, np.complex64, np.uint32, np.int8, ">f4", "U3", "M8[s]"]
    for dtype in dtypes:
        for call in (comm.all_reduce, comm.all_gather, comm.broadcast, comm.reduce_scatter):
            bad = np.zeros(6 * n, dtype)
            refuses(ArgumentError, "dtype .* not supported; convert to", lambda: call(bad))  # noqa: B023
        refuses(ArgumentError, "not supported", lambda: comm.send(np.zeros(2, dtype), 0))  # noqa: B023
        refuses(ArgumentError, "not supported", lambda: comm.recv(np.zeros(2, dtype), 0))  # noqa: B023
    for nothing in (None, 3, 1.5, "text", [1.0, 2.0], {}, np.float32(1)):
        refuses(ArgumentError, "array|scalar", lambda: comm.all_reduce(nothing))  # noqa: B023
        refuses(ArgumentError, "array|scalar", lambda: comm.all_gather(good, out=nothing or 0))  # noqa: B023
    strided = np.ones((4, 6), np.float32)[:, ::2]
    refuses(ArgumentError, "x is not C-contiguous.*ascontiguous", lambda: comm.all_reduce(strided))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.all_reduce(np.ones((4, 3), np.float32), out=strided))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.recv(strided, 0))
    if comm.rank != 0:
        refuses(ArgumentError, "x is not C-cont", lambda: comm.broadcast(strided, 0))
    fixed = np.ones(6, np.float32)
    fixed.flags.writeable = False
    refuses(ArgumentError, "x is read-only: pass a writable", lambda: comm.all_reduce(fixed))
    refuses(ArgumentError, "out is read-only", lambda: comm.all_reduce(good, out=fixed))
    refuses(ArgumentError, "out is read-only", lambda: comm.recv(fixed, 0))
    refuses(ArgumentError, "read-only", lambda: comm.all_reduce(b"12345678"))
    still_works(comm)


def run_bad_outputs(comm: Communicator) -> None:
    x, n = np.ones((2, 3), np.float32), comm.size
    cases: list[tuple[str, Callable[[], object]]] = [
        ("out has 5 elements, the result has 6", lambda: comm.all_reduce(x, out=np.ones(5, np.float32))),
        ("out has dtype float64, the input float32", lambda: comm.all_reduce(x, out=np.ones(6))),
        ("out has 6 elements", lambda: comm.all_gather(np.ones((2, 3), np.float32), out=np.ones(6, np.float32)) if n > 1 else comm.all_gather(x, out=np.ones(6))),
        ("out has", lambda: comm.reduce_scatter(np.ones(2 * n), out=np.ones(3))),
    ]  # fmt: skip
    for text, call in cases[: 2 if n == 1 else None]:
        refuses(ArgumentError, text, call)
    whole = np.ones(6 * n + 6, np.float32)[: 6 * n]
    if n > 1:
        refuses(ArgumentError, "overlap", lambda: comm.all_gather(whole[1:7], out=whole))
        part = whole[6 * comm.rank + 1 :][:6]
        refuses(ArgumentError, "overlap", lambda: comm.reduce_scatter(whole, out=part))
    refuses(ArgumentError, "overlap", lambda: comm.all_reduce(whole[:4], out=whole[1:5]))
    still_works(comm)


def run_bad_numbers(comm: Communicator) -> None:
    x, n = np.ones(4), comm.size
    for root in (-1, n, 10**9, 1.0, "0", None):
        refuses(ArgumentError, rf"root is .*a rank from 0 to {n - 1}", lambda: comm.broadcast(x, root))  # type: ignore[arg-type] # noqa: B023, E501
        refuses(ArgumentError, "dst is", lambda: comm.send(x, root))  # type: ignore[arg-type] # noqa: B023
        refuses(ArgumentError, "src is", lambda: comm.recv(x, root))  # type: ignore[arg-type] # noqa: B023
    for tag in (-1, 2**32, 0.5, "a"):
        refuses(ArgumentError, "tag is", lambda: comm.send(x, 0, tag))  # type: ignore[arg-type] # noqa: B023
    for axis in (1, -2, 0.5):
        refuses(ArgumentError, "axis", lambda: comm.all_gather(x, axis=axis))  # type: ignore[arg-type] # noqa: B023
    for timeout in (-1, "soon", float("nan")):
        refuses(ArgumentError, "timeout", lambda: comm.all_reduce(x, timeout=timeout))  # type: ignore[arg-type] # noqa: B023
        with pytest.raises(ArgumentError, match="timeout"):
            comm.timeout = timeout  # type: ignore[assignment]
    refuses(ArgumentError, "op 'mean' is not one of sum", lambda: comm.all_reduce(x, "mean"))
    refuses(ArgumentError, "op", lambda: comm.all_reduce(x, None))  # type: ignore[arg-type]
    refuses(ArgumentError, "algo 'ring' is not one", lambda: comm.all_reduce(x, algo="ring"))
    refuses(ArgumentError, "no algorithm direct", lambda: comm.all_reduce(x, algo="direct"))
    for chunk in (0, 1, 63, 65, 1 << 20, -64):
        with pytest.raises(ValueError, match="chunks of"):
            comm.all_reduce(x, chunk_bytes=chunk)
    if n > 1:
        odd = np.ones(2 * n + 1)
        refuses(ArgumentError, f"cannot be split into {n}", lambda: comm.reduce_scatter(odd))
    refuses(ArgumentError, "cannot be split", lambda: comm.reduce_scatter(np.array(1.0)))
    refuses(ArgumentError, "kind", lambda: comm.time_launches("all_to_all", x, 3))
    still_works(comm)


def run_zero_sizes(comm: Communicator) -> None:
    empty = np.empty((0, 3), np.float32)
    assert comm.all_reduce(empty) is empty
    assert comm.all_gather(empty).shape == (0, 3)
    assert comm.all_gather(np.empty((2, 0))).shape == (2 * comm.size, 0)
    assert comm.reduce_scatter(empty).shape == (0, 3)
    assert comm.broadcast(empty) is empty
    comm.send(empty, comm.rank)
    assert comm.recv(np.empty(0), comm.rank).size == 0
    still_works(comm)


def run_two_threads(comm: Communicator) -> None:
    """The second thread gets BusyError at once; the first one does not notice."""
    if comm.rank == 1:
        time.sleep(0.5)
        still_works(comm)
        return
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(comm.all_reduce(np.ones(3))))
    thread.start()
    deadline_s = time.monotonic() + 20
    while True:  # until the thread is inside
        try:
            time.sleep(0.02)
            comm.isend(np.ones(1), 1, tag=99)
        except BusyError as error:
            assert "another thread" in str(error)
            break
        assert time.monotonic() < deadline_s
    thread.join()
    assert (results[0] == comm.size).all()


def run_after_close(comm: Communicator) -> None:
    x = np.ones(4)
    work = comm.all_reduce(x, async_op=True)
    work.wait()
    comm.barrier()
    comm.close()
    comm.close()
    calls: list[Callable[[], object]] = [
        lambda: comm.all_reduce(x), lambda: comm.all_reduce(x, out=np.empty(4)),
        lambda: comm.all_gather(x), lambda: comm.reduce_scatter(np.ones(comm.size)),
        lambda: comm.broadcast(x), comm.barrier, lambda: comm.all_reduce(x, async_op=True),
        lambda: comm.send(x, 0), lambda: comm.recv(x, 0), lambda: comm.isend(x, 0),
        lambda: comm.irecv(x, 0), lambda: comm.last_op, comm.counters, comm.records,
        lambda: comm.time_launches("barrier", x, 1),
    ]  # fmt: skip
    for call in calls:
        refuses(ClosedError, "closed", call)
    comm.abort()
    assert (work.wait() == comm.size).all(), "what was complete stays so"


def run_close_with_work(comm: Communicator) -> None:
    """A Work that was in flight when the communicator was closed says so."""
    work = comm.irecv(np.empty(3), comm.rank)
    comm.close()
    refuses(ClosedError, "closed", work.wait)
    refuses(ClosedError, "closed", work.done)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "run", [run_bad_arrays, run_bad_outputs, run_bad_numbers, run_zero_sizes, run_after_close]
)
def test_one_call(rank_pools: Pools, run: Any, world: int) -> None:
    rank_pools(world).run(run)


def test_two_threads(rank_pools: Pools) -> None:
    rank_pools(2).run(run_two_threads)


def test_close_with_work_in_flight(rank_pools: Pools) -> None:
    rank_pools(1).run(run_close_with_work)


# --- ranks that disagree -----------------------------------------------------------------------

F32, F64, I32 = np.float32, np.float64, np.int32

#: What the even ranks call, what the odd ranks call, and what both texts must have of them.
DISAGREEMENTS: dict[str, tuple[Callable[[Communicator], Any], Callable[[Communicator], Any], str, str]] = {
    "shape": (lambda c: c.all_reduce(np.ones(8, F32)), lambda c: c.all_reduce(np.ones(9, F32)), "count=8", "count=9"),
    "size class": (lambda c: c.all_reduce(np.ones(8, F32)), lambda c: c.all_reduce(np.ones(3 << 18, F32)), "count=8", "count=786432"),
    "dtype": (lambda c: c.all_reduce(np.ones(8, F32)), lambda c: c.all_reduce(np.ones(8, I32)), "float32", "int32"),
    "equal bytes": (lambda c: c.all_reduce(np.ones(8, F64)), lambda c: c.all_reduce(np.ones(16, F32)), "float64", "float32"),
    "op": (lambda c: c.all_reduce(np.ones(8, F32)), lambda c: c.all_reduce(np.ones(8, F32), "max"), "sum", "max"),
    "kind": (lambda c: c.all_reduce(np.ones(8, F32)), lambda c: c.all_gather(np.ones(8, F32)), "all_reduce", "all_gather"),
    "barrier": (lambda c: c.barrier(), lambda c: c.all_reduce(np.ones(8, F32)), "barrier", "all_reduce"),
    "scatter": (lambda c: c.reduce_scatter(np.ones(24, F32)), lambda c: c.all_reduce(np.ones(24, F32)), "reduce_scatter", "all_reduce"),
    "root": (lambda c: c.broadcast(np.ones(8, F32), 0), lambda c: c.broadcast(np.ones(8, F32), 1), "root=0", "root=1"),
    "broadcast": (lambda c: c.broadcast(np.ones(8, F32), 0), lambda c: c.all_reduce(np.ones(8, F32)), "broadcast", "all_reduce"),
    "broadcast count": (lambda c: c.broadcast(np.ones(8, F32), 0), lambda c: c.broadcast(np.ones(4, F32), 0), "count=8", "count=4"),
    "zero size": (lambda c: c.all_reduce(np.ones(0, F32)), lambda c: c.all_reduce(np.ones(1, F32)), "count=0", "count=1"),
    "algorithm": (lambda c: c.all_reduce(np.ones(8, F32), algo="one_shot"), lambda c: c.all_reduce(np.ones(8, F32), algo="two_shot"), "one_shot", "two_shot"),
    "chunk": (lambda c: c.all_reduce(np.ones(800, F32), chunk_bytes=64), lambda c: c.all_reduce(np.ones(800, F32), chunk_bytes=128), "chunk=64", "chunk=128"),
    "large": (lambda c: c.all_reduce(np.ones(1 << 21, F32)), lambda c: c.all_reduce(np.ones(1 << 21, F32), "min"), "sum", "min"),
    "async": (lambda c: c.all_reduce(np.ones(8, F32), async_op=True).wait(), lambda c: c.all_gather(np.ones(8, F32), async_op=True).wait(), "all_reduce", "all_gather"),
}  # fmt: skip


def run_disagreement(comm: Communicator, name: str, late: int) -> str:
    """Returns the text of the MismatchError; ``late`` is the parity that comes later."""
    even, odd, _, _ = DISAGREEMENTS[name]
    still_works(comm)
    if comm.rank % 2 == late:
        time.sleep(0.1)
    with pytest.raises(MismatchError) as caught:
        (odd if comm.rank % 2 else even)(comm)
        # A broadcast is over for its root when the frames are out: it learns later.
        comm.barrier()
    text = str(caught.value)
    for call in (lambda: comm.all_reduce(np.ones(3)), comm.barrier, lambda: comm.send(np.ones(2), 0)):
        with pytest.raises(MismatchError) as again:
            call()
        assert "cannot be used any more" in str(again.value)
    return text


@pytest.mark.parametrize("late", [0, 1, 2], ids=["even late", "odd late", "together"])
@pytest.mark.parametrize("name", DISAGREEMENTS)
@pytest.mark.parametrize("world", [2, 3])
def test_disagreement(rank_pools: Pools, world: int, name: str, late: int) -> None:
    """MismatchError on all ranks, with the calls of both sides, and the same story everywhere."""
    texts = rank_pools(world).run(run_disagreement, name, late)
    _, _, even, odd = DISAGREEMENTS[name]
    for text in texts:
        assert even in text and odd in text, text
        assert "All ranks must make the same calls" in text
        assert "cannot be used any more" in text
        assert text == texts[0]


def run_one_call_too_many(comm: Communicator) -> str:
    """One rank makes another collective first: all calls after it are shifted."""
    x = np.ones(16, F32)
    with pytest.raises(MismatchError) as caught:
        if comm.rank == 1:
            comm.broadcast(np.ones(5), 1)
        for _ in range(10):
            comm.all_reduce(x)
        comm.barrier()
    return str(caught.value)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_one_call_too_many(rank_pools: Pools, world: int) -> None:
    for text in rank_pools(world).run(run_one_call_too_many):
        assert "broadcast(float64, count=5, root=1" in text and "all_reduce(float32, sum" in text


def run_mismatch_long_ago(comm: Communicator) -> str:
    """The root of a broadcast that nobody waits for is far ahead when the others come."""
    if comm.rank == 0:
        for _ in range(20):  # fewer than the stream holds
            comm.broadcast(np.ones(4, F32), 0)
    else:
        time.sleep(0.2)
    with pytest.raises(MismatchError) as caught:
        if comm.rank != 0:
            comm.broadcast(np.ones(5, F32), 0)
        comm.barrier()
    return str(caught.value)


@pytest.mark.parametrize("world", [2, 3])
def test_mismatch_after_the_other_went_on(rank_pools: Pools, world: int) -> None:
    for text in rank_pools(world).run(run_mismatch_long_ago):
        assert "count=4" in text and "count=5" in text


def run_peer_leaves(comm: Communicator) -> str:
    if comm.rank == 1:
        return ""
    with pytest.raises(PeerClosedError) as caught:
        comm.all_reduce(np.ones(4))
    return str(caught.value)


@pytest.mark.parametrize("world", [2, 3])
def test_peer_that_has_left(rank_pools: Pools, world: int) -> None:
    texts = rank_pools(world).run(run_peer_leaves)
    for text in texts[:1] + texts[2:]:
        assert "rank 1" in text and "has closed" in text and "cannot be used any more" in text


def run_abort(comm: Communicator) -> str:
    still_works(comm)
    if comm.rank == 1:
        time.sleep(0.1)
        comm.abort()
    with pytest.raises(CommunicatorAbortedError, match="rank 1 aborted"):
        comm.all_reduce(np.ones(4))
    with pytest.raises(CommunicatorAbortedError, match="cannot be used any more") as caught:
        comm.barrier()
    return str(caught.value)


def test_abort(rank_pools: Pools) -> None:
    rank_pools(3).run(run_abort)


def run_context_manager(comm: Communicator) -> None:
    """Leaving the with block by an exception aborts: the others do not wait."""
    if comm.rank == 0:
        with pytest.raises(ZeroDivisionError), comm:
            _ = 1 / 0
        with pytest.raises(ClosedError):
            comm.barrier()
    else:
        with pytest.raises(CommunicatorAbortedError, match="rank 0 aborted"):
            comm.barrier()


def test_context_manager(rank_pools: Pools) -> None:
    rank_pools(2).run(run_context_manager)


# --- more than 2 GiB -----------------------------------------------------------------------------

HUGE = 2 * GIB + 3


def run_huge(comm: Communicator) -> None:
    """Ranks differ everywhere, so that a wrong offset past 2 or 4 GiB shows."""
    x = np.arange(HUGE, dtype=np.uint8)
    x += np.uint8(comm.rank)
    comm.all_reduce(x)
    expected = np.arange(1 << 16, dtype=np.uint8) * np.uint8(2) + np.uint8(1)
    blocks = x[: HUGE // len(expected) * len(expected)].reshape(-1, len(expected))
    assert all((block == expected).all() for block in blocks)
    assert (x[-3:] == np.arange(HUGE - 3, HUGE).astype(np.uint8) * np.uint8(2) + np.uint8(1)).all()


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.slow
def test_more_than_two_gib() -> None:
    if available_bytes() < 12 * GIB:
        pytest.skip(f"needs 12 GiB of memory, {available_bytes() / GIB:.1f} GiB are available")
    run_ranks(run_huge, 2, timeout_s=240)


# --- joining -----------------------------------------------------------------------------------


def test_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, text in (
        ("JETSTREAM_RANK", "3", "JETSTREAM_WORLD_SIZE is not set"),
        ("JETSTREAM_ALGO", "ring", "one_shot"),
        ("JETSTREAM_TIMEOUT", "-3", "number of seconds above 0"),
        ("JETSTREAM_SPIN_US", "many", "an integer"),
        ("JETSTREAM_BUFFSIZE", "100", "power of two"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ConfigurationError, match=text) as caught:
                jetstream.init()
            assert name in str(caught.value)


def test_nobody_comes(monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            patch.setenv("JETSTREAM_RANK", str(rank))
            patch.setenv("JETSTREAM_WORLD_SIZE", "2")
            patch.setenv("JETSTREAM_RENDEZVOUS", "ipc://@jetstream-test-nobody-comes")
            patch.setenv("JETSTREAM_INIT_TIMEOUT", "0.3")
            with pytest.raises(RendezvousError, match="not arrived: 1" if rank == 0 else "rank 0"):
                jetstream.init()


def test_every_error_is_a_builtin_too() -> None:
    assert issubclass(MismatchError, ValueError) and issubclass(BusyError, RuntimeError)
    assert issubclass(PeerClosedError, ConnectionError) and issubclass(ArgumentError, ValueError)
    assert issubclass(RendezvousError, JetstreamError)
