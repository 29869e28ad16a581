"""Joining the job: from the environment to an open communicator."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import check, lib
from jetstream.communicator import Communicator
from jetstream.config import Config, configure_logging, load_config
from jetstream.control.rendezvous import Membership, join
from jetstream.errors import UnsupportedError
from jetstream.plans import check_forced
from jetstream.tuning import select
from jetstream.work import timeout_to_ns

__all__ = ["get_include", "init", "is_oversubscribed"]

_ISAS = {"scalar": lib.JS_ISA_SCALAR, "avx2": lib.JS_ISA_AVX2, "avx512": lib.JS_ISA_AVX512}
_CORES = {"": lib.JS_CORES_LEARNED, "near": lib.JS_CORES_NEAR, "far": lib.JS_CORES_FAR}


def init(*, timeout: float | None = None) -> Communicator:
    """Join the job that this process belongs to and return the communicator of all its ranks.

    The ranks and their meeting point come from the environment: ``jetstream run``, torchrun,
    mpirun and srun set it; without any of them the world is this one process. Blocks until all
    ranks are there (``JETSTREAM_INIT_TIMEOUT``, 60 s). ``timeout``: default for every wait on the
    communicator in seconds (``JETSTREAM_TIMEOUT``, 300).

    Raises ConfigurationError, RendezvousError, VersionMismatchError, SystemCallError.
    """
    config = load_config()
    configure_logging(config)
    if timeout is not None:
        timeout_to_ns(timeout, timeout)
    if config.isa:
        check(lib.js_isa_force(_ISAS[config.isa]))
    lib.js_cores_force(_CORES[config.cores])
    check_forced(config)
    membership = join(config, select=partial(select, config))
    communicator = _open(membership, replace(config, selection=membership.selection))
    if timeout is not None:
        communicator.timeout = timeout
    return communicator


def _open(membership: Membership, config: Config) -> Communicator:
    try:
        endpoint = Endpoint.world(
            membership.segment,
            membership.rank,
            pidfds=membership.pidfds,
            oversubscribed=is_oversubscribed(membership.cpus),
            spin_us=config.spin_us,
        )
    except BaseException:
        membership.close()
        raise
    for fd in membership.pidfds:
        if fd >= 0:  # the endpoint has its own duplicates
            os.close(fd)
    return Communicator(
        endpoint,
        membership.rank,
        membership.size,
        local_rank=membership.local_rank,
        hosts=membership.hosts,
        config=config,
    )


def is_oversubscribed(cpus: tuple[frozenset[int], ...]) -> bool:
    """More ranks than cores to run them on? ``cpus[r]`` are the cores that rank r may use."""
    union = frozenset[int]().union(*cpus)
    pinned = [next(iter(allowed)) for allowed in cpus if len(allowed) == 1]
    return len(cpus) > len(union) or len(set(pinned)) < len(pinned)


def get_include() -> str:
    """Directory of the C headers for device code: ``#include <jetstream/js_device.h>``."""
    include = Path(__file__).parent / "include"
    if not include.is_dir():
        raise UnsupportedError(f"no headers at {include}: this is not an installed jetstream")
    return str(include)
