"""run_ranks and RankPool: results in order, failures with their story, nothing left behind."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    CommunicatorAbortedError,
    PeerDiedError,
)
from jetstream.testing import Outcome, RankError, RankPool, RankTimeoutError, run_ranks
from jetstream.testing.outcomes import raise_failures
from jetstream.testing.plugin import Pools
from jetstream.testing.process import RankProcess


@dataclass(frozen=True)
class Point:
    """An argument and a result of a class that only this module has."""

    x: int


class PickyError(Exception):
    """Cannot be pickled: its constructor wants more than its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("picky")


def shift(comm: Communicator, point: Point) -> tuple[Point, int]:
    total = comm.all_reduce(np.array([comm.rank]))
    return Point(point.x + comm.rank), int(total[0])


def keep(comm: Communicator) -> tuple[int, int, bool]:
    """What shows whether process and communicator are new."""
    comm.barrier()
    assert comm.last_op is not None
    return os.getpid(), comm.last_op.op_id, os.environ.get("KEEP") == "yes"


def fail_on_one(comm: Communicator, kind: str) -> Any:
    if comm.rank == 1:
        if kind == "value":
            raise ValueError("rank one is not well")
        if kind == "picky":
            raise PickyError(1, 2)
        if kind == "exit":
            sys.exit(3)
        if kind == "death":
            os._exit(5)
        if kind == "result":
            return lambda: None
        os.kill(os.getpid(), signal.SIGKILL)
    return comm.barrier()


def hang_on_one(comm: Communicator) -> None:
    if comm.rank == 1:
        hang_here()
    comm.barrier(timeout=600)


def hang_here() -> None:
    time.sleep(600)


def stop_on_one(comm: Communicator) -> None:
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    comm.barrier(timeout=600)


def start_a_child(comm: Communicator) -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def affinity(comm: Communicator) -> set[int]:
    return os.sched_getaffinity(0)


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


def test_results_in_order(no_leaks: Any) -> None:
    results = run_ranks(shift, 3, Point(10))
    assert results == [(Point(10), 3), (Point(11), 3), (Point(12), 3)]


def test_one_rank(no_leaks: Any) -> None:
    assert run_ranks(shift, 1, Point(1)) == [(Point(1), 0)]


def test_partial_functions(pool: RankPool) -> None:
    assert pool.run(functools.partial(shift, point=Point(5))) == [(Point(5), 1), (Point(6), 1)]


def test_a_pool_keeps_processes_and_communicator(pool: RankPool) -> None:
    first, second = pool.run(keep), pool.run(keep)
    assert [pid for pid, _, _ in first] == [pid for pid, _, _ in second] == list(pool.pids)
    assert second[0][1] == first[0][1] + 1, "the same communicator goes on counting"


def test_a_fresh_pool_keeps_processes_only() -> None:
    with RankPool(2, fresh=True, env={"KEEP": "yes"}) as pool:
        runs = [pool.run(keep) for _ in range(3)]
    assert len({run[0][0] for run in runs}) == 1
    assert {(op_id, env) for run in runs for _, op_id, env in run} == {(1, True)}


def test_failure_names_the_rank_and_has_its_traceback(pool: RankPool) -> None:
    with pytest.raises(RankError) as caught:
        pool.run(fail_on_one, "value")
    error = caught.value
    assert error.rank == 1
    assert "rank 1: ValueError: rank one is not well" in str(error)
    assert 'raise ValueError("rank one is not well")' in str(error), "the traceback"
    assert "worker.py" not in str(error), "our own frames are of no interest"
    assert "also rank 0: " in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert isinstance(error.outcomes[0].error, CommunicatorAbortedError)
    assert [type(outcome) for outcome in error.outcomes] == [Outcome, Outcome]
    assert pool.run(shift, Point(0))[1] == (Point(1), 1), "the pool goes on"


def test_exceptions_that_cannot_be_pickled(pool: RankPool) -> None:
    with pytest.raises(RankError, match="PickyError: picky") as caught:
        pool.run(fail_on_one, "picky")
    assert caught.value.__cause__ is None


def test_results_that_cannot_be_pickled(pool: RankPool) -> None:
    with pytest.raises(RankError, match="rank 1: TypeError: the result, a function, cannot go"):
        pool.run(fail_on_one, "result")


def test_exit_is_a_failure(pool: RankPool) -> None:
    with pytest.raises(RankError, match="rank 1: SystemExit: 3"):
        pool.run(fail_on_one, "exit")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("death", "ended with exit status 5 before"), ("kill", "killed by SIGKILL")],
)
def test_death_is_reported_as_such(pool: RankPool, kind: str, text: str) -> None:
    with pytest.raises(RankError, match=f"rank 1: {text}") as caught:
        pool.run(fail_on_one, kind)
    assert caught.value.rank == 1
    assert isinstance(caught.value.outcomes[0].error, PeerDiedError)
    assert pool.run(shift, Point(0))[0] == (Point(0), 1), "the pool recovers"


def test_collect_does_not_raise(pool: RankPool) -> None:
    first, second = pool.collect(fail_on_one, "value")
    assert (first.rank, first.is_ok, second.is_ok) == (0, False, False)
    assert second.failure == "ValueError: rank one is not well" and second.has_ended


def text_of_timeout(fn: Any, *wanted: str) -> str:
    """What is said when fn is not over in time.

    The ranks get more of it if they have not come as far as to what is wanted in the text.
    """
    for timeout_s in (1.5, 15.0, 60.0):
        with RankPool(2) as ranks:
            ranks.run(shift, Point(0))  # so that the time is not that of their start
            start_s = time.monotonic()
            with pytest.raises(RankTimeoutError) as caught:
                ranks.run(fn, timeout_s=timeout_s)
            waited_s = time.monotonic() - start_s
        assert isinstance(caught.value, TimeoutError)
        assert waited_s < timeout_s + 30
        text = str(caught.value)
        if all(one in text for one in wanted):
            break
    return text


def test_timeout_shows_all_stacks(no_leaks: Any) -> None:
    wanted = "in hang_here", "in barrier"
    text = text_of_timeout(hang_on_one, *wanted)
    assert all(one in text for one in wanted), text
    for rank in (0, 1):
        found = re.search(rf"rank {rank}: still running after ([\d.]+) s \(pid ", text)
        assert found is not None and float(found[1]) >= 1.5, text


def test_timeout_with_a_stopped_rank(no_leaks: Any) -> None:
    wanted = "no stacks: the process is stopped"
    assert wanted in text_of_timeout(stop_on_one, wanted)


def test_stacks_are_read_when_they_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 'Thread 1:\n  File "a", line 1 in f\n\nThread 2:\n  File "b", line 2 in <module>\n'
    parts = iter([whole[: len(whole) * part // 4] for part in range(5)])
    process = RankProcess(1, env=os.environ, cpu=None)
    try:
        monkeypatch.setattr(process, "_read_dump", lambda: next(parts))
        assert process.give_up(1.0, 0).details == whole
    finally:
        process.end(timeout_s=0.0)


def test_what_ranks_start_ends_with_them(no_leaks: Any) -> None:
    assert len(set(run_ranks(start_a_child, 2))) == 2  # and no_leaks says that both are gone


def test_binding() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    bound = run_ranks(affinity, 3, bind=True)
    assert bound == [{cpus[rank % len(cpus)]} for rank in range(3)]


def test_what_cannot_be_sent() -> None:
    with pytest.raises(ArgumentError, match="defined at the top of a module"):
        run_ranks(lambda comm: None, 1)
    with pytest.raises(ArgumentError, match="arguments must be such that pickle"):
        run_ranks(shift, 1, (n for n in ()))


@pytest.mark.parametrize("n", [0, -1, 257, 1.5, "2"])
def test_number_of_ranks(n: Any) -> None:
    with pytest.raises(ArgumentError, match="from 1 to 256"):
        run_ranks(shift, n, Point(1))


def test_pools_by_size_and_environment(no_leaks: Any) -> None:
    pools = Pools(60.0, ranks_max=4)
    two = pools(2)
    assert two.run(shift, Point(0))[1] == (Point(1), 1)
    assert pools(2) is two
    other = pools(2, env={"KEEP": "yes"})
    assert other is not two and other.run(keep)[0][2]
    assert pools(2) is two and two.pids, "used last: the other one goes first"
    pools(1)
    assert two.pids and not other.pids
    pools.close()
    assert not two.pids


def test_blame() -> None:
    """Who failed first by itself counts, not who noticed first."""
    victim = Outcome(0, failure="aborted", error=CommunicatorAbortedError("x"), order=1)
    cause = Outcome(1, failure="oh", error=ValueError("oh"), order=2)
    late = Outcome(2, failure="still running", has_ended=False, order=3)
    with pytest.raises(RankError, match="on 4 ranks: rank 1: oh") as caught:
        raise_failures([victim, cause, late, Outcome(3)], "something")
    assert not isinstance(caught.value, RankTimeoutError)
    with pytest.raises(RankTimeoutError, match="rank 2: still running"):
        raise_failures([victim, late], "something")
    raise_failures([Outcome(0), Outcome(1)], "something")


def test_scripts(tmp_path: Path, no_leaks: Any) -> None:
    """A script may call run_ranks; its guard keeps the ranks from doing so again."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from jetstream.testing import run_ranks

        @dataclass
        class Answer:
            rank: int

        def ask(comm):
            return Answer(comm.rank)

        if __name__ == "__main__":
            print(run_ranks(ask, 2))
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[Answer(rank=0), Answer(rank=1)]\n"


def test_ranks_die_with_a_killed_parent(tmp_path: Path, no_leaks: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, time
        from jetstream.testing import RankPool

        def sleep(comm):
            time.sleep(600)

        if __name__ == "__main__":
            with RankPool(2) as pool:
                pool.start(sleep)
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL


def test_the_parent_loads_neither_numpy_nor_the_data_plane() -> None:
    code = (
        "import sys, jetstream.testing.plugin, jetstream.testing.harness; "
        "print([name for name in sys.modules if name in ('numpy', 'jetstream._native', 'zmq')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
