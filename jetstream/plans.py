"""The plans of a communicator: chosen, compiled and loaded once per call, then found by key."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from jetstream._core.native import ffi, lib
from jetstream.collectives import Call, Splits, choose, compile_plan, compile_splits
from jetstream.collectives.lower import scratch_bytes
from jetstream.collectives.placement import place
from jetstream.collectives.select import algorithms_of, limit_chunk
from jetstream.collectives.tuning import selection_from_text
from jetstream.config import Config
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import ArgumentError, ClosedError, ConfigurationError, ForkedError

__all__ = ["Plan", "PlanCache", "check_forced"]

#: Plans with unequal parts that are kept: these can be different in every call.
UNEQUAL_PLANS_MAX = 64

#: Memory of their own that all plans together may have, unless more of it is in use. Without a
#: limit, sums between hosts whose length changes every time would take more and more.
SCRATCH_BYTES_MAX = 1 << 30

#: What the chunk size of a call with splits is chosen for. It must be the same on all ranks, and
#: no rank knows the others' splits.
_SPLITS_BYTES = 1 << 20

_KINDS = {kind.label: kind for kind in Kind}
_ALGORITHMS = {algorithm.label: algorithm for algorithm in Algorithm}


def algorithm_of(label: str) -> Algorithm:
    """Translate the name of an algorithm. Raises ArgumentError naming them all."""
    found = _ALGORITHMS.get(label) if isinstance(label, str) else None
    if found is None:
        raise ArgumentError(f"algo {label!r} is not one of {', '.join(_ALGORITHMS)}")
    return found


def check_forced(config: Config) -> None:
    """Raise ConfigurationError where JETSTREAM_ALGO gives a kind what it does not have."""
    for key, algorithm in config.algorithms:
        label = key.partition("<=")[0]
        if label == "":
            continue
        known = [found.label for found in algorithms_of(_KINDS[label])]
        if algorithm not in known:
            raise ConfigurationError(
                f"JETSTREAM_ALGO asks for {algorithm} of {label}, which has only {', '.join(known)}"
            )


class Plan:
    """A plan that is loaded, and stays so as long as anybody but the cache holds this.

    So another thread cannot unload it between the moment at which it is found and its launch.
    """

    __slots__ = ("__weakref__", "id", "scratch_bytes")

    def __init__(self, plan_id: int, scratch_bytes: int) -> None:
        self.id = plan_id
        self.scratch_bytes = scratch_bytes


class PlanCache:
    """Plans by call. ``handle()`` is the open ``js_comm *``, or raises ClosedError, ForkedError;
    ``config`` has what the environment asks for and what all ranks choose by; ``fail(status)``
    raises what a status of the data plane means; ``hosts`` are the hosts of the communicator's
    ranks, by any number, and none if all ranks share one.
    """

    def __init__(
        self,
        handle: Callable[[], Any],
        rank: int,
        world: int,
        *,
        config: Config,
        fail: Callable[[int], None],
        hosts: tuple[int, ...] = (),
    ) -> None:
        self._handle = handle
        self._rank = rank
        self._world = world
        self._placement = place(hosts, world)
        self._hosts = () if self._placement.is_one_host else self._placement.hosts
        self._forced = config.algorithm_for
        self._selection = selection_from_text(config.selection)
        self._fail = fail
        #: Held by whoever loads or unloads.
        self.lock = threading.RLock()
        #: Plans with equal parts by what the caller asked for, which any thread may look up.
        self.found: dict[Any, Plan] = {}
        #: Called before plans are unloaded: no id that was written down may be used any more.
        self.on_unload: list[Callable[[], None]] = []
        self._equal: dict[Any, Plan] = {}
        self._unequal: dict[Any, Plan] = {}  # the oldest first
        self._scratch_bytes = 0

    def call(
        self,
        kind: Kind,
        dtype: DType,
        count: int,
        *,
        redop: RedOp = RedOp.SUM,
        root: int = 0,
        algo: str | None = None,
        chunk_bytes: int | None = None,
        counts: tuple[int, ...] = (),
        has_splits: bool = False,
    ) -> Call:
        """The call with its algorithm and chunk size chosen.

        ``count`` is the sum of ``counts`` where there are any. Raises ArgumentError for an
        algorithm, PlanError for a chunk size that cannot be used; over hosts chunks are made as
        small as they have to be.
        """
        if chunk_bytes is not None and not isinstance(chunk_bytes, (int, np.integer)):
            raise ArgumentError(f"chunk_bytes is {chunk_bytes!r}, not a number of bytes")
        nbytes = max(counts, default=count) * dtype.itemsize
        nbytes = _SPLITS_BYTES if has_splits else nbytes
        forced = None if algo is None else algorithm_of(algo)
        if algo is None and (label := self._forced(kind.label, nbytes)) is not None:
            forced = algorithm_of(label)
            # JETSTREAM_ALGO without a kind speaks to the kinds that have the algorithm.
            forced = forced if forced in algorithms_of(kind) else None
        algorithm, chosen = choose(
            kind,
            nbytes,
            self._world,
            forced=forced,
            selection=self._selection,
            placement=self._placement,
        )
        call = Call(
            kind=kind,
            redop=redop,
            dtype=dtype,
            count=count,
            root=root,
            world=self._world,
            algorithm=algorithm,
            chunk_bytes=chosen if chunk_bytes is None else chunk_bytes,
            counts=counts,
            has_splits=has_splits,
        )
        limit = limit_chunk(call.chunk_bytes, call.partial_scale, self._placement)
        return call if call.chunk_bytes == limit else replace(call, chunk_bytes=limit)

    def load(self, call: Call) -> Plan:
        """The plan of ``call``, compiled at first use. The lock is held, also by what follows."""
        plan = self._equal.get(call)
        if plan is None:
            plan = self._load_code(compile_plan(call, self._rank, hosts=self._hosts))
            self._equal[call] = plan
        return plan

    def find_unequal(self, key: Hashable) -> Plan | None:
        """A plan with unequal parts, if it is still loaded."""
        plan = self._unequal.pop(key, None)
        if plan is not None:
            self._unequal[key] = plan
        return plan

    def load_unequal(self, key: Hashable, call: Call, splits: Splits | None) -> Plan:
        """Compile and load a plan with unequal parts.

        Only the last of these are kept, apart from the plans with equal parts, so that calls whose
        parts change every time push out nothing but each other.
        """
        if splits is None:
            code = compile_plan(call, self._rank, hosts=self._hosts)
        else:
            code = compile_splits(call, self._rank, splits, self._hosts)
        for oldest in list(self._unequal):
            if len(self._unequal) < UNEQUAL_PLANS_MAX:
                break
            self._unload(self._unequal, oldest)
        plan = self._unequal[key] = self._load_code(code)
        return plan

    def make_room(self) -> None:
        """Unload every plan that is not running and that nobody holds."""
        with self.lock:
            self.found.clear()
            for forget in self.on_unload:
                forget()
            for plans in (self._equal, self._unequal):
                for key in list(plans):
                    self._unload(plans, key)

    def _unload(self, plans: dict[Any, Plan], key: Any) -> None:
        """Take a plan out of a cache, unless it is running or held. It is in no other one."""
        plan = plans.pop(key)
        plan_id, scratch, held = plan.id, plan.scratch_bytes, weakref.ref(plan)
        del plan
        holder = held()
        if holder is None and self._is_unloaded(plan_id):
            self._scratch_bytes -= scratch
        else:
            plans[key] = holder or Plan(plan_id, scratch)

    def _is_unloaded(self, plan_id: int) -> bool:
        try:
            return bool(lib.js_comm_unload_plan(self._handle(), plan_id) == lib.JS_OK)
        except (ClosedError, ForkedError):  # all plans are gone, or the parent's
            return False

    def _load_code(self, code: bytes) -> Plan:
        scratch = scratch_bytes(code)
        if scratch and self._scratch_bytes + scratch > SCRATCH_BYTES_MAX:
            self.make_room()
        aligned = ffi.new("uint64_t[]", -(-len(code) // 8))
        ffi.memmove(aligned, code, len(code))
        out = ffi.new("uint32_t *")
        # Compiling takes long: another thread may have closed.
        status = lib.js_comm_load_plan(self._handle(), aligned, len(code), out)
        if status == lib.JS_ERR_FULL:
            self.make_room()
            status = lib.js_comm_load_plan(self._handle(), aligned, len(code), out)
        if status < 0:
            self._fail(status)
        self._scratch_bytes += scratch
        return Plan(int(out[0]), scratch)
