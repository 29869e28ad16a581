"""The rendezvous machines: every event in every state, the ordinary course, how it ends badly."""

from __future__ import annotations

import dataclasses
import enum

import pytest

from jetstream import errors
from jetstream.control import machine as parts
from jetstream.control.coordinator import REFUSE_GRACE_S, Coordinator
from jetstream.control.joiner import (
    ANSWER_GRACE_S,
    HELLO_INTERVAL_S,
    LEAVE_GRACE_S,
    ORPHAN_GRACE_S,
    Joiner,
)
from jetstream.control.machine import (
    AllArrived,
    AllOffered,
    AllReady,
    AllTold,
    Attach,
    Attached,
    Bereaved,
    CoordinatorState,
    Expired,
    JoinerState,
    LocalFailure,
    Lost,
    Machine,
    Prepare,
    Prepared,
    Rejected,
    Send,
    Silent,
    Unreadable,
    Watch,
)
from jetstream.control.messages import (
    TEXT_MAX,
    Alive,
    Assemble,
    Claim,
    Failed,
    Go,
    Grant,
    Hello,
    Member,
    Message,
    Offer,
    Ready,
    Refuse,
    Welcome,
)
from jetstream.errors import (
    JetstreamError,
    ProtocolError,
    RendezvousError,
    SegmentError,
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


def welcome_of(world: int) -> Welcome:
    return Welcome(endpoints=(b"",) * world, fd_sockets=("socket",))


def assemble_of(world: int) -> Assemble:
    members = tuple(hello_of(rank, world).member for rank in range(world))
    return Assemble(members=members, link="", buffer_bytes=0, heap_bytes=0)


def offer_of(rank: int) -> Offer:
    return Offer(rank=rank, endpoint=b"", fd_socket="")


def coordinator(world: int) -> Coordinator:
    return Coordinator(hello_of(0, world), now_s=0.0, timeout_s=TIMEOUT_S)


def joiner(rank: int, world: int) -> Joiner:
    me = hello_of(rank, world)
    return Joiner(me, address=ADDRESS, now_s=0.0, timeout_s=TIMEOUT_S)


def sent(machine: Machine) -> list[tuple[bytes, Message]]:
    effects = machine.take_effects()
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]


# --- the whole product of states and events -----------------------------------------------

EVENTS: dict[str, object] = {
    "hello": hello_of(2, 3),
    "assemble": assemble_of(3),
    "offer": offer_of(1),
    "welcome": welcome_of(3),
    "ready": Ready(rank=1),
    "go": Go(),
    "refuse": Refuse(error="RendezvousError", text="no"),
    "failed": Failed(rank=1, error="SegmentError", text="no"),
    "claim": Claim(rank=1, pid=2),
    "grant": Grant(rank=1),
    "prepared": Prepared(fd_socket="socket"),
    "attached": Attached(),
    "unreadable": Unreadable(ProtocolError("noise")),
    "alive": Alive(rank=1),
    "lost": Lost(1),
    "silent": Silent(1),
    "local": LocalFailure(RendezvousError("disk")),
    "bereaved": Bereaved(RendezvousError("gone")),
    "expired": Expired(),
    "all_arrived": AllArrived(),
    "all_offered": AllOffered(),
    "all_ready": AllReady(),
    "all_told": AllTold(),
    "rejected": Rejected(ProtocolError("bad")),
}


def share(machine: Coordinator) -> None:
    """Takes a coordinator that assembles the ranks through to SHARING."""
    machine.step(offer_of(1), now_s=3.0, peer=b"1")
    machine.step(Prepared(fd_socket="socket"), now_s=3.0)
    machine.step(offer_of(2), now_s=3.0, peer=b"2")


def coordinator_in(state: CoordinatorState) -> Coordinator:
    """A coordinator of three ranks, rank 1 there, brought to `state` the way it happens."""
    machine = coordinator(3)
    machine.step(hello_of(1, 3), now_s=1.0, peer=b"1")
    if state is CoordinatorState.REFUSING:
        machine.step(LocalFailure(RendezvousError("x")), now_s=1.0)
    elif state is CoordinatorState.FAILED:
        machine.step(LocalFailure(RendezvousError("x")), now_s=1.0)
        machine.tick(now_s=1.0 + REFUSE_GRACE_S)
    elif state is not CoordinatorState.COLLECTING:
        machine.step(hello_of(2, 3), now_s=2.0, peer=b"2")
        if state is not CoordinatorState.ASSEMBLING:
            share(machine)
        if state is CoordinatorState.JOINED:
            machine.step(Ready(rank=1), now_s=4.0, peer=b"1")
            machine.step(Ready(rank=2), now_s=4.0, peer=b"2")
    assert machine.state is state
    machine.take_effects()
    return machine


def joiner_in(state: JoinerState) -> Joiner:
    """Rank 1 of three, brought to `state` the way it happens."""
    machine = joiner(1, 3)
    path: dict[JoinerState, list[object]] = {
        JoinerState.CALLING: [],
        JoinerState.PREPARING: [assemble_of(3)],
        JoinerState.OFFERING: [assemble_of(3), Prepared()],
        JoinerState.ATTACHING: [assemble_of(3), Prepared(), welcome_of(3)],
        JoinerState.READY: [assemble_of(3), Prepared(), welcome_of(3), Attached()],
        JoinerState.ORPHANED: [assemble_of(3), Prepared(), Lost(0)],
        JoinerState.LEAVING: [Expired()],
        JoinerState.JOINED: [assemble_of(3), Prepared(), welcome_of(3), Attached(), Go()],
        JoinerState.FAILED: [Refuse(error="SegmentError", text="x")],
    }
    for event in path[state]:
        machine.step(event, now_s=1.0)
    assert machine.state is state
    machine.take_effects()
    return machine


def check_invariants(machine: Machine) -> None:
    name = machine.state.name
    assert machine.is_final == (name in ("JOINED", "FAILED"))
    if name == "JOINED":
        assert machine.error is None
    if name in ("FAILED", "REFUSING"):
        assert isinstance(machine.error, JetstreamError)
        assert str(machine.error)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", CoordinatorState)
def test_coordinator_takes_any_event_in_any_state(state: CoordinatorState, event: str) -> None:
    machine = coordinator_in(state)
    allowed = (state, type(EVENTS[event])) in Coordinator.TABLE
    machine.step(EVENTS[event], now_s=5.0, peer=b"1")
    check_invariants(machine)
    effects = sent(machine)
    if state in (CoordinatorState.JOINED, CoordinatorState.FAILED):
        assert machine.state is state
        assert not effects
    elif not allowed and state is not CoordinatorState.REFUSING:
        assert isinstance(machine.error, ProtocolError)
        assert f"from rank 1 (pid 101) in state {state.name}" in str(machine.error)
        assert {peer for peer, _ in effects} >= {b"1"}
    if machine.state in (CoordinatorState.REFUSING, CoordinatorState.FAILED):
        assert all(isinstance(message, Refuse) for _, message in effects)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", JoinerState)
def test_joiner_takes_any_event_in_any_state(state: JoinerState, event: str) -> None:
    machine = joiner_in(state)
    allowed = (state, type(EVENTS[event])) in Joiner.TABLE
    machine.step(EVENTS[event], now_s=5.0)
    check_invariants(machine)
    effects = sent(machine)
    if state in (JoinerState.JOINED, JoinerState.FAILED):
        assert machine.state is state
        assert not effects
    elif not allowed and state not in (JoinerState.ORPHANED, JoinerState.LEAVING):
        assert isinstance(machine.error, ProtocolError)
        assert machine.state is JoinerState.FAILED
        assert [type(message) for _, message in effects] == [Failed]


@pytest.mark.parametrize("machine", [Coordinator, Joiner])
def test_every_state_can_reject(machine: type[Machine]) -> None:
    # Otherwise an event that is not in the table would look itself up for ever.
    states = CoordinatorState if machine is Coordinator else JoinerState
    for state in states:
        assert (state, Rejected) in machine.TABLE


@pytest.mark.parametrize("machine", [Coordinator, Joiner])
def test_table_is_well_formed(machine: type[Machine]) -> None:
    states: type[enum.Enum] = CoordinatorState if machine is Coordinator else JoinerState
    first = CoordinatorState.COLLECTING if machine is Coordinator else JoinerState.CALLING
    reached = {target for _, target in machine.TABLE.values()}
    assert reached | {first} == set(states)
    for (state, event), (handler, target) in machine.TABLE.items():
        assert isinstance(state, states)
        assert isinstance(target, states)
        assert event in {type(example) for example in EVENTS.values()}
        assert callable(handler)
        if state.name in ("JOINED", "FAILED"):
            assert target is state


def test_every_event_of_the_module_is_in_the_product() -> None:
    tested = {type(event).__name__ for event in EVENTS.values()}
    effects = {"Send", "Watch", "Prepare", "Attach", "Effect"}
    others = {"CoordinatorState", "JoinerState", "Machine", "Table", "each"}
    assert set(parts.__all__) - effects - others <= tested


@pytest.mark.parametrize("state", CoordinatorState)
def test_coordinator_ends_in_bounded_time(state: CoordinatorState) -> None:
    machine = coordinator_in(state)
    for _ in range(3):
        machine.tick(now_s=machine.next_s)
    assert machine.is_final
    assert machine.deadline_s <= TIMEOUT_S + REFUSE_GRACE_S


@pytest.mark.parametrize("state", JoinerState)
def test_joiner_ends_in_bounded_time(state: JoinerState) -> None:
    machine = joiner_in(state)
    now_s, steps = 0.0, 0
    while not machine.is_final:
        assert machine.next_s > now_s or steps == 0
        now_s = machine.next_s
        machine.tick(now_s=now_s)
        steps += 1
    grace_s = max(LEAVE_GRACE_S, ANSWER_GRACE_S) + ORPHAN_GRACE_S
    assert machine.deadline_s <= TIMEOUT_S + grace_s
    assert steps <= TIMEOUT_S / HELLO_INTERVAL_S + 5


def test_early_ticks_do_nothing() -> None:
    machine = coordinator(3)
    machine.tick(now_s=TIMEOUT_S - 0.001)
    assert machine.state is CoordinatorState.COLLECTING
    assert not machine.take_effects()


# --- the ordinary course ------------------------------------------------------------------


def test_the_good_way() -> None:
    zero = coordinator_in(CoordinatorState.COLLECTING)
    zero.step(hello_of(2, 3), now_s=1.0, peer=b"2")
    assert zero.take_effects() == [
        Watch(hello_of(2, 3).member),
        Send(b"1", assemble_of(3)),
        Send(b"2", assemble_of(3)),
        Prepare(assemble_of(3)),
    ]
    share(zero)
    assert sent(zero) == [(b"1", welcome_of(3)), (b"2", welcome_of(3))]
    one = joiner(1, 3)
    one.tick(now_s=0.0)
    assert one.take_effects() == [Send(b"", hello_of(1, 3))]
    one.step(assemble_of(3), now_s=1.0)
    assert one.take_effects() == [Prepare(assemble_of(3))]
    one.step(Prepared(), now_s=1.0)
    assert one.take_effects() == [Send(b"", offer_of(1))]
    one.step(welcome_of(3), now_s=2.0)
    assert one.take_effects() == [Attach(welcome_of(3))]
    one.step(Attached(), now_s=3.0)
    assert one.take_effects() == [Send(b"", Ready(rank=1))]
    zero.step(Ready(rank=1), now_s=3.0, peer=b"1")
    assert not zero.take_effects()
    zero.step(Ready(rank=2), now_s=3.0, peer=b"2")
    assert sent(zero) == [(b"1", Go()), (b"2", Go())]
    one.step(Go(), now_s=4.0)
    assert zero.state is CoordinatorState.JOINED
    assert one.state is JoinerState.JOINED


def test_hello_is_repeated_until_answered() -> None:
    one = joiner(1, 2)
    one.tick(now_s=0.0)
    one.tick(now_s=0.0)
    one.tick(now_s=HELLO_INTERVAL_S / 2)
    assert len(sent(one)) == 1
    one.tick(now_s=one.next_s)
    assert len(sent(one)) == 1
    one.step(assemble_of(2), now_s=1.0)
    one.take_effects()
    one.tick(now_s=5.0)
    assert not sent(one)


def test_repeated_hello_changes_nothing() -> None:
    zero = coordinator(3)
    for _ in range(3):
        zero.step(hello_of(1, 3), now_s=0.0, peer=b"1")
    assert zero.take_effects() == [Watch(hello_of(1, 3).member)]
    zero.step(hello_of(2, 3), now_s=0.0, peer=b"2")
    zero.step(hello_of(2, 3), now_s=0.0, peer=b"2")
    share(zero)
    zero.step(hello_of(1, 3), now_s=0.0, peer=b"1")
    assert zero.state is CoordinatorState.SHARING


def test_same_process_on_a_new_connection_replaces_the_old() -> None:
    zero = coordinator(2)
    world_3 = coordinator(3)
    world_3.step(hello_of(1, 3), now_s=0.0, peer=b"old")
    world_3.step(hello_of(1, 3), now_s=0.0, peer=b"new")
    world_3.step(hello_of(2, 3), now_s=0.0, peer=b"2")
    assert {peer for peer, _ in sent(world_3)} == {b"new", b"2"}
    # Once welcomed it cannot start again: it may hold the segment already.
    zero.step(hello_of(1, 2), now_s=0.0, peer=b"old")
    zero.step(hello_of(1, 2), now_s=0.0, peer=b"new")
    assert isinstance(zero.error, RendezvousError)
    assert "arrived when all ranks were there" in str(zero.error)


# --- ending badly ------------------------------------------------------------------------


def test_timeout_lists_who_is_there_and_who_is_not() -> None:
    zero = coordinator(9)
    for rank in (1, 5):
        zero.step(hello_of(rank, 9), now_s=0.0, peer=b"%d" % rank)
    zero.tick(now_s=TIMEOUT_S)
    assert str(zero.error) == (
        "the ranks did not come together within 60 s; arrived: rank 0 (pid 100), rank 1 (pid 101), "
        "rank 5 (pid 105); not arrived: 2-4, 6-8"
    )
    assert {peer for peer, _ in sent(zero)} == {b"1", b"5"}
    zero.tick(now_s=TIMEOUT_S)
    assert zero.state is CoordinatorState.FAILED


def test_timeout_of_the_second_half_lists_who_is_not_ready() -> None:
    zero = coordinator_in(CoordinatorState.SHARING)
    zero.step(Ready(rank=2), now_s=1.0, peer=b"2")
    zero.tick(now_s=TIMEOUT_S)
    assert "not ready: rank 1 (pid 101)" in str(zero.error)
    assert zero.state is CoordinatorState.FAILED


def test_a_joiner_that_gives_up_learns_who_is_missing() -> None:
    zero = coordinator(3)
    zero.step(hello_of(1, 3), now_s=0.0, peer=b"1")
    one = joiner(1, 3)
    one.tick(now_s=TIMEOUT_S)
    ((_, failed),) = sent(one)
    assert isinstance(failed, Failed)
    zero.step(failed, now_s=TIMEOUT_S - 30, peer=b"1")
    ((_, refuse),) = sent(zero)
    one.step(refuse, now_s=TIMEOUT_S + 0.1)
    assert one.state is JoinerState.FAILED
    assert "rank 1 (pid 101) failed: gave up after 60 s" in str(one.error)
    assert "not arrived: 2" in str(one.error)


@pytest.mark.parametrize(("rank", "text"), [(1, "heard nothing from rank 0"), (0, "is in use by")])
def test_a_joiner_alone(rank: int, text: str) -> None:
    machine = joiner(rank, 2)
    machine.tick(now_s=TIMEOUT_S)
    assert machine.state is JoinerState.LEAVING
    machine.tick(now_s=TIMEOUT_S + LEAVE_GRACE_S)
    assert machine.state is JoinerState.FAILED
    assert text in str(machine.error)
    assert ADDRESS in str(machine.error)


def test_failure_of_one_is_the_failure_of_all() -> None:
    zero = coordinator_in(CoordinatorState.SHARING)
    two = joiner(2, 3)
    two.step(assemble_of(3), now_s=1.0)
    two.step(LocalFailure(SegmentError("no memory")), now_s=1.0)
    assert isinstance(two.error, SegmentError)
    failed = sent(two)[-1][1]
    zero.step(failed, now_s=2.0, peer=b"2")
    assert isinstance(zero.error, SegmentError)
    assert "rank 2 (pid 102) failed: no memory" in str(zero.error)
    assert {peer for peer, _ in sent(zero)} == {b"1", b"2"}


def test_death_is_named() -> None:
    zero = coordinator_in(CoordinatorState.SHARING)
    zero.step(Lost(2), now_s=2.0)
    assert "rank 2 (pid 102) died during the rendezvous" in str(zero.error)


def test_last_words_of_rank_0_count() -> None:
    for word, state in ((Go(), JoinerState.JOINED), (EVENTS["refuse"], JoinerState.FAILED)):
        one = joiner_in(JoinerState.ORPHANED)
        one.step(word, now_s=1.1)
        assert one.state is state
    silent = joiner_in(JoinerState.ORPHANED)
    silent.tick(now_s=1.0 + ORPHAN_GRACE_S)
    assert "rank 0 died" in str(silent.error)


@pytest.mark.parametrize("rank", [1, 2])
def test_ready_counts_once_and_only_from_its_rank(rank: int) -> None:
    zero = coordinator_in(CoordinatorState.SHARING)
    zero.step(Ready(rank=1), now_s=1.0, peer=b"1")
    zero.step(Ready(rank=rank), now_s=1.0, peer=b"1")
    assert isinstance(zero.error, ProtocolError)


def test_refusals_restore_only_our_errors() -> None:
    for name in ("SystemExit", "BY_STATUS", "annotations", "", "__all__"):
        one = joiner_in(JoinerState.CALLING)
        one.step(Refuse(error=name, text="why"), now_s=1.0)
        assert type(one.error) is RendezvousError
        assert str(one.error) == "why"
    for name in errors.__all__:
        one = joiner_in(JoinerState.CALLING)
        one.step(Refuse(error=name, text="why"), now_s=1.0)
        assert type(one.error).__name__ == name


def test_odd_texts_travel() -> None:
    zero = coordinator_in(CoordinatorState.COLLECTING)
    zero.step(LocalFailure(RendezvousError("\udcff" + "x" * 2 * TEXT_MAX)), now_s=1.0)
    ((_, refuse),) = sent(zero)
    assert isinstance(refuse, Refuse)
    assert len(refuse.text.encode()) == TEXT_MAX
