"""All ranks' plans as one graph of steps; frames are paired, and the graph is run to its end.

A node is one step of one operation of one rank. It waits for
- the previous step in its lane, and the steps its ``after`` edges name;
- the frames it consumes: the k-th sent on a stream is the k-th that a receiver consumes;
- the step that gives back the lent frame it takes: the k-th lent is the k-th taken back;
- room, if it sends: here a stream holds ONE frame, so frame k+1 waits until every receiver has
  consumed frame k, and, if that was lent, until it has been taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from jetstream.collectives.ir import (
    AfterMode,
    Copy,
    FromAll,
    FromLent,
    FromPeer,
    Range,
    RankPlan,
    Reduce,
    Send,
    Stream,
    ToAll,
    step_bytes,
    step_count,
)
from jetstream.collectives.verify.structure import op_error
from jetstream.errors import PlanError

__all__ = ["Step", "StepGraph", "build_graph"]

# Operations of a deadlock's cycle that the error names.
_CYCLE_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One step: where it stands, and the bytes of its operation's ranges that it works on."""

    rank: int
    op_index: int
    number: int
    offset: int
    bytes: int

    def of(self, span: Range) -> Range:
        """The part of one of the operation's ranges that this step works on."""
        return span.part(self.offset, self.bytes)


@dataclass(frozen=True, slots=True)
class Channel:
    """A stream from ``sender`` to ``receiver``, or to its whole host where that is None."""

    sender: int
    receiver: int | None

    def __str__(self) -> str:
        receiver = "all" if self.receiver is None else f"rank {self.receiver}"
        return f"rank {self.sender}'s stream to {receiver}"


@dataclass(slots=True)
class StepGraph:
    """The steps of all ranks, numbered, and what each waits for."""

    plans: Sequence[RankPlan]
    steps: list[Step] = field(default_factory=list)
    #: first step of each operation, by rank and index
    first: list[list[int]] = field(default_factory=list)
    #: steps of the same rank that come before: lane order and edges
    local: list[list[int]] = field(default_factory=list)
    #: steps whose frames a step consumes, by the stream
    frames: list[dict[Stream, int]] = field(default_factory=list)
    #: steps that must have made room before a step can send
    room: list[list[int]] = field(default_factory=list)
    #: steps that append to a channel, and those that consume it, by receiver; in stream order
    sent: dict[Channel, list[int]] = field(default_factory=dict)
    taken: dict[tuple[Channel, int], list[int]] = field(default_factory=dict)
    #: steps that take back what was lent on a channel, in stream order
    taken_back: dict[Channel, list[int]] = field(default_factory=dict)
    #: for a step that lends: the step that gives the frame back
    giver: dict[int, int] = field(default_factory=dict)
    #: for a step that takes back: the step that lent the frame
    lender: dict[int, int] = field(default_factory=dict)
    #: an order in which every step comes after what it waits for
    order: list[int] = field(default_factory=list)

    def error(self, node: int, text: str) -> PlanError:
        """An error of one step."""
        step = self.steps[node]
        return op_error(self.plans[step.rank], step.op_index, f"step {step.number} {text}")

    def waits(self, node: int) -> Iterator[int]:
        """Everything that a step waits for."""
        yield from self.local[node]
        yield from self.frames[node].values()
        yield from self.room[node]
        if node in self.lender:
            yield self.giver[self.lender[node]]


def build_graph(plans: Sequence[RankPlan]) -> StepGraph:
    """Build the graph and prove that it runs to its end; raises PlanError if it does not.

    Also raised when a frame is sent that nobody consumes, awaited but never sent, or of another
    size than the step that consumes it.
    """
    graph = StepGraph(plans)
    for plan in plans:
        _add_steps(graph, plan)
        _add_local_edges(graph, plan)
    _collect_streams(graph)
    _pair_frames(graph)
    _pair_lent(graph)
    _run(graph)
    return graph


def _add_steps(graph: StepGraph, plan: RankPlan) -> None:
    chunk_bytes = plan.call.chunk_bytes
    graph.first.append([])
    for op_index, op in enumerate(plan.ops):
        graph.first[plan.rank].append(len(graph.steps))
        for number in range(step_count(op.bytes, chunk_bytes)):
            size_bytes = step_bytes(op.bytes, chunk_bytes, number)
            offset = number * chunk_bytes
            graph.steps.append(Step(plan.rank, op_index, number, offset, size_bytes))
            graph.local.append([])
            graph.frames.append({})
            graph.room.append([])


def _op_nodes(graph: StepGraph, plan: RankPlan, op_index: int) -> range:
    first = graph.first[plan.rank][op_index]
    return range(first, first + step_count(plan.ops[op_index].bytes, plan.call.chunk_bytes))


def _add_local_edges(graph: StepGraph, plan: RankPlan) -> None:
    lane_last: dict[int, int] = {}
    for op_index, op in enumerate(plan.ops):
        nodes = _op_nodes(graph, plan, op_index)
        for number, node in enumerate(nodes):
            if op.lane in lane_last:
                graph.local[node].append(lane_last[op.lane])
            lane_last[op.lane] = node
            for edge in op.after:
                target = _op_nodes(graph, plan, edge.op_index)
                done = edge.mode is AfterMode.DONE or number >= len(target)
                graph.local[node].append(target[-1] if done else target[number])


def _collect_streams(graph: StepGraph) -> None:
    for plan in graph.plans:
        for op_index, op in enumerate(plan.ops):
            nodes = _op_nodes(graph, plan, op_index)
            if isinstance(op, Send):
                receiver = None if isinstance(op.to, ToAll) else op.to.peer
                graph.sent.setdefault(Channel(plan.rank, receiver), []).extend(nodes)
                continue
            for source in op.sources:
                if isinstance(source, FromLent):
                    lent = Channel(plan.rank, source.peer)
                    graph.taken_back.setdefault(lent, []).extend(nodes)
                elif not isinstance(source, Range):
                    channel = _channel(source, plan.rank)
                    graph.taken.setdefault((channel, plan.rank), []).extend(nodes)


def _channel(stream: Stream, rank: int) -> Channel:
    return Channel(stream.peer, None if isinstance(stream, FromAll) else rank)


def _pair_frames(graph: StepGraph) -> None:
    for (channel, receiver), takers in graph.taken.items():
        sent = graph.sent.get(channel, [])
        if len(takers) > len(sent):
            raise graph.error(
                takers[len(sent)],
                f"at rank {receiver} awaits frame {len(sent)} of {channel}, "
                f"which carries {len(sent)} frames",
            )
    for channel, sent in graph.sent.items():
        everyone = graph.plans[channel.sender].placement.neighbours(channel.sender)
        for receiver in everyone if channel.receiver is None else [channel.receiver]:
            _pair_channel(graph, channel, receiver, sent)


def _pair_channel(graph: StepGraph, channel: Channel, receiver: int, sent: list[int]) -> None:
    takers = graph.taken.get((channel, receiver), [])
    if len(takers) < len(sent):
        frame = len(takers)
        raise graph.error(
            sent[frame], f"sends frame {frame} of {channel}, which rank {receiver} never consumes"
        )
    stream = (FromAll if channel.receiver is None else FromPeer)(channel.sender)
    for frame, (sender, taker) in enumerate(zip(sent, takers, strict=True)):
        # A frame carries its size and its step's number, and the receiver checks both.
        made, wanted = graph.steps[sender], graph.steps[taker]
        if (made.number, made.bytes) != (wanted.number, wanted.bytes):
            raise graph.error(
                taker,
                f"of {wanted.bytes} bytes consumes frame {frame} of {channel}, "
                f"which is step {made.number} of {made.bytes} bytes",
            )
        if _has_partials(graph, sender) != _has_partials(graph, taker):
            raise graph.error(
                taker, f"takes frame {frame} of {channel} for what it is not: partial folds or not"
            )
        graph.frames[taker][stream] = sender
        if frame + 1 < len(sent):
            graph.room[sent[frame + 1]].append(taker)


def _has_partials(graph: StepGraph, node: int) -> bool:
    """Whether the frames of a step are partial folds."""
    step = graph.steps[node]
    op = graph.plans[step.rank].ops[step.op_index]
    return op.source.scale != 0 if isinstance(op, Send) else getattr(op, "partials", False)


def _pair_lent(graph: StepGraph) -> None:
    """Pair what is lent on each channel with who gives it back and who takes it back."""
    for channel, sent in graph.sent.items():
        lent = [node for node in sent if _back_of(graph, node) is not None]
        if lent and len(lent) < len(sent):
            raise graph.error(lent[0], f"lends a frame of {channel}, which carries others too")
        takers = graph.taken_back.get(channel, [])
        if len(takers) < len(lent):
            raise graph.error(lent[len(takers)], "lends a frame that is never taken back")
        for position, (lender, taker) in enumerate(zip(lent, takers, strict=False)):
            giver = graph.taken[channel, _receiver(channel)][position]
            _pair_one_lent(graph, lender, giver, taker)
        for previous, following in pairwise(zip(lent, takers, strict=False)):
            graph.room[following[0]].append(previous[1])
    for channel, takers in graph.taken_back.items():
        lent_count = sum(_back_of(graph, node) is not None for node in graph.sent.get(channel, []))
        if len(takers) > lent_count:
            raise graph.error(takers[lent_count], "takes back a frame that is never lent")
    for taker, frames in enumerate(graph.frames):
        step = graph.steps[taker]
        op = graph.plans[step.rank].ops[step.op_index]
        for sender in frames.values() if isinstance(op, Reduce) and op.gives_back else ():
            if _back_of(graph, sender) is None:
                raise graph.error(taker, "gives back a frame that is not lent")


def _back_of(graph: StepGraph, node: int) -> Range | None:
    step = graph.steps[node]
    op = graph.plans[step.rank].ops[step.op_index]
    return op.back if isinstance(op, Send) else None


def _receiver(channel: Channel) -> int:
    assert channel.receiver is not None  # nothing is lent to all
    return channel.receiver


def _pair_one_lent(graph: StepGraph, lender: int, giver: int, taker: int) -> None:
    step = graph.steps[giver]
    op = graph.plans[step.rank].ops[step.op_index]
    if not isinstance(op, Reduce) or not op.gives_back:
        raise graph.error(giver, "consumes a lent frame and does not give it back")
    made, wanted = graph.steps[lender], graph.steps[taker]
    back, copy = _back_of(graph, lender), graph.plans[wanted.rank].ops[wanted.op_index]
    assert back is not None and isinstance(copy, Copy)
    if made.of(back) != wanted.of(copy.target):
        raise graph.error(taker, "takes a frame back to another place than the one it was lent for")
    graph.giver[lender] = giver
    graph.lender[taker] = lender


def _run(graph: StepGraph) -> None:
    """Fire every step once all it waits for has fired; raises PlanError if some never can.

    One run proves all: ranks and lanes that talk through first-in-first-out streams with blocking
    reads, and blocking writes as the same thing backwards, are a Kahn network, in which the
    schedule decides neither what is computed nor how far it gets (G. Kahn, "The semantics of a
    simple language for parallel programming", IFIP 1974). More room per stream, or a REDUCE
    that takes its frames one by one, only removes waits; so what runs here runs anywhere.
    """
    missing = [sum(1 for _ in graph.waits(node)) for node in range(len(graph.steps))]
    followers: list[list[int]] = [[] for _ in graph.steps]
    for node in range(len(graph.steps)):
        for other in graph.waits(node):
            followers[other].append(node)
    ready = deque(node for node, count in enumerate(missing) if count == 0)
    while ready:
        node = ready.popleft()
        graph.order.append(node)
        for follower in followers[node]:
            missing[follower] -= 1
            if missing[follower] == 0:
                ready.append(follower)
    if len(graph.order) < len(graph.steps):
        raise _deadlock(graph, missing)


def _deadlock(graph: StepGraph, missing: list[int]) -> PlanError:
    """Walk from a blocked step to one it waits for, until one comes round: that is the cycle."""
    node = next(node for node, count in enumerate(missing) if count > 0)
    walk: dict[int, int] = {}
    while node not in walk:
        walk[node] = len(walk)
        node = next(other for other in graph.waits(node) if missing[other] > 0)
    cycle = [graph.steps[other] for other in list(walk)[walk[node] :]]
    # One entry per operation: steps that wait for the step before them explain nothing.
    ops = [op for op, _ in groupby((step.rank, step.op_index) for step in (*cycle, cycle[0]))]
    names = [f"rank {rank} op #{op_index}" for rank, op_index in ops[1:]]
    text = ", which waits for ".join(names[:_CYCLE_SHOWN])
    return graph.error(node, f"is in a deadlock: it waits for {text}")
