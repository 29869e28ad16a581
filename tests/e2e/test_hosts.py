"""Ranks on several hosts, through the harness and the launcher: results, deaths, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import PeerDiedError
from jetstream.testing import NoNetworkError, RankPool, run_ranks
from jetstream.testing.namespaces import address_of
from jetstream.testing.network import Network

PATIENCE_S = 120.0


def check_sums(comm: Communicator) -> None:
    for count in (1, 1000, 50_000):
        x = np.arange(count, dtype=np.float32) + comm.rank
        expected = comm.size * np.arange(count, dtype=np.float32) + sum(range(comm.size))
        assert (comm.all_reduce(x) == expected).all()


@pytest.mark.ranks(4, hosts=2, link="udp")
def test_virtual_hosts(comm: Communicator) -> None:
    assert comm.hosts == ("host0", "host0", "host1", "host1")
    assert comm.host_index == (0, 0, 1, 1)
    assert comm.local_rank == comm.rank % 2
    check_sums(comm)


@pytest.mark.ranks(4, hosts=2, link="udp")
def test_the_same_ranks_meet_again(comm: Communicator) -> None:
    check_sums(comm)


@pytest.mark.ranks(3, hosts=(0, 1, 0), link="udp", faults="drop=0.05,dup=0.02,seed=3")
def test_faults(comm: Communicator) -> None:
    assert comm.local_rank == (0, 0, 1)[comm.rank]
    check_sums(comm)
    assert comm.link_counters()["faults"] > 0


@pytest.mark.ranks(3, hosts=2, link="packet", kernel_drop=0.02)
def test_network_namespaces(comm: Communicator) -> None:
    assert interfaces_of(comm) == ["eth0", "lo"]
    check_sums(comm)


@pytest.mark.ranks(3, hosts=2, link="xdp")
def test_an_interface_for_each_rank(comm: Communicator) -> None:
    assert interfaces_of(comm) == ["eth0", "eth1", "lo"]
    check_sums(comm)


def wait_for_the_dead(comm: Communicator) -> str:
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            comm.barrier()
    except PeerDiedError as error:
        return str(error)


def test_a_rank_dies_on_another_host(no_leaks: Any) -> None:
    env = {"JETSTREAM_LINK_TIMEOUT": "3"}
    with RankPool(3, hosts=(0, 0, 1), link="udp", timeout_s=PATIENCE_S, env=env) as pool:
        outcomes = pool.collect(wait_for_the_dead)
        assert outcomes[2].has_died
        for outcome in outcomes[:2]:
            assert outcome.is_ok, outcome.failure
            assert "rank 2" in outcome.value
        # The next function finds new ranks.
        assert pool.run(hosts_of) == [("host0", "host0", "host1")] * 3


def hosts_of(comm: Communicator) -> tuple[str, ...]:
    return comm.hosts


def test_nothing_is_left_of_namespaces(no_leaks: Any) -> None:
    try:
        results = run_ranks(interfaces_of, 2, link="packet", timeout_s=PATIENCE_S)
    except NoNetworkError as error:
        pytest.skip(str(error))
    assert results == [["eth0", "lo"]] * 2


def interfaces_of(comm: Communicator) -> list[str]:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sorted(line.split(":")[0].strip() for line in lines)


def test_virtual_hosts_of_the_launcher(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, jetstream\n"
        "with jetstream.init() as comm:\n"
        "    print(int(comm.all_reduce(np.array([comm.rank]))[0]), *comm.host_index, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "jetstream", "run", "-n", "3", "--hosts", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] 3 0 0 1" for rank in range(3)]


#: Enters the namespaces of argument 1 and becomes the command behind it.
ENTER = """
import os, sys
from jetstream.testing.namespaces import enter
enter(tuple(map(int, sys.argv[1].split(","))))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("is_torchrun", [False, True])
def test_a_job_of_two_machines(tmp_path: Path, is_torchrun: bool) -> None:
    """One launcher on each, or torchrun's variables: address and interface are found out."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, jetstream\n"
        "with jetstream.init() as comm:\n"
        "    print(int(comm.all_reduce(np.array([comm.rank]))[0]), *comm.host_index, flush=True)\n"
    )
    try:
        network = Network(2)
    except NoNetworkError as error:
        pytest.skip(str(error))
    processes = []
    for host in range(2):
        fds = network.fds(host)
        env = {"JETSTREAM_JOB_SECRET": "7e" * 16}
        command = [sys.executable, str(script)]
        if is_torchrun:
            env |= {"RANK": str(host), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
            env |= {"MASTER_ADDR": address_of(0), "MASTER_PORT": "29500"}
        else:
            options = ["-n", "1", "--nnodes", "2", "--node-rank", str(host)]
            options += ["--rendezvous", f"{address_of(0)}:29400"]
            command = [sys.executable, "-m", "jetstream", "run", *options, str(script)]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", ENTER, ",".join(map(str, fds)), *command],
                env=os.environ | env,
                pass_fds=fds,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    network.close()
    labels = ["", ""] if is_torchrun else ["[0] ", "[1] "]
    assert outputs == [f"{label}1 0 1\n" for label in labels]
