"""Which ranks share a host: what decides the streams they have and the order in which they fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from jetstream.errors import PlanError

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """``hosts[r]`` is the host of rank r; hosts are numbered in the order of their lowest ranks."""

    hosts: tuple[int, ...]

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of each host, ascending: the order in which contributions are folded."""
        found: list[list[int]] = [[] for _ in range(max(self.hosts) + 1)]
        for rank, host in enumerate(self.hosts):
            found[host].append(rank)
        return tuple(tuple(ranks) for ranks in found)

    @property
    def host_count(self) -> int:
        """How many hosts there are."""
        return len(self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of ranks of each host."""
        return tuple(len(ranks) for ranks in self.groups)

    @property
    def is_one_host(self) -> bool:
        """Whether all ranks share a host."""
        return len(self.groups) == 1

    @property
    def is_one_each(self) -> bool:
        """Whether no two ranks share a host."""
        return len(self.groups) == len(self.hosts)

    @property
    def ranks_min(self) -> int:
        """Ranks of the host that has fewest."""
        return min(len(ranks) for ranks in self.groups)

    def is_local(self, rank: int, other: int) -> bool:
        """Whether two ranks share a host."""
        return self.hosts[rank] == self.hosts[other]

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The other ranks of a rank's host, ascending."""
        return tuple(other for other in self.groups[self.hosts[rank]] if other != rank)

    def remote(self, rank: int) -> tuple[int, ...]:
        """The ranks of other hosts, ascending."""
        return tuple(
            other for other in range(len(self.hosts)) if self.hosts[other] != self.hosts[rank]
        )

    def local_index(self, rank: int) -> int:
        """The place of a rank among those of its host."""
        return self.groups[self.hosts[rank]].index(rank)

    def counterpart(self, rank: int, host: int) -> int:
        """The rank of ``host`` that deals with ``rank``: that of the same place in its host.

        Where ``host`` has fewer ranks they take turns.
        """
        ranks = self.groups[host]
        return ranks[self.local_index(rank) % len(ranks)]

    def dependants(self, rank: int) -> tuple[int, ...]:
        """The ranks of other hosts, ascending, whose counterpart ``rank`` is."""
        host = self.hosts[rank]
        return tuple(other for other in self.remote(rank) if self.counterpart(other, host) == rank)

    def by_host(self, ranks: Iterable[int]) -> list[list[int]]:
        """Some of the ranks, apart by host, in fold order; hosts with none of them are left out."""
        wanted = set(ranks)
        found = [[rank for rank in group if rank in wanted] for group in self.groups]
        return [group for group in found if group]


@lru_cache(maxsize=256)
def _place(hosts: tuple[int, ...]) -> Placement:
    numbers: dict[int, int] = {}
    return Placement(tuple(numbers.setdefault(host, len(numbers)) for host in hosts))


def place(hosts: Sequence[int], world: int) -> Placement:
    """The placement of ``world`` ranks; none given: all on one host.

    Which numbers stand for the hosts does not matter. Raises PlanError unless there is one number
    per rank.
    """
    if len(hosts) not in (0, world):
        raise PlanError(f"{len(hosts)} hosts for {world} ranks: each rank has one")
    return _place(tuple(hosts) or (0,) * world)
