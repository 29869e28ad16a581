"""Hosts of the benchmark: network namespaces of this machine, joined by a bridge.

    python hosts.py each COMMAND...      runs COMMAND on all hosts; "@" in it is the host's number
    python hosts.py first COMMAND...     runs COMMAND on the first host
    python hosts.py ADDRESS COMMAND...   gives COMMAND to a shell on that host, as ssh would

The second form starts an mpiexec, which reaches the other hosts by the third. VARIABLE tells which
hosts there are; see `environment`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from jetstream.testing.namespaces import address_of, interface_of
from jetstream.testing.network import Network

VARIABLE = "JETSTREAM_BENCH_HOSTS"  # JSON: the network namespace of each host, as a path
INTERFACE = interface_of(0)
FIRST = address_of(0)
END_GRACE_S = 5.0


def addresses(hosts: int) -> str:
    """The IP addresses of so many hosts, joined by commas."""
    return ",".join(address_of(host) for host in range(hosts))


def environment(network: Network, hosts: int, agent: Path) -> dict[str, str]:
    """What a contestant needs to find the hosts of `network`, which live as long as that."""
    nets = [f"/proc/{os.getpid()}/fd/{network.fds(host)[-1]}" for host in range(hosts)]
    return {VARIABLE: json.dumps(nets), "PRTE_MCA_plm_ssh_agent": str(agent)}


def become_root() -> None:
    """Starts this program anew as root of a user namespace, if it may have no namespaces so."""
    may = ["unshare", "-n", "true"]
    enter = ["unshare", "-Ur"]
    if shutil.which("unshare") is None or subprocess.run(may, capture_output=True).returncode == 0:
        return
    if subprocess.run([*enter, *may], capture_output=True).returncode == 0:
        os.execvp("unshare", [*enter, sys.executable, *sys.argv])


def on(host: int, command: list[str]) -> list[str]:
    """The command line that runs `command` on a host, where the host's name is "host" + number."""
    name = f'echo host{host} >/proc/sys/kernel/hostname; exec "$@"'
    net = json.loads(os.environ[VARIABLE])[host]
    return ["nsenter", f"--net={net}", "unshare", "--uts", "sh", "-c", name, "sh", *command]


def run_on_each(command: list[str]) -> int:
    """Returns the exit code of the first that fails, 0 if none does; the others end with it."""
    count = len(json.loads(os.environ[VARIABLE]))
    running = [
        subprocess.Popen(on(host, [word.replace("@", str(host)) for word in command]))
        for host in range(count)
    ]
    code = 0
    try:
        while running and not code:
            time.sleep(0.02)
            code = next((process.returncode for process in running if process.poll()), 0)
            running = [process for process in running if process.returncode is None]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return code


def run_here(words: list[str]) -> NoReturn:
    """Becomes a program on one host."""
    host, command = 0, words[1:]
    if words[0] != "first":
        while words[0].startswith("-"):  # options of ssh
            words = words[1:]
        known = [address_of(host) for host in range(len(json.loads(os.environ[VARIABLE])))]
        host, command = known.index(words[0]), ["sh", "-c", " ".join(words[1:])]
    program = on(host, command)
    os.execvp(program[0], program)


if __name__ == "__main__":
    if sys.argv[1] == "each":
        sys.exit(run_on_each(sys.argv[2:]))
    run_here(sys.argv[1:])
