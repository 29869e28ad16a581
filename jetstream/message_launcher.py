"""Messages from a checked call to the data plane and back: posts, short ways, withdrawals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from jetstream._core.native import AGAIN, ffi, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.array_calls import SHORT, byte_pointer
from jetstream.arrays import Array
from jetstream.diagnosis import describe_sender
from jetstream.errors import JetstreamError, TimedOutError
from jetstream.posting import Poster
from jetstream.work import Arrival, Message, Work

__all__ = ["ANY_SOURCE", "MessageLauncher"]

_from_buffer = ffi.from_buffer
_send_wait = lib.js_comm_send_wait
_receive_wait = lib.js_comm_receive_wait
_TAG_ANY: int = lib.JS_RQ_TAG_ANY
_PROBE: int = lib.JS_RQ_PROBE
_UNFINISHED = (AGAIN, lib.JS_ERR_TIMEOUT)
_RECEIVED = (SHORT, lib.JS_ERR_TRUNCATED)
#: As a source: whoever sends.
ANY_SOURCE: int = lib.JS_PEER_ANY


class MessageLauncher(Poster):
    """Sends and receives."""

    def send(self, array: Array, target: int, tag: int) -> Work:
        """Post a send."""
        pointer = byte_pointer(array)
        wr_id = self.post(lib.js_comm_send, pointer, array.nbytes, target, tag)
        return self._track_send(wr_id, array, pointer, target)

    def send_now(self, array: Array, target: int, tag: int, timeout: float | None) -> None:
        """Send and wait."""
        timeout_ns = self._timeout_ns if timeout is None else timeout_to_ns(timeout, 0.0)
        try:
            pointer = _from_buffer(array)
        except ValueError:
            pointer = byte_pointer(array)
        handle = self._endpoint.handle or self.handle()
        try:
            status = _send_wait(handle, pointer, array.nbytes, target << 32 | tag, timeout_ns)
            if status != 0:
                self.go_on_sending(status, array, target, tag, timeout)
        except BaseException as error:
            self.give_up(error)
            raise

    def go_on_sending(
        self, status: int, array: Array, target: int, tag: int, timeout: float | None
    ) -> None:
        """What a send that was waited for still needs that was not complete at once."""
        if status in _UNFINISHED:
            wr_id = self._unfinished(self.handle())
            work = self._track_send(wr_id, array, byte_pointer(array), target)
        else:
            if not self.was_turned_away(status):
                self.fail(status)
            work = self.send(array, target, tag)
        self.finish_message(work, timeout)

    def receive(
        self, array: Array, source: int, tag: int | None, finish: Callable[[int], Any]
    ) -> Work:
        """Post a receive; ``finish`` gets the size of the message in bytes, as an Arrival does."""
        pointer = byte_pointer(array)
        room = array.nbytes if tag is not None else array.nbytes | _TAG_ANY
        wr_id = self.post(lib.js_comm_receive, pointer, room, source, tag or 0)
        return self._track_receive(wr_id, array, pointer, source, finish)

    def receive_now(
        self, arrival: Arrival, source: int, tag: int | None, timeout: float | None
    ) -> Any:
        """Receive and wait."""
        array = arrival.array
        timeout_ns = self._timeout_ns if timeout is None else timeout_to_ns(timeout, 0.0)
        room = array.nbytes
        try:
            pointer = _from_buffer(array)
        except ValueError:
            pointer = byte_pointer(array)
        if tag is None:
            room, address = room | _TAG_ANY, source << 32
        else:
            address = source << 32 | tag
        handle = self._endpoint.handle or self.handle()
        try:
            status = _receive_wait(handle, pointer, room, address, timeout_ns)
            if status == 0:
                nbytes = array.nbytes
            else:
                nbytes = self.go_on_receiving(status, array, source, tag, timeout)
        except BaseException as error:
            self.give_up(error)
            raise
        return arrival(nbytes)

    def go_on_receiving(
        self, status: int, array: Array, source: int, tag: int | None, timeout: float | None
    ) -> int:
        """What a receive that was waited for still needs; returns the size of the message."""
        if status in _RECEIVED:
            return int(lib.js_comm_received_bytes())
        if status in _UNFINISHED:
            pointer = byte_pointer(array)
            wr_id = self._unfinished(self.handle())
            work = self._track_receive(wr_id, array, pointer, source, int)
        else:
            if not self.was_turned_away(status):
                self.fail(status)
            work = self.receive(array, source, tag, int)
        return int(self.finish_message(work, timeout))

    def probe(
        self, source: int, tag: int | None, timeout: float | None, *, is_waiting: bool = True
    ) -> Message | None:
        """What a receive would get, which stays there; None only without waiting."""
        room = _PROBE if tag is not None else _PROBE | _TAG_ANY
        wr_id = self.post(lib.js_comm_receive, ffi.NULL, room, source, tag or 0)
        work = self.track(wr_id, f"probe of {describe_sender(source)}", ())
        if is_waiting or work.done() or not self._take_back(work):
            self.finish_message(work, timeout if is_waiting else None)
        return work.message

    def finish_message(self, work: Work, timeout: float | None) -> Any:
        """Wait for a message.

        A timeout takes the receive back if nothing of it has arrived. If all of it has, just now,
        it is in time; otherwise the communicator becomes unusable.
        """
        try:
            return work.wait(timeout)
        except TimedOutError:
            if not self._take_back(work):
                if work.done():
                    return work.wait(0)
                lib.js_comm_abort(self.handle(), lib.JS_ERR_TIMEOUT)
            raise
        except KeyboardInterrupt:
            with contextlib.suppress(JetstreamError):  # what it has failed with is of no interest
                if not self._take_back(work) and not work.done():
                    lib.js_comm_abort(self.handle(), lib.JS_ERR_TIMEOUT)
            raise

    def give_up(self, error: BaseException) -> None:
        """After Ctrl-C in the middle of a send or receive: nobody keeps its buffer any more."""
        handle = self._endpoint.handle
        if isinstance(error, JetstreamError) or handle == ffi.NULL:
            return
        wr_id = self._unfinished(handle)
        if wr_id == 0:
            return
        cqe = ffi.new("js_cqe *")
        is_gone = lib.js_comm_cancel_receive(handle, wr_id) == lib.JS_OK
        if not is_gone and lib.js_comm_wait(handle, wr_id, 0, cqe) == AGAIN:
            lib.js_comm_abort(handle, lib.JS_ERR_ABORTED)

    def _take_back(self, work: Work) -> bool:
        """Withdraw a receive or probe that no message has matched."""
        if lib.js_comm_cancel_receive(self.handle(), work.wr_id) != lib.JS_OK:
            return False
        self.forget(work.wr_id)
        work.withdraw()
        return True

    def _unfinished(self, handle: Any) -> int:
        """The number of what this thread's last call has left unfinished."""
        return int(lib.js_comm_unfinished(handle))

    def _track_send(self, wr_id: int, array: Array, pointer: Any, target: int) -> Work:
        what = f"send of {array.nbytes} bytes to rank {target}"
        return self.track(wr_id, what, (array, pointer))

    def _track_receive(
        self, wr_id: int, array: Array, pointer: Any, source: int, finish: Callable[[int], Any]
    ) -> Work:
        what = f"receive of {array.nbytes} bytes from {describe_sender(source)}"
        return self.track(wr_id, what, (array, pointer), finish=finish)
