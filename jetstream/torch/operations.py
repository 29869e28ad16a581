"""The collectives of torch.distributed on a communicator: what both adapters have in common.

Names and arguments of the methods are those that torch calls (ProcessGroup and Backend of c10d);
``opts`` are its options. All of them return a Work; what ``opts`` calls synchronous is complete
when they return.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch import Tensor

from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, JetstreamError
from jetstream.torch.calls import operation
from jetstream.torch.errors import as_torch
from jetstream.torch.monitored import monitored_barrier
from jetstream.torch.options import (
    NO_TIMEOUT,
    REDOPS_BY_HASH,
    as_async,
    is_asynchronous,
    is_simple,
    redop_of,
    root_of,
    scale_of,
    seconds_of,
)
from jetstream.torch.profiling import (
    reads_list,
    reads_nothing,
    reads_parts,
    reads_second,
    reads_second_one,
)
from jetstream.torch.sparse import sparse_all_reduce
from jetstream.torch.tensors import Staging, check_equal, gathered, is_sparse, only
from jetstream.torch.work import DONE, JetstreamWork
from jetstream.work import Work

__all__ = ["Collectives"]


class Collectives:
    """Needs ``_comm``. Several threads may call its methods: they take turns inside it."""

    _comm: Communicator
    range_prefix = "jetstream"
    _has_progress = False
    _barriers = 0  # monitored ones so far

    def _begin(self, opts: Any) -> tuple[Communicator, bool, float | None]:
        """The communicator, whether to wait elsewhere, and for how long."""
        return self._comm, is_asynchronous(opts), seconds_of(opts)

    def _end(
        self,
        outputs: Sequence[Tensor],
        parts: Sequence[Any],
        staging: Staging,
        is_async: bool,
        timeout: float | None,
    ) -> Any:
        if is_async:
            self._go_on_alone()
            finish = staging.finish if staging.has_copies else None
            return JetstreamWork(outputs, parts, finish, timeout)
        staging.finish()
        return DONE

    def _started(self, outputs: Sequence[Tensor], work: Work) -> JetstreamWork:
        """The Work of an operation that leaves nothing to do but to wait for it."""
        if not self._has_progress:
            self._go_on_alone()
        return JetstreamWork(outputs, (work,))

    def _go_on_alone(self) -> None:
        """From the first asynchronous operation on, what is in flight moves at any time."""
        if not self._has_progress:
            self._has_progress = True
            self._comm.start_progress()

    def _end_several(self, work: JetstreamWork, is_async: bool) -> Any:
        """What a call returns whose parts have all been started."""
        if is_async:
            self._go_on_alone()
            return work
        work.wait()
        return DONE

    # --- every rank gets a result --------------------------------------------------------------

    @operation("all_reduce", reads_list)
    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        """Combine one tensor of all ranks, in place."""
        if opts is not None and len(tensors) == 1 and opts.timeout == NO_TIMEOUT:
            op = REDOPS_BY_HASH.get(hash(opts.reduceOp))
            if op is not None and not opts.asyncOp:
                try:
                    self._comm.all_reduce(tensors[0], op)
                except ArgumentError:
                    if not is_sparse(tensors[0]):
                        raise
                else:
                    return DONE
            elif op is not None and not is_sparse(tensors[0]):
                return self._started(tensors, self._comm.all_reduce(tensors[0], op, async_op=True))
        comm, is_async, timeout = self._begin(opts)
        tensor = only(tensors, "allreduce")
        if is_sparse(tensor):
            sparse_all_reduce(comm, tensor, redop_of(opts), timeout)
            return JetstreamWork((tensor,), ())
        staging = Staging()
        buffer = staging.target(tensor, "tensor", is_read=True)
        work = comm.all_reduce(
            buffer, redop_of(opts), scale=scale_of(opts), async_op=is_async, timeout=timeout
        )
        return self._end((tensor,), (work,), staging, is_async, timeout)

    @operation("all_reduce", reads_list)
    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> Any:
        """Combine several tensors of all ranks, in place."""
        comm, is_async, timeout = self._begin(opts)
        op, scale, staging = redop_of(opts), scale_of(opts), Staging()
        buffers = [staging.target(one, "tensor", is_read=True) for one in tensors]
        works = [comm.all_reduce(one, op, scale=scale, async_op=True) for one in buffers]
        finish = staging.finish if staging.has_copies else None
        return self._end_several(JetstreamWork(tensors, works, finish, timeout), is_async)

    @operation("all_gather", reads_second)
    def allgather(self, output_lists: Any, inputs: Any, opts: Any = None) -> Any:
        """Gather one tensor of each rank into a list of tensors on every rank."""
        comm, is_async, timeout = self._begin(opts)
        outputs, source = only(output_lists, "allgather"), only(inputs, "allgather")
        self._check_parts(outputs, "output")
        staging = Staging()
        own = staging.source(source).reshape(-1)
        flat = staging.parts(outputs).reshape(-1)
        counts = _counts(outputs)
        work = comm.all_gather(own, out=flat, counts=counts, async_op=is_async, timeout=timeout)
        return self._end(outputs, (work,), staging, is_async, timeout)

    @operation("all_gather", reads_second)
    def allgather_coalesced(self, output_lists: Any, inputs: Any, opts: Any = None) -> Any:
        """Gather several tensors of each rank."""
        # c10d has a list of each rank's tensors here, and a list of each tensor's parts elsewhere.
        by_tensor = [list(parts) for parts in zip(*output_lists, strict=True)]
        works = [
            Collectives.allgather(self, [parts], [one], None)
            for parts, one in zip(by_tensor, inputs, strict=True)
        ]
        return self._together(works, opts)

    @operation("all_gather_into_tensor", reads_second_one)
    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        """Concatenate one tensor of each rank, on every rank."""
        if is_simple(opts):
            self._comm.all_gather(input, out=output)
            return DONE
        comm, is_async, timeout = self._begin(opts)
        staging = Staging()
        source, target = staging.source(input).reshape(-1), staging.target(output)
        work = comm.all_gather(source, out=target, async_op=is_async, timeout=timeout)
        return self._end((output,), (work,), staging, is_async, timeout)

    @operation("all_gather_into_tensor", reads_second)
    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        """Concatenate several tensors of each rank, each for itself."""
        pairs = zip(outputs, inputs, strict=True)
        return self._together([Collectives.all_gather_single(self, *pair) for pair in pairs], opts)

    @operation("reduce_scatter", reads_parts)
    def reduce_scatter(self, outputs: Any, input_lists: Any, opts: Any = None) -> Any:
        """Combine the r-th tensor of all ranks' lists on rank r."""
        comm, is_async, timeout = self._begin(opts)
        output, inputs = only(outputs, "reduce_scatter"), only(input_lists, "reduce_scatter")
        self._check_parts(inputs, "input")
        staging = Staging()
        flat, target = gathered(inputs).reshape(-1), staging.target(output)
        work = comm.reduce_scatter(
            flat, redop_of(opts), out=target,
            counts=_counts(inputs), scale=scale_of(opts),
            async_op=is_async, timeout=timeout,
        )  # fmt: skip
        return self._end((output,), (work,), staging, is_async, timeout)

    @operation("reduce_scatter_tensor", reads_second_one)
    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Any:
        """Combine one tensor of all ranks; rank r keeps part r."""
        if is_simple(opts) and input.dim() and input.shape[0] % self._comm.size == 0:
            op = REDOPS_BY_HASH.get(hash(opts.reduceOp))
            if op is not None:
                self._comm.reduce_scatter(input, op, out=output)
                return DONE
        comm, is_async, timeout = self._begin(opts)
        staging = Staging()
        source, target = staging.source(input).reshape(-1), staging.target(output)
        work = comm.reduce_scatter(
            source,
            redop_of(opts),
            out=target,
            scale=scale_of(opts),
            async_op=is_async,
            timeout=timeout,
        )
        return self._end((output,), (work,), staging, is_async, timeout)

    @operation("reduce_scatter_tensor", reads_second)
    def reduce_scatter_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        """Combine several tensors of all ranks, each for itself."""
        op = as_async(opts)
        pairs = zip(outputs, inputs, strict=True)
        works = [Collectives.reduce_scatter_single(self, *pair, op) for pair in pairs]
        return self._together(works, opts)

    @operation("all_to_all", reads_second_one)
    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] = (),
        input_split_sizes: Sequence[int] = (),
        opts: Any = None,
    ) -> Any:
        """Send part r of ``input`` to rank r; splits are rows of axis 0, none means equal."""
        if is_simple(opts) and not output_split_sizes and not input_split_sizes:
            self._comm.all_to_all(input, out=output)
            return DONE
        comm, is_async, timeout = self._begin(opts)
        staging = Staging()
        work = comm.all_to_all(
            staging.source(input),
            out=staging.target(output),
            input_splits=list(input_split_sizes) or None,
            output_splits=list(output_split_sizes) or None,
            async_op=is_async,
            timeout=timeout,
        )
        return self._end((output,), (work,), staging, is_async, timeout)

    @operation("all_to_all", reads_second)
    def alltoall(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        """Send the r-th tensor of a list to rank r."""
        comm, is_async, timeout = self._begin(opts)
        self._check_parts(outputs, "output")
        self._check_parts(inputs, "input")
        staging = Staging()
        source, target = gathered(inputs).reshape(-1), staging.parts(outputs).reshape(-1)
        work = comm.all_to_all(
            source,
            out=target,
            input_splits=_sizes(inputs),
            output_splits=_sizes(outputs),
            async_op=is_async,
            timeout=timeout,
        )
        return self._end(outputs, (work,), staging, is_async, timeout)

    @operation("barrier", reads_nothing)
    def barrier(self, opts: Any = None) -> Any:
        """Return when every rank has entered the barrier."""
        if is_simple(opts):
            self._comm.barrier()
            return DONE
        comm, is_async, timeout = self._begin(opts)
        work = comm.barrier(async_op=is_async, timeout=timeout)
        return self._end((), (work,), Staging(), is_async, timeout)

    def monitored_barrier(
        self, timeout: timedelta | None = None, wait_all_ranks: bool = False
    ) -> None:
        """Barrier that names who has not come; raises RuntimeError."""
        seconds = self._comm.timeout if timeout is None else timeout.total_seconds()
        self._barriers += 1
        try:
            monitored_barrier(self._comm, self._barriers, seconds, wait_all_ranks)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__

    # --- one rank is the root ------------------------------------------------------------------

    @operation("broadcast", reads_list)
    def broadcast(self, tensors: Any, opts: Any = None) -> Any:
        """Copy a tensor of the root to all ranks, in place."""
        if is_simple(opts) and len(tensors) == 1:
            self._comm.broadcast(tensors[0], opts.rootRank)
            return DONE
        comm, is_async, timeout = self._begin(opts)
        tensor, root = only(tensors, "broadcast"), root_of(opts)
        staging = Staging()
        if comm.rank == root:
            buffer = staging.source(tensor, "tensor")
        else:
            buffer = staging.target(tensor, "tensor")
        work = comm.broadcast(buffer, root, async_op=is_async, timeout=timeout)
        return self._end((tensor,), (work,), staging, is_async, timeout)

    @operation("reduce", reads_list)
    def reduce(self, tensors: Any, opts: Any = None) -> Any:
        """Combine one tensor of all ranks, in place on the root."""
        comm, is_async, timeout = self._begin(opts)
        tensor, root = only(tensors, "reduce"), root_of(opts)
        staging = Staging()
        if comm.rank == root:
            buffer = staging.target(tensor, "tensor", is_read=True)
        else:
            buffer = staging.source(tensor, "tensor")
        work = comm.reduce(
            buffer, root, redop_of(opts), scale=scale_of(opts), async_op=is_async, timeout=timeout
        )
        return self._end((tensor,), (work,), staging, is_async, timeout)

    @operation("gather", reads_second)
    def gather(self, output_lists: Any, inputs: Any, opts: Any = None) -> Any:
        """Gather one tensor of each rank into a list of tensors on the root."""
        comm, is_async, timeout = self._begin(opts)
        source, root = only(inputs, "gather"), root_of(opts)
        staging = Staging()
        own = staging.source(source).reshape(-1)
        outputs, target = (), None
        if comm.rank == root:
            outputs = only(output_lists, "gather")
            self._check_parts(outputs, "output")
            check_equal(outputs, source, "gather: the list of outputs")
            target = staging.parts(outputs).reshape(-1)
        work = comm.gather(own, root, out=target, async_op=is_async, timeout=timeout)
        return self._end(outputs, (work,), staging, is_async, timeout)

    @operation("scatter", reads_parts)
    def scatter(self, outputs: Any, input_lists: Any, opts: Any = None) -> Any:
        """Send the r-th tensor of the root's list to rank r."""
        comm, is_async, timeout = self._begin(opts)
        output, root = only(outputs, "scatter"), root_of(opts)
        staging = Staging()
        target, source = staging.target(output).reshape(-1), None
        if comm.rank == root:
            inputs = only(input_lists, "scatter")
            self._check_parts(inputs, "input")
            check_equal(inputs, output, "scatter: the list of inputs")
            source = gathered(inputs).reshape(-1)
        work = comm.scatter(source, root, out=target, async_op=is_async, timeout=timeout)
        return self._end((output,), (work,), staging, is_async, timeout)

    # --- messages ------------------------------------------------------------------------------

    @operation("send", reads_list)
    def send(self, tensors: Any, dst: int, tag: int = 0) -> Any:
        """Start to send a tensor to a rank of the group."""
        staging = Staging()
        buffer = staging.source(only(tensors, "send"), "tensor")
        return self._end((), (self._comm.isend(buffer, dst, tag),), staging, True, None)

    @operation("recv", reads_list)
    def recv(self, tensors: Any, src: int, tag: int = 0) -> Any:
        """Start to receive a tensor from a rank of the group."""
        return self._receive(only(tensors, "recv"), src, tag)

    @operation("recvAnySource", reads_list)
    def recv_anysource(self, tensors: Any, tag: int = 0) -> Any:
        """Start to receive a tensor from any rank; the Work's ``_source_rank`` says which."""
        return self._receive(only(tensors, "recv"), None, tag)

    def _receive(self, tensor: Tensor, src: int | None, tag: int) -> Any:
        staging = Staging()
        buffer = staging.target(tensor, "tensor")
        return self._end((tensor,), (self._comm.irecv(buffer, src, tag),), staging, True, None)

    # --- parts -----------------------------------------------------------------------------------

    def _check_parts(self, tensors: Sequence[Tensor], name: str) -> None:
        if len(tensors) != self._comm.size:
            raise ValueError(
                f"the list of {name} tensors has {len(tensors)}: one for each of the "
                f"{self._comm.size} ranks is needed"
            )
        dtypes = {one.dtype for one in tensors}
        if len(dtypes) > 1:
            raise TypeError(
                f"the list of {name} tensors has several dtypes: {sorted(map(str, dtypes))}"
            )

    def _together(self, works: Sequence[Any], opts: Any) -> Any:
        """One Work for several."""
        work = JetstreamWork.joining(works, seconds_of(opts))
        return self._end_several(work, is_asynchronous(opts))


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    """How many elements each tensor has."""
    return [one.numel() for one in tensors]


def _counts(tensors: Sequence[Tensor]) -> list[int] | None:
    """As ``_sizes``; None where all are equal."""
    sizes = _sizes(tensors)
    return sizes if any(size != sizes[0] for size in sizes) else None
