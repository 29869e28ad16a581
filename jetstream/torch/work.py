"""Handles of what has been posted, as torch.distributed has them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from jetstream._core.native import lib
from jetstream.communicator import Communicator
from jetstream.errors import ClosedError, JetstreamError, TimedOutError
from jetstream.torch.errors import as_torch
from jetstream.torch.flight import ANY_SOURCE, ENDED, PEER, Entry, GroupLog
from jetstream.work import Work

__all__ = ["DONE", "JetstreamWork", "release"]

#: What torch passes where the caller names no timeout.
_NO_TIMEOUT = timedelta(0)
_finish_lock = threading.Lock()
#: For so long the thread of the futures sleeps for one operation before it looks at all, ns.
_SLICE_NS = 250_000


class JetstreamWork(dist.Work):  # type: ignore[misc]
    """One or more operations in flight, and what is to be done when they are complete.

    ``tensors`` are the outputs. ``finish`` is called once, by the first who finds all parts
    complete: copies back into tensors that are not contiguous. ``timeout``: of the operation, in
    seconds; None: the group's.
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        parts: Sequence[Work],
        finish: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__()
        self._tensors = list(tensors)
        self._parts = parts
        self._finish = finish
        self._timeout = timeout
        self._error: BaseException | None = None
        self._is_complete = not parts and finish is None
        self._future: Any = None
        self._future_error: BaseException | None = None  # of one that is late
        self._end: Callable[[], None] | None = None
        #: Where the flight recorder has it, if it does.
        self.log: GroupLog | None = None
        self.entry: Entry = []

    @classmethod
    def joining(cls, works: Sequence[JetstreamWork], timeout: float | None) -> JetstreamWork:
        """One for several, which nobody else waits for."""

        def finish() -> None:
            for work in works:
                if work._finish is not None:
                    work._finish()

        tensors = [tensor for work in works for tensor in work._tensors]
        parts = [part for work in works for part in work._parts]
        return cls(tensors, parts, finish, timeout)

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        """Wait until complete. Raises what the operation failed with, or TimedOutError.

        One that is late by the caller's ``timeout`` can be waited for again. Without any the
        operation's own holds, and ends the group: as far as torch says, the caller may be a
        synchronous call, which nobody comes back to.
        """
        if not self._is_complete:
            if timeout == _NO_TIMEOUT:
                self._settle(self._timeout, is_last=True)
            else:
                self._settle(timeout.total_seconds())
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None:
        """As ``wait``."""
        self.wait()

    def is_completed(self) -> bool:
        """True once complete, also with an error; lets the group make progress."""
        if not self._is_complete and all(part.done() for part in self._parts):
            self._settle(None)
        return self._is_complete

    def is_success(self) -> bool:
        """True once complete without an error."""
        return self.is_completed() and self._error is None

    def exception(self) -> BaseException | None:
        """What the operation has failed with."""
        return self._error

    def result(self) -> list[torch.Tensor]:
        """The output tensors, once complete."""
        self.wait()
        return self._tensors

    def source_rank(self) -> int:
        """Rank in the group that a message received came from."""
        source = self._parts[0].source if self._parts else None
        if source is None:
            raise RuntimeError("source_rank is only known of a complete receive")
        return source

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """A future of the output tensors; completed by a thread where nobody waits."""
        if self._future is None:
            self._future = torch.futures.Future()
            if self._is_complete:
                self.fulfil()
            else:
                _watch(self)
        return self._future

    def get_future_result(self) -> torch.futures.Future[Any]:
        """A future of ``dist._WorkResult``: SUCCESS, or COMM_ERROR."""
        kinds = torch._C._distributed_c10d.WorkResult
        return self.get_future().then(
            lambda _: kinds.SUCCESS if self._failure() is None else kinds.COMM_ERROR
        )

    def _settle(self, timeout: float | None, *, is_last: bool = False) -> None:
        """Wait for all parts. ``is_last``: if they are late, nobody waits again."""
        for part in self._parts:
            try:
                part.wait(timeout)
            except Exception as error:
                raised = as_torch(error) if isinstance(error, JetstreamError) else error
                if self.log is not None:
                    self.log.fail(self.entry, raised)
                if not part.is_done:  # not in time, or no part of a group any more
                    if is_last and isinstance(error, TimedOutError):
                        part.give_up()
                    raise raised from error.__cause__
                self._error = self._error or raised
        with _finish_lock:
            finish, self._finish = self._finish, None
            if finish is not None and self._error is None:
                try:
                    finish()
                except Exception as error:
                    self._error = error
            self._is_complete = True
        if self._error is None:
            self.note_end()
        if self._end is not None:
            self._end()

    def note_end(self) -> None:
        """Tell the flight recorder that it is complete."""
        if self.log is None or self.entry[ENDED] is not None:
            return
        if self.entry[PEER] == ANY_SOURCE:
            self.log.found_source(self.entry, self.source_rank())
        self.entry[ENDED] = time.time_ns()

    def end_with(self, end: Callable[[], None]) -> None:
        """Have ``end`` called, more than once perhaps, when the operation is complete."""
        if self._is_complete:
            end()
        else:
            self._end = end

    def limit_ns(self) -> int:
        """How long ``wait`` waits."""
        return max((part.limit_ns(self._timeout) for part in self._parts), default=0)

    def is_over(self, until_ns: int) -> bool:
        """Whether the future can be completed: complete, failed, or late."""
        try:
            if time.monotonic_ns() < until_ns:
                return self.is_completed()
            if not self._is_complete:
                self._settle(1e-6, is_last=True)
        except Exception as error:
            self._future_error = as_torch(error) if isinstance(error, JetstreamError) else error
        return True

    def give_up(self, error: Exception) -> None:
        """Nobody waits for the operation any more."""
        self._future_error = error

    def is_in(self, comm: Communicator) -> bool:
        """Whether it is an operation of that communicator."""
        return any(part.is_of(comm) for part in self._parts)

    def doze(self, limit_ns: int) -> None:
        """Sleep until the next part is complete, at most so long, in nobody's way."""
        part = next((part for part in self._parts if not part.is_done), None)
        if part is not None:
            with contextlib.suppress(JetstreamError):  # settle_future finds it too
                part.advance(limit_ns, lib.js_comm_watch)

    def fulfil(self) -> None:
        """Complete the future, and run what is to be run then."""
        error = self._failure()
        if error is None:
            self._future.set_result(self._tensors)
        else:
            self._future.set_exception(error)

    def _failure(self) -> BaseException | None:
        """What the future fails with."""
        return self._error or self._future_error


class _Done(dist.Work):  # type: ignore[misc]
    """What a synchronous operation returns: there is nothing left to wait for."""

    def wait(self, timeout: timedelta = _NO_TIMEOUT) -> bool:
        return True

    def end_with(self, end: Callable[[], None]) -> None:
        end()

    def synchronize(self) -> None:
        pass

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def result(self) -> list[torch.Tensor]:
        return []

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
        future.set_result([])
        return future


#: The one object for all of them: torch's own calls look at nothing but ``wait``.
DONE = _Done()


class _Release(NamedTuple):
    comm: Communicator
    is_done: threading.Event


class _Watcher:
    """Completes the futures of operations that nobody may be waiting for, in threads.

    One thread watches, the leader. With a future to complete it lets another one lead: what is to
    be run then may take long, and may wait for other futures.
    """

    def __init__(self) -> None:
        self._works: queue.SimpleQueue[JetstreamWork | _Release] = queue.SimpleQueue()
        self._pending: list[tuple[JetstreamWork, int]] = []
        self._leading = threading.Lock()
        self._count = threading.Lock()
        self._idle = 0  # threads that want to lead
        self._start()

    def add(self, work: JetstreamWork) -> None:
        """Have the work's future completed."""
        self._works.put(work)

    def release(self, comm: Communicator) -> None:
        """From now on touch nothing of that communicator; its futures fail."""
        request = _Release(comm, threading.Event())
        self._works.put(request)
        request.is_done.wait()

    def _start(self) -> None:
        self._idle += 1
        threading.Thread(target=self._run, name="jetstream-futures", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._leading:
                with self._count:
                    self._idle -= 1
                ended = self._watch()
                with self._count:
                    if self._idle == 0:
                        self._start()
            for work in ended:
                work.fulfil()
            del ended[:]
            with self._count:
                if self._idle > 0:
                    return
                self._idle += 1

    def _watch(self) -> list[JetstreamWork]:
        """Wait until operations are over; returns these."""
        ended: list[JetstreamWork] = []
        while not ended:
            if not self._pending or not self._works.empty():
                self._take(self._works.get(), ended)
                continue
            over = [one for one in self._pending if one[0].is_over(one[1])]
            if over:
                self._pending = [one for one in self._pending if one not in over]
                ended.extend(work for work, _ in over)
            else:
                self._pending[0][0].doze(_SLICE_NS)
        return ended

    def _take(self, item: JetstreamWork | _Release, ended: list[JetstreamWork]) -> None:
        if isinstance(item, JetstreamWork):
            self._pending.append((item, time.monotonic_ns() + item.limit_ns()))
            return
        gone = [one for one in self._pending if one[0].is_in(item.comm)]
        self._pending = [one for one in self._pending if one not in gone]
        for work, until_ns in gone:
            if not work.is_over(until_ns):
                work.give_up(ClosedError("the process group has been destroyed"))
            ended.append(work)
        item.is_done.set()


_watcher: _Watcher | None = None


def _watch(work: JetstreamWork) -> None:
    global _watcher
    with _finish_lock:
        if _watcher is None:
            _watcher = _Watcher()
        watcher = _watcher
    watcher.add(work)


def release(comm: Communicator) -> None:
    """Before a communicator is closed: no thread of the futures touches it any more."""
    if _watcher is not None:
        _watcher.release(comm)


def _forget_watcher() -> None:
    global _watcher
    _watcher = None


os.register_at_fork(after_in_child=_forget_watcher)  # a thread does not survive a fork
