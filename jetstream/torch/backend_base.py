"""The adapter for groups shared with other backends: "cpu:jetstream,cuda:nccl".

Needs a torch whose Backend can be subclassed in Python (PyBackend.hpp; seen in torch 2.15). There
the group is torch's own; it takes every call through its dispatcher to the backend of the tensors'
device. What a caller gets is a Work of torch around ours that only passes on ``wait`` and
``get_future``: ``is_completed`` is always False, and a receive from any rank does not tell whose
message it was.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d

from jetstream.torch.group import Group, check_no_options

__all__ = ["BackendJetstream", "create_backend", "is_shared"]

_Base = getattr(dist, "BackendBase", _distributed_c10d.Backend)


class BackendJetstream(Group, _Base):  # type: ignore[misc,valid-type]
    """What carries out a process group's operations on tensors of the CPU."""

    # Asked for by C++, whose own answers, inherited, would ask for them again.
    supports_coalescing = supports_splitting = supports_shrinking = False
    supports_reconfigure = supports_window = False
    supports_time_estimate = _supports_time_estimate = False  # in torch 2.14, in 2.15

    def __init__(self, opts: Any) -> None:
        """``opts``: torch's ``_DistributedBackendOptions``. All ranks of the group take part.

        Raises what :func:`jetstream.init` raises.
        """
        _Base.__init__(self, opts.group_rank, opts.group_size)
        ranks = opts.global_ranks_in_group
        self._open(opts.store, opts.group_rank, opts.group_size, opts.timeout, ranks)
        if self.flight is not None:
            self.flight.name = str(opts.group_id)

    allreduce_sparse = Group.allreduce

    @property
    def options(self) -> Any:
        """The backend's ``Options``: name, timeout, ranks."""
        seconds = self._comm.timeout
        options = _distributed_c10d.Backend.Options("jetstream", timedelta(seconds=seconds))
        options.global_ranks_in_group = list(self.global_ranks)
        return options

    def monitored_barrier(self, opts: Any = None, wait_all_ranks: bool = False) -> None:
        """Barrier that names who has not come; raises RuntimeError."""
        timeout = opts.timeout if opts is not None else timedelta(0)
        super().monitored_barrier(timeout if timeout > timedelta(0) else None, wait_all_ranks)


def is_shared(opts: Any) -> bool:
    """Whether the group that torch makes with ``opts`` has a backend besides this one.

    torch does not say so. It has set what backend stands for the group, which is one for another
    device than the CPU where there is any, and has registered those made before this one. Of two
    backends that torch does not know by name, the second is not seen if this one comes first.
    """
    group = getattr(opts, "process_group", None)  # None: a torch that cannot share groups
    return group is not None and (bool(group._device_types) or group.name() != "custom")


def create_backend(opts: Any, pg_options: Any) -> BackendJetstream:
    """What torch calls for each new group of several backends.

    Raises what :func:`jetstream.init` raises, and ValueError for ``pg_options``.
    """
    check_no_options(opts, pg_options)
    return BackendJetstream(opts)
