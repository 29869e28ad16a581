"""What an all-reduce of torch tensors costs: `python bench/torch_calls.py`.

Two ranks, each on its core, sum in place: through torch.distributed, through the backend without
torch's wrapper, by comm.all_reduce, on tensors in symmetric memory, on a NumPy array; beside gloo
and the operations in shared memory that vLLM and DeepSpeed have for CPUs. All of them live in the
same two processes and take turns. METHODOLOGY.md says what is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import loop
import peer_torch
from bounds import output, positive, whole
from contestants import BY_NAME, HERE, ContestantError, Workshop, call, note
from report import format_size, parse_size, rows

RANKS = 2
OURS = ("dist", "backend", "comm", "symmetric", "numpy")
PEERS = ("gloo", "vllm", "deepspeed")
SIZES = "8,64,1K,8K,64K,256K,1M,8M,64M"
DTYPES = ("float32", "bfloat16")
PERCENTILES = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9"}
ITERATIONS = 20000
MOVED_BYTES = 1 << 30  # by all iterations of a turn together, at most
TURN_LIMIT_S = 120  # ends ranks that hang
BUILD_S = 900

#: What makes DeepSpeed's module where it is installed, and says where it lies.
FIND_DEEPSPEED = """
import os, torch
os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"}
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
print(torch.__version__, ShareMemCommBuilder().load(verbose=False).__file__)
"""

Libraries = dict[str, Path]
Key = tuple[str, int, str]  # dtype, bytes, way
Samples = dict[Key, dict[int, dict[str, Any]]]  # by round


# --- the ranks -----------------------------------------------------------------------------------


class Turns(loop.Bench):
    """Measures one call at a time and keeps what it finds."""

    def __init__(self, meeting: loop.Meeting, arguments: argparse.Namespace) -> None:
        super().__init__(meeting, arguments, lambda *_arrays: (min, ()))
        self.record: dict[str, Any] = {}

    def _print(self, case: loop.Case, record: dict[str, Any]) -> None:
        self.record = record

    def check(self, x: loop.Array, operation: loop.Operation) -> None:
        """One operation, of which every element is looked at."""
        self._verify("all_reduce", x, x, operation)

    def turn(self, x: loop.Array, operation: loop.Operation) -> dict[str, Any]:
        """Percentiles of as many operations as the budget allows."""
        iterations = max(20, min(ITERATIONS, MOVED_BYTES // x.nbytes))
        case = loop.Case("all_reduce", x.nbytes, iterations)
        self.report(case, partial(self._time_calls, case, x, x, operation))
        return self.record


def as_tensor(torch: Any, array: loop.Array, dtype: str) -> Any:
    """A tensor in the array's memory."""
    tensor = torch.from_numpy(array.view("u1"))
    return tensor.view(getattr(torch, dtype))


def make_calls(
    torch: Any, rank: int, directory: str, libraries: Libraries, ways: list[str]
) -> dict[str, Callable[[Any], object]]:
    """All-reduces of a tensor, by way; the process group of jetstream must be there."""
    dist = torch.distributed
    group = dist.group.WORLD
    options = dist.AllreduceOptions()
    options.asyncOp = False
    comm = group.communicator
    found: dict[str, Callable[[Any], object]] = {
        "dist": dist.all_reduce,
        "backend": lambda x: group.allreduce([x], options),
        **dict.fromkeys(("comm", "symmetric", "numpy"), comm.all_reduce),
    }
    if "gloo" in ways:
        found["gloo"] = partial(dist.all_reduce, group=dist.new_group(backend="gloo"))
    if "vllm" in ways:
        name = Path(directory).name
        found["vllm"] = peer_torch.load_vllm(torch, rank, RANKS, name, libraries["vllm"])
    if "deepspeed" in ways:
        found["deepspeed"] = peer_torch.load_deepspeed(torch, rank, RANKS, libraries["deepspeed"])
    return {way: found[way] for way in ways}


def run_rank(
    rank: int, directory: str, arguments: argparse.Namespace, libraries: Libraries, to: Connection
) -> None:
    """One rank: all cases, each round in another order; rank 0 sends what it finds."""
    loop.pin(rank)
    import torch  # from here on a thread that it starts stays on this core

    torch.set_num_threads(1)
    dist: Any = torch.distributed
    store = f"file://{directory}/store"
    dist.init_process_group("jetstream", init_method=store, rank=rank, world_size=RANKS)
    calls = make_calls(torch, rank, directory, libraries, arguments.ways)
    comm: Any = dist.group.WORLD.communicator  # type: ignore[union-attr]
    meeting = loop.Meeting(f"{directory}/meeting", rank, RANKS)
    for dtype in arguments.dtypes:
        arguments.dtype = dtype
        turns = Turns(meeting, arguments)
        for size_bytes in arguments.sizes:
            for entry in run_case(torch, comm, turns, calls, size_bytes):
                signal.alarm(TURN_LIMIT_S)
                if rank == 0:
                    to.send((dtype, size_bytes, *entry))
    signal.alarm(0)
    if rank == 0:
        to.send(None)
    dist.destroy_process_group()


def run_case(
    torch: Any,
    comm: Any,
    turns: Turns,
    calls: dict[str, Callable[[Any], object]],
    size_bytes: int,
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """All turns of one dtype and size: way, round and record of each."""
    storage, dtype = turns.elements.storage, turns.arguments.dtype
    private = torch.zeros(size_bytes, dtype=torch.uint8).numpy()
    shared = comm.zeros(size_bytes, "uint8")
    plan = {}
    for way, operation in calls.items():
        memory = shared if way == "symmetric" else private
        array = memory.view(storage)
        operand: Any = as_tensor(torch, memory, dtype)
        if way == "numpy":
            operand = array if dtype == "float32" else array.view(dtype)
        plan[way] = array, (operation, (operand,))
        turns.check(*plan[way])
    ways = list(plan)
    for number in range(turns.arguments.rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            yield way, number, turns.turn(*plan[way])


# --- what starts them ----------------------------------------------------------------------------


def find_libraries(arguments: argparse.Namespace) -> tuple[Libraries, list[str]]:
    """Where the peers' modules are; for those that cannot be had, the reasons."""
    found: Libraries = {}
    reasons = []
    if not {"vllm", "deepspeed"} & set(arguments.ways):
        return found, reasons
    workshop = Workshop(arguments.venv, is_installing=not arguments.no_install)
    for name in ("vllm", "deepspeed"):
        if name not in arguments.ways:
            continue
        try:
            python = workshop.prepare(BY_NAME[name], RANKS)[0]
            found[name] = find_library(name, Path(python))
        except ContestantError as error:
            reasons.append(f"{name}: {error}")
            arguments.ways.remove(name)
    return found, reasons


def find_library(name: str, python: Path) -> Path:
    """The module of one peer, for the torch that runs this. Raises ContestantError."""
    import torch

    if name == "vllm":
        files = list(python.parents[1].glob("lib/python*/site-packages/vllm/_C.abi3.so"))
        if not files:
            raise ContestantError("its package has no _C.abi3.so")
        return files[0]
    words = [str(python), "-c", FIND_DEEPSPEED]
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # its build calls ninja
        "TORCH_EXTENSIONS_DIR": str(python.parents[2] / "extensions"),
    }
    version, file = call(words, environment, BUILD_S).split()[-2:]
    if version != torch.__version__:
        raise ContestantError(f"it was built for torch {version}, this one is {torch.__version__}")
    return Path(file)


def measure(arguments: argparse.Namespace, libraries: Libraries) -> Samples:
    """Run the ranks. Raises ContestantError when one of them fails."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    found: Samples = {}
    total = len(arguments.dtypes) * len(arguments.sizes) * len(arguments.ways) * arguments.rounds
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jetstream-bench-") as directory:
        Path(directory, "meeting").touch()
        ranks = [
            context.Process(
                target=run_rank, args=(rank, directory, arguments, libraries, sender), daemon=True
            )
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        done = 0
        try:
            while (entry := receive(receiver, ranks)) is not None:
                dtype, size_bytes, way, number, record = entry
                found.setdefault((dtype, size_bytes, way), {})[number] = record
                done += 1
                if done % len(arguments.ways) == 0:
                    spent_s = time.monotonic() - begin_s
                    where = f"{dtype} {format_size(size_bytes)}, round {number + 1}"
                    note(f"{done}/{total} {where}: {spent_s:.0f} s so far")
            for process in ranks:
                process.join(TURN_LIMIT_S)
        finally:
            for process in ranks:
                process.kill()
                process.join()
    return found


def receive(receiver: Connection, ranks: list[Any]) -> Any:
    """What rank 0 has found next; None at the end. Raises ContestantError."""
    while not receiver.poll(0.5):
        codes = [process.exitcode for process in ranks]
        if any(code not in (None, 0) for code in codes):
            raise ContestantError(f"a rank has failed, the exit codes are {codes}")
    return receiver.recv()


# --- the report ----------------------------------------------------------------------------------


def median(samples: Samples, key: Key, percentile: str) -> float:
    """Of the rounds, in us."""
    return statistics.median(record[percentile] for record in samples[key].values())


def ratio(samples: Samples, slow: Key, fast: Key, percentile: str) -> float:
    """How many times longer one takes: the median of the ratios within the rounds."""
    slower, faster = samples[slow], samples[fast]
    return statistics.median(
        slower[number][percentile] / faster[number][percentile] for number in slower
    )


def render(samples: Samples, arguments: argparse.Namespace, reasons: list[str]) -> str:
    """The tables, in Markdown."""
    ways = arguments.ways
    lines = ["# All-reduce of torch tensors, two ranks, us", ""]
    lines += [f"- not measured: {reason}" for reason in reasons] + [""] * bool(reasons)
    for dtype in arguments.dtypes:
        for percentile, title in PERCENTILES.items():
            peers = [way for way in ways if way in PEERS]
            ours = [way for way in ("dist", "comm", "symmetric") if way in ways]
            heads = [*ways, *(f"best peer / {way}" for way in ours if peers)]
            if "numpy" in ways and "comm" in ways:
                heads.append("comm / numpy")
            cells = []
            for size in arguments.sizes:
                values = {way: median(samples, (dtype, size, way), percentile) for way in ways}
                line = [format_size(size), *(f"{values[way]:.4g}" for way in ways)]
                if peers:
                    best = (dtype, size, min(peers, key=values.__getitem__))
                    pairs = [(best, (dtype, size, way)) for way in ours]
                    line += [f"{ratio(samples, *pair, percentile):.2f}" for pair in pairs]
                if heads[-1] == "comm / numpy":
                    pair = (dtype, size, "comm"), (dtype, size, "numpy")
                    line.append(f"{ratio(samples, *pair, percentile):.2f}")
                cells.append(line)
            lines += [f"## {dtype}, {title}", "", *rows(["", *heads], cells), ""]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES, help=f"bytes ({SIZES})")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="float32, bfloat16 (both)")
    parser.add_argument(
        "--only", default=",".join(OURS + PEERS), metavar="WAYS", help=", ".join(OURS + PEERS)
    )
    parser.add_argument("--rounds", type=whole(1), default=5, help="alternating rounds (5)")
    parser.add_argument(
        "--budget", type=positive, default=0.4, help="seconds for one way, size and round (0.4)"
    )
    parser.add_argument(
        "--venv",
        type=Path,
        default=HERE / ".venv-peers",
        metavar="DIR",
        help="where vLLM and DeepSpeed are, or are installed (5 GB), as by `python bench`",
    )
    parser.add_argument("--no-install", action="store_true", help="use what DIR holds already")
    parser.add_argument("--json", type=output, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--markdown", type=output, metavar="FILE", help="write the report to FILE")
    arguments = parser.parse_args()
    arguments.ways, arguments.dtypes = arguments.only.split(","), arguments.dtypes.split(",")
    if not {*OURS, *PEERS}.issuperset(arguments.ways):
        parser.error(f"--only: choose from {', '.join(OURS + PEERS)}")
    if not set(DTYPES).issuperset(arguments.dtypes):
        parser.error(f"--dtypes: choose from {', '.join(DTYPES)}")
    try:
        arguments.sizes = [parse_size(size) for size in arguments.sizes.split(",")]
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(f"--sizes: {error}")
    return arguments


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments()
    if importlib.util.find_spec("torch") is None:
        sys.exit(
            "torch_calls: this Python has no torch: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu"
        )
    libraries, reasons = find_libraries(arguments)
    for reason in reasons:
        note(f"not measured: {reason}")
    try:
        samples = measure(arguments, libraries)
    except ContestantError as error:
        sys.exit(f"torch_calls: {error}")
    text = render(samples, arguments, reasons)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.json:
        entries = [
            {"dtype": dtype, "bytes": size, "way": way, "round": number, **record}
            for (dtype, size, way), by_round in samples.items()
            for number, record in by_round.items()
        ]
        arguments.json.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
