"""Runs torch's tests one after the other; what their ranks print is kept apart, test by test."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torch.suite import cases
from tests.torch.suite.excludes import exclude_of
from tests.torch.suite.outcomes import FAILED, PASSED, SKIPPED, Outcome, judge

#: So much of what the ranks of a failed test have printed goes into its reason, characters.
_PRINTED_TAIL = 6000


class _Result(unittest.TestResult):
    """Keeps the one result of the one test."""

    def __init__(self) -> None:
        super().__init__()
        self.result = PASSED
        self.reason = ""

    def addError(self, test, err) -> None:  # type: ignore[no-untyped-def]
        self._fail(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addFailure(self, test, err) -> None:  # type: ignore[no-untyped-def]
        self._fail(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSkip(self, test, reason: str) -> None:  # type: ignore[no-untyped-def]
        self.result, self.reason = SKIPPED, reason

    def _fail(self, text: str) -> None:
        self.result, self.reason = FAILED, f"{self.reason}\n{text}".strip()


@contextlib.contextmanager
def _printing_into(path: Path) -> Iterator[None]:
    """Sends what this process and its children print into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


def run_test(name: str, backend: str, world_size: int, logs: Path) -> Outcome:
    """Runs one test on new ranks."""
    skipped = cases.skip_reason(name)
    if skipped is not None:
        return Outcome(name, SKIPPED, 0.0, skipped)
    log = logs / f"{name}.log"
    result = _Result()
    start_s = time.monotonic()
    with _printing_into(log):
        cases.SuiteTest(name).run(result)
    seconds = round(time.monotonic() - start_s, 2)
    reason = result.reason
    if result.result == FAILED:
        printed = log.read_text(errors="replace")[-_PRINTED_TAIL:]
        reason = f"--- printed\n{printed}\n--- raised\n{reason}"
    known = exclude_of(name, backend, world_size)
    outcome = Outcome(name, result.result, seconds, reason)
    return judge(outcome, known.reason if known else None)


def run_tests(
    chosen: list[str],
    backend: str,
    world_size: int,
    logs: Path,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Runs the tests; `tell` hears of each as soon as it has ended."""
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in chosen:
        outcome = run_test(name, backend, world_size, logs)
        tell(outcome)
        outcomes.append(outcome)
    return outcomes
