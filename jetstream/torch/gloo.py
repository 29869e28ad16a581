"""jetstream in the place of gloo, for programs that name gloo themselves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.constants import default_pg_timeout

from jetstream.torch.process_group import ProcessGroupJetstream

__all__ = ["ProcessGroupStandIn", "install_as_gloo"]

_BACKEND = "gloo"
#: What torch had before, while jetstream stands in.
_replaced: list[Any] = []


class _EitherKind(type(dist.ProcessGroup)):  # type: ignore[misc]
    """torch asks of a group whether it is gloo's; those made before, or elsewhere, still are."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or any(
            isinstance(instance, real) for real in _replaced
        )


class ProcessGroupStandIn(ProcessGroupJetstream, metaclass=_EitherKind):
    """A process group of jetstream that torch makes where it would make one of gloo.

    torch makes it in steps, as it does with its own: the constructor, then ``options`` with the
    ranks of the group, then its name, with which the ranks come together.

    ``dist.get_backend`` says "gloo", since torch goes by the name that the program gave, and so do
    profiles. ``name()`` and ``getBackendName()`` say "jetstream": behind the other name DDP would
    look for an object of gloo's C++ class.
    """

    range_prefix = _BACKEND

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: timedelta = default_pg_timeout,
        enable_reconfigure: bool = False,
    ) -> None:
        """``enable_reconfigure``: ValueError if true, since ranks cannot be exchanged here."""
        if enable_reconfigure:
            raise ValueError("a group of jetstream cannot be reconfigured")
        dist.ProcessGroup.__init__(self, rank, size)
        self._opening: Any = (store, rank, size, timeout)
        self.options = SimpleNamespace(
            backend=_BACKEND, _timeout=timeout, global_ranks_in_group=[], group_name=""
        )

    def setGroupName(self, name: str) -> None:
        """Called once by torch."""
        super().setGroupName(name)
        if self._opening is not None:
            store, rank, size, timeout = self._opening
            self._opening = None
            self._open(store, rank, size, timeout, self.options.global_ranks_in_group)

    _set_group_name = setGroupName
    group_name = property(ProcessGroupJetstream.getGroupName, setGroupName)

    def _set_sequence_number_for_group(self) -> None:
        """Called by torch 2.13 and earlier, whose backends agree on a number there."""


def install_as_gloo() -> Callable[[], None]:
    """Have torch use jetstream wherever a program asks for gloo; returns what undoes that.

    ::

        import jetstream.torch
        jetstream.torch.install_as_gloo()
        dist.init_process_group("gloo")      # in the program, or in a framework that it uses

    To be called in every process, before its first process group. It holds for
    ``init_process_group("gloo")``, ``new_group(backend="gloo")``, ``DeviceMesh``, "cpu:gloo", and
    for the CPU where no backend is named; also for calls which torch only has for gloo, such as
    ``dist.monitored_barrier``.

    It does not hold for process groups that there are already, for programs that construct
    ``torch.distributed.ProcessGroupGloo`` themselves, and for what torch does with gloo inside
    other backends. A group "cpu:gloo,cuda:nccl" has no nccl then: what stands in for gloo is the
    whole group.

    Groups that have been made stay as they are when it is undone. Further calls do nothing, and
    what they return undoes it too. Raises ImportError where there is no torch, RuntimeError where
    torch has no gloo whose place could be taken.
    """
    if not dist.is_gloo_available():
        raise RuntimeError("this torch has no gloo: name the backend jetstream instead")
    if not _replaced:
        _replaced.append(distributed_c10d.ProcessGroupGloo)
        distributed_c10d.ProcessGroupGloo = ProcessGroupStandIn
    return _uninstall


def _uninstall() -> None:
    if _replaced:
        distributed_c10d.ProcessGroupGloo = _replaced.pop()
