"""All-reduce of sparse tensors, as gloo has it: the gradients of sparse embeddings under DDP.

Every rank gathers the indices and values of all and adds them up in rank order, so the result is
the same on all ranks. That is the algorithm of torch's gloo (ProcessGroupGloo.cpp).
"""

from __future__ import annotations

import torch

from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, MismatchError

__all__ = ["sparse_all_reduce"]


def sparse_all_reduce(
    comm: Communicator, tensor: torch.Tensor, op: str, timeout: float | None
) -> None:
    """Add up the sparse COO tensor of every rank, in place; coalesced afterwards.

    Shape and dtype are the same on all ranks, the number of elements is not. Raises ArgumentError
    for other reductions than a sum, MismatchError.
    """
    if op != "sum":
        raise ArgumentError(f"the reduction of sparse tensors is {op}: only sum")
    own = tensor.detach().coalesce()
    count = own.indices().shape[1]
    facts = torch.tensor([count, own.sparse_dim(), hash(tuple(own.shape))], device="cpu")
    everyones = torch.empty(comm.size, 3, dtype=torch.int64, device="cpu")
    comm.all_gather(facts, out=everyones.reshape(-1), timeout=timeout)
    if not everyones[:, 1:].eq(facts[1:]).all():
        raise MismatchError(
            f"all_reduce of sparse tensors: shapes differ, it is {tuple(own.shape)} with "
            f"{own.sparse_dim()} sparse dimensions on rank {comm.rank}"
        )
    counts: list[int] = everyones[:, 0].tolist()
    indices = _gather_rows(comm, own.indices().t(), counts, timeout)
    values = _gather_rows(comm, own.values(), counts, timeout)
    total = torch.sparse_coo_tensor(indices.t(), values, own.shape, device="cpu").coalesce()
    with torch.no_grad():
        tensor.copy_(total)  # not its detach(), which would be given the elements alone


def _gather_rows(
    comm: Communicator, rows: torch.Tensor, counts: list[int], timeout: float | None
) -> torch.Tensor:
    """The rows of all ranks, one rank after another; rank r has ``counts[r]`` of them."""
    gathered = torch.empty((sum(counts), *rows.shape[1:]), dtype=rows.dtype, device="cpu")
    width = gathered[:1].numel() if gathered.shape[0] else 0
    if gathered.numel():
        comm.all_gather(
            rows.contiguous().reshape(-1),
            out=gathered.reshape(-1),
            counts=[count * width for count in counts],
            timeout=timeout,
        )
    return gathered
