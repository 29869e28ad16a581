"""Plans with splits, made by filling in the sizes of one that was compiled before.

Splits may be new in every call, but they change nothing except offsets and sizes. So the plan of
splits that are all zero is compiled once, and its bytes are a form to be filled in.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import accumulate

from jetstream.collectives.calls import Call
from jetstream.collectives.compile import build_plan, check_splits
from jetstream.collectives.ir import Copy, Range, Send, ToPeer
from jetstream.collectives.lower import (
    HEADER_BUFFERS,
    HEADER_BYTES,
    OP_BYTES,
    OP_RANGE,
    SOURCE_BYTES,
    SOURCE_OFFSET,
    encode_plan,
)
from jetstream.collectives.parts import Splits
from jetstream.errors import PlanError

__all__ = ["compile_splits"]

_TWO = struct.Struct("<QQ")
_ONE = struct.Struct("<Q")


def compile_splits(call: Call, rank: int, splits: Splits, hosts: tuple[int, ...] = ()) -> bytes:
    """The bytes that ``compile_plan`` gives for the same; raises PlanError as it does."""
    check_splits(call, rank, splits)
    form, sends, copies = _form(call, rank, hosts)
    data = bytearray(form)
    itemsize = call.dtype.itemsize
    sent = [count * itemsize for count in splits.sent]
    received = [count * itemsize for count in splits.received]
    sent_at, received_at = list(accumulate(sent, initial=0)), list(accumulate(received, initial=0))
    _TWO.pack_into(data, HEADER_BUFFERS, sent_at[-1], received_at[-1])
    for peer, op_at, source_at in sends:
        _TWO.pack_into(data, op_at, 0, sent[peer])
        _ONE.pack_into(data, source_at, sent_at[peer])
    for peer, op_at, source_at in copies:
        _TWO.pack_into(data, op_at, received_at[peer], received[peer])
        if peer == rank:
            _ONE.pack_into(data, source_at, sent_at[peer])
    return bytes(data)


_Places = list[tuple[int, int, int]]


@lru_cache(maxsize=64)
def _form(call: Call, rank: int, hosts: tuple[int, ...]) -> tuple[bytes, _Places, _Places]:
    """The form, and where it is filled in: the peer, its operation's range, its source's offset."""
    nothing = (0,) * call.world
    plan = build_plan(call, rank, Splits(nothing, nothing), hosts)
    sources_at = HEADER_BYTES + len(plan.ops) * OP_BYTES + SOURCE_OFFSET
    sends: _Places = []
    copies: _Places = []
    for index, op in enumerate(plan.ops):
        place = (HEADER_BYTES + index * OP_BYTES + OP_RANGE, sources_at + index * SOURCE_BYTES)
        if isinstance(op, Send) and isinstance(op.to, ToPeer):
            sends.append((op.to.peer, *place))
        elif isinstance(op, Copy):
            peer = rank if isinstance(op.source, Range) else op.source.peer
            copies.append((peer, *place))
        else:
            raise PlanError(f"{call.describe()}: operation #{index} cannot be filled in")
    return encode_plan(plan), sends, copies
