"""A decode step of a tensor-parallel model in the shape of Llama 8B: what its all-reduces cost.

    jetstream run -n 2 --bind core examples/decode_step.py [--batch 1 4] [--dtype bfloat16]
    jetstream run -n 2 --bind core examples/decode_step.py --peer gloo
    mpirun -n 2 --bind-to core python examples/decode_step.py --peer mpi --peer gloo

Every rank multiplies with its part of the weights, writes the product into the buffer of an
all-reduce, and all ranks add up: twice per layer, 64 times per token. The contestants take turns
step by step, on the same numbers: jetstream with private and with symmetric arrays, and peers that
are installed beside it. The model is synthetic and scaled down (--shrink), the messages are not.
"""

from __future__ import annotations

import os

# One BLAS thread per rank, said before NumPy loads its BLAS: the ranks are the parallelism.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import gc
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from peers import PEERS, Peer, open_peers

import jetstream

LAYERS = 32
HIDDEN = 4096
QUERY = 4096  # 32 heads of 128
KEYS_AND_VALUES = 2048  # 8 heads of 128, twice
MLP = 14336
REDUCES = 2 * LAYERS
WARMUP_STEPS = 3
#: Peers add up in another order, in bfloat16 with roundings in between.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shard:
    """One rank's part of a layer, which all layers share; float32."""

    attention_in: Floats  # (HIDDEN, query + keys and values)
    attention_out: Floats  # (query, HIDDEN)
    mlp_in: Floats  # (HIDDEN, 2 * columns)
    mlp_out: Floats  # (columns, HIDDEN)


def make_shard(rank: int, size: int, shrink: int) -> Shard:
    """Random weights, of a size that keeps the numbers moderate."""
    random = np.random.default_rng(rank)

    def matrix(rows: int, columns: int, fan_in: int) -> Floats:
        weights = random.standard_normal((rows, columns), dtype=np.float32)
        return weights / np.float32(fan_in**0.5)

    query, columns = QUERY // (shrink * size), MLP // (shrink * size)
    keys_and_values = KEYS_AND_VALUES // (shrink * size)
    return Shard(
        attention_in=matrix(HIDDEN, query + keys_and_values, HIDDEN),
        attention_out=matrix(query, HIDDEN, query * size),
        mlp_in=matrix(HIDDEN, 2 * columns, HIDDEN),
        mlp_out=matrix(columns, HIDDEN, columns * size),
    )


class Contestant:
    """A way to add up a buffer over the ranks, with the times of its calls.

    ``buffer`` takes a rank's share of a product; ``reduce()`` returns the array with the sum.
    """

    def __init__(self, name: str, buffer: Any, reduce: Callable[[], Any], steps: int) -> None:
        self.name = name
        self._buffer = buffer
        self._reduce = reduce
        self._product = np.empty(buffer.shape, np.float32)
        self.times_ns = np.zeros((steps * REDUCES, 2), np.int64)  # entry, exit
        self.step_ns = np.zeros(steps, np.int64)
        self.count = 0

    def add_up(self, left: Floats, weights: Floats) -> Floats:
        """The product of all ranks' parts: (batch, HIDDEN)."""
        if self._buffer.dtype == np.float32:
            np.matmul(left, weights, out=self._buffer)
        else:  # NumPy multiplies no bfloat16
            self._buffer[...] = np.matmul(left, weights, out=self._product)
        enter_ns = time.perf_counter_ns()
        total = self._reduce()
        exit_ns = time.perf_counter_ns()
        if self.count < len(self.times_ns):
            self.times_ns[self.count] = enter_ns, exit_ns
        self.count += 1
        result: Floats = total.astype(np.float32)
        return result


def normalize(x: Floats) -> Floats:
    """RMS norm over the hidden dimension."""
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(1e-5))
    result: Floats = x / scale
    return result


def decode(shard: Shard, x: Floats, contestant: Contestant) -> Floats:
    """One token of each sequence through all layers: (batch, HIDDEN) to (batch, HIDDEN).

    In place of attention over a cache, which needs no communication, the query goes on as it is.
    """
    query = shard.attention_out.shape[0]
    for _ in range(LAYERS):
        heads = normalize(x) @ shard.attention_in
        x = x + contestant.add_up(heads[:, :query], shard.attention_out)
        gate, up = np.split(normalize(x) @ shard.mlp_in, 2, axis=1)
        x = x + contestant.add_up(gate / (1 + np.exp(-gate)) * up, shard.mlp_out)
    return x


# --- contestants ------------------------------------------------------------------------------


def jetstream_contestants(
    comm: jetstream.Communicator, shape: tuple[int, int], dtype: Any, steps: int
) -> list[Contestant]:
    private = np.zeros(shape, dtype)
    shared = comm.zeros(shape, dtype)
    partial, total = comm.zeros(shape, dtype), comm.zeros(shape, dtype)
    prepared = comm.zeros(shape, dtype)
    return [
        Contestant("jetstream, private", private, lambda: comm.all_reduce(private), steps),
        Contestant("jetstream, symmetric", shared, lambda: comm.all_reduce(shared), steps),
        Contestant(
            "jetstream, persistent",
            prepared,
            comm.persistent("all_reduce", prepared),
            steps,
        ),
        Contestant(
            "jetstream, symmetric, out=",
            partial,
            lambda: comm.all_reduce(partial, out=total),
            steps,
        ),
    ]


def peer_contestant(peer: Peer, shape: tuple[int, int], dtype: Any, steps: int) -> Contestant:
    x = np.zeros(shape, dtype)
    return Contestant(peer.name, x, lambda: peer.reduce(x), steps)


# --- measuring --------------------------------------------------------------------------------


def take_turns(
    comm: jetstream.Communicator, shard: Shard, contestants: list[Contestant], x: Floats
) -> list[Floats]:
    """Runs every contestant's steps, one after another; returns what each computed last."""
    outputs = [x] * len(contestants)
    steps = len(contestants[0].step_ns)
    gc.disable()
    for step in range(-WARMUP_STEPS, steps):
        order = range(len(contestants))
        for index in order if step % 2 else reversed(order):
            contestant = contestants[index]
            contestant.count = max(step, 0) * REDUCES
            comm.barrier()
            begin_ns = time.perf_counter_ns()
            outputs[index] = decode(shard, x, contestant)
            if step >= 0:
                contestant.step_ns[step] = time.perf_counter_ns() - begin_ns
    gc.enable()
    return outputs


@dataclass(frozen=True)
class Summary:
    """What a contestant's all-reduces took, in us.

    All ranks live on one host, whose clock is one for all processes.
    """

    inside: Floats  # per step, the slowest rank: waiting for the others' matrix products included
    working: Floats  # per step, from the entry of the last rank to the exit of the last
    each: Floats  # the same per all-reduce
    share: float  # of `inside` in the step, mean


def summarize(comm: jetstream.Communicator, contestant: Contestant) -> Summary:
    everyone = comm.all_gather(contestant.times_ns).reshape(comm.size, -1, REDUCES, 2)
    enter_ns, exit_ns = everyone[..., 0], everyone[..., 1]
    inside = (exit_ns - enter_ns).sum(axis=2).max(axis=0) / 1e3
    each = (exit_ns.max(axis=0) - enter_ns.max(axis=0)) / 1e3
    share = float((inside * 1e3 / contestant.step_ns).mean())
    return Summary(inside, each.sum(axis=1), each.reshape(-1), share)


def check(
    comm: jetstream.Communicator, names: list[str], outputs: list[Floats], dtype: str
) -> list[str]:
    """What is wrong with the results: nothing, if all went well."""
    wrong = []
    for name, output in zip(names, outputs, strict=True):
        if name.startswith("jetstream"):
            if not np.array_equal(output, outputs[0]):
                wrong.append(f"{name}: not the bits of {names[0]}")
            if not (comm.all_gather(output[None]) == output).all():
                wrong.append(f"{name}: not the same bits on all ranks")
        elif np.abs(output - outputs[0]).max() > TOLERANCE[dtype] * np.abs(output).max():
            wrong.append(f"{name}: not the result of {names[0]}")
    return wrong


def run(
    comm: jetstream.Communicator, arguments: argparse.Namespace, batch: int, peers: list[Peer]
) -> list[str]:
    """Measures all contestants at one batch size; rank 0 prints. Returns what went wrong."""
    dtype = np.dtype(ml_dtypes.bfloat16 if arguments.dtype == "bfloat16" else arguments.dtype)
    shape = (batch, HIDDEN)
    contestants = jetstream_contestants(comm, shape, dtype, arguments.steps)
    notes = []
    for peer in peers:
        if dtype == ml_dtypes.bfloat16 and not peer.has_bfloat16:
            notes.append(f"without {peer.name}: it has no bfloat16")
        else:
            contestants.append(peer_contestant(peer, shape, dtype, arguments.steps))
    shard = make_shard(comm.rank, comm.size, arguments.shrink)
    x = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    outputs = take_turns(comm, shard, contestants, x)
    rows = [(c.name, summarize(comm, c)) for c in contestants]
    if comm.rank == 0:
        size_kib = batch * HIDDEN * dtype.itemsize / 1024
        print(
            f"batch {batch}: {REDUCES} all-reduces of {size_kib:.0f} KiB {arguments.dtype} a step, "
            f"{arguments.steps} steps; us\n"
            f"{'':28} {'per step, with waiting':26}   {'from the last rank on':17}   each\n"
            f"{'':28} {'p50':>8} {'p99':>8} {'of step':>8}   {'p50':>8} {'p99':>8}"
            f"   {'p50':>8} {'p99.9':>8}"
        )
        for name, row in rows:
            a, b = np.percentile(row.inside, (50, 99)), np.percentile(row.working, (50, 99))
            c = np.percentile(row.each, (50, 99.9))
            print(
                f"{name:28} {a[0]:8.0f} {a[1]:8.0f} {row.share:8.1%}   {b[0]:8.0f} {b[1]:8.0f}"
                f"   {c[0]:8.2f} {c[1]:8.1f}"
            )
        print(*notes, sep="\n", end="\n\n" if notes else "\n", flush=True)
    return check(comm, [c.name for c in contestants], outputs, arguments.dtype)


def main() -> int:
    arguments = parse_arguments()
    with ExitStack() as stack:
        comm = stack.enter_context(jetstream.init())
        if QUERY % (arguments.shrink * comm.size) or KEYS_AND_VALUES % (
            arguments.shrink * comm.size
        ):
            if comm.rank == 0:
                print("ranks times --shrink must divide 2048: take powers of two", file=sys.stderr)
            return 2
        peers, missing = open_peers(comm, arguments.peer, stack)
        if comm.rank == 0 and missing:
            print(*missing, sep="\n")
        if comm.rank == 0:
            print(
                f"decode step of a model in the shape of Llama 8B on {comm.size} rank(s): {LAYERS} "
                f"layers, hidden size {HIDDEN}.\nScaled down: heads and MLP columns are 1/"
                f"{arguments.shrink} of the model's, the layers share one set of random float32 "
                "weights,\nand there is no cache of keys and values.\n"
            )
        wrong = [text for n in arguments.batch for text in run(comm, arguments, n, peers)]
        wrong_count = int(comm.all_reduce(np.array([len(wrong)]))[0])
        if wrong:
            print(*wrong, sep="\n")
        elif comm.rank == 0 and wrong_count == 0:
            print("all contestants agree; jetstream's bits are equal on all ranks")
    return 1 if wrong_count else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="what the all-reduces of a tensor-parallel decode step cost"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 4], metavar="N", help="sequences (1 4)"
    )
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32", help="of messages")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="timed steps (60)")
    parser.add_argument(
        "--shrink", type=int, default=32, metavar="N", help="scale down the matrices by this (32)"
    )
    parser.add_argument(
        "--peer", action="append", choices=PEERS, default=[], help="compare with it"
    )
    arguments = parser.parse_args()
    if min(arguments.batch) < 1 or arguments.steps < 1 or arguments.shrink < 1:
        parser.error("--batch, --steps and --shrink must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
