"""Texts of failures: what happened, who is to blame, how far things had got."""

from __future__ import annotations

from typing import Any

from jetstream._core.native import check, ffi, lib, raise_status, status_text
from jetstream.dtypes import Algorithm as Algo
from jetstream.dtypes import DType, Kind, RedOp

__all__ = ["describe_call", "describe_fault", "describe_wait", "raise_failure"]

_STATES = {
    lib.JS_PEER_ABSENT: "never attached",
    lib.JS_PEER_CLOSED: "has closed",
    lib.JS_PEER_DEAD: "is dead",
}
_REMEDY = "The communicator cannot be used any more: close it and make a new one."


def describe_call(call: Any) -> str:
    """A ``js_call`` as the user wrote it, for example ``all_reduce(float32, sum, count=8)``."""
    kind = Kind(call.kind) if call.kind in set(Kind) else None
    if kind is None or kind is Kind.NONE:
        return "no collective"
    if kind is Kind.BARRIER:
        return "barrier()"
    words = [DType(call.dtype).label]
    if kind in (Kind.ALL_REDUCE, Kind.REDUCE_SCATTER):
        words.append(RedOp(call.redop).label)
    words.append(f"count={call.count}")
    if kind is Kind.BROADCAST:
        words.append(f"root={call.root}")
    words.append(f"algo={Algo(call.algo).label}")
    if call.chunk_bytes:
        words.append(f"chunk={call.chunk_bytes}")
    return f"{kind.label}({', '.join(words)})"


def _ranks(fault: Any) -> str:
    listed = [str(rank) for rank in range(64) if fault.missing_mask >> rank & 1]
    if fault.missing_count > len(listed):
        listed.append("others")
    return ("rank " if len(listed) == 1 else "ranks ") + ", ".join(listed)


def _who(fault: Any) -> str:
    return f"rank {fault.culprit} (pid {fault.culprit_pid})"


def _deeds(fault: Any) -> str:
    """What the culprit did last."""
    if fault.peer_sequence == 0:
        return "has not entered any collective"
    verb = "is inside" if fault.peer_active else "last finished"
    return f"{verb} {describe_call(fault.peer_call)} #{fault.peer_sequence}"


def _peer_story(fault: Any) -> str:
    state = _STATES.get(fault.culprit_state)
    return f"{_who(fault)} {f'{state} and ' if state else ''}{_deeds(fault)}"


def _progress_story(fault: Any) -> str:
    if fault.my_call.kind == lib.JS_KIND_NONE:
        return ""
    return (
        f"; rank {fault.reporter} is in {describe_call(fault.my_call)} #{fault.my_sequence}, "
        f"operation {fault.op_index + 1} of {fault.op_count} of its plan, "
        f"{fault.bytes_done} of {fault.bytes_total} bytes done"
    )


def describe_wait(fault: Any) -> str:
    """What a rank is waiting for: who is missing, what that rank did last, how far this one is."""
    if fault.missing_count == 0:
        return "not waiting for any rank" + _progress_story(fault)
    missing = f"waiting for {_ranks(fault)}"
    return f"{missing}: {_peer_story(fault)}{_progress_story(fault)}"


def describe_fault(fault: Any) -> str:
    """Why a communicator failed."""
    if fault.status == lib.JS_ERR_MISMATCH:
        return (
            f"collective #{fault.my_sequence}: rank {fault.reporter} called "
            f"{describe_call(fault.my_call)}, rank {fault.culprit} (pid {fault.culprit_pid}) "
            f"called {describe_call(fault.peer_call)}. All ranks must make the same calls with "
            f"the same arguments in the same order. {_REMEDY}"
        )
    return f"{_what_happened(fault)}{_progress_story(fault)}. {_REMEDY}"


def _what_happened(fault: Any) -> str:
    if fault.status == lib.JS_ERR_ABORTED:
        waiting = f", waiting for {_peer_story(fault)}" if fault.culprit >= 0 else ""
        return f"rank {fault.reporter} aborted the communicator{waiting}"
    if fault.culprit < 0:
        return f"{status_text(fault.status)}, as rank {fault.reporter} reports"
    if fault.status == lib.JS_ERR_PEER_DEAD:
        return f"{_who(fault)} died; it {_deeds(fault)}"
    if fault.status == lib.JS_ERR_PEER_CLOSED:
        return f"{_who(fault)} has closed while others wait for it; it {_deeds(fault)}"
    return f"{status_text(fault.status)}: {_peer_story(fault)}"


def raise_failure(handle: Any, status: int) -> None:
    """Raise the exception of a failed communicator with the whole story in its text."""
    fault = ffi.new("js_fault *")
    lib.js_comm_fault(handle, fault)
    if status == lib.JS_ERR_FORKED:
        raise_status(
            status,
            "this communicator was made before a fork and belongs to the parent process: call "
            "jetstream.init() in processes of their own, for example with 'jetstream run'",
        )
    if fault.status == lib.JS_OK:
        check(status)
    text = describe_fault(fault)
    if status == lib.JS_ERR_ABORTED and fault.status != status:
        text = f"rank {fault.reporter} gave up: {text}"
    raise_status(status, text)
