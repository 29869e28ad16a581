"""What devices communicate with, and what moves between ranks.

``QueuePair`` gives a device - a thread of Python, C, a compiled loop - queues of its own, by which
it starts, follows and finishes communication by itself: ``docs/queue-pairs.md``. The layouts of
their entries, and the frame format, are here as Python sees them.
"""

from __future__ import annotations

from jetstream.transport.completion import Completion, QPState
from jetstream.transport.frames import (
    Ack,
    Frame,
    FrameError,
    FrameHeader,
    Note,
    Put,
    Send,
    decode_frame,
    decode_header,
    encode_frame,
    encode_header,
)
from jetstream.transport.launches import Launch
from jetstream.transport.queue_pair import QueuePair
from jetstream.transport.queues import CQE_DTYPE, RQE_DTYPE, SQE_DTYPE
from jetstream.transport.regions import Region, Window

__all__ = [
    "CQE_DTYPE",
    "RQE_DTYPE",
    "SQE_DTYPE",
    "Ack",
    "Completion",
    "Frame",
    "FrameError",
    "FrameHeader",
    "Launch",
    "Note",
    "Put",
    "QPState",
    "QueuePair",
    "Region",
    "Send",
    "Window",
    "decode_frame",
    "decode_header",
    "encode_frame",
    "encode_header",
]
