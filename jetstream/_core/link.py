"""Endpoints of links to other hosts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jetstream._core.native import check, ffi, lib, text_of

__all__ = ["ADDRESS_BYTES", "KINDS", "Link", "LinkSettings"]

_log = logging.getLogger("jetstream.link")

_log = logging.getLogger("jetstream.link")

#: Size of what :attr:`Link.address` returns.
ADDRESS_BYTES = int(ffi.sizeof("js_link_address"))

#: Kinds of links by the name that JETSTREAM_LINK has for them.
KINDS = {"udp": lib.JS_LINK_UDP, "packet": lib.JS_LINK_PACKET, "xdp": lib.JS_LINK_XDP}


@dataclass
class LinkSettings:
    """What to open links with, and how long to wait; ``docs/links.md`` explains each.

    ``kind``: "udp", "packet" or "xdp". ``interface``: its name, needed for packet and xdp.
    ``ip``: address of this end, for udp. ``mtu_bytes``: largest frame; 0: what the interface takes.
    ``fault``: faults to inject. ``trace``: pcapng file to write, of which ``{rank}`` is replaced.
    ``connect_s``: for all peers to answer; ``silence_s``: until one that is awaited counts as dead.
    """

    kind: str
    interface: str = ""
    ip: str = ""
    mtu_bytes: int = 0
    fault: str = ""
    trace: str = ""
    connect_s: float = 30.0
    silence_s: float = 10.0
    #: Links opened so far.
    opened: int = 0
    #: Whether it has been said that paths carry less than the interface takes.
    has_told: bool = False

    def open(self, rank: int) -> Link:
        """Open an endpoint for the use of one communicator.

        With xdp the first one has the interface's queue for itself; those of further communicators
        go through packet sockets of the same interface, and the log says so.

        Raises ArgumentError, SystemCallError, UnsupportedError.
        """
        config = ffi.new("js_link_config *")
        kind = self.kind
        if kind == "xdp" and self.opened:
            kind = "packet"
            _log.info("link packet: the link xdp of %s serves another communicator", self.interface)
        config.kind = KINDS[kind]
        config.interface = self.interface.encode()
        config.ip = self.ip.encode()
        config.mtu_bytes = self.mtu_bytes
        fault = ffi.new("char[]", self.fault.encode())
        # Each communicator has an endpoint of its own, and so a file.
        suffix = f".{self.opened}" if self.opened else ""
        path, mark, options = self.trace.replace("{rank}", str(rank)).partition("?")
        trace = ffi.new("char[]", f"{path}{suffix}{mark}{options}".encode())
        config.fault = fault if self.fault else ffi.NULL
        config.trace = trace if self.trace else ffi.NULL
        out = ffi.new("js_link **")
        check(lib.js_link_open(config, out))
        self.opened += 1
        return Link(out[0])

    def tell_paths(self, own: bytes, peers: Sequence[bytes], frame_bytes: Sequence[int]) -> None:
        """Say, once, that frames have to be shorter than the interfaces of both ends take.

        ``own``: the address of this end. ``peers[r]``, ``frame_bytes[r]``: the address of rank r,
        and the longest frame that gets there; 0 for ranks of this host.
        """
        most, interface = _interface_of(own)
        short = []
        for rank, (peer, found) in enumerate(zip(peers, frame_bytes, strict=True)):
            wanted, there = _interface_of(peer)
            if 0 < found < min(most, wanted):
                short.append((found, rank, there, wanted))
        if not short or self.has_told:
            return
        self.has_told = True
        found, rank, there, wanted = min(short)
        others = f" and {len(short) - 1} others" if len(short) > 1 else ""
        _log.warning(
            "longer frames than %d bytes do not get to rank %d%s, though %s here takes %d and %s "
            "there %d: they are cut to that size; a switch or tunnel on the way has a smaller MTU",
            *(found, rank, others, interface, most, there, wanted),
        )


def _interface_of(address: bytes) -> tuple[int, str]:
    """The longest frame that fits the interface of an endpoint, and its name."""
    native = ffi.from_buffer("js_link_address *", address)
    return int(native.mtu_bytes), text_of(native.interface) or "the interface"


class Link:
    """An endpoint: a socket through which one communicator reaches other hosts."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def address(self) -> bytes:
        """What the peers have to know of it, ``ADDRESS_BYTES`` bytes."""
        address = ffi.new("js_link_address *")
        lib.js_link_get_address(self._handle, address)
        return bytes(ffi.buffer(address))

    def release(self) -> Any:
        """Hand over the ``js_link *``: whoever takes it closes it."""
        handle, self._handle = self._handle, ffi.NULL
        return handle

    def close(self) -> None:
        """Close it, unless it was handed over. Idempotent."""
        if self._handle != ffi.NULL:
            lib.js_link_close(self.release())
