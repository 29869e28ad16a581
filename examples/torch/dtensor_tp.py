"""Tensor and sequence parallelism by DTensor, called layer by layer and through torch.compile.

    torchrun --nproc-per-node 2 examples/torch/dtensor_tp.py
    torchrun --nproc-per-node 2 examples/torch/dtensor_tp.py --backend gloo
    jetstream run -n 2 examples/torch/dtensor_tp.py --compare --compiler inductor

A stack of feed-forward layers is split with torch's parallelize_module: each rank holds some of the
columns, and between the layers some of the rows of the activations. DTensor puts in the
collectives, an all-gather before each layer and a reduce-scatter after it; torch.compile then takes
the model as one graph, with these collectives as its nodes. Rank 0 prints what a pass takes.

Exit status: 1 when a result is not that of the whole model, 2 when torch is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from ranks import Ranks, backends_of, join, new_parser, percentiles  # isort: skip

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

#: Largest difference from the whole model, relative to the largest number: another order of adding.
TOLERANCE = 1e-5


class Layer(nn.Module):
    """Norm, up, down, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def new_model(arguments: argparse.Namespace) -> nn.Sequential:
    """The whole model, the same on every rank."""
    torch.manual_seed(1)
    return nn.Sequential(*(Layer(arguments.width) for _ in range(arguments.layers)))


def split(model: nn.Sequential, size: int) -> nn.Module:
    """Spread the model over the ranks of the default process group: rows in, rows out."""
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(output_layouts=Shard(0)),
    }
    mesh = init_device_mesh("cpu", (size,))
    for layer in model:
        parallelize_module(layer, mesh, plan)
    return model


def main() -> int:
    arguments = parse_arguments()
    ranks = join()
    torch.manual_seed(2)
    x = torch.randn(ranks.size * arguments.rows, arguments.width)
    with torch.no_grad():
        whole = new_model(arguments)(x)
        holds = [run(ranks, arguments, backend, x, whole) for backend in backends_of(arguments)]
    return 0 if all(holds) else 1


def run(
    ranks: Ranks, arguments: argparse.Namespace, backend: str, x: Tensor, whole: Tensor
) -> bool:
    """Time and check the split model with one backend, without and with torch.compile."""
    torch.compiler.reset()  # graphs of another process group
    holds = True
    with ranks.process_group(backend):
        model = split(new_model(arguments), ranks.size)
        mine = x.chunk(ranks.size)[ranks.rank]
        compiled = torch.compile(model, backend=arguments.compiler, fullgraph=True)
        for name, function in (("eager", model), ("compiled", compiled)):
            ranks.say(f"{backend}, {name}: {times(function, mine, arguments.passes)} per pass")
            parts = [torch.empty_like(mine) for _ in range(ranks.size)]
            dist.all_gather(parts, function(mine))
            difference = ((torch.cat(parts) - whole).abs().max() / whole.abs().max()).item()
            is_equal = difference <= TOLERANCE
            ranks.say(
                "PASS " if is_equal else "FAIL ",
                f"{backend}, {name}: equal to the whole model within {difference:.1e} "
                f"of the largest number, allowed {TOLERANCE:.0e}",
            )
            holds &= is_equal
    return holds


def times(function: Callable[[Tensor], Tensor], x: Tensor, passes: int) -> str:
    """What a pass takes after a few to warm up."""
    elapsed_us = []
    for _ in range(passes + 3):
        start_ns = time.perf_counter_ns()
        function(x)
        elapsed_us.append((time.perf_counter_ns() - start_ns) / 1e3)
    return percentiles(elapsed_us[3:])


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--compiler",
        choices=("aot_eager", "inductor"),
        default="aot_eager",
        help="of torch.compile; inductor needs a C++ compiler and a minute (aot_eager)",
    )
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="layers (4)")
    parser.add_argument("--width", type=int, default=256, metavar="N", help="of a layer (256)")
    parser.add_argument("--rows", type=int, default=8, metavar="N", help="of a rank (8)")
    parser.add_argument("--passes", type=int, default=50, metavar="N", help="timed passes (50)")
    arguments = parser.parse_args()
    for name in ("layers", "width", "rows", "passes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
