"""Where this process stands in its job: rank, size and meeting point, as its launcher tells them.

Ranks started by torchrun, Open MPI, MPICH, Intel MPI or Slurm are recognised by the variables of
those launchers. ``docs/environment.md`` lists them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from jetstream.environ import Reader, bad
from jetstream.errors import ConfigurationError

__all__ = [
    "RANKS_MAX",
    "Place",
    "check_rendezvous",
    "find_place",
    "find_rendezvous",
    "is_loopback",
    "split_tcp",
]

#: Most ranks a communicator can have; the same number as JS_RANKS_MAX of the data plane.
RANKS_MAX = 256

#: Ports of jobs that name none: below those that Linux gives to whoever connects.
_PORT_MIN = 20000
_PORTS = 12000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a launcher put this rank.

    `job` holds what tells its job from others on this host. `is_spread`: there are ranks on other
    hosts; then `head` is the host of rank 0, or "" if the launcher does not tell, and the job must
    be the same on all hosts, or empty.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    job: tuple[str, ...] = ()
    is_spread: bool = False
    head: str = ""


def find_place(reader: Reader) -> Place:
    """Returns where this process stands; without any launcher it is the only rank.

    Raises ConfigurationError.
    """
    place = next((found for look in LAUNCHERS if (found := look(reader)) is not None), None)
    if place is not None:
        return place
    orphan = reader.first("JETSTREAM_RENDEZVOUS", "JETSTREAM_LOCAL_RANK")
    if orphan:
        raise ConfigurationError(
            f"{orphan} is set, but neither JETSTREAM_RANK and JETSTREAM_WORLD_SIZE nor the "
            "variables of a known launcher are; set both, or start with 'jetstream run'"
        )
    return Place(launcher="none", rank=0, size=1, local_rank=0)


# --- the meeting point --------------------------------------------------------------------


def check_rendezvous(address: str, *, name: str = "JETSTREAM_RENDEZVOUS") -> str:
    """Returns `address`, with a number for localhost, if ranks may meet there.

    Raises ConfigurationError otherwise; `name` is the variable the text blames.
    """
    allowed = "ipc://@NAME (an abstract Unix socket) or tcp://HOST:PORT with the host of rank 0"
    if re.fullmatch(r"ipc://@[A-Za-z0-9._-]{1,100}", address):
        return address
    if address.startswith("ipc://"):
        bad(name, address, allowed + "; a socket file would outlive a killed rank")
    match = re.fullmatch(
        r"tcp://([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", address
    )
    if match is None or not 0 < int(match[2]) < 65536:
        bad(name, address, allowed)
    ip = _ip(match[1].strip("[]"))
    is_number = match[1].startswith("[") or re.fullmatch(r"[0-9.]+", match[1]) is not None
    if (is_number and ip is None) or (ip is not None and (ip.is_unspecified or ip.is_multicast)):
        bad(name, address, allowed + "; nobody can be called there")
    return address.replace("//localhost:", "//127.0.0.1:")


def split_tcp(address: str) -> tuple[str, int]:
    """Returns host and port of a checked tcp:// address; ("127.0.0.1", 0) for another kind."""
    if not address.startswith("tcp://"):
        return "127.0.0.1", 0
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether a checked address, or "", can be reached from its own host alone."""
    ip = _ip(split_tcp(address)[0])
    return ip is not None and ip.is_loopback


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def find_rendezvous(reader: Reader, place: Place) -> str:
    """Returns where the ranks of the job of `place` meet; "" for a world of one.

    Raises ConfigurationError.
    """
    explicit = reader.text("JETSTREAM_RENDEZVOUS")
    if explicit:
        explicit = check_rendezvous(explicit)
    if place.size == 1:
        return ""
    if not explicit and (not place.job or (place.is_spread and not place.head)):
        address = (
            "tcp://HOST:PORT, the host being that of rank 0," if place.is_spread else "ipc://@NAME"
        )
        raise ConfigurationError(
            f"JETSTREAM_RENDEZVOUS is not set, but there are {place.size} ranks"
            f"{' on several hosts' if place.is_spread else ''}; set the same "
            f"{address} for all of them, or start with 'jetstream run'"
        )
    found = explicit or _rendezvous_of(place)
    if place.is_spread and is_loopback(found):
        allowed = "tcp://HOST:PORT with the host of rank 0, as there are ranks on several hosts"
        bad("JETSTREAM_RENDEZVOUS" if explicit else "MASTER_ADDR", found, allowed)
    return found


def _rendezvous_of(place: Place) -> str:
    """A meeting point that all ranks of a job work out by themselves, and no other job."""
    digest = hashlib.sha256("\0".join(place.job).encode()).hexdigest()[:16]
    if not place.is_spread:
        return f"ipc://@jetstream-{os.geteuid()}-{place.launcher}-{digest}"
    host = f"[{place.head}]" if ":" in place.head else place.head
    port = _PORT_MIN + int(digest, 16) % _PORTS
    return check_rendezvous(f"tcp://{host}:{port}", name="MASTER_ADDR")


# --- launchers ----------------------------------------------------------------------------


def _pair(reader: Reader, rank_name: str, size_name: str) -> tuple[int, int]:
    """Reads rank and size, of which both must be there and fit together."""
    for name, other in ((rank_name, size_name), (size_name, rank_name)):
        if not reader.text(name):
            raise ConfigurationError(
                f"{other} is {reader.text(other)!r}, but {name} is not set; set both or neither"
            )
    size = reader.integer(size_name, 1, RANKS_MAX)
    rank = reader.integer(rank_name, 0, RANKS_MAX - 1)
    if rank >= size:
        bad(rank_name, str(rank), f"0 to {size - 1}, because {size_name} is {size}")
    return rank, size


def _local_rank(reader: Reader, name: str, rank: int, size: int) -> int:
    return reader.integer(name, 0, size - 1) if reader.text(name) else rank


def _is_spread(reader: Reader, name: str, size: int) -> bool:
    """Whether there are ranks on other hosts; `name` counts those of this one."""
    return bool(reader.text(name)) and reader.integer(name, 1, size) != size


def _first_host(nodes: str) -> str:
    """Returns "n03" for "n[03-05,9],x1", the first of a list in Slurm's notation."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first[0] if first else "")


def _from_jetstream(reader: Reader) -> Place | None:
    if not reader.first("JETSTREAM_RANK", "JETSTREAM_WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "JETSTREAM_RANK", "JETSTREAM_WORLD_SIZE")
    local_rank = _local_rank(reader, "JETSTREAM_LOCAL_RANK", rank, size)
    return Place(launcher="jetstream", rank=rank, size=size, local_rank=local_rank)


def _from_torchrun(reader: Reader) -> Place | None:
    """Torchrun, or anything that follows torch's env:// convention.

    RANK and WORLD_SIZE alone are names too common to mean anything.
    """
    if not reader.first("TORCHELASTIC_RUN_ID", "MASTER_PORT"):
        return None
    if not reader.first("RANK", "WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "RANK", "WORLD_SIZE")
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return Place(
        launcher="torchrun",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "LOCAL_RANK", rank, size),
        job=tuple(reader.text(name) for name in names),
        is_spread=_is_spread(reader, "LOCAL_WORLD_SIZE", size),
        head=reader.text("MASTER_ADDR"),
    )


def _job(reader: Reader, name: str, is_spread: bool) -> tuple[str, ...]:
    """What the variable `name`, if any, says about the job; else the parent, on this host alone."""
    if name:
        return (reader.text(name),)
    return () if is_spread else (f"parent {os.getppid()}",)


def _from_open_mpi(reader: Reader) -> Place | None:
    if not reader.first("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    is_spread = _is_spread(reader, "OMPI_COMM_WORLD_LOCAL_SIZE", size)
    job = reader.first("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
    return Place(
        launcher="openmpi",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "OMPI_COMM_WORLD_LOCAL_RANK", rank, size),
        job=_job(reader, job, is_spread),
        is_spread=is_spread,
        head=reader.text("MASTER_ADDR"),
    )


def _from_pmi(reader: Reader) -> Place | None:
    """MPICH, which names its jobs nowhere (but they have one parent per host), and Intel MPI."""
    if not reader.first("PMI_RANK", "PMI_SIZE"):
        return None
    rank, size = _pair(reader, "PMI_RANK", "PMI_SIZE")
    is_spread = _is_spread(reader, "MPI_LOCALNRANKS", size)
    job = reader.first("I_MPI_HYDRA_UUID", "PMI_JOBID")
    return Place(
        launcher="mpich",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "MPI_LOCALRANKID", rank, size),
        job=_job(reader, job, is_spread),
        is_spread=is_spread,
        head=reader.text("MASTER_ADDR"),
    )


def _from_slurm(reader: Reader) -> Place | None:
    """A task of a Slurm step. A batch script has SLURM_PROCID too, but belongs to no step."""
    if not reader.text("SLURM_PROCID") or not reader.text("SLURM_STEP_ID"):
        return None
    size_name = reader.first("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or "SLURM_NTASKS"
    rank, size = _pair(reader, "SLURM_PROCID", size_name)
    count = reader.first("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    nodes = reader.first("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    return Place(
        launcher="slurm",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "SLURM_LOCALID", rank, size),
        job=(reader.text("SLURM_JOB_ID"), reader.text("SLURM_STEP_ID")),
        is_spread=bool(count) and size > 1 and reader.text(count) != "1",
        head=reader.text("MASTER_ADDR") or _first_host(reader.text(nodes)),
    )


#: In order: a launcher may itself run under one that stands further down.
LAUNCHERS: tuple[Callable[[Reader], Place | None], ...] = (
    _from_jetstream,
    _from_torchrun,
    _from_open_mpi,
    _from_pmi,
    _from_slurm,
)
