"""From a store of torch to a communicator: worlds, and groups of some of a world's ranks.

The store tells the ranks where rank 0 listens; from there on they join as any others do. A group
within a world shares its memory, and needs the store for two small exchanges alone.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from jetstream.communicator import Communicator
from jetstream.config import Config, load_config
from jetstream.control.links import own_address
from jetstream.errors import RendezvousError
from jetstream.job import open_world
from jetstream.places import Place

__all__ = ["Meeting", "open_group_of", "open_world_of"]

_SECRET_BYTES = 32
#: A port that nobody listens at: only the way to the host matters.
_ANY_PORT = 9


class Meeting:
    """The ranks of one group before they have a communicator: what they tell each other."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        # The names of groups come again after destroy_process_group; their keys must not. All
        # ranks make a group equally often, so each can count for itself.
        attempt = store.add(f"jetstream/attempts/{rank}", 1)
        self._store = dist.PrefixStore(f"jetstream/{attempt}", store)
        self._timeout = timeout
        self._round = 0
        #: Whether this rank has said something to all others.
        self.has_told = False
        self.rank = rank
        self.size = size

    def exchange(self, value: str) -> list[str]:
        """The values of all ranks, by rank. Raises RendezvousError naming who has not come."""
        self._round += 1
        self._store.set(f"{self._round}/{self.rank}", value)
        keys = [f"{self._round}/{rank}" for rank in range(self.size)]
        self._wait(keys)
        return [self._store.get(key).decode() for key in keys]

    def tell(self, value: str) -> None:
        """Rank 0: say something that the others ``hear``."""
        self.has_told = True
        self._store.set("told", value)

    def hear(self) -> str:
        """What rank 0 has told. Raises RendezvousError."""
        self._wait(["told"])
        return bytes(self._store.get("told")).decode()

    def _wait(self, keys: list[str]) -> None:
        try:
            self._store.wait(keys, self._timeout)
        except RuntimeError as error:
            self._blame(keys, error)

    def _blame(self, keys: list[str], error: RuntimeError) -> None:
        seconds = self._timeout.total_seconds()
        if keys == ["told"]:
            raise RendezvousError(f"rank 0 has not come within {seconds:g} s: {error}") from error
        try:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        except RuntimeError:
            raise RendezvousError(f"the store of the group has failed: {error}") from error
        raise RendezvousError(
            f"of {self.size} ranks of the group {', '.join(str(rank) for rank in missing)} have "
            f"not come within {seconds:g} s"
        ) from error


def open_world_of(meeting: Meeting, timeout: timedelta) -> Communicator:
    """Open the communicator of all ranks of ``meeting``, which share nothing yet.

    ``timeout`` is that of the group: of joining, and of every later operation. Raises what
    :func:`jetstream.init` raises.
    """
    rank, size = meeting.rank, meeting.size
    hosts = meeting.exchange(_host_of_this_rank())
    place = Place(
        launcher="torch",
        rank=rank,
        size=size,
        local_rank=hosts[:rank].count(hosts[rank]),
        is_spread=len(set(hosts)) > 1,
    )
    config = load_config(place=place)
    seconds = timeout.total_seconds()
    if not os.environ.get("JETSTREAM_INIT_TIMEOUT"):
        config = replace(config, init_timeout_s=seconds)
    if size > 1 and rank > 0:
        told = json.loads(meeting.hear())
        if "error" in told:
            raise RendezvousError(f"rank 0 could not listen: {told['error']}")
        config = replace(
            config, rendezvous=told["address"], job_secret=bytes.fromhex(told["secret"])
        )
        return open_world(config, timeout=seconds)
    try:
        if size > 1:
            config = _listening(config, hosts)
        secret = config.job_secret.hex()
        return open_world(
            config,
            timeout=seconds,
            announce=lambda address: meeting.tell(
                json.dumps({"address": address, "secret": secret})
            ),
        )
    except Exception as error:
        if not meeting.has_told:  # the others would wait for it
            meeting.tell(json.dumps({"error": str(error)}))
        raise


def open_group_of(
    world: Communicator, meeting: Meeting, members: Sequence[int], timeout: timedelta
) -> Communicator:
    """Open the communicator of ``members``, ranks of ``world``, who alone take part in ``meeting``.

    Raises what ``world.split`` raises, and RendezvousError.
    """

    def exchange(*values: int) -> dict[int, list[int]]:
        rows = meeting.exchange(json.dumps(values))
        return {member: json.loads(row) for member, row in zip(members, rows, strict=True)}

    comm = world.open_group(members, exchange)
    comm.timeout = timeout.total_seconds()
    return comm


def _host_of_this_rank() -> str:
    """Equal where two ranks can share memory; where the first two are, they share a network."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = [Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("net", "pid")]
    return json.dumps([boot_id, *namespaces, os.environ.get("JETSTREAM_HOST", "")])


def _listening(config: Config, hosts: Sequence[str]) -> Config:
    """What rank 0 joins with: nothing but the store has to be agreed on beforehand."""
    secret = config.job_secret or secrets.token_bytes(_SECRET_BYTES)
    networks = {tuple(json.loads(host)[:2]) for host in hosts}
    if len(set(hosts)) == 1:
        address = f"ipc://@jetstream-{os.getpid()}-{secrets.token_hex(8)}"
    elif len(networks) == 1:
        address = "tcp://127.0.0.1:0"
    else:
        head = os.environ.get("MASTER_ADDR") or socket.gethostname()
        host = config.link_address.partition(",")[0]
        host = host or own_address(replace(config, rendezvous=f"tcp://{head}:{_ANY_PORT}"))
        address = f"tcp://[{host}]:0" if ":" in host else f"tcp://{host}:0"
    return replace(config, rendezvous=address, job_secret=secret)
