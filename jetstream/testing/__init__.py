"""Loopback harness: the ranks of a job inside a test, on one machine, nothing left behind.

``run_ranks(fn, n)`` runs a function on n ranks and returns their results; a RankPool keeps the
processes for the next call. The pytest plugin adds ``@pytest.mark.ranks(n)`` and two fixtures.
``docs/testing.md`` explains all of it. Importing this costs nothing; NumPy and the data plane are
loaded in the ranks alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetstream.testing.harness import RankPool, run_ranks
    from jetstream.testing.network import NoNetworkError
    from jetstream.testing.outcomes import Outcome, RankError, RankTimeoutError

__all__ = ["NoNetworkError", "Outcome", "RankError", "RankPool", "RankTimeoutError", "run_ranks"]

_HOMES = {
    "NoNetworkError": "jetstream.testing.network",
    "Outcome": "jetstream.testing.outcomes",
    "RankError": "jetstream.testing.outcomes",
    "RankPool": "jetstream.testing.harness",
    "RankTimeoutError": "jetstream.testing.outcomes",
    "run_ranks": "jetstream.testing.harness",
}


def __getattr__(name: str) -> Any:
    """Loads a public name at its first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'jetstream.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
