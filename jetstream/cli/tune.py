"""``jetstream tune``: measures algorithms and chunk sizes; stores what beats the built-in."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jetstream.cli.run import job_of, rank_count
from jetstream.errors import ConfigurationError, JetstreamError, TuningError

if TYPE_CHECKING:
    from jetstream.bench.tune import Candidate, Request, Result
    from jetstream.collectives.select import Where
    from jetstream.collectives.tuning import Rules

__all__ = ["add_parser"]

_SIZES = "64,512,1K,2K,4K,8K,16K,32K,64K,256K,1M,4M"
_QUICK_SIZES = "512,4K,16K,64K,1M"
_BUDGET_S = 30.0
_QUICK_BUDGET_S = 5.0
_INTERRUPTED = 130

_EPILOG = """\
Every algorithm is tried with every chunk size that makes a difference, all of them in turns. Times
are those of the slowest rank; candidates are compared at p90. What is to replace the built-in
choice has to be better by 5 % twice. Jobs of N ranks on this host then use the file; docs/tuning.md
describes it. Sizes are those of the array, or of one rank's part.

examples:
  jetstream tune -n 2
  jetstream tune all_reduce reduce -n 4 --sizes 1K,8K,64K --output mine.json
  jetstream tune -n 1 --nnodes 2 --node-rank 0 --rendezvous node0:29400 --secret-file s
"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand to the command line of ``jetstream``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tune",
        help="measure which algorithm is best for which size, and remember it",
        description="Measure which algorithm and chunk size is best for each collective and size "
        "on this host, compare with the built-in choice, and store what is better.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="what to measure (everything)")
    parser.add_argument(
        "-n",
        "--ranks",
        type=int,
        default=2,
        help="number of ranks (2); with --nnodes: on each host",
    )
    parser.add_argument("--sizes", metavar="SIZE[,SIZE...]", help=f"sizes in bytes ({_SIZES})")
    parser.add_argument("-d", "--dtype", default="float32", help="element type (float32)")
    parser.add_argument("--quick", action="store_true", help="few sizes, a few seconds")
    parser.add_argument(
        "--budget", type=float, metavar="S",
        help=f"seconds for all measurements ({_BUDGET_S:g}; --quick: {_QUICK_BUDGET_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--bind", choices=("core", "none"), default="core",
        help="core: one core a rank, if there are enough (default)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="write here instead of the place where jobs look",
    )  # fmt: skip
    hosts = parser.add_argument_group("several hosts, started on each; see 'jetstream run --help'")
    hosts.add_argument("--nnodes", type=rank_count, metavar="M", help="number of hosts")
    hosts.add_argument(
        "--node-rank", type=int, metavar="I", help="number of this one; 0 keeps the results"
    )
    hosts.add_argument("--rendezvous", metavar="HOST:PORT", help="a port of host 0")
    hosts.add_argument("--secret-file", metavar="FILE", help="file with the secret")
    hosts.add_argument(
        "--hosts", type=rank_count, metavar="H", help="act as if there were H hosts; needs --output"
    )
    parser.set_defaults(func=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from jetstream.bench.config import check_output_path

    try:
        request = _request(arguments)
        job_of(parser, arguments)  # what is wrong is said before the table begins
        path = _output_path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_output_path("--output", path)
    except JetstreamError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--output {arguments.output}: {error.strerror}")
    console = _Console(_world(arguments), arguments.nnodes, request, sys.stdout, sys.stderr)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        status = _measure(arguments, request, console)
    except KeyboardInterrupt:
        return _INTERRUPTED
    if status:
        sys.stderr.write(f"jetstream tune: the ranks ended with status {status}\n")
        return status
    if arguments.node_rank:
        sys.stdout.write("# the results are at host 0\n")
        return 0
    console.summarize()
    _store(path, console.where, request, console.results)
    sys.stdout.write(f"# written: {path}\n")
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    """Checks the arguments. Raises ConfigurationError."""
    from jetstream.bench.config import parse_dtypes
    from jetstream.bench.sizes import parse_size
    from jetstream.bench.tune import TUNABLE, Request
    from jetstream.collectives.select import is_crowded
    from jetstream.config import RANKS_MAX
    from jetstream.dtypes import DType, RedOp

    for kind in arguments.kinds:
        if kind not in TUNABLE:
            raise ConfigurationError(f"kind {kind!r} is not one of {', '.join(TUNABLE)}")
    world = _world(arguments)
    if not 2 <= world <= RANKS_MAX:
        what = "-n" if arguments.nnodes is None else "the ranks of all hosts (-n times --nnodes)"
        raise ConfigurationError(f"{what} must be from 2 to {RANKS_MAX}, not {world}")
    if arguments.hosts is not None and arguments.output is None:
        raise ConfigurationError(
            "--hosts only simulates hosts on this machine, so its results must go to a file of "
            "your own: pass --output FILE"
        )
    summed = [dtype.label for dtype in DType if RedOp.SUM in dtype.redops]
    (dtype,) = parse_dtypes([arguments.dtype])[:1]
    if dtype not in summed:
        raise ConfigurationError(f"-d: {dtype!r} is not one of {', '.join(summed)}")
    budget_s = arguments.budget
    if budget_s is None:
        budget_s = _QUICK_BUDGET_S if arguments.quick else _BUDGET_S
    if not 0.01 <= budget_s <= 1e5:
        raise ConfigurationError(f"--budget must be from 0.01 to 100000 s, not {budget_s:g}")
    names = arguments.sizes or (_QUICK_SIZES if arguments.quick else _SIZES)
    sizes = sorted({parse_size(name) for name in names.split(",")})
    if sizes[0] < 1 or sizes[-1] > 64 << 20:
        raise ConfigurationError("--sizes must be from 1 to 64M")
    cpus = (frozenset(os.sched_getaffinity(0)),) * arguments.ranks
    kinds = tuple(dict.fromkeys(arguments.kinds)) or TUNABLE
    return Request(kinds, tuple(sizes), dtype, budget_s, is_crowded(cpus))


def _world(arguments: argparse.Namespace) -> int:
    """The number of ranks of all hosts."""
    return int(arguments.ranks * (arguments.nnodes or 1))


def _run_options(arguments: argparse.Namespace) -> list[str]:
    """What goes on to ``jetstream run``, which checks it."""
    found = []
    for name in ("nnodes", "node_rank", "rendezvous", "secret_file", "hosts"):
        value = getattr(arguments, name)
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def _output_path(chosen: Path | None) -> Path:
    from jetstream.tuning import default_path, this_host

    path = chosen or default_path(this_host())
    if path is None:
        raise ConfigurationError("there is no home directory to write to; pass --output FILE")
    return path.absolute()


def _measure(arguments: argparse.Namespace, request: Request, console: _Console) -> int:
    from jetstream.bench.session import run_worker

    has_cores = arguments.ranks <= len(os.sched_getaffinity(0))
    bind = arguments.bind if has_cores else "none"
    return run_worker(
        ["-n", str(arguments.ranks), "--bind", bind, *_run_options(arguments)],
        ["jetstream.bench.tune", request.to_json()],
        console.handle,
        console.write,
        variables={"JETSTREAM_TUNE": "off", "JETSTREAM_ALGO": ""},
    )


# --- what is shown ---------------------------------------------------------------------------


class _Console:
    """Shows results as they come: the table on ``out``, progress on ``progress`` if a terminal."""

    def __init__(
        self, ranks: int, nnodes: int | None, request: Request, out: TextIO, progress: TextIO
    ) -> None:
        self.results: list[Result] = []
        self.where: Where = ranks  # whom the results are for
        self._ranks = ranks
        self._request = request
        self._out = out
        self._progress = progress if progress.isatty() else None
        self._begin_s = time.monotonic()
        shared = "sharing cores" if request.is_crowded else "with a core each"
        spread = f", {ranks // nnodes} on each of {nnodes} hosts," if nnodes else ""
        who = f"{ranks} ranks{spread} {shared}"
        self.write(f"# jetstream tune: {_host_text()}; {who}, {request.dtype}\n")
        self.write("# us of the slowest rank; loss: of the built-in choice, at p90\n")

    def write(self, text: str) -> None:
        """Writes to the table."""
        self._out.write(text)
        self._out.flush()

    def handle(self, event: dict[str, Any]) -> None:
        """Shows one event."""
        from jetstream.bench.session import CLEAR_LINE
        from jetstream.bench.tune import Result

        if self._progress is not None:
            self._progress.write(CLEAR_LINE)
            self._progress.flush()
        if event["event"] == "hosts" and len(event["ranks"]) > 1:
            self.where = tuple(event["ranks"])
        elif event["event"] == "cell":
            self._show_progress(event)
        elif event["event"] == "result":
            result = Result.from_dict(event["result"])
            if not self.results or self.results[-1].kind != result.kind:
                self.write(_head(result.kind))
            self.results.append(result)
            self.write(_line(result))

    def _show_progress(self, event: dict[str, Any]) -> None:
        from jetstream.bench.sizes import format_size

        if self._progress is None:
            return
        done, total = event["index"], event["total"]
        text = f"{event['kind']} {format_size(event['bytes'])}: {done} of {total} done"
        if done:
            left_s = (time.monotonic() - self._begin_s) / done * (total - done)
            text += f", about {left_s:.0f} s left"
        self._progress.write(text)
        self._progress.flush()

    def summarize(self) -> None:
        """Says how good the built-in choice is, and what has not been measured."""
        missing = len(self._request.cells(self._ranks)) - len(self.results)
        if missing:
            self.write(f"# the time was up: {missing} sizes not measured; see --budget\n")
        losses = sorted(result.loss for result in self.results if result.best != result.rule)
        worst = f", by {100 * losses[-1]:.0f} % at most" if losses else ""
        self.write(
            f"# the built-in choice is worth replacing in {len(losses)} of {len(self.results)} "
            f"cases{worst}\n"
        )


def _host_text() -> str:
    from jetstream.tuning import this_host

    return str(this_host())


def _head(kind: str) -> str:
    columns = (
        f"{'size':>12}  {'best':<15}{'p50':>9}{'p90':>9}   {'built-in':<15}{'p50':>9}{'p90':>9}"
    )
    return f"\n{kind}\n{columns}{'loss':>8}\n"


def _line(result: Result) -> str:
    from jetstream.bench.sizes import format_size

    best = _candidate_columns(result, result.best)
    rule = _candidate_columns(result, result.rule)
    loss = f"{100 * result.loss:.0f} %" if result.best != result.rule else "-"
    return f"{format_size(result.nbytes):>12}  {best}   {rule}{loss:>8}\n"


def _candidate_columns(result: Result, candidate: Candidate) -> str:
    p50_ns, p90_ns = result.times_ns[candidate]
    name = f"{candidate.algorithm.label} {candidate.chunk_bytes >> 10}K"
    return f"{name:<15}{p50_ns / 1e3:>9.1f}{p90_ns / 1e3:>9.1f}"


# --- what is stored --------------------------------------------------------------------------


def _store(path: Path, where: Where, request: Request, results: list[Result]) -> None:
    """Writes the file, with what it holds about other worlds and kinds."""
    from jetstream import __version__
    from jetstream.collectives.tuning import SCHEMA, name_where, read_rules, write_rules
    from jetstream.tuning import read_file, this_host, write_file

    host = this_host()
    all_rules: dict[bool, Rules] = {False: {}, True: {}}
    measurements: list[Any] = []
    if path.exists():
        try:
            old = read_file(path)
            all_rules = read_rules(old, host)
            measurements = [
                item
                for item in old.get("measurements", [])
                if not _is_replaced(item, where, request)
            ]
        except (TuningError, AttributeError, TypeError) as error:
            sys.stderr.write(f"jetstream tune: what {path} held is replaced: {error}\n")
    crowded = request.is_crowded
    all_rules[crowded] = {**all_rules[crowded], **_rules(results, where)}
    named = {**name_where(where), "crowded": crowded, "dtype": request.dtype}
    measurements += [named | result.to_dict() for result in results]
    document = {
        "schema": SCHEMA,
        "jetstream": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": {"cpu": host.cpu, "cores": host.cores},
        "rules": [
            rule
            for is_crowded, rules in all_rules.items()
            for rule in write_rules(rules, is_crowded=is_crowded)
        ],
        "measurements": measurements,
    }
    write_file(path, document)


def _is_replaced(item: Any, where: Where, request: Request) -> bool:
    from jetstream.collectives.tuning import name_where

    named = name_where(where) | {"crowded": request.is_crowded}
    same = all(item.get(name) == named.get(name) for name in ("world", "hosts", "crowded"))
    return same and item.get("kind") in request.kinds


def _rules(results: list[Result], where: Where) -> Rules:
    """Rules from the best of every cell; sizes without a result are the neighbours' affair."""
    from jetstream.collectives.select import Rule
    from jetstream.collectives.tuning import merge_rules
    from jetstream.dtypes import Kind

    kinds = {kind.label: kind for kind in Kind}
    points: dict[str, list[tuple[int, Rule]]] = {}
    for result in results:
        rule = Rule(None, result.best.algorithm, result.best.chunk_bytes)
        points.setdefault(result.kind, []).append((result.nbytes, rule))
    return {(where, kinds[label]): merge_rules(found) for label, found in points.items()}
