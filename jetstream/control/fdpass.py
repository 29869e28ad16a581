"""Hands the segment's file descriptor from the lowest rank of a host to the others there.

Over an abstract Unix socket, which leaves no file behind. Both sides check what the kernel says
about the other (SO_PEERCRED): the same user, and the process id announced in the rendezvous.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping

from jetstream.control.messages import LIMIT_BYTES, Claim, Grant, Message, Refuse, open_sealed, seal
from jetstream.errors import JetstreamError, RendezvousError

__all__ = ["FdServer", "fetch_fd"]

_log = logging.getLogger("jetstream.control")

#: How long a connected rank may take to send its claim, which it does at once.
_CLAIM_TIMEOUT_S = 2.0


class FdServer:
    """The owner's side: a listening socket to be polled, and `serve_one` when it is readable."""

    def __init__(self, fd: int, *, pids: Mapping[int, int], secret: bytes) -> None:
        """Serves `fd`, which stays the caller's, to the processes `pids` (rank to pid)."""
        self._fd = fd
        self._pids = pids
        self._secret = secret
        self.name = f"jetstream-fd-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind("\0" + self.name)
            self._listener.listen(len(pids))
            self._listener.setblocking(False)
        except OSError:
            self._listener.close()
            raise

    def fileno(self) -> int:
        """Returns the listening socket's number, for polling."""
        return self._listener.fileno()

    def serve_one(self) -> None:
        """Accepts a connection and answers it with the descriptor, or with the reason why not.

        What goes wrong here is the other side's to report, so nothing is raised.
        """
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            pid, uid = _peer_credentials(connection)
            if uid != os.geteuid():
                _log.warning("pid %d of user %d asked for the segment", pid, uid)
                return
            connection.settimeout(_CLAIM_TIMEOUT_S)
            try:
                rank = self._check(connection.recv(LIMIT_BYTES), pid)
            except JetstreamError as error:
                refusal = Refuse(error=type(error).__name__, text=str(error))
                connection.send(seal(refusal, secret=self._secret))
                return
            grant = seal(Grant(rank=rank), secret=self._secret)
            socket.send_fds(connection, [grant], [self._fd])

    def close(self) -> None:
        """Stops listening; nothing is left behind."""
        self._listener.close()

    def _check(self, raw: bytes, pid: int) -> int:
        """Returns the rank that the process `pid` rightly claims to be.

        Raises RendezvousError or ProtocolError.
        """
        claim = open_sealed(raw, secret=self._secret)
        if not isinstance(claim, Claim):
            raise RendezvousError(f"pid {pid} sent {type(claim).__name__} on the fd socket")
        if claim.pid != pid or self._pids.get(claim.rank) != pid:
            raise RendezvousError(
                f"the segment of rank {claim.rank} (pid {self._pids.get(claim.rank)}) is claimed "
                f"by pid {pid}"
            )
        return claim.rank


def fetch_fd(
    name: str, *, rank: int, owner: int, owner_pid: int, secret: bytes, timeout_s: float
) -> int:
    """Fetches the descriptor from the FdServer `name` of rank `owner`, which is `owner_pid`.

    The caller closes it.

    Raises RendezvousError if the server is another user's or another process's, refuses, or does
    not answer in time.
    """
    claim = seal(Claim(rank=rank, pid=os.getpid()), secret=secret)
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            raw, fds = _ask(name, claim, owner, owner_pid, timeout_s)
            break
        except OSError as error:
            # The owner does not wait long for a claim: one that was late is made again.
            if not isinstance(error, BrokenPipeError) or time.monotonic() > until_s:
                text = f"rank {owner} did not hand over the segment: {error}"
                raise RendezvousError(text) from error
    if not raw:
        raise RendezvousError(
            f"rank {owner} (pid {owner_pid}) ended the connection instead of handing over the "
            "segment: it has died or left"
        )
    try:
        return _one_fd(open_sealed(raw, secret=secret), fds, owner)
    except JetstreamError:
        for fd in fds:
            os.close(fd)
        raise


def _ask(
    name: str, claim: bytes, owner: int, owner_pid: int, timeout_s: float
) -> tuple[bytes, list[int]]:
    """Makes a claim once; returns the answer, b"" if there was none. Raises OSError as well."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        connection.connect("\0" + name)
        pid, uid = _peer_credentials(connection)
        if uid != os.geteuid() or pid != owner_pid:
            raise RendezvousError(
                f"the segment is offered by pid {pid} of user {uid}, not by rank {owner} "
                f"(pid {owner_pid}) of user {os.geteuid()}"
            )
        connection.send(claim)
        return _receive(connection)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    # Not socket.recv_fds: that one drops its flags, and the descriptor would survive an exec.
    raw, ancillary, _, _ = connection.recvmsg(
        LIMIT_BYTES, socket.CMSG_SPACE(struct.calcsize("=i")), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.extend(fd for (fd,) in struct.iter_unpack("=i", data))
    return raw, fds


def _one_fd(answer: Message, fds: list[int], owner: int) -> int:
    if isinstance(answer, Refuse):
        raise RendezvousError(f"rank {owner} did not hand over the segment: {answer.text}")
    if not isinstance(answer, Grant) or len(fds) != 1:
        raise RendezvousError(
            f"rank {owner} sent {type(answer).__name__} with {len(fds)} descriptors for the segment"
        )
    return fds[0]


def _peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Returns pid and user id of the process on the other side, as the kernel knows them."""
    layout = struct.Struct("=iII")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    pid, uid, _ = layout.unpack(raw)
    return pid, uid
