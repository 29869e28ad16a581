"""The entries of the queues as NumPy structured dtypes, byte for byte those of js_device.h."""

from __future__ import annotations

import numpy as np

__all__ = [
    "CQE_DTYPE",
    "RQE_DTYPE",
    "SQE_DTYPE",
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
