"""The entries of the queues as NumPy structured dtypes, byte for byte those of js_device.h."""

from __future__ import annotations

from typing import Any

import numpy as np

from jetstream._core.native import ffi, lib
from jetstream.arrays import Array

__all__ = [
    "CQE_DTYPE",
    "RQE_DTYPE",
    "SQE_DTYPE",
    "Rings",
    "cq_commit",
    "lap_parity",
    "rq_commit",
    "sq_commit",
]

#: Send-queue entry, 64 bytes.
SQE_DTYPE = np.dtype(
    [
        ("opcode", "<u1"),
        ("flags", "<u1"),
        ("peer", "<u2"),
        ("key", "<u4"),
        ("wr_id", "<u8"),
        ("source_addr", "<u8"),
        ("target_addr", "<u8"),
        ("signal_value", "<u8"),
        ("bytes", "<u8"),
        ("tag", "<u4"),
        ("signal", "<u2"),
        ("signal_op", "<u2"),
        ("commit", "<u8"),
    ]
)

#: Receive-queue entry, 32 bytes.
RQE_DTYPE = np.dtype(
    [
        ("wr_id", "<u8"),
        ("target_addr", "<u8"),
        ("bytes", "<u8"),
        ("tag", "<u4"),
        ("peer", "<u2"),
        ("commit", "<u2"),
    ]
)

#: Completion-queue entry, 32 bytes.
CQE_DTYPE = np.dtype(
    [
        ("wr_id", "<u8"),
        ("bytes", "<u8"),
        ("status", "<i4"),
        ("peer", "<u2"),
        ("opcode", "<u2"),
        ("sq_head_or_tag", "<u4"),
        ("commit", "<u4"),
    ]
)


def lap_parity(index: int, depth_slots: int) -> int:
    """1 on even laps, 0 on odd ones, so that a zeroed ring holds no valid entry."""
    return index // depth_slots & 1 ^ 1


def sq_commit(index: int, depth_slots: int) -> int:
    """Commit word of send-queue entry ``index`` (free-running)."""
    return lap_parity(index, depth_slots) << 63 | (index & 0x7FFFFFFF) << 32


def rq_commit(index: int, depth_slots: int) -> int:
    """Commit word of receive-queue entry ``index``."""
    return lap_parity(index, depth_slots) << 15 | index & 0x7FFF


def cq_commit(index: int, depth_slots: int) -> int:
    """Commit word of completion-queue entry ``index``."""
    return lap_parity(index, depth_slots) << 31 | index & 0x7FFFFFFF


class _Memory:
    """Memory of a queue pair, which stays as long as its owner."""

    def __init__(self, owner: object, address: int, nbytes: int, *, is_writable: bool) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (address, not is_writable),
        }


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


class Rings:
    """The memory of a ``js_qp *`` as live NumPy arrays: ``sq``, ``rq``, ``cq`` and ``signals``.

    Whatever is written to them is what the data plane reads. ``signals`` is read-only.
    """

    def __init__(self, qp: Any, owner: object) -> None:
        self.sq = self._ring(owner, qp.sq, qp.sq_depth_slots, SQE_DTYPE)
        self.rq = self._ring(owner, qp.rq, qp.rq_depth_slots, RQE_DTYPE)
        self.cq = self._ring(owner, qp.cq, qp.cq_depth_slots, CQE_DTYPE)
        nbytes: int = lib.JS_SIGNALS * ffi.sizeof("js_signal")
        memory = _Memory(owner, _address(qp.signals), nbytes, is_writable=False)
        lines = np.asarray(memory).view("<u8").reshape(lib.JS_SIGNALS, -1)
        self.signals: Array = lines[:, 0]

    @staticmethod
    def _ring(owner: object, pointer: Any, depth: int, dtype: np.dtype[Any]) -> Array:
        memory = _Memory(owner, _address(pointer), depth * dtype.itemsize, is_writable=True)
        ring: Array = np.asarray(memory).view(dtype)
        return ring
