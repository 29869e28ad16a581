"""The rendezvous over several hosts: who is where, what each rank has to offer, which link."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from jetstream.config import Config
from jetstream.control.coordinator import SILENCE_S, Coordinator
from jetstream.control.joiner import ALIVE_INTERVAL_S, ANSWER_GRACE_S, ORPHAN_GRACE_S, Joiner
from jetstream.control.links import LinkEnd, choose_kind, link_end, own_choice
from jetstream.control.machine import (
    Attach,
    Attached,
    Bereaved,
    CoordinatorState,
    JoinerState,
    LocalFailure,
    Lost,
    Machine,
    Prepare,
    Prepared,
    Send,
    Watch,
)
from jetstream.control.messages import (
    Alive,
    Assemble,
    Failed,
    Go,
    Hello,
    Member,
    Message,
    Offer,
    Ready,
    Refuse,
    Welcome,
)
from jetstream.control.placement import are_neighbours, place
from jetstream.errors import ConfigurationError, ProtocolError, RendezvousError, SegmentError

TIMEOUT_S = 60.0
#: Three ranks: 0 and 2 on host a, 1 on host b.
HOSTS = "aba"


def member_of(rank: int, host: str, **changes: object) -> Member:
    member = Member(
        rank=rank,
        local_rank=rank,
        pid=100 + rank,
        start_ticks=7,
        host=host,
        boot_id=f"boot of {host}",
        pid_namespace=1,
        net_namespace=2,
        cpus=b"\x03",
    )
    return dataclasses.replace(member, **changes)  # type: ignore[arg-type]


def hello_of(rank: int, hosts: str = HOSTS) -> Hello:
    return Hello(
        member=member_of(rank, hosts[rank]),
        world_size=len(hosts),
        build="build-1",
        algorithms="",
        link="auto",
        link_choice="udp",
        link_reason="",
    )


def assemble_of(hosts: str = HOSTS, link: str = "udp") -> Assemble:
    members = tuple(member_of(rank, host) for rank, host in enumerate(hosts))
    return Assemble(members=members, link=link, buffer_bytes=1 << 20, heap_bytes=2 << 20)


OFFERS = (
    Offer(rank=0, endpoint=b"at 0", fd_socket="a"),
    Offer(rank=1, endpoint=b"at 1", fd_socket="b"),
    Offer(rank=2, endpoint=b"at 2", fd_socket=""),
)
WELCOME = Welcome(endpoints=(b"at 0", b"at 1", b"at 2"), fd_sockets=("a", "b"), selection="best")


def coordinator() -> Coordinator:
    """Rank 0 when all have arrived."""
    zero = Coordinator(
        hello_of(0), now_s=0.0, timeout_s=TIMEOUT_S, buffer_bytes=1 << 20, heap_bytes=2 << 20
    )
    zero.step(hello_of(1), now_s=0.0, peer=b"1")
    zero.step(hello_of(2), now_s=0.0, peer=b"2")
    assert zero.state is CoordinatorState.ASSEMBLING
    return zero


def joiner(rank: int, *events: object) -> Joiner:
    machine = Joiner(hello_of(rank), address="tcp://a:1", now_s=0.0, timeout_s=TIMEOUT_S)
    for event in events:
        machine.step(event, now_s=1.0)
    machine.take_effects()
    return machine


def sent(machine: Machine) -> list[tuple[bytes, Message]]:
    effects = machine.take_effects()
    return [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]


# --- who is where -------------------------------------------------------------------------


def test_hosts_are_numbered_by_their_first_ranks() -> None:
    placement = place([member_of(rank, host) for rank, host in enumerate("xaxba")])
    assert placement.host_index == (0, 1, 0, 2, 1)
    assert placement.machine_index == (0, 1, 0, 2, 1)
    assert placement.names == ("x", "a", "b")
    assert placement.is_spread
    assert not placement.is_one_network
    assert placement.ranks_of(1) == (1, 4)
    assert placement.neighbours_of(2) == (0, 2)
    assert [placement.leader_of(rank) for rank in range(5)] == [0, 1, 0, 3, 1]


@pytest.mark.parametrize(
    ("change", "is_one_machine"),
    [
        ({"boot_id": "other"}, False),
        ({"pid_namespace": 9}, True),
        ({"net_namespace": 9}, True),
        ({"host": "virtual"}, True),
    ],
)
def test_what_parts_neighbours(change: dict[str, object], is_one_machine: bool) -> None:
    here = member_of(0, "a")
    there = dataclasses.replace(member_of(1, "a"), **change)  # type: ignore[arg-type]
    assert are_neighbours(here, member_of(1, "a"))
    assert not are_neighbours(here, there)
    placement = place((here, there))
    assert placement.host_index == (0, 1)
    assert placement.machine_index == ((0, 0) if is_one_machine else (0, 1))
    assert len(set(placement.names)) == 2
    assert placement.is_one_network == ("net_namespace" not in change and is_one_machine)


def test_hosts_of_one_name_can_be_told_apart() -> None:
    members = [member_of(rank, "box", pid_namespace=rank) for rank in (0, 1)]
    assert place(members).names == ("box#0", "box#1")


# --- the ordinary course ------------------------------------------------------------------


def test_rank_0_over_hosts() -> None:
    zero = coordinator()
    assert zero.take_effects() == [
        Send(b"1", Alive(rank=0)),
        Watch(member_of(2, "a")),  # rank 1 is out of sight
        Send(b"1", assemble_of()),
        Send(b"2", assemble_of()),
        Prepare(assemble_of()),
    ]
    zero.step(OFFERS[1], now_s=1.0, peer=b"1")
    zero.step(Prepared(b"at 0", "a", "best"), now_s=1.0)
    assert not zero.take_effects()
    zero.step(OFFERS[2], now_s=1.0, peer=b"2")
    assert sent(zero) == [(b"1", WELCOME), (b"2", WELCOME)]
    zero.step(Ready(rank=1), now_s=2.0, peer=b"1")
    zero.step(Ready(rank=2), now_s=2.0, peer=b"2")
    assert sent(zero) == [(b"1", Go()), (b"2", Go())]
    assert zero.welcome == WELCOME


def test_a_joiner_over_hosts() -> None:
    one = joiner(1)
    one.step(assemble_of(), now_s=1.0)
    assert one.take_effects() == [Prepare(assemble_of())]
    one.step(Prepared(b"at 1", "b"), now_s=1.0)
    assert one.take_effects() == [Send(b"", OFFERS[1])]
    one.step(WELCOME, now_s=2.0)
    assert one.take_effects() == [Attach(WELCOME)]
    one.step(Attached(), now_s=2.0)
    one.step(Go(), now_s=3.0)
    assert one.state is JoinerState.JOINED
    assert one.assembly == assemble_of()
    assert one.welcome == WELCOME


# --- what does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    "assembly",
    [
        assemble_of("ab"),
        dataclasses.replace(assemble_of(), members=assemble_of().members[::-1]),
        dataclasses.replace(assemble_of(), members=(member_of(0, "a"),) * 3),
        assemble_of("aaa", link=""),  # this one is on host b
        assemble_of(link=""),
    ],
)
def test_assembly_must_be_about_this_rank(assembly: Assemble) -> None:
    one = joiner(1, assembly)
    assert isinstance(one.error, ProtocolError)
    assert one.state is JoinerState.FAILED


def test_no_link_on_one_host() -> None:
    hello = dataclasses.replace(hello_of(1), member=member_of(1, "a"))
    for link, state in (("", JoinerState.PREPARING), ("udp", JoinerState.FAILED)):
        one = Joiner(hello, address="ipc://@x", now_s=0.0, timeout_s=TIMEOUT_S)
        one.step(assemble_of("aaa", link=link), now_s=1.0)
        assert one.state is state


@pytest.mark.parametrize(
    "welcome",
    [
        dataclasses.replace(WELCOME, endpoints=WELCOME.endpoints[:2]),
        dataclasses.replace(WELCOME, endpoints=(b"at 0", b"", b"at 2")),
        dataclasses.replace(WELCOME, endpoints=(b"at 0", b"at 1", b"")),
        dataclasses.replace(WELCOME, endpoints=(b"at 0", b"elsewhere", b"at 2")),
        dataclasses.replace(WELCOME, fd_sockets=("a",)),
        dataclasses.replace(WELCOME, fd_sockets=("a", "b", "c")),
    ],
)
def test_welcome_must_fit_the_assembly(welcome: Welcome) -> None:
    one = joiner(1, assemble_of(), Prepared(b"at 1", "b"), welcome)
    assert isinstance(one.error, ProtocolError)
    assert one.state is JoinerState.FAILED


@pytest.mark.parametrize(
    ("offer", "peer"),
    [
        (OFFERS[1], b"2"),
        (OFFERS[1], b"stranger"),
        (dataclasses.replace(OFFERS[0], endpoint=b"mine"), b"1"),
        (dataclasses.replace(OFFERS[1], endpoint=b""), b"1"),
        (dataclasses.replace(OFFERS[1], fd_socket=""), b"1"),
        (dataclasses.replace(OFFERS[2], fd_socket="mine"), b"2"),
    ],
)
def test_an_offer_is_of_its_rank_and_of_what_it_has(offer: Offer, peer: bytes) -> None:
    zero = coordinator()
    zero.step(offer, now_s=1.0, peer=peer)
    assert isinstance(zero.error, ProtocolError)


def test_an_offer_counts_once() -> None:
    zero = coordinator()
    zero.step(OFFERS[1], now_s=1.0, peer=b"1")
    zero.step(OFFERS[1], now_s=1.0, peer=b"1")
    assert isinstance(zero.error, ProtocolError)


# --- ending badly -------------------------------------------------------------------------


def test_who_offers_nothing_is_named_with_its_host() -> None:
    zero = coordinator()
    zero.step(Prepared(b"at 0", "a"), now_s=1.0)
    zero.tick(now_s=TIMEOUT_S)
    assert str(zero.error).endswith(
        "arrived: rank 0 (pid 100), rank 1 (pid 101 on b), rank 2 (pid 102); "
        "not ready: rank 1 (pid 101 on b), rank 2 (pid 102)"
    )


def test_who_does_not_become_ready_is_named_with_its_host() -> None:
    zero = coordinator()
    zero.step(Prepared(b"at 0", "a"), now_s=1.0)
    for offer in OFFERS[1:]:
        zero.step(offer, now_s=1.0, peer=b"%d" % offer.rank)
    zero.step(Ready(rank=2), now_s=1.0, peer=b"2")
    zero.tick(now_s=TIMEOUT_S)
    assert str(zero.error).endswith("not ready: rank 1 (pid 101 on b)")


def test_a_link_that_cannot_be_opened_fails_all() -> None:
    one = joiner(1, assemble_of())
    one.step(LocalFailure(ConfigurationError("no interface eth7")), now_s=1.0)
    ((_, failed),) = sent(one)
    zero = coordinator()
    zero.take_effects()
    zero.step(failed, now_s=2.0, peer=b"1")
    assert isinstance(zero.error, ConfigurationError)
    assert "rank 1 (pid 101 on b) failed: no interface eth7" in str(zero.error)
    assert {peer for peer, _ in sent(zero)} == {b"1", b"2"}


# --- silence ------------------------------------------------------------------------------


def test_silence_of_a_remote_rank_is_noticed() -> None:
    zero = coordinator()
    zero.take_effects()
    zero.step(Alive(rank=1), now_s=4.0, peer=b"1")
    assert sent(zero) == [(b"1", Alive(rank=0))]
    assert zero.next_s == 4.0 + SILENCE_S
    zero.tick(now_s=zero.next_s - 0.001)
    assert zero.error is None
    zero.tick(now_s=zero.next_s)
    assert isinstance(zero.error, RendezvousError)
    assert "rank 1 (pid 101 on b) has been silent for 10 s" in str(zero.error)
    assert {peer for peer, _ in sent(zero)} == {b"1", b"2"}
    # Rank 2, a neighbour that is watched, may be silent.
    alone = Coordinator(hello_of(0), now_s=0.0, timeout_s=TIMEOUT_S)
    alone.step(hello_of(2), now_s=0.0, peer=b"2")
    assert alone.next_s == TIMEOUT_S


def test_any_message_is_a_sign_of_life() -> None:
    zero = coordinator()
    zero.step(OFFERS[1], now_s=7.0, peer=b"1")
    assert zero.next_s == 7.0 + SILENCE_S


def test_alive_from_nobody_is_not_answered() -> None:
    zero = coordinator()
    zero.take_effects()
    for rank, peer in ((1, b"2"), (2, b"2"), (7, b"7")):
        zero.step(Alive(rank=rank), now_s=1.0, peer=peer)
    assert not zero.take_effects()
    assert zero.error is None


def test_silence_of_a_remote_rank_0_is_noticed() -> None:
    one = joiner(1)
    one.tick(now_s=1.0)
    one.step(Alive(rank=0), now_s=1.0)
    one.step(assemble_of(), now_s=1.0)
    one.step(Prepared(b"at 1", "b"), now_s=8.0)
    one.take_effects()
    # It has had nothing to answer yet: this rank was busy itself.
    one.tick(now_s=20.0)
    assert sent(one) == [(b"", Alive(rank=1))]
    one.step(Alive(rank=0), now_s=20.1)
    now_s = one.next_s
    assert now_s == 20.0 + ALIVE_INTERVAL_S
    while not one.is_final:
        one.tick(now_s=now_s)
        now_s = one.next_s
    assert one.now_s == 20.0 + ALIVE_INTERVAL_S + SILENCE_S
    assert "rank 0 has been silent for 10 s" in str(one.error)


def test_a_rank_0_that_does_not_answer_is_a_neighbour() -> None:
    two = joiner(2, assemble_of(), Prepared(b"at 2", ""))
    two.tick(now_s=TIMEOUT_S - 1.0)
    assert not two.take_effects()
    assert two.next_s == TIMEOUT_S


# --- which link ---------------------------------------------------------------------------

SPREAD = place([member_of(0, "a"), member_of(1, "b")])
VIRTUAL = place([member_of(0, "a"), member_of(1, "b", boot_id="boot of a")])
RAW, UDP = ("packet", "packet: ..."), ("udp", "udp: beyond a router")


def test_choice_of_the_link(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_kind([RAW, RAW], place([member_of(0, "a")] * 2)) == ""
    assert choose_kind([RAW, RAW], SPREAD) == "packet"
    assert choose_kind([("xdp", "asked for")] * 2, SPREAD) == "xdp"
    with caplog.at_level(logging.INFO, "jetstream.control"):
        assert choose_kind([RAW, UDP], SPREAD) == "udp"
    assert caplog.messages == ["link udp: beyond a router"]


def test_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    far = "tcp://203.0.113.9:7000"
    assert own_choice(Config(link="packet", rendezvous=far)) == (
        "packet",
        "packet: it is asked for",
    )
    assert own_choice(Config(rendezvous="ipc://@x"))[0] == "udp"
    monkeypatch.setattr("jetstream.control.links.own_address", lambda config: "127.0.0.1")
    assert own_choice(Config(rendezvous=far)) == (
        "udp",
        "udp: 127.0.0.1 is on the loopback interface",
    )
    kind, reason = own_choice(Config(rendezvous=far, interface="nosuch0"))
    assert kind == "udp"
    assert "there is no network interface 'nosuch0'" in reason
    kind, reason = own_choice(Config(rendezvous=far, interface="eth9,eth8,eth9"))
    assert (kind, "eth9 twice" in reason) == ("udp", True)


def test_end_of_virtual_hosts() -> None:
    config = Config(rank=3, world_size=4, rendezvous="ipc://@x")
    assert link_end(config, "udp", VIRTUAL) == LinkEnd(kind="udp", address="127.0.0.1")


def test_end_that_is_told() -> None:
    config = Config(rendezvous="tcp://10.1.2.3:7000", interface="eth9", link_address="10.1.2.4")
    assert link_end(config, "udp", SPREAD) == LinkEnd(
        kind="udp", interface="eth9", address="10.1.2.4"
    )
    assert link_end(config, "packet", SPREAD) == LinkEnd(kind="packet", interface="eth9")


def test_interface_without_address(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(rendezvous="tcp://10.1.2.3:7000", interface="nosuch0")
    with pytest.raises(ConfigurationError, match="there is no network interface 'nosuch0'"):
        link_end(config, "udp", SPREAD)
    monkeypatch.setattr("socket.if_nametoindex", lambda name: 9)
    with pytest.raises(ConfigurationError, match=r"'nosuch0'.*JETSTREAM_LINK_ADDRESS"):
        link_end(config, "udp", SPREAD)


def test_address_of_the_loopback_interface() -> None:
    config = Config(rendezvous="tcp://10.1.2.3:7000", interface="lo")
    assert link_end(config, "udp", VIRTUAL).address == "127.0.0.1"
    with pytest.raises(ConfigurationError, match=r"JETSTREAM_INTERFACE is 'lo'.*loopback"):
        link_end(config, "udp", SPREAD)
    config = Config(rendezvous="tcp://10.1.2.3:7000", link_address="10.1.2.4,::1")
    with pytest.raises(ConfigurationError, match=r"JETSTREAM_LINK_ADDRESS is .*but ::1 is"):
        link_end(config, "udp", SPREAD)


def test_no_interface_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr("jetstream.control.links.own_address", lambda config: "10.9.9.9")
    config = Config(rendezvous="tcp://10.1.2.3:7000")
    with pytest.raises(ConfigurationError, match=r"10\.9\.9\.9.*JETSTREAM_INTERFACE"):
        link_end(config, "packet", SPREAD)


def test_address_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(rendezvous="tcp://127.0.0.1:7000")
    monkeypatch.setattr("jetstream.control.links._ANYWHERE", "127.0.0.1")
    with pytest.raises(ConfigurationError, match="set JETSTREAM_LINK_ADDRESS"):
        link_end(config, "udp", SPREAD)


def test_who_has_lost_a_neighbour_asks_rank_0_why() -> None:
    """And ends with what it knows itself only if there is no answer."""

    def bereaved() -> Joiner:
        one = joiner(1, assemble_of())
        one.step(Bereaved(RendezvousError("rank 2 is gone")), now_s=2.0)
        ((_, failed),) = sent(one)
        assert isinstance(failed, Failed) and failed.text == "rank 2 is gone"
        assert one.state is JoinerState.LEAVING and one.error is None
        return one

    one = bereaved()
    one.step(Refuse(error="SegmentError", text="rank 2 failed: no room"), now_s=4.0)
    assert isinstance(one.error, SegmentError) and "no room" in str(one.error)
    one = bereaved()
    one.tick(now_s=2.0 + ANSWER_GRACE_S)
    assert str(one.error) == "rank 2 is gone"
    one = bereaved()
    one.step(Lost(0), now_s=3.0)
    one.tick(now_s=3.0 + ORPHAN_GRACE_S)
    assert str(one.error) == "rank 2 is gone"


def test_joiner_that_has_failed_takes_nothing_more() -> None:
    one = joiner(1, assemble_of(), LocalFailure(RendezvousError("x")))
    for event in (Prepared(b"at 1", "b"), WELCOME, Attached()):
        one.step(event, now_s=2.0)
        assert one.state is JoinerState.FAILED
