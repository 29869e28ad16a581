"""What all ranks must agree on: a rank that differs is refused, and every rank is told why."""

from __future__ import annotations

import dataclasses

import pytest

from jetstream.control.coordinator import Coordinator
from jetstream.control.joiner import Joiner
from jetstream.control.machine import (
    CoordinatorState,
    Machine,
    Send,
    Unreadable,
)
from jetstream.control.messages import (
    Hello,
    Member,
    Message,
    Refuse,
)
from jetstream.errors import (
    JetstreamError,
    RendezvousError,
    VersionMismatchError,
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
        boot_id="boot",
        pid_namespace=1,
        net_namespace=2,
        cpus=b"\x03",
    )
    hello = Hello(
        member=member,
        world_size=world,
        build="build-1",
        algorithms="",
        link="auto",
        link_choice="udp",
        link_reason="",
    )
    return dataclasses.replace(hello, **changes)  # type: ignore[arg-type]


def coordinator(world: int) -> Coordinator:
    return Coordinator(hello_of(0, world), now_s=0.0, timeout_s=TIMEOUT_S)


def joiner(rank: int, world: int) -> Joiner:
    me = hello_of(rank, world)
    return Joiner(me, address=ADDRESS, now_s=0.0, timeout_s=TIMEOUT_S)


def sent(machine: Machine) -> list[tuple[bytes, Message]]:
    effects = machine.take_effects()
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]


# --- what must agree ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "texts"),
    [
        (
            hello_of(2, 4, build="build-2"),
            VersionMismatchError,
            ["rank 0 (pid 100)", "build-1", "rank 2 (pid 102)", "build-2"],
        ),
        (
            hello_of(2, 5),
            RendezvousError,
            ["expects 4 ranks", "rank 2 (pid 102) expects 5", "JETSTREAM_WORLD_SIZE"],
        ),
        (hello_of(4, 4), RendezvousError, ["rank 4 (pid 104) is out of range", "4 ranks"]),
        (
            hello_of(1, 4, pid=555),
            RendezvousError,
            ["two processes are rank 1: pid 101 and pid 555", "JETSTREAM_RANK"],
        ),
        (
            hello_of(0, 4, pid=555),
            RendezvousError,
            ["two processes are rank 0: pid 100 and pid 555"],
        ),
        (
            hello_of(2, 4, algorithms="all_reduce:one_shot"),
            RendezvousError,
            ["JETSTREAM_ALGO=''", "'all_reduce:one_shot'"],
        ),
        (
            hello_of(2, 4, link="packet"),
            RendezvousError,
            ["JETSTREAM_LINK='auto'", "rank 2 (pid 102) has 'packet'"],
        ),
    ],
)
def test_disagreement_is_told_to_everyone(
    wrong: Hello, kind: type[JetstreamError], texts: list[str]
) -> None:
    zero = coordinator(4)
    zero.step(hello_of(1, 4), now_s=0.0, peer=b"1")
    zero.step(wrong, now_s=1.0, peer=b"wrong")
    assert type(zero.error) is kind
    for text in texts:
        assert text in str(zero.error)
    refusal = Refuse(error=kind.__name__, text=str(zero.error))
    assert sent(zero) == [(b"1", refusal), (b"wrong", refusal)]
    # The one that has not arrived yet is told when it does.
    zero.step(hello_of(3, 4), now_s=2.0, peer=b"3")
    assert sent(zero) == [(b"3", refusal)]
    one = joiner(1, 4)
    one.step(refusal, now_s=2.0)
    assert type(one.error) is kind
    assert str(one.error) == str(zero.error)


def test_rank_0_does_not_wait_for_the_one_it_has_refused() -> None:
    zero = coordinator(3)
    zero.step(hello_of(1, 4), now_s=0.0, peer=b"1")
    assert zero.state is CoordinatorState.REFUSING
    zero.step(hello_of(2, 3), now_s=0.1, peer=b"2")
    assert [peer for peer, _ in sent(zero)] == [b"1", b"2"]
    assert zero.state is CoordinatorState.FAILED
    two = coordinator(2)
    two.step(hello_of(1, 3), now_s=0.0, peer=b"1")
    assert [peer for peer, _ in sent(two)] == [b"1"]
    assert two.state is CoordinatorState.FAILED
    again = coordinator(2)
    again.step(hello_of(0, 2, pid=555), now_s=0.0, peer=b"0")
    assert again.state is CoordinatorState.REFUSING  # rank 1 has heard nothing


def test_rank_0_stays_until_all_are_told() -> None:
    zero = coordinator(3)
    zero.step(hello_of(1, 3), now_s=0.0, peer=b"1")
    zero.step(Unreadable(RendezvousError("wrong secret")), now_s=1.0, peer=b"stranger")
    assert [peer for peer, _ in sent(zero)] == [b"1", b"stranger"]
    assert zero.state is CoordinatorState.REFUSING
    zero.step(hello_of(9, 3), now_s=1.1, peer=b"9")
    zero.step(Unreadable(RendezvousError("again")), now_s=1.1, peer=b"stranger2")
    assert [peer for peer, _ in sent(zero)] == [b"9", b"stranger2"]
    assert zero.state is CoordinatorState.REFUSING
    zero.step(hello_of(2, 3), now_s=1.2, peer=b"2")
    assert zero.state is CoordinatorState.FAILED
