"""The frame between hosts: the codec in C and the one in Python, written apart, say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream._core.native import ffi, lib, text_of
from jetstream.errors import ProtocolError
from jetstream.transport.frames import (
    FRAME_BYTES_MAX,
    INLINE_BYTES,
    NOTE_BYTES_MAX,
    Ack,
    Flag,
    Frame,
    FrameError,
    Note,
    Opcode,
    Put,
    Refusal,
    Send,
    crc32c,
    decode_frame,
    encode_frame,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/frames.json").read_text())
NOTES = [opcode for opcode in Opcode if opcode >= Opcode.PROBE]
#: What a js_wire_frame has; fields that a kind does not have are zero.
FIELDS = (
    *("opcode", "channel", "flags", "dcid", "epoch", "psn", "ack", "credit", "fragment", "imm"),
    *("offset", "total_bytes", "sack", "trigger", "delay", "consumed", "key", "mtu", "payload"),
)


def fields_of(frame: Frame) -> dict[str, Any]:
    """Returns a frame as the fields of the struct in C."""
    sack = getattr(frame, "sack", 0)
    body: bytes = frame.note if isinstance(frame, Note) else getattr(frame, "payload", b"")
    renamed = {
        "sack": [sack % 2**64, sack >> 64],
        "delay": getattr(frame, "delay_units", 0),
        "consumed": list(getattr(frame, "consumed", (0, 0, 0))),
        "payload": body.hex(),
    }
    return {name: renamed.get(name, getattr(frame, name, 0)) for name in FIELDS}


def python_decode(data: bytes) -> dict[str, Any] | str:
    """Returns the fields, or the reason of the refusal."""
    try:
        return fields_of(decode_frame(data))
    except FrameError as error:
        return error.reason.value


def c_decode(data: bytes) -> dict[str, Any] | str:
    """Returns the fields, or the reason of the refusal. The copy ends where the bytes do."""
    frame = ffi.new("js_wire_frame *")
    copy = ffi.new("uint8_t[]", data) if data else ffi.NULL
    reason = lib.js_wire_decode(copy, len(data), frame)
    if reason != lib.JS_WIRE_OK:
        return text_of(lib.js_wire_reason_name(reason))
    renamed = {
        "sack": list(frame.sack),
        "consumed": list(frame.consumed),
        "payload": bytes(ffi.buffer(frame.payload, frame.bytes)).hex() if frame.bytes else "",
    }
    return {name: renamed.get(name) or getattr(frame, name) for name in FIELDS} | renamed


def c_encode(frame: Frame) -> bytes:
    fields = fields_of(frame)
    payload = bytes.fromhex(fields.pop("payload"))
    keep = ffi.new("uint8_t[]", payload)
    struct = ffi.new("js_wire_frame *", {**fields, "payload": keep, "bytes": len(payload)})
    size = lib.js_wire_size(struct) + getattr(frame, "padding_bytes", 0)
    out = ffi.new("uint8_t[]", size)
    assert lib.js_wire_encode(struct, size, out) == size
    return bytes(ffi.buffer(out))


def seal(data: bytes) -> bytes:
    return data + crc32c(data).to_bytes(4, "little")


# --- vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    want = vector.get("refused")
    if want is None:
        nothing = dict.fromkeys(FIELDS, 0) | {"sack": [0, 0], "consumed": [0, 0, 0], "payload": ""}
        given_fields = dict(vector["fields"])
        padding_bytes = given_fields.pop("padding_bytes", 0)
        want = nothing | given_fields
        frame = decode_frame(data)
        assert getattr(frame, "padding_bytes", 0) == padding_bytes
        encoded = encode_frame(frame)
        assert data[: len(encoded)] == encoded
        assert c_encode(frame) == encoded
    assert python_decode(data) == want
    assert c_decode(data) == want


def test_vectors_are_complete() -> None:
    """Every opcode is accepted in some vector, every reason of the codec is one's refusal."""
    assert {v["fields"]["opcode"] for v in VECTORS if "fields" in v} == set(Opcode)
    assert {v["refused"] for v in VECTORS if "refused" in v} == {reason.value for reason in Refusal}
    assert len({v["name"] for v in VECTORS}) == len(VECTORS)


# --- anything --------------------------------------------------------------------------------

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
DELIVERY: dict[str, Any] = {"dcid": U16, "epoch": U16, "psn": U32, "ack": U16, "credit": U16}
CHUNK: dict[str, Any] = {"channel": st.integers(0, 1), "fragment": U16, "imm": U32}
SEND_FLAGS = Flag.SOM | Flag.EOM | Flag.ACKREQ | Flag.RETX


def flags(allowed: Flag) -> st.SearchStrategy[Flag]:
    return st.integers(0, 31).map(lambda bits: Flag(bits) & allowed)


FRAMES: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        Send,
        **DELIVERY,
        **CHUNK,
        flags=flags(SEND_FLAGS),
        payload=st.binary(max_size=INLINE_BYTES),
    ),
    st.builds(
        Put,
        **DELIVERY,
        **CHUNK,
        flags=flags(SEND_FLAGS | Flag.MORE),
        offset=U32,
        total_bytes=st.integers(200, 2**32 - 1),
        payload=st.binary(min_size=1, max_size=200),
    ),
    st.builds(
        Ack,
        **DELIVERY,
        flags=flags(Flag.RETX),
        sack=st.integers(0, 2**128 - 1),
        trigger=U32,
        delay_units=U16,
        consumed=st.tuples(U16, U16, U16),
    ),
    st.builds(
        Note,
        **DELIVERY,
        opcode=st.sampled_from(NOTES),
        key=st.integers(0, 2**64 - 1),
        mtu=U16,
        note=st.binary(max_size=NOTE_BYTES_MAX),
        padding_bytes=st.integers(0, 300),
    ),
)


@given(FRAMES, st.binary(max_size=20))
def test_both_encode_the_same_and_decode_it_back(frame: Frame, padding: bytes) -> None:
    data = encode_frame(frame)
    assert c_encode(frame) == data
    assert decode_frame(data + padding) == frame
    assert c_decode(data + padding) == fields_of(frame)


@given(
    FRAMES,
    st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from(("as it is", "sealed", "cut")),
    st.integers(0, 60),
)
def test_both_refuse_the_same(
    frame: Frame, changes: list[tuple[int, int]], how: str, cut: int
) -> None:
    """Frames with some bytes changed, many of them with the right CRC nevertheless."""
    data = bytearray(encode_frame(frame))
    for at, value in changes:
        data[at % len(data)] = value
    changed = bytes(data)
    if how == "sealed":
        changed = seal(changed[:-4])
    elif how == "cut":
        changed = changed[: max(0, len(changed) - cut)]
    assert c_decode(changed) == python_decode(changed)


@given(st.binary(max_size=80))
def test_both_refuse_noise_alike(data: bytes) -> None:
    assert c_decode(data) == python_decode(data)


@given(st.binary(max_size=1500), U32)
def test_crc(data: bytes, start: int) -> None:
    assert lib.js_crc32c(0, data, len(data)) == crc32c(data)
    half = start % (len(data) + 1)
    first = lib.js_crc32c(0, data[:half], half)
    assert lib.js_crc32c(first, data[half:], len(data) - half) == crc32c(data)


# --- what cannot be encoded ------------------------------------------------------------------


def test_encode_refuses_what_has_no_room() -> None:
    delivery = {"dcid": 1, "epoch": 2, "psn": 3, "ack": 4, "credit": 5}
    note = Note(**delivery, opcode=Opcode.HELLO, key=1, mtu=1500, note=b"")
    with pytest.raises(ProtocolError, match="does not fit"):
        encode_frame(Note(**{**delivery, "psn": 2**32}, opcode=Opcode.BYE, key=1, mtu=1, note=b""))
    with pytest.raises(FrameError, match="a note of 257 bytes") as caught:
        encode_frame(Note(**delivery, opcode=Opcode.RESET, key=1, mtu=1, note=bytes(257)))
    assert caught.value.reason is Refusal.HEADER
    assert len(encode_frame(note)) == 36
    room = FRAME_BYTES_MAX - 36
    longest = Note(**delivery, opcode=Opcode.HELLO, key=1, mtu=1500, note=b"", padding_bytes=room)
    assert len(encode_frame(longest)) == FRAME_BYTES_MAX


def test_reasons_are_those_of_the_data_plane() -> None:
    names = [text_of(lib.js_wire_reason_name(i)) for i in range(lib.JS_WIRE_REASONS)]
    assert names[1 : 1 + len(Refusal)] == [reason.value for reason in Refusal]
    assert {int(opcode) for opcode in Opcode} == {
        getattr(lib, f"JS_WIRE_{opcode.name}") for opcode in Opcode
    }
