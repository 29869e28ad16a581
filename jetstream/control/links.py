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
from collections.abc import Sequence
from dataclasses import dataclass

from jetstream.config import Config
from jetstream.control.placement import Placement
from jetstream.errors import ConfigurationError, JetstreamError
from jetstream.places import is_loopback, split_tcp

__all__ = ["LinkEnd", "choose_kind", "link_end", "own_address", "own_choice"]

_log = logging.getLogger("jetstream.control")

_SIOCGIFADDR = 0x8915
_IFREQ = struct.Struct("=16sH2x4s16x")
#: An address of nobody (RFC 5737): the way there is the default route. Nothing is sent.
_ANYWHERE = "192.0.2.1"
_LOOPBACK = "127.0.0.1"
_ASKED = ": it is asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnd:
    """Where this rank's end of the link is.

    ``kind`` is "udp", "packet" or "xdp". ``interface`` is "" for udp unless it was named;
    ``address``, an IP address, is "" for the others. Several links are separated by commas.
    """

    kind: str
    interface: str = ""
    address: str = ""


def own_choice(config: Config) -> tuple[str, str]:
    """The kind that would suit this rank if the others are on other hosts, and why.

    With JETSTREAM_LINK=auto: raw frames only where this host can tell that they would arrive.
    """
    if config.link != "auto":
        return config.link, f"{config.link}{_ASKED}"
    if is_loopback(config.rendezvous):
        return "udp", "udp: the ranks meet inside one host"
    interfaces = config.interface.split(",")
    repeated = next((name for name in interfaces if interfaces.count(name) > 1), "")
    if repeated:
        return "udp", f"udp: JETSTREAM_INTERFACE names {repeated} twice, which only udp can use"
    try:
        if config.interface:
            _check_interface(interfaces[0])
        own = _address_of(interfaces[0]) if config.interface else own_address(config)
        return _choose(own, _address_of_rank_0(config) or own)
    except JetstreamError as error:
        return "udp", f"udp: {error}"


def choose_kind(choices: Sequence[tuple[str, str]], placement: Placement) -> str:
    """Returns the kind of link for all ranks, whose own choices these are; "" on one host."""
    if not placement.is_spread:
        return ""
    # One that cannot do more than udp decides for all.
    kind, reason = next((choice for choice in choices if choice[0] == "udp"), choices[0])
    if placement.shares_network and not reason.endswith(_ASKED):
        kind, reason = "udp", "udp: several hosts are in one network namespace"
    _log.info("link %s", reason)
    return kind


def link_end(config: Config, kind: str, placement: Placement) -> LinkEnd:
    """Returns what this rank opens its link with.

    Raises ConfigurationError where interface or address are not set and cannot be found out, and
    for a loopback address where hosts are in several networks.
    """
    if kind == "udp":
        address = config.link_address or _udp_address(config, placement)
        _check_reach(config, address, placement)
        return LinkEnd(kind=kind, interface=config.interface, address=address)
    if placement.shares_network and not config.interface:
        raise ConfigurationError(
            f"JETSTREAM_LINK is {kind!r}, but several hosts are in one network namespace, where "
            "raw frames do not get from one to the other; use udp, or set JETSTREAM_INTERFACE"
        )
    interface = config.interface or _interface_with(own_address(config))
    return LinkEnd(kind=kind, interface=interface)


def _choose(own: str, peer: str) -> tuple[str, str]:
    # Imported here: only jobs over several hosts need it.
    from jetstream._core.native import check, ffi, lib

    choice = ffi.new("js_link_choice *")
    check(lib.js_link_choose(own.encode(), peer.encode(), choice))
    kind = "packet" if choice.kind == lib.JS_LINK_PACKET else "udp"
    return kind, bytes(ffi.string(choice.why)).decode()


def _address_of_rank_0(config: Config) -> str:
    """As far as a name leads there; "" at rank 0 itself, whose name often leads to nowhere else."""
    host, port = split_tcp(config.rendezvous)
    with contextlib.suppress(OSError):
        found = str(socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][4][0])
        if not ipaddress.ip_address(found).is_loopback:
            return found
    return ""


def _udp_address(config: Config, placement: Placement) -> str:
    if config.interface:
        found = {name: _address_of(name) for name in config.interface.split(",")}
        for name, address in found.items():
            if not address:
                _check_interface(name)
                raise ConfigurationError(
                    f"JETSTREAM_INTERFACE names {name!r}, which has no IPv4 address; set "
                    "JETSTREAM_LINK_ADDRESS"
                )
        return ",".join(found[name] for name in config.interface.split(","))
    return _LOOPBACK if placement.is_one_network else own_address(config)


def _check_reach(config: Config, addresses: str, placement: Placement) -> None:
    if placement.is_one_network:
        return
    loopback = [one for one in addresses.split(",") if ipaddress.ip_address(one).is_loopback]
    if loopback:
        variable = "JETSTREAM_LINK_ADDRESS" if config.link_address else "JETSTREAM_INTERFACE"
        value = config.link_address or config.interface
        raise ConfigurationError(
            f"{variable} is {value!r}, but {loopback[0]} is a loopback address, which hosts in "
            "other networks do not reach"
        )


def _check_interface(name: str) -> None:
    try:
        socket.if_nametoindex(name)
    except OSError:
        raise ConfigurationError(
            f"JETSTREAM_INTERFACE is wrong: there is no network interface {name!r}"
        ) from None


def own_address(config: Config) -> str:
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
