"""The hosts of the harness: virtual ones and network namespaces, which leave nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetstream.errors import ArgumentError
from jetstream.testing import NoNetworkError
from jetstream.testing.namespaces import address_of
from jetstream.testing.network import Hosts, Network

#: Enters a host and sends 200 datagrams to another, or counts those that come: until a second after
#: its input has ended there is none.
PROGRAM = """
import json, select, socket, sys
from jetstream.testing.namespaces import enter
job = json.loads(sys.argv[1])
enter(tuple(job["fds"]))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(sorted(name for _, name in socket.if_nameindex()), flush=True)
if job["sends_to"]:
    for _ in range(200):
        sock.sendto(b"x" * 32, (job["sends_to"], 4000))
else:
    sock.bind((job["address"], 4000))
    print("bound", flush=True)
    count, is_over = 0, False
    while True:
        awaited, limit_s = ([sock], 1.0) if is_over else ([sock, sys.stdin], 60.0)
        ready, _, _ = select.select(awaited, [], [], limit_s)
        if sock in ready:
            sock.recv(99)
            count += 1
        elif ready:
            is_over = True
        else:
            break
    print(count, flush=True)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind(("eth0", 0))
"""


def start(network: Network, host: int, *, sends_to: str = "") -> subprocess.Popen[str]:
    fds = network.fds(host)
    job = {"fds": fds, "address": address_of(host), "sends_to": sends_to}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(job)],
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def open_fds() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    before = open_fds()
    try:
        network = Network(3, **request.param)
    except NoNetworkError as error:
        pytest.skip(str(error))
    yield network
    network.close()
    network.close()
    assert open_fds() == before


def deliver(network: Network) -> int:
    receiver = start(network, 2)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "['eth0', 'lo']\n"
    assert receiver.stdout.readline() == "bound\n"
    sender = start(network, 0, sends_to=address_of(2))
    assert sender.communicate(timeout=60)[0] == "['eth0', 'lo']\n"
    output, _ = receiver.communicate(timeout=60)  # closes its input
    assert receiver.returncode == 0
    return int(output)


@pytest.mark.parametrize("network", [{}], indirect=True)
def test_frames_pass_between_namespaces(network: Network) -> None:
    assert deliver(network) == 200


@pytest.mark.parametrize("network", [{"drop": 0.5}], indirect=True)
def test_the_bridge_drops(network: Network) -> None:
    assert 40 < deliver(network) < 160  # four in a billion are outside


def test_namespaces_end_with_a_killed_process() -> None:
    program = (
        "import time; from jetstream.testing.network import Network; "
        "network = Network(2); print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    is_up = process.stdout.readline() == "up\n"
    # No process is in them, and they have no name: the descriptors alone hold them.
    held = [link for link in Path(f"/proc/{process.pid}/fd").iterdir() if "net:" in _target(link)]
    process.send_signal(signal.SIGKILL)
    _, complaint = process.communicate(timeout=30)
    if not is_up:
        assert "NoNetworkError" in complaint
        reason = complaint.splitlines()[-1]
        raise pytest.skip.Exception(reason) from NoNetworkError(reason)
    assert len(held) == 3  # two hosts and the bridge


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_no_permission_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetstream.testing.network._has_capabilities", lambda *numbers: False)
    with pytest.raises(NoNetworkError, match="xdp needs CAP_BPF"):
        Hosts.make(2, link="xdp").build()


def test_a_builder_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("jetstream.testing.namespaces.__file__", "/nonexistent")
    with pytest.raises(NoNetworkError, match="the builder died"):
        Network(2)


# --- parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "hosts", "index"),
    [
        (4, 2, (0, 0, 1, 1)),
        (5, 3, (0, 0, 1, 1, 2)),
        (3, None, (0, 1, 2)),
        (4, (0, 1, 1, 0), (0, 1, 1, 0)),
    ],
)
def test_ranks_on_hosts(n: int, hosts: Any, index: tuple[int, ...]) -> None:
    found = Hosts.make(n, hosts=hosts, link="udp", faults="drop=0.1")
    assert found.index == index
    assert not found.is_network
    assert found.environment(1) == {
        "JETSTREAM_HOST": f"host{index[1]}",
        "JETSTREAM_LINK": "udp",
        "JETSTREAM_LINK_FAULT": "drop=0.1",
    }
    assert found.new_address().startswith("ipc://@")
    assert found.build() is None


def test_one_host_is_as_ever() -> None:
    assert Hosts.make(4).environment(3) == {}
    assert Hosts.make(4, hosts=1).index == (0, 0, 0, 0)


def test_xdp_shares_no_interface() -> None:
    found = Hosts.make(4, hosts=(0, 1, 1, 1), link="xdp")
    names = [found.environment(rank)["JETSTREAM_INTERFACE"] for rank in range(4)]
    assert names == ["eth0", "eth0", "eth1", "eth2"]


@pytest.mark.parametrize("needy", [{"interfaces": 2}, {"is_ipv6": True}, {"path_mtu": 1300}])
def test_what_needs_namespaces_makes_them(needy: dict[str, Any]) -> None:
    assert Hosts.make(2, link="udp", **needy).is_network


def test_a_network_that_cannot_be_made_says_so() -> None:
    with pytest.raises(NoNetworkError) as caught:
        Network(1, mtu=7)  # too short for a veth
    if "no network namespaces" in str(caught.value):
        pytest.skip(str(caught.value))
    assert "the network cannot be made: ip: " in str(caught.value)


def test_namespaces_have_an_interface_and_meet_by_tcp() -> None:
    found = Hosts.make(4, hosts=2, link="packet")
    assert found.is_network
    assert found.environment(0)["JETSTREAM_INTERFACE"] == "eth0"
    addresses = [found.new_address() for _ in range(3)]
    assert len(set(addresses)) == 3
    assert all(address.startswith("tcp://10.77.0.1:2") for address in addresses)


@pytest.mark.parametrize(
    "wrong",
    [
        {"link": "carrier pigeon"},
        {"hosts": 2},
        {"link": "udp", "hosts": 1},
        {"link": "udp", "hosts": 0},
        {"link": "udp", "hosts": 5},
        {"link": "udp", "hosts": True},
        {"link": "udp", "hosts": (0, 1)},
        {"link": "udp", "hosts": (0, 2, 2, 0)},
        {"link": "udp", "interfaces": 0},
        {"link": "udp", "interfaces": 5},
        {"link": "udp", "interfaces": 2, "namespaces": False},
        {"link": "udp", "is_ipv6": True, "namespaces": False},
        {"link": "xdp", "interfaces": 2},
        {"interfaces": 2},
        {"link": "udp", "kernel_drop": 1.0},
        {"link": "udp", "kernel_drop": -0.1},
        {"link": "packet", "namespaces": False},
        {"faults": "drop=0.1"},
        {"namespaces": True},
    ],
)
def test_parameters_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Hosts.make(4, **wrong)
