"""Memory that descriptors may name: regions of this rank, windows into the memory of its peers."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any

from jetstream._core.native import check, ffi, lib
from jetstream.arrays import Array, share
from jetstream.errors import AccessError, ArgumentError, BoundsError, ClosedError
from jetstream.transport.host import Host

__all__ = ["Region", "RegionTable", "Window", "access_bits", "contiguous", "extent"]

_ACCESS = {
    "read": lib.JS_ACCESS_READ,
    "write": lib.JS_ACCESS_WRITE,
    "remote_write": lib.JS_ACCESS_REMOTE_WRITE,
}
_REMEMBERED_MAX = 1024


def access_bits(access: str) -> int:
    """``"read|write"`` as JS_ACCESS_* bits. Raises ArgumentError."""
    bits = 0
    for word in access.split("|") if isinstance(access, str) else ["?"]:
        bit = _ACCESS.get(word.strip())
        if bit is None:
            raise ArgumentError(
                f"access is {access!r}: {', '.join(_ACCESS)} are needed, or several with | between"
            )
        bits |= bit
    return bits


def contiguous(x: Any, name: str, *, is_written: bool) -> Array:
    """See ``x`` as an array that a descriptor can name. Raises ArgumentError."""
    array = share(x, name=name)
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"{name} is not C-contiguous (strides {array.strides} for shape {array.shape}): a "
            "device sees bytes one after another; pass np.ascontiguousarray(...) and keep it"
        )
    if is_written and not array.flags.writeable:
        raise ArgumentError(f"{name} is read-only: pass a writable array, or access='read'")
    return array


def extent(array: Array) -> tuple[int, int]:
    """Address and bytes of a contiguous array."""
    return array.__array_interface__["data"][0], array.nbytes


class Region:
    """Memory registered with a queue pair. Made by ``QueuePair.register``.

    ``address`` and ``nbytes`` say where it is; ``key`` is what peers name it by, 0 without
    remote_write. The array is kept alive as long as a device may use it. A context manager.
    """

    def __init__(self, table: RegionTable, array: Array, native: Any) -> None:
        self._table = table
        self.array: Array | None = array
        self.native = native
        self.address = int(native.address)
        self.nbytes = int(native.bytes)
        self.key = int(native.key)
        self.access = int(native.access)
        self.is_closed = False

    def __repr__(self) -> str:
        state = ", closed" if self.is_closed else ""
        return f"<Region of {self.nbytes} bytes at {self.address:#x}{state}>"

    def __enter__(self) -> Region:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the memory back: descriptors posted later must not name it. Idempotent.

        What was posted before goes on, and the array stays alive as long. No peer writes to it any
        more when this returns. Raises BusyError while one does not get on: call again.
        """
        self._table.remove(self)


class RegionTable:
    """The regions of a queue pair; any thread may use it."""

    def __init__(self, host: Host) -> None:
        self._endpoint = host.endpoint
        self._host = host
        self._lock = threading.RLock()
        self._regions: list[Region] = []
        self._known: set[tuple[int, int, int]] = set()  # found in a region before
        self._closing: list[Array | None] = []  # arrays that something posted may still name
        self._discarded: deque[Region] = deque()  # of launches that are gone

    def add(self, array: Array, access: int) -> Region:
        """Register an array."""
        native = ffi.new("js_region *")
        native.address, native.bytes = extent(array)
        native.access = access
        if native.bytes == 0:
            raise ArgumentError(f"an array of shape {array.shape} has no memory to register")
        with self._lock:
            self._tidy()
            status = lib.js_qp_register(self._endpoint.queue, native)
            if status == lib.JS_ERR_FULL:
                check(status)
            if status < 0:
                self.fail(status)
            region = Region(self, array, native)
            self._regions.append(region)
        return region

    def fail(self, status: int) -> None:
        """Raise for a register or deregister that was refused."""
        if status in (lib.JS_ERR_ACCESS, lib.JS_ERR_INVALID, lib.JS_ERR_BUSY):
            check(status)
        self._host.fail(status)

    def remove(self, region: Region) -> None:
        """Deregister a region."""
        with self._lock:
            self._drop(region)
            self._tidy()

    def _drop(self, region: Region) -> None:
        if region.is_closed:
            return
        if self._is_open():
            status = lib.js_qp_deregister(self._endpoint.queue, region.native)
            if status not in (lib.JS_OK, lib.JS_ERR_CLOSED):
                self.fail(status)
        region.is_closed = True
        self._known.clear()
        self._regions.remove(region)
        self._closing.append(region.array)
        region.array = None

    def discard(self, region: Region) -> None:
        """Close a region later: from finalizers, which may run anywhere."""
        self._discarded.append(region)

    def has(self, array: Array, access: int) -> bool:
        """Whether a descriptor may name an array for this."""
        address, nbytes = extent(array)
        wanted = (address, nbytes, access)
        if nbytes == 0 or wanted in self._known:
            return True
        for region in list(self._regions):
            is_inside = region.address <= address and (
                address + nbytes <= region.address + region.nbytes
            )
            if is_inside and region.access & access == access:
                with self._lock:
                    if not region.is_closed and len(self._known) < _REMEMBERED_MAX:
                        self._known.add(wanted)
                return True
        return False

    def close(self) -> None:
        """Forget everything: the queue pair is closed."""
        with self._lock:
            for region in self._regions:
                region.is_closed = True
                region.array = None
            self._regions.clear()
            self._known.clear()
            self._closing.clear()
            self._discarded.clear()

    def _is_open(self) -> bool:
        return not self._endpoint.is_forked and self._endpoint.settled_handle() != ffi.NULL

    def _tidy(self) -> None:
        """Let go of arrays once nothing that was posted can name them."""
        while self._discarded:
            self._drop(self._discarded[0])
            self._discarded.popleft()
        if self._closing and (
            not self._is_open() or lib.js_qp_outstanding(self._endpoint.queue) == 0
        ):
            self._closing.clear()


class Window:
    """Memory of all ranks that they may put into. Made by ``QueuePair.window``.

    A rank that has given no array can put into the others' memory all the same.
    """

    def __init__(self, owner: object, region: Region | None, rows: list[list[int]]) -> None:
        self.owner = owner
        self._region = region
        self._rows = rows
        self.is_closed = False

    def __repr__(self) -> str:
        sizes = ", ".join(str(row[1]) for row in self._rows)
        return f"<Window of {sizes} bytes{', closed' if self.is_closed else ''}>"

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def key(self, rank: int) -> int:
        """What a descriptor names the memory of a rank by; 0 if it has given none."""
        return self._row(rank)[0]

    def nbytes(self, rank: int) -> int:
        """Size of the memory of a rank in bytes."""
        return self._row(rank)[1]

    def locate(self, rank: int, offset: int, nbytes: int) -> int:
        """The key for a put of ``nbytes`` at ``offset``. Raises what is wrong with it."""
        if self.is_closed:
            raise ClosedError("the window is closed: make a new one", status="JS_ERR_CLOSED")
        key, size = self._row(rank)
        if key == 0:
            raise AccessError(f"rank {rank} has given no memory to this window")
        if not isinstance(offset, int):
            raise ArgumentError(f"offset is {offset!r}: a number of bytes is needed")
        if not 0 <= offset <= size - nbytes:
            raise BoundsError(
                f"{nbytes} bytes at offset {offset} do not fit the {size} bytes of rank {rank} "
                "in this window"
            )
        return key

    def close(self) -> None:
        """Take this rank's memory back. Idempotent.

        Puts of peers that come later fail with JS_ERR_ACCESS, which is an error of their queue
        pairs: the ranks agree first that none will come. No peer writes here when this returns.
        Raises BusyError while one does not get on: call again.
        """
        if self._region is not None:
            self._region.close()
        self.is_closed = True

    def _row(self, rank: int) -> list[int]:
        if not isinstance(rank, int) or not 0 <= rank < len(self._rows):
            raise ArgumentError(
                f"rank is {rank!r}: a rank from 0 to {len(self._rows) - 1} is needed"
            )
        return self._rows[rank]
