"""``jetstream sim``: completion time by loss and stall, from the simulated wire."""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add_parser"]

_EPILOG = """\
Two hosts of the real protocol, a computed network of 25 Gb/s and 5 us one way, virtual time: the
same options print the same table on every machine. docs/reliability.md describes it.

examples:
  jetstream sim
  jetstream sim --loss 0,0.02 --stall 0,5000 --seed 7
"""


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand to the command line of ``jetstream``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sim",
        help="completion time of the wire by loss and stall, simulated",
        description="Simulate the wire between two hosts: completion time by loss and stall.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--loss", type=_numbers, metavar="RATE[,RATE...]", help="shares lost (0,0.001,0.01,0.05)"
    )
    parser.add_argument(
        "--stall", type=_numbers, metavar="US[,US...]",
        help="lengths of stalls, every 5 ms on average (0,1000,10000)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the network's chances (1)")
    parser.set_defaults(func=_run)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (-1.0,)
    if any(not 0 <= value < 1e9 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 0 on")
    return values


def _run(arguments: argparse.Namespace) -> int:
    from jetstream import sim

    losses = arguments.loss if arguments.loss is not None else sim.LOSSES
    stalls_us = arguments.stall if arguments.stall is not None else sim.STALLS_US
    if any(loss >= 1 for loss in losses):
        sys.stderr.write("jetstream sim: a share lost is less than 1\n")
        return 2
    sys.stdout.write(sim.format_table(sim.table(losses, stalls_us, seed=arguments.seed)))
    return 0
