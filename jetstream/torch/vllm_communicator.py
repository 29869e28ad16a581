"""What vLLM's CPU workers communicate through instead of vLLM's shared-memory operations.

Only :mod:`jetstream.vllm` has vLLM load this module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

__all__ = ["JetstreamCommunicator"]

#: CpuCommunicator takes its shared-memory operations for groups whose names begin like this.
_NAMES_WITH_SHM = ("tp", "pp")


class JetstreamCommunicator(CpuCommunicator):
    """vLLM's communicator of the CPU, with its collectives left to the process group.

    CpuCommunicator calls torch.distributed on the device group wherever it has no operations of
    its own, and those it never makes here. all_reduce, gather, all_gather, reduce_scatter, send,
    recv and broadcast then reach the group that :func:`jetstream.vllm.register` chose.
    """

    def __init__(
        self,
        cpu_group: Any,
        device: Any = None,
        device_group: Any = None,
        unique_name: str = "",
        **options: Any,
    ) -> None:
        plain = unique_name.startswith(_NAMES_WITH_SHM)
        name = f"jetstream-{unique_name}" if plain else unique_name
        super().__init__(cpu_group, device, device_group, name, **options)
        self.unique_name = unique_name
        self._waiting = dist.AllreduceOptions()  # whose reduction is the sum
        self._waiting.asyncOp = False

    def all_reduce(self, input_: Any) -> Any:
        """Add up a tensor of all ranks, in place, and return it.

        The checks that ``dist.all_reduce`` makes before it comes to the group take as long as a
        small all-reduce, and vLLM makes two of those per layer and token. torch.compile has to see
        that function, though.
        """
        if torch.compiler.is_compiling():
            return super().all_reduce(input_)
        self.device_group.allreduce([input_], self._waiting)
        return input_
