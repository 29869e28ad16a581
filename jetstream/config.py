"""Settings read from the environment, once: who this rank is, where it meets the others, tuning.

``docs/environment.md`` lists every variable. Ranks started by torchrun, Open MPI, MPICH, Intel MPI
or Slurm are recognised by the variables of those launchers.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from jetstream.errors import ConfigurationError

__all__ = ["RANKS_MAX", "Config", "check_rendezvous", "configure_logging", "load_config"]

#: Most ranks a communicator can have; the same number as JS_RANKS_MAX of the data plane.
RANKS_MAX = 256

KINDS = (
    *("all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier", "all_to_all"),
    *("reduce", "gather", "scatter", "scan", "exscan"),
)
ALGORITHMS = (
    *("one_shot", "two_shot", "lend", "direct"),
    *("hierarchical", "hierarchical_one_shot"),
)
ISAS = ("scalar", "avx2", "avx512")
CORES = ("near", "far")
PROGRESS = ("inline", "thread")
DEBUG_LEVELS = {"WARN": logging.WARNING, "INFO": logging.INFO, "TRACE": logging.DEBUG}

_TIMEOUT_S = 300.0
_INIT_TIMEOUT_S = 60.0
_SECONDS_MAX = 1e6
_BUFFER_BYTES_MIN = 256 << 10
_BUFFER_BYTES_MAX = 1 << 30
_HEAP_BYTES_UNIT = 2 << 20
_HEAP_BYTES_MAX = 1 << 40
_SPIN_US_MAX = 1_000_000
_CORE_MAX = 1023
_ALGORITHMS_CHARACTERS_MAX = 500
_SECRET_BYTES_MIN = 16
_SECRET_BYTES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the environment says about this rank.

    ``rendezvous`` is empty for a world of one. ``job_secret`` is empty where the launcher gave
    none. ``algorithms`` holds pairs (kind, algorithm), the kind "" standing for all kinds,
    "all_reduce<=4096" for calls of up to so many bytes.
    ``buffer_bytes``, ``heap_bytes``, ``spin_us``: 0 leaves the choice to the data plane, as does
    ``isa`` "" and ``cores`` "". ``tune`` is "off", the path of a file, or "" for the usual one.
    ``progress`` is "inline" or "thread"; ``progress_cores`` are those of the engine threads by
    local rank, or one for all, or none.
    ``selection`` is no setting: it is what rank 0 has made of its ``tune`` and has handed to all
    ranks.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    rendezvous: str = ""
    job_secret: bytes = field(default=b"", repr=False)
    launcher: str = "none"
    timeout_s: float = _TIMEOUT_S
    init_timeout_s: float = _INIT_TIMEOUT_S
    algorithms: tuple[tuple[str, str], ...] = ()
    buffer_bytes: int = 0
    heap_bytes: int = 0
    spin_us: int = 0
    isa: str = ""
    cores: str = ""
    progress: str = "inline"
    progress_cores: tuple[int, ...] = ()
    tune: str = ""
    debug: str = ""
    selection: str = field(default="", repr=False)

    @property
    def progress_core(self) -> int | None:
        """The core of this rank's engine thread, or None for any."""
        if len(self.progress_cores) > 1:
            return self.progress_cores[self.local_rank]
        return self.progress_cores[0] if self.progress_cores else None

    def algorithm_for(self, kind: str, nbytes: int = 0) -> str | None:
        """Returns the algorithm forced for a call of `kind` ("all_reduce") on `nbytes`, or None."""
        forced = dict(self.algorithms)
        limits = (key.partition("<=") for key in forced)
        fitting = [int(limit) for name, _, limit in limits if name == kind and limit]
        at = min((limit for limit in fitting if nbytes <= limit), default=None)
        return forced.get(kind, forced.get("")) if at is None else forced[f"{kind}<={at}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a launcher put this rank; `job` holds what tells its job from others on this host."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    job: tuple[str, ...] = ()


def _bad(name: str, value: str, allowed: str) -> NoReturn:
    raise ConfigurationError(f"{name} is {value!r}; allowed: {allowed}")


class _Reader:
    """Typed access to environment variables; an empty variable counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def first(self, *names: str) -> str:
        """Returns the name of the first variable that is set, or ""."""
        return next((name for name in names if self.text(name)), "")

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.text(name)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            _bad(name, value, f"an integer from {low} to {high}")
        return int(value)

    def seconds(self, name: str, default: float) -> float:
        value = self.text(name)
        if not value:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0.0 < number <= _SECONDS_MAX:
            _bad(name, value, f"a number of seconds above 0, at most {_SECONDS_MAX:.0f}")
        return number

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name)
        if value and value not in allowed:
            _bad(name, value, ", ".join(allowed))
        return value


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Reads the configuration from `environ` (default: the process's environment).

    Raises ConfigurationError naming the variable, its value and what is allowed.
    """
    reader = _Reader(os.environ if environ is None else environ)
    place = next((found for look in _LAUNCHERS if (found := look(reader)) is not None), None)
    if place is None:
        orphan = reader.first("JETSTREAM_RENDEZVOUS", "JETSTREAM_LOCAL_RANK")
        if orphan:
            raise ConfigurationError(
                f"{orphan} is set, but neither JETSTREAM_RANK and JETSTREAM_WORLD_SIZE nor the "
                "variables of a known launcher are; set both, or start with 'jetstream run'"
            )
        place = _Place(launcher="none", rank=0, size=1, local_rank=0)
    return Config(
        rank=place.rank,
        world_size=place.size,
        local_rank=place.local_rank,
        rendezvous=_rendezvous(reader, place),
        job_secret=_secret(reader),
        launcher=place.launcher,
        timeout_s=reader.seconds("JETSTREAM_TIMEOUT", _TIMEOUT_S),
        init_timeout_s=reader.seconds("JETSTREAM_INIT_TIMEOUT", _INIT_TIMEOUT_S),
        algorithms=_algorithms(reader.text("JETSTREAM_ALGO")),
        buffer_bytes=_buffer_bytes(reader.text("JETSTREAM_BUFFSIZE")),
        heap_bytes=_heap_bytes(reader.text("JETSTREAM_HEAP_BYTES")),
        spin_us=(
            reader.integer("JETSTREAM_SPIN_US", 0, _SPIN_US_MAX)
            if reader.text("JETSTREAM_SPIN_US")
            else 0
        ),
        isa=reader.choice("JETSTREAM_ISA", ISAS),
        cores=reader.choice("JETSTREAM_CORES", CORES),
        progress=reader.choice("JETSTREAM_PROGRESS", PROGRESS) or "inline",
        progress_cores=_progress_cores(reader.text("JETSTREAM_PROGRESS_CORE"), place),
        tune=reader.text("JETSTREAM_TUNE"),
        debug=reader.choice("JETSTREAM_DEBUG", tuple(DEBUG_LEVELS)),
    )


def configure_logging(config: Config) -> None:
    """Sends the records of the "jetstream" loggers to stderr as JETSTREAM_DEBUG asks; once."""
    if not config.debug:
        return
    logger = logging.getLogger("jetstream")
    logger.setLevel(DEBUG_LEVELS[config.debug])
    if all(handler.get_name() != "jetstream-stderr" for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.set_name("jetstream-stderr")
        handler.setFormatter(
            logging.Formatter(f"jetstream[rank {config.rank}] %(levelname)s %(message)s")
        )
        logger.addHandler(handler)


# --- single variables ---------------------------------------------------------------------


def check_rendezvous(address: str, *, name: str = "JETSTREAM_RENDEZVOUS") -> str:
    """Returns `address` if the ranks of one host may meet there.

    Raises ConfigurationError otherwise; `name` is the variable the text blames.
    """
    allowed = "ipc://@NAME (an abstract Unix socket) or tcp://127.0.0.1:PORT"
    if re.fullmatch(r"ipc://@[A-Za-z0-9._-]{1,100}", address):
        return address
    if address.startswith("ipc://"):
        _bad(name, address, allowed + "; a socket file would outlive a killed rank")
    match = re.fullmatch(r"tcp://([^:]+):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[2]) < 65536:
        _bad(name, address, allowed)
    if match[1] != "localhost" and not re.fullmatch(r"127(\.[0-9]{1,3}){3}", match[1]):
        _bad(name, address, allowed + "; jetstream does not listen beyond this host")
    return address.replace("localhost", "127.0.0.1")


def _rendezvous(reader: _Reader, place: _Place) -> str:
    explicit = reader.text("JETSTREAM_RENDEZVOUS")
    if explicit:
        explicit = check_rendezvous(explicit)
    if place.size == 1:
        return ""
    if explicit:
        return explicit
    if not place.job:
        raise ConfigurationError(
            f"JETSTREAM_RENDEZVOUS is not set, but there are {place.size} ranks; set the same "
            "ipc://@NAME for all of them, or start with 'jetstream run'"
        )
    digest = hashlib.sha256("\0".join(place.job).encode()).hexdigest()[:16]
    return f"ipc://@jetstream-{os.geteuid()}-{place.launcher}-{digest}"


def _secret(reader: _Reader) -> bytes:
    value = reader.text("JETSTREAM_JOB_SECRET")
    if not value:
        return b""
    if re.fullmatch(r"([0-9a-fA-F]{2})+", value):
        secret = bytes.fromhex(value)
        if _SECRET_BYTES_MIN <= len(secret) <= _SECRET_BYTES_MAX:
            return secret
    # The value stays out of the text: error texts end up in logs.
    raise ConfigurationError(
        f"JETSTREAM_JOB_SECRET is {len(value)} characters long; allowed: an even number of hex "
        f"digits, from {2 * _SECRET_BYTES_MIN} to {2 * _SECRET_BYTES_MAX}"
    )


def _algorithms(value: str) -> tuple[tuple[str, str], ...]:
    """Parses "two_shot" or "allreduce<=4K:one_shot;allreduce:lend;broadcast:direct"."""
    allowed = (
        f"one of {', '.join(ALGORITHMS)}, or a list such as 'all_reduce<=4K:one_shot;"
        f"all_reduce:lend;broadcast:direct' with the operations {', '.join(KINDS)}"
    )
    if len(value) > _ALGORITHMS_CHARACTERS_MAX:
        _bad("JETSTREAM_ALGO", value, f"at most {_ALGORITHMS_CHARACTERS_MAX} characters")
    compact = {kind.replace("_", ""): kind for kind in KINDS}
    forced: dict[str, str] = {}
    for part in filter(None, (part.strip().lower() for part in value.split(";"))):
        kind, colon, algorithm = (word.strip() for word in part.rpartition(":"))
        kind, limited, size = (word.strip() for word in kind.partition("<="))
        kind = compact.get(kind.replace("_", ""), "") if colon else ""
        key = f"{kind}<={_size(size)}" if limited else kind
        is_known = algorithm in ALGORITHMS and bool(colon) == bool(kind)
        if not is_known or (limited and _size(size) < 0) or key in forced:
            _bad("JETSTREAM_ALGO", value, allowed)
        forced[key] = algorithm
    return tuple(sorted(forced.items()))


def _size(value: str) -> int:
    """Parses a number of bytes with an optional suffix K, M or G; -1 for anything else."""
    match = re.fullmatch(r"([0-9]{1,10})([KkMmGg]?)", value)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()] if match else -1


def _buffer_bytes(value: str) -> int:
    """Parses a power of two; 0 if not set."""
    count = _size(value) if value else 0
    if value and (not _BUFFER_BYTES_MIN <= count <= _BUFFER_BYTES_MAX or count & (count - 1)):
        allowed = "a power of two from 256K to 1G, in bytes or with K, M, G"
        _bad("JETSTREAM_BUFFSIZE", value, allowed)
    return count


def _heap_bytes(value: str) -> int:
    """Parses a multiple of a huge page; 0 if not set."""
    count = _size(value) if value else 0
    if value and (not 0 < count <= _HEAP_BYTES_MAX or count % _HEAP_BYTES_UNIT):
        allowed = "a multiple of 2M from 2M to 1024G, in bytes or with K, M, G"
        _bad("JETSTREAM_HEAP_BYTES", value, allowed)
    return count


def _progress_cores(value: str, place: _Place) -> tuple[int, ...]:
    """Parses the number of a core, or several of them, one for each local rank."""
    words = [word.strip() for word in value.split(",")] if value else []
    is_known = all(re.fullmatch(r"[0-9]{1,4}", word) and int(word) <= _CORE_MAX for word in words)
    if not is_known or (len(words) > 1 and place.local_rank >= len(words)):
        allowed = f"a core from 0 to {_CORE_MAX}, or one for each local rank, such as '2,3'"
        _bad("JETSTREAM_PROGRESS_CORE", value, allowed)
    return tuple(int(word) for word in words)


# --- launchers ----------------------------------------------------------------------------


def _pair(reader: _Reader, rank_name: str, size_name: str) -> tuple[int, int]:
    """Reads rank and size, of which both must be there and fit together."""
    for name, other in ((rank_name, size_name), (size_name, rank_name)):
        if not reader.text(name):
            raise ConfigurationError(
                f"{other} is {reader.text(other)!r}, but {name} is not set; set both or neither"
            )
    size = reader.integer(size_name, 1, RANKS_MAX)
    rank = reader.integer(rank_name, 0, RANKS_MAX - 1)
    if rank >= size:
        _bad(rank_name, str(rank), f"0 to {size - 1}, because {size_name} is {size}")
    return rank, size


def _local_rank(reader: _Reader, name: str, rank: int, size: int) -> int:
    return reader.integer(name, 0, size - 1) if reader.text(name) else rank


def _require_local(reader: _Reader, name: str, size_name: str, size: int) -> None:
    """Refuses a job whose ranks are spread over hosts; `name` counts the ranks of this host."""
    if reader.text(name) and reader.integer(name, 1, RANKS_MAX) != size:
        raise ConfigurationError(
            f"{name} is {reader.text(name)!r}, but {size_name} is {size}; "
            "this version joins the ranks of one host only"
        )


def _from_jetstream(reader: _Reader) -> _Place | None:
    if not reader.first("JETSTREAM_RANK", "JETSTREAM_WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "JETSTREAM_RANK", "JETSTREAM_WORLD_SIZE")
    local_rank = _local_rank(reader, "JETSTREAM_LOCAL_RANK", rank, size)
    return _Place(launcher="jetstream", rank=rank, size=size, local_rank=local_rank)


def _from_torchrun(reader: _Reader) -> _Place | None:
    """Torchrun, or anything that follows torch's env:// convention.

    RANK and WORLD_SIZE alone are names too common to mean anything.
    """
    if not reader.first("TORCHELASTIC_RUN_ID", "MASTER_PORT"):
        return None
    if not reader.first("RANK", "WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "RANK", "WORLD_SIZE")
    _require_local(reader, "LOCAL_WORLD_SIZE", "WORLD_SIZE", size)
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return _Place(
        launcher="torchrun",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "LOCAL_RANK", rank, size),
        job=tuple(reader.text(name) for name in names),
    )


def _from_open_mpi(reader: _Reader) -> _Place | None:
    if not reader.first("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        return None
    rank, size = _pair(reader, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    _require_local(reader, "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE", size)
    job = reader.first("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
    return _Place(
        launcher="openmpi",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "OMPI_COMM_WORLD_LOCAL_RANK", rank, size),
        job=(reader.text(job) if job else f"parent {os.getppid()}",),
    )


def _from_pmi(reader: _Reader) -> _Place | None:
    """MPICH, which names its jobs nowhere (but they have one parent per host), and Intel MPI."""
    if not reader.first("PMI_RANK", "PMI_SIZE"):
        return None
    rank, size = _pair(reader, "PMI_RANK", "PMI_SIZE")
    _require_local(reader, "MPI_LOCALNRANKS", "PMI_SIZE", size)
    job = reader.first("I_MPI_HYDRA_UUID", "PMI_JOBID")
    return _Place(
        launcher="mpich",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "MPI_LOCALRANKID", rank, size),
        job=(reader.text(job) if job else f"parent {os.getppid()}",),
    )


def _from_slurm(reader: _Reader) -> _Place | None:
    """A task of a Slurm step. A batch script has SLURM_PROCID too, but belongs to no step."""
    if not reader.text("SLURM_PROCID") or not reader.text("SLURM_STEP_ID"):
        return None
    size_name = reader.first("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") or "SLURM_NTASKS"
    rank, size = _pair(reader, "SLURM_PROCID", size_name)
    nodes = reader.first("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if nodes and size > 1 and reader.text(nodes) != "1":
        _bad(nodes, reader.text(nodes), "1, because this version joins the ranks of one host only")
    return _Place(
        launcher="slurm",
        rank=rank,
        size=size,
        local_rank=_local_rank(reader, "SLURM_LOCALID", rank, size),
        job=(reader.text("SLURM_JOB_ID"), reader.text("SLURM_STEP_ID")),
    )


#: In order: a launcher may itself run under one that stands further down.
_LAUNCHERS: tuple[Callable[[_Reader], _Place | None], ...] = (
    _from_jetstream,
    _from_torchrun,
    _from_open_mpi,
    _from_pmi,
    _from_slurm,
)
