"""Communicators of some of the ranks: splitting and duplicating a communicator."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jetstream._core.endpoint import Endpoint
from jetstream._core.link import ADDRESS_BYTES, Link
from jetstream._core.native import ffi, lib, raise_status, status_text
from jetstream.errors import ArgumentError, JetstreamError, OutOfMemoryError

if TYPE_CHECKING:
    from jetstream.communicator import Communicator

__all__ = ["Exchange", "open_group", "split"]

_INT64_MAX = 2**63 - 1
_NO_COLOR = -1


@dataclass
class _Progress:
    """How far this rank has got: its error, if it could not do its part."""

    endpoint: Endpoint | None = None
    link: Link | None = None
    error: JetstreamError | None = None

    @property
    def status(self) -> int:
        """The error as a status of the data plane; zero for none."""
        if self.error is None:
            return 0
        return int(getattr(lib, self.error.status or "", lib.JS_ERR_SYSTEM))


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, (int, np.integer)) or not -_INT64_MAX <= value <= _INT64_MAX:
        raise ArgumentError(f"split: {name} is {value!r}: an integer of 64 bits is needed")
    return int(value)


#: The values of each member, and where all ranks take part of each rank, by rank.
Exchange = Callable[..., Sequence[Sequence[int]] | Mapping[int, Sequence[int]]]


def split(comm: Communicator, endpoint: Endpoint, color: int | None, key: int) -> Endpoint | None:
    """Open the communicator of the ranks that give the same ``color``: three small collectives.

    Returns this rank's endpoint and None where it is no member; the members are in the endpoint.
    All ranks of a group raise when one of them could not take part; ``comm`` stays usable.
    """
    own = _NO_COLOR if color is None else max(_NO_COLOR, _integer(color, "color"))
    rows = _exchange(comm, own, _integer(key, "key"))
    members: list[int] = []
    if own != _NO_COLOR:
        members = [rank for rank in range(comm.size) if rows[rank][0] == own]
        members.sort(key=lambda rank: (rows[rank][1], rank))
    return open_group(endpoint, comm.rank, members, partial(_exchange, comm))


def open_group(
    endpoint: Endpoint, rank: int, members: Sequence[int], exchange: Exchange
) -> Endpoint | None:
    """Open the communicator of ``members``, ranks of that of ``endpoint``, in this order.

    ``rank`` is this one's. Everyone who takes part in ``exchange`` calls it: at least the members.
    Returns None where this rank is no member. All members raise when one could not take part.
    """
    group = _group(endpoint, rank, members)
    progress = _Progress()
    # Each host has a segment of its own: its first member makes the memory that its members share.
    near = [member for member in members if endpoint.hosts[member] == endpoint.hosts[rank]]
    if near and near[0] == rank:
        _offer(endpoint, group, progress)
    address = b""
    try:
        if len(set(endpoint.hosts)) > 1:
            address = _open_link(endpoint, rank, len(near) < len(members), progress)
        words = np.frombuffer(address, dtype=np.int64).tolist()
        offers = exchange(group.offset, group.id, progress.status, *words)
        if members and all(offers[member][2] == 0 for member in members):
            group.offset, group.id = offers[near[0]][:2]
            _join(endpoint, group, progress)
            if progress.link is not None and progress.endpoint is not None:
                _connect(endpoint, progress, [offers[member][3:] for member in members])
        states = exchange(progress.status)
        failed = [member for member in members if states[member][0] != 0]
        if failed:
            _refuse(failed[0], states[failed[0]][0], progress)
    except BaseException:
        if progress.link is not None:
            progress.link.close()
        if progress.endpoint is not None:
            progress.endpoint.close()
        raise
    return progress.endpoint


def _exchange(comm: Communicator, *values: int) -> list[list[int]]:
    """The values of all ranks, by rank."""
    mine = np.array(values, dtype=np.int64)
    rows: list[list[int]] = comm.all_gather(mine).reshape(comm.size, len(values)).tolist()
    return rows


def _group(endpoint: Endpoint, rank: int, members: Sequence[int]) -> Any:
    """A ``js_group *``, for ranks of the communicator of ``endpoint``."""
    group = ffi.new("js_group *")
    group.size = len(members)
    for index, member in enumerate(members):
        group.members[index] = endpoint.members[member]
        if member == rank:
            group.rank = index
    return group


def _offer(endpoint: Endpoint, group: Any, progress: _Progress) -> None:
    try:
        try:
            endpoint.offer(group)
        except OutOfMemoryError:
            gc.collect()  # arrays and communicators in reference cycles
            endpoint.offer(group)
    except JetstreamError as error:
        progress.error = error


def _open_link(endpoint: Endpoint, rank: int, is_needed: bool, progress: _Progress) -> bytes:
    """Open the link of the new communicator; its address, zeros where there is none."""
    settings = endpoint.engine.links
    if is_needed and settings is not None:
        try:
            progress.link = settings.open(endpoint.members[rank])
            return progress.link.address
        except JetstreamError as error:
            progress.error = error
    return bytes(settings.address_bytes if settings is not None else ADDRESS_BYTES)


def _connect(endpoint: Endpoint, progress: _Progress, rows: Sequence[Sequence[int]]) -> None:
    settings = endpoint.engine.links
    assert progress.endpoint is not None and progress.link is not None and settings is not None
    addresses = [np.array(row, dtype=np.int64).tobytes() for row in rows]
    try:
        progress.endpoint.connect(progress.link, addresses, settings)
    except JetstreamError as error:
        progress.error = error


def _join(endpoint: Endpoint, group: Any, progress: _Progress) -> None:
    try:
        progress.endpoint = endpoint.join(group)
    except JetstreamError as error:
        progress.error = error


def _refuse(rank: int, status: int, progress: _Progress) -> None:
    if progress.error is not None:
        raise progress.error
    raise_status(
        status,
        f"rank {rank} could not take part in the new communicator: {status_text(status)}; its own "
        "error says more. The communicator that was to be split can still be used.",
    )
