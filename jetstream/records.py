"""The record of an operation: who arrived when, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jetstream._core.native import ffi, status_name
from jetstream.dtypes import Algorithm, DType, Kind, RedOp

__all__ = ["RECORD_DTYPE", "OperationRecord", "from_native", "view_ring"]

_FIELDS = [
    ("op_id", "u8"),
    ("t_scheduled_ns", "i8"),
    ("t_enter_ns", "i8"),
    ("t_first_rx_ns", "i8"),
    ("t_last_rx_ns", "i8"),
    ("t_exit_ns", "i8"),
    ("bytes", "u8"),
    ("kind", "u1"),
    ("redop", "u1"),
    ("dtype", "u1"),
    ("algo", "u1"),
    ("cause_bits", "u4"),
    ("wait_ns", "u4"),
    ("copy_ns", "u4"),
    ("reduce_ns", "u4"),
    ("credit_ns", "u4"),
    ("detour_ns", "u4"),
    ("detour_max_ns", "u4"),
    ("last_peer", "u2"),
    ("retransmits", "u2"),
    ("cpu", "u2"),
    ("root", "u2"),
    ("peer_cause", "u4"),
    ("gap_before_us", "u4"),
    ("status", "i4"),
    ("world", "u4"),
    ("count", "u8"),
    ("commit", "u8"),
]

#: ``js_record`` of js_api.h as a NumPy structured dtype of 128 bytes.
RECORD_DTYPE = np.dtype(_FIELDS)


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One finished collective of this rank. Times in ns; stamps on CLOCK_MONOTONIC.

    ``retransmits``: frames to other hosts that were repeated since the record before this one.
    """

    op_id: int
    kind: str
    op: str
    dtype: str
    algorithm: str
    count: int
    nbytes: int
    status: str
    t_enter_ns: int
    t_first_rx_ns: int
    t_last_rx_ns: int
    t_exit_ns: int
    wait_ns: int
    copy_ns: int
    reduce_ns: int
    last_peer: int
    gap_before_us: int
    retransmits: int

    @property
    def latency_ns(self) -> int:
        """From entry to exit."""
        return self.t_exit_ns - self.t_enter_ns

    def __str__(self) -> str:
        repeats = f", {self.retransmits} frames repeated" if self.retransmits else ""
        return (
            f"{self.kind} #{self.op_id} ({self.dtype}, {self.nbytes} bytes, {self.algorithm}): "
            f"{self.latency_ns / 1e3:.2f} us, waiting {self.wait_ns / 1e3:.2f} us, "
            f"last frame from rank {self.last_peer}{repeats}"
        )


def from_native(record: Any) -> OperationRecord:
    """Turn a cffi ``js_record`` into an OperationRecord."""
    return OperationRecord(
        op_id=record.op_id,
        kind=Kind(record.kind).label,
        op=RedOp(record.redop).label,
        dtype=DType(record.dtype).label,
        algorithm=Algorithm(record.algo).label,
        count=record.count,
        nbytes=record.bytes,
        status=status_name(record.status),
        t_enter_ns=record.t_enter_ns,
        t_first_rx_ns=record.t_first_rx_ns,
        t_last_rx_ns=record.t_last_rx_ns,
        t_exit_ns=record.t_exit_ns,
        wait_ns=record.wait_ns,
        copy_ns=record.copy_ns,
        reduce_ns=record.reduce_ns,
        last_peer=record.last_peer,
        gap_before_us=record.gap_before_us,
        retransmits=record.retransmits,
    )


def view_ring(pointer: Any, slots: int) -> np.ndarray[Any, np.dtype[np.void]]:
    """Copy the ring of records out of the segment, oldest first, without unused slots."""
    size = slots * RECORD_DTYPE.itemsize
    ring = np.frombuffer(ffi.buffer(pointer, size), dtype=RECORD_DTYPE).copy()
    complete = ring[(ring["commit"] != 0) & (ring["commit"] == ring["op_id"])]
    ordered: np.ndarray[Any, np.dtype[np.void]] = np.sort(complete, order="op_id")
    return ordered
