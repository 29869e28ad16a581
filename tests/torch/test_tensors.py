"""Tensors of torch as arrays of a communicator: what is shared, copied, refused, remembered."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import jetstream
from jetstream._core.native import ffi, lib
from jetstream.arrays import share, share_contiguous, share_result, share_writable
from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, TruncatedError
from jetstream.tensor_heads import learn, tensor_layout
from jetstream.tensors import land

#: Types that are reduced, and those that are only moved.
REDUCED = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2"),
)
MOVED = ("complex32", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "bits8", "uint4")


def dtypes(names: tuple[str, ...]) -> list[Any]:
    return [getattr(torch, name) for name in names if hasattr(torch, name)]


def make(count: int, dtype: Any) -> Any:
    """A tensor whose bytes differ from element to element."""
    numbers = torch.arange(count * dtype.itemsize, dtype=torch.int32).to(torch.uint8)
    return torch.empty(0, dtype=dtype).set_(numbers.untyped_storage(), 0, (count,), (1,))


def raw(tensor: Any) -> bytes:
    return bytes(tensor.untyped_storage())


def look(tensor: Any) -> Any:
    seen = ffi.new("js_array_seen *")
    lib.js_tensor_look(tensor_layout, id(tensor), seen)
    return seen


# --- one process: what is seen -------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCED)
def test_memory_is_shared(name: str) -> None:
    x = make(12, getattr(torch, name))
    for tensor in (x, x[3:], x.view(3, 4), x.view(3, 4)[1:], x[5], x[:0], x[::2], x.view(3, 4).t()):
        array = share(tensor)
        assert array.dtype.name == name and array.shape == tuple(tensor.shape)
        if tensor.numel():
            assert array.ctypes.data == tensor.data_ptr()
            strides = [stride * tensor.element_size() for stride in tensor.stride()]
            assert list(array.strides) == strides


def test_tensors_stay_resizable() -> None:
    """Frameworks that shard parameters give their memory back by resizing the storage to 0."""
    x = torch.zeros(8)
    array = share_writable(x, name="x")
    assert array.size == 8
    del array
    x.untyped_storage().resize_(0)
    x.untyped_storage().resize_(32)
    x.resize_(16)


def test_memory_lives_as_long_as_the_array() -> None:
    array = share(torch.full((1000,), 7.0))
    gc.collect()
    trash = [torch.zeros(1000) for _ in range(10)]
    assert (array == 7).all() and len(trash) == 10


def test_gradients_are_left_out() -> None:
    leaf = torch.ones(3, requires_grad=True)
    for tensor in (leaf, torch.nn.Parameter(torch.ones(3)), leaf * 2):
        array = share_writable(tensor, name="x")
        array += 1
        assert tensor.detach().tolist() == array.tolist()
    with torch.inference_mode():
        inferred = torch.ones(3)
    assert share_writable(inferred, name="x").ctypes.data == inferred.data_ptr()


def test_views_to_be_resolved_are_copied() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert share_contiguous(x.conj()).tolist() == [1 - 2j, 3 + 1j]
    assert share_contiguous(x.conj().imag).tolist() == [-2.0, 1.0]
    with pytest.raises(ArgumentError, match="resolve_conj"):
        share(x.conj())


def test_results_land_in_what_is_not_contiguous() -> None:
    base = torch.zeros(4, 3)
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    with torch.inference_mode():
        inferred = torch.zeros(3, 4)
    leaf = torch.zeros(4, 3, requires_grad=True)
    cases = [base.t(), base[:, 1], numbers.conj(), numbers.conj().imag, inferred.t(), leaf.t()]
    for tensor in cases:
        array = share_result(tensor, name="x")
        assert array.flags.c_contiguous
        array[...] = np.arange(array.size, dtype=array.dtype).reshape(array.shape)
        assert land(array, tensor) is tensor
        assert tensor.detach().resolve_conj().tolist() == array.tolist()
    assert numbers[1].item().imag == -1.0, "conjugated on its way back"
    plain = torch.zeros(3)
    assert share_result(plain, name="x").ctypes.data == plain.data_ptr()
    with pytest.raises(ArgumentError, match="not C-contiguous"):
        share_writable(base.t(), name="x")


@pytest.mark.parametrize(
    ("make_tensor", "reason"),
    [
        (lambda: torch.zeros(3, device="meta"), "on device meta: it has no values"),
        (lambda: torch.eye(3).to_sparse(), r"layout torch.sparse_coo: pass x.to_dense\(\)"),
        (lambda: torch.eye(3).to_sparse_csr(), "layout torch.sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "is a nested tensor"),
        (lambda: torch.zeros(3).to_mkldnn(), "layout torch._mkldnn"),
        (lambda: fake_tensor(), "is a FakeTensor, which stands for tensors elsewhere"),
        (lambda: torch._to_functional_tensor(torch.zeros(3)), "cannot be shared"),
        (lambda: parts_elsewhere(), r"is a DTensor, .* \(of a DTensor: x.to_local\(\)\)"),
    ],
    ids=[
        *("meta", "sparse", "csr", "quantized", "nested", "mkldnn", "fake", "functional"),
        "dtensor",
    ],
)
def test_what_has_no_memory_is_refused(make_tensor: Callable[[], Any], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these are experimental
        tensor = make_tensor()
        for see in (share, share_contiguous):
            with pytest.raises(ArgumentError, match=reason):
                see(tensor, name="x")
        with pytest.raises(ArgumentError, match=reason):
            share_result(tensor, name="x")
    assert not look(tensor).is_contiguous, "nor does the short way take it"


def parts_elsewhere() -> Any:
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        return DTensor.from_local(torch.zeros(3), mesh, [Replicate()])
    finally:
        dist.destroy_process_group()


def fake_tensor() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        tensor = torch.zeros(3)
    assert mode is not None
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(4),
        torch.zeros(3, 1).expand(3, 2),
        torch.zeros(5).unfold(0, 3, 1),
    ],
    ids=["scalar", "rows", "windows"],
)
def test_elements_in_one_place_take_no_result(tensor: Any) -> None:
    with pytest.raises(ArgumentError, match="elements that share memory"):
        share_result(tensor, name="out")
    assert share_contiguous(tensor).shape == tuple(tensor.shape), "as an input it is all right"


def test_subclasses_with_memory_are_taken() -> None:
    class Named(torch.Tensor):  # type: ignore[misc]
        pass

    tensor = torch.ones(3).as_subclass(Named)
    assert share(tensor).ctypes.data == tensor.data_ptr()


# --- one process: heads --------------------------------------------------------------------------


def test_this_torch_is_known() -> None:
    assert learn(torch)


def test_what_c_sees_follows_the_tensor() -> None:
    """Nothing about a tensor is remembered, so a tensor may become another one at any time."""
    assert learn(torch)
    x = torch.zeros(6)
    for change, is_plain in (
        (lambda: x.resize_(50), True),
        (lambda: x.set_(torch.zeros(9)[2:]), True),
        (lambda: setattr(x, "data", torch.zeros(2, 3)), True),
        (lambda: x.t_(), False),
        (lambda: setattr(x, "data", torch.zeros(4, dtype=torch.int16)), True),
        (lambda: x.untyped_storage().resize_(4096), True),
        (lambda: x.swapaxes_(0, 0), True),
    ):
        change()
        seen = look(x)
        assert bool(seen.is_contiguous) is is_plain
        if is_plain:
            assert (seen.data, seen.count) == (x.data_ptr(), x.numel())
            assert seen.rows == x.shape[0]


def test_copies_on_write_take_the_long_way() -> None:
    x = torch.ones(4)
    y = torch._lazy_clone(x)
    assert not look(x).is_contiguous and not look(y).is_contiguous
    share_writable(y, name="y")[:] = 5
    assert x.tolist() == [1.0] * 4 and y.tolist() == [5.0] * 4


def test_a_torch_that_differs_is_left_alone() -> None:
    """Whatever is missing or wrong, the answer is no, and the long way stays."""

    class Older:
        """A torch without names that this one has."""

        Tensor, nn, float32 = torch.Tensor, torch.nn, torch.float32
        inference_mode, enable_grad = torch.inference_mode, torch.enable_grad

    class Other(Older):
        """One whose tensors tell another address than that of their head."""

        @staticmethod
        def zeros(*_sizes: int, **_options: Any) -> Any:
            return Shifted(torch.zeros(5))

    class Shifted:
        def __init__(self, tensor: Any) -> None:
            self._tensor = tensor
            self._cdata = tensor._cdata + 8

        def __getitem__(self, index: Any) -> Any:
            return self

        def untyped_storage(self) -> Any:
            return self._tensor.untyped_storage()

    before = bytes(ffi.buffer(tensor_layout))
    assert not learn(Older) and not learn(Other)
    assert bytes(ffi.buffer(tensor_layout)) == before


# --- several ranks -------------------------------------------------------------------------------


def run_reductions(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    for dtype in dtypes(REDUCED):
        want = torch.full((4,), size).to(dtype)
        for _ in range(3):  # the long way, and the short one
            x = torch.ones(4).to(dtype)
            assert comm.all_reduce(x) is x
            assert torch.equal(x, want), dtype
            out = torch.empty(4, dtype=dtype)
            assert comm.all_reduce(torch.ones(4).to(dtype), out=out) is out
            assert torch.equal(out, want), dtype
            part = comm.reduce_scatter(torch.ones(4 * size).to(dtype))
            assert part.dtype is dtype and torch.equal(part, want), dtype
        work = comm.all_reduce(x := torch.ones(4).to(dtype), async_op=True)
        assert work.wait() is x and torch.equal(x, want)
    x = torch.full((2, 3), float(rank))
    got = comm.reduce(x, root=size - 1)
    assert got is (x if rank == size - 1 else None)
    x = torch.full((3,), 2.0, requires_grad=True)
    assert comm.all_reduce(x, "prod") is x and x.tolist() == [2.0**size] * 3 and x.is_leaf
    assert comm.scan(torch.ones(2)).tolist() == [rank + 1.0] * 2


def run_moves(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    warnings.simplefilter("ignore")  # complex32 is experimental to torch
    for dtype in dtypes(REDUCED + MOVED):
        mine = make(4 * size, dtype)
        for _ in range(2):
            x = make(4 * size, dtype) if rank == 0 else torch.empty(4 * size, dtype=dtype)
            assert comm.broadcast(x) is x and raw(x) == raw(mine), dtype
            all_of_them = comm.all_gather(mine)
            assert all_of_them.dtype is dtype and raw(all_of_them) == raw(mine) * size
            exchanged = comm.all_to_all(mine)
            width = 4 * dtype.itemsize
            part = raw(mine)[rank * width : (rank + 1) * width]
            assert exchanged.dtype is dtype and raw(exchanged) == part * size, dtype
            scattered = comm.scatter(mine, out=torch.empty(4, dtype=dtype))
            assert raw(scattered) == part
            gathered = comm.gather(mine)
            assert gathered is None if rank else raw(gathered) == raw(mine) * size
            if rank == 0:
                comm.send(mine, 1)
            elif rank == 1:
                assert raw(comm.recv(torch.empty(4 * size, dtype=dtype), 0)) == raw(mine)
    for dtype in dtypes(MOVED):
        for call in (comm.all_reduce, comm.reduce, comm.scan, comm.reduce_scatter):
            with pytest.raises(ArgumentError, match=f"no reduction is defined for {dtype}"):
                call(make(4, dtype))


def run_layouts(comm: Communicator) -> None:
    """Results come where torch's users expect them, in tensors of any layout."""
    size, rank = comm.size, comm.rank
    for _ in range(2):
        base = torch.zeros(3, 4)
        x = base.t()[1:]
        x.fill_(rank + 1.0)
        assert comm.all_reduce(x) is x
        total = size * (size + 1) / 2
        assert base[:, 1:].eq(total).all() and base[:, 0].eq(0).all()
        work = comm.all_reduce(base.t(), async_op=True)
        work.wait()
        assert base[:, 1:].eq(total * size).all()
        columns = torch.zeros(2, 2 * size).t()
        comm.all_gather(torch.full((2, 2), float(rank)), out=columns)
        assert columns[:, 0].tolist() == [float(i // 2) for i in range(2 * size)]
        x = torch.zeros(4, dtype=torch.complex64).conj()
        x.fill_(1 + 2j)
        assert comm.broadcast(x, 1).tolist() == [1 + 2j] * 4
        assert comm.all_reduce(x) is x and x.tolist() == [(1 + 2j) * size] * 4
        with torch.inference_mode():
            inferred = torch.ones(2, 3).t()
        assert comm.all_reduce(inferred).tolist() == [[float(size)] * 2] * 3
        halves = torch.full((2, 2 * size), float(rank))[:, ::2]
        assert comm.all_to_all(halves, axis=1).tolist() == [[float(i) for i in range(size)]] * 2
        joined = comm.all_gather(torch.full((2, 1), float(rank)), axis=1)
        assert joined.tolist() == [[float(i) for i in range(size)]] * 2
        room = torch.zeros(3, 2)
        if rank == 0:
            comm.send(torch.arange(6.0).view(2, 3).t(), 1)
        elif rank == 1:
            comm.recv(room, 0)
            assert room.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        strided = torch.zeros(2, 3)
        if rank == 1:
            comm.isend(torch.arange(6.0), 0).wait()
        elif rank == 0:
            comm.irecv(strided.t(), 1).wait()
            assert strided.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    with pytest.raises(ArgumentError, match="elements that share memory"):
        comm.all_reduce(torch.zeros(1).expand(4))
    with pytest.raises(ArgumentError, match="result would go into a copy"):
        comm.persistent("all_reduce", torch.zeros(3, 4).t())
    with pytest.raises(ArgumentError, match=r"out has dtype torch\.int32"):
        comm.all_reduce(torch.zeros(4), out=torch.zeros(4, dtype=torch.int32))


def run_changes(comm: Communicator) -> None:
    """A tensor that becomes another one between two calls; an address that is used again."""
    size = comm.size
    x = torch.ones(6)
    for _ in range(3):
        comm.all_reduce(x.fill_(1))
    x.resize_(600).fill_(1)
    assert comm.all_reduce(x).eq(size).all()
    x.set_(torch.ones(8)[2:])
    assert comm.all_reduce(x).tolist() == [float(size)] * 6
    x.data = torch.ones(6, dtype=torch.float64)
    assert comm.all_reduce(x).tolist() == [float(size)] * 6
    x.data = torch.ones(3, 2).t()
    assert comm.all_reduce(x).tolist() == [[float(size)] * 3] * 2
    for count in range(1, 40):  # freed at once, so that objects and memory come back
        assert comm.all_reduce(torch.ones(count)).eq(size).all()
        assert comm.all_reduce(torch.ones(count, dtype=torch.bfloat16)).eq(size).all()
        assert comm.all_reduce(np.ones(count, np.float32)).tolist() == [size] * count


def run_mixtures(comm: Communicator) -> None:
    """An array in and a tensor out, and the other way round; messages of the wrong length."""
    size, rank = comm.size, comm.rank
    for _ in range(2):
        out = torch.zeros(4)
        assert comm.all_reduce(np.ones(4, np.float32), out=out) is out and out.eq(size).all()
        array = np.zeros(4, np.float32)
        comm.all_reduce(torch.ones(4), out=array)
        assert (array == size).all()
        x = torch.ones(8)
        with pytest.raises(ArgumentError, match="input and output overlap"):
            comm.all_reduce(x[:6], out=x[2:])
        if rank == 0:
            comm.send(torch.zeros(3), 1)
        elif rank == 1:
            with pytest.raises(TruncatedError, match="12 bytes, out has 16"):
                comm.recv(torch.zeros(4), 0)
        comm.barrier()


def run_short_way(comm: Communicator) -> None:
    """The second call of a kind is the short one, which makes no array."""
    import jetstream.collective_calls as calls

    makers = {
        "in place": lambda: comm.all_reduce(torch.ones(5)),
        "bfloat16": lambda: comm.all_reduce(torch.ones(5, dtype=torch.bfloat16)),
        "parameter": lambda: comm.all_reduce(torch.nn.Parameter(torch.ones(5))),
        "apart": lambda: comm.all_reduce(torch.ones(5), out=torch.empty(5)),
        "gather": lambda: comm.all_gather(torch.ones(5)),
        "scatter": lambda: comm.reduce_scatter(torch.ones(6)),
        "exchange": lambda: comm.all_to_all(torch.ones(6)),
        "broadcast": lambda: comm.broadcast(torch.ones(5)),
    }
    for call in makers.values():
        call()
    finish = calls.CollectiveCalls._finish
    try:
        calls.CollectiveCalls._finish = None  # type: ignore[method-assign, assignment]
        for call in makers.values():
            call()
    finally:
        calls.CollectiveCalls._finish = finish  # type: ignore[method-assign]


def run_symmetric(comm: Communicator) -> None:
    """Tensors in memory that all ranks share, which goes back with the last of them."""
    from jetstream.torch import empty, zeros

    assert learn(torch)
    before = comm.heap.used_bytes
    x = zeros(3, 4)
    assert x.dtype is torch.get_default_dtype() and x.shape == (3, 4) and not x.any()
    assert look(x).is_contiguous and not x._is_view()
    for _ in range(2):
        assert comm.all_reduce(x.fill_(1)) is x and x.eq(comm.size).all()
    for dtype in (torch.bfloat16, torch.int64, torch.complex128, torch.float8_e5m2):
        y = empty((2, 5), dtype=dtype)
        assert y.dtype is dtype and y.is_contiguous() and y.shape == (2, 5)
        comm.broadcast(y.view(torch.uint8))
    assert empty(0).numel() == 0 and empty([]).shape == ()
    assert empty(torch.Size((2,))).numel() == 2
    part = x[1]
    del x, y
    assert comm.heap.used_bytes > before
    part.requires_grad_()
    part.sum().backward()
    assert part.grad is not None and part.grad.tolist() == [1.0] * 4
    del part
    gc.collect()
    assert comm.heap.used_bytes == before
    with pytest.raises(ValueError, match="not of gloo"):
        zeros(3, group=dist.new_group(backend="gloo"))
    with pytest.raises(RuntimeError, match="negative dimension"):
        empty(-1)
    with pytest.raises(MemoryError):
        empty(2**50)


def call_on_communicator(name: str) -> None:
    group: Any = dist.group.WORLD
    globals()[name](group.communicator)


RUNS = ("reductions", "moves", "layouts", "changes", "mixtures", "short_way", "symmetric")


@pytest.mark.parametrize("run", RUNS)
def test_on_ranks(on_ranks: Callable[..., Any], run: str) -> None:
    on_ranks(2, call_on_communicator, f"run_{run}")


@pytest.mark.parametrize("left_bytes", [0, 64])
def test_storage_that_was_given_back_is_seen(left_bytes: int) -> None:
    with jetstream.init() as comm:
        for offset in (0, 16):
            x = torch.ones(4096 + offset)[offset:]
            comm.all_reduce(x)
            comm.all_reduce(x)  # the short way
            x.untyped_storage().resize_(left_bytes)
            with pytest.raises(ValueError, match="storage"):
                comm.all_reduce(x)
