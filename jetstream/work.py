"""Handles of operations that have been posted and may not be complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jetstream._core.native import AGAIN, ffi, lib
from jetstream._core.timeouts import Limit, timeout_to_ns
from jetstream.arrays import Array
from jetstream.errors import TimedOutError, TruncatedError
from jetstream.tensors import land

__all__ = ["Arrival", "Message", "Work", "check_length"]

_ELSEWHERE_S = 10.0
_ELSEWHERE_LOOK_S = 50e-6


class Message(NamedTuple):
    """What is known of a message: sender's rank, tag, length in bytes."""

    source: int
    tag: int
    nbytes: int


def check_length(nbytes: int, array: Array, exact: bool) -> None:
    """Raise TruncatedError unless a message of ``nbytes`` is what ``array`` is for."""
    if nbytes > array.nbytes or (exact and nbytes != array.nbytes):
        hint = "" if nbytes > array.nbytes else ", or exact=False"
        raise TruncatedError(
            f"the message has {nbytes} bytes, out has {array.nbytes}: pass an array of the "
            f"message's size{hint}",
            status="JS_ERR_TRUNCATED",
        )


@dataclass(frozen=True)
class Arrival:
    """What becomes of a message received: it is checked, and ``result`` is returned."""

    array: Array
    result: Any
    exact: bool

    def __call__(self, nbytes: int) -> Any:
        """``nbytes``: length of the message. Raises TruncatedError."""
        check_length(nbytes, self.array, self.exact)
        return land(self.array, self.result)


class Owner(Protocol):
    """What a Work needs of its communicator."""

    def handle(self) -> Any:
        """The open ``js_comm *``; raises ClosedError."""

    def fail(self, status: int) -> None:
        """Raise what a negative status of this communicator means."""

    def waiting_text(self) -> str:
        """What is being waited for at this moment."""

    def forget(self, wr_id: int) -> None:
        """The operation is complete; its buffers need not be kept."""

    def abort(self, status: int) -> None:
        """Make all present and later operations of every rank fail."""

    timeout: float


class Work:
    """An operation in flight. Its arrays must not be touched before it is complete.

    It progresses while this rank is inside any call on the communicator, or by itself where there
    is an engine thread (``Communicator.start_progress``). Any thread may wait for it, also several.
    """

    __slots__ = (
        "_error",
        "_finish",
        "_keep",
        "_owner",
        "_result",
        "is_done",
        "message",
        "what",
        "wr_id",
    )

    def __init__(
        self,
        owner: Owner,
        wr_id: int,
        what: str,
        *,
        keep: tuple[Any, ...],
        result: Any,
        finish: Callable[[int], Any] | None,
    ) -> None:
        self._owner = owner
        self.wr_id = wr_id
        self.what = what
        self._keep: tuple[Any, ...] | None = keep  # the buffers, alive until completion
        self._finish = finish  # from the size of the message in bytes to the result
        self.is_done = False
        self.message: Message | None = None
        self._error: BaseException | None = None
        self._result = result

    def __repr__(self) -> str:
        return f"<Work {self.what}, {'done' if self.is_done else 'in flight'}>"

    @property
    def source(self) -> int | None:
        """Rank that the message received came from; None before, and for other operations."""
        return self.message.source if self.message else None

    @property
    def tag(self) -> int | None:
        """Tag of the message received."""
        return self.message.tag if self.message else None

    @property
    def nbytes(self) -> int | None:
        """Length of the message received in bytes."""
        return self.message.nbytes if self.message else None

    def _complete(self, cqe: Any) -> None:
        status = cqe.status
        if cqe.opcode == 0 and status in (lib.JS_OK, lib.JS_ERR_TRUNCATED):
            self.message = Message(cqe.peer, cqe.sq_head_or_tag, cqe.bytes)
        try:
            is_short = status == lib.JS_ERR_TRUNCATED and cqe.opcode == 0
            if status < 0 and not is_short:  # finish() knows both sizes
                self._owner.fail(status)
            if self._finish is not None:
                self._result = self._finish(cqe.bytes)
        except Exception as error:
            self._error = error
        self._keep = None
        self._owner.forget(self.wr_id)
        self.is_done = True  # last: other threads look at it

    def withdraw(self) -> None:
        """It has been taken back: nothing will come of it."""
        self._keep = None
        self.is_done = True

    def _poll(self, timeout_ns: int, wait: Callable[..., int] = lib.js_comm_wait) -> int:
        """``_ask``, which knows of a completion that another thread has got."""
        status = self._ask(timeout_ns, wait)
        if status == lib.JS_ERR_INVALID:
            if self._is_completed_elsewhere():
                return int(lib.JS_OK)
            self._owner.forget(self.wr_id)
        return status

    def _ask(self, timeout_ns: int, wait: Callable[..., int]) -> int:
        """One call into the data plane; returns its status."""
        cqe = ffi.new("js_cqe *")
        try:
            status = wait(self._owner.handle(), self.wr_id, timeout_ns, cqe)
            if status == lib.JS_OK:
                self._complete(cqe)
        except BaseException:  # a signal's handler: what has been collected is nowhere else
            if cqe.wr_id == self.wr_id and not self.is_done:
                self._complete(cqe)
            raise
        return status

    def _is_completed_elsewhere(self) -> bool:
        """Another thread has got the completion: it needs the interpreter to write it down."""
        end_s = time.monotonic() + _ELSEWHERE_S
        while not self.is_done and time.monotonic() < end_s:
            time.sleep(_ELSEWHERE_LOOK_S)
        return self.is_done

    def done(self) -> bool:
        """True once complete, also with an error; progresses the communicator a little."""
        if not self.is_done:
            status = self._poll(0)
            if status not in (lib.JS_OK, AGAIN):
                self._owner.fail(status)
        return self.is_done

    def collect(self) -> bool:
        """Write down how an operation ended that is over; True if that need not be done again.

        How it ended concerns who waits for it, not the caller. Waits for no other thread.
        """
        status = lib.JS_OK if self.is_done else self._ask(0, lib.js_comm_wait)
        if status == lib.JS_ERR_INVALID:  # another thread has it, and perhaps was interrupted
            self._owner.forget(self.wr_id)
        return status in (lib.JS_OK, lib.JS_ERR_INVALID)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until complete and return the result.

        ``timeout`` in seconds (None: the communicator's). Raises what the operation failed with,
        or TimedOutError, which leaves the operation in flight: it can be waited for again.
        """
        self.settle(self.limit_ns(timeout))
        return self._get()

    def watch(self, timeout: float | None = None) -> Any:
        """``wait`` for a thread that has time, such as one that only tells others of the end.

        It sleeps, without the interpreter's lock, and never makes another thread's call on the
        communicator wait. Best with an engine thread; without one it makes a round itself now and
        then, as long as nobody else does, and may be up to 2 ms late.
        """
        self.settle(self.limit_ns(timeout), lib.js_comm_watch)
        return self._get()

    def _get(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def settle(self, timeout_ns: int, wait: Callable[..., int] = lib.js_comm_wait) -> None:
        """Wait until complete without raising what the operation failed with.

        Raises TimedOutError.
        """
        if not self.advance(timeout_ns, wait):
            self.be_late(timeout_ns)

    def advance(self, timeout_ns: int, wait: Callable[..., int] = lib.js_comm_wait) -> bool:
        """Wait at most ``timeout_ns``; True once complete, also with an error."""
        limit = Limit(timeout_ns)
        while not self.is_done:
            status = self._poll(timeout_ns, wait)
            if status == lib.JS_ERR_TIMEOUT or (status == AGAIN and limit.is_over()):
                break
            if status not in (lib.JS_OK, AGAIN):
                self._owner.fail(status)
        return self.is_done

    def be_late(self, timeout_ns: int) -> None:
        """Raise TimedOutError: not complete after ``timeout_ns``."""
        raise TimedOutError(
            f"{self.what} is not complete after {timeout_ns / 1e9:g} s, "
            f"{self._owner.waiting_text()}",
            status="JS_ERR_TIMEOUT",
        )

    def give_up(self) -> None:
        """Nobody waits for it again: it is late, which ends the communicator on all ranks."""
        self._owner.abort(lib.JS_ERR_TIMEOUT)

    def is_of(self, comm: Any) -> bool:
        """Whether it is an operation of that communicator."""
        return bool(comm.owns(self._owner))

    def limit_ns(self, timeout: float | None) -> int:
        """How long ``wait(timeout)`` waits."""
        return timeout_to_ns(timeout, self._owner.timeout)
