"""Which ranks share a host: those that can share memory and watch each other's processes.

That takes the same kernel, the same PID namespace (pidfds) and the same network namespace (the Unix
socket that hands over the segment). JETSTREAM_HOST divides such a host further, for trying out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jetstream.control.messages import Member

__all__ = ["Placement", "are_neighbours", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """The hosts of a job, numbered in the order of their first ranks.

    ``host_index[r]``: the host of rank r. ``machine_index[r]``: the kernel that it runs on, whose
    cores several hosts share if they are containers or virtual. ``names``: by host, all different.
    ``is_one_network``: all hosts are in one network namespace of one machine.
    ``shares_network``: some are, where raw frames do not get from one to the other.
    """

    host_index: tuple[int, ...]
    machine_index: tuple[int, ...]
    names: tuple[str, ...]
    is_one_network: bool
    shares_network: bool = False

    def ranks_of(self, host: int) -> tuple[int, ...]:
        """The ranks of a host, ascending."""
        return tuple(rank for rank, index in enumerate(self.host_index) if index == host)

    def neighbours_of(self, rank: int) -> tuple[int, ...]:
        """The ranks of the host of `rank`, itself included."""
        return self.ranks_of(self.host_index[rank])

    def leader_of(self, rank: int) -> int:
        """The lowest rank of the host of `rank`: it makes the host's segment."""
        return self.host_index.index(self.host_index[rank])

    @property
    def is_spread(self) -> bool:
        """Whether there is more than one host."""
        return len(self.names) > 1


def place(members: Sequence[Member]) -> Placement:
    """Returns where the `members`, by rank, are."""
    hosts = [
        (member.boot_id, member.pid_namespace, member.net_namespace, member.host)
        for member in members
    ]
    machines = [member.boot_id for member in members]
    networks = {(member.boot_id, member.net_namespace) for member in members}
    distinct = list(dict.fromkeys(hosts))
    names = [host[-1] for host in distinct]
    return Placement(
        host_index=_numbered(hosts),
        machine_index=_numbered(machines),
        names=tuple(
            name if names.count(name) == 1 else f"{name}#{index}"
            for index, name in enumerate(names)
        ),
        is_one_network=len(networks) == 1,
        shares_network=len(networks) < len(distinct),
    )


def are_neighbours(one: Member, other: Member) -> bool:
    """Whether two ranks share a host."""
    return not place((one, other)).is_spread


def _numbered(keys: Sequence[object]) -> tuple[int, ...]:
    """Replaces each key by the number of its first appearance among the distinct ones."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)
