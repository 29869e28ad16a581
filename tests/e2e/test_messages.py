"""Point-to-point messages: sizes, tags, order, self-sends, truncation."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    PeerClosedError,
    PeerDiedError,
    TimedOutError,
    TruncatedError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools
from jetstream.work import Message, Work

#: Around the frame's own line, the chunk, the stream, and far beyond it.
SIZES = (0, 1, 39, 40, 41, 4095, 16384, 16385, 32768, 131072, 131073, 1 << 20, (5 << 20) + 7)

Array = np.ndarray[Any, np.dtype[Any]]


def pattern(nbytes: int, seed: int) -> Array:
    return np.random.default_rng([seed, nbytes]).integers(0, 256, nbytes, np.uint8)


def run_sizes(comm: Communicator) -> None:
    """Both directions at the same time, every size."""
    peer = 1 - comm.rank
    for size in SIZES:
        sent = comm.isend(pattern(size, comm.rank), peer)
        got = np.full(size, 0xEE, np.uint8)
        assert comm.recv(got, peer) is got
        sent.wait()
        assert np.array_equal(got, pattern(size, peer)), size


def run_ring(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for size in (1, 5000, 700_000):
        block = pattern(size, comm.rank)
        for step in range(1, comm.size + 1):
            work = comm.isend(block, right, tag=step)
            block = comm.recv(np.empty(size, np.uint8), left, tag=step)
            work.wait()
            assert np.array_equal(block, pattern(size, (comm.rank - step) % comm.size))


def run_everyone_to_everyone(comm: Communicator) -> None:
    """Self included; all receives posted first by the even ranks, last by the odd ones."""
    size = 40_000
    blocks = {peer: np.empty(size, np.uint8) for peer in range(comm.size)}
    receives = []
    if comm.rank % 2 == 0:
        receives = [comm.irecv(blocks[peer], peer) for peer in blocks]
    sends = [comm.isend(pattern(size, 10 * comm.rank + peer), peer) for peer in blocks]
    if comm.rank % 2 == 1:
        receives = [comm.irecv(blocks[peer], peer) for peer in blocks]
    for work in receives + sends:
        work.wait()
    for peer, block in blocks.items():
        assert np.array_equal(block, pattern(size, 10 * peer + comm.rank)), peer


def run_last_moment(comm: Communicator, is_probe: bool) -> None:
    """Rank 0 has waited in vain, and before it takes the receive back, the message comes."""
    if comm.rank == 1:
        comm.barrier()
        for tag in (5, 6):
            comm.send(pattern(100, tag), 0, tag)
        comm.barrier()
        return
    got = np.empty(100, np.uint8)
    with pytest.MonkeyPatch.context() as patch:

        def wait(_work: Work, _timeout: float | None = None) -> None:
            patch.undo()
            comm.barrier()
            comm.probe(1, 6)  # what was sent after it has come
            raise TimedOutError("late")

        patch.setattr(Work, "wait", wait)
        if is_probe:
            assert comm.probe(1, 5, timeout=1e-3) == Message(1, 5, 100)
        else:
            comm.recv(got, 1, 5, timeout=1e-3)
    if is_probe:
        comm.recv(got, 1, 5)
    assert np.array_equal(got, pattern(100, 5))
    comm.recv(got, 1, 6)
    comm.barrier()


def run_header_and_body(comm: Communicator) -> None:
    """Both ranks send before they receive: what fits the stream does not wait for the reader."""
    peer = 1 - comm.rank
    for sizes in ((64, 4000), (100, 60_000, 100), (4000, 64, 4000), (60_000, 100, 60_000)):
        for number, size in enumerate(sizes):
            comm.send(pattern(size, number), peer)
        for number, size in enumerate(sizes):
            got = comm.recv(np.empty(size, np.uint8), peer)
            assert np.array_equal(got, pattern(size, number)), (sizes, number)


def run_self(comm: Communicator) -> None:
    """A rank may send to itself, whichever end is posted first."""
    for size in (0, 8, 100_000):
        got = np.empty(size, np.uint8)
        receive = comm.irecv(got, comm.rank, tag=3)
        comm.send(pattern(size, 1), comm.rank, tag=3)
        receive.wait()
        assert np.array_equal(got, pattern(size, 1))
        send = comm.isend(pattern(size, 2), comm.rank, tag=4)
        comm.recv(got, comm.rank, tag=4)
        send.wait()
        assert np.array_equal(got, pattern(size, 2))


def run_tags(comm: Communicator) -> None:
    """Received in another order than sent; those of one tag stay in order."""
    tags = [7, 0, 2**32 - 1, 7, 5, 0, 7]
    if comm.rank == 0:
        works = [comm.isend(np.array([n, tag]), 1, tag) for n, tag in enumerate(tags)]
        for work in works:
            work.wait()
        return
    wanted = [5, 7, 2**32 - 1, 0, 7, 0, 7]
    seen: dict[int, list[int]] = {}
    for tag in wanted:
        number, sent_tag = comm.recv(np.empty(2, np.int64), 0, tag)
        assert sent_tag == tag
        seen.setdefault(tag, []).append(int(number))
    assert seen == {7: [0, 3, 6], 0: [1, 5], 2**32 - 1: [2], 5: [4]}


def run_large_out_of_order(comm: Communicator) -> None:
    """An unexpected message larger than the stream makes way for the one behind it."""
    big, small = 3 << 20, 100
    if comm.rank == 0:
        first, second = comm.isend(pattern(big, 1), 1, 1), comm.isend(pattern(small, 2), 1, 2)
        first.wait()
        second.wait()
    else:
        assert np.array_equal(comm.recv(np.empty(small, np.uint8), 0, 2), pattern(small, 2))
        assert np.array_equal(comm.recv(np.empty(big, np.uint8), 0, 1), pattern(big, 1))


def run_truncation(comm: Communicator) -> None:
    """A message of another size than the array: an error, the rest of the world goes on."""
    for nbytes, room in ((100, 99), (99, 100), (1 << 20, 17), (0, 1), (1, 0), (200_000, 199_999)):
        if comm.rank == 0:
            comm.send(pattern(nbytes, 1), 1)
            comm.send(pattern(64, 2), 1)
        else:
            out = np.full(room + 8, 0xEE, np.uint8)
            with pytest.raises(TruncatedError) as caught:
                comm.recv(out[:room], 0)
            assert str(nbytes) in str(caught.value) and str(room) in str(caught.value)
            assert (out[room:] == 0xEE).all(), "written past the end"
            assert np.array_equal(comm.recv(np.empty(64, np.uint8), 0), pattern(64, 2))
    comm.barrier()


def run_shorter(comm: Communicator) -> None:
    """With exact=False a shorter message is fine, and the Work tells how long it is."""
    for nbytes, room in ((0, 10), (99, 100), (20_000, 20_001), (100_000, 300_000)):
        if comm.rank == 0:
            comm.send(pattern(nbytes, 1), 1, tag=6)
            comm.send(pattern(nbytes, 2), 1)
            comm.send(pattern(room + 1, 3), 1)
        else:
            out = np.full(room, 0xEE, np.uint8)
            work = comm.irecv(out, 0, exact=False)
            assert (work.source, work.tag, work.nbytes) == (None, None, None)
            assert work.wait() is out
            assert (work.source, work.tag, work.nbytes) == (0, 6, nbytes)
            assert np.array_equal(out[:nbytes], pattern(nbytes, 1))
            assert (out[nbytes:] == 0xEE).all()
            assert comm.recv(out, 0, exact=False) is out
            assert np.array_equal(out[:nbytes], pattern(nbytes, 2))
            with pytest.raises(TruncatedError, match=f"{room + 1} bytes"):
                comm.recv(out, 0, exact=False)
    comm.barrier()


def run_probe(comm: Communicator) -> None:
    """A message's length is known before it is received, also behind others."""
    sizes = (0, 8, 40, 41, 16_384, 16_385, 3 << 20)
    if comm.rank == 0:
        comm.barrier()
        for work in [comm.isend(pattern(n, n), 1, tag) for tag, n in enumerate(sizes)]:
            work.wait()
    else:
        assert comm.iprobe() is None
        assert comm.iprobe(0, 1) is None
        with pytest.raises(TimedOutError, match=r"probe of any rank .*0\.02 s"):
            comm.probe(timeout=0.02)
        comm.barrier()
        for tag in (3, 6, 0, 5, 1, 4, 2):
            found = comm.probe(0 if tag % 2 else None, tag)
            assert found == Message(0, tag, sizes[tag])
            assert comm.iprobe(tag=tag) == comm.iprobe(0, tag) == found, "a probe takes nothing"
            out = np.empty(found.nbytes, np.uint8)
            comm.recv(out, found.source, found.tag)
            assert np.array_equal(out, pattern(sizes[tag], sizes[tag]))
            assert comm.iprobe(tag=tag) is None
        assert comm.iprobe() is None
    comm.barrier()


def run_bad_arguments(comm: Communicator) -> None:
    """Nothing is sent or received, and the communicator goes on."""
    x = np.zeros(1)
    for call in (
        lambda: comm.recv(x, comm.size),
        lambda: comm.recv(x, -1),
        lambda: comm.recv(x, tag=-1),
        lambda: comm.irecv(x, tag=2**32),
        lambda: comm.probe("0"),  # type: ignore[arg-type]
        lambda: comm.iprobe(0, 1.5),  # type: ignore[arg-type]
        lambda: comm.send(x, None),  # type: ignore[arg-type]
        lambda: comm.send(x, 0xFFFF),
        lambda: comm.recv(np.zeros((4, 4))[:, 0]),
        lambda: comm.recv(x, timeout=-1.0),
        lambda: comm.send(x, comm.rank, timeout="soon"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError):
            call()
    comm.send(np.array([2.0]), comm.rank)
    assert comm.recv(x) is x and x[0] == 2.0
    comm.barrier()


def run_server(comm: Communicator) -> None:
    """Rank 0 answers whoever asks; all are served, in turns while all of them ask."""
    questions = 40
    if comm.rank != 0:
        for n in range(questions):
            comm.send(np.arange(n, dtype=np.int32), 0, tag=n)
            assert comm.recv(np.empty(1, np.int64), 0, tag=n)[0] == n * (n - 1) // 2
        return
    room = np.empty(questions, np.int32)
    served = [0] * comm.size
    for _ in range(questions * (comm.size - 1)):
        work = comm.irecv(room, exact=False)
        work.wait()
        assert work.source is not None and work.tag == served[work.source]
        assert work.nbytes == 4 * work.tag
        served[work.source] += 1
        comm.send(np.array([room[: work.tag].sum()], np.int64), work.source, work.tag)
    assert served == [0] + [questions] * (comm.size - 1)


def run_wild(comm: Communicator, seed: int) -> None:
    """Random traffic with wildcards: every message arrives once, none overtakes another."""
    plan = random.Random(seed)
    for number in range(4):
        streams = {
            (source, target): [
                (plan.randrange(3), plan.choice((0, 8, 41, 5000, 70_000)))
                for _ in range(plan.randrange(8))
            ]
            for source in range(comm.size)
            for target in range(comm.size)
        }
        sends = [
            comm.isend(pattern(8 + size, seed + position), target, tag)
            for (source, target), messages in streams.items()
            if source == comm.rank
            for position, (tag, size) in enumerate(messages)
        ]
        mine = {s: list(m) for (s, target), m in streams.items() if target == comm.rank}
        left = {s: dict(enumerate(m)) for s, m in mine.items()}
        own = random.Random(seed * 100 + comm.rank)
        out = np.empty(8 + 70_000, np.uint8)
        while any(left.values()):
            source = own.choice([s for s in left if left[s]])
            tag = own.choice([None, *{tag for tag, _ in left[source].values()}])
            wanted = own.choice((None, source))
            if own.random() < 0.3:
                found = comm.probe(wanted, tag)
                wanted, tag = found.source, found.tag
            work = comm.irecv(out, wanted, tag, exact=False)
            work.wait()
            assert work.source is not None and wanted in (None, work.source)
            assert tag in (None, work.tag)
            fitting = [n for n, (t, _) in left[work.source].items() if tag in (None, t)]
            sent_tag, size = left[work.source].pop(fitting[0])  # the oldest that fits
            assert (work.tag, work.nbytes) == (sent_tag, 8 + size)
            expected = pattern(8 + size, seed + fitting[0])
            assert np.array_equal(out[: work.nbytes], expected), (number, work.source)
        for send in sends:
            send.wait()
        comm.barrier()


def run_any_of_the_dead(comm: Communicator) -> str:
    """A receive from any source ends when a rank dies, though others live."""
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerDiedError, match="rank 1") as caught:
        comm.recv(np.empty(8))
    return str(caught.value)


def run_any_of_the_closed(comm: Communicator) -> None:
    """A receive from any source goes on while somebody is left, and ends when all have closed."""
    if comm.rank == 1:
        comm.close()
    elif comm.rank == 2:
        time.sleep(0.2)
        comm.send(np.array([7]), 0)
        comm.close()
    else:
        assert comm.recv(np.empty(1, np.int64)).tolist() == [7]
        with pytest.raises(PeerClosedError):
            comm.recv(np.empty(1, np.int64))


def run_mixed(comm: Communicator, seed: int) -> None:
    """Random tags and sizes, receives in random order, collectives in between."""
    plan = random.Random(seed)
    for _ in range(6):
        messages = []
        for source in range(comm.size):
            for target in range(comm.size):
                for _ in range(plan.randrange(4)):
                    size = plan.choice((0, 3, 40, 41, 3000, 50_000, 300_000))
                    messages.append((source, target, plan.randrange(3), size))
        orders = [plan.sample(range(len(messages)), len(messages)) for _ in range(comm.size)]
        sends = [
            comm.isend(pattern(size, seed + n), target, tag)
            for n, (source, target, tag, size) in enumerate(messages)
            if source == comm.rank
        ]
        total = comm.all_reduce(np.ones(100_000, np.float32), async_op=True)
        pending: dict[tuple[int, int], list[int]] = {}
        for n, (source, target, tag, _) in enumerate(messages):
            if target == comm.rank:
                pending.setdefault((source, tag), []).append(n)
        works = []
        for n in orders[comm.rank]:
            source, target, tag, _ = messages[n]
            if target == comm.rank:  # the oldest one with this tag comes first
                expected = pending[source, tag].pop(0)
                out = np.empty(messages[expected][3], np.uint8)
                works.append((comm.irecv(out, source, tag), expected, out))
        for work, n, out in works:
            assert work.wait() is out
            assert np.array_equal(out, pattern(messages[n][3], seed + n))
        assert (total.wait() == comm.size).all()
        for send in sends:
            send.wait()


class Named(np.ndarray[Any, np.dtype[Any]]):
    """An array of another class, which takes the long way."""


def run_kinds_of_arrays(comm: Communicator) -> None:
    """Whatever the array is like: the message is what it looks like, and lands where it should."""
    grid = np.arange(60, dtype=np.float32).reshape(6, 10)
    bytes_ = np.arange(33, dtype=np.uint8)
    odd = bytes_[1:].view(np.uint64)  # not aligned
    swapped = np.arange(5, dtype=">i4")
    plain: list[Any] = [grid, grid.T, grid[:, 1:3], grid[1], np.array(3.5), np.empty((0, 4))]
    plain += [grid.view(Named), np.ones(3, bool), np.ones(3, ml_dtypes.bfloat16), bytes(bytes_)]
    plain += [odd, np.ones(2, np.complex128), grid[::-1]]
    for turn, x in enumerate(plain):
        want = np.asarray(x if not isinstance(x, bytes) else np.frombuffer(x, np.uint8))
        if comm.rank == 0:
            comm.send(x, 1, turn)
        else:
            out = np.full(want.shape, 7, want.dtype)
            assert comm.recv(out, 0, turn if turn % 2 else None) is out
            assert np.array_equal(out, want), turn
    if comm.rank == 0:
        comm.send(odd, 1)
        for wrong in (swapped, np.array(["a"]), np.array([object()])):
            with pytest.raises(ArgumentError):
                comm.send(wrong, 1)
    else:
        target = np.zeros(33, np.uint8)
        comm.recv(target[1:].view(np.uint64), 0)
        assert np.array_equal(target[1:], bytes_[1:])
        fixed = np.zeros(4)
        fixed.flags.writeable = False
        for wrong in (fixed, grid.T, swapped):
            with pytest.raises(ArgumentError):
                comm.recv(wrong, 0)
    comm.barrier()


def run_timeout(comm: Communicator) -> None:
    """A receive that nothing came for can be taken back; the communicator goes on."""
    if comm.rank == 1:
        with pytest.raises(TimedOutError, match=r"receive of 8 bytes from rank 0 .*0\.05 s"):
            comm.recv(np.empty(1), 0, timeout=0.05)
    comm.barrier()
    if comm.rank == 0:
        comm.send(np.array([1.5]), 1)
    else:
        assert comm.recv(np.empty(1), 0).tolist() == [1.5]
    comm.barrier()


@pytest.mark.parametrize(
    "run",
    [
        run_sizes,
        run_tags,
        run_large_out_of_order,
        run_header_and_body,
        run_timeout,
        run_shorter,
        run_probe,
        run_kinds_of_arrays,
    ],
)
def test_between_two(rank_pools: Pools, run: Any) -> None:
    rank_pools(2).run(run)


@pytest.mark.parametrize("is_probe", [False, True])
def test_what_comes_at_the_last_moment(rank_pools: Pools, is_probe: bool) -> None:
    rank_pools(2).run(run_last_moment, is_probe)


def test_truncation(rank_pools: Pools) -> None:
    rank_pools(2).run(run_truncation)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "run", [run_ring, run_everyone_to_everyone, run_self, run_server, run_bad_arguments]
)
def test_among_all(rank_pools: Pools, run: Any, world: int) -> None:
    rank_pools(world).run(run)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_mixed_with_collectives(rank_pools: Pools, world: int, seed: int) -> None:
    rank_pools(world).run(run_mixed, seed)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_wildcards(rank_pools: Pools, world: int, seed: int) -> None:
    rank_pools(world).run(run_wild, seed)


def test_any_source_and_death() -> None:
    with RankPool(3) as pool:
        outcomes = pool.collect(run_any_of_the_dead)
    assert outcomes[1].has_died
    assert all("rank 1" in outcomes[rank].value for rank in (0, 2))


def test_any_source_and_closing() -> None:
    with RankPool(3) as pool:
        pool.run(run_any_of_the_closed)
