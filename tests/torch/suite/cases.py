"""torch's tests as a class of ours: which backend they run on and how their ranks are started.

The environment says which, because torch's module reads it when it is imported and a rank that is
spawned imports it anew: BACKEND and WORLD_SIZE are torch's own names, TEMP_DIR too.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

#: How the backend under test is called on the command line: what torch is told to use.
BACKENDS = {"jetstream": "jetstream", "jetstream-as-gloo": "gloo", "gloo": "gloo"}
#: Is set in all processes of a run, to one of these names.
UNDER_TEST = "JETSTREAM_SUITE_BACKEND"
START_METHOD = "JETSTREAM_SUITE_START"
#: The bound of every test in seconds, once it is set.
PATIENCE = "JETSTREAM_SUITE_PATIENCE"

_under_test = os.environ[UNDER_TEST]
os.environ["BACKEND"] = BACKENDS[_under_test]
os.environ.setdefault("TEMP_DIR", tempfile.gettempdir())
# Ranks meet over a file in any case, and a test that needs that asks here. Which file it is depends
# on the test.
os.environ.setdefault("INIT_METHOD", "file:///")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.testing._internal import common_distributed  # noqa: E402

if _under_test != "gloo":
    import jetstream.torch

    jetstream.torch.register()
    jetstream.torch.ProcessGroupJetstream  # noqa: B018  # loads what ranks need
if _under_test == "jetstream-as-gloo":
    jetstream.torch.install_as_gloo()

for _feature in ("plugin", "ddp", "subgroup"):
    common_distributed.DistTestCases.backend_feature[_feature].add("jetstream")

# After what it depends on: its decorators ask for the backend's features.
from torch.testing._internal.distributed import distributed_test  # noqa: E402

_PROFILED = (
    "PROFILING_SUPPORTED_BACKENDS",
    "SEND_RECV_PROFILING_SUPPORTED_BACKENDS",
)
for _name in _PROFILED:
    getattr(distributed_test, _name).append("jetstream")

#: A rank that has ended its test has this long to end itself, seconds.
_END_PATIENCE_S = 20.0


def _start_rank(run: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """What a forked rank does before its test: it forgets what is its parent's to clean up."""
    if common_distributed.tmp_dir is not None:
        common_distributed.tmp_dir._finalizer.detach()
    distributed_test.INIT_METHOD = os.environ["INIT_METHOD"]
    run(*args, **kwargs)


class SuiteTest(  # type: ignore[misc]  # torch has no types here
    distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase
):
    """torch's tests. Every rank has to end well; torch itself looks at the first one alone."""

    def setUp(self) -> None:
        super().setUp()
        self._started: list[Any] = []
        self._spawn_processes()

    def _spawn_processes(self) -> None:
        if os.environ.get(START_METHOD) == "spawn":
            super()._spawn_processes()
        else:
            fork = torch.multiprocessing.get_context("fork").Process

            def process(target: Callable[..., None], args: tuple[Any, ...], **named: Any) -> Any:
                return fork(target=_start_rank, args=(target, *args), **named)

            sys.stdout.flush()
            sys.stderr.flush()
            self._start_processes(process)
        self._started = list(self.processes)

    def _check_return_codes(self, fn: Callable[..., None], elapsed_time: float) -> None:
        super()._check_return_codes(fn, elapsed_time)
        codes = [process.exitcode for process in self._started]
        if fn not in self.skip_return_code_checks and len(set(codes)) > 1:
            raise RuntimeError(f"the ranks ended with different exit codes, by rank: {codes}")

    def tearDown(self) -> None:
        super().tearDown()
        deadline_s = time.monotonic() + _END_PATIENCE_S
        for process in self._started:
            process.join(max(0.0, deadline_s - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        self._started = []
        if os.path.exists(self.file_name):  # noqa: PTH110
            os.unlink(self.file_name)  # noqa: PTH108


def names() -> Iterator[str]:
    """Every test that torch has there, in order of their names."""
    yield from sorted(name for name in dir(SuiteTest) if name.startswith("test_"))


def skip_reason(name: str) -> str | None:
    """Why torch's decorators skip the test for this backend and world size; None: it runs."""
    test = getattr(SuiteTest, name)
    if getattr(test, "__unittest_skip__", False):
        return str(getattr(test, "__unittest_skip_why__", "")) or "no reason given"
    return None


def set_patience(timeout_s: float) -> None:
    """Bounds every test; torch's own bounds are for machines that have nothing else to do.

    Holds for ranks that are spawned from here on, too.
    """
    os.environ[PATIENCE] = str(timeout_s)
    common_distributed.get_timeout = lambda _test_id: timeout_s
    wait_for, _seconds = distributed_test.Barrier.sync.__func__.__defaults__
    distributed_test.Barrier.sync.__func__.__defaults__ = (wait_for, timeout_s / 2)


if PATIENCE in os.environ:
    set_patience(float(os.environ[PATIENCE]))


def torch_version() -> str:
    """Of the torch whose tests these are."""
    return str(torch.__version__)


__all__ = ["BACKENDS", "SuiteTest", "dist", "names", "set_patience", "skip_reason"]
