"""What a call from Python costs, with pytest-benchmark; `python bench calls` runs it.

Every rank runs every test, the same number of times, so that calls find their peers. A round is
CALLS calls; divide by it. `launched from C` is the same plan without Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import loop
import ml_dtypes
import numpy as np
import pytest

import jetstream
from jetstream._core.native import ffi, lib
from jetstream.dtypes import Kind

CALLS = 1000
ROUNDS, WARMUP_ROUNDS = 60, 5
TIMEOUT_NS = 60_000_000_000


@pytest.fixture(scope="module")
def comm() -> Iterator[Any]:
    with jetstream.init() as comm:
        loop.pin(comm.rank)
        yield comm


def repeat(call: Callable[..., object], *operands: Any) -> Callable[[], None]:
    """CALLS calls."""

    def run() -> None:
        for _ in range(CALLS):
            call(*operands)

    return run


def nothing(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(lambda x: None, x)


def launched(comm: Any, x: Any) -> Callable[[], object]:
    return lambda: comm.time_launches("all_reduce", x, CALLS)


def cffi_alone(comm: Any, x: Any) -> Callable[[], object]:
    launcher = comm._launcher
    plan = launcher.plan(Kind.ALL_REDUCE, x.dtype, x.size)
    pointer = ffi.from_buffer(x)
    return repeat(lib.js_comm_call, launcher.handle(), plan.id, pointer, pointer, TIMEOUT_NS)


def persistent(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(comm.persistent("all_reduce", x))


def in_place(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(comm.all_reduce, x)


def out_of_place(comm: Any, x: Any) -> Callable[[], object]:
    out = np.empty_like(x)
    return repeat(lambda x: comm.all_reduce(x, out=out), x)


def symmetric(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(comm.all_reduce, comm.zeros(x.shape, x.dtype))


def bfloat16(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(comm.all_reduce, np.zeros(x.nbytes // 2, ml_dtypes.bfloat16))


def asynchronous(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(lambda x: comm.all_reduce(x, async_op=True).wait(), x)


def barrier(comm: Any, x: Any) -> Callable[[], object]:
    return repeat(comm.barrier)


WAYS = {
    "no operation": nothing,
    "launched from C": launched,
    "one cffi call": cffi_alone,
    'persistent("all_reduce", x)': persistent,
    "all_reduce(x)": in_place,
    "all_reduce(x, out=y)": out_of_place,
    "all_reduce(x), x symmetric": symmetric,
    "all_reduce(x), bfloat16": bfloat16,
    "all_reduce(x, async_op=True).wait()": asynchronous,
    "barrier()": barrier,
}


@pytest.mark.parametrize("size_bytes", [8, 8192])
@pytest.mark.parametrize("way", list(WAYS))
def test_call(benchmark: Any, comm: Any, way: str, size_bytes: int) -> None:
    run = WAYS[way](comm, np.zeros(size_bytes // 4, np.float32))
    benchmark.extra_info["way"] = way
    benchmark.extra_info["size_bytes"] = size_bytes
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
