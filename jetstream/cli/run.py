"""``jetstream run``: starts ranks of a job on this host and sees them through to their end."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from jetstream.cli.supervisor import Supervisor, report
from jetstream.config import RANKS_MAX, load_config
from jetstream.errors import ConfigurationError
from jetstream.places import split_tcp

__all__ = ["add_parser", "job_of", "rank_count"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126

_DESCRIPTION = """\
Start N ranks of a program on this host. A name that ends in .py runs under this Python, any other
is run as it is. Output is labelled with the rank it comes from, line by line.

If a rank fails, the others get some seconds to end by themselves, then they are ended. The exit
status is that of the rank that failed first (128 + number for a signal). INT, TERM and HUP are
passed on to the ranks; a second Ctrl-C kills them.

For a job on several hosts, start it once on each of them, with --nnodes, a --node-rank from 0, the
same --rendezvous HOST:PORT (of the host with --node-rank 0) and the same secret: 32 to 128 hex
digits in JETSTREAM_JOB_SECRET or in a file. If a rank fails, those on the other hosts notice by
themselves: their operations fail. To try out several hosts on this one, --hosts is enough.
"""

_EPILOG = """\
examples:
  jetstream run -n 4 train.py --steps 10
  jetstream run -n 2 --bind core -m my.app
  jetstream run -n 2 -- ./program --option
  jetstream run -n 4 --hosts 2 train.py
  jetstream run -n 4 --nnodes 2 --node-rank 1 --rendezvous node0:29400 --secret-file s train.py
"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand to the command line of ``jetstream``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="start the ranks of a program on this host",
        usage="jetstream run -n N [options] [-m MODULE | SCRIPT.py | PROGRAM] [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n",
        "--ranks",
        type=rank_count,
        required=True,
        metavar="N",
        help="number of ranks; with --nnodes: on this host",
    )
    parser.add_argument("-m", "--module", action="store_true", help="run a Python module")
    parser.add_argument(
        "--bind",
        choices=("none", "core"),
        default="none",
        help="core: rank i gets the i-th CPU that this process may use (none)",
    )
    parser.add_argument(
        "--no-label", action="store_true", help="let the ranks write to the terminal directly"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="S", help="end the job after S seconds, with status 124"
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds the other ranks get once one has failed (5)",
    )
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument(
        "--hosts",
        type=rank_count,
        metavar="H",
        help="act as if the ranks were on H hosts: rank r of n on host r * H // n",
    )
    hosts.add_argument(
        "--nnodes", type=rank_count, metavar="M", help="number of hosts, N ranks on each"
    )
    hosts.add_argument("--node-rank", type=int, metavar="I", help="number of this host, from 0")
    hosts.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="a port of the host with --node-rank 0"
    )
    hosts.add_argument(
        "--secret-file", metavar="FILE", help="file with the secret (JETSTREAM_JOB_SECRET)"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(func=lambda arguments: _run(parser, arguments))


def rank_count(text: str) -> int:
    """A number of ranks or hosts, from the command line."""
    if not text.isdecimal() or not 1 <= int(text) <= RANKS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {RANKS_MAX}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    program: list[str] = arguments.program
    if program[:1] == ["--"]:
        program = program[1:]
    if not program:
        parser.error("what to run is missing: a script, -m and a module, or a program")
    command, status = _command(program, is_module=arguments.module)
    if status:
        return status
    cpus = _cpus(arguments.ranks) if arguments.bind == "core" else []
    job = job_of(parser, arguments)
    first_rank = arguments.ranks * (arguments.node_rank or 0)
    job |= _torch_meeting_point(job["JETSTREAM_RENDEZVOUS"])
    environments = _environments(job, arguments.ranks, arguments.hosts or 1, first_rank)
    if int(job["JETSTREAM_WORLD_SIZE"]) == 1 and arguments.timeout is None:
        # Nobody to label or to end: the program takes this process over, terminal and all.
        if cpus:
            os.sched_setaffinity(0, cpus[:1])
        os.execve(command[0], command, environments[0])
    supervisor = Supervisor(
        command,
        environments,
        cpus=cpus,
        is_labelled=int(job["JETSTREAM_WORLD_SIZE"]) > 1 and not arguments.no_label,
        timeout_s=arguments.timeout,
        grace_s=arguments.grace,
        first_rank=first_rank,
    )
    return supervisor.run()


def _command(program: list[str], *, is_module: bool) -> tuple[list[str], int]:
    """Returns the command of a rank with an absolute program, and 0 or the status to exit with."""
    if is_module:
        return [sys.executable, "-m", *program], 0
    if program[0].endswith(".py"):
        if not Path(program[0]).is_file():
            report(f"there is no file {program[0]}")
            return [], _NOT_FOUND
        return [sys.executable, *program], 0
    found = shutil.which(program[0])
    if found:
        return [found, *program[1:]], 0
    if Path(program[0]).exists():
        report(f"{program[0]} is not executable, and its name does not end in .py")
        return [], _NOT_EXECUTABLE
    report(f"there is no program {program[0]}")
    return [], _NOT_FOUND


def job_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, str]:
    """Checks where the ranks are to be; returns the variables that all of them have."""
    is_spread = arguments.nnodes is not None
    return _spread_job(parser, arguments) if is_spread else _local_job(parser, arguments)


def _local_job(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, str]:
    """Returns what all ranks of a job on this host have: a meeting point and a secret."""
    for name in ("node_rank", "rendezvous", "secret_file"):
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} goes with --nnodes")
    if (arguments.hosts or 1) > arguments.ranks:
        parser.error(f"{arguments.hosts} hosts are too many for {arguments.ranks} ranks")
    return {
        "JETSTREAM_WORLD_SIZE": str(arguments.ranks),
        "JETSTREAM_RENDEZVOUS": f"ipc://@jetstream-{os.geteuid()}-run-{secrets.token_hex(8)}",
        "JETSTREAM_JOB_SECRET": secrets.token_hex(32),
    }


def _spread_job(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, str]:
    """The same for a job on several hosts, which are told where they meet, and the secret."""
    nodes, node_rank = arguments.nnodes, arguments.node_rank
    if arguments.hosts is not None:
        parser.error("--hosts acts as if there were several hosts, --nnodes is for real ones")
    if node_rank is None or not 0 <= node_rank < nodes:
        parser.error(f"--node-rank is needed: a number from 0 to {nodes - 1}")
    if nodes * arguments.ranks > RANKS_MAX:
        parser.error(f"{nodes * arguments.ranks} ranks: at most {RANKS_MAX}")
    if not arguments.rendezvous:
        parser.error("--rendezvous HOST:PORT is needed")
    secret = os.environ.get("JETSTREAM_JOB_SECRET", "")
    if arguments.secret_file:
        try:
            secret = Path(arguments.secret_file).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            parser.error(f"{arguments.secret_file}: {error.strerror}")
    if not secret.strip():
        parser.error("a secret is needed: JETSTREAM_JOB_SECRET or --secret-file")
    job = {
        "JETSTREAM_WORLD_SIZE": str(nodes * arguments.ranks),
        "JETSTREAM_RENDEZVOUS": f"tcp://{arguments.rendezvous.removeprefix('tcp://')}",
        "JETSTREAM_JOB_SECRET": secret.strip(),
    }
    try:
        # What is wrong is said here once, not by each of the ranks.
        load_config(job | {"JETSTREAM_RANK": "0"})
    except ConfigurationError as error:
        parser.error(str(error))
    return job


def _torch_meeting_point(rendezvous: str) -> dict[str, str]:
    """Returns where the ranks of a torch program meet, by the convention of env://.

    The store that rank 0 opens there is torch's own, so it needs a port of its own: some free one,
    or with ranks on several hosts the one after that of the rendezvous.
    """
    if rendezvous.startswith("tcp://"):
        host, port = split_tcp(rendezvous)
        port = port + 1 if port < 65535 else port - 1
    else:
        host = "127.0.0.1"
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        # Else the store of a torchrun that this launcher itself runs under would be looked for.
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def _environments(
    job: dict[str, str], ranks: int, hosts: int, first_rank: int
) -> list[dict[str, str]]:
    """Returns the environment of each rank of this host, which acts as several `hosts`."""
    if int(job["JETSTREAM_WORLD_SIZE"]) > 1:
        # Through a pipe, Python would hold output back until it has some KiB.
        job = {**job, "PYTHONUNBUFFERED": "1"}
    index = [rank * hosts // ranks for rank in range(ranks)]
    return [
        os.environ
        | job
        | {
            "JETSTREAM_RANK": str(first_rank + rank),
            "JETSTREAM_LOCAL_RANK": str(index[:rank].count(index[rank])),
            # The same for torch programs, as torchrun does.
            "RANK": str(first_rank + rank),
            "WORLD_SIZE": job["JETSTREAM_WORLD_SIZE"],
            "LOCAL_RANK": str(index[:rank].count(index[rank])),
            "LOCAL_WORLD_SIZE": str(index.count(index[rank])),
        }
        | ({"JETSTREAM_HOST": f"host{index[rank]}"} if hosts > 1 else {})
        for rank in range(ranks)
    ]


def _cpus(ranks: int) -> list[int]:
    """Returns the CPU of each rank, or nothing if there are not enough."""
    allowed = sorted(os.sched_getaffinity(0))
    if ranks > len(allowed):
        report(f"not binding: {ranks} ranks, but only {len(allowed)} CPUs to use")
        return []
    return allowed[:ranks]
