"""The pytest plugin: tests that run on several ranks, and pools of ranks for other tests.

``@pytest.mark.ranks(4)`` runs the test's body on each of 4 ranks, with the rank's communicator as
``comm``. The processes are kept for the next test; the communicator is new for each.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jetstream.testing.harness import RankPool
    from jetstream.testing.outcomes import Outcome

__all__ = ["Pools"]

_TIMEOUT_S = 60.0
_RANKS_MAX = 16


class Pools:
    """The ranks of a test session, by size, environment and hosts.

    Keeps at most ``ranks_max`` processes; the pool that was not used for longest goes first.
    """

    def __init__(self, timeout_s: float, *, ranks_max: int = _RANKS_MAX) -> None:
        self.timeout_s = timeout_s
        self._ranks_max = ranks_max
        self._pools: dict[Hashable, RankPool] = {}

    def __call__(self, n: int, *, env: dict[str, str] | None = None, **hosts: Any) -> RankPool:
        """A pool of ``n`` ranks that gives each function a new communicator.

        ``hosts``: ``hosts``, ``link``, ``faults`` and what else run_ranks has for several hosts.
        """
        from jetstream.testing.harness import RankPool

        key = (n, frozenset((env or {}).items()), repr(sorted(hosts.items())))
        pool = self._pools.pop(key, None)
        if pool is None:
            pool = RankPool(n, timeout_s=self.timeout_s, env=env, fresh=True, **hosts)
        self._pools[key] = pool  # the last place: used last
        while len(self._pools) > 1 and self._count() > self._ranks_max:
            self._pools.pop(next(iter(self._pools))).close()
        return pool

    def _count(self) -> int:
        return sum(pool.size for pool in self._pools.values())

    def close(self) -> None:
        """Ends all ranks."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


class _OutsideRanks:
    """What ``comm`` is outside of the ranks: no communicator, and it says so."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"comm.{name}: there is a communicator in the body of the test only")


class SkippedOnRankError(Exception):
    """What pytest.skip becomes in a rank: a test that only some ranks skip has failed."""


_pools_key = pytest.StashKey[Pools]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --ranks-timeout."""
    group = parser.getgroup("jetstream")
    group.addoption(
        "--ranks-timeout",
        type=float,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long the body of a test may run on its ranks (default {_TIMEOUT_S:g})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line(
        "markers",
        "ranks(n, timeout_s=None, env=None, hosts=..., link=..., faults=..., kernel_drop=..., "
        "namespaces=..., mtu=...): run the body of the test on n ranks, each with its "
        "communicator as `comm`; where network namespaces are not permitted it is skipped",
    )
    config.stash[_pools_key] = Pools(config.getoption("--ranks-timeout"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the ranks of the session."""
    config.stash[_pools_key].close()


@pytest.fixture(scope="session")
def rank_pools(request: pytest.FixtureRequest) -> Pools:
    """``rank_pools(n)`` is a pool of n ranks that other tests use too; see RankPool."""
    return request.config.stash[_pools_key]


@pytest.fixture
def comm(request: pytest.FixtureRequest) -> Iterator[_OutsideRanks]:
    """The communicator of the rank, in tests marked ``ranks(n)``."""
    if request.node.get_closest_marker("ranks") is None:
        pytest.fail("the fixture comm needs @pytest.mark.ranks(n)", pytrace=False)
    yield _OutsideRanks()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs the body of a marked test on its ranks."""
    __tracebackhide__ = True
    marker = pyfuncitem.get_closest_marker("ranks")
    if marker is None:
        return None
    n, timeout_s, env, hosts = _read_marker(*marker.args, **marker.kwargs)
    names = pyfuncitem._fixtureinfo.argnames
    values = {name: pyfuncitem.funcargs[name] for name in names if name != "comm"}
    _check_values(values)
    pool = pyfuncitem.config.stash[_pools_key](n, env=env, **hosts)
    _start(
        pool,
        _run_body,
        pyfuncitem.function.__module__,
        pyfuncitem.function.__qualname__,
        values,
        "comm" in names,
        timeout_s=timeout_s,
        module=(pyfuncitem.module.__name__, pyfuncitem.module.__file__),
        rewrite_asserts=True,
    )
    _judge(pool.wait(), pyfuncitem.name)
    return True


def _check_values(values: dict[str, Any]) -> None:
    """Fails the test if the value of a fixture or parameter cannot go to other processes."""
    __tracebackhide__ = True
    for name, value in values.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            pytest.fail(f"{name} cannot be pickled, and goes to the ranks: {error}", pytrace=False)


def _read_marker(
    n: int, *, timeout_s: float | None = None, env: dict[str, str] | None = None, **hosts: Any
) -> tuple[int, float | None, dict[str, str] | None, dict[str, Any]]:
    return n, timeout_s, env, hosts


def _start(pool: RankPool, *arguments: Any, **options: Any) -> None:
    """Starts a test on its ranks, or skips it where there can be no network for it."""
    __tracebackhide__ = True
    from jetstream.testing.network import NoNetworkError

    try:
        pool.start(*arguments, **options)
    except NoNetworkError as error:
        pytest.skip(str(error))


def _run_body(comm: Any, module: str, qualname: str, values: dict[str, Any], wants: bool) -> None:
    """Runs in the rank: finds the test in its module and calls it."""
    owner: Any = sys.modules[module]
    *outer, name = qualname.split(".")
    for part in outer:
        owner = getattr(owner, part)
    test = getattr(owner() if outer else owner, name)
    if wants:
        values["comm"] = comm
    try:
        test(**values)
    except pytest.skip.Exception as skipped:
        raise SkippedOnRankError(skipped.msg) from None


def _judge(outcomes: list[Outcome], what: str) -> None:
    """Passes, fails with the report of the rank that failed, or skips if all ranks want to."""
    __tracebackhide__ = True
    from jetstream.testing.outcomes import RankError, raise_failures

    skips = [outcome for outcome in outcomes if isinstance(outcome.error, SkippedOnRankError)]
    if len(skips) == len(outcomes):
        pytest.skip(str(skips[0].error))
    try:
        raise_failures(outcomes, what)
    except RankError as error:
        pytest.fail(str(error), pytrace=False)
