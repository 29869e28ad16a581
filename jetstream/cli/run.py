"""``jetstream run``: starts the ranks of a job on this host and sees them through to their end."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from jetstream.cli.supervisor import Supervisor, report
from jetstream.config import RANKS_MAX

__all__ = ["add_parser"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126

_DESCRIPTION = """\
Start N ranks of a program on this host. A name that ends in .py runs under this Python, any other
is run as it is. Output is labelled with the rank it comes from, line by line.

If a rank fails, the others get some seconds to end by themselves, then they are ended. The exit
status is that of the rank that failed first (128 + number for a signal). INT, TERM and HUP are
passed on to the ranks; a second Ctrl-C kills them.
"""

_EPILOG = """\
examples:
  jetstream run -n 4 train.py --steps 10
  jetstream run -n 2 --bind core -m my.app
  jetstream run -n 2 -- ./program --option
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
        "-n", "--ranks", type=_rank_count, required=True, metavar="N", help="number of ranks"
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
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(func=lambda arguments: _run(parser, arguments))


def _rank_count(text: str) -> int:
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
    environments = _environments(arguments.ranks)
    if arguments.ranks == 1 and arguments.timeout is None:
        # Nobody to label or to end: the program takes this process over, terminal and all.
        if cpus:
            os.sched_setaffinity(0, cpus[:1])
        os.execve(command[0], command, environments[0])
    supervisor = Supervisor(
        command,
        environments,
        cpus=cpus,
        is_labelled=arguments.ranks > 1 and not arguments.no_label,
        timeout_s=arguments.timeout,
        grace_s=arguments.grace,
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


def _environments(ranks: int) -> list[dict[str, str]]:
    """Returns the environment of each rank: a meeting point and a secret of their own."""
    job = {
        "JETSTREAM_WORLD_SIZE": str(ranks),
        "JETSTREAM_RENDEZVOUS": f"ipc://@jetstream-{os.geteuid()}-run-{secrets.token_hex(8)}",
        "JETSTREAM_JOB_SECRET": secrets.token_hex(32),
    }
    if ranks > 1:
        # Through a pipe, Python would hold output back until it has some KiB.
        job["PYTHONUNBUFFERED"] = "1"
    return [
        os.environ | job | {"JETSTREAM_RANK": str(rank), "JETSTREAM_LOCAL_RANK": str(rank)}
        for rank in range(ranks)
    ]


def _cpus(ranks: int) -> list[int]:
    """Returns the CPU of each rank, or nothing if there are not enough."""
    allowed = sorted(os.sched_getaffinity(0))
    if ranks > len(allowed):
        report(f"not binding: {ranks} ranks, but only {len(allowed)} CPUs to use")
        return []
    return allowed[:ranks]
