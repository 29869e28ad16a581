"""The rendezvous messages: round trips, and nothing but typed errors for whatever else arrives."""

from __future__ import annotations

import dataclasses
import hmac
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.control.messages import (
    LIMIT_BYTES,
    MESSAGES,
    TEXT_MAX,
    VERSION,
    Alive,
    Assemble,
    Claim,
    Failed,
    ForeignBytesError,
    Go,
    Grant,
    Hello,
    Member,
    Message,
    Offer,
    Ready,
    Refuse,
    Welcome,
    open_sealed,
    seal,
)
from jetstream.errors import ProtocolError, RendezvousError, VersionMismatchError

SECRET = b"s" * 32
RANKS = st.integers(0, 255)
PIDS = st.integers(1, (1 << 31) - 1)
COUNTS = st.integers(0, (1 << 63) - 1)


ENDPOINTS = st.binary(max_size=256)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)


def text(size: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), max_size=min(size, 50))


MEMBERS = st.builds(
    Member,
    rank=RANKS,
    local_rank=RANKS,
    pid=PIDS,
    start_ticks=COUNTS,
    host=text(255),
    boot_id=text(64),
    pid_namespace=COUNTS,
    net_namespace=COUNTS,
    cpus=st.binary(min_size=1, max_size=40),
)
ANY_MESSAGE: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        member=MEMBERS,
        world_size=st.integers(1, 256),
        build=text(128),
        algorithms=text(1024),
        link=text(16),
        link_choice=text(16),
        link_reason=text(1024),
    ),
    st.builds(
        Assemble,
        members=st.lists(MEMBERS, min_size=1, max_size=4).map(tuple),
        link=text(16),
        buffer_bytes=st.integers(0, 1 << 40),
        heap_bytes=st.integers(0, 1 << 40),
    ),
    st.builds(Offer, rank=RANKS, endpoint=ENDPOINTS, fd_socket=text(100)),
    st.builds(
        Welcome,
        endpoints=st.lists(ENDPOINTS, min_size=1, max_size=4).map(tuple),
        fd_sockets=st.lists(NAMES, min_size=1, max_size=4).map(tuple),
        selection=text(1 << 17),
    ),
    st.builds(Ready, rank=RANKS),
    st.builds(Alive, rank=RANKS),
    st.builds(Go),
    st.builds(Refuse, error=text(64), text=text(TEXT_MAX)),
    st.builds(Failed, rank=RANKS, error=text(64), text=text(TEXT_MAX)),
    st.builds(Claim, rank=RANKS, pid=PIDS),
    st.builds(Grant, rank=RANKS),
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def sealed(payload: bytes, secret: bytes = SECRET) -> bytes:
    return hmac.digest(secret, payload, "sha256") + payload


def wire_form(message: Message) -> dict[str, Any]:
    form: dict[str, Any] = msgpack.unpackb(seal(message, secret=SECRET)[32:])
    return form


def largest_member(rank: int) -> Member:
    return Member(
        rank=rank,
        local_rank=rank,
        pid=(1 << 31) - 1,
        start_ticks=(1 << 63) - 1,
        host="h" * 255,
        boot_id="b" * 64,
        pid_namespace=(1 << 63) - 1,
        net_namespace=(1 << 63) - 1,
        cpus=b"\xff" * 1024,
    )


@given(ANY_MESSAGE)
def test_round_trip(message: Message) -> None:
    assert open_sealed(seal(message, secret=SECRET), secret=SECRET) == message


def test_every_message_is_generated_here() -> None:
    for name, kind in MESSAGES.items():
        assert kind.__name__.lower() == name


def test_largest_messages_fit() -> None:
    members = tuple(largest_member(rank) for rank in range(256))
    assembly = Assemble(members=members, link="l" * 16, buffer_bytes=1 << 40, heap_bytes=1 << 40)
    assert open_sealed(seal(assembly, secret=SECRET), secret=SECRET) == assembly
    welcome = Welcome(
        endpoints=(b"e" * 256,) * 256,
        fd_sockets=("s" * 100,) * 256,
        selection="\U0001f600" * (1 << 17),
    )
    assert open_sealed(seal(welcome, secret=SECRET), secret=SECRET) == welcome
    refuse = Refuse(error="e" * 64, text="\U0001f600" * TEXT_MAX)
    assert open_sealed(seal(refuse, secret=SECRET), secret=SECRET) == refuse


@given(st.binary(max_size=200))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(ForeignBytesError):
        open_sealed(raw, secret=SECRET)


@given(st.binary(max_size=100))
def test_sealed_noise_is_refused(payload: bytes) -> None:
    # A payload that happens to be a message would have to be a map with "v" and "type".
    with pytest.raises((ProtocolError, VersionMismatchError)):
        open_sealed(sealed(payload), secret=SECRET)


@given(JUNK)
def test_sealed_junk_is_refused(junk: Any) -> None:
    with pytest.raises((ProtocolError, VersionMismatchError)):
        open_sealed(sealed(msgpack.packb(junk)), secret=SECRET)


@given(ANY_MESSAGE, st.data())
def test_one_field_gone_wrong(message: Message, data: st.DataObject) -> None:
    """A field replaced by junk, left out or added: an error, or a message that checks out."""
    form = wire_form(message)
    name = data.draw(st.sampled_from(sorted(form)))
    change = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if change == "remove":
        del form[name]
    else:
        form[name if change == "replace" else "extra"] = data.draw(JUNK)
    try:
        result = open_sealed(sealed(msgpack.packb(form)), secret=SECRET)
    except (ProtocolError, VersionMismatchError):
        return
    assert change == "replace"
    assert type(result) is MESSAGES[form["type"]]


@given(ANY_MESSAGE, st.integers(0), st.integers(0, 7))
def test_any_flipped_bit_breaks_the_seal(message: Message, position: int, bit: int) -> None:
    raw = bytearray(seal(message, secret=SECRET))
    raw[position % len(raw)] ^= 1 << bit
    with pytest.raises((ForeignBytesError, RendezvousError)):
        open_sealed(bytes(raw), secret=SECRET)


@given(ANY_MESSAGE, st.data())
def test_any_cut_is_refused(message: Message, data: st.DataObject) -> None:
    raw = seal(message, secret=SECRET)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises((ProtocolError, RendezvousError)):
        open_sealed(raw[:cut], secret=SECRET)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": True},
        {"rank": -1},
        {"rank": 256},
        {"rank": 1.0},
        {"rank": "1"},
        {"rank": None},
        {"pid": 0},
        {"pid": 1 << 31},
        {"type": "claims"},
        {"type": ["claim"]},
        {"type": None},
    ],
)
def test_values_out_of_range(change: dict[str, Any]) -> None:
    form = wire_form(Claim(rank=1, pid=2)) | change
    with pytest.raises(ProtocolError):
        open_sealed(sealed(msgpack.packb(form)), secret=SECRET)


@pytest.mark.parametrize("count", [0, 257, 100_000])
def test_impossible_numbers_of_members(count: int) -> None:
    members = (largest_member(0),)
    form = wire_form(Assemble(members=members, link="", buffer_bytes=0, heap_bytes=0))
    small = dataclasses.asdict(largest_member(0)) | {"cpus": b"1", "host": ""}
    form["members"] = [small] * min(count, 5000)
    with pytest.raises(ProtocolError):
        open_sealed(sealed(msgpack.packb(form)), secret=SECRET)


@pytest.mark.parametrize(
    "change",
    [
        {"endpoints": []},
        {"endpoints": [b""] * 257},
        {"endpoints": [b"x" * 257]},
        {"endpoints": ["x"]},
        {"endpoints": b"x"},
        {"fd_sockets": []},
        {"fd_sockets": [""]},
        {"fd_sockets": ["x" * 101]},
        {"fd_sockets": [["x"]]},
    ],
)
def test_impossible_welcomes(change: dict[str, Any]) -> None:
    form = wire_form(Welcome(endpoints=(b"",), fd_sockets=("x",))) | change
    with pytest.raises(ProtocolError):
        open_sealed(sealed(msgpack.packb(form)), secret=SECRET)


def test_too_long() -> None:
    with pytest.raises(ForeignBytesError, match="too many"):
        open_sealed(sealed(b"x" * LIMIT_BYTES), secret=SECRET)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        open_sealed(sealed(b"\x91" * 100_000), secret=SECRET)


def test_other_version() -> None:
    form = wire_form(Go()) | {"v": VERSION + 1}
    with pytest.raises(VersionMismatchError, match=f"version {VERSION + 1}.*this one {VERSION}"):
        open_sealed(sealed(msgpack.packb(form)), secret=SECRET)


def test_other_secret_names_the_sender() -> None:
    member = dataclasses.replace(largest_member(3), pid=4711)
    hello = Hello(
        member=member,
        world_size=4,
        build="b",
        algorithms="",
        link="auto",
        link_choice="udp",
        link_reason="",
    )
    with pytest.raises(RendezvousError, match=r"rank 3 \(pid 4711\).*JETSTREAM_JOB_SECRET"):
        open_sealed(seal(hello, secret=b"other"), secret=SECRET)
    with pytest.raises(RendezvousError, match="JETSTREAM_JOB_SECRET"):
        open_sealed(seal(Go(), secret=b""), secret=SECRET)


def test_the_secret_does_not_travel() -> None:
    assert SECRET not in seal(Ready(rank=1), secret=SECRET)
