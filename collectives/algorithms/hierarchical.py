"""Hierarchical algorithms: fold within each host, exchange between hosts, spread within each host.

So what several ranks of a host have to tell another host crosses the wire once. The ranks of a
host share this work: each deals with its counterparts, the ranks of the same place in the other
hosts. Partial folds travel unrounded, so the bits are those of the flat algorithms. Where nothing
is to be gained, on one host or with one rank on each, these are the flat algorithms.
"""

from __future__ import annotations

from jetstream.collectives.algorithms import direct, one_shot
from jetstream.collectives.algorithms.two_shot import shards
from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import After, FromAll, FromPeer, Refer, Source, ToAll, ToPeer

__all__ = [
    "all_gather",
    "all_reduce_one_shot",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
]


def all_reduce_one_shot(plan: PlanBuilder) -> None:
    """Send INPUT to all of the host, fold it there, send that to the counterparts, fold again.

    Every rank folds the whole array, so that each message has one hop in the host and one between
    hosts. In place, OUTPUT is written when INPUT has gone out.
    """
    if is_flat(plan):
        one_shot.all_reduce(plan)
        return
    after: list[After] = []
    if plan.neighbours:
        sent = plan.send(plan.lane(), plan.input(), ToAll(), refer=Refer.APART)
        after = [After(sent)]
    own = plan.partial(plan.input_bytes)
    group = plan.placement.groups[plan.host]
    sources = plan.contributions(plan.input(), FromAll, group)
    folded = plan.reduce(plan.lane(), own, sources)
    for peer, lane in plan.peer_lanes(plan.dependants):
        plan.send(lane, own, ToPeer(peer), after=[After(folded)])
    after.append(After(folded))
    plan.reduce(plan.lane(), plan.output(), from_hosts(plan, own, plan.rank), after=after)


def all_gather(plan: PlanBuilder) -> None:
    """Send INPUT to the host and to the counterparts; pass on to the host what comes from those.

    The stream to the host carries the own part first, then those of its dependants in rank order.
    """
    placement, part = plan.placement, plan.call.part
    if placement.is_one_host or placement.is_one_each:
        direct.all_gather(plan)
        return
    counterparts = [placement.counterpart(plan.rank, host) for host in plan.other_hosts]
    for peer, lane in plan.peer_lanes(counterparts):
        plan.send(lane, plan.input(), ToPeer(peer))
    out = plan.lane()
    if plan.neighbours:
        plan.send(out, plan.input(), ToAll(), refer=Refer.ALWAYS)
    plan.copy(plan.lane(), plan.output(*part(plan.rank)), plan.input())
    for peer, lane in plan.peer_lanes(plan.dependants):
        copied = plan.copy(lane, plan.output(*part(peer)), FromPeer(peer))
        if plan.neighbours:
            passed = plan.output(*part(peer))
            plan.send(out, passed, ToAll(), after=[After(copied)], refer=Refer.ALWAYS)
    for peer, lane in plan.peer_lanes(plan.neighbours):
        for rank in (peer, *placement.dependants(peer)):
            plan.copy(lane, plan.output(*part(rank)), FromAll(peer))


def reduce_scatter(plan: PlanBuilder) -> None:
    """Fold each rank's part within the host, at its counterpart, which sends it on; fold those.

    Parts of other hosts' ranks come first, to be on their way early.
    """
    if is_flat(plan):
        direct.reduce_scatter(plan)
        return
    placement, part = plan.placement, plan.call.part
    group = placement.groups[plan.host]
    lanes = dict(plan.peer_lanes(plan.neighbours))
    fold_lane = plan.lane()
    wire = dict(plan.peer_lanes(plan.dependants))
    own, after = plan.input(0, 0), []
    for rank in (*plan.remote, *group):
        folder, piece = placement.counterpart(rank, plan.host), plan.input(*part(rank))
        if folder != plan.rank:
            plan.send(lanes[folder], piece, ToPeer(folder), refer=Refer.ALWAYS)
            continue
        own = plan.partial(piece.bytes)
        sources = plan.contributions(piece, FromPeer, group)
        after = [After(plan.reduce(fold_lane, own, sources))]
        if rank != plan.rank:
            plan.send(wire[rank], own, ToPeer(rank), after=after)
    plan.reduce(plan.lane(), plan.output(), from_hosts(plan, own, plan.rank), after=after)


def reduce(plan: PlanBuilder) -> None:
    """Fold within each host, a shard on each rank, and send it to the root, which folds those.

    On the root's host all send to the root, which folds their contributions itself.
    """
    if is_flat(plan):
        direct.reduce(plan)
        return
    placement, root = plan.placement, plan.call.root
    group = placement.groups[plan.host]
    is_home = root in group
    parts = shards(plan.input_bytes, placement.ranks_min)
    owners = [root if is_home else group[column] for column in range(len(parts))]
    lanes = dict(plan.peer_lanes(sorted({*owners} - {plan.rank})))
    fold_lane, last_lane = plan.lane(), plan.lane()
    for column, (owner, part) in enumerate(zip(owners, parts, strict=True)):
        if owner != plan.rank:
            plan.send(lanes[owner], plan.input(*part), ToPeer(owner), refer=Refer.ALWAYS)
            continue
        own = plan.partial(part[1])
        sources = plan.contributions(plan.input(*part), FromPeer, group)
        after = [After(plan.reduce(fold_lane, own, sources))]
        if is_home:
            everyone = tuple(
                own if host == plan.host else FromPeer(ranks[column])
                for host, ranks in enumerate(placement.groups)
            )
            plan.reduce(last_lane, plan.output(*part), everyone, after=after)
        else:
            plan.send(last_lane, own, ToPeer(root), after=after)


def broadcast(plan: PlanBuilder) -> None:
    """Root: send INPUT to its host and to one rank of each other host, which passes it on."""
    placement, root = plan.placement, plan.call.root
    if placement.is_one_host or placement.is_one_each:
        direct.broadcast(plan)
        return
    relay = placement.counterpart(root, plan.host)
    if plan.rank != relay:
        plan.copy(plan.lane(), plan.output(), FromAll(relay))
    elif plan.rank != root:
        copied = plan.copy(plan.lane(), plan.output(), FromPeer(root))
        if plan.neighbours:
            after = [After(copied)]
            plan.send(plan.lane(), plan.output(), ToAll(), after=after, refer=Refer.ALWAYS)
    else:
        relays = [placement.counterpart(root, host) for host in plan.other_hosts]
        for peer, lane in plan.peer_lanes(relays):
            plan.send(lane, plan.input(), ToPeer(peer))
        if plan.neighbours:
            plan.send(plan.lane(), plan.input(), ToAll(), refer=Refer.ALWAYS)
        plan.copy(plan.lane(), plan.output(), plan.input())


def barrier(plan: PlanBuilder) -> None:
    """Await an empty frame of each rank of the host, then of a counterpart in each other host."""
    placement = plan.placement
    if placement.is_one_host or placement.is_one_each:
        direct.barrier(plan)
        return
    lane = plan.lane()
    if plan.neighbours:
        plan.send(lane, plan.input(), ToAll())
    for peer in plan.neighbours:
        plan.copy(lane, plan.output(), FromAll(peer))
    for peer in plan.dependants:
        plan.send(lane, plan.input(), ToPeer(peer))
    for host in plan.other_hosts:
        plan.copy(lane, plan.output(), FromPeer(placement.counterpart(plan.rank, host)))


def is_flat(plan: PlanBuilder) -> bool:
    """Whether a reduction over hosts is better flat: it has no partial folds, or needs none."""
    placement = plan.placement
    return placement.is_one_host or placement.is_one_each or plan.call.partial_scale == 0


def from_hosts(plan: PlanBuilder, own: Source, rank: int) -> tuple[Source, ...]:
    """The partial folds of all hosts, in fold order, as the counterparts of ``rank`` send them."""
    placement = plan.placement
    return tuple(
        own if host == plan.host else FromPeer(placement.counterpart(rank, host))
        for host in range(placement.host_count)
    )
