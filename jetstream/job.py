"""Joining the job: from the environment to an open communicator."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from jetstream._core.endpoint import Endpoint
from jetstream._core.link import Link, LinkSettings
from jetstream._core.native import check, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.communicator import Communicator
from jetstream.config import PROGRESS, Config, configure_logging, load_config
from jetstream.control.links import LinkEnd
from jetstream.control.rendezvous import Announce, Membership, join
from jetstream.errors import ArgumentError, UnsupportedError
from jetstream.plans import check_forced
from jetstream.progress import choose_core
from jetstream.tuning import select

__all__ = ["apply_config", "get_include", "init", "is_oversubscribed", "open_world"]

_ISAS = {"scalar": lib.JS_ISA_SCALAR, "avx2": lib.JS_ISA_AVX2, "avx512": lib.JS_ISA_AVX512}
_CORES = {"": lib.JS_CORES_LEARNED, "near": lib.JS_CORES_NEAR, "far": lib.JS_CORES_FAR}


def init(
    *, timeout: float | None = None, progress: str | None = None, core: int | None = None
) -> Communicator:
    """Join the job that this process belongs to and return the communicator of all its ranks.

    The ranks and their meeting point come from the environment: ``jetstream run``, torchrun,
    mpirun and srun set it; without any of them the world is this one process. Blocks until all
    ranks are there (``JETSTREAM_INIT_TIMEOUT``, 60 s). ``timeout``: default for every wait on the
    communicator in seconds (``JETSTREAM_TIMEOUT``, 300).

    ``progress`` (``JETSTREAM_PROGRESS``): with "inline", what is in flight moves while this
    process is inside a call; with "thread", a thread of the data plane moves it at any time, on
    ``core`` (``JETSTREAM_PROGRESS_CORE``, default: any). It never runs Python, and sleeps while
    there is nothing to do. Ranks need not agree on it; ``Communicator.start_progress`` starts it
    later.

    Ranks of several hosts reach each other over a link (``JETSTREAM_LINK``; ``docs/links.md``).

    Raises ArgumentError, ConfigurationError, RendezvousError, UnreachableError,
    VersionMismatchError, SystemCallError.
    """
    return open_world(load_config(), timeout=timeout, progress=progress, core=core)


def open_world(
    config: Config,
    *,
    timeout: float | None = None,
    progress: str | None = None,
    core: int | None = None,
    announce: Announce | None = None,
) -> Communicator:
    """Join the job that ``config`` describes; otherwise as ``init``.

    ``announce`` is called on rank 0 with the address at which it can be reached, once it can.
    """
    if timeout is not None:
        timeout_to_ns(timeout, timeout)
    thread_core = apply_config(config, progress, core)
    with contextlib.closing(_Opener(config)) as opener:
        membership = join(
            config, select=partial(select, config), open_link=opener.open, announce=announce
        )
        config = replace(config, selection=membership.selection)
        communicator = _open(membership, config, thread_core, opener)
    if timeout is not None:
        communicator.timeout = timeout
    return communicator


def apply_config(
    config: Config, progress: str | None = None, core: int | None = None
) -> int | None:
    """Do what ``config`` asks of this process alone, before it meets the others of its job.

    Returns the core of the engine thread, -1 for any; None where there is to be no thread. Raises
    ArgumentError, ConfigurationError, UnsupportedError.
    """
    configure_logging(config)
    if config.isa:
        check(lib.js_isa_force(_ISAS[config.isa]))
    lib.js_cores_force(_CORES[config.cores])
    check_forced(config)
    if progress is not None and progress not in PROGRESS:
        raise ArgumentError(f"progress is {progress!r}: one of {', '.join(PROGRESS)} is needed")
    is_thread = (progress or config.progress) == "thread"
    if core is not None and not is_thread:
        raise ArgumentError(f"core is {core!r}, but it is of progress='thread' alone")
    return choose_core(config, core) if is_thread else None


class _Opener:
    """Opens this rank's link, once the control plane knows that there are several hosts."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.settings: LinkSettings | None = None
        self.link: Link | None = None

    def open(self, choice: LinkEnd) -> bytes:
        """The address of the link that the ranks have agreed on."""
        self.settings = LinkSettings(
            choice.kind,
            interface=choice.interface,
            ip=choice.address,
            mtu_bytes=self._config.link_mtu,
            fault=self._config.link_fault,
            trace=self._config.link_trace,
            connect_s=self._config.init_timeout_s,
            silence_s=self._config.link_timeout_s,
        )
        self.link = self.settings.open(self._config.rank)
        return self.link.address

    def close(self) -> None:
        """Closes the link, unless a communicator has taken it."""
        if self.link is not None:
            self.link.close()


def _open(
    membership: Membership, config: Config, thread_core: int | None, opener: _Opener
) -> Communicator:
    threads = 1 if thread_core is None else 2  # of each rank that want a core
    try:
        endpoint = Endpoint.world(
            membership.segment,
            membership.rank,
            pidfds=membership.pidfds,
            oversubscribed=is_oversubscribed(membership.cpus_here, threads),
            is_crowded=is_oversubscribed(membership.cpus_here, 2),
            spin_us=config.spin_us,
            thread_core=thread_core,
            hosts=membership.host_index,
        )
    except BaseException:
        membership.close()
        raise
    for fd in membership.pidfds:
        if fd >= 0:  # the endpoint has its own duplicates
            os.close(fd)
    if opener.link is not None and opener.settings is not None:
        try:
            endpoint.connect(opener.link, membership.endpoints, opener.settings)
        except BaseException:
            endpoint.close()
            raise
    return Communicator(
        endpoint,
        membership.rank,
        membership.size,
        local_rank=membership.local_rank,
        hosts=membership.hosts,
        config=config,
    )


def is_oversubscribed(cpus: tuple[frozenset[int], ...], threads: int = 1) -> bool:
    """More ranks, of so many threads, than cores to run them on?

    ``cpus[r]`` are the cores that rank r may use.
    """
    union = frozenset[int]().union(*cpus)
    pinned = [next(iter(allowed)) for allowed in cpus if len(allowed) == 1] * threads
    return threads * len(cpus) > len(union) or len(set(pinned)) < len(pinned)


def get_include() -> str:
    """Directory of the C headers for device code: ``#include <jetstream/js_device.h>``.

    Raises UnsupportedError where there are none.
    """
    package = Path(__file__).resolve().parent
    # Installed beside the modules; or the modules are used where their sources lie.
    for include in (package / "include", package.parent / "csrc" / "include"):
        if (include / "jetstream" / "js_device.h").is_file():
            return str(include)
    raise UnsupportedError(f"no headers at {package / 'include'}: install jetstream")
