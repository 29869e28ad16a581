"""What moves between ranks, seen from Python: the frame format and the layout of the queues."""

from __future__ import annotations

from jetstream.transport.frames import FrameHeader, decode_header, encode_header
from jetstream.transport.queues import CQE_DTYPE, RQE_DTYPE, SQE_DTYPE

__all__ = [
    "CQE_DTYPE",
    "RQE_DTYPE",
    "SQE_DTYPE",
    "FrameHeader",
    "decode_header",
    "encode_header",
]
