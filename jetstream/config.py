"""Settings read from the environment, once: who this rank is, where it meets the others, tuning.

``docs/environment.md`` lists every variable; ``places.py`` knows those of the launchers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from jetstream.environ import Reader, bad, parse_size
from jetstream.errors import ConfigurationError
from jetstream.places import (
    RANKS_MAX,
    Place,
    find_place,
    find_rendezvous,
    is_loopback,
)

__all__ = ["RANKS_MAX", "Config", "configure_logging", "load_config"]

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
LINKS = ("auto", "udp", "packet", "xdp")
DEBUG_LEVELS = {"WARN": logging.WARNING, "INFO": logging.INFO, "TRACE": logging.DEBUG}

_TIMEOUT_S = 300.0
_INIT_TIMEOUT_S = 60.0
_BUFFER_BYTES_MIN = 256 << 10
_BUFFER_BYTES_MAX = 1 << 30
_HEAP_BYTES_UNIT = 2 << 20
_HEAP_BYTES_MAX = 1 << 40
_SPIN_US_MAX = 1_000_000
_CORE_MAX = 1023
_ALGORITHMS_CHARACTERS_MAX = 500
_SECRET_BYTES_MIN = 16
_SECRET_BYTES_MAX = 64
_LINK_TIMEOUT_S = 10.0
_MTU_BYTES_MIN = 512
_MTU_BYTES_MAX = 65535
_LINKS_MAX = 4
_INTERFACE = r"[A-Za-z0-9._@:-]{1,15}"
_FAULT_CHARACTERS_MAX = 500
_PATH_CHARACTERS_MAX = 4000


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
    ``host`` is the name of this host, "" for its own. ``link`` and what begins so are about the
    way to other hosts: ``link`` is "auto", "udp", "packet" or "xdp"; ``interface`` and
    ``link_address`` "" and ``link_mtu`` (bytes) 0 leave the choice to jetstream (several links are
    separated by commas); ``link_fault`` and
    ``link_trace``, a path with "{rank}" for the number, are "" where nothing is to be disturbed or
    written; a remote rank that is silent for ``link_timeout_s`` is lost.
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
    host: str = ""
    link: str = "auto"
    interface: str = ""
    link_address: str = ""
    link_mtu: int = 0
    link_fault: str = ""
    link_trace: str = ""
    link_timeout_s: float = _LINK_TIMEOUT_S
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


def load_config(environ: Mapping[str, str] | None = None, *, place: Place | None = None) -> Config:
    """Reads the configuration from `environ` (default: the process's environment).

    A caller who knows the `place` of this rank has a meeting point for it too: `rendezvous` is then
    empty, and the caller's to fill in, as is `job_secret` where it is empty.

    Raises ConfigurationError naming the variable, its value and what is allowed.
    """
    reader = Reader(os.environ if environ is None else environ)
    is_given = place is not None
    place = place or find_place(reader)
    rendezvous = "" if is_given else find_rendezvous(reader, place)
    secret = _secret(reader)
    if not (secret or is_given or is_loopback(rendezvous)):
        raise ConfigurationError(
            f"JETSTREAM_JOB_SECRET is not set, but the ranks meet at {rendezvous}, where others "
            "can call too; set the same for all ranks, such as what 'openssl rand -hex 32' says"
        )
    interface = _interfaces(reader.text("JETSTREAM_INTERFACE"))
    link_address = _link_address(reader.text("JETSTREAM_LINK_ADDRESS"))
    if interface and link_address and interface.count(",") != link_address.count(","):
        raise ConfigurationError(
            f"JETSTREAM_INTERFACE is {interface!r} and JETSTREAM_LINK_ADDRESS {link_address!r}; "
            "allowed: as many addresses as interfaces, or only one of the two variables"
        )
    return Config(
        rank=place.rank,
        world_size=place.size,
        local_rank=place.local_rank,
        rendezvous=rendezvous,
        job_secret=secret,
        launcher=place.launcher,
        timeout_s=reader.seconds("JETSTREAM_TIMEOUT", _TIMEOUT_S),
        init_timeout_s=reader.seconds("JETSTREAM_INIT_TIMEOUT", _INIT_TIMEOUT_S),
        algorithms=_algorithms(reader.text("JETSTREAM_ALGO")),
        buffer_bytes=_buffer_bytes(reader.text("JETSTREAM_BUFFSIZE")),
        heap_bytes=_heap_bytes(reader.text("JETSTREAM_HEAP_BYTES")),
        spin_us=reader.integer("JETSTREAM_SPIN_US", 0, _SPIN_US_MAX, default=0),
        isa=reader.choice("JETSTREAM_ISA", ISAS),
        cores=reader.choice("JETSTREAM_CORES", CORES),
        progress=reader.choice("JETSTREAM_PROGRESS", PROGRESS) or "inline",
        progress_cores=_progress_cores(reader.text("JETSTREAM_PROGRESS_CORE"), place),
        tune=reader.text("JETSTREAM_TUNE"),
        debug=reader.choice("JETSTREAM_DEBUG", tuple(DEBUG_LEVELS)),
        host=_name(reader, "JETSTREAM_HOST", 63),
        link=reader.choice("JETSTREAM_LINK", LINKS) or "auto",
        interface=interface,
        link_address=link_address,
        link_mtu=reader.integer("JETSTREAM_LINK_MTU", _MTU_BYTES_MIN, _MTU_BYTES_MAX, default=0),
        link_fault=_link_fault(reader.text("JETSTREAM_LINK_FAULT")),
        link_trace=_link_trace(reader.text("JETSTREAM_LINK_TRACE"), place),
        link_timeout_s=reader.seconds("JETSTREAM_LINK_TIMEOUT", _LINK_TIMEOUT_S),
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


def _secret(reader: Reader) -> bytes:
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
        bad("JETSTREAM_ALGO", value, f"at most {_ALGORITHMS_CHARACTERS_MAX} characters")
    compact = {kind.replace("_", ""): kind for kind in KINDS}
    forced: dict[str, str] = {}
    for part in filter(None, (part.strip().lower() for part in value.split(";"))):
        kind, colon, algorithm = (word.strip() for word in part.rpartition(":"))
        kind, limited, size = (word.strip() for word in kind.partition("<="))
        kind = compact.get(kind.replace("_", ""), "") if colon else ""
        key = f"{kind}<={parse_size(size)}" if limited else kind
        is_known = algorithm in ALGORITHMS and bool(colon) == bool(kind)
        if not is_known or (limited and parse_size(size) < 0) or key in forced:
            bad("JETSTREAM_ALGO", value, allowed)
        forced[key] = algorithm
    return tuple(sorted(forced.items()))


def _buffer_bytes(value: str) -> int:
    """Parses a power of two; 0 if not set."""
    count = parse_size(value) if value else 0
    if value and (not _BUFFER_BYTES_MIN <= count <= _BUFFER_BYTES_MAX or count & (count - 1)):
        allowed = "a power of two from 256K to 1G, in bytes or with K, M, G"
        bad("JETSTREAM_BUFFSIZE", value, allowed)
    return count


def _heap_bytes(value: str) -> int:
    """Parses a multiple of a huge page; 0 if not set."""
    count = parse_size(value) if value else 0
    if value and (not 0 < count <= _HEAP_BYTES_MAX or count % _HEAP_BYTES_UNIT):
        allowed = "a multiple of 2M from 2M to 1024G, in bytes or with K, M, G"
        bad("JETSTREAM_HEAP_BYTES", value, allowed)
    return count


def _progress_cores(value: str, place: Place) -> tuple[int, ...]:
    """Parses the number of a core, or several of them, one for each local rank."""
    words = [word.strip() for word in value.split(",")] if value else []
    is_known = all(re.fullmatch(r"[0-9]{1,4}", word) and int(word) <= _CORE_MAX for word in words)
    if not is_known or (len(words) > 1 and place.local_rank >= len(words)):
        allowed = f"a core from 0 to {_CORE_MAX}, or one for each local rank, such as '2,3'"
        bad("JETSTREAM_PROGRESS_CORE", value, allowed)
    return tuple(int(word) for word in words)


def _name(reader: Reader, name: str, characters_max: int) -> str:
    """Reads a name such as those of hosts and interfaces."""
    value = reader.text(name)
    if value and not re.fullmatch(r"[A-Za-z0-9._@:-]+", value):
        bad(name, value, "letters, digits and . _ @ : -")
    if len(value) > characters_max:
        bad(name, value, f"at most {characters_max} characters")
    return value


def _interfaces(value: str) -> str:
    """Checks names of interfaces; returns them with a comma between."""
    names = [name.strip() for name in value.split(",")] if value else []
    if len(names) > _LINKS_MAX or not all(re.fullmatch(_INTERFACE, name) for name in names):
        allowed = (
            f"up to {_LINKS_MAX} names such as eth1,eth2 of at most 15 characters each: letters, "
            "digits and . _ @ : -"
        )
        bad("JETSTREAM_INTERFACE", value, allowed)
    return ",".join(names)


def _link_address(value: str) -> str:
    """Checks IP addresses of this host; returns them with a comma between."""
    words = [word.strip() for word in value.split(",")] if value else []
    try:
        addresses = [ipaddress.ip_address(word) for word in words]
    except ValueError:
        addresses = []
    is_usable = not any(one.is_unspecified or one.is_multicast for one in addresses)
    if value and not (is_usable and 0 < len(addresses) <= _LINKS_MAX):
        allowed = f"an IP address of this host, such as 10.0.0.7, or up to {_LINKS_MAX} with commas"
        bad("JETSTREAM_LINK_ADDRESS", value, allowed)
    return ",".join(words)


def _link_fault(value: str) -> str:
    """What it may hold, the link knows."""
    if len(value) > _FAULT_CHARACTERS_MAX or not value.isprintable():
        allowed = f"at most {_FAULT_CHARACTERS_MAX} printable characters"
        bad("JETSTREAM_LINK_FAULT", value, allowed)
    return value


def _link_trace(value: str, place: Place) -> str:
    if value and place.size > 1 and "{rank}" not in value:
        bad("JETSTREAM_LINK_TRACE", value, "a path with {rank} in it: each rank writes its own")
    if len(value) > _PATH_CHARACTERS_MAX or "\0" in value:
        bad("JETSTREAM_LINK_TRACE", value, f"a path of at most {_PATH_CHARACTERS_MAX} characters")
    return value
