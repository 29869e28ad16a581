"""The pytest plugin, tried on test files of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest_plugins = ["pytester"]

GOOD = """
    import numpy as np
    import pytest

    pytestmark = pytest.mark.ranks(2)

    def test_sum(comm):
        assert comm.size == 2
        assert comm.all_reduce(np.array([comm.rank + 1])).tolist() == [3]

    @pytest.mark.ranks(3)
    @pytest.mark.parametrize("count", [1, 5])
    def test_parameters(comm, count, tmp_path):
        assert tmp_path.is_dir() and comm.size == 3
        assert (comm.all_reduce(np.ones(count)) == 3).all()
        assert comm.last_op.op_id == 1, "each test has a communicator of its own"

    class TestClass:
        def test_method(self, comm):
            comm.barrier()

    def test_without_comm():
        assert True
"""

BAD = """
    import os
    import time
    import numpy as np
    import pytest

    @pytest.mark.ranks(3)
    def test_wrong(comm):
        answer = 41 + (comm.rank != 2)
        assert answer == 42

    @pytest.mark.ranks(2)
    def test_dead(comm):
        if comm.rank == 1:
            os._exit(9)
        comm.barrier()

    @pytest.mark.ranks(2, timeout_s=2)
    def test_hangs(comm):
        time.sleep(60 * comm.rank)
        comm.barrier()

    @pytest.mark.ranks(2)
    def test_skipped_by_one(comm):
        if comm.rank == 0:
            pytest.skip("not here")

    @pytest.fixture
    def unpicklable():
        return lambda: None

    @pytest.mark.ranks(2)
    def test_fixture(comm, unpicklable):
        pass

    def test_no_marker(comm):
        pass

    @pytest.mark.ranks(2)
    def test_fine(comm):
        comm.barrier()
"""

SKIPPING = """
    import pytest

    @pytest.mark.ranks(2)
    def test_skipped_by_all(comm):
        pytest.skip("the reason")

    @pytest.mark.ranks(2)
    @pytest.mark.xfail(reason="known", strict=True)
    def test_expected(comm):
        assert comm.rank == 0

    @pytest.mark.ranks(2, env={"JETSTREAM_ALGO": "two_shot"})
    def test_environment(comm):
        import numpy as np

        comm.all_reduce(np.ones(3))
        assert comm.last_op.algorithm == "two_shot"
"""


def run(pytester: pytest.Pytester, source: str, *options: str) -> Any:
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("--import-mode=importlib", "-p", "no:benchmark", *options)


def test_marked_tests_run_on_every_rank(pytester: pytest.Pytester, no_leaks: Any) -> None:
    run(pytester, GOOD).assert_outcomes(passed=5)


def test_failures_name_the_rank(pytester: pytest.Pytester, no_leaks: Any) -> None:
    result = run(pytester, BAD)
    result.assert_outcomes(passed=1, failed=5, errors=1)
    text = result.stdout.str()
    assert "test_wrong on 3 ranks: rank 2: AssertionError" in text
    assert "assert 41 == 42" in text, "the values are shown, as pytest does"
    assert "test_dead on 2 ranks: rank 1: ended with exit status 9" in text
    assert re.search(r"test_hangs on 2 ranks: rank [01]: ", text) and "time.sleep" not in text
    assert "test_skipped_by_one on 2 ranks: rank 0: " in text
    assert "SkippedOnRankError: not here" in text
    assert "unpicklable cannot be pickled, and goes to the ranks" in text
    assert "the fixture comm needs @pytest.mark.ranks(n)" in text
    wrong = text.split("_ test_wrong _")[1].split("_ test_dead _")[0]
    assert "harness.py" not in wrong and "plugin.py" not in wrong, "our own frames"


def test_skips_and_expected_failures(pytester: pytest.Pytester) -> None:
    result = run(pytester, SKIPPING, "-rs")
    result.assert_outcomes(skipped=1, xfailed=1, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED*the reason"])


def test_timeout_option(pytester: pytest.Pytester) -> None:
    source = """
        import time, pytest

        @pytest.mark.ranks(2)
        def test_slow(comm):
            time.sleep(60)
    """
    result = run(pytester, source, "--ranks-timeout=2")
    result.assert_outcomes(failed=1)
    found = re.search(r"rank \d: still running after ([\d.]+) s", result.stdout.str())
    assert found is not None and float(found[1]) >= 2


def test_pools_are_for_other_tests(pytester: pytest.Pytester, no_leaks: Any) -> None:
    source = """
        def rank(comm):
            return comm.rank

        def test_pool(rank_pools):
            assert rank_pools(2).run(rank) == [0, 1]
    """
    run(pytester, source).assert_outcomes(passed=1)


def test_the_marker_and_the_option_are_documented(pytester: pytest.Pytester) -> None:
    assert (
        "ranks(n, timeout_s=None, env=None, hosts=" in pytester.runpytest("--markers").stdout.str()
    )
    assert "--ranks-timeout" in pytester.runpytest("--help").stdout.str()
