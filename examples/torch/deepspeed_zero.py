"""Training with DeepSpeed's ZeRO, stage 1, 2 or 3, through jetstream or gloo.

    DS_BUILD_OPS=0 pip install deepspeed
    export DS_ACCELERATOR=cpu
    torchrun --nproc-per-node 2 examples/torch/deepspeed_zero.py --stage 3
    torchrun --nproc-per-node 2 examples/torch/deepspeed_zero.py --stage 3 --backend gloo

Stage 1 splits the optimizer's state over the ranks, stage 2 the gradients too, stage 3 the
parameters as well: then each layer is gathered before its use, which is where the messages are.

Rank 0 prints the loss of each step to the last bit, the mean over all ranks, a digest of the
trained parameters, and the time of a step. Two ranks add two numbers, whose order does not matter:
there both backends print the same.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import warnings

import deepspeed
import torch
import torch.distributed as dist
from torch import nn


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # the ranks are the parallelism
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of DeepSpeed's calls
    # ZeRO does not use what init_distributed would compile here for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=arguments.backend, auto_mpi_discovery=False)
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)  # the same weights on all ranks
    model = nn.Sequential(
        nn.Embedding(64, 48), nn.Flatten(), nn.Linear(8 * 48, 96), nn.GELU(), nn.Linear(96, 64)
    )
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
        config={
            "train_micro_batch_size_per_gpu": 8,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": {
                "stage": arguments.stage,
                "reduce_bucket_size": 20000,  # several buckets, though the model is small
                "stage3_param_persistence_threshold": 0,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1000000,
        },
    )

    samples = torch.Generator().manual_seed(1 + rank)
    began = time.perf_counter()
    for step in range(arguments.steps):
        words = torch.randint(64, (8, 8), generator=samples)
        loss = nn.functional.cross_entropy(engine(words), words.sum(1) % 64)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        mean /= size
        if rank == 0:
            print(f"step {step}: loss {mean.item():.4f} = {mean.item().hex()}")
    took = (time.perf_counter() - began) / arguments.steps

    digest = hashlib.sha256()
    for parameter in model.parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=arguments.stage == 3):
            digest.update(parameter.detach().float().numpy().tobytes())
    digests: list[str] = [""] * size
    dist.all_gather_object(digests, digest.hexdigest()[:16])
    assert len(set(digests)) == 1, "the ranks have trained different models"
    if rank == 0:
        print(f"parameters {digests[0]}")
        where = f"{dist.get_backend()}, ZeRO-{arguments.stage}, {size} ranks"
        print(f"{where}: {took * 1e3:.2f} ms per step")
    engine.destroy()
    dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", default="jetstream", help="(%(default)s)")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=3, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
