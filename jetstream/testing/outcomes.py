"""How a function ended on each rank, and the exception that a failure becomes in the parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jetstream.errors import CommunicatorAbortedError, JetstreamError

__all__ = ["Outcome", "RankError", "RankTimeoutError", "raise_failures"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a function ended on one rank.

    ``failure`` is None when it returned ``value``, else one line: the exception, "killed by
    SIGKILL", "still running". ``details`` is the traceback, or the stacks of a rank that was still
    running. ``error`` is the exception itself if it could be pickled. ``has_ended`` is false when
    the rank did not come back by itself. ``order`` counts the outcomes as they arrived.
    """

    rank: int
    value: Any = None
    failure: str | None = None
    details: str = ""
    error: BaseException | None = None
    has_died: bool = False
    has_ended: bool = True
    order: int = 0

    @property
    def is_ok(self) -> bool:
        """Whether the function returned."""
        return self.failure is None


class RankError(JetstreamError, RuntimeError):
    """A rank failed. The text has its traceback and says how the other failed ranks ended.

    ``rank`` is the rank that failed first, not counting those that failed because another one had;
    ``outcomes`` are those of all ranks. The original exception is ``__cause__``, where it can be
    pickled.
    """

    def __init__(self, text: str, rank: int = -1, outcomes: Sequence[Outcome] = ()) -> None:
        super().__init__(text)
        self.rank = rank
        self.outcomes = tuple(outcomes)


class RankTimeoutError(RankError, TimeoutError):
    """Ranks were still running when the time was up. The text has the stacks of each of them."""


def raise_failures(outcomes: Sequence[Outcome], what: str) -> None:
    """Raises RankError, or RankTimeoutError, unless all ranks are fine. ``what`` was running."""
    failed = [outcome for outcome in outcomes if not outcome.is_ok]
    if not failed:
        return
    first = min(failed, key=_blame)
    text = _describe(first, failed, f"{what} on {len(outcomes)} ranks")
    kind = RankError if first.has_ended else RankTimeoutError
    raise kind(text, first.rank, outcomes) from first.error


def _blame(outcome: Outcome) -> tuple[int, int]:
    """A sort key: those that failed by themselves, then the late, then the victims of others."""
    if not outcome.has_ended:
        return 1, outcome.order
    is_victim = isinstance(outcome.error, CommunicatorAbortedError) and not outcome.has_died
    return 2 if is_victim else 0, outcome.order


def _describe(first: Outcome, failed: Sequence[Outcome], what: str) -> str:
    parts = [f"{what}: rank {first.rank}: {first.failure}"]
    if first.details:
        parts.append(_section(first))
    others = [outcome for outcome in failed if outcome is not first]
    for other in others:
        parts.append(f"also rank {other.rank}: {other.failure}")
        if not other.has_ended and other.details:
            parts.append(_section(other))
    return "\n\n".join(parts)


def _section(outcome: Outcome) -> str:
    head = f"--- rank {outcome.rank} "
    return f"{head}{'-' * (80 - len(head))}\n{outcome.details.rstrip()}"
