"""Posting: entries of the send queue and of the receive queue."""

from __future__ import annotations

from typing import Any

from jetstream._core.native import FULL, check, ffi, lib
from jetstream.arrays import Array
from jetstream.errors import AccessError, ArgumentError, ClosedError, QueueFullError
from jetstream.transport.launches import Launch
from jetstream.transport.parts import QueuePairParts, integer
from jetstream.transport.regions import Window, contiguous, extent

__all__ = ["Posting"]

_READ: int = lib.JS_ACCESS_READ
_WRITE: int = lib.JS_ACCESS_WRITE
_SIGNALS: int = lib.JS_SIGNALS
_U64 = 2**64
_SIGNAL_OPS = {"add": lib.JS_SIGNAL_ADD, "set": lib.JS_SIGNAL_SET}
_INLINE_BYTES = {
    lib.JS_SQ_SEND: lib.JS_SQ_INLINE_SEND_BYTES,
    lib.JS_SQ_PUT: lib.JS_SQ_INLINE_PUT_BYTES,
}


class Posting(QueuePairParts):
    """What a device has done."""

    def post_launch(
        self,
        launch: Launch,
        wr_id: int = 0,
        *,
        signalled: bool = True,
        signal: int | None = None,
        value: int = 1,
        signal_op: str = "add",
    ) -> None:
        """Launch a collective. Once complete, it adds ``value`` to this rank's own ``signal``.

        ``signal_op``: "add" or "set". Without ``signalled`` there is a completion only if it fails.
        Raises ArgumentError, QueueFullError.
        """
        if not isinstance(launch, Launch) or launch.table is not self._regions:
            raise ArgumentError("launch: what this queue pair's prepare() has returned is needed")
        self._post(
            (lib.JS_SQ_LAUNCH, 0, launch.key, launch.source_addr, launch.target_addr, 0, 0),
            wr_id,
            signalled,
            (signal, value, signal_op),
        )

    def post_graph(
        self,
        graph: Any,
        wr_id: int = 0,
        *,
        signalled: bool = True,
        signal: int | None = None,
        value: int = 1,
        signal_op: str = "add",
    ) -> None:
        """Launch a graph that was recorded on this queue pair; as ``post_launch``."""
        self._check_open()
        key = self._host.graph_key(graph)
        self._post(
            (lib.JS_SQ_GRAPH, 0, key, 0, 0, 0, 0), wr_id, signalled, (signal, value, signal_op)
        )

    def post_nop(
        self,
        wr_id: int = 0,
        *,
        signalled: bool = True,
        signal: int | None = None,
        value: int = 1,
        signal_op: str = "add",
    ) -> None:
        """Post what only completes, in its turn; as ``post_launch``."""
        self._post((lib.JS_SQ_NOP, 0, 0, 0, 0, 0, 0), wr_id, signalled, (signal, value, signal_op))

    def post_send(
        self, x: Any, dst: int, tag: int = 0, wr_id: int = 0, *, signalled: bool = True
    ) -> None:
        """Send ``x``, registered for reading, to rank ``dst``; it may change once this is complete.

        Up to 24 bytes travel in the entry, and need no registration. ``tag``: 0 to 2**32 - 1.
        Raises ArgumentError, AccessError, QueueFullError.
        """
        array = contiguous(x, "x", is_written=False)
        target = integer(dst, self.comm.size, "dst")
        entry = (lib.JS_SQ_SEND, target, 0, 0, 0, array.nbytes, integer(tag, 2**32, "tag"))
        self._post(entry, wr_id, signalled, (None, 0, "add"), array)

    def post_put(
        self,
        x: Any,
        dst: int,
        window: Window,
        offset: int = 0,
        *,
        signal: int | None = None,
        value: int = 1,
        signal_op: str = "add",
        wr_id: int = 0,
        signalled: bool = True,
    ) -> None:
        """Write ``x``, registered for reading, at ``offset`` bytes of rank ``dst``'s memory.

        Then ``value`` is added to that rank's ``signal``: who has seen it sees the bytes. Up to 8
        bytes travel in the entry. A message posted later arrives later. Raises ArgumentError,
        AccessError, BoundsError, QueueFullError.
        """
        array = contiguous(x, "x", is_written=False)
        target = integer(dst, self.comm.size, "dst")
        if not isinstance(window, Window) or window.owner is not self:
            raise ArgumentError("window: what this queue pair's window() has returned is needed")
        key = window.locate(target, offset, array.nbytes)
        entry = (lib.JS_SQ_PUT, target, key, 0, offset, array.nbytes, 0)
        self._post(entry, wr_id, signalled, (signal, value, signal_op), array)

    def post_receive(
        self, out: Any, src: int | None = None, tag: int | None = None, wr_id: int = 0
    ) -> None:
        """Receive into ``out``, registered for writing, from ``src`` (None: any rank).

        ``tag`` None: any. The completion has source, tag and length; a message longer than ``out``
        fails with JS_ERR_TRUNCATED. Raises ArgumentError, AccessError, QueueFullError.
        """
        array = contiguous(out, "out", is_written=True)
        peer = lib.JS_PEER_ANY if src is None else integer(src, self.comm.size, "src")
        room = array.nbytes | (lib.JS_RQ_TAG_ANY if tag is None else 0)
        number = 0 if tag is None else integer(tag, 2**32, "tag")
        self._check_use()
        self._check_access(array, _WRITE, "out", "write")
        address, _ = extent(array)
        entry = ffi.new("js_rqe *", (integer(wr_id, _U64, "wr_id"), address, room, number, peer, 0))
        status = lib.js_device_post_receive(self._address, int(ffi.cast("uintptr_t", entry)))
        if status < 0:
            self._refuse(status, "receive")

    def _post(
        self,
        fields: tuple[int, ...],
        wr_id: int,
        signalled: bool,
        signal: tuple[int | None, int, str],
        array: Array | None = None,
    ) -> None:
        """``fields``: opcode, peer, key, source_addr, target_addr, bytes, tag."""
        opcode, peer, key, source, target, nbytes, tag = fields
        index, value, name = signal
        operation = 0
        if index is not None:
            index = integer(index, _SIGNALS, "signal")
            if name not in _SIGNAL_OPS:
                raise ArgumentError(f"signal_op is {name!r}: 'add' or 'set' is needed")
            operation = _SIGNAL_OPS[name]
            value = integer(value, _U64, "value")
        self._check_use()
        flags = 0 if signalled else lib.JS_SQ_UNSIGNALLED
        is_inline = array is not None and nbytes <= _INLINE_BYTES[opcode]
        if array is not None and not is_inline:
            self._check_access(array, _READ, "x", "read")
            source, _ = extent(array)
        entry = ffi.new(
            "js_sqe *",
            (
                *(opcode, flags, peer, key, integer(wr_id, _U64, "wr_id"), source, target),
                *(value if operation else 0, nbytes, tag, index or 0, operation, 0),
            ),
        )
        if array is not None and is_inline:  # of a message it may fill three words
            entry.flags = flags | lib.JS_SQ_INLINE
            ffi.memmove(ffi.addressof(entry, "source_addr"), array.tobytes(), nbytes)
        status = lib.js_device_post(self._address, int(ffi.cast("uintptr_t", entry)))
        if status < 0:
            self._refuse(status, "send")

    def _check_access(self, array: Array, bit: int, name: str, access: str) -> None:
        if not self._regions.has(array, bit):
            raise AccessError(
                f"{name}, {array.nbytes} bytes, is in no region with access {access!r}: call "
                f"register({name}, {access!r}) and keep what it returns"
            )

    def _refuse(self, status: int, queue: str) -> None:
        if status == FULL:
            depth = self._native.sq_depth_slots
            raise QueueFullError(
                f"the {queue} queue of {depth} entries is full: take completions with poll() or "
                "wait(), which makes room, then post again",
                status="JS_ERR_FULL",
            )
        self._check_open()
        if status == lib.JS_ERR_CLOSED:
            raise ClosedError(
                f"the queue pair is {self.state.name.lower()} and takes no more entries",
                status="JS_ERR_CLOSED",
            )
        check(status)
