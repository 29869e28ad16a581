"""The segment: shared memory of the ranks of one host."""

from __future__ import annotations

from typing import Any

from jetstream._core.native import check, ffi, lib

__all__ = ["Segment"]


class Segment:
    """A mapped segment. ``create`` makes one, ``attach`` maps one that another rank handed over."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def create(
        cls,
        world: int,
        *,
        all_bytes: int = 0,
        stream_slots: int = 0,
        queue_slots: int = 0,
        sequence_start: int = 0,
        heap_bytes: int = 0,
    ) -> Segment:
        """Create the segment of a job of ``world`` ranks.

        ``all_bytes``: payload in flight from one rank to all others, a power of two from 64 KiB;
        ``stream_slots``: frames in flight per channel; ``queue_slots``: depth of the send and
        receive queues; ``heap_bytes``: symmetric memory of each rank, a multiple of 2 MiB, of
        which pages cost memory once they are used; 0 takes the default. ``sequence_start`` numbers
        the first frame.
        Raises ArgumentError, SystemCallError.
        """
        config = ffi.new("js_seg_config *")
        config.world = world
        config.all_bytes = all_bytes
        config.stream_slots = stream_slots
        config.queue_slots = queue_slots
        config.sequence_start = sequence_start
        config.heap_bytes = heap_bytes
        out = ffi.new("js_seg **")
        check(lib.js_seg_create(config, out))
        return cls(out[0])

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Map and validate a segment; ``fd`` stays the caller's.

        Raises SegmentError, VersionMismatchError, SystemCallError.
        """
        out = ffi.new("js_seg **")
        check(lib.js_seg_attach(fd, out))
        return cls(out[0])

    @property
    def handle(self) -> Any:
        """The cffi pointer ``js_seg *``."""
        return self._handle

    @property
    def fd(self) -> int:
        """File descriptor of the memfd, owned by the segment."""
        return int(lib.js_seg_fd(self._handle))

    @property
    def nbytes(self) -> int:
        """Size of the mapping in bytes; pages that nobody touched cost no memory."""
        return int(lib.js_seg_bytes(self._handle))

    @property
    def world(self) -> int:
        """Number of ranks it was made for."""
        return int(lib.js_seg_world(self._handle))

    def close(self) -> None:
        """Unmap, once the arrays in it that this process still has are gone too. Idempotent."""
        if self._handle != ffi.NULL:
            lib.js_seg_detach(self._handle)
            self._handle = ffi.NULL
