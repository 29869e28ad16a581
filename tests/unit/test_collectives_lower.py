"""The binary form: every field where js_plan.h has it, the way back, golden listings."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.collectives import ir, lower
from jetstream.collectives.algorithms import ALGORITHMS
from jetstream.collectives.calls import COUNTED, PREFIXES, ROOTED, Call
from jetstream.collectives.compile import build_plan, compile_plan
from jetstream.collectives.disassemble import disassemble
from jetstream.collectives.ir import After, AfterMode, Buffer, Copy, FromPeer, Range, RankPlan
from jetstream.collectives.parts import Splits
from jetstream.collectives.refer import REFER_BYTES
from jetstream.collectives.template import compile_splits
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import PlanError

GOLDEN = Path(__file__).parent / "golden"

# kind, redop, dtype, count, root, world, algorithm, chunk_bytes
GOLDEN_CALLS = {
    "all_reduce_one_shot": Call(
        Kind.ALL_REDUCE, RedOp.SUM, DType.FLOAT32, 1024, 0, 2, Algorithm.ONE_SHOT, 2048
    ),
    "all_reduce_one_shot_alone": Call(
        Kind.ALL_REDUCE, RedOp.MAX, DType.INT64, 9, 0, 1, Algorithm.ONE_SHOT, 64
    ),
    "all_reduce_two_shot": Call(
        Kind.ALL_REDUCE, RedOp.AVG, DType.BFLOAT16, 1001, 0, 3, Algorithm.TWO_SHOT, 256
    ),
    "all_reduce_lend": Call(
        Kind.ALL_REDUCE, RedOp.SUM, DType.FLOAT32, 100, 0, 3, Algorithm.LEND, 128
    ),
    "all_reduce_two_shot_tiny": Call(
        Kind.ALL_REDUCE, RedOp.SUM, DType.FLOAT64, 1, 0, 3, Algorithm.TWO_SHOT, 64
    ),
    "all_gather": Call(Kind.ALL_GATHER, RedOp.SUM, DType.UINT8, 100, 0, 3, Algorithm.DIRECT, 64),
    "reduce_scatter": Call(
        Kind.REDUCE_SCATTER, RedOp.MIN, DType.FLOAT16, 33, 0, 3, Algorithm.DIRECT, 64
    ),
    "broadcast": Call(Kind.BROADCAST, RedOp.SUM, DType.INT32, 20, 1, 3, Algorithm.DIRECT, 64),
    "all_to_all": Call(Kind.ALL_TO_ALL, RedOp.SUM, DType.INT64, 9, 0, 3, Algorithm.DIRECT, 64),
    "reduce": Call(Kind.REDUCE, RedOp.SUM, DType.FLOAT32, 20, 1, 3, Algorithm.DIRECT, 64),
    "reduce_two_shot": Call(
        Kind.REDUCE, RedOp.AVG, DType.FLOAT16, 99, 2, 3, Algorithm.TWO_SHOT, 64
    ),
    "gather_counts": Call(
        Kind.GATHER, RedOp.SUM, DType.UINT8, 107, 1, 3, Algorithm.DIRECT, 64, (100, 0, 7)
    ),
    "scatter": Call(Kind.SCATTER, RedOp.SUM, DType.BFLOAT16, 33, 2, 3, Algorithm.DIRECT, 64),
    "scan": Call(Kind.SCAN, RedOp.SUM, DType.FLOAT32, 20, 0, 3, Algorithm.DIRECT, 64),
    "exscan": Call(Kind.EXSCAN, RedOp.MIN, DType.FLOAT32, 20, 0, 3, Algorithm.DIRECT, 64),
    "all_reduce_one_shot_hosts": Call(
        Kind.ALL_REDUCE, RedOp.AVG, DType.FLOAT64, 20, 0, 4, Algorithm.ONE_SHOT, 64
    ),
    "all_reduce_hierarchical": Call(
        Kind.ALL_REDUCE, RedOp.SUM, DType.BFLOAT16, 1000, 0, 4, Algorithm.HIERARCHICAL, 128
    ),
    "all_reduce_hierarchical_one_shot": Call(
        Kind.ALL_REDUCE, RedOp.SUM, DType.FLOAT16, 99, 0, 3, Algorithm.HIERARCHICAL_ONE_SHOT, 64
    ),
    "barrier": Call(Kind.BARRIER, RedOp.SUM, DType.FLOAT64, 0, 0, 3, Algorithm.DIRECT, 64),
}

#: The hosts of the ranks, where they are on several.
GOLDEN_HOSTS = {
    "all_reduce_one_shot_hosts": (0, 1, 0, 1),
    "all_reduce_hierarchical": (0, 0, 1, 1),
    "all_reduce_hierarchical_one_shot": (0, 0, 1),
}


def golden_text(name: str) -> str:
    """The listings of all ranks, each with a digest of its bytes."""
    parts = []
    call = GOLDEN_CALLS[name]
    for rank in range(call.world):
        data = compile_plan(call, rank, hosts=GOLDEN_HOSTS.get(name, ()))
        parts.append(f"{disassemble(data)}sha256 {hashlib.sha256(data).hexdigest()}\n")
    return "\n".join(parts)


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_golden(name: str) -> None:
    # After an intended change: python tests/unit/test_collectives_lower.py writes the files anew.
    assert golden_text(name) == (GOLDEN / f"{name}.txt").read_text()


def test_golden_files_all_belong_to_a_call() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(GOLDEN_CALLS)


def test_header_fields() -> None:
    call = GOLDEN_CALLS["all_reduce_two_shot"]
    data = compile_plan(call, 2)
    magic, version, header_bytes, total_bytes, rank = struct.unpack_from("<4sHHII", data, 0)
    assert (magic, version, header_bytes, total_bytes, rank) == (b"JPLN", 3, 96, len(data), 2)
    kind_redop_dtype_algo = struct.unpack_from("<4B", data, 16)
    assert kind_redop_dtype_algo == (1, 4, 3, 2)
    assert struct.unpack_from("<IQIIQ", data, 20) == (256, 1001, 0, 3, 0)
    assert struct.unpack_from("<3Q", data, 48) == (2002, 2002, 0)
    # 2 sends, a reduce of 3 sources, a send, 2 copies
    assert struct.unpack_from("<4IQ", data, 72) == (6, 8, 6, 3, REFER_BYTES[Kind.ALL_REDUCE])
    assert len(data) == 96 + 6 * 56 + 8 * 16


def test_operation_and_source_fields() -> None:
    call = GOLDEN_CALLS["all_reduce_two_shot"]
    plan = RankPlan(
        call=call,
        rank=2,
        ops=(
            Copy(3, Range(Buffer.SCRATCH, 7, 5), FromPeer(1)),
            Copy(
                4,
                Range(Buffer.OUTPUT, 640, 128),
                Range(Buffer.SCRATCH, 64, 128),
                (After(0, AfterMode.DONE), After(0, AfterMode.CHUNK), After(0, AfterMode.DONE)),
            ),
        ),
        input_bytes=0,
        output_bytes=0,
        scratch_bytes=0,
        divisor=1,
    )
    data = lower.encode_plan(plan)
    second = 96 + 56
    assert struct.unpack_from("<4BHH", data, second) == (3, 1, 0, 3, 4, 0)
    assert struct.unpack_from("<IIQQ", data, second + 8) == (1, 1, 640, 128)
    assert struct.unpack_from("<4H4B", data, second + 32) == (0, 0, 0, 0, 1, 0, 1, 0)
    assert data[second + 44 : second + 56] == bytes(12)
    sources = second + 56
    assert struct.unpack_from("<BBHIQ", data, sources) == (2, 0, 1, 0, 0)
    assert struct.unpack_from("<BBHIQ", data, sources + 16) == (0, 2, 0, 0, 64)


def test_send_fields() -> None:
    data = compile_plan(GOLDEN_CALLS["all_reduce_two_shot"], 0)
    assert struct.unpack_from("<4BHH", data, 96) == (1, 0, 2, 0, 0, 1)  # to peer 1
    assert struct.unpack_from("<4BHH", data, 96 + 3 * 56) == (1, 0, 1, 1, 3, 0)  # to all
    # What is sent first may be overwritten in place, the result is not.
    assert [struct.unpack_from("<I", data, 96 + op * 56 + 44)[0] for op in (0, 3)] == [2, 6]


@st.composite
def calls(draw: st.DrawFn) -> Call:
    kind, algorithm = draw(st.sampled_from(list(ALGORITHMS)))
    world = draw(st.integers(1, 256))
    dtype = draw(st.sampled_from(DType))
    redops = [op for op in dtype.redops if kind not in PREFIXES or op is not RedOp.AVG]
    counts: tuple[int, ...] = ()
    count = 0 if kind is Kind.BARRIER else draw(st.integers(0, 2**40))
    if kind in COUNTED and world > 1 and draw(st.booleans()):
        some = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=world - 1))
        counts = (*some, *range(world - len(some) - 1), some[0] + 1)
        count = sum(counts)
    return Call(
        kind=kind,
        redop=draw(st.sampled_from(redops)),
        dtype=dtype,
        count=count,
        counts=counts,
        root=draw(st.integers(0, world - 1)) if kind in ROOTED else 0,
        world=world,
        algorithm=algorithm,
        chunk_bytes=64 * draw(st.integers(1, 512)),
    )


@given(call=calls(), data=st.data())
@settings(max_examples=60, deadline=None, database=None)
def test_round_trip(call: Call, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, call.world - 1))
    plan = build_plan(call, rank)
    encoded = lower.encode_plan(plan)
    assert lower.decode_plan(encoded, counts=call.counts) == plan
    assert compile_plan(call, rank) == encoded
    assert plan.lane_count <= ir.LANES_MAX and len(plan.ops) <= ir.OPS_MAX


def test_round_trip_with_splits() -> None:
    call = Call(
        Kind.ALL_TO_ALL, RedOp.SUM, DType.INT64, 0, 0, 3, Algorithm.DIRECT, 64, has_splits=True
    )
    splits = Splits((3, 0, 100), (3, 8, 1))
    data = compile_plan(call, 0, splits)
    assert lower.decode_plan(data, splits=splits) == build_plan(call, 0, splits)
    assert struct.unpack_from("<Q", data, 40) == (3 << 62,)
    assert disassemble(data).startswith("all_to_all(int64, splits): direct")


@given(data=st.data(), world=st.integers(1, 9), dtype=st.sampled_from(DType))
@settings(max_examples=60, deadline=None, database=None)
def test_splits_filled_in_are_splits_compiled(
    data: st.DataObject, world: int, dtype: DType
) -> None:
    call = Call(
        Kind.ALL_TO_ALL, RedOp.SUM, dtype, 0, 0, world, Algorithm.DIRECT, 128, has_splits=True
    )
    rank = data.draw(st.integers(0, world - 1))
    sizes = st.lists(st.integers(0, 2**32 - 1), min_size=world, max_size=world)
    sent, received = data.draw(sizes), data.draw(sizes)
    received[rank] = sent[rank]
    splits = Splits(tuple(sent), tuple(received))
    assert compile_splits(call, rank, splits) == compile_plan(call, rank, splits)


def test_splits_that_do_not_fit_are_not_filled_in() -> None:
    call = Call(
        Kind.ALL_TO_ALL, RedOp.SUM, DType.INT64, 0, 0, 2, Algorithm.DIRECT, 64, has_splits=True
    )
    for sent, received in (((1, 2, 3), (1, 2)), ((1, -1), (1, 2)), ((1, 2), (2, 2))):
        with pytest.raises(PlanError):
            compile_splits(call, 0, Splits(sent, received))


def test_counts_that_are_only_hashed() -> None:
    counts = (2**40, 1, 2)
    call = Call(
        Kind.ALL_GATHER, RedOp.SUM, DType.UINT8, sum(counts), 0, 3, Algorithm.DIRECT, 64, counts
    )
    data = compile_plan(call, 1)
    assert lower.decode_plan(data, counts=counts).call == call
    for wrong in ((), (2**40, 2, 1)):
        with pytest.raises(PlanError, match="counts of the call are not those of the plan"):
            lower.decode_plan(data, counts=wrong)


@given(call=calls(), data=st.data())
@settings(max_examples=200, deadline=None, database=None)
def test_damaged_bytes_are_a_plan_or_an_error(call: Call, data: st.DataObject) -> None:
    damaged = bytearray(compile_plan(call, 0))
    position = data.draw(st.integers(0, min(len(damaged), 1000) - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.sampled_from([len(damaged), len(damaged) - 1, 95, 0])) :]
    try:
        lower.decode_plan(bytes(damaged))
    except PlanError:
        pass
    else:
        assert damaged


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, 0, "not a plan"),
        (4, 1, "not a plan of version 3"),
        (8, 1, "the header says"),
        (16, 99, "99 is not a valid Kind"),
        (96, 9, "opcode 9"),
        (98, 7, "place 7"),
        (99, 9, "not a valid plan"),
        (96 + 56 * 6, 4, "place 4"),
    ],
)
def test_errors_say_what_is_wrong(offset: int, value: int, text: str) -> None:
    data = bytearray(compile_plan(GOLDEN_CALLS["all_reduce_two_shot"], 0))
    data[offset] = value
    with pytest.raises(PlanError, match=text):
        lower.decode_plan(bytes(data))


def test_numbers_that_do_not_fit_are_refused() -> None:
    call = GOLDEN_CALLS["barrier"]
    wide = Copy(2**16, Range(Buffer.OUTPUT, 0, 0), FromPeer(1))
    with pytest.raises(PlanError, match="does not fit"):
        lower.encode_plan(RankPlan(call, 0, (wide,), 0, 0, 0, 1))


def test_numbers_are_those_of_the_data_plane() -> None:
    lib = pytest.importorskip("jetstream._native", reason="the data plane is not built").lib
    assert ir.AFTER_MAX == lib.JS_PLAN_AFTER_MAX
    assert ir.LANES_MAX == lib.JS_PLAN_LANES_MAX
    assert ir.OPS_MAX == lib.JS_PLAN_OPS_MAX
    assert ir.SOURCES_MAX == lib.JS_PLAN_SOURCES_MAX
    assert [AfterMode.CHUNK, AfterMode.DONE] == [lib.JS_PLAN_AFTER_CHUNK, lib.JS_PLAN_AFTER_DONE]
    assert list(Buffer) == [lib.JS_PLAN_INPUT, lib.JS_PLAN_OUTPUT, lib.JS_PLAN_SCRATCH]
    header = compile_plan(GOLDEN_CALLS["barrier"], 0)[:6]
    assert struct.unpack("<IH", header) == (lib.JS_PLAN_MAGIC, lib.JS_PLAN_VERSION)
    opcodes = [compile_plan(GOLDEN_CALLS["reduce_scatter"], 0)[96 + 56 * op] for op in (0, 2)]
    opcodes.append(compile_plan(GOLDEN_CALLS["broadcast"], 0)[96])
    assert opcodes == [lib.JS_OP_SEND, lib.JS_OP_REDUCE, lib.JS_OP_COPY]
    places = [compile_plan(GOLDEN_CALLS[name], 0)[98] for name in ("barrier", "reduce_scatter")]
    assert places == [lib.JS_PLACE_ALL, lib.JS_PLACE_PEER]
    lend = compile_plan(GOLDEN_CALLS["all_reduce_lend"], 0)
    assert (lend[-16], lend[96 + 44]) == (lib.JS_PLACE_LENT, lib.JS_PLAN_LEND)


if __name__ == "__main__":
    for golden_name in GOLDEN_CALLS:
        (GOLDEN / f"{golden_name}.txt").write_text(golden_text(golden_name))
