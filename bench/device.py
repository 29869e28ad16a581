"""Operations that a device launches, beside the same launched by the host.

    python bench/device.py launches    one all-reduce, launched by host, graph, device, by hand
    python bench/device.py apart       device and host while Python is busy, or its launcher stopped
    python bench/device.py overlap     an all-reduce behind a matrix product, with an engine thread

Two ranks, one per core. The device is a thread in C (js_device_repeat) on a queue pair of its own.
Times are in us, of the slower rank of each operation; a table holds medians of the rounds.
`--under` is put before every command: 'chrt -r 1' keeps other programs off the cores. In `apart`
the device's thread, or the host's, goes before the others of its process by real-time priority,
where that is permitted: with more threads than cores, only so is seen what Python alone does to it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 300
SIZES = (8, 64, 1024, 8192, 65536, 262144, 1048576)
APART_BYTES = 8192
APART_BURSTS = 20
APART_BURST = {"device": 10000, "host": 1000}  # in a row: real-time priority must let go at times
APART_BURST_BUSY = {"device": 10000, "host": 5}  # each may wait for a whole collection
PAUSE_S = 0.02
STOP_S = 5.0
OVERLAP_BYTES = 1 << 20
HEAP_OBJECTS = 1_000_000  # what gc.collect() has to look through

Latencies = np.ndarray[Any, np.dtype[np.uint64]]


# --- one rank ----------------------------------------------------------------------------------


class Rank:
    """What every measurement needs of a rank."""

    def __init__(self, **options: Any) -> None:
        import jetstream  # here: the report needs none of it

        self.comm = jetstream.init(**options)
        self.rank = self.comm.rank

    def slower(self, latencies: Latencies) -> dict[str, float]:
        """Percentiles of the slower rank of each operation, in us."""
        both = self.comm.all_gather(latencies).reshape(self.comm.size, -1)
        us = both.max(axis=0) / 1000.0
        quantiles = np.percentile(us, [50, 99, 99.9, 100])
        return dict(zip(("p50", "p99", "p999", "max"), map(float, quantiles), strict=True))

    def device(self, size_bytes: int) -> Callable[[int], Latencies]:
        """A loop of all-reduces in C, on a queue pair for one thread."""
        from jetstream._core.native import check, ffi, lib
        from jetstream.transport import QueuePair

        qp = QueuePair(self.comm, threads="one")
        x = self.comm.zeros(size_bytes // 4, "float32")
        launch = qp.prepare("all_reduce", x)
        entry = ffi.new("js_sqe *")
        entry.opcode = lib.JS_SQ_LAUNCH
        entry.key = launch.key
        entry.source_addr, entry.target_addr = launch.source_addr, launch.target_addr

        def run(iterations: int, _keep: Any = launch) -> Latencies:
            latency_ns = np.zeros(iterations, dtype=np.uint64)
            out = ffi.from_buffer("uint64_t[]", latency_ns)
            check(lib.js_device_repeat(qp.address, entry, iterations, out))
            return latency_ns

        return run


def time_calls(call: Callable[[], Any], iterations: int) -> Latencies:
    """How long each of so many calls takes, in ns."""
    latency_ns = np.zeros(iterations, dtype=np.uint64)
    clock = time.perf_counter_ns
    for i in range(iterations):
        begin = clock()
        call()
        latency_ns[i] = clock() - begin
    return latency_ns


def run_launches() -> dict[str, Any]:
    """All ways to launch one all-reduce, by size."""
    rank = Rank()
    comm = rank.comm
    found: dict[str, Any] = {}
    for size in SIZES:
        iterations = 20000 if size <= 8192 else 2000
        x = comm.zeros(size // 4, "float32")
        step = comm.persistent("all_reduce", x)
        with comm.capture() as graph:
            comm.all_reduce(x)
        device = rank.device(size)
        ways: dict[str, Callable[[int], Latencies]] = {
            "host": lambda n, x=x: time_calls(lambda: comm.all_reduce(x), n),
            "persistent": lambda n, step=step: time_calls(step, n),
            "graph": lambda n, graph=graph: time_calls(graph, n),
            "device": device,
        }
        for way, run in ways.items():
            run(iterations // 10)
            comm.barrier()
            found[f"{way} {size}"] = rank.slower(run(iterations))
        graph.close()
    return found


def hog(stop: threading.Event) -> None:
    """Keep the GIL: bytecode, and collections of a large heap."""
    ballast = [[i] for i in range(HEAP_OBJECTS)]
    while not stop.is_set():
        total = 0
        for i in range(200_000):
            total += i
        gc.collect()
    del ballast


def stop_parent(stop: threading.Event) -> None:
    """Stop the process that started the ranks for a while; it goes on whatever happens here."""
    parent = os.getppid()
    guard = subprocess.Popen(["sh", "-c", f"sleep {STOP_S + 2}; kill -CONT {parent}"])
    os.kill(parent, signal.SIGSTOP)
    try:
        stop.wait(STOP_S)
    finally:
        os.kill(parent, signal.SIGCONT)
        guard.terminate()
        guard.wait()


def at_priority(work: Callable[[], None]) -> threading.Thread:
    """Start a thread that goes before the others of its core, where that is permitted."""

    def main() -> None:
        with contextlib.suppress(PermissionError):  # of this thread alone
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_RR, os.sched_param(1))
        work()

    thread = threading.Thread(target=main)
    thread.start()
    return thread


def run_apart() -> dict[str, Any]:
    """Device and host, while the main thread sleeps, is busy, or its control process is stopped."""
    rank = Rank()
    comm = rank.comm
    x = comm.zeros(APART_BYTES // 4, "float32")
    device = rank.device(APART_BYTES)

    def host(iterations: int) -> Latencies:
        return time_calls(lambda: comm.all_reduce(x), iterations)

    if comm.size > 1 and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(
            0, os.SCHED_OTHER, os.sched_param(0)
        )  # the main thread's turn is last
    found: dict[str, Any] = {}
    for name, run in (("device", device), ("host", host)):
        for state in ("idle", "busy", "stopped"):
            parts: list[Latencies] = []
            over, stop = threading.Event(), threading.Event()
            length = (APART_BURST_BUSY if state == "busy" else APART_BURST)[name]
            pause_s = STOP_S / APART_BURSTS if state == "stopped" else PAUSE_S

            def bursts(
                run: Any = run,
                parts: Any = parts,
                over: Any = over,
                length: int = length,
                pause_s: float = pause_s,
            ) -> None:
                for _ in range(APART_BURSTS):
                    time.sleep(pause_s)
                    parts.append(run(length + 1)[1:])  # in the first the ranks meet
                over.set()

            comm.barrier()
            thread = at_priority(bursts)
            if state == "busy":
                hogging = threading.Thread(target=hog, args=(stop,))
                hogging.start()
                over.wait()
                stop.set()
                hogging.join()
            elif state == "stopped" and rank.rank == 0:
                stop_parent(over)
            thread.join()
            found[f"{name} {state}"] = rank.slower(np.concatenate(parts))
    return found


def run_overlap(mode: str) -> dict[str, Any]:
    """A matrix product alone, an all-reduce alone, both one after the other, and overlapped."""
    rank = Rank(progress=mode)
    comm = rank.comm
    x = comm.zeros(OVERLAP_BYTES // 4, "float32")
    a = np.random.default_rng(0).random((256, 256), dtype=np.float32)

    def compute() -> None:
        a @ a

    def apart() -> None:
        comm.all_reduce(x)
        compute()

    def together() -> None:
        work = comm.all_reduce(x, async_op=True)
        compute()
        work.wait()

    cases = {"compute": compute, "reduce": lambda: comm.all_reduce(x)}
    cases |= {"apart": apart, "together": together}
    found = {}
    for name, case in cases.items():
        time_calls(case, 20)
        comm.barrier()
        found[name] = rank.slower(time_calls(case, 300))
    return found


# --- the report --------------------------------------------------------------------------------


def run_ranks(arguments: list[str], under: list[str]) -> dict[str, Any]:
    """One run of two ranks; raises RuntimeError with what they said."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "found.json"
        words = [*under, sys.executable, "-m", "jetstream", "run", "-n", "2", "--bind", "core"]
        words += [str(Path(__file__).resolve()), "--rank-writes", str(file), *arguments]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(words)}:\n{done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def run_floor(program: Path, under: list[str]) -> dict[str, Any]:
    """The hand-written all-reduce of symmetric arrays, and of one line for the smallest."""
    words = [*under, str(program), "--back-to-back"]
    found: dict[str, Any] = {}
    for size in SIZES:
        options = ["--symmetric"] if size > 64 else []
        iterations = 20000 if size <= 8192 else 2000
        text = subprocess.run(
            [*words, *options, f"{size}:{iterations}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        ).stdout
        line = json.loads(text.splitlines()[0])
        found[f"floor {size}"] = {key: line[f"{key}_us"] for key in ("p50", "p99", "p999")}
    return found


def run_mpi(program: Path, mpiexec: Path, under: list[str]) -> dict[str, Any]:
    """MPI_Allreduce called from C; what the library needs stands in the environment."""
    sizes = [f"{size}:{20000 if size <= 8192 else 2000}" for size in SIZES]
    text = subprocess.run(
        [*under, str(mpiexec), "-n", "2", str(program), *sizes],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout
    found: dict[str, Any] = {}
    for line in map(json.loads, text.splitlines()):
        values = {key: line[f"{key}_us"] for key in ("p50", "p99", "p999")}
        found[f"MPI {line['bytes']}"] = values
    return found


def median_of(rounds: list[dict[str, Any]], case: str, key: str) -> float:
    """The median over the rounds."""
    return float(np.median([found[case][key] for found in rounds]))


def print_rows(heads: list[str], cells: list[list[str]]) -> None:
    """A table in Markdown."""
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    for line in cells:
        print("| " + " | ".join(line) + " |")
    print(flush=True)


def build(compiler: list[str], name: str, directory: str) -> Path:
    """A program from its source in c/."""
    program = Path(directory) / name
    source = str(HERE / "c" / f"{name}.c")
    subprocess.run([*compiler, "-O3", "-o", str(program), source], check=True)
    return program


def report_launches(rounds: int, under: list[str], mpicc: Path | None) -> None:
    """Ways by size."""
    with tempfile.TemporaryDirectory() as directory:
        floor = build(["cc", "-march=native"], "floor", directory)
        mpi = build([str(mpicc)], "mpi_all_reduce", directory) if mpicc else None
        found = []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            times = run_ranks(["launches"], under) | run_floor(floor, under)
            if mpi is not None and mpicc is not None:
                times |= run_mpi(mpi, mpicc.with_name("mpiexec"), under)
            found.append(times)
    cells = []
    ways = ["host", "persistent", "graph", "device", "floor", *(["MPI"] if mpicc else [])]
    for size in SIZES:
        times = {way: median_of(found, f"{way} {size}", "p50") for way in ways}
        ratios = [r[f"device {size}"]["p50"] / r[f"floor {size}"]["p50"] for r in found]
        tails = [f"{median_of(found, f'{way} {size}', 'p999'):.2f}" for way in ways]
        line = [str(size), *(f"{times[way]:.2f}" for way in ways), f"{np.median(ratios):.2f}"]
        cells.append([*line, *tails])
    print_rows(
        ["bytes", *ways, "device / floor", *(f"{way} p99.9" for way in ways)],
        cells,
    )


def report_apart(rounds: int, under: list[str]) -> None:
    """Device and host by what else happens."""
    found = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        found.append(run_ranks(["apart"], under))
    keys = ("p50", "p99", "p999", "max")
    states = {
        "idle": "Python main threads asleep",
        "busy": "main threads run bytecode and collect garbage",
        "stopped": f"launcher stopped by SIGSTOP for {STOP_S:g} s",
    }
    cells = [
        [who, text, *(f"{median_of(found, f'{who} {state}', key):.2f}" for key in keys)]
        for who in ("device", "host")
        for state, text in states.items()
    ]
    print_rows(["launched by", "while", "p50", "p99", "p99.9", "max"], cells)


def report_overlap(rounds: int, under: list[str]) -> None:
    """What an engine thread hides, and what it costs."""
    cells = []
    for mode in ("inline", "thread"):
        found = [run_ranks(["overlap", mode], under) for _ in range(rounds)]
        names = ("compute", "reduce", "apart", "together")
        p50 = {name: median_of(found, name, "p50") for name in names}
        hidden = (p50["apart"] - p50["together"]) / min(p50["compute"], p50["reduce"])
        cells.append([mode, *(f"{p50[name]:.0f}" for name in names), f"{100 * hidden:.0f} %"])
    heads = ["progress", "product", "all-reduce", "one after the other", "overlapped", "hidden"]
    print_rows(heads, cells)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("launches", "apart", "overlap"))
    parser.add_argument("mode", nargs="?", default="inline", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="runs to take medians of")
    parser.add_argument("--under", default="", help="put before every command: 'chrt -r 1'")
    parser.add_argument("--mpicc", type=Path, help="launches: beside an MPI called from C")
    parser.add_argument("--rank-writes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_writes is None:
        under = shlex.split(options.under)
        if options.table == "launches":
            report_launches(options.rounds, under, options.mpicc)
        elif options.table == "apart":
            report_apart(options.rounds, under)
        else:
            report_overlap(options.rounds, under)
        return 0
    cases = {"launches": run_launches, "apart": run_apart}
    found = run_overlap(options.mode) if options.table == "overlap" else cases[options.table]()
    if os.environ.get("JETSTREAM_RANK") == "0":
        options.rank_writes.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
