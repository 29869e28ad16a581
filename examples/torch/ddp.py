"""Data-parallel training with torch's DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/torch/ddp.py
    torchrun --nproc-per-node 2 examples/torch/ddp.py --backend gloo
    jetstream run -n 2 examples/torch/ddp.py --compare

Every rank has the whole model and its own part of each batch; all-reduces average the gradients
while the backward pass goes on. The model learns to continue a text, byte by byte. With --compare
two models with the same weights see the same text, one by gloo and one by jetstream, in turn.

Exit status: 1 when their losses are not equal, 2 when torch is missing.
"""

from __future__ import annotations

import sys
from typing import Any

from ranks import join
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import parse_arguments, train


def wrap(model: nn.Module, group: Any) -> nn.Module:
    """All that a program does to become data-parallel."""
    return DistributedDataParallel(model, process_group=group)


def main() -> int:
    arguments = parse_arguments(__doc__)
    return 0 if train(join(), arguments, {"DDP": wrap}) else 1


if __name__ == "__main__":
    sys.exit(main())
