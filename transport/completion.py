"""What a queue pair tells: completions, and the state it is in."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from jetstream._core.native import lib, status_name

__all__ = ["Completion", "QPState", "completion_of"]

_OPCODES = {
    0: "receive",
    lib.JS_SQ_SEND: "send",
    lib.JS_SQ_LAUNCH: "launch",
    lib.JS_SQ_PUT: "put",
    lib.JS_SQ_GRAPH: "graph",
    lib.JS_SQ_NOP: "nop",
}


class QPState(IntEnum):
    """State of a queue pair; ``docs/device.md`` has the diagram."""

    RESET = 0
    READY = 1
    DRAINING = 2
    ERROR = 3
    CLOSED = 4


class Completion(NamedTuple):
    """How a posted entry has ended.

    ``status`` is the name of a status, "JS_OK" for success. ``bytes``: sent or put; length of the
    message received; of a collective, the bytes of its output. ``peer``: target or source rank, 0
    for a collective, -1 for a receive from any rank that no message has matched. ``opcode``:
    "send", "receive", "put", "launch", "graph" or "nop"; an opcode that does not exist appears as
    its number. ``tag``: of a message received, else 0.
    """

    wr_id: int
    status: str
    bytes: int
    peer: int
    opcode: str
    tag: int

    @property
    def is_ok(self) -> bool:
        """Whether the entry has succeeded."""
        return self.status == "JS_OK"


def completion_of(cqe: Any) -> Completion:
    """The completion in a ``js_cqe *``."""
    is_receive = cqe.opcode == 0
    return Completion(
        cqe.wr_id,
        status_name(cqe.status) if cqe.status else "JS_OK",
        cqe.bytes,
        cqe.peer if cqe.peer != lib.JS_PEER_ANY else -1,
        _OPCODES.get(cqe.opcode, str(cqe.opcode)),
        cqe.sq_head_or_tag if is_receive else 0,
    )
