"""Messages of the rendezvous: frozen dataclasses, their msgpack form, and its authentication.

On the wire a message is a 32-byte HMAC-SHA256 of the rest under the job secret, then a msgpack map
{"v": version, "type": name, fields...}. The secret itself never travels. Whatever arrives is
untrusted: every field is checked for type and range, and no other field may be there.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from jetstream.config import RANKS_MAX
from jetstream.errors import ProtocolError, RendezvousError, VersionMismatchError

__all__ = [
    "ENDPOINT_BYTES_MAX",
    "LIMIT_BYTES",
    "MESSAGES",
    "VERSION",
    "Alive",
    "Assemble",
    "Claim",
    "Failed",
    "ForeignBytesError",
    "Go",
    "Grant",
    "Hello",
    "Member",
    "Message",
    "Offer",
    "Ready",
    "Refuse",
    "Welcome",
    "open_sealed",
    "seal",
]

#: Version of this protocol; ranks with another one are refused.
VERSION = 2
#: Longest sealed message; an Assemble for 256 ranks takes about 80 KB.
LIMIT_BYTES = 1 << 20

_TAG_BYTES = 32

_T = TypeVar("_T")
#: Longest text of an error that travels, characters.
TEXT_MAX = 16384
#: Longest address of a link's endpoint.
ENDPOINT_BYTES_MAX = 256
_BYTES_MAX = 1 << 40


def _integer(low: int, high: int) -> Any:
    return _field(lambda value: type(value) is int and low <= value <= high)


def _text(characters_max: int, *, default: Any = dataclasses.MISSING) -> Any:
    return _field(lambda value: type(value) is str and len(value) <= characters_max, default)


def _bitmap(bytes_max: int) -> Any:
    return _field(lambda value: type(value) is bytes and 0 < len(value) <= bytes_max)


def _field(check: Callable[[Any], bool], default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"check": check})


def _tuple_of(check: Callable[[Any], bool], count_min: int, count_max: int) -> Any:
    return _field(
        lambda value: (
            type(value) is tuple
            and count_min <= len(value) <= count_max
            and all(check(part) for part in value)
        )
    )


def _is_endpoint(value: Any) -> bool:
    return type(value) is bytes and len(value) <= ENDPOINT_BYTES_MAX


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One rank as all others need to know it; part of Hello and Assemble."""

    rank: int = _integer(0, RANKS_MAX - 1)
    local_rank: int = _integer(0, RANKS_MAX - 1)
    pid: int = _integer(1, (1 << 31) - 1)
    #: When the process started, in clock ticks since boot: tells it from a later one of that pid.
    start_ticks: int = _integer(0, (1 << 63) - 1)
    host: str = _text(255)
    #: Kernel, PID and network namespace: with the name, what makes two ranks neighbours.
    boot_id: str = _text(64)
    pid_namespace: int = _integer(0, (1 << 63) - 1)
    net_namespace: int = _integer(0, (1 << 63) - 1)
    #: CPUs the process may run on, as a bitmap, lowest CPU first.
    cpus: bytes = _bitmap(1024)


def _check_member(value: Any) -> bool:
    return isinstance(value, Member)


def _check_members(value: Any) -> bool:
    return type(value) is tuple and 0 < len(value) <= RANKS_MAX and all(map(_check_member, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A rank reports to rank 0, with everything that has to agree; repeated until answered."""

    member: Member = dataclasses.field(metadata={"check": _check_member})
    world_size: int = _integer(1, RANKS_MAX)
    build: str = _text(128)
    #: Forced algorithms (JETSTREAM_ALGO) in canonical form.
    algorithms: str = _text(1024)
    #: Kind of link asked for (JETSTREAM_LINK); what would suit this rank, and why.
    link: str = _text(16)
    link_choice: str = _text(16)
    link_reason: str = _text(1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assemble:
    """Rank 0 to all: everyone is there. Open a link if there are several hosts; the lowest rank of
    each host makes its segment.
    """

    members: tuple[Member, ...] = dataclasses.field(metadata={"check": _check_members})
    #: The kind of link that all open; "" on one host.
    link: str = _text(16)
    #: Sizes of the segment as rank 0 has them set; 0: the default.
    buffer_bytes: int = _integer(0, _BYTES_MAX)
    heap_bytes: int = _integer(0, _BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A rank to rank 0: it can be reached there; the segment of its host waits on that Unix socket.

    ``endpoint`` is empty on one host, ``fd_socket`` from all but the lowest rank of a host.
    """

    rank: int = _integer(0, RANKS_MAX - 1)
    endpoint: bytes = _field(_is_endpoint)
    fd_socket: str = _text(100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Rank 0 to all: endpoints by rank, Unix sockets by host."""

    endpoints: tuple[bytes, ...] = _tuple_of(_is_endpoint, 1, RANKS_MAX)
    fd_sockets: tuple[str, ...] = _tuple_of(_is_name, 1, RANKS_MAX)
    #: What algorithms and chunk sizes are chosen by; the control plane does not look into it.
    selection: str = _text(1 << 17, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A rank has attached the segment and watches the others of its host."""

    rank: int = _integer(0, RANKS_MAX - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Rank 0 to all: every rank is ready; the last message of a rendezvous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Between rank 0 and a rank of another host, both ways: it has not died. Rank 0 answers."""

    rank: int = _integer(0, RANKS_MAX - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Rank 0 to all: there will be no communicator, and why."""

    error: str = _text(64)
    text: str = _text(TEXT_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A rank to rank 0: it cannot go on, and why."""

    rank: int = _integer(0, RANKS_MAX - 1)
    error: str = _text(64)
    text: str = _text(TEXT_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """On the fd socket: a rank asks for the segment."""

    rank: int = _integer(0, RANKS_MAX - 1)
    pid: int = _integer(1, (1 << 31) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """On the fd socket: the descriptor travels with this message."""

    rank: int = _integer(0, RANKS_MAX - 1)


class ForeignBytesError(ProtocolError):
    """Bytes of something that does not speak this protocol: a port scan, a wrong address."""


Message = Hello | Assemble | Offer | Welcome | Ready | Alive | Go | Refuse | Failed | Claim | Grant

#: Every message by the name it has on the wire.
MESSAGES: dict[str, type[Message]] = {
    "hello": Hello,
    "assemble": Assemble,
    "offer": Offer,
    "welcome": Welcome,
    "ready": Ready,
    "alive": Alive,
    "go": Go,
    "refuse": Refuse,
    "failed": Failed,
    "claim": Claim,
    "grant": Grant,
}
_NAMES = {kind: name for name, kind in MESSAGES.items()}


def seal(message: Message, *, secret: bytes) -> bytes:
    """Returns `message` as bytes to send, authenticated with `secret`."""
    body = dataclasses.asdict(message)
    payload: bytes = msgpack.packb({"v": VERSION, "type": _NAMES[type(message)], **body})
    sealed = hmac.digest(secret, payload, "sha256") + payload
    assert len(sealed) <= LIMIT_BYTES
    return sealed


def open_sealed(raw: bytes, *, secret: bytes) -> Message:
    """Returns the message in `raw`.

    Raises ForeignBytesError if no rank sent it, RendezvousError if a rank with another secret did,
    VersionMismatchError if it speaks another version of the protocol, ProtocolError if a rank with
    the right secret sent something malformed.
    """
    if not _TAG_BYTES < len(raw) <= LIMIT_BYTES:
        raise ForeignBytesError(f"{len(raw)} bytes are too few or too many for a message")
    tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
    if not hmac.compare_digest(tag, hmac.digest(secret, payload, "sha256")):
        raise RendezvousError(
            f"{_claimed_sender(payload)} does not have this job's secret; JETSTREAM_JOB_SECRET "
            "differs between ranks, or two jobs use the same JETSTREAM_RENDEZVOUS"
        )
    return _decode(payload)


def _claimed_sender(payload: bytes) -> str:
    """Describes who sent an unauthenticated message, as far as it says so itself.

    Raises ForeignBytesError if it is no message at all.
    """
    try:
        message = _decode(payload)
    except (ProtocolError, VersionMismatchError):
        raise ForeignBytesError("bytes that no rank sent") from None
    if isinstance(message, Hello):
        return f"a process that calls itself rank {message.member.rank} (pid {message.member.pid})"
    return "the sender of a message"


def _decode(payload: bytes) -> Message:
    body = _unpack(payload)
    version = body.pop("v", None)
    if version != VERSION or type(version) is not int:
        raise VersionMismatchError(
            f"a rank speaks version {version!r:.20} of the rendezvous protocol, "
            f"this one {VERSION}; install the same jetstream for all ranks"
        )
    name = body.pop("type", None)
    kind = MESSAGES.get(name) if type(name) is str else None
    if kind is None:
        raise ProtocolError(f"unknown rendezvous message {name!r:.40}")
    if kind is Hello:
        body["member"] = _member(body.get("member"))
    for name, value in body.items():
        if type(value) is list:  # msgpack knows no tuples; one more than allowed will not pass
            parts = value[: RANKS_MAX + 1]
            body[name] = tuple(map(_member, parts) if name == "members" else parts)
    return _build(kind, body)


def _unpack(payload: bytes) -> dict[str, Any]:
    try:
        body = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a rendezvous message is not valid msgpack: {error!r:.100}") from None
    if type(body) is not dict or not all(type(key) is str for key in body):
        raise ProtocolError("a rendezvous message is not a map with text keys")
    return body


def _member(value: Any) -> Member:
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise ProtocolError("a rendezvous message names a member that is not a map")
    return _build(Member, value)


def _build(kind: type[_T], body: dict[str, Any]) -> _T:
    """Makes a `kind` from exactly its fields, each of which has to pass its check."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # all kinds are dataclasses
    expected = {field.name for field in fields}
    if body.keys() != expected:
        raise ProtocolError(
            f"{kind.__name__} lacks {sorted(expected - body.keys())} "
            f"or has the unknown {sorted(body.keys() - expected)!r:.100}"
        )
    for field in fields:
        if not field.metadata["check"](body[field.name]):
            raise ProtocolError(
                f"{kind.__name__}.{field.name} has the impossible value {body[field.name]!r:.60}"
            )
    return kind(**body)
