"""run_ranks and RankPool: a function on every rank of a job, in processes of their own."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from types import TracebackType
from typing import Any

from jetstream.errors import ArgumentError
from jetstream.testing.loading import MAIN_ALIAS
from jetstream.testing.network import Hosts, Network
from jetstream.testing.outcomes import Outcome, raise_failures
from jetstream.testing.process import RankProcess
from jetstream.testing.worker import Job

__all__ = ["RankPool", "find_module", "run_ranks"]

#: Once a rank has failed, how long the others have to notice by themselves.
_FAILURE_GRACE_S = 5.0
_END_GRACE_S = 5.0
#: Waits inside a rank end before the harness does: their error names who is missing.
_WAIT_SHARE = 0.75


def run_ranks(
    fn: Callable[..., Any],
    n: int,
    *args: Any,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    bind: bool = False,
    **hosts: Any,
) -> list[Any]:
    """Runs ``fn(comm, *args)`` on each of ``n`` ranks and returns their results, by rank.

    ``fn`` must be importable: defined at the top of a module; ``args`` and results are pickled.
    Each rank is a fresh process that calls jetstream.init, fn and comm.close. ``env``: variables
    on top of this process's; ``bind``: each rank on one core. When it returns or raises, all of
    its processes are gone.

    ``link``: "shm", or "udp", "packet", "xdp" between several ``hosts``: their number (rank r is
    then on host r * hosts // n; default: n) or the host of each rank. With "udp" the hosts are
    virtual; otherwise, with ``kernel_drop`` or ``namespaces=True``, each is a network namespace on
    a bridge; their interfaces have ``mtu`` (1500), the bridge drops longer frames than ``path_mtu``
    (the same) and the share ``kernel_drop`` of all. ``is_ipv6``: udp goes over IPv6 there;
    ``interfaces``: of each host, all used (1). ``faults``: JETSTREAM_LINK_FAULT.

    Raises RankError when a rank fails, RankTimeoutError (with all stacks) after ``timeout_s``,
    ArgumentError for what makes no sense or cannot be sent to a process, NoNetworkError where
    namespaces are not permitted.
    """
    __tracebackhide__ = True
    with RankPool(n, timeout_s=timeout_s, env=env, bind=bind, fresh=True, **hosts) as pool:
        return pool.run(fn, *args)


class RankPool:
    """Ranks that stay for several functions: starting processes is what takes the time.

    The functions run on one communicator; after a failure the next one gets a new communicator.
    With ``fresh``, each one does, and each rank leaves it when its function has returned. The other
    parameters are those of run_ranks; ``timeout_s`` is for each function. A context manager.
    """

    def __init__(
        self,
        n: int,
        *,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        bind: bool = False,
        fresh: bool = False,
        **hosts: Any,
    ) -> None:
        if not isinstance(n, int) or not 1 <= n <= 256:
            raise ArgumentError(f"n is {n!r}: a number of ranks from 1 to 256 is needed")
        self.size = n
        self._hosts = Hosts.make(n, **hosts)
        self._network: Network | None = None
        self.timeout_s = timeout_s
        self._env = dict(env or {})
        self._bind = bind
        self._fresh = fresh
        self._processes: list[RankProcess] = []
        self._needs_communicator = True
        self._what = ""
        self._started_s = self._deadline_s = 0.0
        self._order = itertools.count()

    def __enter__(self) -> RankPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(timeout_s=_END_GRACE_S if error is None else 0.0)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty before the first function and after a death."""
        return tuple(process.pid for process in self._processes)

    @property
    def network(self) -> Network | None:
        """What joins the hosts, if they are namespaces and the ranks have been started."""
        return self._network

    def run(self, fn: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> list[Any]:
        """Runs ``fn(comm, *args)`` on every rank and returns the results. Raises as run_ranks."""
        __tracebackhide__ = True
        self.start(fn, *args, timeout_s=timeout_s)
        outcomes = self._wait(grace_s=_FAILURE_GRACE_S)
        raise_failures(outcomes, self._what)
        return [outcome.value for outcome in outcomes]

    def collect(
        self, fn: Callable[..., Any], *args: Any, timeout_s: float | None = None
    ) -> list[Outcome]:
        """Like `run`, but failures are not raised: returns how the function ended on each rank."""
        self.start(fn, *args, timeout_s=timeout_s)
        return self.wait()

    def start(
        self,
        fn: Callable[..., Any],
        *args: Any,
        timeout_s: float | None = None,
        module: tuple[str, str | None] | None = None,
        rewrite_asserts: bool = False,
    ) -> None:
        """Starts ``fn(comm, *args)`` on every rank; `wait` must come next.

        ``module``: name and file of what the ranks load first, by default the module of fn; with
        ``rewrite_asserts`` its failing assertions say what the values were, as under pytest.
        """
        module = module or find_module(fn)
        call = _pickle_call(fn, args)
        self._what = getattr(fn, "__name__", type(fn).__name__)
        if not self._processes:
            self._spawn()
        address = None
        if self._needs_communicator or self._fresh:
            address = self._hosts.new_address()
        self._needs_communicator = False
        budget_s = self.timeout_s if timeout_s is None else timeout_s
        self._started_s = time.monotonic()
        self._deadline_s = self._started_s + budget_s
        job = Job(call, module, rewrite_asserts, address, self._fresh)
        for process in self._processes:
            process.send(job)

    def wait(self) -> list[Outcome]:
        """Waits until the function has ended on all ranks; returns how, by rank.

        Ranks still running when the time is up are killed; their outcome holds their stacks.
        """
        return self._wait(grace_s=float("inf"))

    def close(self, *, timeout_s: float = _END_GRACE_S) -> None:
        """Ends the ranks: they may take so long to leave. Nothing is left. Idempotent."""
        processes, self._processes = self._processes, []
        self._needs_communicator = True
        deadline_s = time.monotonic() + timeout_s
        for process in processes:
            process.stop()
        for process in processes:
            process.end(timeout_s=deadline_s - time.monotonic())
        if self._network is not None:
            self._network.close()
            self._network = None

    # --- internals --------------------------------------------------------------------------

    def _spawn(self) -> None:
        base = {**os.environ, **self._environment()}
        cpus = sorted(os.sched_getaffinity(0))
        self._network = self._hosts.build()
        try:
            for rank in range(self.size):
                env = {**base, **self._environment_of(rank)}
                cpu = cpus[rank % len(cpus)] if self._bind else None
                inside = self._network.fds(self._hosts.index[rank]) if self._network else ()
                process = RankProcess(rank, env=env, cpu=cpu, namespaces=inside)
                self._processes.append(process)
        except BaseException:
            self.close(timeout_s=0.0)
            raise

    def _environment_of(self, rank: int) -> dict[str, str]:
        index = self._hosts.index
        local_rank = index[:rank].count(index[rank])
        place = {"JETSTREAM_RANK": str(rank), "JETSTREAM_LOCAL_RANK": str(local_rank)}
        return {**self._hosts.environment(rank), **self._env, **place}

    def _environment(self) -> dict[str, str]:
        defaults = {
            # Ranks share the cores: a thread pool in each of them would only get in the way.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "JETSTREAM_TIMEOUT": f"{_WAIT_SHARE * self.timeout_s:g}",
            "JETSTREAM_INIT_TIMEOUT": f"{_WAIT_SHARE * self.timeout_s:g}",
        }
        place = {
            "JETSTREAM_WORLD_SIZE": str(self.size),
            "JETSTREAM_JOB_SECRET": secrets.token_hex(16),
        }
        return {**defaults, **self._env, **place}

    def _wait(self, *, grace_s: float) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        deadline_s = self._deadline_s
        try:
            while len(outcomes) < self.size:
                running = [p for p in self._processes if p.rank not in outcomes]
                fds = [fd for process in running for fd in process.fds]
                left_s = deadline_s - time.monotonic()
                if not connection.wait(fds, max(0.0, left_s)):
                    break
                for process in running:
                    outcome = process.take(next(self._order))
                    if outcome is not None:
                        outcomes[process.rank] = outcome
                        if not outcome.is_ok:
                            deadline_s = min(deadline_s, time.monotonic() + grace_s)
            self._give_up(outcomes)
        except BaseException:
            self.close(timeout_s=0.0)
            raise
        if any(outcome.has_died or not outcome.has_ended for outcome in outcomes.values()):
            self.close(timeout_s=0.0)
        self._needs_communicator = not all(outcome.is_ok for outcome in outcomes.values())
        return [outcomes[rank] for rank in range(self.size)]

    def _give_up(self, outcomes: dict[int, Outcome]) -> None:
        """Gets the stacks of the ranks that are still running."""
        late = [process for process in self._processes if process.rank not in outcomes]
        for process in late:
            process.request_stacks()
        ran_s = time.monotonic() - self._started_s
        for process in late:
            outcomes[process.rank] = process.give_up(ran_s, next(self._order))


def find_module(fn: Callable[..., Any]) -> tuple[str, str | None]:
    """Returns name and file of the module that ``fn`` comes from."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__module__", None) or type(fn).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__":
        if file is None:
            raise ArgumentError(f"{fn!r} was typed at a prompt: put it in a file, to be imported")
        sys.modules[MAIN_ALIAS] = sys.modules[name]  # results may be of classes defined there
    return name, file


def _pickle_call(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((fn, args))
    except Exception as error:
        raise ArgumentError(
            f"{fn!r} and its arguments go to other processes, so fn must be defined at the top of "
            f"a module and the arguments must be such that pickle can take them: {error}"
        ) from error
