"""What all ranks must agree on, and how errors name ranks and travel."""

from __future__ import annotations

from jetstream import errors
from jetstream.control.messages import TEXT_MAX, Hello, Member, Refuse
from jetstream.errors import JetstreamError, RendezvousError, VersionMismatchError

__all__ = ["describe_member", "describe_ranks", "error_from", "objection_to", "refusal_of"]


def describe_member(member: Member, host: str = "") -> str:
    """Returns "rank 3 (pid 4711)", or "rank 3 (pid 4711 on node7)" with a `host`."""
    where = f" on {host}" if host else ""
    return f"rank {member.rank} (pid {member.pid}{where})"


def error_from(name: str, text: str) -> JetstreamError:
    """Makes the error of that class name; a name that is not one of ours gives RendezvousError."""
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if isinstance(kind, type) and issubclass(kind, JetstreamError):
        return kind(text)
    return RendezvousError(text)


def refusal_of(error: JetstreamError) -> Refuse:
    """The message that tells a rank of an error."""
    # Texts may hold lone surrogates (from file names), which msgpack cannot encode.
    text = str(error).encode("utf-8", "replace").decode()
    return Refuse(error=type(error).__name__, text=text[:TEXT_MAX])


def describe_ranks(ranks: list[int]) -> str:
    """Returns "1, 3-7" for ascending ranks."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)


def objection_to(me: Hello, hello: Hello, known: Member | None) -> JetstreamError | None:
    """Returns why the rank behind `hello` cannot join rank 0 (`me`), or None if it can.

    `known` is who has that rank already.
    """
    rank, zero = hello.member.rank, describe_member(me.member)
    who = describe_member(hello.member)
    if hello.build != me.build:
        return VersionMismatchError(
            f"{zero} runs build {me.build} of jetstream, {who} runs {hello.build}; "
            "install the same build for all ranks"
        )
    if hello.world_size != me.world_size:
        return RendezvousError(
            f"{zero} expects {me.world_size} ranks, {who} expects {hello.world_size}; "
            "give all ranks the same JETSTREAM_WORLD_SIZE"
        )
    if rank >= me.world_size:
        return RendezvousError(f"{who} is out of range: there are {me.world_size} ranks")
    if known is not None:
        return RendezvousError(
            f"two processes are rank {rank}: pid {known.pid} and pid {hello.member.pid}; "
            "give every rank its own JETSTREAM_RANK"
        )
    for name, ours, theirs in (
        ("JETSTREAM_ALGO", me.algorithms, hello.algorithms),
        ("JETSTREAM_LINK", me.link, hello.link),
    ):
        if ours != theirs:
            return RendezvousError(
                f"{zero} has {name}={ours!r}, {who} has {theirs!r}; give all ranks the same"
            )
    return None
