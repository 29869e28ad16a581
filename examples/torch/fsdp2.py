"""Training with fully sharded parameters: torch's fully_shard (FSDP2).

    torchrun --nproc-per-node 2 examples/torch/fsdp2.py
    torchrun --nproc-per-node 2 examples/torch/fsdp2.py --backend gloo
    jetstream run -n 2 examples/torch/fsdp2.py --compare --with-ddp

Every rank holds a part of every parameter. A layer's parameters are gathered before it computes,
its gradients are added up and shared out after it: all-gather and reduce-scatter. Otherwise the
program is that of ddp.py; with --with-ddp both ways of training run side by side, from the same
weights.

Exit status: 1 when their losses are not equal, 2 when torch is missing.
"""

from __future__ import annotations

import sys
from typing import Any

import ddp
from charmodel import CharModel
from ranks import join
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from training import Wrap, parse_arguments, train


def wrap(model: nn.Module, group: Any) -> nn.Module:
    """Each block is a unit, gathered when its turn comes; what is left is one more."""
    assert isinstance(model, CharModel)
    mesh = DeviceMesh.from_group(group, "cpu")
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main() -> int:
    arguments = parse_arguments(__doc__, with_ddp="train a model by DDP as well, and compare")
    ways: dict[str, Wrap] = {"DDP": ddp.wrap} if arguments.with_ddp else {}
    return 0 if train(join(), arguments, ways | {"FSDP2": wrap}) else 1


if __name__ == "__main__":
    sys.exit(main())
