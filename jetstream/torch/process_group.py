"""The adapter for groups of jetstream alone: a Python subclass of ``dist.ProcessGroup``.

torch takes what a backend's function returns as the whole group if it is a ProcessGroup. What C++
calls goes through its trampolines (PyProcessGroup.hpp), the rest straight to these methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from jetstream.torch.group import Group, check_no_options

__all__ = ["ProcessGroupJetstream", "create_process_group"]


class ProcessGroupJetstream(Group, dist.ProcessGroup):  # type: ignore[misc]
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

    # --- identity: torch keeps it in C++ backends, of which there are none here ------------------

    _name = ""
    _desc = "undefined"

    def name(self) -> str:
        """The name of the backend."""
        return "jetstream"

    def setGroupName(self, name: str) -> None:
        """Called once by torch."""
        self._name = name
        if self.flight is not None:
            self.flight.name = name

    def getGroupName(self) -> str:
        """The name by which torch finds the group."""
        return self._name

    def setGroupDesc(self, desc: str) -> None:
        """Called once by torch."""
        self._desc = desc
        if self.flight is not None:
            self.flight.desc = desc

    def getGroupDesc(self) -> str:
        """What the user has said about the group."""
        return self._desc

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc
    group_name = property(getGroupName, setGroupName)
    group_desc = property(getGroupDesc, setGroupDesc)

    # --- torch also asks the backends of a group: it is its own --------------------------------

    supports_splitting = False
    supports_time_estimate = _supports_time_estimate = False

    @property
    def _device_types(self) -> list[torch.device]:
        """The devices whose tensors it takes: none until torch has entered the group.

        Before, torch 2.15 would record all groups that have any, and needs a backend in C++ for it.
        """
        entered = self in dist.distributed_c10d._world.pg_map
        return [torch.device("cpu")] if entered else []

    def _get_backend(self, device: Any) -> ProcessGroupJetstream:
        """The backend for a kind of device. Raises RuntimeError where there is none."""
        kind = torch.device(device).type
        if kind != "cpu":
            raise RuntimeError(f"No backend type associated with device type {kind}")
        return self

    get_backend = _get_backend

    def supports_tensor_alloc(self, device: Any) -> bool:
        """Whether FSDP gets its buffers here: no, it makes and drops them all the time."""
        return False

    # --- names that torch had before -------------------------------------------------------------

    _allgather_base = Group.all_gather_single
    allgather_into_tensor_coalesced = Group.all_gather_single_coalesced
    _reduce_scatter_base = Group.reduce_scatter_single
    reduce_scatter_tensor_coalesced = Group.reduce_scatter_single_coalesced
    alltoall_base = Group.all_to_all_single


def create_process_group(opts: Any, pg_options: Any) -> ProcessGroupJetstream:
    """What torch calls for each new group, with its ``_DistributedBackendOptions``.

    All ranks of the group take part. Raises what :func:`jetstream.init` raises, and ValueError for
    ``pg_options``, which there are none of.
    """
    check_no_options(opts, pg_options)
    ranks = opts.global_ranks_in_group
    return ProcessGroupJetstream(opts.store, opts.group_rank, opts.group_size, opts.timeout, ranks)
