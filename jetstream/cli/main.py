"""The command ``jetstream``: picks the subcommand, reports errors, returns the exit status."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence

from jetstream.errors import JetstreamError

__all__ = ["main"]

#: Each is a module of this folder with ``add_parser(subparsers)``, which sets ``func``.
COMMANDS = ("run", "bench", "tune", "sim", "info")

_EXAMPLES = """\
examples:
  jetstream run -n 4 train.py --steps 10     four ranks of a script on this host
  jetstream run -n 2 --bind core -m my.app   two ranks of a module, one CPU each
  jetstream bench all_reduce -n 2            latency and its tail
  jetstream tune -n 2                        measures what is chosen by call and size
  jetstream sim                              the wire by loss and stall, simulated
  jetstream info                             what works here, and why something does not

'jetstream COMMAND --help' says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: that of the process) and returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # One command must work, and start fast, whatever the modules of the others need.
    is_known = bool(argv) and argv[0] in COMMANDS
    arguments = _parser(tuple(argv[:1]) if is_known else COMMANDS).parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.func
    try:
        return command(arguments) or 0
    except JetstreamError as error:
        sys.stderr.write(f"jetstream: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser(commands: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jetstream",
        description="Low-latency interconnect runtime for tensor-parallel inference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in commands:
        importlib.import_module(f"jetstream.cli.{name}").add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Prints the version, and the build where the data plane can be loaded."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from jetstream import __version__

        try:
            from jetstream._core.native import ffi, lib

            build = ffi.string(lib.js_build_id()).decode()
        except ImportError as error:
            build = f"none: {error}"
        sys.stdout.write(f"jetstream {__version__} (build {build})\n")
        parser.exit()
