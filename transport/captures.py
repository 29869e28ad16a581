"""Captures that a link has written (``csrc/link/js_link_trace.c``), read without other programs.

pcapng as in draft-ietf-opsawg-pcapng, of which only what is needed: section, interface and packet
blocks, either byte order, time stamps of any resolution. Captures of tshark are that as well, those
of tcpdump the older pcap (draft-ietf-opsawg-pcap), which is read, too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from jetstream.errors import ProtocolError

__all__ = ["ETHERTYPE", "Direction", "Packet", "frame_bytes", "read_capture"]

#: IEEE 802 local experimental EtherType 1, the default of the links.
ETHERTYPE = 0x88B5

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_PACKET = 6
_MAGIC = 0x1A2B3C4D
#: pcap: magic number, by the ns of a unit of its time stamps.
_PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
_OPTION_RESOLUTION = 9
_OPTION_FLAGS = 2
_LINK_ETHERNET = 1
_LINK_RAW_IP = 101
_ETHERNET_IPV4 = 0x0800
_ETHERNET_IPV6 = 0x86DD
_UDP = 17


class Direction(Enum):
    """Which way a packet went, as seen from the link that has written it."""

    UNKNOWN = 0
    INBOUND = 1
    OUTBOUND = 2


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: time in ns since 1970, LINKTYPE number of the interface, bytes with headers."""

    time_ns: int
    link_type: int
    direction: Direction
    data: bytes


def read_capture(path: str | Path) -> Iterator[Packet]:
    """Yields the packets of a pcapng or pcap file in their order.

    What is incomplete at the end, as a process that was killed may leave it, ends the capture.
    Raises ProtocolError if the file is neither or damaged, OSError if it cannot be read.
    """
    data = Path(path).read_bytes()
    for order in "<>":
        unit_ns = _PCAP.get(struct.unpack(order + "I", data[:4])[0]) if len(data) >= 24 else None
        if unit_ns is not None:
            yield from _read_pcap(order, unit_ns, data)
            return
    if data[:4] != struct.pack("<I", _SECTION):
        raise ProtocolError(f"{path} is no pcapng file, and no pcap file")
    try:
        yield from _read_pcapng(path, data)
    except (struct.error, IndexError) as error:
        raise ProtocolError(f"{path} holds a damaged block: {error}") from error


def _read_pcap(order: str, unit_ns: int, data: bytes) -> Iterator[Packet]:
    (link_type,) = struct.unpack_from(order + "I", data, 20)
    at = 24
    while len(data) - at >= 16:
        seconds, units, size, _ = struct.unpack_from(order + "4I", data, at)
        at += 16 + size
        if at > len(data):
            return
        yield Packet(
            time_ns=seconds * 10**9 + units * unit_ns,
            link_type=link_type & 0xFFFF,
            direction=Direction.UNKNOWN,
            data=data[at - size : at],
        )


def _read_pcapng(path: str | Path, data: bytes) -> Iterator[Packet]:
    order = "<"
    interfaces: list[tuple[int, int]] = []
    at = 0
    while len(data) - at >= 12:
        (kind,) = struct.unpack_from(order + "I", data, at)
        if kind == _SECTION:
            order = _byte_order(path, data, at)
            interfaces = []
        (size,) = struct.unpack_from(order + "I", data, at + 4)
        if size < 12 or size % 4 or size > len(data) - at:
            return
        body = data[at + 8 : at + size - 4]
        if kind == _INTERFACE:
            interfaces.append(_interface(order, body))
        elif kind == _PACKET:
            yield _packet(order, body, interfaces)
        at += size


def frame_bytes(packet: Packet, *, ethertype: int = ETHERTYPE) -> bytes | None:
    """Returns the frame of ours in a packet, with what padding follows it; None if there is none.

    Of UDP datagrams all are taken for one, as ports are not fixed; decode_frame says more.
    """
    data = packet.data
    if packet.link_type == _LINK_ETHERNET:
        (kind,) = struct.unpack_from(">H", data, 12) if len(data) >= 14 else (0,)
        if kind == ethertype:
            return data[14:]
        if kind not in (_ETHERNET_IPV4, _ETHERNET_IPV6):
            return None
        data = data[14:]
    elif packet.link_type != _LINK_RAW_IP:
        return None
    return _of_ip(data)


def _of_ip(data: bytes) -> bytes | None:
    """Returns the payload of a UDP datagram that is no fragment."""
    if len(data) >= 28 and data[0] >> 4 == 4 and data[9] == _UDP:
        header = 4 * (data[0] & 15)
        is_fragment = struct.unpack_from(">H", data, 6)[0] & 0x3FFF
        datagram = b"" if is_fragment else data[header:]
    elif len(data) >= 48 and data[0] >> 4 == 6 and data[6] == _UDP:
        datagram = data[40:]
    else:
        return None
    if len(datagram) < 8:
        return None
    (size,) = struct.unpack_from(">H", datagram, 4)
    return datagram[8 : max(8, size)]


def _byte_order(path: str | Path, data: bytes, at: int) -> str:
    for order in "<>":
        if struct.unpack_from(order + "I", data, at + 8)[0] == _MAGIC:
            return order
    raise ProtocolError(f"{path} is no pcapng file: wrong magic number at {at + 8}")


def _options(order: str, data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from(order + "HH", data, at)
        if code == 0:
            break
        found[code] = data[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4
    return found


def _interface(order: str, body: bytes) -> tuple[int, int]:
    """Returns the link type and how many units of time a second has."""
    (link_type,) = struct.unpack_from(order + "H", body)
    resolution = _options(order, body[8:]).get(_OPTION_RESOLUTION, b"\x06")[0]
    return link_type, 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution


def _packet(order: str, body: bytes, interfaces: list[tuple[int, int]]) -> Packet:
    number, high, low, size, _ = struct.unpack_from(order + "5I", body)
    if number >= len(interfaces):
        raise ProtocolError(f"a packet of interface {number}, which the capture does not describe")
    if size > len(body) - 20:
        raise ProtocolError(f"a packet of {size} bytes in a block of {len(body) + 12}")
    link_type, units_per_second = interfaces[number]
    flags = _options(order, body[20 + size + -size % 4 :]).get(_OPTION_FLAGS, bytes(4))
    directions = {1: Direction.INBOUND, 2: Direction.OUTBOUND}
    return Packet(
        time_ns=(high << 32 | low) * 10**9 // units_per_second,
        link_type=link_type,
        direction=directions.get(struct.unpack(order + "I", flags)[0] & 3, Direction.UNKNOWN),
        data=body[20 : 20 + size],
    )
