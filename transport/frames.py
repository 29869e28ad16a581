"""The frame header in pure Python: a second, independent implementation of csrc/wire/js_frame.h.

24 bytes, little endian: a delivery header of 16 (version and channel, opcode, flags, header length
in words of 4 bytes, dcid, epoch, psn, ack, credit) and an operation header of 8 (length, fragment,
imm). ``docs/data-plane.md`` shows the layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from jetstream.errors import ProtocolError

__all__ = [
    "FLAG_EOM",
    "FLAG_SOM",
    "HEADER_BYTES",
    "OP_SEND",
    "VERSION",
    "FrameHeader",
    "decode_header",
    "encode_header",
]

VERSION = 1
HEADER_BYTES = 24
OP_SEND = 0x01
FLAG_SOM = 0x01
FLAG_EOM = 0x02

_FORMAT = struct.Struct("<BBBBHHIHHHHI")
_KNOWN_FLAGS = FLAG_SOM | FLAG_EOM


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The fields of a SEND frame. ``length``: payload bytes; ``fragment``: index in the message."""

    channel: int
    flags: int
    dcid: int
    epoch: int
    psn: int
    length: int
    fragment: int
    imm: int
    ack: int = 0
    credit: int = 0


def encode_header(header: FrameHeader) -> bytes:
    """Return the 24 bytes of a header. Raises ProtocolError for a value that has no room."""
    try:
        return _FORMAT.pack(
            VERSION | header.channel << 4,
            OP_SEND,
            header.flags,
            HEADER_BYTES // 4,
            header.dcid,
            header.epoch,
            header.psn,
            header.ack,
            header.credit,
            header.length,
            header.fragment,
            header.imm,
        )
    except struct.error as error:
        raise ProtocolError(f"{header} does not fit the frame header: {error}") from error


def decode_header(data: bytes) -> FrameHeader:
    """Parse the first 24 bytes of a frame. Raises ProtocolError for anything malformed."""
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"{len(data)} bytes are too few for a frame header of {HEADER_BYTES}")
    first, opcode, flags, words, dcid, epoch, psn, ack, credit, length, fragment, imm = (
        _FORMAT.unpack_from(data)
    )
    if first & 0x0F != VERSION:
        raise ProtocolError(f"frame version {first & 0x0F}, not {VERSION}")
    if opcode != OP_SEND:
        raise ProtocolError(f"unknown frame opcode {opcode:#04x}")
    if words * 4 != HEADER_BYTES:
        raise ProtocolError(f"header of {words * 4} bytes, a SEND has {HEADER_BYTES}")
    if flags & ~_KNOWN_FLAGS:
        raise ProtocolError(f"reserved flags set: {flags:#04x}")
    return FrameHeader(
        channel=first >> 4,
        flags=flags,
        dcid=dcid,
        epoch=epoch,
        psn=psn,
        length=length,
        fragment=fragment,
        imm=imm,
        ack=ack,
        credit=credit,
    )
