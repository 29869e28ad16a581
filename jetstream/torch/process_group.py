"""The process group of torch 2.13 and earlier: a Python subclass of ``dist.ProcessGroup``.

torch takes what a backend's function returns as the whole group if it is a ProcessGroup. What C++
calls goes through its trampolines (PyProcessGroup.hpp), the rest straight to these methods.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from jetstream.communicator import Communicator
from jetstream.errors import JetstreamError
from jetstream.torch.bootstrap import Meeting, open_group_of, open_world_of
from jetstream.torch.errors import as_torch
from jetstream.torch.operations import Collectives

__all__ = ["ProcessGroupJetstream", "create_process_group"]

#: Groups whose memory others can be made in.
_worlds: weakref.WeakSet[ProcessGroupJetstream] = weakref.WeakSet()


class ProcessGroupJetstream(Collectives, dist.ProcessGroup):  # type: ignore[misc]
    """A process group of torch whose operations a :class:`jetstream.Communicator` carries out.

    ``communicator`` is that communicator, for calls without torch's overhead.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: timedelta = default_pg_timeout,
        global_ranks: Sequence[int] = (),
    ) -> None:
        """All ranks of the group take part, over ``store``, as with torch's own backends.

        ``global_ranks`` are the group's ranks in the world, none means all of them. Raises what
        :func:`jetstream.init` raises.
        """
        dist.ProcessGroup.__init__(self, rank, size)
        self._open(store, rank, size, timeout, global_ranks)

    def _open(
        self, store: Any, rank: int, size: int, timeout: timedelta, global_ranks: Sequence[int]
    ) -> None:
        self._name = ""
        self._desc = "undefined"
        self.global_ranks = ranks = tuple(global_ranks) or tuple(range(size))
        try:
            self._comm = self._meet(Meeting(store, rank, size, timeout), ranks, timeout)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__

    def _meet(self, meeting: Meeting, ranks: tuple[int, ...], timeout: timedelta) -> Communicator:
        world = next((one for one in _worlds if set(ranks) <= set(one.global_ranks)), None)
        if world is None:
            comm = open_world_of(meeting, timeout)
            _worlds.add(self)
            return comm
        members = [world.global_ranks.index(one) for one in ranks]
        return open_group_of(world.communicator, meeting, members, timeout)

    @property
    def communicator(self) -> Communicator:
        """What carries out the operations."""
        return self._comm

    # --- identity: torch keeps it in C++ backends, of which there are none here ------------------

    def getBackendName(self) -> str:
        """The name of the backend."""
        return "jetstream"

    def name(self) -> str:
        """As ``getBackendName``."""
        return "jetstream"

    def setGroupName(self, name: str) -> None:
        """Called once by torch."""
        self._name = name

    def getGroupName(self) -> str:
        """The name by which torch finds the group."""
        return self._name

    def setGroupDesc(self, desc: str) -> None:
        """Called once by torch."""
        self._desc = desc

    def getGroupDesc(self) -> str:
        """What the user has said about the group."""
        return self._desc

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc
    group_name = property(getGroupName, setGroupName)
    group_desc = property(getGroupDesc, setGroupDesc)

    # --- names that torch had before -------------------------------------------------------------

    _allgather_base = Collectives.all_gather_single
    allgather_into_tensor_coalesced = Collectives.all_gather_single_coalesced
    _reduce_scatter_base = Collectives.reduce_scatter_single
    reduce_scatter_tensor_coalesced = Collectives.reduce_scatter_single_coalesced
    alltoall_base = Collectives.all_to_all_single

    # --- life ------------------------------------------------------------------------------------

    def set_timeout(self, timeout: timedelta) -> None:
        """From now on the timeout of every operation."""
        self._comm.timeout = timeout.total_seconds()

    _set_default_timeout = set_timeout

    def shutdown(self) -> None:
        """Leave the group: what torch calls for destroy_process_group."""
        _worlds.discard(self)
        self._comm.close()

    def abort(self) -> None:
        """Make all present and later operations of every rank of the group fail."""
        self._comm.abort()


def create_process_group(opts: Any, pg_options: Any) -> ProcessGroupJetstream:
    """What torch calls for each new group, with its ``_DistributedBackendOptions``.

    All ranks of the group take part. Raises what :func:`jetstream.init` raises, and ValueError for
    ``pg_options``, which there are none of.
    """
    if pg_options is not None:
        raise ValueError(
            f"pg_options is a {type(pg_options).__name__}: the jetstream backend has none; see the "
            "environment variables JETSTREAM_*"
        )
    ranks = opts.global_ranks_in_group
    return ProcessGroupJetstream(opts.store, opts.group_rank, opts.group_size, opts.timeout, ranks)
