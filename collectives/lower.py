"""The binary form of a plan, both ways: ``js_plan.h`` in Python.

Fields that an operation does not use are zero, so equal plans are equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from jetstream.collectives.calls import Call
from jetstream.collectives.ir import (
    AFTER_MAX,
    After,
    AfterMode,
    Buffer,
    Copy,
    FromAll,
    FromLent,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Refer,
    Send,
    Source,
    ToAll,
    ToPeer,
)
from jetstream.collectives.parts import PARTS_SPLITS, Splits, is_packed, unpack_counts
from jetstream.collectives.placement import place
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

__all__ = [
    "HEADER_BUFFERS",
    "HEADER_BYTES",
    "OP_BYTES",
    "OP_RANGE",
    "SOURCE_BYTES",
    "SOURCE_OFFSET",
    "decode_plan",
    "encode_plan",
    "scratch_bytes",
]

_MAGIC = 0x4E4C504A
_VERSION = 3
_HEADER = struct.Struct("<IHHII BBBBIQIIQ QQQIIIIQ")
_OP = struct.Struct(f"<BBBBHHIIQQ {AFTER_MAX}H {AFTER_MAX}B IQ")
_SOURCE = struct.Struct("<BBHIQ")
#: Sizes of the parts of a plan, and where in them lie the sizes of INPUT and OUTPUT, the target's
#: offset and the size of an operation, the offset of a source.
HEADER_BYTES, OP_BYTES, SOURCE_BYTES = _HEADER.size, _OP.size, _SOURCE.size
HEADER_BUFFERS, OP_RANGE, SOURCE_OFFSET = 48, 16, 8

# js_op.def
_SEND, _REDUCE, _COPY = 1, 2, 3
_OPCODES: dict[type[Op], int] = {Send: _SEND, Reduce: _REDUCE, Copy: _COPY}
# enum js_plan_place
_PLACE_BUFFER, _PLACE_ALL, _PLACE_PEER, _PLACE_LENT = 0, 1, 2, 3
# js_plan.h
_LEND = 1
_REFER, _REFER_IN_PLACE = 2, 4
_PARTIAL_TARGET, _PARTIAL_SOURCES = 8, 16
_REFER_FLAGS = {
    Refer.NEVER: 0,
    Refer.APART: _REFER,
    Refer.ALWAYS: _REFER | _REFER_IN_PLACE,
}
_REFERS = {flags: refer for refer, flags in _REFER_FLAGS.items()}


_PLACES: dict[type[Source], int] = {
    FromAll: _PLACE_ALL,
    FromPeer: _PLACE_PEER,
    FromLent: _PLACE_LENT,
}


def encode_plan(plan: RankPlan) -> bytes:
    """Lower a plan to bytes; raises PlanError if a number does not fit its field."""
    ops: list[bytes] = []
    sources: list[bytes] = []
    try:
        for op in plan.ops:
            ops.append(_encode_op(op, len(sources)))
            sources += [_encode_source(source) for source in op.sources]
        return _encode_header(plan, len(sources)) + b"".join(ops + sources)
    except struct.error as error:
        raise PlanError(f"{plan.call.describe()}: does not fit the binary form: {error}") from error


def scratch_bytes(data: bytes) -> int:
    """How much memory of its own a plan in its binary form needs while it is loaded."""
    return int(_HEADER.unpack_from(data)[16])


def decode_plan(
    data: bytes,
    *,
    counts: tuple[int, ...] = (),
    splits: Splits | None = None,
    hosts: Sequence[int] = (),
) -> RankPlan:
    """Read a plan back from its bytes; raises PlanError if they are not a plan.

    ``counts`` and ``splits`` are those of the call where the bytes hold no more than a hash of
    them, or that there are some; without splits the plan cannot be verified, but shown. So it is
    with the ``hosts`` of the ranks, which are not in the bytes.
    """
    if len(data) < _HEADER.size:
        raise PlanError(f"{len(data)} bytes are too few for a plan")
    (magic, version, header_bytes, total_bytes, rank, *fields) = _HEADER.unpack_from(data)
    if (magic, version, header_bytes) != (_MAGIC, _VERSION, _HEADER.size):
        raise PlanError(f"not a plan of version {_VERSION}")
    kind, redop, dtype, algo, chunk_bytes, count, root, world, parts = fields[:9]
    input_bytes, output_bytes, scratch_bytes, op_count, source_count, _, divisor, refer = fields[9:]
    op_end = _HEADER.size + op_count * _OP.size
    if not total_bytes == len(data) == op_end + source_count * _SOURCE.size:
        raise PlanError(f"{len(data)} bytes given, the header says {total_bytes}")
    try:
        call = Call(
            kind=Kind(kind),
            redop=RedOp(redop),
            dtype=DType(dtype),
            count=count,
            root=root,
            world=world,
            algorithm=Algorithm(algo),
            chunk_bytes=chunk_bytes,
            counts=unpack_counts(parts, world) if is_packed(parts) and world else counts,
            has_splits=parts == PARTS_SPLITS,
        )
        if call.parts != parts:
            raise PlanError("the counts of the call are not those of the plan")
        sources = list(_SOURCE.iter_unpack(data[op_end:]))
        scale = call.partial_scale
        ops = [_decode_op(f, sources, scale) for f in _OP.iter_unpack(data[_HEADER.size : op_end])]
    except (ValueError, IndexError) as error:
        raise PlanError(f"not a valid plan: {error}") from error
    sizes = (input_bytes, output_bytes, scratch_bytes)
    placement = place(hosts, call.world)
    found = () if placement.is_one_host else placement.hosts
    return RankPlan(call, rank, tuple(ops), *sizes, divisor, splits, refer, found)


def _encode_header(plan: RankPlan, source_count: int) -> bytes:
    call = plan.call
    total_bytes = _HEADER.size + len(plan.ops) * _OP.size + source_count * _SOURCE.size
    return _HEADER.pack(
        *(_MAGIC, _VERSION, _HEADER.size, total_bytes, plan.rank),
        *(call.kind, call.redop, call.dtype, call.algorithm),
        *(call.chunk_bytes, call.count, call.root, call.world, call.parts),
        *(plan.input_bytes, plan.output_bytes, plan.scratch_bytes),
        *(len(plan.ops), source_count, plan.lane_count, plan.divisor, plan.refer_bytes),
    )


def _encode_op(op: Op, source_first: int) -> bytes:
    target, place, peer, flags = Range(Buffer(0), 0, 0), 0, 0, 0
    if isinstance(op, Send):
        place = _PLACE_ALL if isinstance(op.to, ToAll) else _PLACE_PEER
        peer = 0 if isinstance(op.to, ToAll) else op.to.peer
        if op.back is not None:
            target, flags = op.back, _LEND
        flags |= _REFER_FLAGS[op.refer] | (_PARTIAL_SOURCES if op.source.scale else 0)
    else:
        target = op.target
        if isinstance(op, Reduce):
            flags = _LEND if op.gives_back else 0
            flags |= _PARTIAL_TARGET if target.scale else 0
            flags |= _PARTIAL_SOURCES if op.partials else 0
    unused = (0,) * (AFTER_MAX - len(op.after))
    return _OP.pack(
        *(_OPCODES[type(op)], target.buffer, place, len(op.after), op.lane, peer),
        *(source_first, len(op.sources), target.offset, op.bytes),
        *(edge.op_index for edge in op.after),
        *unused,
        *(edge.mode for edge in op.after),
        *unused,
        *(flags, 0),
    )


def _encode_source(source: Source) -> bytes:
    if isinstance(source, Range):
        return _SOURCE.pack(_PLACE_BUFFER, source.buffer, 0, 0, source.offset)
    return _SOURCE.pack(_PLACES[type(source)], 0, source.peer, 0, 0)


def _decode_op(fields: tuple[int, ...], sources: list[tuple[int, ...]], scale: int) -> Op:
    opcode, buffer, to, after_count, lane, peer, first, count, offset, size_bytes = fields[:10]
    indices, modes = fields[10 : 10 + AFTER_MAX], fields[10 + AFTER_MAX : 10 + 2 * AFTER_MAX]
    flags = fields[10 + 2 * AFTER_MAX]
    lends = bool(flags & _LEND)
    refer = _REFERS.get(flags & (_REFER | _REFER_IN_PLACE), Refer.NEVER)
    partials = bool(flags & _PARTIAL_SOURCES)
    if flags & (_PARTIAL_TARGET | _PARTIAL_SOURCES) and scale == 0:
        raise ValueError("a partial fold that the reduction does not have")
    after = tuple(After(indices[i], AfterMode(modes[i])) for i in range(after_count))
    target = Range(Buffer(buffer), offset, size_bytes, scale if flags & _PARTIAL_TARGET else 0)
    source_scale = scale if partials else 0
    found = tuple(
        _decode_source(sources[i], size_bytes, source_scale) for i in range(first, first + count)
    )
    if opcode == _SEND and isinstance(found[0], Range):
        if to == _PLACE_ALL:
            return Send(lane, found[0], ToAll(), after, refer=refer)
        if to == _PLACE_PEER:
            return Send(lane, found[0], ToPeer(peer), after, target if lends else None, refer)
    if opcode == _REDUCE:
        return Reduce(lane, target, found, after, lends, partials)
    if opcode == _COPY:
        return Copy(lane, target, found[0], after)
    raise ValueError(f"operation with opcode {opcode} and place {to}")


def _decode_source(fields: tuple[int, ...], size_bytes: int, scale: int) -> Source:
    kind, buffer, peer, _, offset = fields
    if kind == _PLACE_BUFFER:
        return Range(Buffer(buffer), offset, size_bytes, scale)
    if kind == _PLACE_ALL:
        return FromAll(peer)
    if kind == _PLACE_PEER:
        return FromPeer(peer)
    if kind == _PLACE_LENT:
        return FromLent(peer)
    raise ValueError(f"source with place {kind}")
