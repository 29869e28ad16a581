"""The hosts of a job of the harness: virtual ones, or network namespaces joined by a bridge."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jetstream.errors import ArgumentError, UnsupportedError
from jetstream.testing import namespaces

__all__ = ["Hosts", "Network", "NoNetworkError"]

LINKS = ("shm", "udp", "packet", "xdp")
_HOSTS_MAX = 64
_INTERFACES_MAX = 4
_BUILD_TIMEOUT_S = 60.0
_PORT_MIN = 20000
_PORTS = 10000
_CAP_BPF = 39
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21


class NoNetworkError(UnsupportedError):
    """This machine does not let us have network namespaces, or what they need. Skip such a test."""


class Network:
    """Network namespaces, one for each host, with interfaces "eth0" ... on a common bridge.

    They live as long as this object; whoever is in one of them then loses the connection.
    """

    def __init__(
        self,
        hosts: int,
        *,
        interfaces: int = 1,
        mtu: int = 1500,
        path_mtu: int = 0,
        drop: float = 0.0,
    ) -> None:
        """``interfaces`` of each host, each in a network of its own; ``mtu``, bytes;
        ``path_mtu``: what the bridge forwards, if that is less; ``drop``: share of the frames that
        it loses (needs nft).

        As root, the namespaces belong to the user namespace of this process; else to a new one.
        Raises NoNetworkError.
        """
        is_user = not _has_capabilities(_CAP_SYS_ADMIN, _CAP_NET_ADMIN)
        spec = {
            **{"hosts": hosts, "interfaces": interfaces},
            **{"mtu": mtu, "path_mtu": path_mtu or mtu, "drop": drop, "is_user": is_user},
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                builder = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", str(Path(namespaces.__file__))),
                        *(str(theirs.fileno()), json.dumps(spec)),
                    ],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
            ours.settimeout(_BUILD_TIMEOUT_S)
            try:
                answer, fds, _, _ = socket.recv_fds(ours, 4096, hosts + 2)
            except TimeoutError:
                answer, fds = b"error: the network cannot be made: it takes too long", []
            finally:
                builder.kill()
                builder.wait()
        for fd in fds:
            os.set_inheritable(fd, False)
        if answer != b"ok":
            reason = answer.decode(errors="replace").removeprefix("error: ")
            raise NoNetworkError(reason or "no network namespaces here: the builder died")
        self._held = fds
        self._user = tuple(fds[:1]) if is_user else ()
        self._nets = fds[len(self._user) + 1 :]

    def fds(self, host: int) -> tuple[int, ...]:
        """What a process enters to be on that host, in order."""
        return (*self._user, self._nets[host])

    def cut(self, host: int, *, is_one_way: bool = False) -> None:
        """From now on the bridge loses all frames of a host and, unless ``is_one_way``, to it.

        Needs nft. Raises NoNetworkError.
        """
        ways = ["iifname"] if is_one_way else ["iifname", "oifname"]
        drops = "".join(f'{way} "host{host}eth*" counter drop\n' for way in ways)
        chain = "type filter hook forward priority -1; policy accept;"
        rules = f"table bridge cut{host} {{ chain forward {{ {chain}\n{drops}}}\n}}"
        command, fds = self.inside(None, "nft", "-f", "-")
        done = subprocess.run(
            command, input=rules, text=True, capture_output=True, check=False, pass_fds=fds
        )
        if done.returncode != 0:
            raise NoNetworkError(f"the bridge loses no frames: {done.stderr.strip()}")

    def inside(self, host: int | None, *command: str) -> tuple[list[str], tuple[int, ...]]:
        """What runs a command on a host, or where the bridge, "bridge0", is (None); and the
        descriptors that it has to be passed.
        """
        bridge = (*self._user, self._held[len(self._user)])
        fds = bridge if host is None else self.fds(host)
        numbers = ",".join(map(str, fds))
        enter = [sys.executable, "-I", "-S", str(Path(namespaces.__file__)), "enter", numbers]
        return [*enter, *command], fds

    def close(self) -> None:
        """Lets the namespaces go. Idempotent."""
        for fd in self._held:
            os.close(fd)
        self._held = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Where the ranks of a job are, and what is between the hosts.

    ``index[r]``: the host of rank r. ``link``: "shm" (one host), "udp", "packet" or "xdp".
    ``faults``: JETSTREAM_LINK_FAULT. ``kernel_drop``: share of the frames that the bridge loses.
    ``mtu`` of interfaces, ``path_mtu`` of the bridge. ``is_network``: namespaces, not virtual
    hosts; ``is_ipv6``: addresses of udp there; ``interfaces``: of each host, all used.
    """

    index: tuple[int, ...]
    link: str
    faults: str
    kernel_drop: float
    mtu: int
    path_mtu: int
    is_network: bool
    is_ipv6: bool
    interfaces: int

    @classmethod
    def make(
        cls,
        n: int,
        *,
        hosts: int | Sequence[int] | None = None,
        link: str = "shm",
        faults: str = "",
        kernel_drop: float = 0.0,
        namespaces: bool | None = None,
        mtu: int = 1500,
        path_mtu: int = 0,
        is_ipv6: bool = False,
        interfaces: int = 1,
    ) -> Hosts:
        """Checks the parameters of run_ranks. Raises ArgumentError."""
        if link not in LINKS:
            raise ArgumentError(f"link {link!r} is not one of {', '.join(LINKS)}")
        index = _host_index(n, hosts, default=1 if link == "shm" else n)
        is_one = max(index) == 0
        if is_one != (link == "shm"):
            text = "1 host" if is_one else f"{max(index) + 1} hosts"
            raise ArgumentError(f"link {link!r} with {text}: 'shm' is for one, the others for more")
        if not 0 <= kernel_drop < 1:
            raise ArgumentError(f"kernel_drop is {kernel_drop!r}: a share from 0 to below 1")
        if isinstance(interfaces, bool) or interfaces not in range(1, _INTERFACES_MAX + 1):
            raise ArgumentError(f"interfaces is {interfaces!r}: from 1 to {_INTERFACES_MAX}")
        if link == "xdp" and interfaces > 1:
            raise ArgumentError("interfaces: with 'xdp' each rank has one of its own")
        needs_network = (
            *(link in ("packet", "xdp"), kernel_drop > 0, path_mtu > 0),
            *(is_ipv6, interfaces > 1),
        )
        if is_one and (faults or any(needs_network) or namespaces):
            raise ArgumentError("faults, namespaces and what needs them are for several hosts")
        if any(needs_network) and namespaces is False:
            text = "packet, xdp, kernel_drop, path_mtu, is_ipv6 and several interfaces"
            raise ArgumentError(f"{text} need namespaces")
        return cls(
            index=index,
            link=link,
            faults=faults,
            kernel_drop=kernel_drop,
            mtu=mtu,
            path_mtu=path_mtu,
            is_network=any(needs_network) or bool(namespaces),
            is_ipv6=is_ipv6,
            interfaces=interfaces,
        )

    def build(self) -> Network | None:
        """Makes the network, if there is to be one. Raises NoNetworkError."""
        if not self.is_network:
            return None
        if self.link == "xdp" and not _has_capabilities(_CAP_BPF, _CAP_NET_ADMIN, _CAP_SYS_ADMIN):
            raise NoNetworkError("xdp needs CAP_BPF: not permitted here")
        # An interface has one owner at most that takes frames off it by XDP.
        ranks_max = max(self.index.count(host) for host in self.index)
        return Network(
            max(self.index) + 1,
            interfaces=ranks_max if self.link == "xdp" else self.interfaces,
            mtu=self.mtu,
            path_mtu=self.path_mtu,
            drop=self.kernel_drop,
        )

    def environment(self, rank: int) -> dict[str, str]:
        """Variables for that rank."""
        if self.link == "shm":
            return {}
        host = self.index[rank]
        found = {"JETSTREAM_HOST": f"host{host}", "JETSTREAM_LINK": self.link}
        if self.faults:
            found["JETSTREAM_LINK_FAULT"] = self.faults
        if self.is_network:
            first = self.index[:rank].count(host) if self.link == "xdp" else 0
            numbers = range(first, first + self.interfaces)
            found["JETSTREAM_INTERFACE"] = ",".join(map(namespaces.interface_of, numbers))
            if self.is_ipv6:
                own = [namespaces.address_of(host, number, is_ipv6=True) for number in numbers]
                found["JETSTREAM_LINK_ADDRESS"] = ",".join(own)
        return found

    def new_address(self) -> str:
        """A meeting point that no other job uses."""
        if not self.is_network:
            return f"ipc://@jetstream-test-{secrets.token_hex(8)}"
        port = _PORT_MIN + next(_ports) % _PORTS
        return f"tcp://{namespaces.address_of(self.index[0])}:{port}"


_ports = itertools.count()


def _host_index(n: int, hosts: int | Sequence[int] | None, *, default: int) -> tuple[int, ...]:
    """The host of each rank: blocks of equal size, or as told."""
    if isinstance(hosts, Sequence):
        index = tuple(hosts)
        if len(index) != n or sorted(set(index)) != list(range(len(set(index)))):
            raise ArgumentError(f"hosts is {hosts!r}: {n} numbers from 0 without a gap are needed")
    else:
        count = default if hosts is None else hosts
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= n:
            raise ArgumentError(f"hosts is {hosts!r}: from 1 to {n} for {n} ranks")
        index = tuple(rank * count // n for rank in range(n))
    if max(index) >= _HOSTS_MAX:
        raise ArgumentError(f"{max(index) + 1} hosts: at most {_HOSTS_MAX}")
    return index


def _has_capabilities(*numbers: int) -> bool:
    """Whether this process has all of these capabilities (capabilities(7))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> number & 1 for number in numbers)
    return False
