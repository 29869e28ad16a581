"""Random runs of the rendezvous: machines, a network, deaths and failures, under a seed."""

from __future__ import annotations

import dataclasses
from collections import deque
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.control.machine import (
    Attached,
    CoordinatorState,
    CreateSegment,
    JoinerState,
    LocalFailure,
    Lost,
    Machine,
    SegmentCreated,
    Send,
    Watch,
)
from jetstream.control.messages import (
    Hello,
    Member,
    Message,
    Welcome,
)
from jetstream.control.protocol import (
    HELLO_INTERVAL_S,
    Coordinator,
    Joiner,
)
from jetstream.errors import (
    RendezvousError,
)

ADDRESS = "ipc://@job"
TIMEOUT_S = 60.0


def hello_of(rank: int, world: int, *, pid: int = 0, **changes: object) -> Hello:
    member = Member(
        rank=rank,
        local_rank=rank,
        pid=pid or 100 + rank,
        start_ticks=7,
        host="host",
        cpus=b"\x03",
    )
    hello = Hello(
        member=member,
        world_size=world,
        build="build-1",
        boot_id="boot",
        pid_namespace=1,
        algorithms="",
    )
    return dataclasses.replace(hello, **changes)  # type: ignore[arg-type]


def welcome_of(world: int) -> Welcome:
    members = tuple(hello_of(rank, world).member for rank in range(world))
    return Welcome(members=members, fd_socket="socket")


def coordinator(world: int) -> Coordinator:
    return Coordinator(hello_of(0, world), now_s=0.0, timeout_s=TIMEOUT_S)


def joiner(rank: int, world: int) -> Joiner:
    me = hello_of(rank, world)
    return Joiner(me, address=ADDRESS, now_s=0.0, timeout_s=TIMEOUT_S)


def sent(machine: Machine) -> list[tuple[bytes, Message]]:
    effects = machine.take_effects()
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]


class Job:
    """Coordinator and joiners over a network that keeps order per direction and nothing else."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.now_s = 0.0
        self.machines: list[Coordinator | Joiner] = [coordinator(world)]
        self.machines += [joiner(rank, world) for rank in range(1, world)]
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
            elif isinstance(effect, CreateSegment):
                self.step(0, SegmentCreated("socket"))
            else:
                self.step(rank, Attached())

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
        for rank in self.dead & self.watched:
            self.step(0, Lost(rank))
        if 0 in self.dead:
            for rank in range(1, self.world):
                if self.machines[rank].state not in (JoinerState.CALLING, JoinerState.ATTACHING):
                    self.step(rank, Lost(0))

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
@given(st.integers(2, 5), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_random_runs(world: int, random: Random, is_killing: bool, is_failing: bool) -> None:
    """All ranks join, or after a failure none; and it ends in bounded time either way."""
    job = Job(world)
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
    if job.machines[0].state is CoordinatorState.FAILED:
        assert not joined
    if job.machines[0].state is CoordinatorState.JOINED and not is_failing:
        assert all(machine in joined for machine in alive)
