"""Compare jetstream with the floor and the peers, all of them in one run.

`python bench` installs the peers, measures all contestants in alternating rounds and
prints a markdown report of the tables asked for. Run it with the Python that has jetstream.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import calls
import hosts
import model
from bounds import output, positive, whole
from contestants import (
    CONTESTANTS,
    HERE,
    Contestant,
    ContestantError,
    Workshop,
    measure,
    note,
)
from report import Results, Table, parse_size, render

from jetstream.testing import NoNetworkError
from jetstream.testing.network import Network

ITERATIONS_MIN, ITERATIONS_MAX = 20, 20000
ITERATIONS_BYTES = 1 << 30  # total payload of one case
FIXED_ITERATIONS = {"long_wait": 2, "after_rest": 20, "fair_share": 1}
OTHERS = (
    *("all_reduce_out", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"),
    "sendrecv",
)
TABLES = {
    "all_reduce": [Table("all_reduce, 2 ranks")],
    "bfloat16": [Table("all_reduce, 2 ranks", sizes="8,8K,64K,1M,8M", dtype="bfloat16")],
    "others": [Table("other operations, 2 ranks", OTHERS, sizes="8,4K,8K,64K,1M")],
    "oversubscribed": [
        Table("all_reduce, 4 ranks", sizes="8,8K,64K,1M", ranks=4),
        Table("all_reduce, 8 ranks", sizes="8,8K,64K", ranks=8),
        *(
            Table(
                f"fair share: round trips of {ranks // 2} pairs at once",
                ("fair_share",),
                sizes="8",
                ranks=ranks,
                columns={
                    "slowest pair, 1/s": "least_per_s",
                    "fastest pair, 1/s": "most_per_s",
                    "share": "share",
                },
            )
            for ranks in (4, 8)
        ),
    ],
    "scaling": [
        Table(f"all_reduce, {ranks} ranks", sizes="8,8K,64K", ranks=ranks)
        for ranks in (2, 3, 4, 6, 8)
    ],
    "network": [
        Table("all_reduce, 2 hosts on the loopback interface", path="network"),
        Table(
            "all_reduce, 2 hosts on the loopback interface",
            sizes="8,8K,64K,1M",
            dtype="bfloat16",
            path="network",
        ),
    ],
    "hosts": [Table("all_reduce, 2 hosts joined by a bridge", path="hosts")],
    "waiting": [
        Table(
            "a rank is a second late",
            ("long_wait",),
            sizes="8",
            columns={"% of a core used by who waits": "cpu_percent", "us to wake": "wake_us"},
        ),
        Table(
            "after 0.2 s of rest",
            ("after_rest",),
            sizes="8,8K",
            columns={"first operation, us": "first_us", "second operation, us": "second_us"},
        ),
    ],
}


PROGRAMS = """Programs of their own, each with --help: `python bench links` (links, and the stack
above them), bench/incast.py (many to one), bench/loss.py (links that lose frames), bench/device.py
(what devices launch by themselves)."""

#: What --cores asks for, as Results has it.
DISTANCES = {"most": [""], "near": ["near"], "far": ["far"], "both": ["near", "far"]}


def cases_for(contestant: Contestant, table: Table) -> list[str]:
    """What a contestant measures of a table."""
    cases = []
    for collective, size_bytes in table.cases():
        if contestant.can(collective, table.dtype, table.ranks, table.path):
            count = max(ITERATIONS_MIN, min(ITERATIONS_MAX, ITERATIONS_BYTES // size_bytes))
            count = FIXED_ITERATIONS.get(collective, count)
            cases.append(f"{collective}:{size_bytes}:{count}")
    return cases


def run_table(arguments: argparse.Namespace, table: Table) -> Results:
    """Measure every contestant of a table, between namespaces if it is about those."""
    results = Results(table)
    workshop = Workshop(arguments.venv, is_installing=not arguments.no_install)
    network = None
    environment = {}
    try:
        if table.path == "hosts":
            network = Network(table.ranks, mtu=arguments.mtu)
            environment = hosts.environment(network, table.ranks, workshop.agent)
        run_rounds(arguments, results, workshop, environment)
    except NoNetworkError as error:
        results.failures["all"] = str(error)
    finally:
        if network is not None:
            network.close()
    results.sort_out()
    return results


def run_rounds(
    arguments: argparse.Namespace,
    results: Results,
    workshop: Workshop,
    environment: dict[str, str],
) -> None:
    """Measure every contestant once per round, in an order that turns round each time."""
    table = results.table
    ready: list[tuple[Contestant, list[str]]] = []
    for one in CONTESTANTS:
        contestant = one.between(table.path, environment)
        is_wanted = not arguments.only or contestant.name in arguments.only.split(",")
        if is_wanted and cases_for(contestant, table):
            try:
                ready.append((contestant, workshop.prepare(contestant, table.ranks)))
            except ContestantError as error:
                results.failures[contestant.name] = str(error)
    options = ["--dtype", table.dtype, "--budget", str(arguments.budget)]
    note(f"{table.title}, {table.dtype}")
    for index in range(arguments.rounds):
        for contestant, command in ready[:: -1 if index % 2 else 1]:
            name = contestant.name
            if name in results.failures:
                continue
            begin_s = time.monotonic()
            try:
                words = [*arguments.under.split(), *command]
                samples = measure(contestant, words, cases_for(contestant, table), options)
                results.rounds.setdefault(name, {})[index] = samples
            except ContestantError as error:
                results.failures[name] = f"round {index + 1}: {error}"
            took_s = time.monotonic() - begin_s
            state = results.failures.get(name, "done")
            note(f"round {index + 1}/{arguments.rounds} {name:13} {took_s:5.1f} s  {state}")


def describe_machine() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = [package for c in CONTESTANTS for package in (*c.packages, *c.bare)]
    versions = dict.fromkeys(package for package in packages if "==" in package)
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": ", ".join(versions),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__, epilog=PROGRAMS)
    known_tables = ", ".join([*TABLES, "calls", "all"])
    parser.add_argument(
        "tables", nargs="*", default=["all_reduce"], metavar="TABLE", help=known_tables
    )
    parser.add_argument("--rounds", type=whole(1), default=5, help="alternating rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--sizes", help="instead of the tables' own, for example 8,64K,1M")
    parser.add_argument("--budget", type=positive, default=0.6, help="seconds a case (default 0.6)")
    parser.add_argument(
        "--mtu",
        type=whole(540, 65535),
        default=1500,
        help="bytes, between the hosts of table hosts (1500)",
    )
    parser.add_argument("--only", metavar="NAMES", help="a comma-separated choice of contestants")
    parser.add_argument(
        "--under", default="", metavar="COMMAND", help="start contestants with it: 'chrt -r 1'"
    )
    parser.add_argument("--venv", type=Path, default=HERE / ".venv-peers", metavar="DIR")
    parser.add_argument("--no-install", action="store_true", help="use what DIR holds already")
    parser.add_argument(
        "--cores",
        choices=("most", "near", "far", "both"),
        default="most",
        help="report samples taken while the cores were near, or far, a table for both, or in "
        "each row those of which there are most (default)",
    )
    parser.add_argument("--json", type=output, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--markdown", type=output, metavar="FILE", help="write the report to FILE")
    arguments = parser.parse_args()
    if "all" in arguments.tables:
        arguments.tables = [*TABLES, "calls"]
    if not {*TABLES, "calls"}.issuperset(arguments.tables):
        parser.error(f"choose from {known_tables}")
    try:
        _ = [parse_size(size) for size in (arguments.sizes or "8").split(",")]
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    known = {contestant.name for contestant in CONTESTANTS}
    if arguments.only and not known.issuperset(arguments.only.split(",")):
        parser.error(f"--only: choose from {', '.join(sorted(known))}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def as_json(results: Results) -> dict[str, Any]:
    """All samples of a table."""
    rounds = {
        name: {index: list(samples.values()) for index, samples in by_round.items()}
        for name, by_round in results.rounds.items()
    }
    return {"table": vars(results.table), "failures": results.failures, "rounds": rounds}


def main() -> None:
    """Measure, then report, table by table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    if "hosts" in arguments.tables:
        hosts.become_root()
    machine = describe_machine()
    done = []
    report: list[str] = []

    def tell(lines: list[str]) -> None:
        print("\n".join(lines), flush=True)
        report.extend(lines)
        if arguments.markdown:
            arguments.markdown.write_text("\n".join(report) + "\n")

    tell([*(f"- {key}: {value}" for key, value in machine.items()), ""])
    for name in arguments.tables:
        if name == "calls":
            for ranks in (1, 2):
                tell(calls.render(ranks))
            continue
        for table in TABLES[name]:
            if arguments.sizes and table.has_ratios:
                table = Table(**{**vars(table), "sizes": arguments.sizes})
            results = run_table(arguments, table)
            for distance in DISTANCES[arguments.cores]:
                results.distance = distance
                tell(render(results, arguments.rounds))
            done.append(as_json(results))
            if arguments.json:
                record = {"machine": machine, "tables": done}
                arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        if name == "scaling":
            tell(model.render())


if __name__ == "__main__":
    main()
