"""From a store of torch to a communicator: worlds, and groups of some of a world's ranks.

The store tells the ranks where rank 0 listens; from there on they join as any others do. A group
within a world shares its memory, and needs the store for two small exchanges alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from jetstream.communicator import Communicator
from jetstream.config import Config, load_config
from jetstream.control.links import own_address
from jetstream.errors import JetstreamError, RendezvousError, TimedOutError
from jetstream.job import apply_config, open_world
from jetstream.places import Place

__all__ = ["Meeting", "open_group_of", "open_world_of"]

_SECRET_BYTES = 32
_NAME_BYTES = 4
#: While a rank waits, it looks this often whether those that it waits for are still alive: as often
#: as torch, whose store says each time on stderr that it has waited in vain.
_LOOK_S = 10.0
_PROBE_S = 0.01
_WAIT_S_MIN = 0.001  # of zero or less, stores think otherwise
#: The key of what rank 0 tells.
_TOLD = "told"
#: A port that nobody listens at: only the way to the host matters.
_ANY_PORT = 9


class Meeting:
    """The ranks of one group before they have a communicator: what they tell each other.

    A context manager: an error within is made known to the ranks that wait for this one, which
    then raise it too. ``parent`` is the world in whose memory the group is to be made, "" for a
    world of its own; the ranks must agree on it.
    """

    def __init__(
        self, store: Any, rank: int, size: int, timeout: timedelta, parent: str = ""
    ) -> None:
        # The names of groups come again after destroy_process_group; their keys must not. All
        # ranks make a group equally often, so each can count for itself.
        attempt = store.add(f"jetstream/attempts/{rank}", 1)
        self._store = dist.PrefixStore(f"jetstream/{attempt}", store)
        self._timeout = timeout
        self._parent = parent
        self._round = 0
        self._has_heard = False  # of another rank's error, which is known then
        #: Called now and then with a rank that has not come; raises if it never will.
        self.look: Callable[[int], object] = _see_nothing
        self.rank = rank
        self.size = size

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self._has_heard:
            self._announce(error)

    def exchange(self, value: str) -> list[str]:
        """The values of all ranks, by rank.

        Raises RendezvousError naming who has not come, or what another rank has failed with.
        """
        self._round += 1
        keys = self._keys(self._round)
        self._store.set(keys[self.rank], json.dumps({"parent": self._parent, "value": value}))
        self._wait(keys)
        rows = [self._read(row) for row in self._store.multi_get(keys)]
        parents = [row["parent"] for row in rows]
        if any(parent != parents[0] for parent in parents):
            found = ", ".join(f"{_place(one)} on rank {rank}" for rank, one in enumerate(parents))
            raise RendezvousError(
                f"the ranks do not agree on where the new group is to be made: {found}. All of "
                "them must make and destroy their groups in the same order"
            )
        return [row["value"] for row in rows]

    def tell(self, value: str) -> None:
        """Rank 0: say something that the others ``hear``."""
        self._store.set(_TOLD, json.dumps({"value": value}))

    def hear(self) -> str:
        """What rank 0 has told. Raises RendezvousError."""
        self._wait([_TOLD])
        return str(self._read(self._store.get(_TOLD))["value"])

    def _keys(self, number: int) -> list[str]:
        return [f"{number}/{rank}" for rank in range(self.size)]

    def _read(self, text: bytes) -> Any:
        row = json.loads(text.decode())
        if "error" in row:
            self._has_heard = True
            raise RendezvousError(f"rank {row['rank']} could not join the group: {row['error']}")
        return row

    def _announce(self, error: BaseException) -> None:
        """Have the others find the error wherever they wait, for whomever."""
        row = json.dumps({"rank": self.rank, "error": f"{type(error).__name__}: {error}"})
        # In the round that this rank is in, or, where it has had its say there, in the next one.
        keys = [*self._keys(max(1, self._round)), *self._keys(self._round + 1), _TOLD]
        with contextlib.suppress(RuntimeError):  # the store has gone as well
            for key in keys:
                self._store.set(key, row)

    def _wait(self, keys: list[str]) -> None:
        begin_s = time.monotonic()
        until_s = begin_s + self._timeout.total_seconds()
        while True:
            slice_s = max(_WAIT_S_MIN, min(_LOOK_S, until_s - begin_s))
            try:
                self._store.wait(keys, timedelta(seconds=slice_s))
                return
            except RuntimeError as error:
                missing = self._missing(keys, error)
                if not missing:
                    return
                now_s = time.monotonic()
                if now_s >= until_s:
                    raise RendezvousError(
                        f"of {self.size} ranks of the group {', '.join(map(str, missing))} have "
                        f"not come within {self._timeout.total_seconds():g} s"
                    ) from error
                if now_s < begin_s + slice_s / 2:
                    raise RendezvousError(f"the store of the group has failed: {error}") from error
            self._look_after(missing, keys)
            begin_s = time.monotonic()

    def _look_after(self, missing: list[int], keys: list[str]) -> None:
        try:
            for rank in missing:
                self.look(rank)
        except JetstreamError as error:
            # Whoever has left may have come before, or have told why it will not.
            if self._missing(keys, error):
                raise

    def _missing(self, keys: list[str], error: Exception) -> list[int]:
        """Who has not come; nobody, if the last one has come, or has said why not, just now."""
        try:
            return [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        except RuntimeError:
            raise RendezvousError(f"the store of the group has failed: {error}") from error


def _see_nothing(_rank: int) -> None:
    """Of ranks that share nothing yet there is nothing to be seen."""


def _place(parent: str) -> str:
    return f"in the world {parent}" if parent else "in a world of its own"


def open_world_of(meeting: Meeting, timeout: timedelta) -> tuple[Communicator, str]:
    """Open the communicator of all ranks of ``meeting``, which share nothing yet.

    Returns it with a name that this world has on all ranks. ``timeout`` is that of the group: of
    joining, and of every later operation. Raises what :func:`jetstream.init` raises.
    """
    rank, size = meeting.rank, meeting.size
    mine = json.dumps([secrets.token_hex(_NAME_BYTES), _host_of_this_rank()])
    names, hosts = zip(*map(json.loads, meeting.exchange(mine)), strict=True)
    place = Place(
        launcher="torch",
        rank=rank,
        size=size,
        local_rank=hosts[:rank].count(hosts[rank]),
        is_spread=len(set(hosts)) > 1,
    )
    config = load_config(place=place)
    apply_config(config)
    seconds = timeout.total_seconds()
    if not os.environ.get("JETSTREAM_INIT_TIMEOUT"):
        config = replace(config, init_timeout_s=seconds)
    meeting.exchange("ready")  # from here on a rank that fails can say so itself, to rank 0
    if size == 1:
        return open_world(config, timeout=seconds), names[0]
    if rank > 0:
        address, secret = json.loads(meeting.hear())
        config = replace(config, rendezvous=address, job_secret=bytes.fromhex(secret))
        return open_world(config, timeout=seconds), names[0]
    config = _listening(config, hosts)
    secret = config.job_secret.hex()

    def announce(address: str) -> None:
        meeting.tell(json.dumps([address, secret]))

    return open_world(config, timeout=seconds, announce=announce), names[0]


def open_group_of(
    world: Communicator, meeting: Meeting, members: Sequence[int], timeout: timedelta
) -> Communicator:
    """Open the communicator of ``members``, ranks of ``world``, who alone take part in ``meeting``.

    Raises what ``world.split`` raises, and RendezvousError.
    """

    def exchange(*values: int) -> dict[int, list[int]]:
        rows = meeting.exchange(json.dumps(values))
        return {member: json.loads(row) for member, row in zip(members, rows, strict=True)}

    def look(rank: int) -> None:
        with contextlib.suppress(TimedOutError):  # it is alive; a message of it stays there
            world.probe(members[rank], timeout=_PROBE_S)

    meeting.look = look
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
