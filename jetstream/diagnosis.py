"""Texts of failures: what happened, who is to blame, how far things had got."""

from __future__ import annotations

from typing import Any

from jetstream._core.native import check, ffi, lib, raise_status, status_text, text_of
from jetstream.collectives.calls import REDUCING, ROOTED
from jetstream.collectives.parts import PARTS_SPLITS, format_counts, is_packed, unpack_counts
from jetstream.dtypes import Algorithm as Algo
from jetstream.dtypes import DType, Kind, RedOp

__all__ = [
    "describe_call",
    "describe_fault",
    "describe_sender",
    "describe_wait",
    "raise_failure",
]

_STATES = {
    lib.JS_PEER_ABSENT: "never attached",
    lib.JS_PEER_CLOSED: "has closed",
    lib.JS_PEER_DEAD: "is dead",
    lib.JS_PEER_LOST: "gives no sign of life",
}
_REMEDY = "The communicator cannot be used any more: close it and make a new one."


def describe_call(call: Any) -> str:
    """A ``js_call`` as the user wrote it, for example ``all_reduce(float32, sum, count=8)``.

    Counts are those of elements. Where they are too large for the word that travels, only their
    sum is known.
    """
    kind = Kind(call.kind) if call.kind in set(Kind) else None
    if kind is None or kind is Kind.NONE:
        return "no collective"
    if kind is Kind.BARRIER:
        return "barrier()"
    words = [DType(call.dtype).label]
    if kind in REDUCING:
        words.append(RedOp(call.redop).label)
    words.append(_describe_parts(call))
    if kind in ROOTED:
        words.append(f"root={call.root}")
    words.append(f"algo={Algo(call.algo).label}")
    if call.chunk_bytes:
        words.append(f"chunk={call.chunk_bytes}")
    return f"{kind.label}({', '.join(words)})"


def _describe_parts(call: Any) -> str:
    if call.parts == PARTS_SPLITS:
        return "with splits"
    if is_packed(call.parts):
        return f"counts={format_counts(unpack_counts(call.parts, call.world))}"
    if call.parts:
        return f"counts that add up to {call.count}"
    return f"count={call.count}"


def describe_sender(source: int) -> str:
    """The source of a receive, which may be JS_PEER_ANY."""
    return "any rank" if source == lib.JS_PEER_ANY else f"rank {source}"


def _ranks(fault: Any) -> str:
    listed = [str(rank) for rank in range(64) if fault.missing_mask >> rank & 1]
    if fault.missing_count > len(listed):
        listed.append("others")
    return ("rank " if len(listed) == 1 else "ranks ") + ", ".join(listed)


def _who(fault: Any) -> str:
    job = f"rank {fault.culprit_job} of the job, " if fault.culprit_job != fault.culprit else ""
    return f"rank {fault.culprit} ({job}pid {fault.culprit_pid})"


def _reporter(fault: Any) -> str:
    if fault.reporter_job == fault.reporter:
        return f"rank {fault.reporter}"
    return f"rank {fault.reporter} (rank {fault.reporter_job} of the job)"


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
    node = ""
    if fault.node_count:
        node = (
            f"; {_reporter(fault)} is at node {fault.node_index} of a graph of {fault.node_count}"
        )
    if fault.my_call.kind == lib.JS_KIND_NONE:
        return node
    return (
        f"{node}; {_reporter(fault)} is in {describe_call(fault.my_call)} #{fault.my_sequence}, "
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
        return f"collective #{fault.my_sequence}: {_difference(fault)} {_REMEDY}"
    return f"{_what_happened(fault)}{_progress_story(fault)}. {_REMEDY}"


def _difference(fault: Any) -> str:
    """What two ranks disagree on."""
    if fault.is_split_mismatch:
        return (
            f"in {describe_call(fault.my_call)}, {_who(fault)} sends {fault.split_sent} elements "
            f"to rank {fault.reporter}, which expects {fault.split_expected}. input_splits of the "
            "sender and output_splits of the receiver must agree."
        )
    unknown = ", or other counts or another chunk size" if not fault.peer_call.chunk_bytes else ""
    return (
        f"{_reporter(fault)} called {describe_call(fault.my_call)}, {_who(fault)} called "
        f"{describe_call(fault.peer_call)}{unknown}. All ranks must make the same calls with the "
        "same arguments in the same order."
    )


def _what_happened(fault: Any) -> str:
    if fault.status == lib.JS_ERR_ABORTED:
        waiting = f", waiting for {_peer_story(fault)}" if fault.culprit >= 0 else ""
        return f"{_reporter(fault)} aborted the communicator{waiting}"
    if fault.culprit < 0:
        return f"{status_text(fault.status)}, as {_reporter(fault)} reports"
    if fault.culprit_state == lib.JS_PEER_LOST:
        return (
            f"{_who(fault)}, on another host, gives no sign of life: it died, was stopped, or "
            f"cannot be reached any more; it {_deeds(fault)}"
        )
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
    if fault.culprit_state == lib.JS_PEER_LOST and fault.culprit >= 0:
        way = lib.js_comm_way(handle, fault.culprit)
        text += f" This rank reaches it over {text_of(way)}." if way != ffi.NULL else ""
    if status == lib.JS_ERR_ABORTED and fault.status != status:
        text = f"{_reporter(fault)} gave up: {text}"
    raise_status(status, text)
