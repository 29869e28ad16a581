"""Endpoints of links to other hosts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jetstream._core.native import check, ffi, lib, text_of

__all__ = ["ADDRESS_BYTES", "KINDS", "Link", "LinkSettings"]

_log = logging.getLogger("jetstream.link")

#: Size of what :attr:`Link.address` returns.
ADDRESS_BYTES = int(ffi.sizeof("js_link_address"))

#: Kinds of links by the name that JETSTREAM_LINK has for them.
KINDS = {"udp": lib.JS_LINK_UDP, "packet": lib.JS_LINK_PACKET, "xdp": lib.JS_LINK_XDP}


@dataclass
class LinkSettings:
    """What to open links with, and how long to wait; ``docs/links.md`` explains each.

    ``kind``: "udp", "packet" or "xdp". ``interface``: its name, needed for packet and xdp.
    ``ip``: address of this end, for udp. Of several links both are separated by commas, as
    many of them where both are given.
    ``mtu_bytes``: largest frame; 0: what the interface takes.
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
        kind = "packet" if self.kind == "xdp" and self.opened else self.kind
        if kind != self.kind:
            _log.info("link packet: the link xdp of %s serves another communicator", self.interface)
        interfaces, ips = self.interface.split(","), self.ip.split(",")
        configs = ffi.new("js_link_config[]", max(len(interfaces), len(ips)))
        held = []
        for number, config in enumerate(configs):
            config.kind = KINDS[kind]
            config.interface = interfaces[number].encode() if self.interface else b""
            config.ip = ips[number].encode() if self.ip else b""
            config.mtu_bytes = self.mtu_bytes
            held += [self._text(self.fault), self._text(self._trace(rank, number))]
            config.fault, config.trace = held[-2:]
        out = ffi.new("js_link **")
        check(lib.js_link_open_rails(configs, len(configs), out))
        self.opened += 1
        return Link(out[0])

    @property
    def address_bytes(self) -> int:
        """Size of what :attr:`Link.address` returns for a link that `open` opens."""
        return ADDRESS_BYTES * (max(self.interface.count(","), self.ip.count(",")) + 1)

    def _trace(self, rank: int, number: int) -> str:
        """The trace of a communicator's link, by number: each is a file of its own."""
        if not self.trace:
            return ""
        suffix = (f".{self.opened}" if self.opened else "") + (f".link{number}" if number else "")
        path, mark, options = self.trace.replace("{rank}", str(rank)).partition("?")
        return f"{path}{suffix}{mark}{options}"

    @staticmethod
    def _text(text: str) -> Any:
        return ffi.new("char[]", text.encode()) if text else ffi.NULL

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
            "frames to rank %d%s are cut to %d bytes: the next longer size tried does not get "
            "there, though up to %d are allowed on %s here and %d on %s there; a switch or tunnel "
            "on the way has a smaller MTU",
            *(rank, others, found, most, interface, wanted, there),
        )


def _interface_of(address: bytes) -> tuple[int, str]:
    """The longest frame that fits the interface of an endpoint, and its name."""
    native = ffi.from_buffer("js_link_address[]", address)
    names = {text_of(one.interface) or "the interface" for one in native}
    return int(native[0].mtu_bytes), " and ".join(sorted(names))


class Link:
    """An endpoint: a socket through which one communicator reaches other hosts."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def address(self) -> bytes:
        """What the peers have to know of it: ``ADDRESS_BYTES`` bytes for each of its links."""
        addresses = ffi.new("js_link_address[]", lib.js_link_rails(self._handle))
        lib.js_link_get_addresses(self._handle, addresses)
        return bytes(ffi.buffer(addresses))

    def release(self) -> Any:
        """Hand over the ``js_link *``: whoever takes it closes it."""
        handle, self._handle = self._handle, ffi.NULL
        return handle

    def close(self) -> None:
        """Close it, unless it was handed over. Idempotent."""
        if self._handle != ffi.NULL:
            lib.js_link_close(self.release())
