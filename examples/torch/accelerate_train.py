"""Data-parallel training with Hugging Face accelerate, through jetstream or gloo.

    pip install accelerate
    torchrun --nproc-per-node 2 examples/torch/accelerate_train.py
    torchrun --nproc-per-node 2 examples/torch/accelerate_train.py --backend gloo
    torchrun --nproc-per-node 2 examples/torch/accelerate_train.py --way as-gloo

On the CPU accelerate knows two backends by name, mpi and gloo, and refuses any other one. But it
leaves a process group alone that is there already, so `--way init`, the default, makes it first.
`--way as-gloo` lets jetstream answer to the name gloo instead, for programs whose Accelerator is
made somewhere out of reach.

Rank 0 prints the loss of each step to the last bit, the mean over all ranks, and the time of a
step. Two ranks add two numbers, whose order does not matter: there both backends print the same.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # the ranks are the parallelism
    if arguments.way == "as-gloo":
        import jetstream.torch

        jetstream.torch.install_as_gloo()
    else:
        dist.init_process_group(arguments.backend)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)  # the same weights and samples on all ranks
    samples = torch.randn(512, 32)
    targets = samples @ torch.randn(32, 1) + samples.square().sum(1, keepdim=True) / 8
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = DataLoader(TensorDataset(samples, targets), batch_size=16, shuffle=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    began = time.perf_counter()
    steps = 0
    for _ in range(arguments.epochs):
        for inputs, expected in batches:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), expected)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                optimizer.zero_grad()
            mean = accelerator.reduce(loss.detach(), reduction="mean")
            accelerator.print(f"step {steps}: loss {mean.item():.4f} = {mean.item().hex()}")
            steps += 1
    took = (time.perf_counter() - began) / steps

    seen = accelerator.gather_for_metrics(torch.tensor([accelerator.process_index]))
    assert seen.tolist() == list(range(accelerator.num_processes))
    accelerator.print(
        f"{dist.get_backend()}, {accelerator.num_processes} ranks: {took * 1e3:.2f} ms per step"
    )
    accelerator.end_training()  # ends the process group too


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--way", choices=("init", "as-gloo"), default="init")
    parser.add_argument("--backend", default="jetstream", help="of --way init (%(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=2, help="times through the data (%(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
