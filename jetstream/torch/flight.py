"""The flight recorder: the last operations of this process, in the format of torch's own.

The format is version 2.10 of torch/csrc/distributed/c10d/FlightRecorder.hpp, read by
``torchfrtrace``. That one accepts names of a few backends only, so every operation is called
``gloo:...`` in the file; ``comm_lib_version`` says whose it is.

Recording is one list and one append: nothing is formatted before a dump.
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from jetstream.environ import Reader
from jetstream.errors import (
    CommunicatorAbortedError,
    MismatchError,
    ProtocolError,
    TimedOutError,
)

__all__ = [
    "ANY_SOURCE",
    "ENDED",
    "ERROR",
    "PEER",
    "Entry",
    "GroupLog",
    "Recorder",
    "dump_flight_record",
    "recorder",
]

_VERSION = "2.10"
#: Nothing is recorded unless it is asked for: it costs a part of what a small all-reduce costs,
#: errors name the rank that is missing anyway, and the data plane keeps records of its own.
_SLOTS_DEFAULT = 0
_SLOTS_MAX = 999_999_999
_PREFIX = "gloo"

#: An operation: a list, since that is what Python makes fastest. Places of what it has are below.
#: Tensors are described by (shape, dtype), several by a list of these; None is no tensor.
Entry = list[Any]
_ID, _LOG, _SEQUENCE, _NAME, _INPUTS, _OUTPUTS, _CREATED, PEER, _TAG = range(9)
ENDED: Final = 9  # None before it is complete, then the time in ns; True where nobody asked
#: The peer of a receive whose source is not known yet; None is the peer of a collective.
ANY_SOURCE: Final = -1
ERROR: Final = 10  # text of the exception it ended with, or None

#: Messages are counted by tag modulo this: programs may use any number of tags.
_TAG_CLASSES = 64

_BETWEEN_RANKS = (CommunicatorAbortedError, MismatchError, ProtocolError, TimedOutError)

_now_ns = time.time_ns


class GroupLog:
    """What one process group has in the recorder."""

    __slots__ = (
        "__weakref__",
        "_messages",
        "append",
        "desc",
        "id",
        "is_dumped",
        "name",
        "next_id",
        "rank",
        "ranks",
        "recorder",
        "seq",
    )

    def __init__(self, recorder: Recorder, rank: int, ranks: Sequence[int]) -> None:
        self.recorder = recorder
        self.next_id, self.append = recorder.next_id, recorder.append
        self.rank = rank
        self.ranks = tuple(ranks)  # of the job, by rank of the group
        self.name = ""
        self.desc = "undefined"
        self.seq = 0  # collectives so far
        self.id = next(recorder.group_ids)
        self.is_dumped = False
        self._messages: Counter[tuple[bool, int, int]] = Counter()  # by direction, peer, tag class
        recorder.logs.add(self)
        if recorder.rank is None:
            recorder.rank = self.ranks[rank]

    def collective(self, name: str, inputs: Any, outputs: Any) -> Entry:
        """A collective is entered."""
        self.seq = seq = self.seq + 1
        entry = [
            self.next_id(), self, seq, name, inputs, outputs, _now_ns(), None, 0, None, None
        ]  # fmt: skip
        self.append(entry)
        return entry

    def message(self, name: str, tensor: Any, peer: int, tag: int) -> Entry:
        """A message is entered: ``name`` is send or recv; ``peer`` -1 is any source."""
        is_valid = type(peer) is int and -1 <= peer < len(self.ranks) and type(tag) is int
        number = self._count(name, peer, tag) if is_valid and peer >= 0 else 0
        sides = (tensor, None) if name == "send" else (None, tensor)
        own = self.recorder
        entry = [
            own.next_id(), self, number, name, *sides, _now_ns(), peer, tag, None, None
        ]  # fmt: skip
        if is_valid:  # else it will be refused
            own.append(entry)
        return entry

    def found_source(self, entry: Entry, peer: int) -> None:
        """The rank that a message of any source came from."""
        entry[PEER] = peer
        entry[_SEQUENCE] = self._count("recv", peer, entry[_TAG])

    def _count(self, name: str, peer: int, tag: int) -> int:
        key = (name == "send", peer, tag % _TAG_CLASSES)
        number = self._messages[key] = self._messages[key] + 1
        return number

    def fail(self, entry: Entry, error: BaseException) -> None:
        """The operation has ended with an error: one between ranks has the file written.

        With any other error nothing was sent: the other ranks know nothing of it, and have counted
        nothing.
        """
        if isinstance(error, _BETWEEN_RANKS):
            entry[ERROR] = f"{type(error).__name__}: {error}"
            self.dump_once()
        elif entry[ENDED] is None:
            self._withdraw(entry)

    def _withdraw(self, entry: Entry) -> None:
        ring = self.recorder.ring
        if ring and ring[-1] is entry:
            ring.pop()
            if entry[PEER] is None:
                self.seq -= 1
            elif entry[_SEQUENCE]:
                key = (entry[_NAME] == "send", entry[PEER], entry[_TAG] % _TAG_CLASSES)
                self._messages[key] -= 1

    def dump_once(self) -> None:
        """Write the file after the first failure of this group, if the environment wants that."""
        own = self.recorder
        if self.is_dumped or not own.is_dumped_on_failure:
            return
        self.is_dumped = True
        try:
            own.dump(None)
        except Exception as error:  # must not replace the error that is being raised
            print(f"jetstream: no flight record written: {error}", file=sys.stderr)  # noqa: T201


class Recorder:
    """The ring of one process.

    ``environ``: TORCH_FR_BUFFER_SIZE, TORCH_FR_DUMP_TEMP_FILE, TORCH_FR_DUMP_DYNAMIC_FILE_NAME,
    TORCH_NCCL_DUMP_ON_TIMEOUT, TORCH_INCLUDE_STACK_TRACE and TORCH_INCLUDE_ONLY_ACTIVE, with the
    meaning and the older names that they have in torch 2.13, and its defaults but for the first.
    Raises ConfigurationError.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        reader = Reader(environ)
        size = reader.first("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
        self.slots = reader.integer(size, 0, _SLOTS_MAX, default=_SLOTS_DEFAULT)
        self.is_dumped_on_failure = _is_on(environ, "TORCH_NCCL_DUMP_ON_TIMEOUT", True)
        self._has_stacks = _is_on(environ, "TORCH_INCLUDE_STACK_TRACE", True)
        self._is_active_only = _is_on(environ, "TORCH_INCLUDE_ONLY_ACTIVE", False)
        self._prefix = self._read_prefix(environ)
        self.next_id = itertools.count().__next__
        self.group_ids = itertools.count()
        self.logs: weakref.WeakSet[GroupLog] = weakref.WeakSet()  # the ring keeps those it needs
        self.rank: int | None = None  # of this process in the job
        self.ring: deque[Entry] = deque(maxlen=self.slots)
        self.append = self.ring.append

    def log(self, rank: int, ranks: Sequence[int]) -> GroupLog:
        """The log of a new group; ``ranks`` of the job by rank of the group."""
        return GroupLog(self, rank, ranks)

    def dump(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the file; ``path`` None: where the environment says. Returns the path.

        Raises OSError.
        """
        target = self._default_path() if path is None else Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            partial.write_bytes(pickle.dumps(self.snapshot(), protocol=2))
            partial.replace(target)  # nobody reads half a file
        finally:
            partial.unlink(missing_ok=True)
        return target

    def snapshot(self) -> dict[str, Any]:
        """What a file contains."""
        entries = list(self.ring)
        frames = _frames_in_flight() if self._has_stacks else {}
        groups: dict[str, dict[str, str]] = {}
        logs = sorted(self.logs, key=lambda log: log.id)
        for log in logs:
            groups[log.name] = _group(log.name, log.desc, log.ranks)
        listed = []
        for entry in entries:
            if self._is_active_only and entry[ENDED] is not None:
                continue
            listed.append(self._describe(entry, groups, frames.get(id(entry), [])))
        return {
            "version": _VERSION,
            "comm_lib_version": _library(),
            "pg_config": groups,
            "pg_status": {str(log.id): _status(log, entries) for log in logs},
            "entries": listed,
        }

    @staticmethod
    def _read_prefix(environ: Mapping[str, str]) -> str:
        for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
            if environ.get(name):
                return environ[name]
        cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or '/tmp'}/.cache"
        return f"{cache}/torch/comm_lib_trace_rank_"

    def _default_path(self) -> Path:
        prefix = self._prefix
        if _is_on(self._environ, "TORCH_FR_DUMP_DYNAMIC_FILE_NAME", False):
            prefix = self._read_prefix(self._environ)  # may have changed since
        return Path(f"{prefix}{self.rank or 0}")

    def _describe(
        self, entry: Entry, groups: dict[str, dict[str, str]], frames: list[dict[str, Any]]
    ) -> dict[str, Any]:
        log: GroupLog = entry[_LOG]
        name, sequence, peer = entry[_NAME], entry[_SEQUENCE], entry[PEER]
        group = log.name
        desc = log.desc
        if peer is not None:
            group, name = _direction(log, entry)
            desc = "messages"
            groups[group] = _group(group, desc, _pair(log, peer))
        inputs, outputs = _tensors(entry[_INPUTS]), _tensors(entry[_OUTPUTS])
        ended = entry[ENDED]
        ended_ns = None if ended is True else ended
        described: dict[str, Any] = {
            "record_id": entry[_ID],
            "pg_id": log.id,
            "process_group": (group, desc),
            "collective_seq_id": sequence,
            "p2p_seq_id": sequence if peer is not None else 0,
            "op_id": entry[_ID],
            "profiling_name": f"{_PREFIX}:{name}",
            "time_created_ns": entry[_CREATED],
            "input_sizes": [list(shape) for shape, _ in inputs],
            "input_dtypes": [_dtype_name(dtype) for _, dtype in inputs],
            "output_sizes": [list(shape) for shape, _ in outputs],
            "output_dtypes": [_dtype_name(dtype) for _, dtype in outputs],
            "state": "started" if ended is None else "completed",
            "time_discovered_started_ns": entry[_CREATED],
            "time_discovered_completed_ns": ended_ns,
            "retired": ended is not None or entry[ERROR] is not None,
            "timeout_ms": 0,
            "is_p2p": peer is not None,
            "frames": frames,
        }
        if ended_ns is not None:
            described["duration_ms"] = (ended_ns - entry[_CREATED]) / 1e6
        if entry[ERROR] is not None:
            described["error"] = entry[ERROR]
        return described


def _is_on(environ: Mapping[str, str], name: str, default: bool) -> bool:
    """A switch as torch reads it."""
    value = environ.get(name, "").strip().lower()
    return value in ("1", "y", "yes", "t", "true", "on") if value else default


def _library() -> str:
    from importlib.metadata import version

    return f"jetstream {version('jetstream')}"


def _group(name: str, desc: str, ranks: Sequence[int]) -> dict[str, str]:
    return {"name": name, "desc": desc, "ranks": str(list(ranks))}


def _pair(log: GroupLog, peer: int) -> list[int]:
    """The ranks of the job that a message is between."""
    return sorted({log.ranks[log.rank], log.ranks[peer if peer >= 0 else log.rank]})


def _direction(log: GroupLog, entry: Entry) -> tuple[str, str]:
    """Name of the group of messages that go one way, and of the message in it.

    The analyser wants an operation on all ranks of a group, in one order. Messages have no such
    order but those of one tag from one rank to another: these form a group of two. (Of one class
    of tags: whoever uses more than 64 may mix some of them up here.)
    """
    peer, tag = entry[PEER], entry[_TAG]
    here = log.ranks[log.rank]
    there = log.ranks[peer] if peer >= 0 else here
    source, target = (here, there) if entry[_NAME] == "send" else (there, here)
    pair = sorted({source, target})
    numbers = pair.index(source), pair.index(target)
    if entry[_NAME] == "send":
        name = f"send {numbers[0]}->{numbers[1]}"
    else:
        name = f"recv {numbers[1]}<-{numbers[0]}"
    way = f"{source}->{target} tag {tag % _TAG_CLASSES}"
    if peer < 0:  # nothing can be said of these, but each is one of its own
        way = f"any->{target} record {entry[_ID]}"
    return f"{log.name}:{way}", name


def _tensors(described: Any) -> list[tuple[Sequence[int], Any]]:
    if described is None:
        return []
    return described if isinstance(described, list) else [described]


def _dtype_name(dtype: Any) -> str:
    """As torch's files have it: c10::toString."""
    return _DTYPE_NAMES.get(str(dtype).removeprefix("torch."), str(dtype))


_DTYPE_NAMES = {
    "uint8": "Byte",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "bfloat16": "BFloat16",
    "bool": "Bool",
    "complex32": "ComplexHalf",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
    "float8_e4m3fn": "Float8_e4m3fn",
    "float8_e5m2": "Float8_e5m2",
    "float8_e4m3fnuz": "Float8_e4m3fnuz",
    "float8_e5m2fnuz": "Float8_e5m2fnuz",
    "float8_e8m0fnu": "Float8_e8m0fnu",
}


def _status(log: GroupLog, entries: list[Entry]) -> dict[str, int]:
    ended = [
        entry[_SEQUENCE]
        for entry in entries
        if entry[_LOG] is log and entry[PEER] is None and entry[ENDED] is not None
    ]
    return {
        "last_enqueued_collective": log.seq,
        "last_started_collective": log.seq,
        "last_completed_collective": max(ended, default=0),
    }


def _frames_in_flight() -> dict[int, list[dict[str, Any]]]:
    """Stacks of the threads that are inside an operation now, by id of its entry.

    Innermost frame first. A frame of the function that records has the entry in a variable.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for frame in sys._current_frames().values():
        stack: list[FrameType] = []
        walk: FrameType | None = frame
        while walk is not None:
            stack.append(walk)
            walk = walk.f_back
        for place, frame in enumerate(stack):
            if frame.f_code.co_name == "recorded_call" and "entry" in frame.f_locals:
                entry = frame.f_locals["entry"]
                found[id(entry)] = [_frame(outer) for outer in stack[place + 1 :]]
    return found


def _frame(frame: FrameType) -> dict[str, Any]:
    code = frame.f_code
    return {"name": code.co_name, "filename": code.co_filename, "line": frame.f_lineno}


_lock = threading.Lock()
_recorder: Recorder | None = None


def recorder() -> Recorder | None:
    """The recorder of this process, made at the first call; None if TORCH_FR_BUFFER_SIZE is 0.

    Raises ConfigurationError.
    """
    global _recorder
    with _lock:
        if _recorder is None:
            _recorder = Recorder(os.environ)
        return _recorder if _recorder.slots else None


def dump_flight_record(path: str | os.PathLike[str] | None = None) -> Path:
    """Write the last operations of all groups of this process to a file for ``torchfrtrace``.

    ``path`` None: where torch writes its own, ``TORCH_FR_DUMP_TEMP_FILE`` with the rank appended,
    by default ``~/.cache/torch/comm_lib_trace_rank_``. Any thread may call it at any time, also
    while another one waits in a collective. Returns the path. Raises OSError, and RuntimeError
    where TORCH_FR_BUFFER_SIZE is 0.
    """
    own = recorder()
    if own is None:
        raise RuntimeError("dump_flight_record: nothing is recorded, TORCH_FR_BUFFER_SIZE is 0")
    return own.dump(path)
