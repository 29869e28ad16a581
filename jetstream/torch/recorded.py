"""Process groups whose operations the flight recorder has.

Where TORCH_FR_BUFFER_SIZE is 0, a group is of the adapter's own class and nothing is different.
Otherwise it is of a subclass with a method around each of the adapter's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from jetstream.torch.flight import ENDED, Entry, GroupLog, recorder
from jetstream.torch.work import DONE

__all__ = ["record"]

_Method = Callable[..., Any]
#: From the log and the arguments to a new entry.
_Enter = Callable[..., Entry]

#: The subclass by class.
_recorded: dict[type, type] = {}


def record(group: Any, rank: int, ranks: Sequence[int]) -> None:
    """From now on, the operations of a process group are recorded, if any are.

    ``ranks`` are its ranks in the job; sets ``flight`` to a :class:`GroupLog`. What an operation
    returns is DONE or a JetstreamWork, which is given the log and the entry. Raises
    ConfigurationError.
    """
    own = recorder()
    if own is not None:
        group.flight = log = own.log(rank, ranks)
        log.name, log.desc = getattr(group, "_name", ""), getattr(group, "_desc", "undefined")
        group.__class__ = _subclass(type(group))


def _subclass(adapter: type) -> type:
    found = _recorded.get(adapter)
    if found is None:
        body: dict[str, Any] = {"__doc__": adapter.__doc__, "__module__": adapter.__module__}
        for name, make in _MAKERS.items():
            method = getattr(adapter, name, None)
            if inspect.isfunction(method):  # not what torch has in C++ under its older names
                body[name] = call = make(method)
                call.__doc__ = method.__doc__
        found = _recorded[adapter] = type(adapter)(adapter.__name__, (adapter,), body)
        _recorded[found] = found
    return found


# --- what tensors there are ----------------------------------------------------------------------


def _describe(tensors: Any) -> Any:
    """(shape, dtype) of a tensor, a list of these for several; None for none, or for anything else.

    Bad arguments are for the operation to refuse.
    """
    if isinstance(tensors, Tensor):
        return tensors.shape, tensors.dtype
    try:
        flat = [(tensor.shape, tensor.dtype) for tensor in _flat(tensors)]
    except (AttributeError, TypeError):
        return None
    return flat or None


def _flat(tensors: Any) -> Iterable[Any]:
    """Tensors of a list, or of a list of lists."""
    for tensor in tensors or ():
        if isinstance(tensor, (list, tuple)):
            yield from tensor
        else:
            yield tensor


def _stack(tensors: Any) -> Any:
    """Tensors of one shape as the one they would be; others as they are."""
    described = _describe(tensors)
    if isinstance(described, list) and all(one == described[0] for one in described):
        shape, dtype = described[0]
        return (len(described), *shape), dtype
    return described


def _with_parts(name: str, own: Any, parts: Any) -> tuple[str, Any, Any]:
    """Name and description of what has a tensor here and a list of parts, one for each rank.

    Of parts of several shapes the analyser wants nothing but that they are alike on all ranks.
    """
    packed = _stack(parts)
    if isinstance(packed, list):
        return f"{name}_v", packed, packed
    return name, _describe(own), packed


def _join(tensors: Any) -> Any:
    """Tensors as one, flat: of an all-to-all the analyser adds up the first one of each rank."""
    described = _describe(tensors)
    if not isinstance(described, list):
        return described
    return (sum(math.prod(shape) for shape, _ in described),), described[0][1]


# --- the methods: where a collective is called often, each with its own arguments ----------------


def _finish(log: GroupLog, entry: Entry, work: Any) -> Any:
    """An operation has returned."""
    if work is not DONE and work is not None:
        work.log, work.entry = log, entry
        if work.is_completed() and work.exception() is None:
            work.note_end()
    else:
        entry[ENDED] = True
    return work


def _in_place(name: str) -> Callable[[_Method], _Method]:
    """Of tensors, most often one, that are input and output."""

    def make(method: _Method) -> _Method:
        def recorded_call(self: Any, tensors: Any, opts: Any = None) -> Any:
            log: GroupLog = self.flight
            try:
                (tensor,) = tensors
                described = tensor.shape, tensor.dtype
            except (AttributeError, TypeError, ValueError):
                described = _describe(tensors)
            entry = log.collective(name, described, described)
            try:
                work = method(self, tensors, opts)
            except Exception as error:
                log.fail(entry, error)
                raise
            if work is DONE:  # as most often: a call less
                entry[ENDED] = True
                return work
            return _finish(log, entry, work)

        return recorded_call

    return make


def _out_in(name: str) -> Callable[[_Method], _Method]:
    """From one tensor to another."""

    def make(method: _Method) -> _Method:
        def recorded_call(self: Any, output: Any, source: Any, opts: Any = None) -> Any:
            log: GroupLog = self.flight
            entry = log.collective(name, _describe(source), _describe(output))
            try:
                work = method(self, output, source, opts)
            except Exception as error:
                log.fail(entry, error)
                raise
            return _finish(log, entry, work)

        return recorded_call

    return make


def _any(enter: _Enter) -> Callable[[_Method], _Method]:
    """All others."""

    def make(method: _Method) -> _Method:
        def recorded_call(self: Any, *arguments: Any, **named: Any) -> Any:
            log: GroupLog = self.flight
            entry = enter(log, *arguments)
            try:
                work = method(self, *arguments, **named)
            except Exception as error:
                log.fail(entry, error)
                raise
            return _finish(log, entry, work)

        return recorded_call

    return make


def _lists(name: str, describe: Callable[[Any], Any] = _describe) -> Callable[[_Method], _Method]:
    """(outputs, inputs, ...), lists of tensors."""

    def enter(log: GroupLog, outputs: Any = None, inputs: Any = None, *_: Any) -> Entry:
        return log.collective(name, describe(inputs), describe(outputs))

    return _any(enter)


def _enter_all_gather(log: GroupLog, outputs: Any = None, inputs: Any = None, *_: Any) -> Entry:
    name, own, parts = _with_parts("all_gather", inputs, outputs)
    return log.collective(name, own, parts)


def _enter_reduce_scatter(log: GroupLog, outputs: Any = None, inputs: Any = None, *_: Any) -> Entry:
    name, own, parts = _with_parts("reduce_scatter", outputs, inputs)
    return log.collective(name, parts, own)


def _enter_send(log: GroupLog, tensors: Any = None, peer: int = 0, tag: int = 0) -> Entry:
    return log.message("send", _describe(tensors), peer, tag)


def _enter_receive(log: GroupLog, tensors: Any = None, peer: int = 0, tag: int = 0) -> Entry:
    return log.message("recv", _describe(tensors), peer, tag)


def _enter_any_source(log: GroupLog, tensors: Any = None, tag: int = 0) -> Entry:
    return log.message("recv", _describe(tensors), -1, tag)


def _enter_barrier(log: GroupLog, *_: Any) -> Entry:
    return log.collective("barrier", None, None)


_GATHER = _out_in("all_gather_single")
_GATHER_COALESCED = _lists("all_gather_into_tensor_coalesced")
_SCATTER = _out_in("reduce_scatter_single")
_SCATTER_COALESCED = _lists("reduce_scatter_tensor_coalesced")
_ALL_TO_ALL_SINGLE = _lists("all_to_all", _join)

#: By method, also by its older names: with the name for the analyser, which knows only some.
_MAKERS: dict[str, Callable[[_Method], _Method]] = {
    "allreduce": _in_place("all_reduce"),
    "allreduce_coalesced": _in_place("allreduce_coalesced"),
    "broadcast": _in_place("broadcast"),
    "reduce": _in_place("reduce"),
    "allgather": _any(_enter_all_gather),
    "allgather_coalesced": _lists("ALLGATHER_coalesced"),
    "all_gather_single": _GATHER,
    "_allgather_base": _GATHER,
    "all_gather_single_coalesced": _GATHER_COALESCED,
    "allgather_into_tensor_coalesced": _GATHER_COALESCED,
    "reduce_scatter": _any(_enter_reduce_scatter),
    "reduce_scatter_single": _SCATTER,
    "_reduce_scatter_base": _SCATTER,
    "reduce_scatter_single_coalesced": _SCATTER_COALESCED,
    "reduce_scatter_tensor_coalesced": _SCATTER_COALESCED,
    "alltoall": _lists("all_to_all", _join),
    "all_to_all_single": _ALL_TO_ALL_SINGLE,
    "alltoall_base": _ALL_TO_ALL_SINGLE,
    "gather": _lists("gather"),
    "scatter": _lists("scatter"),
    "send": _any(_enter_send),
    "recv": _any(_enter_receive),
    "recv_anysource": _any(_enter_any_source),
    "barrier": _any(_enter_barrier),
    "monitored_barrier": _any(_enter_barrier),
}
