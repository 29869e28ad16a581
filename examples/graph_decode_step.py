"""A decode step as one graph: 64 all-reduces of 8 KiB with computing between, launched by one call.

    jetstream run -n 2 --bind core examples/graph_decode_step.py [--dtype bfloat16] [--steps 500]

Every rank holds some columns of each of 32 layers. After each half of a layer, a kernel compiled by
Numba, the ranks add up what they have. The same kernels and the same all-reduces are launched in
three ways, which take turns step by step: from Python with ordinary calls, from Python with calls
prepared once, and as one graph, in which no line of Python runs between the first kernel and the
last. All three must give the same bits. The model is synthetic: random weights, one set for the
first and one for the second halves of all layers, and no cache of keys and values.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import jetstream

try:
    import numba
except ImportError:
    numba = None

MESSAGE_BYTES = 8192
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WARMUP_STEPS = 5
#: How far the kernels may be from NumPy, which adds up in another order.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
EPSILON = np.float32(1e-5)

Floats = NDArray[np.float32]


class Model:
    """One rank's part of the model, in one piece of memory that the kernel gets the address of.

    ``start``: the token's vector; ``x``: what becomes of it; ``message``: this rank's part of a
    sum, then the sum (``message_floats`` of ``block``, of ``dtype``); ``down[i]`` of shape
    (columns, hidden) and ``up[i]``, likewise: weights of the i-th half of all layers.
    """

    def __init__(self, rank: int, size: int, dtype: str, columns: int, layers: int) -> None:
        self.hidden = MESSAGE_BYTES // DTYPES[dtype].itemsize
        self.columns = columns
        self.halves = 2 * layers
        hidden, message_floats = self.hidden, MESSAGE_BYTES // 4
        sizes = [1, hidden, hidden, hidden, hidden, message_floats, columns]
        sizes += [columns * hidden] * 4
        offsets = np.cumsum([0, *((n + 15) // 16 * 16 for n in sizes)])  # whole cache lines
        self.offsets = tuple(int(offset) for offset in offsets)
        self.block = np.zeros(self.offsets[-1] + 16, np.float32)
        skip = -self.block.ctypes.data % 64 // 4
        self.block = self.block[skip : skip + self.offsets[-1]]
        parts = [self.block[o : o + n] for o, n in zip(self.offsets, sizes, strict=False)]
        self.start, self.x = parts[1], parts[2]
        self.message = parts[5].view(DTYPES[dtype])
        self.down = [parts[7].reshape(columns, hidden), parts[9].reshape(columns, hidden)]
        self.up = [parts[8].reshape(columns, hidden), parts[10].reshape(columns, hidden)]
        random = np.random.default_rng(rank)
        for down, up in zip(self.down, self.up, strict=True):
            down[:] = random.standard_normal(down.shape, np.float32) / np.float32(hidden**0.5)
            scale = np.float32((columns * size) ** 0.5)
            up[:] = random.standard_normal(up.shape, np.float32) / scale
        self.start[:] = np.random.default_rng(7).standard_normal(hidden, np.float32)


def compile_compute(model: Model) -> Any:
    """This rank's part of a sum, in the block: RMS norm of ``x``, ``down``, SiLU, ``up``."""
    hidden, columns = model.hidden, model.columns
    x_at, h_at, y_at, inner = (model.offsets[i] for i in (2, 3, 4, 6))
    weights = columns * hidden
    one, epsilon = np.float32(1), EPSILON

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def compute(block: Any, down_at: int, up_at: int) -> None:
        x = block[x_at : x_at + hidden]
        h = block[h_at : h_at + hidden]
        y = block[y_at : y_at + hidden]
        t = block[inner : inner + columns]
        down = block[down_at : down_at + weights].reshape((columns, hidden))
        up = block[up_at : up_at + weights].reshape((columns, hidden))
        square = np.float32(0)
        for i in range(hidden):
            square += x[i] * x[i]
        scale = one / np.sqrt(square / np.float32(hidden) + epsilon)
        for i in range(hidden):
            h[i] = x[i] * scale
            y[i] = np.float32(0)
        for j in range(columns):
            total = np.float32(0)
            for i in range(hidden):
                total += down[j, i] * h[i]
            t[j] = total / (one + np.exp(-total))
        for j in range(columns):
            for i in range(hidden):
                y[i] += t[j] * up[j, i]

    return compute


def compile_kernel(model: Model) -> Any:
    """The kernel ``void half_layer(void *block)``: all that stands between two all-reduces.

    It counts its own calls: the first of a step starts from the token, each adds the sum that has
    come to ``x``, and all but the last compute this rank's part of the next one.
    """
    hidden, halves = model.hidden, model.halves
    count, start, x_at, _, y_at, message, _, down_0, up_0, down_1, up_1, end = model.offsets
    is_narrow = model.message.dtype != np.float32
    compute = compile_compute(model)

    @numba.cfunc("void(voidptr)", fastmath=True)  # type: ignore[untyped-decorator]
    def half_layer(pointer: Any) -> None:
        block = numba.carray(pointer, end, dtype=np.float32)
        calls = block[count : count + 1].view(np.uint32)
        x = block[x_at : x_at + hidden]
        y = block[y_at : y_at + hidden]
        bits = y.view(np.uint32)
        wide = block[message : message + hidden if not is_narrow else message + hidden // 2]
        narrow = wide.view(np.uint16)
        call = calls[0]
        if call == 0:
            for i in range(hidden):
                x[i] = block[start + i]
        elif is_narrow:
            for i in range(hidden):
                bits[i] = np.uint32(narrow[i]) << np.uint32(16)
            for i in range(hidden):
                x[i] += y[i]
        else:
            for i in range(hidden):
                x[i] += wide[i]
        calls[0] = call + 1 if call < halves else 0
        if call == halves:
            return
        if call % 2 == 0:
            compute(block, down_0, up_0)
        else:
            compute(block, down_1, up_1)
        if is_narrow:  # rounded to the nearest, to even in the middle
            for i in range(hidden):
                odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
                narrow[i] = np.uint16((bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        else:
            for i in range(hidden):
                wide[i] = y[i]

    return half_layer


def decode_by_numpy(comm: jetstream.Communicator, model: Model) -> Floats:
    """What the kernel should compute, in NumPy."""
    x = model.start.copy()
    for half in range(model.halves):
        h = x / np.sqrt(np.mean(x * x) + EPSILON)
        t = model.down[half % 2] @ h
        part = (t / (1 + np.exp(-t))) @ model.up[half % 2]
        x = x + comm.all_reduce(part.astype(model.message.dtype)).astype(np.float32)
    return x


# --- the three ways ---------------------------------------------------------------------------


def make_ways(comm: jetstream.Communicator, model: Model) -> dict[str, Callable[[], Any]]:
    """How a step can be launched, by name."""
    kernel = compile_kernel(model)
    call_kernel = kernel.ctypes
    pointer = ctypes.c_void_p(model.block.ctypes.data)
    message, halves = model.message, model.halves
    reduce = comm.persistent("all_reduce", message)

    def by_calls() -> None:
        for _ in range(halves):
            call_kernel(pointer)
            comm.all_reduce(message)
        call_kernel(pointer)

    def by_persistent_calls() -> None:
        for _ in range(halves):
            call_kernel(pointer)
            reduce()
        call_kernel(pointer)

    with comm.capture() as graph:
        for _ in range(halves):
            graph.call(kernel, model.block)
            comm.all_reduce(message)
        graph.call(kernel, model.block)
    return {
        "Python, ordinary calls": by_calls,
        "Python, persistent calls": by_persistent_calls,
        "one graph": graph,
    }


def take_turns(
    comm: jetstream.Communicator, ways: dict[str, Callable[[], Any]], model: Model, steps: int
) -> tuple[dict[str, NDArray[np.int64]], dict[str, Floats]]:
    """Runs every way's steps, one after another, in changing order.

    Returns the time of each step in ns, of the slowest rank, and what each way computed last.
    """
    times = {name: np.zeros(steps, np.int64) for name in ways}
    outputs: dict[str, Floats] = {}
    names = list(ways)
    gc.disable()
    for step in range(-WARMUP_STEPS, steps):
        first = step % len(names)
        for name in names[first:] + names[:first]:
            run = ways[name]
            model.x[:] = 0
            comm.barrier()
            begin_ns = time.perf_counter_ns()
            run()
            if step >= 0:
                times[name][step] = time.perf_counter_ns() - begin_ns
            outputs[name] = model.x.copy()
    gc.enable()
    return {name: comm.all_reduce(times[name], "max") for name in names}, outputs


def check(
    comm: jetstream.Communicator, outputs: dict[str, Floats], expected: Floats, dtype: str
) -> list[str]:
    """What is wrong with the results: nothing, if all went well."""
    wrong = []
    names = list(outputs)
    for name, output in outputs.items():
        if not np.array_equal(output, outputs[names[0]]):
            wrong.append(f"{name}: not the bits of {names[0]}")
        if not (comm.all_gather(output[None]) == output).all():
            wrong.append(f"{name}: not the same bits on all ranks")
        if not np.abs(output - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max():
            wrong.append(f"{name}: not what NumPy computes")
    return wrong


def main() -> int:
    arguments = parse_arguments()
    if numba is None:
        print("the kernels of this example need Numba: pip install numba", file=sys.stderr)
        return 2
    with jetstream.init() as comm:
        model = Model(comm.rank, comm.size, arguments.dtype, arguments.columns, arguments.layers)
        ways = make_ways(comm, model)
        times, outputs = take_turns(comm, ways, model, arguments.steps)
        wrong = check(comm, outputs, decode_by_numpy(comm, model), arguments.dtype)
        if comm.rank == 0:
            print(
                f"decode step on {comm.size} rank(s): {arguments.layers} layers, hidden size "
                f"{model.hidden}, {model.columns} columns a rank; {model.halves} all-reduces of "
                f"{MESSAGE_BYTES // 1024} KiB {arguments.dtype}, {arguments.steps} steps; "
                f"us a step\n{'':26} {'p50':>9} {'p99':>9} {'p99.9':>9}"
            )
            for name, took_ns in times.items():
                row = np.percentile(took_ns, (50, 99, 99.9)) / 1e3
                print(f"{name:26} {row[0]:9.1f} {row[1]:9.1f} {row[2]:9.1f}")
        wrong_count = int(comm.all_reduce(np.array([len(wrong)]))[0])
        if wrong:
            print(*wrong, sep="\n")
        elif comm.rank == 0 and wrong_count == 0:
            print("all three ways give the same bits, on all ranks")
    return 1 if wrong_count else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="a tensor-parallel decode step as one graph, beside the same from Python"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of messages")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="timed steps (300)")
    parser.add_argument("--layers", type=int, default=32, metavar="N", help="(32)")
    parser.add_argument(
        "--columns", type=int, default=16, metavar="N", help="a rank's columns of a layer (16)"
    )
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.layers, arguments.columns) < 1:
        parser.error("--steps, --layers and --columns must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
