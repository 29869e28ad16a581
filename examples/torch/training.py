"""How ddp.py and fsdp2.py train: the loop, the table of losses, what is compared in the end.

They differ in one function, `wrap`, which spreads a model over the ranks of a process group.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from charmodel import CharModel, load_text, sample_batch
from ranks import Ranks, backends_of, new_parser
from torch import nn

#: Spreads a model over the ranks of a process group.
Wrap = Callable[[nn.Module, Any], nn.Module]

#: How far the losses of two ways of training may be apart, relative to the loss. With two ranks
#: there is one sum, a + b, whoever computes it: the losses have the same bits. With more ranks the
#: order of additions differs, and what begins in the last bit grows from step to step.
TOLERANCE = 1e-3


@dataclass
class Contestant:
    """A model in training, and the process group that it is spread over."""

    name: str
    group: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def step(self, text: torch.Tensor, target: torch.Tensor) -> None:
        """One step of training; the loss is the mean over all ranks."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model(text, target)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        total = loss.detach()
        dist.all_reduce(total, group=self.group)
        self.losses.append(total.item() / dist.get_world_size(self.group))


def train(ranks: Ranks, arguments: argparse.Namespace, ways: dict[str, Wrap]) -> bool:
    """Train a model for each backend and way, step by step in turn; whether the losses are equal.

    All start with the same weights and see the same text.
    """
    text = load_text()
    backends = backends_of(arguments)
    with ranks.process_group(backends[0]):
        groups = {backends[0]: dist.group.WORLD}
        groups |= {name: dist.new_group(backend=name) for name in backends[1:]}
        contestants = [
            new_contestant(f"{way} {backend}", wrap, group, arguments)
            for way, wrap in ways.items()
            for backend, group in groups.items()
        ]
        parameters = sum(x.numel() for x in CharModel(*shape_of(arguments)).parameters())
        ranks.say(f"{parameters / 1e6:.2f} M parameters, {len(text)} bytes, {ranks.size} rank(s)")
        ranks.say("step", *(f"{contestant.name:>16}" for contestant in contestants))
        for step in range(arguments.steps):
            batch = sample_batch(text, ranks.rank, step, arguments.batch, arguments.window)
            for contestant in contestants:
                contestant.step(*batch)
            if step % arguments.every == 0 or step == arguments.steps - 1:
                ranks.say(f"{step:4}", *(f"{each.losses[-1]:16.8f}" for each in contestants))
        report(ranks, contestants)
        return are_equal(ranks, contestants)


def shape_of(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Layers, width and window of the model."""
    return arguments.layers, arguments.width, arguments.window


def new_contestant(name: str, wrap: Wrap, group: Any, arguments: argparse.Namespace) -> Contestant:
    """A fresh model with the weights that all of them have."""
    torch.manual_seed(1)
    model = wrap(CharModel(*shape_of(arguments)), group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Contestant(name, group, model, optimizer)


def report(ranks: Ranks, contestants: Sequence[Contestant]) -> None:
    """How fast each was; the first steps, which make buffers, are left out."""
    medians = {}
    for contestant in contestants:
        settled = contestant.seconds[len(contestant.seconds) // 10 :]
        medians[contestant.name] = torch.tensor(settled).median().item()
        ranks.say(f"{contestant.name}: {1 / medians[contestant.name]:.1f} steps/s (median)")
    for name, median in medians.items():
        rival = name.replace("jetstream", "gloo")
        if rival != name and rival in medians:
            ranks.say(f"{name}: {medians[rival] / median:.2f} times as fast as {rival}")


def are_equal(ranks: Ranks, contestants: Sequence[Contestant]) -> bool:
    """Compare all losses with those of the first contestant, step by step."""
    first = torch.tensor(contestants[0].losses, dtype=torch.float64)
    holds = True
    for contestant in contestants[1:]:
        losses = torch.tensor(contestant.losses, dtype=torch.float64)
        same = int((losses == first).sum())
        furthest = ((losses - first).abs() / first).max().item()
        is_equal = furthest <= TOLERANCE
        rest = f", the others differ by {furthest:.1e} at most, allowed {TOLERANCE:.0e}"
        ranks.say(
            "PASS " if is_equal else "FAIL ",
            f"{contestant.name} and {contestants[0].name}: {same} of {len(first)} losses have the "
            f"same bits{rest if same < len(first) else ''}",
        )
        holds &= is_equal
    return holds


def parse_arguments(description: str | None, **flags: str) -> argparse.Namespace:
    """The command line of a training program; `flags` are its own, each with its help."""
    parser = new_parser(description)
    for name, text in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="steps (60)")
    parser.add_argument("--every", type=int, default=5, metavar="N", help="losses printed (5)")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="layers (4)")
    parser.add_argument(
        "--width", type=int, default=128, metavar="N", help="of a layer, a multiple of 32 (128)"
    )
    parser.add_argument("--window", type=int, default=64, metavar="N", help="characters seen (64)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="windows of a rank (8)")
    arguments = parser.parse_args()
    for name in ("steps", "every", "layers", "width", "window", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.width % 32:
        parser.error("--width must be a multiple of 32")
    return arguments
