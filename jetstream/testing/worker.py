"""What a rank of the harness runs: takes jobs from the parent, one after the other."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetstream.testing.loading import load_module
from jetstream.testing.namespaces import enter

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = ["DUMP_SIGNAL", "Job", "Report", "main"]

#: Makes a rank write the stacks of its threads; no library uses the last real-time signal.
DUMP_SIGNAL = signal.SIGRTMAX
_PR_SET_PDEATHSIG = 1
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Job:
    """Parent to rank: what to run. ``call`` is a pickled (function, arguments).

    ``module`` is where the function is defined (name, file). ``address``: meet the other ranks
    there in a new communicator; None: go on with the present one. ``is_last``: leave the
    communicator when the function has returned, before its result is reported.
    """

    call: bytes
    module: tuple[str, str | None]
    rewrite_asserts: bool
    address: str | None
    is_last: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Rank to parent: how it ended; ``value`` and ``error`` are pickled."""

    value: bytes = b""
    failure: str | None = None
    details: str = ""
    error: bytes = b""


def main(rank: int, job_fd: int, dump_fd: int, parent_pid: int, *namespace_fds: int) -> None:
    """Serves until the parent closes the connection ``job_fd``; stacks go to ``dump_fd``.

    ``namespace_fds``: what to enter first.
    """
    enter(namespace_fds)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)  # it died before the kernel knew about our wish
    faulthandler.enable(dump_fd)
    faulthandler.register(DUMP_SIGNAL, file=dump_fd, all_threads=True)
    sys.argv = [f"jetstream-rank-{rank}"]
    for fd in (job_fd, dump_fd):
        os.set_inheritable(fd, False)
    connection = Connection(job_fd)
    communicator: Communicator | None = None
    while True:
        try:
            job = pickle.loads(connection.recv_bytes())
        except EOFError:
            break
        report, communicator = _work(job, communicator)
        connection.send_bytes(pickle.dumps(report))
    _leave(communicator)


def _leave(communicator: Communicator | None) -> None:
    """Closes what is not needed any more; nobody wants to hear how."""
    if communicator is not None:
        with contextlib.suppress(Exception):
            communicator.close()


def _work(job: Job, communicator: Communicator | None) -> tuple[Report, Communicator | None]:
    """Returns the report, and the communicator for the next job."""
    import jetstream

    try:
        if job.address is not None:
            _leave(communicator)
            communicator = None
            os.environ["JETSTREAM_RENDEZVOUS"] = job.address
            communicator = jetstream.init()
        assert communicator is not None
        load_module(*job.module, rewrite_asserts=job.rewrite_asserts)
        function, arguments = pickle.loads(job.call)
        value = function(communicator, *arguments)
        if job.is_last:
            communicator.close()
        return Report(value=_pickle_value(value)), communicator
    except BaseException as error:
        if communicator is not None:
            _abandon(communicator)
        return _report_error(error), communicator


def _abandon(communicator: Communicator) -> None:
    """The others must not wait for what will not come."""
    with contextlib.suppress(Exception):
        communicator.abort()


def _pickle_value(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise TypeError(
            f"the result, a {type(value).__name__}, cannot go to the parent process: {error}"
        ) from error


def _report_error(error: BaseException) -> Report:
    trace = error.__traceback__
    while trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == _HERE:
        trace = trace.tb_next  # our own frames say nothing about the caller's function
    details = "".join(traceback.format_exception(type(error), error, trace))
    failure = "".join(traceback.format_exception_only(type(error), error)).strip()
    return Report(failure=failure, details=details, error=_pickle_error(error))


def _pickle_error(error: BaseException) -> bytes:
    """Pickles an exception, or returns b"" if it would not survive."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        return b""
    return pickled
