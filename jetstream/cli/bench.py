"""``jetstream bench``: measures collectives and messages between ranks, and checks the results."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetstream.errors import JetstreamError

if TYPE_CHECKING:
    from jetstream.bench.config import BenchConfig
    from jetstream.bench.session import Console

__all__ = ["add_parser"]

_INTERRUPTED = 130
_BUDGET_S = 1.0
_QUICK_BUDGET_S = 0.25

_EPILOG = """\
kinds: all_reduce all_gather reduce_scatter all_to_all broadcast barrier,
       reduce gather scatter (to and from --root), scan exscan (over the ranks below),
       sendrecv (send to the next rank, receive from the one before),
       pingpong (half a round trip between pairs of ranks)

Sizes are those of nccl-tests: of all_gather and gather the whole output, of reduce_scatter,
scatter and all_to_all the whole input.
They may be written 8, 64K, 1.5M, 1G. Exit status: 0, 1 when data was wrong,
2 for bad arguments, 3 when the library raised an error.

examples:
  jetstream bench all_reduce -n 2
  jetstream bench all_reduce all_gather -n 4 -b 1K -e 16M -f 4 -d bfloat16 --html report.html
"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand to the command line of ``jetstream``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure collectives: latency, its tail, bandwidth",
        description="Measure collectives between ranks of this host: latency with its tail, "
        "bandwidth, and every result checked. Starts the ranks itself.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kinds", nargs="+", metavar="KIND", help="what to measure, see below")
    parser.add_argument("-n", "--ranks", type=int, default=2, help="number of ranks (2)")
    _add_sizes(parser)
    _add_method(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures")
    output.add_argument(
        "--samples", action="store_true", help="put the latency of every iteration into the JSON"
    )
    parser.set_defaults(func=partial(_run, parser))


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("sizes and types")
    sizes.add_argument("-b", "--begin", metavar="SIZE", help="smallest size (8)")
    sizes.add_argument("-e", "--end", metavar="SIZE", help="largest size (64M)")
    sizes.add_argument("-f", "--factor", type=float, help="from one size to the next (2)")
    sizes.add_argument("-i", "--step", metavar="SIZE", help="add this instead of a factor")
    sizes.add_argument(
        "-d", "--dtype", default="float32", metavar="TYPE[,TYPE...]",
        help="as in NumPy and ml_dtypes: bfloat16, int8, complex64, ...; or all (float32)",
    )  # fmt: skip
    sizes.add_argument(
        "-o", "--op", default="sum", metavar="OP[,OP...]",
        help="sum prod min max avg band bor bxor, or all where defined (sum)",
    )  # fmt: skip
    sizes.add_argument(
        "-r", "--root", type=int, default=0, help="of broadcast, reduce, gather, scatter (0)"
    )
    sizes.add_argument(
        "--quick", action="store_true", help="few sizes, a quarter of a second for each"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    method = parser.add_argument_group("method")
    method.add_argument("-w", "--warmup", type=int, default=10, help="calls before the clock (10)")
    method.add_argument(
        "--iters", type=int, metavar="N", help="timed calls for each size (about 1 s of them)"
    )
    method.add_argument(
        "-c", "--check", type=int, choices=(0, 1), default=1, help="check results (1)"
    )
    method.add_argument(
        "--launch", default="python", metavar="HOW",
        help="python: calls as a program makes them (default); c: a loop in C",
    )  # fmt: skip
    method.add_argument(
        "--algo", help="force an algorithm: direct, one_shot, two_shot, lend, hierarchical"
    )
    method.add_argument(
        "--bind", default="core", metavar="HOW", help="core: one core a rank (default); none"
    )
    method.add_argument(
        "--timeout", type=float, default=60.0, metavar="S",
        help="longest wait for one operation, seconds (60)",
    )  # fmt: skip


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from jetstream.bench.machine import memory_bytes
    from jetstream.bench.session import Console
    from jetstream.config import load_config

    try:
        settings = load_config()
        if settings.launcher != "none":
            arguments.ranks = settings.world_size
        config = _config(arguments)
        config.check_memory(memory_bytes().get("MemAvailable", 1 << 62))
        _check_paths(arguments)
    except JetstreamError as error:
        parser.error(str(error))
    console = Console(config, sys.stdout, sys.stderr if sys.stderr.isatty() else None)
    try:
        return _measure(config, console, in_place=settings.launcher != "none")
    except BrokenPipeError:  # the reader of the table has left: what is still to come goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        if console.report.rows:
            _write_reports(arguments, console)


def _config(arguments: argparse.Namespace) -> BenchConfig:
    from jetstream.bench.config import BenchConfig, parse_dtypes, parse_ops

    return BenchConfig(
        kinds=tuple(dict.fromkeys(arguments.kinds)),
        ranks=arguments.ranks,
        sizes_bytes=_sizes(arguments),
        dtypes=parse_dtypes(arguments.dtype.split(",")),
        ops=parse_ops(arguments.op.split(",")),
        root=arguments.root,
        warmup=arguments.warmup,
        iterations=arguments.iters,
        budget_s=_QUICK_BUDGET_S if arguments.quick else _BUDGET_S,
        check=bool(arguments.check),
        launch=arguments.launch,
        algorithm=arguments.algo,
        bind=arguments.bind,
        timeout_s=arguments.timeout,
        keep_samples=arguments.samples,
    )


def _sizes(arguments: argparse.Namespace) -> tuple[int, ...]:
    from jetstream.bench.sizes import QUICK_SIZES_BYTES, parse_size, sweep

    given = (arguments.begin, arguments.end, arguments.factor, arguments.step)
    if arguments.quick and given == (None, None, None, None):
        return QUICK_SIZES_BYTES
    step_bytes = None if arguments.step is None else parse_size(arguments.step)
    factor = arguments.factor
    if factor is None and step_bytes is None:
        factor = 2.0
    begin_bytes = parse_size("8" if arguments.begin is None else arguments.begin)
    end_bytes = parse_size("64M" if arguments.end is None else arguments.end)
    return sweep(begin_bytes, end_bytes, factor=factor, step_bytes=step_bytes)


def _check_paths(arguments: argparse.Namespace) -> None:
    from jetstream.bench.config import check_output_path

    for option, path in (("--json", arguments.json), ("--html", arguments.html)):
        if path is not None:
            check_output_path(option, path)


def _measure(config: BenchConfig, console: Console, *, in_place: bool) -> int:
    """Measures as one rank of a job, or starts the ranks; returns the exit status."""
    from jetstream.bench.session import run_session
    from jetstream.bench.worker import run_rank

    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        if in_place:
            return run_rank(config, console.handle)
        status = run_session(config, console)
    except KeyboardInterrupt:
        return _INTERRUPTED
    if status and not console.report.complete:
        sys.stderr.write(f"jetstream bench: the ranks ended with status {status}\n")
    return status


def _write_reports(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.json is not None:
        from jetstream.bench.results import write_json

        write_json(arguments.json, console.report)
        sys.stdout.write(f"# written: {arguments.json}\n")
    if arguments.html is not None:
        from jetstream.bench.report_html import write_html

        write_html(arguments.html, console.report)
        sys.stdout.write(f"# written: {arguments.html}\n")
