"""Devices in Numba: compiled loops in Python threads, which run without the GIL.

`jetstream run -n 2 examples/device/numba_loop.py` runs two programs:

    loops  several threads, each with a queue pair of its own: compute, launch an all-reduce, wait
    ring   several threads that share one queue pair: put to the next rank with a signal, wait for
           the signal of the previous rank; nobody polls for completions

It needs Numba: `pip install numba`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
from numba import njit
from numba.core.typing import cffi_utils

import jetstream
from jetstream import _native, transport
from jetstream.transport import CQE_DTYPE, SQE_DTYPE

# Compiled code can now call the functions of js_api.h as what they are: calls of C.
cffi_utils.register_module(_native)
launch = _native.lib.js_device_launch
post = _native.lib.js_device_post
poll = _native.lib.js_device_poll
wait = _native.lib.js_device_wait
wait_signal = _native.lib.js_device_wait_signal

OK = _native.lib.JS_OK
AGAIN = _native.lib.JS_ERR_AGAIN  # nothing for 100 ms
FULL = _native.lib.JS_ERR_FULL
PUT = _native.lib.JS_SQ_PUT
ADD = _native.lib.JS_SIGNAL_ADD
UNSIGNALLED = _native.lib.JS_SQ_UNSIGNALLED
INLINE = _native.lib.JS_SQ_INLINE
PATIENCE = 600  # times 100 ms


@njit(nogil=True)
def all_reduce_loop(qp, plan, x, rank, size, steps, cqe):
    """Returns (status, wrong elements). `cqe` is room for a completion."""
    wrong = 0
    for step in range(steps):
        for i in range(x.size):
            x[i] = (step + i) % 1000 + rank  # what a model would compute
        status = launch(qp, step, plan, x.ctypes.data, x.ctypes.data)
        if status != OK:
            return status, wrong
        status = AGAIN
        for _ in range(PATIENCE):
            status = wait(qp, cqe.ctypes.data)
            if status != AGAIN:
                break
        if status == OK:
            status = cqe[0].status
        if status != OK:
            return status, wrong
        for i in range(x.size):
            wrong += x[i] != size * ((step + i) % 1000) + size * (size - 1) // 2
    return OK, wrong


@njit(nogil=True)
def ring_loop(qp, signal, sqe, cqe, row, peer, steps):
    """Returns (status, wrong values). `row` is where the previous rank puts, a value after another;
    it may be as many steps ahead as there are places."""
    wrong = 0
    places = row.size
    for step in range(steps):
        sqe[0].opcode = PUT
        sqe[0].flags = INLINE | UNSIGNALLED
        sqe[0].peer = peer
        sqe[0].source_addr = 1000 * signal + step  # inline: the bytes themselves
        sqe[0].bytes = 8
        sqe[0].target_addr = 8 * (signal * places + step % places)
        sqe[0].signal = signal
        sqe[0].signal_op = ADD
        sqe[0].signal_value = 1
        status = post(qp, sqe.ctypes.data)
        while status == FULL:
            poll(qp, cqe.ctypes.data)  # a round of the data plane makes room
            status = post(qp, sqe.ctypes.data)
        if status != OK:
            return status, wrong
        for _ in range(PATIENCE):
            status = wait_signal(qp, signal, step + 1)
            if status != AGAIN:
                break
        if status != OK:
            return status, wrong
        wrong += row[step % places] != 1000 * signal + step
    return OK, wrong


Result = tuple[int, int]


def run_threads(bodies: list[Callable[[], Result]]) -> tuple[list[Result], float]:
    """Runs each in a thread of its own; returns what they return, and how many seconds it took."""
    results: list[Result] = [(AGAIN, 0)] * len(bodies)

    def run(index: int) -> None:
        results[index] = bodies[index]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - start_s


def loops(comm: jetstream.Communicator, options: argparse.Namespace) -> tuple[list[Result], float]:
    """Every thread has a queue pair, so nothing is shared between them."""
    prepared, bodies = [], []
    with ExitStack() as stack:
        for _ in range(options.threads):
            qp = stack.enter_context(transport.QueuePair(comm, threads="one"))
            x = comm.empty(options.count)
            prepared.append(qp.prepare("all_reduce", x))  # kept: x is registered as long
            cqe = np.zeros(1, CQE_DTYPE)
            fixed = (qp.address, prepared[-1].key, x, comm.rank, comm.size)
            all_reduce_loop(*fixed, 0, cqe)  # compiles
            bodies.append(partial(all_reduce_loop, *fixed, options.steps, cqe))
        return run_threads(bodies)


def ring(comm: jetstream.Communicator, options: argparse.Namespace) -> tuple[list[Result], float]:
    """All threads post to one queue pair; each has its signal."""
    bodies = []
    peer = (comm.rank + 1) % comm.size
    with transport.QueuePair(comm) as qp:
        slots = comm.zeros((options.threads, comm.size), "uint64")
        window = qp.window(slots)
        for signal in range(options.threads):
            sqe, cqe = np.zeros(1, SQE_DTYPE), np.zeros(1, CQE_DTYPE)
            sqe["key"] = window.key(peer)
            fixed = (qp.address, signal, sqe, cqe, slots[signal], peer)
            ring_loop(*fixed, 0)  # compiles
            bodies.append(partial(ring_loop, *fixed, options.steps))
        results = run_threads(bodies)
        qp.drain()
        comm.barrier()  # nobody closes a window that others still put into
        return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="devices of each rank (2)")
    parser.add_argument("--steps", type=int, default=2000, help="of each device (2000)")
    parser.add_argument("--count", type=int, default=2048, help="float32 elements (2048)")
    options = parser.parse_args()
    failed = False
    with jetstream.init() as comm:
        for program in (loops, ring):
            results, seconds = program(comm, options)
            each_us = 1e6 * seconds / options.steps
            wrong = sum(count for _, count in results)
            statuses = sorted({status for status, _ in results})
            failed = failed or wrong != 0 or statuses != [OK]
            print(
                f"rank {comm.rank}: {program.__name__}: {options.threads} threads of "
                f"{options.steps} steps, {each_us:.1f} us a step, {wrong} wrong, status {statuses}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
