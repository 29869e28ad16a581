"""Collectives that a device launches: plan, addresses, and memory that is registered for them."""

from __future__ import annotations

import weakref
from typing import Any

from jetstream._core.native import lib
from jetstream.transport.host import Host, PreparedCall
from jetstream.transport.regions import RegionTable, extent

__all__ = ["Launch"]

_READ: int = lib.JS_ACCESS_READ
_WRITE: int = lib.JS_ACCESS_WRITE


class Launch:
    """A collective with fixed arrays, for a device. Made by ``QueuePair.prepare``.

    ``key``, ``source_addr`` and ``target_addr`` are what a descriptor has of it; ``result`` is what
    the call returns: the arrays hold it once a launch is complete. Plan, arrays and their
    registration last as long as this object, so whoever launches it keeps it.
    """

    def __init__(
        self,
        host: Host,
        table: RegionTable,
        kind: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        call = host.prepare(kind, arguments, options)
        self._call = call
        self.table = table
        self.key = call.plan_id
        self.result = call.result
        self.source_addr, _ = extent(call.source)
        self.target_addr, _ = extent(call.target)
        for region in _register(table, call):
            weakref.finalize(self, table.discard, region).atexit = False

    def __repr__(self) -> str:
        return f"<Launch {self._call.what}, plan {self.key}>"


def _register(table: RegionTable, call: PreparedCall) -> list[Any]:
    """Registers the arrays of a call where no region covers them."""
    is_same = extent(call.source) == extent(call.target)
    wanted = [(call.target, _READ | _WRITE if is_same else _WRITE), (call.source, _READ)]
    regions = []
    for array, access in wanted:
        parts = [bit for bit in (_READ, _WRITE) if access & bit]
        if not all(table.has(array, bit) for bit in parts):
            regions.append(table.add(array, access))
    return regions
