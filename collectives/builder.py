"""A small language to write algorithms in: operations are appended, each call returns its index."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jetstream.collectives.calls import Call
from jetstream.collectives.ir import (
    REFER_NEVER_BYTES,
    After,
    Buffer,
    Copy,
    FromAll,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Refer,
    Send,
    Source,
    ToAll,
    ToPeer,
)
from jetstream.collectives.parts import Splits
from jetstream.collectives.refer import REFER_BYTES

__all__ = ["PlanBuilder"]

# A plan has 256 lanes, and two-shot needs two of its own and one per peer for either direction.
_PEER_LANES_MAX = 127


class PlanBuilder:
    """The plan of ``rank`` for ``call``, in the making."""

    def __init__(self, call: Call, rank: int, splits: Splits | None = None) -> None:
        self.call = call
        self.rank = rank
        self.splits = splits
        self.input_bytes = call.input_bytes(rank, splits)
        self.output_bytes = call.output_bytes(rank, splits)
        self._scratch_bytes = 0
        self.peers = tuple(peer for peer in range(call.world) if peer != rank)
        self._ops: list[Op] = []
        self._lane_count = 0

    def input(self, offset: int = 0, size_bytes: int | None = None) -> Range:
        """A range of INPUT; all of it by default."""
        return Range(Buffer.INPUT, offset, self.input_bytes if size_bytes is None else size_bytes)

    def output(self, offset: int = 0, size_bytes: int | None = None) -> Range:
        """A range of OUTPUT; all of it by default."""
        whole = self.output_bytes
        return Range(Buffer.OUTPUT, offset, whole if size_bytes is None else size_bytes)

    def scratch(self, size_bytes: int) -> Range:
        """A new range of SCRATCH."""
        self._scratch_bytes += size_bytes
        return Range(Buffer.SCRATCH, self._scratch_bytes - size_bytes, size_bytes)

    def contributions(
        self, own: Range, stream: Callable[[int], FromAll | FromPeer]
    ) -> tuple[Source, ...]:
        """One source per rank, in rank order: ``own`` here, ``stream(peer)`` for the others."""
        ranks = range(self.call.world)
        return tuple(own if rank == self.rank else stream(rank) for rank in ranks)

    def lane(self) -> int:
        """A new lane."""
        self._lane_count += 1
        return self._lane_count - 1

    def peer_lanes(self) -> list[tuple[int, int]]:
        """Each peer with a new lane to itself, in rank order.

        Above 127 peers some share a lane; as every rank takes its peers in the same order, no
        rank waits for one that waits for it.
        """
        lanes = [self.lane() for _ in self.peers[:_PEER_LANES_MAX]]
        return [(peer, lanes[i % len(lanes)]) for i, peer in enumerate(self.peers)]

    def send(
        self,
        lane: int,
        source: Range,
        to: ToAll | ToPeer,
        *,
        after: Iterable[After] = (),
        back: Range | None = None,
        refer: Refer = Refer.NEVER,
    ) -> int:
        """Append a SEND, one that lends if it has ``back``; returns its index."""
        return self._append(Send(lane, source, to, tuple(after), back, refer))

    def reduce(
        self,
        lane: int,
        target: Range,
        sources: Iterable[Source],
        *,
        after: Iterable[After] = (),
        gives_back: bool = False,
    ) -> int:
        """Append a REDUCE; returns its index."""
        return self._append(Reduce(lane, target, tuple(sources), tuple(after), gives_back))

    def copy(self, lane: int, target: Range, source: Source, *, after: Iterable[After] = ()) -> int:
        """Append a COPY; returns its index."""
        return self._append(Copy(lane, target, source, tuple(after)))

    def build(self) -> RankPlan:
        """The finished plan."""
        call = self.call
        return RankPlan(
            call=call,
            rank=self.rank,
            ops=tuple(self._ops),
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            scratch_bytes=self._scratch_bytes,
            divisor=call.divisor,
            splits=self.splits,
            refer_bytes=REFER_BYTES.get(call.kind, REFER_NEVER_BYTES),
        )

    def _append(self, op: Op) -> int:
        self._ops.append(op)
        return len(self._ops) - 1
