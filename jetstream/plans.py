"""The plans of a communicator: chosen, compiled and loaded once per call, then found by key."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from jetstream._core.native import ffi, lib
from jetstream.collectives import Call, Splits, choose, compile_plan, compile_splits
from jetstream.collectives.placement import place
from jetstream.collectives.select import algorithms_of, limit_chunk
from jetstream.collectives.tuning import selection_from_text
from jetstream.config import Config
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import ArgumentError, ConfigurationError

__all__ = ["PlanCache", "check_forced"]

#: Plans with unequal parts that are kept: these can be different in every call.
UNEQUAL_PLANS_MAX = 64

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


class PlanCache:
    """Plan ids by call. ``config`` has what the environment asks for and what all ranks choose by;
    ``fail(status)`` raises what a status of the data plane means; ``hosts`` are the hosts of the
    communicator's ranks, by any number, and none if all ranks share one.
    """

    def __init__(
        self,
        handle: Any,
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
        #: Held by whoever finds, loads or unloads; what is about to be launched may be unloaded all
        #: the same, and then the data plane refuses its id.
        self.lock = threading.RLock()
        self._ids: dict[Call, int] = {}
        self._unequal: OrderedDict[Any, int] = OrderedDict()  # the oldest first
        self._pins: dict[int, list[weakref.ref[Any]]] = {}  # owners of a plan that must stay

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

    def load(self, call: Call) -> tuple[int, bool]:
        """The id of the loaded plan of ``call``, compiled at first use.

        The second value is true when older plans had to be unloaded to make room.
        """
        plan_id = self._ids.get(call)
        if plan_id is not None:
            return plan_id, False
        code = compile_plan(call, self._rank, hosts=self._hosts)
        plan_id, is_full = self._load_code(code)
        self._ids[call] = plan_id
        return plan_id, is_full

    def find_unequal(self, key: Hashable) -> int | None:
        """The id of a plan with unequal parts, if it is still loaded."""
        plan_id = self._unequal.get(key)
        if plan_id is not None:
            self._unequal.move_to_end(key)
        return plan_id

    def load_unequal(self, key: Hashable, call: Call, splits: Splits | None) -> tuple[int, bool]:
        """Compile and load a plan with unequal parts; as ``load``.

        Only the last of these are kept, apart from the plans with equal parts, so that calls whose
        parts change every time push out nothing but each other.
        """
        if splits is None:
            code = compile_plan(call, self._rank, hosts=self._hosts)
        else:
            code = compile_splits(call, self._rank, splits, self._hosts)
        while len(self._unequal) >= UNEQUAL_PLANS_MAX:
            loaded = self._unequal.items()
            oldest = next((key for key, plan in loaded if not self._is_pinned(plan)), None)
            if oldest is None or not self._unload(self._unequal[oldest]):
                break  # it is running; later ones are too
            del self._unequal[oldest]
        plan_id, is_full = self._load_code(code)
        self._unequal[key] = plan_id
        return plan_id, is_full

    def pin(self, plan_id: int, owner: object) -> None:
        """Keep a plan loaded as long as ``owner`` lives."""
        with self.lock:
            pins = self._pins.setdefault(plan_id, [])
            if len(pins) % 64 == 63:
                pins[:] = [pin for pin in pins if pin() is not None]
            pins.append(weakref.ref(owner))

    def _is_pinned(self, plan_id: int) -> bool:
        return any(pin() is not None for pin in self._pins.get(plan_id, ()))

    def _unload(self, plan_id: int) -> bool:
        if self._is_pinned(plan_id):
            return False
        return bool(lib.js_comm_unload_plan(self._handle, plan_id) == lib.JS_OK)

    def _load_code(self, code: bytes) -> tuple[int, bool]:
        aligned = ffi.new("uint64_t[]", -(-len(code) // 8))
        ffi.memmove(aligned, code, len(code))
        out = ffi.new("uint32_t *")
        status = lib.js_comm_load_plan(self._handle, aligned, len(code), out)
        is_full = status == lib.JS_ERR_FULL
        if is_full:
            self._drop_all()
            status = lib.js_comm_load_plan(self._handle, aligned, len(code), out)
        if status < 0:
            self._fail(status)
        return int(out[0]), is_full

    def _drop_all(self) -> None:
        """Make room: unload every plan that is not running and not pinned."""
        caches: tuple[dict[Any, int], ...] = (self._ids, self._unequal)
        for ids in caches:
            for key, plan_id in list(ids.items()):
                if self._unload(plan_id):
                    del ids[key]
