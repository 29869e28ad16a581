"""Random runs of the rendezvous: machines, a network, deaths and failures, under a seed."""

from __future__ import annotations

from collections import deque
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.control.coordinator import Coordinator
from jetstream.control.joiner import HELLO_INTERVAL_S, Joiner
from jetstream.control.machine import (
    Attached,
    Bereaved,
    CoordinatorState,
    LocalFailure,
    Lost,
    Prepare,
    Prepared,
    Send,
    Watch,
)
from jetstream.control.messages import Assemble, Hello, Member, Message
from jetstream.control.placement import place
from jetstream.errors import (
    RendezvousError,
)

ADDRESS = "ipc://@job"
TIMEOUT_S = 60.0


def hello_of(rank: int, world: int, host: str) -> Hello:
    member = Member(
        rank=rank,
        local_rank=rank,
        pid=100 + rank,
        start_ticks=7,
        host=host,
        boot_id="boot",
        pid_namespace=1,
        net_namespace=2,
        cpus=b"\x03",
    )
    return Hello(
        member=member,
        world_size=world,
        build="build-1",
        algorithms="",
        link="auto",
        link_choice="udp",
        link_reason="",
    )


class Job:
    """Coordinator and joiners over a network that keeps order per direction and nothing else."""

    def __init__(self, hosts: list[str], silence_s: float = 1e6) -> None:
        """``hosts[r]`` is the host of rank r."""
        world = self.world = len(hosts)
        self.hosts = hosts
        self.now_s = 0.0
        hellos = [hello_of(rank, world, host) for rank, host in enumerate(hosts)]
        self.machines: list[Coordinator | Joiner] = [
            Coordinator(hellos[0], now_s=0.0, timeout_s=TIMEOUT_S, silence_s=silence_s)
        ]
        self.machines += [
            Joiner(hello, address=ADDRESS, now_s=0.0, timeout_s=TIMEOUT_S, silence_s=silence_s)
            for hello in hellos[1:]
        ]
        self.queues: dict[tuple[int, int], deque[Message]] = {}
        self.dead: set[int] = set()
        self.watched: set[int] = set()

    def perform(self, rank: int) -> None:
        for effect in self.machines[rank].take_effects():
            if isinstance(effect, Send):
                target = int(effect.peer) if rank == 0 else 0
                self.queues.setdefault((rank, target), deque()).append(effect.message)
            elif isinstance(effect, Watch):
                self.watched.add(effect.member.rank)
            elif isinstance(effect, Prepare):
                self.prepare(rank, effect.assembly)
            else:
                self.step(rank, Attached())

    def prepare(self, rank: int, assembly: Assemble) -> None:
        placement = place(assembly.members)
        endpoint = b"%d" % rank if assembly.link else b""
        fd_socket = self.hosts[rank] if placement.leader_of(rank) == rank else ""
        self.step(rank, Prepared(endpoint, fd_socket, "selection" if rank == 0 else ""))

    def step(self, rank: int, event: object, peer: bytes = b"") -> None:
        if rank not in self.dead:
            self.machines[rank].step(event, now_s=self.now_s, peer=peer)
            self.perform(rank)

    def deliver(self, source: int, target: int) -> None:
        message = self.queues[source, target].popleft()
        self.step(target, message, peer=b"%d" % source if target == 0 else b"")

    def tick(self, by_s: float) -> None:
        self.now_s += by_s
        for rank, machine in enumerate(self.machines):
            if rank not in self.dead:
                machine.tick(now_s=self.now_s)
                self.perform(rank)

    def notice(self) -> None:
        """Deaths are noticed by pidfd: on the same host, once a rank knows the others."""
        for rank in self.dead & self.watched:
            self.step(0, Lost(rank))
        for rank in range(1, self.world):
            if self.machines[rank].assembly is None or self.machines[rank].is_final:
                continue
            for lost in sorted(self.dead):
                if self.hosts[lost] == self.hosts[rank] and lost == 0:
                    self.step(rank, Lost(0))
                elif self.hosts[lost] == self.hosts[rank] != self.hosts[0]:
                    self.step(rank, Bereaved(RendezvousError(f"rank {lost} died")))

    def settle(self) -> None:
        """Delivers everything, lets deaths be noticed and time pass, until all is over."""
        for _ in range(1000):
            self.notice()
            while self.open_queues():
                self.deliver(*self.open_queues()[0])
            self.tick(HELLO_INTERVAL_S)
            if all(machine.is_final for machine in self.machines):
                break

    def open_queues(self) -> list[tuple[int, int]]:
        return sorted(key for key, queue in self.queues.items() if queue)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.booleans(),
)
def test_random_runs(hosts: list[str], random: Random, is_killing: bool, is_failing: bool) -> None:
    """All ranks join, or after a failure none; and it ends in bounded time either way."""
    world = len(hosts)
    job = Job(hosts)
    job.tick(0.0)
    for _ in range(random.randrange(1, 12 * world)):
        if is_killing and not job.dead and random.random() < 0.05:
            job.dead.add(random.randrange(world))
        if is_failing and random.random() < 0.05:
            job.step(random.randrange(world), LocalFailure(RendezvousError("x")))
        if job.open_queues() and random.random() < 0.8:
            job.deliver(*random.choice(job.open_queues()))
        else:
            job.tick(random.choice([0.0, 0.1, 0.3, 2.0]))
    job.settle()
    alive = [machine for rank, machine in enumerate(job.machines) if rank not in job.dead]
    joined = [machine for machine in job.machines if machine.state.name == "JOINED"]
    assert all(machine.is_final for machine in alive)
    if not is_killing and not is_failing:
        assert len(joined) == world
        for machine in joined:
            assert machine.welcome == job.machines[0].welcome
            assert machine.assembly == job.machines[0].assembly
        welcome = job.machines[0].welcome
        assert welcome is not None
        assert welcome.fd_sockets == tuple(dict.fromkeys(hosts))
        assert [bool(endpoint) for endpoint in welcome.endpoints] == [len(set(hosts)) > 1] * world
    if job.machines[0].state is CoordinatorState.FAILED:
        assert not joined
    if job.machines[0].state is CoordinatorState.JOINED and not is_failing:
        assert all(machine in joined for machine in alive)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=5),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_deaths_out_of_sight_are_noticed_by_silence(
    hosts: list[str], random: Random, is_killing: bool
) -> None:
    """One rank never comes, and another one, on a host of its own, may die while all wait."""
    victim, absent = random.sample(range(len(hosts)), 2)
    if absent == 0:
        victim, absent = absent, victim
    hosts[victim] = "v"
    job = Job(hosts, silence_s=5.0)
    job.dead.add(absent)
    death_s = 1.0 + random.random()
    while job.now_s < 9.0:
        job.tick(0.2)
        while job.open_queues():
            job.deliver(*random.choice(job.open_queues()))
        if is_killing and job.now_s >= death_s:
            job.dead.add(victim)
    for rank in set(range(len(hosts))) - job.dead:
        error = job.machines[rank].error
        assert (error is not None) == is_killing
        assert error is None or f"rank {victim}" in str(error)
        assert error is None or "silent for 5 s" in str(error)
