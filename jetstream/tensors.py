"""CPU tensors of torch, seen as NumPy arrays that share their memory.

Not by way of ``tensor.numpy()``: torch refuses to resize a tensor's storage ever after, and
frameworks that shard parameters do just that. A tensor that requires gradients is taken without
them, as by torch.distributed. Nothing here imports torch: whoever has a tensor has done so.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from jetstream.dtypes import DType
from jetstream.errors import ArgumentError
from jetstream.tensor_heads import learn

__all__ = [
    "Array",
    "check_memory",
    "check_reducible",
    "check_room",
    "check_same_dtype",
    "copy_plain",
    "is_plain",
    "is_tensor",
    "land",
    "land_twin",
    "new_tensor",
    "plain_twin",
    "share_tensor",
]

Array = NDArray[Any]

_LEARNING_TRIES = 8  # the first tensors may come while a mode of torch makes other ones
_BY_NAME = {dtype.label: dtype.numpy for dtype in DType}
_BY_ITEMSIZE = {dtype.itemsize: dtype.numpy for dtype in (DType.UINT8, DType.UINT16, DType.UINT32)}
_dtypes: dict[Any, tuple[np.dtype[Any], bool]] = {}
_tries_left = _LEARNING_TRIES


class _Memory:
    """Memory of a tensor, which lives as long as this."""

    __slots__ = ("__array_interface__", "_storage")

    def __init__(self, x: Any, address: int) -> None:
        itemsize = x.element_size()
        self._storage = x.untyped_storage()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{itemsize}",
            "shape": tuple(x.shape),
            "strides": tuple(stride * itemsize for stride in x.stride()),
            "data": (address, False),
        }


def is_tensor(x: object) -> bool:
    """Whether it is a tensor of torch, of whatever kind."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "Tensor", None)
    return kind is not None and isinstance(x, kind)


def is_plain(x: Any, name: str = "tensor") -> bool:
    """Whether the tensor's memory holds its elements one after another, as they are.

    Raises ArgumentError, with the reason, for tensors that have no such memory at all.
    """
    check_memory(x, name)
    return bool(x.is_contiguous() and not x.is_conj() and not x.is_neg())


def share_tensor(x: Any, name: str) -> Array:
    """See the tensor as an array of any layout that shares its memory.

    Element types that the data plane does not know become unsigned integers of their width, which
    ``check_reducible`` keeps from being added up. Raises ArgumentError.
    """
    check_memory(x, name)
    if x.is_conj() or x.is_neg():
        raise ArgumentError(
            f"{name} is a view that is still to be conjugated or negated: pass "
            "x.resolve_conj().resolve_neg()"
        )
    return _view(x, name)


def copy_plain(x: Any, *, result: str = "") -> Array:
    """The tensor's elements, one after another, in memory of their own.

    ``result``: the name of a tensor to which a result will be taken; ArgumentError if it cannot.
    """
    if result:
        check_room(x, result)
    copy = x.detach().resolve_conj().resolve_neg()
    return np.array(_view(copy, "tensor"), order="C")


def plain_twin(x: Any, name: str) -> Any:
    """A plain tensor with the elements of one that is not, to which a result will be taken.

    None for plain ones, and for what is no tensor. Raises ArgumentError.
    """
    if not is_tensor(x) or is_plain(x, name):
        return None
    check_room(x, name)
    return x.detach().resolve_conj().resolve_neg().contiguous()


def land_twin(twin: Any, original: Any) -> Any:
    """Take a result in a tensor of the same type and shape to the caller's, which is returned."""
    import torch

    guard = torch.inference_mode() if original.is_inference() else torch.no_grad()
    with guard:
        original.copy_(twin)
    return original


def land(array: Array, original: Any) -> Any:
    """Take a result in ``array`` to the caller's tensor, where that is not the same memory.

    Returns ``original``.
    """
    if type(original) is np.ndarray or not is_tensor(original) or is_plain(original):
        return original
    import torch

    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return land_twin(flat.view(original.dtype).view(original.shape), original)


def new_tensor(x: Any, shape: tuple[int, ...]) -> Any:
    """A plain tensor of another shape, with the element type of ``x``; its values are undefined."""
    return x.new_empty(shape)


def check_reducible(x: Any) -> None:
    """Raise ArgumentError for a tensor whose elements cannot be combined here."""
    if is_tensor(x) and not _element_type(x, "x")[1]:
        raise ArgumentError(
            f"no reduction is defined for {x.dtype}, which can only be moved: convert it to one of "
            f"{', '.join(_BY_NAME)}"
        )


def check_room(x: Any, name: str) -> None:
    """Raise ArgumentError for a tensor that cannot take a result, having too little memory.

    The text has the words in which torch refuses operations in place.
    """
    if _may_overlap(x):
        raise ArgumentError(
            f"{name} has elements that share memory (strides {tuple(x.stride())} for shape "
            f"{tuple(x.shape)}), so it cannot take a result: more than one element of the "
            f"written-to tensor refers to a single memory location. Please pass {name}.clone()"
        )


def check_same_dtype(x: Any, out: Any) -> None:
    """Raise ArgumentError for two tensors whose types have the same width, and are not one."""
    if is_tensor(x) and is_tensor(out) and x.dtype != out.dtype:
        raise ArgumentError(f"out has dtype {out.dtype}, the input {x.dtype}")


def check_memory(x: Any, name: str) -> None:
    """Raise ArgumentError unless the tensor has memory of its own that a CPU can read."""
    import torch

    kind = type(x)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        dispatch = getattr(kind, "__torch_dispatch__", None)
        if dispatch is not torch.Tensor.__torch_dispatch__:
            raise ArgumentError(
                f"{name} is a {kind.__name__}, which stands for tensors elsewhere: pass the tensor "
                "that this rank has of it (of a DTensor: x.to_local())"
            )
    if x.device.type == "meta":
        raise ArgumentError(f"{name} is on device meta: it has no values")
    if x.device.type != "cpu":
        raise ArgumentError(
            f"{name} is a tensor on device {x.device}: only CPU tensors, call .cpu() first"
        )
    if x.is_nested:
        raise ArgumentError(f"{name} is a nested tensor: pass its parts, x.unbind()")
    if x.layout is not torch.strided:
        raise ArgumentError(f"{name} has layout {x.layout}: pass x.to_dense()")
    if x.is_quantized:
        raise ArgumentError(
            f"{name} is quantized ({x.dtype}): pass x.int_repr(), or x.dequantize()"
        )
    _learn_heads(torch)


def _learn_heads(torch: Any) -> None:
    """Once a tensor has come, the next one may take the short way."""
    global _tries_left
    if _tries_left > 0:
        _tries_left = 0 if learn(torch) else _tries_left - 1


def _view(x: Any, name: str) -> Array:
    dtype, _ = _element_type(x, name)
    if x.numel() == 0:
        return np.empty(tuple(x.shape), dtype)
    try:
        address = x.data_ptr()
    except RuntimeError as error:
        _refuse(x, name, error)
    storage = x.untyped_storage()
    if address == 0 or storage.nbytes() == 0:
        _refuse(x, name, "it has no storage")
    spans = ((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    if (x.storage_offset() + sum(spans) + 1) * x.itemsize > storage.nbytes():
        _refuse(x, name, f"it reaches beyond its storage of {storage.nbytes()} bytes")
    array: Array = np.asarray(_Memory(x, address)).view(dtype)
    return array


def _refuse(x: Any, name: str, why: object) -> NoReturn:
    reason = str(why).partition("\n")[0]
    raise ArgumentError(f"{name}: the memory of the {type(x).__name__} cannot be shared: {reason}")


def _element_type(x: Any, name: str) -> tuple[np.dtype[Any], bool]:
    """The NumPy dtype that stands for the tensor's, and whether the two are the same."""
    found = _dtypes.get(x.dtype)
    if found is None:
        known = _BY_NAME.get(str(x.dtype).removeprefix("torch."))
        raw = known or _BY_ITEMSIZE.get(x.dtype.itemsize)
        if raw is None:
            raise ArgumentError(f"{name} has dtype {x.dtype}, which cannot be sent")
        found = _dtypes[x.dtype] = raw, known is not None
    return found


def _may_overlap(x: Any) -> bool:
    """Whether two elements of the tensor may lie in one place."""
    if x.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False
