"""The layouts that Python writes down agree with those the C compiler uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.errors import ProtocolError
from jetstream.records import RECORD_DTYPE
from jetstream.transport import (
    CQE_DTYPE,
    RQE_DTYPE,
    SQE_DTYPE,
    FrameHeader,
    decode_header,
    encode_header,
)
from jetstream.transport.queues import cq_commit, rq_commit, sq_commit

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("js_sqe", SQE_DTYPE),
        ("js_rqe", RQE_DTYPE),
        ("js_cqe", CQE_DTYPE),
        ("js_record", RECORD_DTYPE),
    ],
)
def test_struct_equals_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Every field has the offset and size that the compiled struct has."""
    from jetstream._core.native import ffi

    assert ffi.sizeof(name) == dtype.itemsize
    fields = dict(ffi.typeof(name).fields)
    assert list(fields) == list(dtype.names or ())
    for field in fields:
        column, offset = (dtype.fields or {})[field][:2]
        assert ffi.offsetof(name, field) == offset, field
        assert ffi.sizeof(fields[field].type) == column.itemsize, field


@given(
    st.builds(
        FrameHeader,
        channel=st.integers(0, 15),
        flags=st.integers(0, 3),
        dcid=U16,
        epoch=U16,
        psn=U32,
        length=U16,
        fragment=U16,
        imm=U32,
        ack=U16,
        credit=U16,
    )
)
def test_header_round_trip(header: FrameHeader) -> None:
    """What is encoded is decoded, for every value that has room."""
    assert decode_header(encode_header(header)) == header


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_raise(data: bytes) -> None:
    """Hostile bytes give a header that encodes back to them, or ProtocolError."""
    try:
        header = decode_header(data)
    except ProtocolError:
        return
    assert encode_header(header) == data[:24]


def test_header_bytes_are_those_documented() -> None:
    """One frame written out by hand."""
    header = FrameHeader(
        channel=2, flags=3, dcid=0x1122, epoch=0x3344, psn=0x55667788,
        length=0x99AA, fragment=0xBBCC, imm=0xDDEEFF00,
    )  # fmt: skip
    assert encode_header(header).hex() == "21010306221144338877665500000000aa99ccbb00ffeedd"


def test_commit_words_differ_between_laps() -> None:
    """An entry of the lap before, or a zeroed slot, is never taken for the expected one."""
    for commit, depth in ((sq_commit, 4), (rq_commit, 4), (cq_commit, 8)):
        for index in (0, 1, depth - 1, depth, 3 * depth + 1, 2**32 - 1):
            assert commit(index, depth) != 0 or index >= depth
            assert commit(index, depth) != commit(index + depth, depth)
