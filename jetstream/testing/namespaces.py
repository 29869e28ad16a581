"""Makes network namespaces joined by a bridge and hands over their descriptors; a program.

    python -I -S namespaces.py FD JSON

It answers on the Unix socket FD, once: b"ok" and the descriptors (that of the bridge's namespace,
then those of the hosts), or b"error: ..." with the reason: there are no namespaces here, or no
network can be made in them. The namespaces have no names: they live as long as a descriptor or
process of theirs, and the interfaces live with them. So nothing has to be cleaned up, whoever is
killed.

    python -I -S namespaces.py enter FD,FD COMMAND ...

enters the namespaces of these descriptors and becomes the command. What is to be built:

    {"hosts": 3, "interfaces": 1, "mtu": 1500, "path_mtu": 1500, "drop": 0.01, "is_user": false}

interfaces: of each host, eth0 and so on, each with addresses of its own network; drop: share of the
frames (but ARP and TCP) that the bridge loses; path_mtu: of its ports, so that longer frames get
lost; is_user: inside a user namespace, whose descriptor then comes first.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["CLONE_NEWNET", "CLONE_NEWUSER", "address_of", "enter", "interface_of"]

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def address_of(host: int, number: int = 0, *, is_ipv6: bool = False) -> str:
    """IP address of a host, by number from 0, on the interface with this number."""
    if is_ipv6:
        return f"fd77:{number:x}::{host + 1:x}"
    return f"10.{77 + number}.{(host + 1) // 256}.{(host + 1) % 256}"


def interface_of(number: int) -> str:
    """Name of an interface of a host, by number from 0."""
    return f"eth{number}"


def enter(fds: tuple[int, ...]) -> None:
    """Moves this process into the namespaces of a host, and closes their descriptors.

    Raises OSError. Only a process with a single thread can enter a user namespace.
    """
    for fd in fds:
        _call("setns", fd, 0)
        os.close(fd)


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _own(kind: str) -> int:
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def _run(program: str, *arguments: str, text: str, fds: tuple[int, ...] = ()) -> None:
    """Gives `text` to a program's standard input; raises OSError with what it has to say."""
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":" + _SBIN)
    if found is None:
        raise OSError(f"there is no program {program}")
    done = subprocess.run(
        [found, *arguments], input=text, text=True, capture_output=True, check=False, pass_fds=fds
    )
    if done.returncode != 0:
        raise OSError(f"{program}: {done.stderr.strip()}")


def _unshare(spec: dict[str, Any]) -> tuple[list[int], int, list[int]]:
    """Makes the namespaces: descriptors of the user namespace, the bridge's and the hosts'."""
    fds = [_enter_user_namespace()] if spec["is_user"] else []
    _call("unshare", CLONE_NEWNET)
    bridge = _own("net")
    hosts = []
    for _ in range(spec["hosts"]):
        _call("unshare", CLONE_NEWNET)
        hosts.append(_own("net"))
    return fds, bridge, hosts


def _join(spec: dict[str, Any], bridge: int, hosts: list[int]) -> None:
    """Joins the namespaces by a bridge."""
    _call("setns", bridge, CLONE_NEWNET)
    mtu = spec["mtu"]
    path_mtu = spec["path_mtu"]
    lines = [f"link add bridge0 mtu {path_mtu} type bridge mcast_snooping 0", "link set bridge0 up"]
    interfaces = [interface_of(number) for number in range(spec["interfaces"])]
    for (host, fd), name in itertools.product(enumerate(hosts), interfaces):
        port = f"host{host}{name}"
        lines += [
            f"link add {port} mtu {path_mtu} type veth peer name {name} mtu {mtu} "
            f"netns /proc/self/fd/{fd}",
            f"link set {port} master bridge0 up",
        ]
    _run("ip", "-batch", "-", text="\n".join(lines), fds=tuple(hosts))
    if spec["drop"]:
        _run("nft", "-f", "-", text=_rules(spec["drop"]))
    for host, fd in enumerate(hosts):
        _call("setns", fd, CLONE_NEWNET)
        lines = ["link set lo up"]
        for number, name in enumerate(interfaces):
            lines += [f"addr add {address_of(host, number)}/16 dev {name}"]
            lines += [f"addr add {address_of(host, number, is_ipv6=True)}/64 dev {name} nodad"]
            lines += [f"link set {name} up"]
        if path_mtu < mtu:  # TCP has no probe for it, and would stop
            lines += [f"route change 10.77.0.0/16 dev {interfaces[0]} advmss {path_mtu - 40}"]
        _run("ip", "-batch", "-", text="\n".join(lines))


def _enter_user_namespace() -> int:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return _own("user")


def _rules(drop: float) -> str:
    million = 1000000
    return f"""
        table bridge jetstream {{
            chain forward {{
                type filter hook forward priority 0; policy accept;
                ether type arp accept
                ip protocol tcp accept
                numgen random mod {million} < {round(drop * million)} counter drop
            }}
        }}
    """


def _become(fds: str, command: list[str]) -> None:
    enter(tuple(map(int, fds.split(","))))
    path = os.environ.get("PATH", "") + ":" + _SBIN
    found = shutil.which(command[0], path=path)
    if found is None:
        raise OSError(f"there is no program {command[0]}")
    os.execv(found, command)


def _main(fd: int, spec: dict[str, Any]) -> None:
    with socket.socket(fileno=fd) as answers:
        what = "no network namespaces here"
        try:
            fds, bridge, hosts = _unshare(spec)
            what = "the network cannot be made"
            _join(spec, bridge, hosts)
        except OSError as error:
            answers.send(f"error: {what}: {error.strerror or error}".encode())
        else:
            socket.send_fds(answers, [b"ok"], [*fds, bridge, *hosts])


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        _become(sys.argv[2], sys.argv[3:])
    else:
        _main(int(sys.argv[1]), json.loads(sys.argv[2]))
