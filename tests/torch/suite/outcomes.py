"""What came of the tests, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PASSED = "passed"
FAILED = "failed"
SKIPPED = "skipped"
EXCLUDED = "excluded"
#: Is on the list of those that do not pass, and passes.
UNEXPECTED = "passed, but is excluded"

BAD = (FAILED, UNEXPECTED)
_ORDER = (PASSED, FAILED, SKIPPED, EXCLUDED, UNEXPECTED)


@dataclass(frozen=True)
class Outcome:
    """How one test ended. `reason`: of a skip, an exclude or a failure, in full."""

    name: str
    result: str
    seconds: float
    reason: str = ""

    @property
    def line(self) -> str:
        """The reason in a line: of a traceback the last of its lines that says anything."""
        lines = [line.strip() for line in self.reason.splitlines() if line.strip()]
        said = [line for line in lines if _says_what(line)]
        return (said or lines or [""])[-1][:200]


def _says_what(line: str) -> bool:
    word = line.split(":")[0]
    return word.endswith(("Error", "Exception")) and " " not in word and word != "RuntimeError"


def judge(outcome: Outcome, known: str | None) -> Outcome:
    """What becomes of an outcome with the reason that is known for its test not to pass."""
    if known is None or outcome.result == SKIPPED:
        return outcome
    result = UNEXPECTED if outcome.result == PASSED else EXCLUDED
    return replace(outcome, result=result, reason=known)


@dataclass(frozen=True)
class Run:
    """All outcomes of one backend in one world size."""

    backend: str
    world_size: int
    torch_version: str
    outcomes: list[Outcome]

    def count(self) -> dict[str, int]:
        """How many tests ended how, in a steady order."""
        counted = Counter(outcome.result for outcome in self.outcomes)
        return {result: counted[result] for result in _ORDER if counted[result]}

    @property
    def is_good(self) -> bool:
        """Did all pass that should?"""
        return not any(outcome.result in BAD for outcome in self.outcomes)

    def summary(self) -> str:
        """Counts, then a line for each test that did not simply pass."""
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        counts = ", ".join(f"{count} {result}" for result, count in self.count().items())
        head = f"{self.backend}, world size {self.world_size}, torch {self.torch_version}"
        lines = [f"{head}: {counts or 'no tests'} in {seconds:.0f} s"]
        for result in _ORDER[1:]:
            lines += [
                f"  {result}: {outcome.name}: {outcome.line}"
                for outcome in self.outcomes
                if outcome.result == result
            ]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """The run as JSON has it."""
        return {**asdict(self), "count": self.count()}
