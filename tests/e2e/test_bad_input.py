"""Bad input: each has a typed error whose text says what to do, or correct behaviour.

An error about one call (ArgumentError and its like) leaves the communicator intact, which the tests
prove with a collective afterwards; an error between ranks makes it unusable, and says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
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
    PlanError,
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
    dtypes: list[Any] = [object, np.longdouble, ">f4", "U3", "M8[s]"]
    for dtype in dtypes:
        bad = np.zeros(6 * n, dtype)
        for call in (comm.all_reduce, comm.all_gather, comm.broadcast, comm.reduce_scatter):
            refuses(ArgumentError, "dtype .* not supported; convert to", partial(call, bad))
        for message in (comm.send, comm.recv, comm.isend, comm.irecv):
            refuses(ArgumentError, "not supported", partial(message, bad, 0))
    for nothing in (None, 3, 1.5, "text", [1.0, 2.0], {}, np.float32(1)):
        refuses(ArgumentError, "array|scalar", partial(comm.all_reduce, nothing))
        refuses(ArgumentError, "array|scalar", partial(comm.all_gather, good, out=nothing or 0))
    strided = np.ones((4, 6), np.float32)[:, ::2]
    whole = np.ones((4, 3), np.float32)
    refuses(ArgumentError, "x is not C-contiguous.*ascontiguous", lambda: comm.all_reduce(strided))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.all_reduce(whole, out=strided))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.recv(strided, 0))
    if comm.rank != 0:
        refuses(ArgumentError, "x is not C-cont", lambda: comm.broadcast(strided, 0))
    expanded = np.broadcast_to(np.float32(3), 6)  # all in one place; the root's is only read
    x = expanded if comm.rank == 0 else np.zeros(6, np.float32)
    assert comm.broadcast(x) is x and (x == 3).all()
    one_place = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (6,), (0,))
    refuses(ArgumentError, "out is not C-cont", lambda: comm.all_reduce(good, out=one_place))
    fixed = np.ones(6, np.float32)
    fixed.flags.writeable = False
    refuses(ArgumentError, "x is read-only: pass a writable", lambda: comm.all_reduce(fixed))
    refuses(ArgumentError, "out is read-only", lambda: comm.all_reduce(good, out=fixed))
    refuses(ArgumentError, "out is read-only", lambda: comm.recv(fixed, 0))
    refuses(ArgumentError, "read-only", lambda: comm.all_reduce(b"12345678"))
    still_works(comm)


def run_bad_outputs(comm: Communicator) -> None:
    n = comm.size
    x, small, other = np.ones((2, 3)), np.ones(5), np.ones(6 * n, np.float32)
    refuses(
        ArgumentError, "5 elements, the result has 6", lambda: comm.all_reduce(x, out=np.ones(5))
    )
    refuses(
        ArgumentError, "out has dtype float32, the input float64",
        lambda: comm.all_gather(x, out=other),
    )  # fmt: skip
    refuses(ArgumentError, f"the result has {6 * n}", lambda: comm.all_gather(x, out=small))
    refuses(
        ArgumentError, "5 elements, the result has 2",
        lambda: comm.reduce_scatter(np.ones(2 * n), out=small),
    )  # fmt: skip
    whole = np.ones(6 * n + 6, np.float32)[: 6 * n]
    if n > 1:
        refuses(ArgumentError, "overlap", lambda: comm.all_gather(whole[1:7], out=whole))
        part = whole[6 * comm.rank + 1 :][:6]
        if part.size == 6:
            refuses(ArgumentError, "overlap", lambda: comm.reduce_scatter(whole, out=part))
    refuses(ArgumentError, "overlap", lambda: comm.all_reduce(whole[:4], out=whole[1:5]))
    still_works(comm)


def run_bad_numbers(comm: Communicator) -> None:
    x, n = np.ones(4), comm.size
    wrong: Any
    for wrong in (-1, n, 10**9, 1.0, "0", None):
        pattern = rf"root is .*a rank from 0 to {n - 1}"
        refuses(ArgumentError, pattern, partial(comm.broadcast, x, wrong))
        refuses(ArgumentError, "dst is", partial(comm.send, x, wrong))
        if wrong is not None:  # any source
            refuses(ArgumentError, "src is", partial(comm.recv, x, wrong))
            refuses(ArgumentError, "src is", partial(comm.probe, wrong))
    for wrong in (-1, 2**32, 0.5, "a"):
        refuses(ArgumentError, "tag is", partial(comm.send, x, 0, wrong))
        refuses(ArgumentError, "tag is", partial(comm.recv, x, 0, wrong))
        refuses(ArgumentError, "tag is", partial(comm.iprobe, 0, wrong))
    for wrong in (1, -2, 0.5):
        refuses(ArgumentError, "axis", partial(comm.all_gather, x, axis=wrong))
    for wrong in (-1, "soon", float("nan")):
        refuses(ArgumentError, "timeout", partial(comm.all_reduce, x, timeout=wrong))
        refuses(ArgumentError, "timeout", partial(setattr, comm, "timeout", wrong))
    comm.all_to_all(np.ones(4 * n))
    for kind in ("all_to_all", "all_gather", "barrier"):  # names that are known, but of no op
        refuses(ArgumentError, "op .* is not one", partial(comm.all_reduce, np.ones(4 * n), kind))
    for wrong in ("mean", "", None, 0, ["sum"], {}, x):
        pattern = "op .* is not one of sum"
        refuses(ArgumentError, pattern, partial(comm.all_reduce, x, wrong))
        refuses(ArgumentError, pattern, partial(comm.all_reduce, x, wrong, async_op=True))
        refuses(ArgumentError, pattern, partial(comm.reduce, x, 0, wrong))
    for wrong in (["ring"], 1):
        refuses(ArgumentError, "algo .* is not one", partial(comm.all_reduce, x, algo=wrong))
    for wrong in ("64", 64.0, [64]):
        refuses(ArgumentError, "chunk_bytes", partial(comm.all_reduce, x, chunk_bytes=wrong))
    refuses(ArgumentError, "algo 'ring' is not one", lambda: comm.all_reduce(x, algo="ring"))
    refuses(ArgumentError, "no algorithm direct", lambda: comm.all_reduce(x, algo="direct"))
    for wrong in (0, 1, 63, 65, 1 << 20, -64):
        refuses(PlanError, "chunks of", partial(comm.all_reduce, x, chunk_bytes=wrong))
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
    """Nobody can close while another thread is inside; that one does not notice."""
    if comm.rank == 1:  # comes when the other one has seen the error
        comm.recv(np.empty(1), 0, tag=99)
        still_works(comm)
        return
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(comm.all_reduce(np.ones(3))))
    before = comm.counters()["sleeps"]
    thread.start()
    while comm.counters()["sleeps"] == before:  # until it is inside, and waits
        time.sleep(0.001)
    with pytest.raises(BusyError, match="another thread"):
        comm.close()
    comm.send(np.ones(1), 1, tag=99)
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

ALL, GATHER, SCATTER, CAST = "all_reduce", "all_gather", "reduce_scatter", "broadcast"

#: What the even ranks call, what the odd ranks call, and what the text must say of either.
DISAGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "shape": ({"count": 8}, {"count": 9}, "count=8", "count=9"),
    "size": ({"count": 8}, {"count": 3 << 18}, "count=8", "count=786432"),
    "dtype": ({"dtype": "f4"}, {"dtype": "i4"}, "float32", "int32"),
    "bytes": ({"dtype": "f8"}, {"count": 16}, "float64", "float32"),
    "op": ({}, {"op": "max"}, "sum", "max"),
    "kind": ({}, {"kind": GATHER}, ALL, GATHER),
    "barrier": ({"kind": "barrier"}, {}, "barrier()", ALL),
    "scatter": ({"kind": SCATTER, "count": 24}, {"count": 24}, SCATTER, ALL),
    "root": ({"kind": CAST, "root": 0}, {"kind": CAST, "root": 1}, "root=0", "root=1"),
    "broadcast": ({"kind": CAST}, {}, CAST, ALL),
    "broadcast shape": ({"kind": CAST}, {"kind": CAST, "count": 4}, "count=8", "count=4"),
    "zero size": ({"count": 0}, {"count": 1}, "count=0", "count=1"),
    "algorithm": ({"algo": "one_shot"}, {"algo": "two_shot"}, "one_shot", "two_shot"),
    "chunk": ({"chunk_bytes": 64}, {"chunk_bytes": 128}, "chunk=64", "chunk=128"),
    "large": ({"count": 1 << 21}, {"count": 1 << 21, "op": "min"}, "sum", "min"),
    "async": ({"async_op": True}, {"async_op": True, "kind": GATHER}, ALL, GATHER),
}


def call_collective(
    comm: Communicator, kind: str = ALL, count: int = 8, dtype: str = "f4", **options: Any
) -> None:
    array = () if kind == "barrier" else (np.ones(count, dtype),)
    result = getattr(comm, kind)(*array, **options)
    if options.get("async_op"):
        result.wait()


def run_disagreement(comm: Communicator, name: str, late: int) -> str:
    """Returns the text of the MismatchError; ``late`` is the parity that comes later."""
    even, odd, _, _ = DISAGREEMENTS[name]
    still_works(comm)
    if comm.rank % 2 == late:
        time.sleep(0.03)
    with pytest.raises(MismatchError) as caught:
        call_collective(comm, **(odd if comm.rank % 2 else even))
        # A broadcast is over for its root when the frames are out: it learns later.
        comm.barrier()
    text = str(caught.value)
    for call in (
        lambda: comm.all_reduce(np.ones(3)),
        comm.barrier,
        lambda: comm.send(np.ones(2), 0),
    ):
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
    x = np.ones(16, np.float32)
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
            comm.broadcast(np.ones(4, np.float32), 0)
    else:
        time.sleep(0.2)
    with pytest.raises(MismatchError) as caught:
        if comm.rank != 0:
            comm.broadcast(np.ones(5, np.float32), 0)
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
def test_more_than_two_gib(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--full-matrix"):
        pytest.skip("part of --full-matrix")
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
            patch.setenv("JETSTREAM_RENDEZVOUS", f"ipc://@jetstream-test-{os.getpid()}")
            patch.setenv("JETSTREAM_INIT_TIMEOUT", "0.3")
            with pytest.raises(RendezvousError, match="not arrived: 1" if rank == 0 else "rank 0"):
                jetstream.init()


def test_every_error_is_a_builtin_too() -> None:
    assert issubclass(MismatchError, ValueError) and issubclass(BusyError, RuntimeError)
    assert issubclass(PeerClosedError, ConnectionError) and issubclass(ArgumentError, ValueError)
    assert issubclass(RendezvousError, JetstreamError)
