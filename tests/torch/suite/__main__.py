"""Command line of the suite."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from tests.torch.suite import outcomes
from tests.torch.suite.excludes import EXCLUDES
from tests.torch.suite.selection import CORE

#: Here and in cases.py, which must not be imported before the environment is set.
_BACKENDS = ("jetstream", "jetstream-as-gloo", "gloo")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torch.suite",
        description="Runs torch's own tests of process groups on a backend.",
    )
    parser.add_argument("--as", dest="backend", choices=_BACKENDS, default="jetstream")
    parser.add_argument("--world-size", type=int, default=3, metavar="N", help="ranks (3)")
    parser.add_argument("-k", dest="pattern", help="only tests that this regular expression finds")
    parser.add_argument("--core", action="store_true", help="only the selection of the test run")
    parser.add_argument("--list", action="store_true", help="say which there are and what skips")
    parser.add_argument(
        "--start",
        choices=("fork", "spawn"),
        default="fork",
        help="how ranks start; with spawn, as torch does it, each imports torch anew",
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for one test (120)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/torch-suite"),
        metavar="DIR",
        help="where results and what the ranks print go (build/torch-suite)",
    )
    parser.add_argument("--quiet", action="store_true", help="no line for each test")
    return parser.parse_args()


def _tell(outcome: outcomes.Outcome) -> None:
    said = f": {outcome.line}" if outcome.result != outcomes.PASSED else ""
    print(f"{outcome.seconds:7.2f} s  {outcome.name}  {outcome.result}{said}", flush=True)


def main() -> int:
    """Returns the exit status: 0 if all tests passed that should, 1 if not, 2 if there are none."""
    given = _arguments()
    os.environ["JETSTREAM_SUITE_BACKEND"] = given.backend
    os.environ["JETSTREAM_SUITE_START"] = given.start
    os.environ["WORLD_SIZE"] = str(given.world_size)

    from tests.torch.suite import cases, run

    unknown = sorted(EXCLUDES.keys() - set(cases.names()))
    if unknown:
        print(f"excluded, but no test of this torch: {', '.join(unknown)}", file=sys.stderr)
        return 2
    cases.set_patience(given.timeout)
    chosen = [name for name in cases.names() if re.search(given.pattern or "", name)]
    if given.core:
        chosen = [name for name in chosen if any(re.fullmatch(core, name) for core in CORE)]
    if not chosen:
        print("no such test", file=sys.stderr)
        return 2
    if given.list:
        for name in chosen:
            skipped = cases.skip_reason(name)
            print(name if skipped is None else f"{name}  skipped: {skipped}")
        return 0

    folder = given.output / f"{given.backend}-{given.world_size}"
    tell = _tell if not given.quiet else lambda _outcome: None
    ended = run.run_tests(chosen, given.backend, given.world_size, folder, tell)
    result = outcomes.Run(given.backend, given.world_size, cases.torch_version(), ended)
    result.write(folder / "results.json")
    print(result.summary())
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
