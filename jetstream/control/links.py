"""Which link the ranks of several hosts use, and where this rank's end of it is.

The control plane only chooses and tells; the data plane opens the link.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from jetstream.config import Config
from jetstream.control.placement import Placement
from jetstream.errors import ConfigurationError
from jetstream.places import split_tcp

__all__ = ["LinkSettings", "choose_kind", "link_settings", "openable_links"]

_log = logging.getLogger("jetstream.control")

_SIOCGIFADDR = 0x8915
_IFREQ = struct.Struct("=16sH2x4s16x")
#: An address of nobody (RFC 5737): the way there is the default route. Nothing is sent.
_ANYWHERE = "192.0.2.1"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """What a rank opens its link with.

    ``kind`` is "udp", "packet" or "xdp". ``interface`` is "" for udp unless it was named;
    ``address``, an IP address, is "" for the others. ``mtu_bytes`` 0: the most there is. ``fault``
    and ``trace`` (a path) are "" where there is to be none.
    """

    kind: str
    interface: str = ""
    address: str = ""
    mtu_bytes: int = 0
    fault: str = ""
    trace: str = ""


def openable_links(config: Config) -> tuple[str, ...]:
    """The kinds among which JETSTREAM_LINK=auto may choose, as far as this rank is concerned.

    Raw frames only where an interface was named: whether a switch passes them cannot be known.
    """
    if not config.interface:
        return ("udp",)
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError:
        return ("udp",)
    return ("udp", "packet")


def choose_kind(asked: str, links: Collection[tuple[str, ...]], placement: Placement) -> str:
    """Returns the kind of link for all ranks; ``links`` are the openable ones of each rank."""
    if not placement.is_spread:
        return ""
    if asked != "auto":
        return asked
    if placement.is_one_network:
        kind, reason = "udp", "all hosts are in one network namespace of one machine"
    elif all("packet" in kinds for kinds in links):
        kind, reason = "packet", "every rank has JETSTREAM_INTERFACE and may send raw frames"
    else:
        kind, reason = "udp", "not every rank has JETSTREAM_INTERFACE and may send raw frames"
    _log.info("link %s: %s", kind, reason)
    return kind


def link_settings(config: Config, kind: str, placement: Placement) -> LinkSettings:
    """Returns what this rank opens its link with.

    Raises ConfigurationError where interface or address are not set and cannot be found out.
    """
    address, interface = config.link_address, config.interface
    if kind == "udp":
        address = address or _udp_address(config, placement)
    else:
        interface = interface or _interface_with(_own_address(config))
        address = ""
    return LinkSettings(
        kind=kind,
        interface=interface,
        address=address,
        mtu_bytes=config.link_mtu,
        fault=config.link_fault,
        trace=config.link_trace.replace("{rank}", str(config.rank)),
    )


def _udp_address(config: Config, placement: Placement) -> str:
    if config.interface:
        address = _address_of(config.interface)
        if not address:
            raise ConfigurationError(
                f"JETSTREAM_INTERFACE is {config.interface!r}, which has no IPv4 address; "
                "set JETSTREAM_LINK_ADDRESS"
            )
        return address
    return _LOOPBACK if placement.is_one_network else _own_address(config)


def _own_address(config: Config) -> str:
    """The address of this host on the way to rank 0, at rank 0 that at which the others call it.

    A name that this host gives to itself often leads to a loopback address, which is of no use.
    """
    host, port = split_tcp(config.rendezvous)
    for target in (host, _ANYWHERE):
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(target, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                found = str(probe.getsockname()[0])
            if not ipaddress.ip_address(found).is_loopback:
                return found
    raise ConfigurationError(
        "this host's address for the link cannot be found out; set JETSTREAM_LINK_ADDRESS"
    )


def _interface_with(address: str) -> str:
    for _, name in socket.if_nameindex():
        if _address_of(name) == address:
            return name
    raise ConfigurationError(
        f"no interface has the address {address} alone; set JETSTREAM_INTERFACE"
    )


def _address_of(interface: str) -> str:
    """The first IPv4 address of an interface; "" if it has none."""
    request = _IFREQ.pack(interface.encode(), socket.AF_INET, b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
