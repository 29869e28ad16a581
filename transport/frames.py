"""The frame between hosts in pure Python: a second, independent implementation.

``docs/wire.md`` has the layout and the rules of parsing; ``csrc/wire/js_wire.c`` is the first one.
A frame is one of four dataclasses: ``Send``, ``Put``, ``Ack``, and ``Note`` for the seven opcodes
of control frames that carry a note. All numbers are little endian.

``FrameHeader`` is the header that a SEND has within the shared memory of one host, where there is
no trailer (``csrc/wire/js_frame.h``, ``docs/data-plane.md``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import ClassVar, NoReturn

from jetstream.errors import ProtocolError

__all__ = [
    "FLAG_EOM",
    "FLAG_SOM",
    "FRAME_BYTES_MAX",
    "HEADER_BYTES",
    "INLINE_BYTES",
    "NOTE_BYTES_MAX",
    "OP_SEND",
    "VERSION",
    "Ack",
    "Flag",
    "Frame",
    "FrameError",
    "FrameHeader",
    "Note",
    "Opcode",
    "Put",
    "Refusal",
    "Send",
    "crc32c",
    "decode_frame",
    "decode_header",
    "encode_frame",
    "encode_header",
]

VERSION = 1
#: The largest UDP datagram over IPv4.
FRAME_BYTES_MAX = 65507
#: A chunk of at most so many bytes is a SEND, a longer one goes in PUTs.
INLINE_BYTES = 40
NOTE_BYTES_MAX = 256
CHANNELS = 3
_TRAILER_BYTES = 4
_DELIVERY_BYTES = 16


class Opcode(IntEnum):
    """What a frame is for."""

    SEND = 0x01
    PUT = 0x02
    ACK = 0x80
    PROBE = 0x82
    PROBE_ACK = 0x83
    HELLO = 0x88
    HELLO_ACK = 0x89
    BYE = 0x8A
    BYE_ACK = 0x8B
    RESET = 0x8C


class Flag(IntFlag):
    """Bits of the third byte."""

    SOM = 0x01
    EOM = 0x02
    MORE = 0x04
    ACKREQ = 0x08
    RETX = 0x10


class Refusal(str, Enum):
    """Why bytes are no frame; the words of ``js_wire_reason_name``."""

    SHORT = "short"
    FOREIGN = "foreign"
    OPCODE = "opcode"
    HEADER = "header"
    RESERVED = "reserved"
    CRC = "crc"


class FrameError(ProtocolError):
    """Bytes that are no frame; ``reason`` says which rule they break."""

    def __init__(self, reason: Refusal, text: str) -> None:
        """Keeps the reason beside the text."""
        super().__init__(f"{reason.value}: {text}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The fields that every frame has.

    dcid, epoch: connection and incarnation at the receiver; psn: of a SEND or PUT its number, of
    others the next one; ack: low 16 bits of the PSN expected next; credit: of the PSN limit.
    """

    dcid: int
    epoch: int
    psn: int
    ack: int
    credit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Delivery):
    """A whole chunk of at most INLINE_BYTES; imm: tag or fingerprint; fragment: its index."""

    opcode: ClassVar[Opcode] = Opcode.SEND
    channel: int
    flags: Flag
    fragment: int
    imm: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Put(Delivery):
    """Part of a chunk of total_bytes, which goes to `offset` of the channel's ring."""

    opcode: ClassVar[Opcode] = Opcode.PUT
    channel: int
    flags: Flag
    fragment: int
    imm: int
    offset: int
    total_bytes: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Delivery):
    """What has come beyond `ack`: bit i of the 128 of sack is PSN ack + 1 + i.

    trigger: PSN of the frame that caused this one, delay_units: time since then, in 64 ns;
    consumed: chunks that the readers have taken, low 16 bits, by channel.
    """

    opcode: ClassVar[Opcode] = Opcode.ACK
    flags: Flag
    sack: int
    trigger: int
    delay_units: int
    consumed: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Delivery):
    """A control frame with a note, which only its receiver's owner understands."""

    opcode: Opcode
    key: int
    mtu: int
    note: bytes
    padding_bytes: int = 0


Frame = Send | Put | Ack | Note

# --- layout: names and bytes of the fields, in their order -------------------------------------

_DELIVERY = (
    *(("first", 1), ("opcode", 1), ("flags", 1), ("words", 1), ("dcid", 2), ("epoch", 2)),
    *(("psn", 4), ("ack", 2), ("credit", 2)),
)
_OPERATION = (("length", 2), ("fragment", 2), ("imm", 4))
_PLACE = (("offset", 4), ("total_bytes", 4))
_ACKNOWLEDGEMENT = (
    *(("sack", 16), ("trigger", 4), ("delay_units", 2), ("consumed_2", 2)),
    *(("consumed_0", 2), ("consumed_1", 2)),
)
_NOTE = (("length", 2), ("padding", 2), ("key", 8), ("mtu", 2), ("reserved", 2))


def _fields_of(opcode: Opcode) -> tuple[tuple[str, int], ...]:
    """Returns all fields of an opcode's headers."""
    if opcode is Opcode.SEND:
        return _DELIVERY + _OPERATION
    if opcode is Opcode.PUT:
        return _DELIVERY + _OPERATION + _PLACE
    return _DELIVERY + (_ACKNOWLEDGEMENT if opcode is Opcode.ACK else _NOTE)


def _header_bytes(opcode: Opcode) -> int:
    return sum(size for _, size in _fields_of(opcode))


def _flags_of(opcode: Opcode) -> Flag:
    """Returns the flags that may be set with an opcode."""
    data = Flag.SOM | Flag.EOM | Flag.ACKREQ | Flag.RETX
    allowed = {Opcode.SEND: data, Opcode.PUT: data | Flag.MORE, Opcode.ACK: Flag.RETX}
    return allowed.get(opcode, Flag(0))


# --- checksum -----------------------------------------------------------------------------------


def _crc_table() -> Iterable[int]:
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        yield remainder


_CRC_TABLE = tuple(_crc_table())


def crc32c(data: bytes) -> int:
    """Returns the CRC32C (Castagnoli) of some bytes, as RFC 3720 defines it."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = remainder >> 8 ^ _CRC_TABLE[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


# --- decoding -----------------------------------------------------------------------------------


def decode_frame(data: bytes) -> Frame:
    """Parses one frame; bytes behind its trailer are padding of the link and ignored.

    Raises FrameError, whose reason is that of the first rule of ``docs/wire.md`` that is broken.
    """
    if len(data) < _DELIVERY_BYTES + _TRAILER_BYTES:
        raise FrameError(Refusal.SHORT, f"{len(data)} bytes")
    if data[0] % 16 != VERSION:
        raise FrameError(Refusal.FOREIGN, f"version {data[0] % 16}")
    try:
        opcode = Opcode(data[1])
    except ValueError:
        raise FrameError(Refusal.OPCODE, f"opcode {data[1]:#04x}") from None
    if 4 * data[3] != _header_bytes(opcode):
        raise FrameError(Refusal.HEADER, f"a header of {4 * data[3]} bytes")
    values: dict[str, int] = {}
    at = 0
    for name, size in _fields_of(opcode):
        values[name] = int.from_bytes(data[at : at + size], "little")
        at += size
    if len(data) < at + _TRAILER_BYTES:
        raise FrameError(Refusal.SHORT, f"{len(data)} bytes")
    body = data[at : at + values.get("length", 0)]
    end = at + values.get("length", 0) + values.get("padding", 0)
    _check_lengths(opcode, values, end)
    if len(data) < end + _TRAILER_BYTES:
        raise FrameError(Refusal.SHORT, f"{len(data)} of {end + _TRAILER_BYTES} bytes")
    _check_reserved(opcode, values)
    trailer = int.from_bytes(data[end : end + _TRAILER_BYTES], "little")
    if trailer != crc32c(data[:end]):
        raise FrameError(Refusal.CRC, f"{trailer:#010x}, not {crc32c(data[:end]):#010x}")
    return _make(opcode, values, bytes(body))


def _check_lengths(opcode: Opcode, values: dict[str, int], end: int) -> None:
    def refuse(text: str) -> NoReturn:
        raise FrameError(Refusal.HEADER, text)

    length = values.get("length", 0)
    if opcode is Opcode.SEND and length > INLINE_BYTES:
        refuse(f"a SEND of {length} bytes")
    if opcode is Opcode.PUT:
        if values["total_bytes"] <= INLINE_BYTES:
            refuse(f"a PUT for a chunk of {values['total_bytes']} bytes")
        if not 0 < length <= values["total_bytes"]:
            refuse(f"a PUT of {length} bytes for a chunk of {values['total_bytes']}")
    if opcode >= Opcode.PROBE and length > NOTE_BYTES_MAX:
        refuse(f"a note of {length} bytes")
    if end + _TRAILER_BYTES > FRAME_BYTES_MAX:
        refuse(f"a frame of {end + _TRAILER_BYTES} bytes")


def _check_reserved(opcode: Opcode, values: dict[str, int]) -> None:
    channel = values["first"] // 16
    if channel >= (CHANNELS if opcode in (Opcode.SEND, Opcode.PUT) else 1):
        raise FrameError(Refusal.RESERVED, f"channel {channel}")
    if values["flags"] & ~int(_flags_of(opcode)):
        raise FrameError(Refusal.RESERVED, f"flags {values['flags']:#04x} of {opcode.name}")
    if values.get("reserved"):
        raise FrameError(Refusal.RESERVED, f"reserved field {values['reserved']:#06x}")


def _make(opcode: Opcode, values: dict[str, int], body: bytes) -> Frame:
    def take(*names: str) -> dict[str, int]:
        return {name: values[name] for name in names}

    delivery = take("dcid", "epoch", "psn", "ack", "credit")
    flags = Flag(values["flags"])
    channel = values["first"] // 16
    if opcode is Opcode.SEND:
        more = take("fragment", "imm")
        return Send(**delivery, **more, channel=channel, flags=flags, payload=body)
    if opcode is Opcode.PUT:
        more = take("fragment", "imm", "offset", "total_bytes")
        return Put(**delivery, **more, channel=channel, flags=flags, payload=body)
    if opcode is Opcode.ACK:
        more = take("sack", "trigger", "delay_units")
        consumed = (values["consumed_0"], values["consumed_1"], values["consumed_2"])
        return Ack(**delivery, **more, flags=flags, consumed=consumed)
    padding_bytes = values["padding"]
    more = take("key", "mtu")
    return Note(**delivery, **more, opcode=opcode, note=body, padding_bytes=padding_bytes)


# --- encoding -----------------------------------------------------------------------------------


def encode_frame(frame: Frame) -> bytes:
    """Returns the bytes of a frame, trailer included.

    Raises ProtocolError for a value that has no room, or a frame that decode_frame would refuse.
    """
    values = {name: getattr(frame, name, 0) for name, _ in _fields_of(frame.opcode)}
    values["first"] = VERSION | getattr(frame, "channel", 0) << 4
    values["words"] = _header_bytes(frame.opcode) // 4
    body = b""
    if isinstance(frame, Ack):
        values["consumed_0"], values["consumed_1"], values["consumed_2"] = frame.consumed
    elif isinstance(frame, Note):
        body = frame.note + bytes(frame.padding_bytes)
        values["length"], values["padding"] = len(frame.note), frame.padding_bytes
    else:
        body = frame.payload
        values["length"] = len(body)
    try:
        words = [values[name].to_bytes(size, "little") for name, size in _fields_of(frame.opcode)]
    except OverflowError as error:
        raise ProtocolError(f"{frame} does not fit: {error}") from error
    covered = b"".join(words) + body
    data = covered + crc32c(covered).to_bytes(_TRAILER_BYTES, "little")
    decode_frame(data)
    return data


# --- the header within shared memory ------------------------------------------------------------

HEADER_BYTES = 24
OP_SEND = Opcode.SEND.value
FLAG_SOM = Flag.SOM.value
FLAG_EOM = Flag.EOM.value

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
