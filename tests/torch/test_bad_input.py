"""Bad input to torch.distributed: an exception of the type torch users expect, with the reason.

An error about one call leaves the group usable, which the tests prove with a collective afterwards;
an error between ranks ends it on all of them, and says who and why.
"""

from __future__ import annotations

import datetime
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    ClosedError,
    CommunicatorAbortedError,
    JetstreamError,
    MismatchError,
    PeerDiedError,
    TimedOutError,
)
from jetstream.testing.torch_ranks import TorchRanks

torch = pytest.importorskip("torch", reason="torch is not installed")
dist = pytest.importorskip("torch.distributed")

N = 3
Pools = Callable[[int], TorchRanks]
#: Of a group, and of what waits for another rank: does not end within a test.
LIMIT_S = 120.0


@contextmanager
def group_of_all(
    comm: Communicator, folder: Path, timeout_s: float = LIMIT_S, **environ: str
) -> Iterator[None]:
    """A process group of the ranks of a test."""
    environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "dumps" / "rank_"))
    os.environ.update(environ)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / "store"), comm.size)
    dist.init_process_group(
        "jetstream", store=store, rank=comm.rank, world_size=comm.size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )  # fmt: skip
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def refuses(kinds: Any, pattern: str, call: Callable[[], object]) -> None:
    """``kinds``: the exception is of each of them."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    with pytest.raises(kinds[0], match=pattern) as caught:
        call()
    assert all(isinstance(caught.value, kind) for kind in kinds), type(caught.value).__mro__
    assert str(caught.value)


def still_works() -> None:
    x = torch.ones(5)
    dist.all_reduce(x)
    assert (x == dist.get_world_size()).all()


#: What says that the arguments of one call are wrong.
WRONG = (ValueError,)


# --- one rank's own mistake ----------------------------------------------------------------------


def run_bad_tensors(comm: Communicator, folder: Path) -> None:
    with group_of_all(comm, folder):
        good = torch.ones(6)
        bad = {
            "meta": torch.ones(6, device="meta"),
            "sparse": torch.eye(6).to_sparse(),
            "quantized": torch.quantize_per_tensor(good, 0.1, 0, torch.qint8),
        }
        for word, tensor in bad.items():
            calls: list[Callable[[], object]] = [
                lambda x=tensor: dist.all_reduce(x),
                lambda x=tensor: dist.all_reduce(x, async_op=True),
                lambda x=tensor: dist.broadcast(x, 0),
                lambda x=tensor: dist.reduce(x, 0),
                lambda x=tensor: dist.all_gather([torch.ones(6) for _ in range(N)], x),
                lambda x=tensor: dist.all_gather_into_tensor(torch.ones(6 * N), x),
                lambda x=tensor: dist.send(x, (comm.rank + 1) % N),
                lambda x=tensor: dist.recv(x, (comm.rank + 1) % N),
                lambda x=tensor: dist.all_to_all_single(torch.ones(6), x),
                lambda x=tensor: dist.reduce_scatter_tensor(torch.ones(2), x),
            ]
            for call in calls[2 if word == "sparse" else 0 :]:  # sparse ones can be reduced
                # What torch itself refuses is a ValueError alone.
                refuses(ValueError, f"(?i){word}|qint8|dense|strided|different dtypes", call)
            still_works()
        for nothing in (None, 3.0, [1.0], "text"):
            refuses(TypeError, "Tensor", partial(dist.all_reduce, nothing))
        needs_grad = torch.ones(3, requires_grad=True)
        dist.all_reduce(needs_grad)  # in place, as gloo does
        assert needs_grad.tolist() == [float(N)] * 3
        strided = torch.zeros(4, 6)[:, ::2]
        strided += comm.rank
        dist.all_reduce(strided)
        assert (strided == 3).all()


def run_overlapping_outputs(comm: Communicator, folder: Path) -> None:
    """Refused before anything is sent: the other ranks do not notice."""
    with group_of_all(comm, folder):
        out, x = torch.ones(1).expand(4), torch.ones(4)
        calls: list[Callable[[], object]] = [
            lambda: dist.all_reduce(out),
            lambda: dist.all_reduce(out, async_op=True),
            lambda: dist.reduce(out, 0, async_op=True),
            lambda: dist.broadcast(out, 1, async_op=True),
            lambda: dist.all_gather([x, x, out], x),
            lambda: dist.all_gather_into_tensor(torch.ones(1).expand(4 * N), x, async_op=True),
            lambda: dist.reduce_scatter(out, [x, x, x]),
            lambda: dist.all_to_all_single(out[:N], x[:N], async_op=True),
            lambda: dist.irecv(out, 1),
        ]
        for call in calls if comm.rank == 0 else ():
            refuses(ArgumentError, "written-to tensor refers to a single memory location", call)
        still_works()


def run_bad_outputs(comm: Communicator, folder: Path) -> None:
    with group_of_all(comm, folder):
        x = torch.ones(6)
        whole = torch.zeros(6 * N)
        outs = [torch.zeros(6) for _ in range(N)]
        refuses(WRONG, "has 2: .* 3 ranks", lambda: dist.all_gather(outs[:2], x))
        wrong = [torch.ones(9) if rank == comm.rank else outs[rank] for rank in range(N)]
        refuses(WRONG, "6.*9|9.*6", lambda: dist.all_gather(wrong, x))
        double = [torch.zeros(6, dtype=torch.float64) for _ in range(N)]
        refuses(ValueError, "(?i)d?type", lambda: dist.all_gather(double, x))
        refuses(WRONG, "size|element", lambda: dist.all_gather_into_tensor(torch.ones(7), x))
        refuses(ValueError, "(?i)d?type", lambda: dist.all_gather_into_tensor(whole.double(), x))
        refuses(WRONG, "size|element", lambda: dist.reduce_scatter_tensor(torch.ones(5), x))
        refuses(WRONG, "has 2: .* 3 ranks", lambda: dist.reduce_scatter(torch.ones(6), outs[:2]))
        refuses(
            ValueError, "divi|split", lambda: dist.all_to_all_single(torch.ones(7), torch.ones(7))
        )
        refuses(
            ValueError,
            "split|sum",
            lambda: dist.all_to_all_single(x.clone(), x, [1] * N, [2] * N),
        )
        refuses(
            ValueError, "split|2 .*3|3 .*2",
            lambda: dist.all_to_all_single(x.clone(), x, [3, 3], [3, 3]),
        )  # fmt: skip
        refuses(ValueError, "2|3", lambda: dist.all_to_all(outs[:2], outs))
        if comm.rank == 0:
            refuses((ValueError,), "(?i)list|gather", lambda: dist.gather(x, None, 0))
            refuses(WRONG, "has 2: .* 3 ranks", lambda: dist.gather(x, outs[:2], 0))
            refuses(WRONG, "has 2: .* 3 ranks", lambda: dist.scatter(x, outs[:2], 0))
            refuses((ValueError,), "(?i)list|scatter", lambda: dist.scatter(x, None, 0))
        else:
            refuses((ValueError,), "(?i)list|gather", lambda: dist.gather(x, outs, 0))
            refuses((ValueError,), "(?i)list|scatter", lambda: dist.scatter(x, outs, 0))
        still_works()


def run_bad_ranks(comm: Communicator, folder: Path) -> None:
    with group_of_all(comm, folder):
        x = torch.ones(3)
        for wrong in (-1, N, 10**6):
            for call in (dist.broadcast, dist.reduce):
                refuses((ValueError,), "(?i)rank|part of", partial(call, x, wrong))
            refuses((ValueError,), "(?i)rank|part of", partial(dist.send, x, wrong))
            refuses((ValueError,), "(?i)rank|part of", partial(dist.recv, x, wrong))
        group: Any = dist.group.WORLD
        options = dist.BroadcastOptions()
        options.rootRank = 7
        refuses(WRONG, "root .*7|7.* root|rank", lambda: group.broadcast([x], options))
        refuses(WRONG, "7", lambda: group.send([x], 7, 0))
        refuses(WRONG, "7", lambda: group.recv([x], 7, 0))
        for wrong in (-1, 2**40):
            refuses(WRONG, "tag", lambda tag=wrong: group.send([x], 0, tag))
        refuses(ValueError, "(?i)rank", lambda: dist.send(x, comm.rank))
        refuses(WRONG, "send: .*this has 2", lambda: group.send([x, x], 0, 0))
        refuses(WRONG, "allreduce: .*this has 0", lambda: group.allreduce([]))
        still_works()


def run_bad_ops(comm: Communicator, folder: Path) -> None:
    with group_of_all(comm, folder):
        op_type = dist.ReduceOp
        for op in (op_type.BAND, op_type.BOR, op_type.BXOR):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.ones(4, dtype=dtype)
                word = str(op).rpartition(".")[2].lower()
                refuses(WRONG, f"(?i){word}", partial(dist.all_reduce, x, op))
                refuses(WRONG, f"(?i){word}", partial(dist.reduce, x, 0, op))
        for op in (op_type.MIN, op_type.MAX, op_type.BAND):
            x = torch.ones(4, dtype=torch.complex64)
            refuses(ValueError, "complex", partial(dist.all_reduce, x, op))
        scaled = dist._make_nccl_premul_sum(2.0)
        whole = torch.ones(4, dtype=torch.int32)
        refuses(WRONG, "scale .* int32", lambda: dist.all_reduce(whole, scaled))
        refuses(WRONG, "AVG|avg", lambda: dist.all_reduce(torch.ones(4).bool(), op_type.AVG))
        still_works()


# --- use after the end ---------------------------------------------------------------------------


def run_after_destroy(comm: Communicator, folder: Path) -> None:
    with group_of_all(comm, folder):
        world: Any = dist.group.WORLD
        part: Any = dist.new_group([0, 1])
        x = torch.ones(3)
        if comm.rank < 2:
            work = dist.all_reduce(x, group=part, async_op=True)
            work.wait()
            dist.destroy_process_group(part)
            refuses((RuntimeError, ClosedError), "closed|destroyed", lambda: part.allreduce([x]))
            refuses((RuntimeError, ClosedError), "closed|destroyed", lambda: part.barrier())
            refuses(ValueError, "(?i)group", lambda: dist.all_reduce(x, group=part))
            work.wait()  # what was complete stays so
        else:
            assert part is dist.GroupMember.NON_GROUP_MEMBER
            with warnings.catch_warnings():
                dist.all_reduce(x, group=part)
        still_works()
        last = dist.all_reduce(torch.ones(2), async_op=True)
        last.wait()
        dist.destroy_process_group()
        refuses((RuntimeError, ClosedError), "closed|destroyed", lambda: world.allreduce([x]))
        refuses((RuntimeError, ClosedError), "closed|destroyed", lambda: world.send([x], 0, 0))
        refuses(ValueError, "not been initialized", lambda: dist.all_reduce(x))
        last.wait()


def run_again(comm: Communicator, folder: Path) -> None:
    """A process may join a second job after its first one."""
    for number in range(2):
        (folder / str(number)).mkdir(exist_ok=True)
        with group_of_all(comm, folder / str(number)):
            still_works()


# --- between ranks -------------------------------------------------------------------------------

#: What a rank waits for that ends the group when it is late.
ENDING = ("group", "call")
#: What ranks have to do with each other: for torch, for its users' "except", and for ours.
BETWEEN = (dist.DistBackendError, RuntimeError, JetstreamError)


def run_mismatch(comm: Communicator, folder: Path, case: str) -> str:
    with group_of_all(comm, folder):
        still_works()
        odd = comm.rank == 1
        calls: dict[str, Callable[[], object]] = {
            "shape": lambda: dist.all_reduce(torch.ones(9 if odd else 8)),
            "dtype": lambda: dist.all_reduce(torch.ones(8, dtype=torch.int32 if odd else None)),
            "op": lambda: dist.all_reduce(torch.ones(8), dist.ReduceOp.MAX if odd else "sum"),
            "kind": lambda: dist.barrier() if odd else dist.all_reduce(torch.ones(8)),
            "root": lambda: (  # who sends does not wait
                dist.broadcast(torch.ones(8), 1 if odd else 0),
                dist.all_reduce(torch.ones(8)),
            ),
            "later": lambda: dist.all_reduce(torch.ones(9 if odd else 8), async_op=True).wait(),
        }
        calls["op"] = lambda: dist.all_reduce(
            torch.ones(8), dist.ReduceOp.MAX if odd else dist.ReduceOp.SUM
        )
        with pytest.raises(MismatchError) as caught:
            calls[case]()
        assert all(isinstance(caught.value, kind) for kind in BETWEEN), type(caught.value).__mro__
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), MismatchError)
        with pytest.raises(dist.DistBackendError):  # it cannot be used any more, and says so
            dist.all_reduce(torch.ones(2))
        return str(caught.value)


def run_late(comm: Communicator, folder: Path, wait: str) -> tuple[str, float]:
    """Rank 1 does not come in time. Where that ends the group it is rank 0 that gives up."""
    with group_of_all(comm, folder):
        still_works()
        store = dist.distributed_c10d._get_default_store()
        if comm.rank == 1:
            store.wait(["seen 0", "seen 2"], datetime.timedelta(seconds=LIMIT_S))
            return "", 0.0
        x, start_s = torch.ones(4), time.monotonic()
        short = datetime.timedelta(seconds=1)
        ending = short if comm.rank == 0 else datetime.timedelta(seconds=LIMIT_S)
        with pytest.raises(RuntimeError) as caught:
            if wait == "group":
                dist.group.WORLD.set_timeout(ending)
                dist.all_reduce(x)
            elif wait == "work":
                dist.all_reduce(x, async_op=True).wait(short)
            elif wait == "call":
                options = dist.AllreduceOptions()
                options.timeout = ending
                dist.group.WORLD.allreduce([x], options).wait()
            elif wait == "receive":
                dist.irecv(x, 1).wait(short)
            elif wait == "monitored":
                dist.group.WORLD.monitored_barrier(short, wait_all_ranks=True)
        passed_s = time.monotonic() - start_s
        store.set(f"seen {comm.rank}", "1")
        if wait != "monitored":  # there torch says RuntimeError, and nothing else
            kind = CommunicatorAbortedError if ending > short and wait in ENDING else TimedOutError
            assert isinstance(caught.value, kind), type(caught.value)
        return str(caught.value), passed_s


def run_death(comm: Communicator, folder: Path) -> str:
    with group_of_all(comm, folder):
        still_works()
        if comm.rank == 1:
            os._exit(3)
        with pytest.raises(PeerDiedError) as caught:
            while True:
                dist.all_reduce(torch.ones(4))
        assert all(isinstance(caught.value, kind) for kind in BETWEEN)
        assert isinstance(caught.value, ConnectionError)
        return str(caught.value)


def run_raise(comm: Communicator, folder: Path) -> str:
    """A rank leaves with an exception; the others wait for it."""
    with group_of_all(comm, folder):
        still_works()
        if comm.rank == 1:
            return ""
        with pytest.raises(CommunicatorAbortedError) as caught:
            while True:
                dist.all_reduce(torch.ones(4))
        assert all(isinstance(caught.value, kind) for kind in BETWEEN)
        return str(caught.value)


@pytest.mark.parametrize(
    "body", [run_bad_tensors, run_overlapping_outputs, run_bad_outputs, run_bad_ranks, run_bad_ops,
             run_after_destroy, run_again], ids=lambda body: body.__name__[4:],
)  # fmt: skip
def test_bad_call(torch_pools: Pools, tmp_path: Path, body: Callable[..., None]) -> None:
    torch_pools(N).pool.run(body, tmp_path)


@pytest.mark.parametrize("case", ["shape", "dtype", "op", "kind", "root", "later"])
def test_mismatch_names_both_sides(torch_pools: Pools, tmp_path: Path, case: str) -> None:
    words = {
        "shape": ("9", "8"), "dtype": ("int32", "float32"), "op": ("max", "sum"),
        "kind": ("barrier", "all_reduce"), "root": ("root", "1"), "later": ("9", "8"),
    }[case]  # fmt: skip
    for text in torch_pools(N).pool.run(run_mismatch, tmp_path, case):
        assert "rank 1" in text and all(word in text for word in words), text


@pytest.mark.parametrize("wait", ["group", "work", "call", "receive", "monitored"])
def test_late_rank_is_named(torch_pools: Pools, tmp_path: Path, wait: str) -> None:
    results = torch_pools(N).pool.run(run_late, tmp_path, wait)
    for rank in (0, 2):
        text, passed_s = results[rank]
        if rank == 0 or wait != "monitored":  # of the two the other one may be late as well
            assert re.search(r"\branks? (0, )?1\b", text.lower()), text
        is_told = rank == 2 and wait in (*ENDING, "monitored")
        assert is_told or passed_s > 0.9, (rank, passed_s)
        assert passed_s < LIMIT_S / 2, (rank, passed_s)


def test_dead_rank_is_named(torch_pools: Pools, tmp_path: Path) -> None:
    outcomes = torch_pools(N).pool.collect(run_death, tmp_path)
    assert outcomes[1].has_died
    for rank in (0, 2):
        assert outcomes[rank].failure is None, outcomes[rank].details
        assert "rank 1" in outcomes[rank].value, outcomes[rank].value


def test_rank_that_left_is_named(torch_pools: Pools, tmp_path: Path) -> None:
    results = torch_pools(N).pool.run(run_raise, tmp_path)
    for rank in (0, 2):
        assert "rank 1" in results[rank], results[rank]
