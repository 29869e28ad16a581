"""What torch's options say about a call: the reduction, who waits, and for how long."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = [
    "NO_TIMEOUT",
    "REDOPS_BY_HASH",
    "as_async",
    "is_asynchronous",
    "is_simple",
    "redop_of",
    "root_of",
    "scale_of",
    "seconds_of",
]

_TYPES = dist.ReduceOp.RedOpType
_REDOPS = {
    _TYPES.SUM: "sum",
    _TYPES.AVG: "avg",
    _TYPES.PRODUCT: "prod",
    _TYPES.MIN: "min",
    _TYPES.MAX: "max",
    _TYPES.BAND: "band",
    _TYPES.BOR: "bor",
    _TYPES.BXOR: "bxor",
}


def _redops_by_hash() -> dict[int, str]:
    """The names by the hash of ``opts.reduceOp``, which costs a tenth of asking for its kind."""
    found: dict[int, str] = {}
    opts = dist.AllreduceOptions()
    for kind, name in _REDOPS.items():
        opts.reduceOp = dist.ReduceOp(kind)
        found[hash(opts.reduceOp)] = name
    # Only if no two have one hash, nor one of these that of a reduction that is none of these.
    premultiplied = hash(dist._make_nccl_premul_sum(1.0))
    return found if len(found) == len(_REDOPS) and premultiplied not in found else {}


REDOPS_BY_HASH = _redops_by_hash()
NO_TIMEOUT = dist.AllreduceOptions().timeout


def is_simple(opts: Any) -> bool:
    """Whether the caller waits, as long as the group says: then a communicator does it all."""
    return opts is not None and not opts.asyncOp and opts.timeout == NO_TIMEOUT


def redop_of(opts: Any) -> str:
    """The name of a reduction. Raises ValueError."""
    op = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
    kind = getattr(op, "op", op)
    name = "premul_sum" if kind == _TYPES.PREMUL_SUM else _REDOPS.get(kind)
    if name is None:
        raise ValueError(f"the jetstream backend has no reduction {getattr(kind, 'name', kind)}")
    return name


def root_of(opts: Any) -> int:
    """The rank in the group that has, or gets, what a call is about; 0 as with torch's options."""
    return 0 if opts is None else int(opts.rootRank)


def scale_of(opts: Any) -> Any:
    """The factor of PREMUL_SUM, a number; None of other reductions."""
    op: Any = opts.reduceOp if opts is not None else None
    if getattr(op, "op", op) != _TYPES.PREMUL_SUM:
        return None
    return op.factor.item() if isinstance(op.factor, Tensor) else op.factor


def seconds_of(opts: Any) -> float | None:
    """The timeout of a call; None where it has none of its own."""
    if opts is None:
        return None
    seconds: float = opts.timeout.total_seconds()
    return seconds if seconds > 0 else None


def is_asynchronous(opts: Any) -> bool:
    """Whether the caller waits elsewhere, if at all."""
    return opts is None or opts.asyncOp


def as_async(opts: Any) -> Any:
    """Options of one part of a coalesced call, which must not wait."""
    if opts is None or opts.asyncOp:
        return opts
    copy = dist.ReduceScatterOptions()
    copy.reduceOp, copy.timeout = opts.reduceOp, opts.timeout
    return copy
