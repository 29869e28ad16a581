"""Symmetric memory as tensors: operations of the ranks of one host read it where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from jetstream.arrays import Array

__all__ = ["empty", "zeros"]


def empty(
    *size: int | Sequence[int], dtype: torch.dtype | None = None, group: Any = None
) -> torch.Tensor:
    """Make a tensor in memory that all ranks of the host share; its values are undefined.

    ``size`` as in ``torch.empty``: numbers, or one sequence of them. ``dtype``: torch's default
    one, or any other whose elements are whole bytes. ``group``: a process group of this backend,
    the default one where it is None. Each rank makes its own, in any order. The memory goes back
    with the last tensor that has its storage, which cannot be resized. docs/symmetric-memory.md
    says when it pays.

    Raises ValueError for a group of another backend, ArgumentError (a ValueError), OutOfMemoryError
    (a MemoryError).
    """
    return _new(_communicator(group).empty, size, dtype)


def zeros(
    *size: int | Sequence[int], dtype: torch.dtype | None = None, group: Any = None
) -> torch.Tensor:
    """Make a tensor as ``empty`` does, filled with zeros."""
    return _new(_communicator(group).zeros, size, dtype)


def _communicator(group: Any) -> Any:
    found = dist.distributed_c10d._get_default_group() if group is None else group
    comm = getattr(found, "communicator", None)
    if comm is None and isinstance(found, dist.ProcessGroup):  # one of several backends
        comm = getattr(found._get_backend(torch.device("cpu")), "communicator", None)
    if comm is None:
        backend = dist.get_backend(found) if isinstance(found, dist.ProcessGroup) else repr(found)
        raise ValueError(f"symmetric memory is that of a group of jetstream, not of {backend}")
    return comm


def _new(
    make: Callable[[int, str], Array], size: Sequence[Any], dtype: torch.dtype | None
) -> torch.Tensor:
    element = dtype or torch.get_default_dtype()
    like = torch.empty(*size, dtype=element, device="meta")  # it also says what is no shape
    memory = torch.from_numpy(make(like.nbytes, "uint8"))
    # Not a view of the bytes: autograd would follow it to them.
    tensor = torch.empty(0, dtype=element, device="cpu")
    return tensor.set_(memory.untyped_storage(), 0, like.shape, like.stride())
