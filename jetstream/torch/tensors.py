"""Which tensors the backend takes, and what of them it hands to a communicator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jetstream.tensors import check_memory, check_room

__all__ = ["Staging", "check_equal", "check_tensor", "gathered", "is_sparse", "joined", "only"]


def check_tensor(tensor: torch.Tensor, name: str = "tensor") -> None:
    """Raise unless ``tensor`` is a dense one in the memory of the CPU.

    Raises TypeError for what is no tensor, ArgumentError otherwise, with the reason.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: a torch.Tensor is needed")
    check_memory(tensor, name)


def is_sparse(tensor: Any) -> bool:
    """Whether it is in COO format, which an all-reduce alone takes."""
    return getattr(tensor, "layout", None) is torch.sparse_coo


def only(tensors: Sequence[Any], name: str) -> Any:
    """The one element of a list, which c10d has for several devices. Raises ValueError."""
    if len(tensors) != 1:
        raise ValueError(f"{name}: a list of one is needed, this has {len(tensors)}")
    return tensors[0]


def check_equal(tensors: Sequence[torch.Tensor], like: torch.Tensor, what: str) -> None:
    """Raise ValueError unless all have as many elements as ``like``."""
    sizes = [one.numel() for one in tensors]
    if any(size != like.numel() for size in sizes):
        raise ValueError(f"{what} has tensors of {sizes} elements: all must have {like.numel()}")


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All ``tensors`` as one flat tensor, if they lie one after another in memory; else None."""
    first = tensors[0]
    if any(one.dtype is not first.dtype or not _is_plain(one) for one in tensors):
        return None
    end = first.data_ptr()
    for one in tensors:
        if one.data_ptr() != end:
            return None
        end += one.nbytes
    storage = first.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():  # the next ones are another allocation's
        return None
    count = sum(one.numel() for one in tensors)
    return first.detach().as_strided((count,), (1,))


class Staging:
    """Contiguous stand-ins of the tensors of a call, where they are not contiguous themselves."""

    def __init__(self) -> None:
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def source(self, tensor: torch.Tensor, name: str = "input") -> torch.Tensor:
        """What is read: contiguous."""
        check_tensor(tensor, name)
        return _plain(tensor).contiguous()

    def target(
        self, tensor: torch.Tensor, name: str = "output", *, is_read: bool = False
    ) -> torch.Tensor:
        """What is written, and before, with ``is_read``, also read."""
        check_tensor(tensor, name)
        tensor = tensor.detach()
        if _is_plain(tensor):
            return tensor
        check_room(tensor, name)
        if is_read:
            buffer = _plain(tensor).clone(memory_format=torch.contiguous_format)
        else:
            buffer = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        self._copies.append((tensor, buffer))
        return buffer

    def parts(self, tensors: Sequence[torch.Tensor], name: str = "output") -> torch.Tensor:
        """What is written into several tensors, one after another: flat."""
        for tensor in tensors:
            check_tensor(tensor, name)
            check_room(tensor, name)
        flat = joined(tensors)
        if flat is None:
            count, dtype = sum(one.numel() for one in tensors), tensors[0].dtype
            flat = torch.empty(count, dtype=dtype, device="cpu")
            starts = flat.split([one.numel() for one in tensors])
            for one, part in zip(tensors, starts, strict=True):
                self._copies.append((one.detach(), part.view(one.shape)))
        return flat

    @property
    def has_copies(self) -> bool:
        """Whether anything is left to do when the call is complete."""
        return bool(self._copies)

    def finish(self) -> None:
        """Copy back what has been written."""
        for tensor, buffer in self._copies:
            # The mode is of a thread, and this may be another one than that of the call.
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                tensor.copy_(buffer)


def gathered(tensors: Sequence[torch.Tensor], name: str = "input") -> torch.Tensor:
    """What is read from several tensors, one after another: flat."""
    for tensor in tensors:
        check_tensor(tensor, name)
    flat = joined(tensors)
    if flat is None:
        flat = torch.cat([_plain(one).reshape(-1) for one in tensors])
    return flat


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its memory is what it says: in order, and neither conjugated nor negated."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg()
