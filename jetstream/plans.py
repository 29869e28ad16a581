"""The plans of a communicator: chosen, compiled and loaded once per call, then found by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jetstream._core.native import ffi, lib
from jetstream.collectives import Call, choose, compile_plan
from jetstream.collectives.select import algorithms_of
from jetstream.dtypes import Algorithm, DType, Kind, RedOp
from jetstream.errors import ArgumentError

__all__ = ["PlanCache"]

_ALGORITHMS = {algorithm.label: algorithm for algorithm in Algorithm}


def algorithm_of(label: str) -> Algorithm:
    """Translate the name of an algorithm. Raises ArgumentError naming them all."""
    found = _ALGORITHMS.get(label)
    if found is None:
        raise ArgumentError(f"algo {label!r} is not one of {', '.join(_ALGORITHMS)}")
    return found


class PlanCache:
    """Plan ids by call. ``forced(kind)`` names the algorithm that the environment asks for;
    ``fail(status)`` raises what a status of the data plane means.
    """

    def __init__(
        self,
        handle: Any,
        rank: int,
        world: int,
        *,
        forced: Callable[[str], str | None],
        fail: Callable[[int], None],
    ) -> None:
        self._handle = handle
        self._rank = rank
        self._world = world
        self._forced = forced
        self._fail = fail
        self._ids: dict[Call, int] = {}

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
    ) -> Call:
        """The call with its algorithm and chunk size chosen.

        Raises ArgumentError for an algorithm, PlanError for a chunk size that cannot be used.
        """
        forced = None if algo is None else algorithm_of(algo)
        if algo is None and (label := self._forced(kind.label)) is not None:
            forced = algorithm_of(label)
            # JETSTREAM_ALGO without a kind speaks to the kinds that have the algorithm.
            forced = forced if forced in algorithms_of(kind) else None
        nbytes = count * dtype.itemsize
        algorithm, chosen = choose(kind, nbytes, self._world, forced=forced)
        return Call(
            kind=kind,
            redop=redop,
            dtype=dtype,
            count=count,
            root=root,
            world=self._world,
            algorithm=algorithm,
            chunk_bytes=chosen if chunk_bytes is None else chunk_bytes,
        )

    def load(self, call: Call) -> tuple[int, bool]:
        """The id of the loaded plan of ``call``, compiled at first use.

        The second value is true when older plans had to be unloaded to make room.
        """
        plan_id = self._ids.get(call)
        if plan_id is not None:
            return plan_id, False
        code = compile_plan(call, self._rank)
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
        plan_id = self._ids[call] = int(out[0])
        return plan_id, is_full

    def _drop_all(self) -> None:
        """Make room: unload every plan that is not running."""
        for call, plan_id in list(self._ids.items()):
            if lib.js_comm_unload_plan(self._handle, plan_id) == lib.JS_OK:
                del self._ids[call]
